//! [`Core`]: what a session's handles, its guard and its running call share.
//!
//! The connection is in one place at a time, and the [`Slot`] says where. A call owns it while it
//! runs; whoever ends the call early moves it, connection included, to a task that runs it to its
//! end. The lock is never held across an await.

use std::{
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use futures_util::future::{Either, select};
use sea_orm::DbErr;
use tokio::sync::{Notify, Semaphore, TryAcquireError};

use super::{
    call::Call,
    cut::Origin,
    plan::Plan,
    running::{Manner, Purpose, Running},
    slot::{Level, OpenLevel, Phase, Slot, State, Who},
    turn::Turn,
};
use crate::{
    connection::{Effect, Operation, Output, Task, effect, needs_transaction},
    error::{Error, Kind},
    pool::{self, Finished, Lease, SessionPool, Text},
    telemetry,
};

pub(crate) struct Core {
    pool: SessionPool,
    /// One permit: whose turn it is to use the connection.
    turn: Semaphore,
    /// Tells those who queue that a stream has begun, which they must not wait for.
    stream_opened: Notify,
    pub(super) origin: Origin,
    state: Mutex<State>,
}

impl Core {
    pub(crate) fn new(pool: SessionPool, plan: Plan) -> Arc<Self> {
        let Plan { rules, label, is_loose } = plan;
        let origin = Origin { outer: pool::current(), label, is_loose, ..Origin::default() };
        Arc::new(Self {
            pool,
            turn: Semaphore::new(1),
            stream_opened: Notify::new(),
            origin,
            state: Mutex::new(State::new(rules)),
        })
    }

    /// A session that has its connection, after having waited for it.
    pub(crate) fn with_connection(pool: SessionPool, plan: Plan, lease: Lease, waited: Duration) -> Arc<Self> {
        let core = Self::new(pool, plan);
        core.install(lease, waited);
        core
    }

    pub(crate) fn pool(&self) -> &SessionPool {
        &self.pool
    }

    /// Whose turn it is to use the connection.
    pub(super) fn turn(&self) -> &Semaphore {
        &self.turn
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_over(&self) -> bool {
        self.lock().is_over()
    }

    /// For pass-through sessions: an error when the request has ended.
    pub(crate) fn check_open(&self) -> Result<(), DbErr> {
        if self.is_over() {
            Err(self.closed())
        } else if self.pool.is_shut() {
            Err(Kind::Closing.into_db_err())
        } else {
            Ok(())
        }
    }

    pub(super) fn new_level(&self) -> Level {
        let mut state = self.lock();
        state.next += 1;
        state.next
    }

    /// Runs `operation` for `who` to its end.
    pub(super) async fn run(self: &Arc<Self>, who: Who, operation: Operation) -> Result<Output, DbErr> {
        self.start(who, None, operation).await?.await
    }

    /// Waits for the turn and a connection, then starts `operation`, which may open the level `opens`.
    pub(super) async fn start(
        self: &Arc<Self>,
        who: Who,
        opens: Option<Level>,
        operation: Operation,
    ) -> Result<Call, DbErr> {
        let doubtful = match operation.text() {
            Some(sql) => self.vet(who, sql)?,
            None => matches!(operation, Operation::Raw(_)),
        };
        let turn = self.take_turn().await?;
        self.check_out(who).await?;
        self.launch(turn, who, opens, operation, doubtful)
    }

    /// Refuses SQL that would control transactions behind the session's back; tells whether it might.
    pub(super) fn vet(&self, who: Who, sql: &str) -> Result<bool, DbErr> {
        let backend = self.pool.backend();
        if who == Who::Session && needs_transaction(backend, sql) && self.lock().surrounding() == 0 {
            telemetry::needs_transaction(&Text::new(sql).without_values(backend));
        }
        match effect(self.pool.backend(), sql) {
            Effect::None => Ok(false),
            Effect::Unknown => Ok(true),
            Effect::Control(control) => Err(Kind::Control(control).into_db_err()),
            Effect::CommitsImplicitly => {
                let inside = self.pool.is_test() || matches!(who, Who::Level(_)) || self.lock().surrounding() > 0;
                if inside { Err(Kind::CommitsImplicitly.into_db_err()) } else { Ok(false) }
            }
        }
    }

    pub(super) async fn take_turn(self: &Arc<Self>) -> Result<Turn, DbErr> {
        match self.try_turn() {
            Ok(turn) => return Ok(turn),
            Err(TryAcquireError::Closed) => return Err(self.closed()),
            Err(TryAcquireError::NoPermits) => {}
        }
        let mut opened = pin!(self.stream_opened.notified());
        opened.as_mut().enable();
        if self.lock().streaming {
            return Err(Kind::StreamOpen.into_db_err());
        }
        match select(pin!(self.next_turn()), opened).await {
            Either::Left((turn, _)) => turn.map_err(|_| self.closed()),
            Either::Right(((), _)) => Err(Kind::StreamOpen.into_db_err()),
        }
    }

    /// Acquires a connection if the session has none yet.
    async fn check_out(self: &Arc<Self>, who: Who) -> Result<(), DbErr> {
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
                let mut state = self.lock();
                state.span.waited(started.elapsed());
                state.failure.get_or_insert(error);
                Err(answer)
            }
        }
    }

    /// Puts a connection into the slot; into a session that has ended meanwhile, none goes.
    fn install(self: &Arc<Self>, lease: Lease, waited: Duration) {
        let Some(mut connection) = lease.into_connection() else { return };
        let this: Weak<Self> = Arc::downgrade(self);
        connection.hold(&self.pool, this, self.whose_weak());
        let mut state = self.lock();
        state.span.waited(waited);
        if state.phase != Phase::Open {
            drop(state);
            connection.give_back(|| ());
            return;
        }
        state.span.checked_out();
        state.fresh = true;
        state.slot = Slot::Idle(connection);
        drop(state);
        if self.is_awaited() {
            self.pool.look_again();
        }
    }

    pub(super) fn launch(
        self: &Arc<Self>,
        turn: Turn,
        who: Who,
        opens: Option<Level>,
        operation: Operation,
        doubtful: bool,
    ) -> Result<Call, DbErr> {
        let manner = Manner::of(&operation);
        let reader = operation.reader();
        let mut state = self.lock();
        state.admit(who).map_err(Kind::into_db_err)?;
        let mut connection = match std::mem::replace(&mut state.slot, Slot::Broken) {
            Slot::Idle(connection) => connection,
            other => {
                state.slot = other;
                return Err(Kind::ConnectionLost.into_db_err());
            }
        };
        let depth = state.levels.len();
        let begin = state.begin_for(&operation);
        let purpose = Purpose::of(&operation, begin.is_some());
        let mut text = std::mem::take(connection.text());
        if let Some(sql) = operation.text() {
            text.keep(sql);
        }
        let first = std::mem::take(&mut state.fresh);
        let on_acquire = state.rules.on_acquire.clone().filter(|_| first);
        let reset = self.pool.settings().reset;
        let in_transaction = depth > 0 || begin.is_some();
        let (stop, identify) = self.stop_for(&operation, in_transaction, &mut connection);
        let stoppable = stop.is_some();
        let task =
            Task { first, depth, on_acquire, begin, operation: Some(operation), doubtful, reset, identify, stoppable };
        if purpose == Purpose::Commit {
            state.hooks.seal_if_outermost(depth.saturating_sub(1));
        }
        state.runtime.get_or_insert_with(|| connection.runtime().clone());
        state.next += 1;
        let call = state.next;
        state.levels.extend(opens.map(|id| OpenLevel { id, abandoned: false }));
        state.span.count();
        state.streaming = manner == Manner::Stream;
        state.slot = Slot::Running(Running {
            call,
            manner,
            purpose,
            runtime: connection.runtime().clone(),
            patience: connection.patience(),
            future: Some(Box::pin(connection.call(task))),
            waker: None,
            stop,
            reader,
            text,
            _turn: turn,
        });
        drop(state);
        if manner == Manner::Stream {
            self.stream_opened.notify_waiters();
        }
        Ok(Call::new(self.clone(), call))
    }

    /// Takes the connection back from a call that has ended.
    pub(super) fn finish(self: &Arc<Self>, finished: Finished) -> Result<Output, DbErr> {
        let Finished { mut connection, output } = finished;
        let mut state = self.lock();
        let next = if connection.is_broken() { Slot::Broken } else { Slot::Empty };
        let mut ended = std::mem::replace(&mut state.slot, next);
        let mut elsewhere = None;
        if let Slot::Running(running) = &mut ended {
            std::mem::swap(connection.text(), &mut running.text);
            let result = output.as_ref().map(drop);
            state.account(running.purpose, connection.depth(), connection.is_broken(), result);
            if connection.is_demoted()
                && let Some(known) = result.err().and_then(Error::of)
                && known.is_read_only()
            {
                state.failure.get_or_insert(known);
            }
            let (ended, failed) = (connection.take_ended_elsewhere(), connection.has_failed());
            if ended || failed || state.cause.is_some() {
                let backend = self.pool.backend();
                let error = result.err().filter(|_| running.purpose.is_work());
                state.note_cause(failed, error, || connection.text().without_values(backend));
                if ended {
                    let statement = connection.text().without_values(backend);
                    state.ended_elsewhere(statement.clone());
                    elsewhere = Some(statement);
                }
            }
        }
        if state.is_over() {
            state.roll_back_all();
        }
        if connection.is_broken() || state.is_over() {
            let released = state.released.take();
            drop(state);
            let core = self.clone();
            connection.give_back(move || {
                drop(released);
                core.run_hooks();
            });
        } else {
            state.slot = Slot::Idle(connection);
            // At the end of the request they wait for the connection's return.
            let at_once = state.phase == Phase::Open;
            drop(state);
            if at_once {
                self.run_hooks();
            }
        }
        // The turn passes on here, when the connection is in its place.
        drop(ended);
        if let Some(statement) = elsewhere {
            telemetry::ended_elsewhere(&statement);
        }
        if self.is_awaited() {
            self.pool.look_again();
        }
        output
    }
}
