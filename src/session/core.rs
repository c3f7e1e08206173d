//! [`Core`]: what a session's handles, its guard and its running call share.
//!
//! The connection is in one place at a time, and the [`Slot`] says where. A call owns it while it
//! runs; whoever ends the call early moves it, connection included, to a task that runs it to its
//! end. The lock is never held across an await.

use std::{
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};

use sea_orm::{DbBackend, DbErr};

use super::{
    call::Call,
    cut::Origin,
    locked::Locked,
    plan::Plan,
    running::{Manner, Running},
    slot::{Found, Slot},
    stack::{Level, Purpose, Who},
    state::State,
    turn::{Line, Turn},
};
use crate::{
    connection::{Operation, Output, Task},
    error::{Error, Kind},
    pool::{self, CheckedOut, Finished, Lease, SessionPool},
    sql::{Classified, Effect, Redacted, classify},
    telemetry,
};

pub(crate) struct Core {
    pool: SessionPool,
    /// Whose turn it is to use the connection, and who waits for it.
    line: Line,
    pub(super) origin: Origin,
    state: Mutex<State>,
}

impl Core {
    pub(crate) fn new(pool: SessionPool, plan: Plan) -> Arc<Self> {
        let Plan {
            rules,
            label,
            is_job,
            is_loose,
            is_plain,
        } = plan;
        let origin = Origin {
            outer: pool::current(),
            label,
            is_job,
            is_loose,
            is_plain,
            ..Origin::default()
        };
        let fresh = pool.is_direct();
        Arc::new(Self {
            pool,
            line: Line::default(),
            origin,
            state: Mutex::new(State::new(rules, fresh)),
        })
    }

    /// A session that has its connection, after having waited for it.
    pub(crate) fn with_connection(
        pool: SessionPool,
        plan: Plan,
        lease: Lease,
        waited: Duration,
    ) -> Arc<Self> {
        let core = Self::new(pool, plan);
        core.install(lease, waited);
        core
    }

    pub(crate) fn pool(&self) -> &SessionPool {
        &self.pool
    }

    /// Whose turn it is to use the connection, and who waits for it.
    pub(super) fn line(&self) -> &Line {
        &self.line
    }

    pub(super) fn lock(&self) -> Locked<'_> {
        Locked::new(self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn is_over(&self) -> bool {
        self.lock().phase.is_over()
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
        self.lock().new_id()
    }

    /// Runs `operation` for `who` to its end.
    pub(super) async fn run(
        self: &Arc<Self>,
        who: Who,
        operation: Operation,
    ) -> Result<Output, DbErr> {
        self.start(who, None, operation).await?.await
    }

    /// Waits for the turn and a connection, then starts `operation`, which may open the level `opens`.
    pub(super) async fn start(
        self: &Arc<Self>,
        who: Who,
        opens: Option<Level>,
        operation: Operation,
    ) -> Result<Call, DbErr> {
        let text = match operation.text() {
            Some(sql) => self.vet(who, sql)?,
            None if matches!(operation, Operation::Raw(_)) => Classified::OPAQUE,
            None => Classified::OWN,
        };
        if let Some(turn) = self.try_turn()
            && self.try_check_out(who)?
        {
            return self.launch(turn, who, opens, operation, text);
        }
        let core = self.clone();
        self.enqueue(async move {
            let turn = core.turn(who).await?;
            core.check_out(who, opens.is_some()).await?;
            core.launch(turn, who, opens, operation, text)
        })
        .await
    }

    /// Reads `sql`, and refuses it if it would control transactions behind the session's back.
    pub(super) fn vet(&self, who: Who, sql: &str) -> Result<Classified, DbErr> {
        let backend = self.pool.backend();
        let text = classify(backend, sql);
        if who == Who::Session && text.needs_transaction && self.lock().surrounding() == 0 {
            telemetry::needs_transaction(&Redacted::new(sql).without_values(backend));
        }
        match text.effect {
            Effect::Control(control) => Err(Kind::Control(control).into_db_err()),
            Effect::CommitsImplicitly if self.pool.is_test() || self.lock().is_inside(who) => {
                Err(Kind::CommitsImplicitly.into_db_err())
            }
            Effect::None | Effect::Unknown | Effect::CommitsImplicitly => Ok(text),
        }
    }

    /// Acquires a connection before the first statement.
    pub(super) async fn check_out_early(self: &Arc<Self>) -> Result<(), DbErr> {
        let core = self.clone();
        self.enqueue(async move {
            let _turn = core.turn(Who::Session).await?;
            core.check_out(Who::Session, false).await
        })
        .await
    }

    /// Acquires a connection if the session has none yet.
    async fn check_out(self: &Arc<Self>, who: Who, begins: bool) -> Result<(), DbErr> {
        if self.is_checked_out(who)? {
            return Ok(());
        }
        let started = Instant::now();
        let hopeless = self.pool.refuse_hopeless(|| self.origin.is_of_request());
        let acquired = match hopeless {
            Ok(()) => self.pool.acquire().await,
            Err(error) => Err(error),
        };
        match acquired {
            Ok(lease) => {
                self.install(lease, started.elapsed());
                Ok(())
            }
            Err(error) => {
                let answer = error.to_db_err();
                let mut state = self.lock();
                state.span.waited(started.elapsed());
                let for_transaction = begins || state.is_transactional();
                state.stack.failures.not_acquired(error, for_transaction);
                Err(answer)
            }
        }
    }

    /// Whether the session has its connection; an error if `who` must not use it.
    fn is_checked_out(&self, who: Who) -> Result<bool, DbErr> {
        let mut state = self.lock();
        state.admit(who).map_err(Kind::into_db_err)?;
        Ok(!matches!(state.slot, Slot::Empty))
    }

    /// Checks a connection out if that takes no wait.
    fn try_check_out(self: &Arc<Self>, who: Who) -> Result<bool, DbErr> {
        if self.is_checked_out(who)? {
            return Ok(true);
        }
        let lease = self.pool.try_acquire();
        Ok(lease
            .map(|lease| self.install(lease, Duration::ZERO))
            .is_some())
    }

    /// Puts a connection into the slot; into a session that has ended meanwhile, none goes.
    fn install(self: &Arc<Self>, lease: Lease, waited: Duration) {
        let Some(mut connection) = lease.into_connection() else {
            return;
        };
        let this: Weak<Self> = Arc::downgrade(self);
        connection.hold(&self.pool, this, self.whose_weak());
        let mut state = self.lock();
        state.span.waited(waited);
        if !state.phase.is_open() {
            drop(state);
            connection.give_back(|| ());
            return;
        }
        state.span.checked_out();
        state.fresh = true;
        state.stack.failures.acquired();
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
        text: Classified,
    ) -> Result<Call, DbErr> {
        let manner = Manner::of(&operation);
        let reader = operation.reader();
        let mut state = self.lock();
        let open = state.admit(who).map_err(Kind::into_db_err)?;
        // The statement may have waited for its turn while a transaction was begun.
        if text.effect == Effect::CommitsImplicitly && (open > 0 || state.is_inside(who)) {
            return Err(Kind::CommitsImplicitly.into_db_err());
        }
        let mut connection = match std::mem::replace(&mut state.slot, Slot::Broken) {
            Slot::Idle(connection) => connection,
            other => {
                state.slot = other;
                return Err(state.no_connection_for(&operation).into_db_err());
            }
        };
        let depth = state.stack.depth();
        let begin = state.begin_for(&operation);
        let purpose = Purpose::of(&operation, begin.is_some());
        let mut last_text = std::mem::take(connection.text());
        match operation.text() {
            Some(sql) => last_text.keep(sql),
            None if matches!(operation, Operation::Raw(_)) => last_text.keep("raw code"),
            None => {}
        }
        let first = std::mem::take(&mut state.fresh);
        let rested = first && self.pool.backend() != DbBackend::Sqlite && state.span.has_rested();
        let on_acquire = state.rules.on_acquire.clone().filter(|_| first);
        let reset = self.pool.settings().reset;
        let in_transaction = depth > 0 || begin.is_some();
        let (stop, identify) = self.stop_for(&operation, text, in_transaction, &mut connection);
        let (stoppable, doubtful) = (stop.is_some(), text.is_doubtful());
        let task = Task {
            first,
            rested,
            depth,
            on_acquire,
            begin,
            operation: Some(operation),
            text,
            doubtful,
            reset,
            identify,
            stoppable,
        };
        if purpose == Purpose::Commit {
            state.stack.hooks.seal_if_outermost(depth.saturating_sub(1));
        }
        let has_victim = self.pool.has_server();
        let victim = if has_victim {
            connection.cancel_handle()
        } else {
            None
        };
        state
            .runtime
            .get_or_insert_with(|| connection.runtime().clone());
        let call = state.new_id();
        if let Some(id) = opens {
            state.stack.open(id);
        }
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
            is_driven: false,
            is_wanted: false,
            is_left: false,
            stop,
            victim,
            reader,
            text: last_text,
            is_doubtful: doubtful && in_transaction,
            _turn: turn,
        });
        drop(state);
        if manner == Manner::Stream {
            self.line.look_again();
        }
        Ok(Call::new(self.clone(), call, manner == Manner::Stream))
    }

    /// Takes the connection back from a call that has ended, and returns its output, unless that is kept for a
    /// future that is not polled at this moment.
    pub(super) fn finish(self: &Arc<Self>, finished: Finished) -> Option<Result<Output, DbErr>> {
        let Finished {
            mut connection,
            output,
        } = finished;
        let mut output = Some(output);
        let mut state = self.lock();
        let next = if connection.is_broken() {
            Slot::Broken
        } else {
            Slot::Empty
        };
        let mut ended = std::mem::replace(&mut state.slot, next);
        let (mut owner, mut is_wanted, mut ended_elsewhere, mut unheard) =
            (None, false, None, None);
        if let Slot::Running(running) = &mut ended {
            std::mem::swap(connection.text(), &mut running.text);
            let result = output
                .as_ref()
                .map_or(Ok(()), |output| output.as_ref().map(drop));
            ended_elsewhere =
                self.account_for(&mut state, running.purpose, &mut connection, result);
            unheard = running.unheard(result);
            is_wanted = running.is_wanted;
            if running.is_driven {
                owner = running.waker.take();
                let kept = output.take().filter(|_| !running.is_left);
                state
                    .outputs
                    .extend(kept.map(|output| (running.call, output)));
            }
        }
        let stray_ended = state.phase.take_stray_ended();
        self.put_in_place(state, connection);
        drop(stray_ended);
        // The turn passes on here, when the connection is in its place.
        drop(ended);
        if is_wanted {
            self.line.wake_worker();
        }
        if let Some(owner) = owner {
            owner.wake();
        }
        if let Some(statement) = ended_elsewhere {
            telemetry::ended_elsewhere(&statement);
        }
        unheard.iter().for_each(telemetry::stream_failed_unheard);
        if self.is_awaited() {
            self.pool.look_again();
        }
        output
    }

    /// Draws the conclusions from a call, and returns the statement by which a transaction was ended behind the
    /// session's back.
    fn account_for(
        &self,
        state: &mut Locked<'_>,
        purpose: Purpose,
        connection: &mut CheckedOut,
        result: Result<(), &DbErr>,
    ) -> Option<String> {
        state.account(purpose, Found::of(connection), result);
        self.tell_request(state);
        if connection.may_be_demoted()
            && let Some(known) = result.err().and_then(Error::of)
            && known.is_read_only()
        {
            state.stack.failures.may_pass(known, 0, false);
        }
        let (ended, failed) = (
            connection.take_ended_elsewhere(),
            connection.has_failed() || connection.is_broken(),
        );
        if !ended && !failed && state.stack.standing.cause().is_none() {
            return None;
        }
        let backend = self.pool.backend();
        let error = result.err().filter(|_| purpose.is_work());
        let standing = &mut state.stack.standing;
        standing.note_cause(failed, error, || connection.text().without_values(backend));
        let statement = ended.then(|| connection.text().without_values(backend))?;
        standing.ended_elsewhere(statement.clone());
        Some(statement)
    }

    /// Keeps a connection for the session's next statement, or gives it back.
    fn put_in_place(self: &Arc<Self>, mut state: Locked<'_>, connection: CheckedOut) {
        if state.phase.is_over() {
            state.stack.roll_back_all();
        }
        if connection.is_broken() || state.phase.is_over() {
            let released = state.phase.take_released();
            drop(state);
            let core = self.clone();
            connection.give_back(move || {
                drop(released);
                core.run_hooks();
            });
        } else {
            state.slot = Slot::Idle(connection);
            // At the end of the request they wait for the connection's return.
            let is_any_due = state.phase.is_open() && state.stack.hooks.is_any_due();
            drop(state);
            if is_any_due {
                self.run_hooks();
            }
        }
    }
}
