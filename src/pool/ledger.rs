//! The queue: who waits, and how many connections are out.

use std::{
    collections::VecDeque,
    ops::{Deref, DerefMut},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{runtime::Handle, sync::oneshot};

use super::{
    SessionPool, Status,
    acquire::{self, Lease},
    admission::Pace,
    builder::Room,
    checked_out::CheckedOut,
    idle::IdleConnections,
    registry::{Holder, is_same},
    slot::FetchGuard,
};
use crate::error::{Error, Kind};

/// How often, pool-wide, a released connection passes those who wait here and visits the driver's
/// pool, where users of the plain `DatabaseConnection` may be waiting, while sessions have all there
/// are.
const PLAIN_SHARE: Duration = Duration::from_millis(50);

/// How long the last free connection is kept for requests that hold one, after one of them took a second.
const KEPT_FOR_SECONDS: Duration = Duration::from_secs(10);

/// How long a connect may be silent before it is given up, so that one that is lost is repeated within the default
/// time-out of those who wait; twice as long after each one, for servers that take long to log in.
const CONNECT: Duration = Duration::from_secs(4);

/// For how long it is remembered that a connect took long and came to a good end.
const SLOW_LOG_INS: Duration = Duration::from_secs(60);

/// How long nothing is fetched after a failure; at first, and at last.
const PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

pub(super) struct Ledger {
    state: Mutex<State>,
    /// How many connections may be out at the same time.
    limit: u32,
    room: Room,
}

#[derive(Default)]
struct State {
    waiters: VecDeque<Waiter>,
    /// Those that were found to have given up.
    discarded: Vec<Waiter>,
    /// About how many waiters in the queue have given up; swept when they are the majority.
    gone: usize,
    /// Names the next waiter.
    next: u64,
    /// Connections that sessions hold, or that were warm and go back to the driver's pool.
    out: u32,
    /// How many of them were warm.
    cooling: u32,
    /// Tasks that are in the driver's `acquire()`.
    acquiring: u32,
    /// How many of them take long: no waiter counts on these any more.
    slow: u32,
    /// How often a connect was given up since the last one that was quick.
    given_up: u32,
    /// When a connect that took long came to a good end.
    slow_log_in: Option<Instant>,
    pace: Pace,
    last_visit: Option<Instant>,
    /// Somebody took a connection that was just returned: until then there may be more who wait.
    plain_users_until: Option<Instant>,
    warm: IdleConnections,
    /// Until then requests that hold a connection may come for a second one.
    seconds_until: Option<Instant>,
    failures: Failures,
}

/// What became of the fetches since the last one that brought a connection.
#[derive(Default)]
struct Failures {
    /// Fetches that failed while others were under way: their waiters are not answered yet.
    unanswered: usize,
    paused_until: Option<Instant>,
    /// How long the last pause was.
    pause: Duration,
    /// One of the fetches counted as `acquiring` has failed and waits for the end of the pause.
    resting: bool,
}

/// What follows from a failed fetch.
pub(super) enum AfterFailure {
    /// A connection may still come: its fetch is over when this time has passed.
    Rest(Duration),
    /// Another one rests already.
    GoOn,
    /// No connection can come: so many waiters are to be told.
    Refuse(usize),
}

/// Where a released connection went.
#[allow(clippy::large_enum_variant, reason = "it is matched where it is made")]
pub(super) enum Placed {
    /// To somebody who waited.
    HandedOver,
    /// Nowhere yet: it is warm, and needs a keeper if there is none.
    Warm { unkept: bool },
    /// Back to the caller, for the driver's pool.
    Left(CheckedOut),
}

/// Access to the queue. Waiters that have given up are dropped when the lock is free again: with one goes what
/// would have been woken, which may be code of the user's.
struct Locked<'q> {
    // In this order: fields are dropped from first to last.
    state: MutexGuard<'q, State>,
    discarded: Vec<Waiter>,
}

impl Deref for Locked<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.state
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.discarded = std::mem::take(&mut self.state.discarded);
    }
}

struct Waiter {
    id: u64,
    sender: oneshot::Sender<Result<Lease, Error>>,
    runtime: Handle,
    /// The request that waits, if it is one that has a session already.
    request: Option<Arc<dyn Holder>>,
    /// The request holds a connection already.
    holds: bool,
}

impl Ledger {
    pub(super) fn new(limit: u32, room: Room) -> Self {
        Self {
            state: Mutex::default(),
            limit,
            room,
        }
    }

    fn lock(&self) -> Locked<'_> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        Locked {
            state,
            discarded: Vec::new(),
        }
    }

    pub(super) fn status(&self) -> Status {
        let state = self.lock();
        Status {
            max: self.limit,
            used: state.out - state.cooling,
            idle: state.warm.len() + state.cooling as usize,
            acquiring: state.acquiring,
            pending: state
                .waiters
                .iter()
                .filter(|waiter| waiter.is_live())
                .count(),
        }
    }

    /// Whether somebody waits although all connections are out.
    pub(super) fn is_exhausted(&self) -> bool {
        let state = self.lock();
        state.out >= self.limit && state.waiters.iter().any(Waiter::is_live)
    }

    /// Joins the queue and sends for a connection if the limit allows one more; `None` if too many
    /// wait already. A request that holds a connection goes before those that do not: behind them it would
    /// wait for newcomers that become the next holders.
    pub(super) fn join(
        &self,
        pool: &SessionPool,
        runtime: Handle,
        request: Option<Arc<dyn Holder>>,
        holds: bool,
    ) -> Option<oneshot::Receiver<Result<Lease, Error>>> {
        let (sender, receiver) = oneshot::channel();
        let mut state = self.lock();
        let free = self.limit.saturating_sub(state.out) as usize;
        // Others may wait for what a request holds: it is turned away only where nobody may wait at all.
        let is_full = if holds {
            self.room.certain == 0 && free == 0
        } else {
            state.is_full(&self.room, free)
        };
        if is_full {
            return None;
        }
        state.next += 1;
        let id = state.next;
        let waiter = Waiter {
            id,
            sender,
            runtime,
            request,
            holds,
        };
        if holds {
            let place = state
                .waiters
                .iter()
                .position(|waiter| !waiter.holds)
                .unwrap_or(state.waiters.len());
            state.waiters.insert(place, waiter);
        } else {
            state.waiters.push_back(waiter);
        }
        drop(state);
        if free > 0 {
            self.fill(pool);
        }
        Some(receiver)
    }

    /// A waiter has given up; its receiver is closed.
    pub(super) fn leave(&self) {
        let mut state = self.lock();
        state.gone += 1;
        if state.gone * 2 > state.waiters.len() {
            state.sweep();
        }
    }

    /// Sends for as many connections as there are waiters and the limit allows.
    pub(super) fn fill(&self, pool: &SessionPool) {
        while let Some(connection) = self.warm_for_a_waiter() {
            if let Some(connection) = self.hand_over(connection) {
                connection.put_back();
            }
        }
        while let Some((waiter, runtime)) = self.next_to_fetch_for() {
            let spawning = Arc::new(AtomicBool::new(true));
            // Made before the task, so that the count is right even if the task never runs.
            let ticket = FetchGuard::new(pool.clone(), waiter, spawning.clone());
            runtime.spawn(acquire::fetch(ticket, runtime.clone()));
            spawning.store(false, Ordering::Release);
        }
    }

    /// The first waiter that no fetch is under way for, if one more connection may be out.
    fn next_to_fetch_for(&self) -> Option<(u64, Handle)> {
        let mut state = self.lock();
        if state
            .failures
            .paused_until
            .is_some_and(|until| Instant::now() < until)
        {
            return None;
        }
        let counted_on = state.acquiring - state.slow;
        let waiter = state
            .waiters
            .iter()
            .filter(|waiter| waiter.is_live())
            .nth(counted_on as usize)?;
        if state.out + state.acquiring >= state.limit_for(waiter.holds, self.limit) {
            return None;
        }
        let found = (waiter.id, waiter.runtime.clone());
        state.acquiring += 1;
        Some(found)
    }

    /// Gives `connection` to the oldest live waiter, or back to the caller if nobody takes it.
    pub(super) fn hand_over(&self, mut connection: CheckedOut) -> Option<CheckedOut> {
        loop {
            let Some(waiter) = self.lock().next_turn(self.limit) else {
                return Some(connection);
            };
            connection = waiter.give(connection)?;
        }
    }

    /// Gives a released connection to the oldest live waiter, or keeps it warm for the next one;
    /// unless users of the driver's pool, `max` connections in all, have a turn.
    pub(super) fn place(&self, mut connection: CheckedOut, max: u32) -> Placed {
        loop {
            let mut state = self.lock();
            if state.is_plain_users_turn(max) {
                return Placed::Left(connection);
            }
            let Some(waiter) = state.next_turn(self.limit) else {
                if max < 2 {
                    return Placed::Left(connection);
                }
                state.out -= 1;
                return Placed::Warm {
                    unkept: state.warm.push(connection),
                };
            };
            drop(state);
            match waiter.give(connection) {
                Some(left) => connection = left,
                None => return Placed::HandedOver,
            }
        }
    }

    /// A fresh warm connection, unless somebody waits before or as many are out as may be.
    pub(super) fn pop_warm(&self) -> Option<CheckedOut> {
        let mut state = self.lock();
        if state.out >= state.limit_for(false, self.limit)
            || state.waiters.iter().any(Waiter::is_live)
        {
            return None;
        }
        let connection = state.warm.pop()?;
        state.out += 1;
        Some(connection)
    }

    fn warm_for_a_waiter(&self) -> Option<CheckedOut> {
        let mut state = self.lock();
        let holds = state.waiters.iter().find(|waiter| waiter.is_live())?.holds;
        if state.out >= state.limit_for(holds, self.limit) {
            return None;
        }
        let connection = state.warm.pop()?;
        state.out += 1;
        Some(connection)
    }

    /// Takes the connections that are warm no longer, and one more where the driver's pool of `max`
    /// has none left for others; and tells whether the keeper may go.
    pub(super) fn take_stale(&self, max: u32) -> (Vec<CheckedOut>, bool) {
        let mut state = self.lock();
        let taken = state.out + state.acquiring + state.warm.len() as u32;
        let stale = state.warm.take_stale(taken >= max);
        (state.cool(stale), state.warm.rest())
    }

    /// Takes all warm connections.
    pub(super) fn take_warm(&self) -> Vec<CheckedOut> {
        let mut state = self.lock();
        let connections = state.warm.take_all();
        state.cool(connections)
    }

    /// Takes all warm connections, because nobody looks after them any more.
    pub(super) fn abandon_warm(&self) -> Vec<CheckedOut> {
        let connections = self.take_warm();
        self.lock().warm.rest();
        connections
    }

    /// Notes whether a connection that was just returned to the driver's pool is idle there.
    pub(super) fn returned(&self, is_idle: bool) {
        let mut state = self.lock();
        if is_idle {
            state.plain_users_until = None;
        } else if state.acquiring == 0 {
            // Not a fetch of our own. Only for a while: what is taken while we fetch tells nothing.
            state.plain_users_until = Some(Instant::now() + PLAIN_SHARE);
        }
    }

    /// Tells the oldest live waiter why it gets no connection.
    pub(super) fn refuse(&self, error: Error) {
        let oldest = self.lock().oldest();
        if let Some(waiter) = oldest {
            let _ = waiter.sender.send(Err(error));
        }
    }

    /// A request that holds a connection wants another one: the last free one is kept for such requests.
    pub(super) fn expect_seconds(&self) {
        self.lock().seconds_until = Instant::now().checked_add(KEPT_FOR_SECONDS);
    }

    /// A fetch has failed. While connections are out or others are being fetched, those who wait go on
    /// waiting, and after a pause one more is fetched. `may_pass`: also while there are none.
    pub(super) fn fetch_failed(&self, may_pass: bool) -> AfterFailure {
        let mut state = self.lock();
        let under_way = state
            .acquiring
            .saturating_sub(1 + u32::from(state.failures.resting));
        let (out, failures) = (state.out, &mut state.failures);
        if out == 0 && under_way == 0 && !may_pass {
            failures.paused_until = None;
            return AfterFailure::Refuse(1 + std::mem::take(&mut failures.unanswered));
        }
        failures.unanswered += usize::from(out == 0);
        if std::mem::replace(&mut failures.resting, true) {
            // The one that rests ends the pause, which a refusal may have cut short.
            failures.paused_until = Instant::now().checked_add(failures.pause);
            return AfterFailure::GoOn;
        }
        failures.pause = (failures.pause * 2).clamp(PAUSE, LONGEST_PAUSE);
        failures.paused_until = Instant::now().checked_add(failures.pause);
        AfterFailure::Rest(failures.pause)
    }

    /// The pause after a failure is over.
    pub(super) fn rested(&self) {
        let failures = &mut self.lock().failures;
        (failures.resting, failures.paused_until) = (false, None);
    }

    /// Refuses everybody, and returns how many there were.
    pub(super) fn refuse_all(&self, kind: Kind) -> usize {
        let waiters = std::mem::take(&mut self.lock().waiters);
        waiters
            .into_iter()
            .filter(Waiter::is_live)
            .filter_map(|waiter| waiter.sender.send(Err(kind.into())).ok())
            .count()
    }

    /// Where every connection is held by a request that waits for another one, refuses the newest of
    /// them; `holders` are the requests of all who hold one. Tells whether that was so.
    pub(super) fn break_deadlock(&self, holders: &[Arc<dyn Holder>], kind: Kind) -> bool {
        let mut state = self.lock();
        let Some(newest) = state.newest_in_deadlock(holders, self.limit) else {
            return false;
        };
        let refused = state.waiters.remove(newest);
        drop(state);
        refused.is_some_and(|waiter| waiter.sender.send(Err(kind.into())).is_ok())
    }

    /// A fetch has brought a connection, which is out from now on.
    pub(super) fn fetched(&self, was_slow: bool) {
        let mut state = self.lock();
        state.acquiring -= 1;
        state.slow -= u32::from(was_slow);
        if was_slow {
            state.slow_log_in = Some(Instant::now());
        } else {
            state.given_up = 0;
        }
        state.out += 1;
        (state.failures.unanswered, state.failures.pause) = (0, Duration::ZERO);
    }

    /// A fetch has brought nothing.
    pub(super) fn fetched_nothing(&self, pool: &SessionPool, was_slow: bool) {
        let mut state = self.lock();
        state.acquiring -= 1;
        state.slow -= u32::from(was_slow);
        drop(state);
        self.fill(pool);
    }

    /// A fetch takes long. The network may have lost its connect, and where the server has no place left, sqlx
    /// tries to connect until its own time-out: those who wait get another fetch.
    pub(super) fn fetch_is_slow(&self, pool: &SessionPool) {
        self.lock().slow += 1;
        self.fill(pool);
    }

    /// How long a fetch that takes long may go on.
    pub(super) fn patience(&self) -> Duration {
        CONNECT.saturating_mul(2_u32.saturating_pow(self.lock().given_up))
    }

    /// A fetch took longer than `patience`. Of several that began with the same, one counts.
    pub(super) fn gave_up(&self, patience: Duration) {
        if patience == self.patience() {
            let mut state = self.lock();
            state.given_up = state.given_up.saturating_add(1);
        }
    }

    /// Whether connects take long, and come to a good end.
    pub(super) fn logs_in_slowly(&self) -> bool {
        self.lock()
            .slow_log_in
            .is_some_and(|at| at.elapsed() < SLOW_LOG_INS)
    }

    /// The runtime of the waiter `id` took no task to fetch in, because it is shutting down: its waiter can
    /// get nothing.
    pub(super) fn never_fetched(&self, id: u64) {
        let mut state = self.lock();
        state.acquiring -= 1;
        let position = state.waiters.iter().position(|waiter| waiter.id == id);
        let waiter = position.and_then(|position| state.waiters.remove(position));
        drop(state);
        // Wakes it, which must not happen under the lock.
        drop(waiter);
    }

    /// A connection is no longer out.
    pub(super) fn freed(&self, pool: &SessionPool) {
        self.lock().out -= 1;
        self.fill(pool);
    }

    /// A connection that was warm has gone.
    pub(super) fn cooled(&self, pool: &SessionPool) {
        let mut state = self.lock();
        state.cooling -= 1;
        state.out -= 1;
        drop(state);
        self.fill(pool);
    }

    /// A connection that was warm stays out.
    pub(super) fn not_cooled(&self) {
        self.lock().cooling -= 1;
    }
}

impl State {
    /// Counts connections that were warm until now.
    fn cool(&mut self, mut connections: Vec<CheckedOut>) -> Vec<CheckedOut> {
        let count = connections.len() as u32;
        self.out += count;
        self.cooling += count;
        connections.iter_mut().for_each(CheckedOut::cool);
        connections
    }

    /// Whether nobody is let in but the `free` for whom there is a connection.
    fn is_full(&mut self, room: &Room, free: usize) -> bool {
        let certain = room.certain.saturating_add(free);
        let is_near = self.waiters.len() <= certain.saturating_mul(2);
        if self.gone > 0 && self.waiters.len() >= certain && is_near {
            // Exact where it can matter: those that have given up do not count.
            self.sweep();
        }
        let waiting = self.waiters.len().saturating_sub(self.gone);
        waiting >= certain && waiting >= self.pace.within(room.patience).saturating_add(free)
    }

    fn sweep(&mut self) {
        for _ in 0..self.waiters.len() {
            let Some(waiter) = self.waiters.pop_front() else {
                break;
            };
            if waiter.is_live() {
                self.waiters.push_back(waiter);
            } else {
                self.discarded.push(waiter);
            }
        }
        self.gone = 0;
    }

    /// How many may be out when one more goes to a waiter.
    fn limit_for(&self, holds: bool, limit: u32) -> u32 {
        let is_kept = || {
            self.seconds_until
                .is_some_and(|until| Instant::now() < until)
        };
        if !holds && limit > 1 && is_kept() {
            limit - 1
        } else {
            limit
        }
    }

    /// The waiter that gets a connection, which counts as out.
    fn next_turn(&mut self, limit: u32) -> Option<Waiter> {
        let holds = self.waiters.iter().find(|waiter| waiter.is_live())?.holds;
        if self.out > self.limit_for(holds, limit) {
            return None;
        }
        let waiter = self.oldest()?;
        self.pace.turn();
        Some(waiter)
    }

    fn oldest(&mut self) -> Option<Waiter> {
        while let Some(waiter) = self.waiters.pop_front() {
            if waiter.is_live() {
                return Some(waiter);
            }
            self.discarded.push(waiter);
            self.gone = self.gone.saturating_sub(1);
        }
        None
    }

    /// The newest waiter of a deadlock, if there is one.
    fn newest_in_deadlock(&self, holders: &[Arc<dyn Holder>], limit: u32) -> Option<usize> {
        let can_serve = self.acquiring > 0 || self.out < limit;
        // Fewer are known where one is on its way.
        if can_serve || holders.len() != self.out as usize {
            return None;
        }
        let all_wait = holders
            .iter()
            .all(|holder| self.waiters.iter().any(|waiter| waiter.is_of(holder)));
        let newest = || {
            self.waiters
                .iter()
                .rposition(|waiter| holders.iter().any(|holder| waiter.is_of(holder)))
        };
        if all_wait { newest() } else { None }
    }

    /// Whether the next released connection is for the users of the driver's pool.
    fn is_plain_users_turn(&mut self, max: u32) -> bool {
        if self
            .plain_users_until
            .is_some_and(|until| Instant::now() < until)
        {
            return true;
        }
        let nothing_left = self.out + self.acquiring + self.warm.len() as u32 >= max;
        let due = nothing_left
            && self
                .last_visit
                .is_none_or(|last| last.elapsed() >= PLAIN_SHARE);
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

    /// Whether it is a live one of this request.
    fn is_of(&self, request: &Arc<dyn Holder>) -> bool {
        self.is_live()
            && self
                .request
                .as_ref()
                .is_some_and(|own| is_same(own, request))
    }

    /// Gives it a connection, or that back if the waiter has gone.
    fn give(self, connection: CheckedOut) -> Option<CheckedOut> {
        match self.sender.send(Ok(Lease::new(connection))) {
            Err(Ok(lease)) => lease.into_connection(),
            _ => None,
        }
    }
}
