//! [`Core`]: what a session's handles, its guard and its running call share.
//!
//! The connection is in one place at a time, and the [`Slot`] says where. A call owns it while it
//! runs; whoever ends the call early moves it, connection included, to a task that runs it to its
//! end. The lock is never held across an await.

use std::{
    future::Future,
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Waker,
    time::{Duration, Instant},
};

use futures_util::future::{Either, select};
use sea_orm::DbErr;
use tokio::{
    runtime::Handle,
    sync::{Notify, OwnedSemaphorePermit, Semaphore, TryAcquireError, oneshot},
};

use super::call::Call;
use crate::{
    connection::{Finished, Operation, Output, PinnedConnection},
    error::{Error, Kind},
    pool::{Lease, SessionPool},
    telemetry::SessionSpan,
};

/// Names a transaction of a session; never used twice.
pub(crate) type Level = u64;

/// A driver call that owns its connection.
pub(super) type CallFuture = Pin<Box<dyn Future<Output = Finished> + Send>>;

pub(crate) struct Core {
    pool: SessionPool,
    /// One permit: whose turn it is to use the connection.
    turn: Arc<Semaphore>,
    /// Tells those who queue that a stream has begun, which they must not wait for.
    stream_opened: Notify,
    state: Mutex<State>,
}

pub(super) struct State {
    pub(super) slot: Slot,
    /// The open transactions, outermost first.
    levels: Vec<OpenLevel>,
    next: u64,
    /// The request has ended.
    pub(super) over: bool,
    /// Told when the connection has left the session.
    released: Option<oneshot::Sender<()>>,
    /// The first failure to acquire, which the layer answers for.
    failure: Option<Error>,
    span: SessionSpan,
}

/// Where the session's connection is.
pub(super) enum Slot {
    /// Not checked out: not yet, or no more.
    Empty,
    /// At rest; the next call takes it.
    Idle(PinnedConnection),
    /// Owned by a call.
    Running(Running),
    /// Lost or closed; the session has no other.
    Broken,
}

pub(super) struct Running {
    pub(super) call: u64,
    pub(super) manner: Manner,
    /// `None` while it is being polled, or after it moved to a task.
    pub(super) future: Option<CallFuture>,
    pub(super) waker: Option<Waker>,
    pub(super) runtime: Handle,
    pub(super) patience: Option<Duration>,
    _turn: OwnedSemaphorePermit,
}

/// How a running call treats those who come next, and its own early end.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    /// The next one waits; ended early, it runs on in a task.
    Statement,
    /// The next one is refused; ended early, it is read to its end in a task.
    Stream,
    /// User code: ended early, it is dropped and the connection closed.
    Raw,
    /// Moved to a task; the next one waits.
    Draining,
}

struct OpenLevel {
    id: Level,
    /// Its handle was dropped without an end: rolled back before anything else happens.
    abandoned: bool,
}

impl Core {
    pub(crate) fn new(pool: SessionPool) -> Arc<Self> {
        let state = State {
            slot: Slot::Empty,
            levels: Vec::new(),
            next: 0,
            over: false,
            released: None,
            failure: None,
            span: SessionSpan::open(),
        };
        Arc::new(Self {
            pool,
            turn: Arc::new(Semaphore::new(1)),
            stream_opened: Notify::new(),
            state: Mutex::new(state),
        })
    }

    /// A session that has its connection, after having waited for it.
    pub(crate) fn with_connection(pool: SessionPool, lease: Lease, waited: Duration) -> Arc<Self> {
        let core = Self::new(pool);
        core.install(lease, waited);
        core
    }

    pub(crate) fn pool(&self) -> &SessionPool {
        &self.pool
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_over(&self) -> bool {
        self.lock().over
    }

    /// For pass-through sessions: an error when the request has ended.
    pub(crate) fn check_open(&self) -> Result<(), DbErr> {
        if self.is_over() { Err(Kind::SessionClosed.into_db_err()) } else { Ok(()) }
    }

    pub(crate) fn failure(&self) -> Option<Error> {
        self.lock().failure.clone()
    }

    pub(crate) fn new_level(&self) -> Level {
        let mut state = self.lock();
        state.next += 1;
        state.next
    }

    /// Runs `operation` for the transaction `who` (`None`: for the session itself) to its end.
    pub(crate) async fn run(self: &Arc<Self>, who: Option<Level>, operation: Operation) -> Result<Output, DbErr> {
        self.start(who, None, operation).await?.await
    }

    /// Waits for the turn and a connection, then starts `operation`, which may open the level `opens`.
    pub(super) async fn start(
        self: &Arc<Self>,
        who: Option<Level>,
        opens: Option<Level>,
        operation: Operation,
    ) -> Result<Call, DbErr> {
        let turn = self.take_turn().await?;
        self.check_out(who).await?;
        self.launch(turn, who, opens, operation)
    }

    async fn take_turn(&self) -> Result<OwnedSemaphorePermit, DbErr> {
        match self.turn.clone().try_acquire_owned() {
            Ok(turn) => return Ok(turn),
            Err(TryAcquireError::Closed) => return Err(Kind::SessionClosed.into_db_err()),
            Err(TryAcquireError::NoPermits) => {}
        }
        let mut opened = pin!(self.stream_opened.notified());
        opened.as_mut().enable();
        if self.is_streaming() {
            return Err(Kind::StreamOpen.into_db_err());
        }
        match select(pin!(self.turn.clone().acquire_owned()), opened).await {
            Either::Left((turn, _)) => turn.map_err(|_| Kind::SessionClosed.into_db_err()),
            Either::Right(((), _)) => Err(Kind::StreamOpen.into_db_err()),
        }
    }

    fn is_streaming(&self) -> bool {
        matches!(&self.lock().slot, Slot::Running(running) if running.manner == Manner::Stream)
    }

    /// Acquires a connection if the session has none yet.
    async fn check_out(&self, who: Option<Level>) -> Result<(), DbErr> {
        {
            let mut state = self.lock();
            state.admit(who).map_err(Kind::into_db_err)?;
            if !matches!(state.slot, Slot::Empty) {
                return Ok(());
            }
        }
        let started = Instant::now();
        match self.pool.acquire().await {
            Ok(lease) => {
                self.install(lease, started.elapsed());
                Ok(())
            }
            Err(error) => {
                let answer = error.to_db_err();
                self.lock().failure.get_or_insert(error);
                Err(answer)
            }
        }
    }

    /// Puts a connection into the slot; into a session that has ended meanwhile, none goes.
    fn install(&self, lease: Lease, waited: Duration) {
        let mut state = self.lock();
        state.span.waited(waited);
        if state.over {
            drop(state);
            drop(lease);
        } else if let Some(connection) = lease.into_connection() {
            state.span.checked_out();
            state.slot = Slot::Idle(connection);
        }
    }

    fn launch(
        self: &Arc<Self>,
        turn: OwnedSemaphorePermit,
        who: Option<Level>,
        opens: Option<Level>,
        operation: Operation,
    ) -> Result<Call, DbErr> {
        let manner = Manner::of(&operation);
        let mut state = self.lock();
        let depth = state.admit(who).map_err(Kind::into_db_err)?;
        let connection = match std::mem::replace(&mut state.slot, Slot::Broken) {
            Slot::Idle(connection) => connection,
            other => {
                state.slot = other;
                return Err(Kind::ConnectionLost.into_db_err());
            }
        };
        state.next += 1;
        let call = state.next;
        state.levels.extend(opens.map(|id| OpenLevel { id, abandoned: false }));
        state.span.count();
        state.slot = Slot::Running(Running {
            call,
            manner,
            runtime: connection.runtime().clone(),
            patience: connection.patience(),
            future: Some(Box::pin(connection.call(depth, operation))),
            waker: None,
            _turn: turn,
        });
        drop(state);
        if manner == Manner::Stream {
            self.stream_opened.notify_waiters();
        }
        Ok(Call::new(self.clone(), call))
    }

    /// Takes the connection back from a call that has ended.
    pub(super) fn finish(&self, finished: Finished) -> Result<Output, DbErr> {
        let Finished { connection, output } = finished;
        let mut state = self.lock();
        state.levels.truncate(connection.depth());
        let next = if connection.is_broken() { Slot::Broken } else { Slot::Empty };
        let ended = std::mem::replace(&mut state.slot, next);
        if connection.is_broken() || state.over {
            let released = state.released.take();
            drop(state);
            give_back(connection, released);
        } else {
            state.slot = Slot::Idle(connection);
            drop(state);
        }
        // The turn passes on here, when the connection is in its place.
        drop(ended);
        output
    }

    /// Runs a call that nobody waits for to its end, in a task of its own.
    pub(super) fn drain(self: &Arc<Self>, future: CallFuture, runtime: &Handle, patience: Option<Duration>) {
        let mut guard = Abandoned(Some(self.clone()));
        let draining = async move {
            let finished = match patience {
                None => Some(future.await),
                Some(bound) => tokio::time::timeout(bound, future).await.ok(),
            };
            match finished {
                Some(finished) => drop(guard.0.take().map(|core| core.finish(finished))),
                None => {
                    tracing::warn!(target: "tower_sea_orm::session", "closed a connection whose statement did not end within the release timeout");
                }
            }
        };
        runtime.spawn(draining);
    }

    /// The running call is gone and its connection with it.
    pub(super) fn break_running(&self) {
        let mut state = self.lock();
        if let Slot::Running(_) = state.slot {
            let ended = std::mem::replace(&mut state.slot, Slot::Broken);
            let released = state.released.take();
            drop(state);
            drop((ended, released));
        }
    }

    /// Marks a transaction whose handle was dropped, and starts its rollback if nothing runs.
    pub(crate) fn abandon(self: &Arc<Self>, level: Level) {
        {
            let mut state = self.lock();
            let Some(position) = state.levels.iter().position(|open| open.id == level) else { return };
            for open in &mut state.levels[position..] {
                open.abandoned = true;
            }
        }
        let Ok(turn) = self.turn.clone().try_acquire_owned() else { return };
        // Who could use the session next: what remains when the abandoned are gone.
        let who = self.lock().remaining();
        if let Ok(call) = self.launch(turn, who, None, Operation::Settle) {
            // Dropped unpolled, the call moves to a task.
            drop(call);
        }
    }

    /// Gives the connection back before the request ends; the next statement checks out again.
    pub(crate) async fn release(self: &Arc<Self>) -> Result<(), DbErr> {
        let _turn = self.take_turn().await?;
        let mut state = self.lock();
        state.admit(None).map_err(Kind::into_db_err)?;
        if let Slot::Idle(connection) = std::mem::replace(&mut state.slot, Slot::Empty) {
            state.span.released();
            drop(state);
            give_back(connection, None);
        }
        Ok(())
    }

    /// Ends the session: its handles are dead from here on, its connection goes back.
    ///
    /// The receiver is there when a transaction is open: it resolves when that is rolled back.
    pub(crate) fn end(self: &Arc<Self>) -> Option<oneshot::Receiver<()>> {
        self.turn.close();
        let mut state = self.lock();
        if state.over {
            return None;
        }
        state.over = true;
        let open = !state.levels.is_empty();
        state.span.close(open);
        let receiver = open.then(|| {
            let (sender, receiver) = oneshot::channel();
            state.released = Some(sender);
            receiver
        });
        match std::mem::replace(&mut state.slot, Slot::Empty) {
            Slot::Idle(connection) => {
                let released = state.released.take();
                drop(state);
                give_back(connection, released);
            }
            Slot::Running(mut running) => {
                let stolen = running.future.take();
                let waker = running.waker.take();
                let (runtime, patience, manner) = (running.runtime.clone(), running.patience, running.manner);
                if stolen.is_some() {
                    running.manner = Manner::Draining;
                }
                state.slot = Slot::Running(running);
                drop(state);
                if let Some(future) = stolen {
                    self.leave_behind(future, &runtime, patience, manner);
                }
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            other => {
                state.slot = other;
                state.released = None;
            }
        }
        receiver
    }

    /// What becomes of a call that is ended early.
    pub(super) fn leave_behind(
        self: &Arc<Self>,
        future: CallFuture,
        runtime: &Handle,
        patience: Option<Duration>,
        manner: Manner,
    ) {
        if manner == Manner::Raw {
            drop(future);
            self.break_running();
        } else {
            self.drain(future, runtime, patience);
        }
    }
}

impl State {
    /// Whether `who` may use the connection now, and how many transactions are open around it.
    fn admit(&mut self, who: Option<Level>) -> Result<usize, Kind> {
        if self.over {
            return Err(Kind::SessionClosed);
        }
        if let Some(first) = self.levels.iter().position(|open| open.abandoned) {
            self.levels.truncate(first);
        }
        let innermost = self.levels.last().map(|open| open.id);
        match who {
            _ if who == innermost => Ok(self.levels.len()),
            Some(id) if !self.levels.iter().any(|open| open.id == id) => Err(Kind::TransactionOver),
            _ => Err(Kind::NestedOpen),
        }
    }

    fn remaining(&self) -> Option<Level> {
        self.levels.iter().take_while(|open| !open.abandoned).last().map(|open| open.id)
    }
}

impl Manner {
    fn of(operation: &Operation) -> Self {
        match operation {
            #[cfg(feature = "stream")]
            Operation::Stream(..) => Self::Stream,
            Operation::Raw(_) => Self::Raw,
            _ => Self::Statement,
        }
    }
}

/// The one way a connection leaves a session: clean at once, cleaned in a task, or closed.
fn give_back(mut connection: PinnedConnection, released: Option<oneshot::Sender<()>>) {
    if connection.is_broken() {
        drop(connection);
    } else if connection.is_clean() {
        connection.pool().clone().put_back(connection);
    } else {
        let runtime = connection.runtime().clone();
        runtime.spawn(async move {
            let cleaned = match connection.patience() {
                None => connection.clean().await.is_ok(),
                Some(bound) => matches!(tokio::time::timeout(bound, connection.clean()).await, Ok(Ok(()))),
            };
            if cleaned {
                connection.pool().clone().put_back(connection);
            } else {
                tracing::warn!(target: "tower_sea_orm::session", "closed a connection that could not be rolled back within the release timeout");
                drop(connection);
            }
            drop(released);
        });
    }
}

/// Stands for a call in a task: whatever ends that task early, the session does not wait for it.
struct Abandoned(Option<Arc<Core>>);

impl Drop for Abandoned {
    fn drop(&mut self) {
        if let Some(core) = self.0.take() {
            core.break_running();
        }
    }
}
