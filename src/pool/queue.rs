//! The queue: who waits, and how many connections are out.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{runtime::Handle, sync::oneshot};

use super::{
    SessionPool, Status,
    acquire::{self, Hand, Lease},
    checkout::CheckedOut,
};
use crate::error::Error;

/// How often, pool-wide, a released connection passes those who wait here and visits the driver's
/// pool, where users of the plain `DatabaseConnection` may be waiting.
const PLAIN_SHARE: Duration = Duration::from_millis(50);

#[derive(Default)]
pub(super) struct Queue(Mutex<State>);

#[derive(Default)]
struct State {
    waiters: VecDeque<Waiter>,
    /// About how many waiters in the queue have given up; swept when they are the majority.
    gone: usize,
    /// Names the next waiter.
    next: u64,
    /// Connections that sessions hold.
    out: u32,
    /// Tasks that are in the driver's `acquire()`.
    acquiring: u32,
    last_visit: Option<Instant>,
}

struct Waiter {
    id: u64,
    sender: oneshot::Sender<Result<Lease, Error>>,
    pool: SessionPool,
    runtime: Handle,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn status(&self) -> Status {
        let state = self.lock();
        Status {
            limit: 0,
            in_use: state.out,
            acquiring: state.acquiring,
            waiting: state.waiters.iter().filter(|waiter| waiter.is_live()).count(),
        }
    }

    /// Joins the queue and sends for a connection if the limit allows one more.
    pub(super) fn join(&self, pool: &SessionPool, runtime: Handle) -> oneshot::Receiver<Result<Lease, Error>> {
        let (sender, receiver) = oneshot::channel();
        let mut state = self.lock();
        state.next += 1;
        let id = state.next;
        state.waiters.push_back(Waiter { id, sender, pool: pool.clone(), runtime });
        drop(state);
        self.fill();
        receiver
    }

    /// A waiter has given up; its receiver is closed.
    pub(super) fn leave(&self) {
        let mut state = self.lock();
        state.gone += 1;
        if state.gone * 2 > state.waiters.len() {
            state.waiters.retain(|waiter| waiter.is_live());
            state.gone = 0;
        }
    }

    /// Sends for as many connections as there are waiters and the limit allows.
    pub(super) fn fill(&self) {
        while let Some((waiter, pool, runtime)) = self.next_to_fetch_for() {
            let spawning = Arc::new(AtomicBool::new(true));
            // Made before the task, so that the count is right even if the task never runs.
            let ticket = Ticket { pool, waiter, stage: Stage::Spawned(spawning.clone()) };
            runtime.spawn(acquire::fetch(ticket, runtime.clone()));
            spawning.store(false, Ordering::Release);
        }
    }

    /// The first waiter that no fetch is under way for, if one more connection may be out.
    fn next_to_fetch_for(&self) -> Option<(u64, SessionPool, Handle)> {
        let mut state = self.lock();
        let waiter = state.waiters.iter().filter(|waiter| waiter.is_live()).nth(state.acquiring as usize)?;
        if state.out + state.acquiring >= waiter.pool.limit() {
            return None;
        }
        let found = (waiter.id, waiter.pool.clone(), waiter.runtime.clone());
        state.acquiring += 1;
        Some(found)
    }

    /// Gives `connection` to the oldest live waiter, or back to the caller if nobody takes it.
    pub(super) fn hand_over(&self, mut connection: CheckedOut, how: Hand) -> Option<CheckedOut> {
        loop {
            let waiter = {
                let mut state = self.lock();
                if how == Hand::Over && state.plain_users_turn() {
                    return Some(connection);
                }
                state.oldest()
            };
            let Some(waiter) = waiter else { return Some(connection) };
            match waiter.sender.send(Ok(Lease::new(connection))) {
                Ok(()) => return None,
                Err(Ok(lease)) => connection = lease.into_connection()?,
                Err(Err(_)) => return None,
            }
        }
    }

    /// Tells the oldest live waiter why it gets no connection.
    pub(super) fn refuse(&self, error: Error) {
        let oldest = self.lock().oldest();
        if let Some(waiter) = oldest {
            let _ = waiter.sender.send(Err(error));
        }
    }
}

impl State {
    fn oldest(&mut self) -> Option<Waiter> {
        while let Some(waiter) = self.waiters.pop_front() {
            if waiter.is_live() {
                return Some(waiter);
            }
            self.gone = self.gone.saturating_sub(1);
        }
        None
    }

    fn plain_users_turn(&mut self) -> bool {
        let due = self.last_visit.is_none_or(|last| last.elapsed() >= PLAIN_SHARE);
        if due {
            self.last_visit = Some(Instant::now());
        }
        due
    }
}

impl Waiter {
    fn is_live(&self) -> bool {
        !self.sender.is_closed()
    }
}

/// The right to fetch one connection; a connection that arrives turns it into a [`SlotGuard`].
pub(super) struct Ticket {
    pool: SessionPool,
    /// Whose runtime the fetch runs on.
    waiter: u64,
    stage: Stage,
}

enum Stage {
    /// Given to a runtime; the flag stands while `fill` is still at it.
    Spawned(Arc<AtomicBool>),
    /// The driver is at work.
    Fetching,
    /// A connection has come of it.
    Redeemed,
}

impl Ticket {
    pub(super) fn pool(&self) -> &SessionPool {
        &self.pool
    }

    pub(super) fn begin(&mut self) {
        self.stage = Stage::Fetching;
    }

    pub(super) fn redeem(mut self) -> SlotGuard {
        self.stage = Stage::Redeemed;
        let mut state = self.pool.shared.queue.lock();
        state.acquiring -= 1;
        state.out += 1;
        drop(state);
        SlotGuard { pool: self.pool.clone(), armed: true }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let queue = &self.pool.shared.queue;
        match &self.stage {
            Stage::Redeemed => {}
            Stage::Fetching => {
                queue.lock().acquiring -= 1;
                queue.fill();
            }
            Stage::Spawned(spawning) => {
                // The runtime is shutting down and took no task: its waiter can get nothing.
                let mut state = queue.lock();
                state.acquiring -= 1;
                let position = state.waiters.iter().position(|waiter| waiter.id == self.waiter);
                let waiter = position.and_then(|position| state.waiters.remove(position));
                drop(state);
                // Wakes it, which must not happen under the lock.
                drop(waiter);
                if !spawning.load(Ordering::Acquire) {
                    queue.fill();
                }
            }
        }
    }
}

/// One connection that is out; dropping it frees the slot for the next waiter.
pub(super) struct SlotGuard {
    pool: SessionPool,
    armed: bool,
}

impl SlotGuard {
    pub(super) fn pool(&self) -> &SessionPool {
        &self.pool
    }

    /// Moves the slot out, leaving a guard that frees nothing.
    pub(super) fn take(&mut self) -> Self {
        Self { pool: self.pool.clone(), armed: std::mem::replace(&mut self.armed, false) }
    }
}

impl Drop for SlotGuard {
    fn drop(&mut self) {
        if self.armed {
            self.pool.shared.queue.lock().out -= 1;
            self.pool.shared.queue.fill();
        }
    }
}
