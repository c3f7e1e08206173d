//! [`Settlement`]: the end of a session with its response.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use tokio::time::timeout;

use super::{
    call::detach,
    core::{Core, Turn},
    end::{end, end_locked},
    pass_through::{OwnTransaction, commit_own, roll_back_own},
    phase::{Phase, Rollback},
    positions::ask_position,
    slot::{CallKind, PolledBy, Slot},
    stack::{Caller, Purpose},
    state::State,
    statement::{CallRequest, launch},
    worker::drive,
};
use crate::{
    connection::{Chain, Operation},
    error::{Error, Kind},
    pool::next_chain,
};

/// The time that the end of a request waits for a statement that is still
/// running.
// Longer than before a rollback, since this response says that all is done. A
// statement that the handler began and did not await needs no longer as a rule.
const TURN_TIMEOUT: Duration = Duration::from_secs(1);

/// The verdict on a session's transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    Commit,
    RollBack,
}

impl Decision {
    pub(super) fn of(commits: bool) -> Self {
        if commits {
            Self::Commit
        } else {
            Self::RollBack
        }
    }
}

/// The result of ending a session.
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
    /// It should have been committed; it is rolled back, or its outcome is
    /// unknown.
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

/// Ends the session: commits its transaction if `decision` says so, rolls back
/// what is open.
pub(super) fn settle(core: &Arc<Core>, decision: Decision) -> Settlement {
    let mut state = core.lock();
    if state.has_to_ask_position() {
        drop(state);
        return Settlement::Later(Box::pin(ask_and_settle(core.clone(), decision)));
    }
    let is_cut_off = state.phase.cut_off().is_some();
    if state.phase.is_over() && !is_cut_off {
        // Settled already. A session that was cut off still has to say what
        // that has cost.
        return Settlement::Now(Ended::RolledBack);
    }
    // Where the response is an error anyway, a lost transaction is rolled back
    // as it should be.
    let lost = state.phase.lost().filter(|_| decision == Decision::Commit);
    let commits = decision == Decision::Commit && !state.rollback_only;
    let may_commit = commits && !is_cut_off;
    if may_commit && has_read_on_replica(core, &state) {
        // There is nothing that COMMIT could make true, or fail to: the
        // response does not wait for the replica any more. Shown by
        // `g17_a_read_that_is_done_does_not_wait_for_its_replica` and, for its
        // hooks, by `the_hooks_of_a_read_run_as_on_the_primary`.
        state.stack.hooks.seal();
        state.stack.committed();
        drop(state);
        drop(end(core));
        return Settlement::Now(Ended::Committed);
    }
    if may_commit && has_to_commit(&state) {
        // From here on, no statement of the handler's is admitted: it would
        // come behind the COMMIT.
        state.phase = Phase::Settling;
        drop(state);
        return Settlement::Later(Box::pin(commit_at_end(core.clone())));
    }
    // Before `end`, which drops the hooks of what is not committed by then.
    let ended = ended(&mut state, commits, lost);
    let own = state.take_own();
    match (end_locked(core, state), own) {
        // Nothing was open, as for nearly all requests in autocommit: no
        // future, and no allocation for one.
        (None, None) => Settlement::Now(ended),
        (rollback, own) => Settlement::Later(Box::pin(roll_back_at_end(
            core.clone(),
            ended,
            rollback,
            own,
        ))),
    }
}

/// Asks for the position while the session still has its connection, which its
/// end gives back.
async fn ask_and_settle(core: Arc<Core>, decision: Decision) -> Ended {
    ask_position(&core).await;
    settle(&core, decision).resolve().await
}

/// Returns whether a transaction that has read on a replica is all that is
/// open, and is sound.
fn has_read_on_replica(core: &Core, state: &State) -> bool {
    let is_on_replica = core.replication().is_some_and(|one| one.is_on_replica());
    let is_sound = matches!(&state.slot, Slot::Idle(connection) if !connection.has_failed() && !connection.is_broken());
    is_on_replica
        && is_sound
        && !state.streaming
        && state.stack.depth() == 1
        && !state.stack.has_left_open()
        && state.stack.standing.cause().is_none()
        && state.stack.failures.current().is_none()
}

/// Returns whether there is something that COMMIT has to be sent for, or waited
/// for, or that is in its way.
fn has_to_commit(state: &State) -> bool {
    // A statement that still runs may be the one that begins the transaction.
    let is_at_work = state.stack.depth() > 0 || state.slot.purpose().is_some();
    state.stack.has_left_open() || state.is_transactional() && is_at_work
}

/// Returns how a session ends that has nothing to be committed any more.
fn ended(state: &mut State, commits: bool, lost: Option<Error>) -> Ended {
    let is_transactional = state.is_transactional();
    let failure = lost.or_else(|| state.take_failure());
    if let Some(error) = failure.filter(|error| counts(error, commits, is_transactional)) {
        return Ended::Failed(error);
    }
    if !is_transactional {
        return Ended::Autocommit;
    }
    if commits {
        // Hooks that were registered before the first statement wait for this.
        state.stack.nothing_to_commit();
    }
    match commits {
        true if state.stack.standing.may_stand() => Ended::Committed,
        false if !state.is_untouched() => Ended::RolledBack,
        _ => Ended::Untouched,
    }
}

/// Returns whether the response has to answer for a failure. What may stand
/// counts whatever the handler answers.
fn counts(error: &Error, commits: bool, is_transactional: bool) -> bool {
    match commits {
        // In autocommit, the handler has seen the error of its statement and
        // chosen this response; but not that of a connection it never got, or
        // no longer has.
        true => is_transactional || error.is_cut_off() || error.is_acquire(),
        false => is_transactional && error.may_stand() || error.is_cut_off(),
    }
}

/// Waits for the rollback of what was open.
async fn roll_back_at_end(
    core: Arc<Core>,
    ended: Ended,
    rollback: Option<Rollback>,
    own: Option<OwnTransaction>,
) -> Ended {
    if let Some(rollback) = rollback {
        // The answer says that nothing of it stands, so it leaves after the
        // rollback (G8).
        rollback.wait(core.pool().settings().release_timeout).await;
    }
    if let Some(own) = own {
        roll_back_own(&core, own).await;
    }
    // Asked when the rollback is over: a statement that was still running has
    // shown by then what it did. Shown by
    // `no_rollback_is_reported_while_stored_code_may_still_commit`.
    let may_stand = core.lock().may_stand();
    match (ended, may_stand) {
        (Ended::RolledBack, Some(error)) => Ended::Failed(error),
        (ended, _) => ended,
    }
}

/// Commits at the end of the request, or rolls back and says why.
async fn commit_at_end(core: Arc<Core>) -> Ended {
    let result = last_commit(&core).await;
    if result.is_err() {
        core.lock().commit_failed = true;
    }
    // Ended on success as well: the connection goes back here, before the
    // response leaves.
    let rollback = end(&core);
    let Err(error) = result else {
        return Ended::Committed;
    };
    if error.is_outcome_unknown() {
        // There is no rollback to wait for that would say more.
        return Ended::Failed(error.because(core.lock().stack.standing.cause()));
    }
    // The error response says that all is rolled back, so it waits until it is
    // (G8).
    if let Some(rollback) = rollback {
        rollback.wait(core.pool().settings().release_timeout).await;
    }
    let state = core.lock();
    let error = state.may_stand().unwrap_or(error);
    // The server has aborted the transaction because of a conflict: that is the
    // answer.
    let is_aborted = error.is_aborted() && !error.is_ended_elsewhere();
    let conflict = state.stack.failures.current().filter(|_| is_aborted);
    Ended::Failed(match conflict {
        Some(conflict) => conflict.clone(),
        None => error.because(state.stack.standing.cause()),
    })
}

async fn last_commit(core: &Arc<Core>) -> Result<(), Error> {
    // An unread stream has the turn for as long as its reader likes. Shown by
    // `a_stream_read_to_its_end_or_kept_gives_the_connection_back`.
    end_stream(core);
    let turn = last_turn(core).await?;
    let (own, chain) = {
        let mut state = core.lock();
        // Looked at again: a statement that was waited for may have been a
        // BEGIN.
        if state.stack.has_left_open() {
            return Err(Kind::LeftOpen.into());
        }
        // The COMMIT's own call rolls them back, before COMMIT.
        state.stack.drop_abandoned();
        // A COMMIT of the handler's has failed while nothing polled it: this
        // one would hide that (G7). Shown by
        // `h17_a_later_commit_does_not_hide_one_that_failed_unseen`.
        if let Some(error) = state.stack.standing.unheard_failure() {
            return Err(error);
        }
        if state.stack.depth() == 0 {
            // The transaction that the handler worked in was lost, or never
            // began.
            if let Some(error) = state.take_failure() {
                return Err(error);
            }
            state.stack.nothing_to_commit();
            return Ok(());
        }
        // Not before: from here to the COMMIT, nothing waits.
        let chain = chain(core, &state);
        (state.take_own(), chain)
    };
    match own {
        Some(own) => commit_own(core, own).await,
        None => {
            let commit = Operation::Commit(chain);
            let request = CallRequest::new(Caller::Settlement, commit);
            // A COMMIT is never sent again, whatever becomes of it (H17;
            // `a_commit_on_a_frozen_server_is_unknown_within_the_commit_timeout`).
            let call = launch(core, turn, request).map_err(Error::of_commit)?;
            // Dropped by the time-out, the call goes on in a task, and the
            // hooks wait for its end there (H17).
            match timeout(core.pool().settings().commit_timeout, call).await {
                Ok(answer) => answer.map(drop).map_err(Error::of_commit),
                Err(_) => Err(Kind::OutcomeUnknown.into()),
            }
        }
    }
}

/// Returns the transaction of a waiting session that COMMIT is to begin.
fn chain(core: &Core, state: &State) -> Option<Chain> {
    match &state.slot {
        Slot::Idle(connection) => next_chain(core.pool(), connection),
        _ => None,
    }
}

/// Waits for the turn to send the last COMMIT. A statement that is still
/// running does not hold up the answer for long.
async fn last_turn(core: &Arc<Core>) -> Result<Turn, Error> {
    let (running, has_left_open) = {
        let state = core.lock();
        (state.slot.purpose(), state.stack.has_left_open())
    };
    let (limit, otherwise) = match running {
        // Whichever future began it: only its end shows whether the response is
        // true. Shown by
        // `h17_a_stray_commit_is_waited_for_and_its_failure_is_a_500`.
        Some(Purpose::Commit) => (core.pool().settings().commit_timeout, Kind::OutcomeUnknown),
        // The answer does not wait for a handle that was kept.
        _ if has_left_open => return Err(Kind::LeftOpen.into()),
        // A response that says that all is done must not leave before it (G7;
        // `a_stray_statement_that_does_not_end_is_a_500_and_all_is_rolled_back`).
        _ => (TURN_TIMEOUT, Kind::StillRunning),
    };
    if running.is_some() {
        // Its own future may not be polled any more, now that the handler has
        // answered.
        drive(core);
    }
    let turn = timeout(limit, core.turn(Caller::Settlement))
        .await
        .map_err(|_| otherwise)?;
    Ok(turn.map_err(|_| Kind::SessionClosed)?)
}

/// Has a task read the rest of a stream: held but not read, it would never end.
fn end_stream(core: &Arc<Core>) {
    let state = core.lock();
    if let Some(running) = state.slot.call()
        && running.kind == CallKind::Stream
        && running.polled_by != PolledBy::Task
    {
        // First, or it would wait for its reader in the task as well.
        running.stop_stream();
        detach(core, state, None);
    }
}
