//! The conditions for a statement to pass, and the session's own transaction,
//! where it is one of SeaORM's.

use std::sync::Arc;

use sea_orm::{
    ConnectionTrait, DatabaseTransaction, DbBackend, DbErr, Statement, TransactionTrait,
};
use tokio::time::timeout;

use super::{
    super::{
        core::{Core, Turn},
        plan::Mode,
        stack::Caller,
        statement::{Handle, vet},
        worker::enqueue,
    },
    OwnTransaction,
};
use crate::{
    connection::Settings,
    error::{Error, Kind, server},
};

/// Admits a statement, and returns the session's own transaction if that is
/// what it runs in.
pub(super) async fn enter(handle: Handle<'_>) -> Result<Option<OwnTransaction>, DbErr> {
    match handle.through {
        Some(_) => admit(handle.core, handle.caller).map(|()| None),
        None => own_transaction(handle.core).await,
    }
}

/// Returns the session's own transaction, begun if it has not been; `None` in
/// autocommit.
pub(super) async fn own_transaction(core: &Arc<Core>) -> Result<Option<OwnTransaction>, DbErr> {
    admit(core, Caller::Session)?;
    // A mock or proxy has no connection to be set up when it is acquired: the
    // first statement is the moment for it.
    if core.lock().needs_set_up {
        enqueue(core, Caller::Session, async |core, _turn| {
            set_up(&core).await
        })
        .await?;
    }
    let own = {
        let mut state = core.lock();
        if !state.is_transactional() {
            // Before it is sent, because nothing accounts for it afterwards: it
            // may be stored from here on.
            state.stack.standing.stored();
            return Ok(None);
        }
        state.through.own.clone()
    };
    if own.is_some() {
        return Ok(own);
    }
    // In a turn, so that statements that run side by side begin one transaction
    // and not two.
    enqueue(core, Caller::Session, async |core, _turn| {
        begin_own(&core).await.inspect_err(|error| {
            let error = Error::of_begin(error.clone());
            core.lock().stack.failures.not_begun(error);
        })
    })
    .await
}

async fn begin_own(core: &Core) -> Result<Option<OwnTransaction>, DbErr> {
    // Once more: the session may have ended, or another transaction begun,
    // while this waited for its turn.
    admit(core, Caller::Session)?;
    let (mode, set_up) = {
        let state = core.lock();
        if let Some(own) = &state.through.own {
            return Ok(Some(own.clone()));
        }
        (state.rules.mode, state.rules.on_begin.clone())
    };
    let Mode::Transaction(options) = mode else {
        return Ok(None);
    };
    let begun = core.pool().database().begin_with_options(options).await;
    let transaction = begun.inspect_err(|error| core.lock().note_failure(error, 0, true))?;
    if let Some(set_up) = set_up {
        // Dropped on an error, SeaORM's transaction rolls back: without its
        // settings no statement runs
        // (`without_its_settings_no_statement_runs`).
        set(core, &transaction, &set_up.settings).await?;
        execute_all(core, &transaction, &set_up.statements).await?;
    }
    let own = Arc::new(transaction);
    let mut state = core.lock();
    state.stack.failures.acquired();
    state.stack.failures.begun();
    state.begun(own.clone());
    Ok(Some(own))
}

/// Runs the statements that a connection would be set up with: a test is to see
/// them.
async fn set_up(core: &Core) -> Result<(), DbErr> {
    let set_up = {
        let state = core.lock();
        // Looked at again: another statement may have done it while this one
        // waited for its turn.
        state
            .rules
            .on_acquire
            .clone()
            .filter(|_| state.needs_set_up)
    };
    execute_all(
        core,
        core.pool().database(),
        set_up.as_deref().unwrap_or_default(),
    )
    .await?;
    // Not before: after a set-up that has failed, the next statement tries it
    // again and does not run without it
    // (`nothing_runs_on_a_mock_after_a_set_up_that_failed`).
    core.lock().needs_set_up = false;
    Ok(())
}

/// Sets what travels in BEGIN's own text where the session has a connection.
async fn set(
    core: &Core,
    transaction: &DatabaseTransaction,
    settings: &Settings,
) -> Result<(), DbErr> {
    let (backend, database) = (core.pool().backend(), core.pool().database());
    if backend != DbBackend::Postgres {
        // Nothing takes time on a mock. Elsewhere they would have to be put
        // back, on a connection that the session does not have.
        return match settings.is_empty() || database.is_mock_connection() {
            true => Ok(()),
            false => Err(Kind::NoTimeouts.into_db_err()),
        };
    }
    match settings.text(backend).map_err(Kind::into_db_err)? {
        Some(text) => transaction.execute_unprepared(&text).await.map(drop),
        None => Ok(()),
    }
}

async fn execute_all(
    core: &Core,
    db: &impl ConnectionTrait,
    statements: &[Statement],
) -> Result<(), DbErr> {
    for statement in statements {
        // As a handler's: a COMMIT among them would end what has just begun
        // (`control_statements_are_refused_in_set_up_on_every_database`).
        vet(core, Caller::Session, &statement.sql)?;
        db.execute_raw(statement.clone()).await?;
    }
    Ok(())
}

/// Ends the session's own transaction before the response.
pub(in crate::session) async fn end_own(
    core: &Arc<Core>,
    turn: Turn,
    own: OwnTransaction,
    commits: bool,
) -> Result<(), DbErr> {
    // SeaORM ends a transaction by value, so a statement that still runs in it
    // stands in the way. It has the last other reference, and SeaORM rolls back
    // when that goes.
    let own = Arc::into_inner(own).ok_or_else(|| Kind::StillRunning.into_db_err())?;
    let ended = send_end(core, own, commits, 1).await;
    let mut state = core.lock();
    if commits {
        let committed = ended.clone().map_err(Error::of_commit);
        state.stack.own_committed(committed);
    } else {
        state.stack.hooks.rolled_back_to(0);
    }
    drop(state);
    drop(turn);
    core.run_hooks();
    ended
}

/// Commits the session's own transaction with the response.
pub(in crate::session) async fn commit_own(core: &Core, own: OwnTransaction) -> Result<(), Error> {
    let own = Arc::into_inner(own).ok_or(Kind::StillRunning)?;
    let limit = core.pool().settings().commit_timeout;
    let committed = match timeout(limit, send_end(core, own, true, 1)).await {
        Ok(ended) => ended.map_err(Error::of_commit),
        // SeaORM's own COMMIT is dropped with the time-out, and may take effect
        // all the same (H17).
        Err(_) => Err(Kind::OutcomeUnknown.into()),
    };
    core.lock().stack.own_committed(committed.clone());
    committed
}

/// Rolls the session's own transaction back with the response.
pub(in crate::session) async fn roll_back_own(core: &Core, own: OwnTransaction) {
    if let Some(own) = Arc::into_inner(own) {
        let limit = core.pool().settings().release_timeout;
        let _ = timeout(limit, own.rollback()).await;
    }
}

/// Ends a transaction, which is, or was, open at this depth.
pub(super) async fn send_end(
    core: &Core,
    transaction: DatabaseTransaction,
    commits: bool,
    depth: usize,
) -> Result<(), DbErr> {
    // Also for a rollback, which ends what was given up.
    let is_given_up = core.lock().through.take_given_up(depth);
    if !commits {
        return transaction.rollback().await;
    }
    if is_given_up {
        // SeaORM would call its COMMIT a success.
        let _ = transaction.rollback().await;
        return Err(Kind::Aborted.into_db_err());
    }
    transaction.commit().await.map_err(|error| {
        // A savepoint that is not released is lost with the rest; only the
        // outermost COMMIT may have taken effect.
        let is_lost = server::is_fatal(&error) && !server::was_not_read(&error);
        let is_unknown = is_lost || server::is_commit_interrupted(&error);
        if depth > 1 || !is_unknown {
            return error;
        }
        tracing::warn!(target: "tower_sea_orm::session", "COMMIT was lost or given up: {error}");
        Kind::OutcomeUnknown.into_db_err()
    })
}

/// Checks that `caller` may run a statement now.
pub(super) fn admit(core: &Core, caller: Caller) -> Result<(), DbErr> {
    check_open(core)?;
    let mut state = core.lock();
    state.admit(caller).map_err(Kind::into_db_err)?;
    if state.through.is_any_parked() {
        return Err(Kind::NestedOpen.into_db_err());
    }
    // PostgreSQL refuses by itself; elsewhere, what follows would commit by
    // itself.
    let is_given_up = state.through.is_given_up(state.stack.depth());
    if is_given_up && core.pool().backend() != DbBackend::Postgres {
        return Err(Kind::Aborted.into_db_err());
    }
    Ok(())
}

pub(super) fn check_open(core: &Core) -> Result<(), DbErr> {
    // The pool's state as well: a plain handle has no connection whose
    // acquisition would be refused.
    if core.is_over() {
        Err(core.closed_error())
    } else if core.pool().is_shut() {
        Err(Kind::Closing.into_db_err())
    } else {
        Ok(())
    }
}

/// Notes what a failed statement did to the transaction around it.
pub(super) fn heed<T>(core: &Core, result: Result<T, DbErr>) -> Result<T, DbErr> {
    let Err(error) = &result else { return result };
    let is_postgres = core.pool().backend() == DbBackend::Postgres;
    // A mock's errors have no codes; on PostgreSQL, any error aborts the
    // transaction.
    let is_mocked = is_postgres && core.pool().database().is_mock_connection();
    let is_statements = || Error::of(error).is_none_or(|known| known.is_connection_lost());
    if server::aborts(core.pool().backend(), error) || is_mocked && is_statements() {
        let mut state = core.lock();
        // PostgreSQL aborts the level of the statement, the others give up all
        // of the transaction.
        let depth = state.stack.depth();
        state.through.give_up(depth, !is_postgres);
    }
    result
}
