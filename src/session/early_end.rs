//! The end of a session's transaction before the response, by the handler's
//! `commit` or `rollback`.

use std::sync::Arc;

use sea_orm::DbErr;
use tokio::time::timeout;

use super::{
    call::Call,
    core::{Core, Turn},
    pass_through::{OwnTransaction, end_own},
    stack::{Caller, Stack},
    state::State,
    statement::{CallRequest, launch, run},
    worker::in_turn,
};
use crate::{
    connection::{Operation, Output},
    error::{Error, Kind},
};

/// The progress of an early end of a transaction.
enum EarlyEnd {
    /// There was nothing to end.
    Done,
    Sent(Call),
    /// It is one of SeaORM's, to be ended in this turn.
    Own(Turn, OwnTransaction),
}

/// Commits or rolls back what the session did so far; its next statement begins
/// another transaction.
pub(super) async fn end_early(core: &Arc<Core>, commits: bool) -> Result<(), DbErr> {
    // In a turn, so that what was polled before belongs to this transaction and
    // what comes after to the next one. Shown by
    // `an_unpolled_commit_does_not_block_the_session`.
    let end = match in_turn(core, move |core, turn| begin_to_end(core, turn, commits)).await? {
        EarlyEnd::Done => return Ok(()),
        EarlyEnd::Own(turn, own) => return end_own(core, turn, own, commits).await,
        EarlyEnd::Sent(call) => answered(core, commits, call).await,
    };
    let failure = end.as_ref().err().and_then(Error::of);
    let is_unknown = failure.is_some_and(|error| error.is_outcome_unknown());
    if end.is_err() && !is_unknown {
        // The rest of it holds locks, so it is rolled back now. The first error
        // is the one that counts.
        let _: Result<Output, DbErr> = run(core, Caller::Session, Operation::Settle).await;
    }
    // Not reached if this future is dropped: then the response answers for what
    // it has not heard. Shown by
    // `a_dropped_commit_that_the_server_refuses_is_reported`.
    core.lock().stack.standing.heard(is_unknown);
    end.map(drop)
}

fn begin_to_end(core: &Arc<Core>, turn: Turn, commits: bool) -> Result<EarlyEnd, DbErr> {
    let own = {
        let mut state = core.lock();
        let open = state.admit(Caller::Session).map_err(Kind::into_db_err)?;
        may_end(&mut state, commits)?;
        // Nothing was sent, so there is nothing to send; the hooks run all the
        // same, since the handler cannot know that.
        if open == 0 {
            if commits {
                state.stack.nothing_to_commit();
            } else {
                state.stack.roll_back_all();
            }
            drop(state);
            // The turn first: a hook may use the session, and would have to
            // queue for it.
            drop(turn);
            core.run_hooks();
            return Ok(EarlyEnd::Done);
        }
        state.take_own()
    };
    if let Some(own) = own {
        return Ok(EarlyEnd::Own(turn, own));
    }
    let request = CallRequest::end(Caller::Session, commits);
    let call = launch(core, turn, request)?;
    if commits {
        // Until the handler has heard how it ended: its future may be dropped
        // before that.
        core.lock().stack.standing.commit_sent();
    }
    Ok(EarlyEnd::Sent(call))
}

/// Returns an error if the handler may not end the session's transaction now.
fn may_end(state: &mut State, commits: bool) -> Result<(), DbErr> {
    if !state.is_transactional() {
        return Err(Kind::NoTransaction.into_db_err());
    }
    let Stack {
        standing, failures, ..
    } = &mut state.stack;
    // Neither a rollback nor another COMMIT shows what became of one that was
    // lost.
    if let Some(unknown) = standing
        .failure()
        .filter(|error| error.is_outcome_unknown())
    {
        return Err(unknown.to_db_err());
    }
    if !commits {
        // By its ROLLBACK the handler says that it knows: what has failed
        // before is no reason for an error any more.
        standing.rolled_back();
        failures.rolled_back();
        return Ok(());
    }
    // Dry runs are not to be made real by a function that the handler calls.
    if state.rollback_only {
        return Err(Kind::RollbackOnly.into_db_err());
    }
    // A later success must not hide the failure of an earlier COMMIT whose
    // future was dropped.
    let failure = standing.unheard_failure();
    match failure.or_else(|| failures.missing_transaction().cloned()) {
        Some(error) => Err(error.to_db_err()),
        None => Ok(()),
    }
}

/// Waits for the answer to the end of a transaction. A COMMIT that is not
/// answered in time is waited for in a task.
pub(super) async fn answered(core: &Core, commits: bool, call: Call) -> Result<Output, DbErr> {
    // A rollback needs no limit: unanswered, it leaves nothing in doubt.
    if !commits {
        return call.await;
    }
    let answer = timeout(core.pool().settings().commit_timeout, call).await;
    answer.unwrap_or_else(|_| Err(Kind::OutcomeUnknown.into_db_err()))
}
