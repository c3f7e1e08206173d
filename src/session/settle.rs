//! The end of a session's transaction: early, by the handler, or with the response.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use sea_orm::{DatabaseTransaction, DbErr};
use tokio::time::timeout;

use super::{
    call::Call,
    core::{Core, Text},
    phase::Phase,
    running::Manner,
    slot::Slot,
    stack::{Purpose, Who},
    state::State,
    turn::Turn,
};
use crate::{
    connection::{Operation, Output},
    error::{Error, Kind},
    sql::Classified,
};

/// How long the end of a request waits for a statement that is still running.
const STRAY_WAIT: Duration = Duration::from_secs(1);

/// What shall become of a session's transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    Commit,
    RollBack,
}

/// What became of it.
#[derive(Debug, Clone)]
pub(crate) enum Ended {
    /// There was none: each statement committed by itself.
    Autocommit,
    /// There was nothing to commit or roll back.
    Untouched,
    Committed,
    RolledBack,
    /// The end of the response's body decides.
    Pending,
    /// It should have been committed; it is rolled back, or nobody knows.
    Failed(Error),
}

/// The end of a session: there already, or to be waited for.
pub(crate) enum Settlement {
    Now(Ended),
    Later(BoxFuture<'static, Ended>),
}

impl Settlement {
    pub(crate) async fn resolve(self) -> Ended {
        match self {
            Self::Now(ended) => ended,
            Self::Later(settlement) => settlement.await,
        }
    }
}

impl Core {
    /// Ends the session: commits its transaction if `decision` says so, rolls back what is open.
    pub(super) fn settle(self: &Arc<Self>, decision: Decision) -> Settlement {
        let mut state = self.lock();
        let is_cut = state.phase.cut_off().is_some();
        if state.phase.is_over() && !is_cut {
            return Settlement::Now(Ended::RolledBack);
        }
        let lost = state.lost().filter(|_| decision == Decision::Commit);
        let decision = if state.rollback_only {
            Decision::RollBack
        } else {
            decision
        };
        let left_open = !is_cut && state.stack.has_left_open();
        let at_work = !is_cut
            && state.is_transactional()
            && (state.stack.depth() > 0
                || state.through.has_own()
                || state.slot.purpose().is_some());
        if decision == Decision::Commit && (at_work || left_open) {
            state.phase = Phase::Settling;
            drop(state);
            return Settlement::Later(Box::pin(self.clone().commit_at_end()));
        }
        let ended = match (decision, lost.or_else(|| state.not_committed())) {
            (_, Some(error)) if error.is_cut_off() => Ended::Failed(error),
            // Something of it may stand, whatever the handler answers.
            (_, Some(error)) if error.may_stand() && state.is_transactional() => {
                Ended::Failed(error)
            }
            (Decision::Commit, Some(error)) if error.is_acquire() => Ended::Failed(error),
            _ if !state.is_transactional() => Ended::Autocommit,
            (Decision::Commit, Some(error)) => Ended::Failed(error),
            (Decision::Commit, None) => {
                state.stack.nothing_to_commit();
                if state.stack.standing.may_stand() {
                    Ended::Committed
                } else {
                    Ended::Untouched
                }
            }
            (Decision::RollBack, _) if state.is_untouched() => Ended::Untouched,
            (Decision::RollBack, _) => Ended::RolledBack,
        };
        let direct = state.take_own();
        drop(state);
        match (self.end(), direct) {
            (None, None) => Settlement::Now(ended),
            (rollback, direct) => {
                let bound = self.pool().settings().release_timeout;
                let core = self.clone();
                Settlement::Later(Box::pin(async move {
                    if let Some(rollback) = rollback {
                        rollback.wait(bound).await;
                    }
                    if let Some(transaction) = direct.and_then(Arc::into_inner) {
                        let _ = timeout(bound, transaction.rollback()).await;
                    }
                    let may_stand = core.lock().may_stand();
                    match (ended, may_stand) {
                        (Ended::RolledBack, Some(error)) => Ended::Failed(error),
                        (ended, _) => ended,
                    }
                }))
            }
        }
    }

    /// Commits at the end of the request, or rolls back and says why.
    async fn commit_at_end(self: Arc<Self>) -> Ended {
        let result = self.last_commit().await;
        let rollback = self.end();
        match result {
            Ok(()) => Ended::Committed,
            Err(error) => {
                if let Some(rollback) = rollback.filter(|_| !error.is_outcome_unknown()) {
                    rollback.wait(self.pool().settings().release_timeout).await;
                }
                let state = self.lock();
                let error = state
                    .may_stand()
                    .filter(|_| !error.is_outcome_unknown())
                    .unwrap_or(error);
                let conflict = state.stack.failures.current().cloned();
                let conflict =
                    conflict.filter(|_| error.is_aborted() && !error.is_ended_elsewhere());
                let error = error.because(state.stack.standing.cause());
                Ended::Failed(conflict.unwrap_or(error))
            }
        }
    }

    async fn last_commit(self: &Arc<Self>) -> Result<(), Error> {
        self.end_stream();
        let bound = self.pool().settings().commit_timeout;
        let (running, left_open) = {
            let state = self.lock();
            (state.slot.purpose(), state.stack.has_left_open())
        };
        let (patience, otherwise) = match running {
            // Whoever runs it: only its end tells whether the answer is true.
            Some(Purpose::Commit) => (bound, Kind::OutcomeUnknown),
            _ if left_open => return Err(Kind::LeftOpen.into()),
            _ => (STRAY_WAIT, Kind::StillRunning),
        };
        if running.is_some() {
            self.drive();
        }
        let turn = timeout(patience, self.turn(Who::Settlement))
            .await
            .map_err(|_| otherwise)?;
        let turn = turn.map_err(|_| Kind::SessionClosed)?;
        let direct = {
            let mut state = self.lock();
            if state.stack.has_left_open() {
                return Err(Kind::LeftOpen.into());
            }
            state.stack.drop_abandoned();
            if let Some(error) = state.stack.standing.unheard_failure() {
                return Err(error);
            }
            if state.stack.depth() == 0 && !state.through.has_own() {
                if let Some(error) = state.not_committed() {
                    return Err(error);
                }
                state.stack.nothing_to_commit();
                return Ok(());
            }
            state.take_own()
        };
        if let Some(transaction) = direct {
            let transaction = Arc::into_inner(transaction).ok_or(Kind::StillRunning)?;
            let committed = timeout(bound, self.end_through(transaction, true, 1)).await;
            let committed = committed.map_or_else(
                |_| Err(Kind::OutcomeUnknown.into()),
                |ended| ended.map_err(Error::of_commit),
            );
            self.lock().stack.own_committed(committed.clone());
            return committed;
        }
        let call = self
            .launch(
                turn,
                Who::Settlement,
                None,
                Operation::Commit,
                Classified::OWN,
            )
            .map_err(Error::of_commit)?;
        match timeout(bound, call).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(Error::of_commit(error)),
            Err(_) => Err(Kind::OutcomeUnknown.into()),
        }
    }

    /// A stream that is held but not read would never end: what is left of it is read in a task.
    fn end_stream(self: &Arc<Self>) {
        let mut state = self.lock();
        let Slot::Running(running) = &mut state.slot else {
            return;
        };
        if running.manner != Manner::Stream {
            return;
        }
        running.stop_stream();
        let Some(future) = running.future.take() else {
            return;
        };
        let (leave, waker) = (running.leave(), running.waker.take());
        drop(state);
        self.drain(future, leave);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Commits what the session did so far; its next statement begins another transaction.
    pub(super) async fn commit(self: &Arc<Self>) -> Result<(), DbErr> {
        self.end_early(Operation::Commit).await
    }

    /// Rolls back what the session did so far; its next statement begins another transaction.
    pub(super) async fn roll_back(self: &Arc<Self>) -> Result<(), DbErr> {
        self.end_early(Operation::Rollback).await
    }

    async fn end_early(self: &Arc<Self>, operation: Operation) -> Result<(), DbErr> {
        let commits = matches!(operation, Operation::Commit);
        let end = match self
            .in_turn(move |core, turn| core.begin_to_end(turn, operation))
            .await?
        {
            EarlyEnd::Done => return Ok(()),
            EarlyEnd::Direct(turn, transaction) => {
                return self.end_direct(turn, transaction, commits).await;
            }
            EarlyEnd::Sent(call) => self.answered(commits, call).await,
        };
        if end.as_ref().is_err_and(|error| !is_outcome_unknown(error)) {
            // What is left of it holds locks: it goes now. The first error is the one that counts.
            let _: Result<Output, DbErr> = self.run(Who::Session, Operation::Settle).await;
        }
        let is_unknown = end.as_ref().is_err_and(is_outcome_unknown);
        self.lock().stack.standing.heard(is_unknown);
        end.map(drop)
    }

    /// Waits for the answer to the end of a transaction. A COMMIT that is not answered in time is seen through
    /// in a task.
    pub(super) async fn answered(&self, commits: bool, call: Call) -> Result<Output, DbErr> {
        if !commits {
            return call.await;
        }
        let answer = timeout(self.pool().settings().commit_timeout, call).await;
        answer.unwrap_or_else(|_| Err(Kind::OutcomeUnknown.into_db_err()))
    }

    fn begin_to_end(self: &Arc<Self>, turn: Turn, operation: Operation) -> Result<EarlyEnd, DbErr> {
        let commits = matches!(operation, Operation::Commit);
        let direct = {
            let mut state = self.lock();
            let open = state.admit(Who::Session).map_err(Kind::into_db_err)?;
            state.may_end(commits)?;
            if open == 0 && !state.through.has_own() {
                if commits {
                    state.stack.nothing_to_commit();
                } else {
                    state.stack.roll_back_all();
                }
                drop(state);
                drop(turn);
                self.run_hooks();
                return Ok(EarlyEnd::Done);
            }
            state.take_own()
        };
        if let Some(transaction) = direct {
            return Ok(EarlyEnd::Direct(turn, transaction));
        }
        let call = self.launch(turn, Who::Session, None, operation, Text::Plain)?;
        if commits {
            self.lock().stack.standing.commit_sent();
        }
        Ok(EarlyEnd::Sent(call))
    }
}

fn is_outcome_unknown(error: &DbErr) -> bool {
    Error::of(error).is_some_and(|known| known.is_outcome_unknown())
}

/// How far the early end of a transaction has come.
enum EarlyEnd {
    /// There was nothing to end.
    Done,
    Sent(Call),
    /// It is one of SeaORM's own, to be ended in this turn.
    Direct(Turn, Arc<DatabaseTransaction>),
}

impl State {
    /// Whether the handler may end the session's transaction now.
    fn may_end(&mut self, commits: bool) -> Result<(), DbErr> {
        if !self.is_transactional() {
            return Err(Kind::NoTransaction.into_db_err());
        }
        // Neither a rollback nor another COMMIT tells what became of one that was lost.
        let failure = self.stack.standing.failure();
        if let Some(unknown) = failure.filter(|error| error.is_outcome_unknown()) {
            return Err(unknown.to_db_err());
        }
        if !commits {
            self.stack.standing.rolled_back();
            self.stack.failures.rolled_back();
            return Ok(());
        }
        if self.rollback_only {
            return Err(Kind::RollbackOnly.into_db_err());
        }
        let unheard = self.stack.standing.unheard_failure();
        let missing = || self.stack.failures.missing_transaction().cloned();
        match unheard.or_else(missing) {
            Some(error) => Err(error.to_db_err()),
            None => Ok(()),
        }
    }

    /// Why it cannot be told that all is rolled back: something else has ended the transaction, or runs in it
    /// and may do so yet.
    fn may_stand(&self) -> Option<Error> {
        let failure = self.stack.standing.failure();
        let known = failure.filter(|error| error.is_ended_elsewhere()).cloned();
        let runs = matches!(&self.slot, Slot::Running(running) if running.is_doubtful);
        known.or_else(|| runs.then(|| Kind::EndedElsewhere.into()))
    }

    /// Why what the handler believes to be there is not.
    fn not_committed(&mut self) -> Option<Error> {
        let failure = self.stack.standing.take_failure();
        failure.or_else(|| self.stack.failures.missing_transaction().cloned())
    }
}
