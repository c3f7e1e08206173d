//! Sessions that pass their statements through (mock, proxy, plain handles): their transaction is
//! one of SeaORM's own.

use std::sync::Arc;

use sea_orm::{ConnectionTrait, DatabaseTransaction, DbBackend, DbErr, TransactionTrait};

use super::{
    core::{Core, Turn},
    hook_runner::run_hooks,
    plan::Mode,
    queue::enqueue,
    stack::{Level, Who},
    statement::vet,
};
use crate::error::{Error, Kind, server};

/// Returns an error if the request has ended.
pub(super) fn check_open(core: &Core) -> Result<(), DbErr> {
    if core.is_over() {
        Err(core.closed())
    } else if core.pool().is_shut() {
        Err(Kind::Closing.into_db_err())
    } else {
        Ok(())
    }
}

/// Whether `who` may run a statement now.
pub(super) fn admit_direct(core: &Core, who: Who) -> Result<(), DbErr> {
    check_open(core)?;
    let mut state = core.lock();
    state.admit(who).map_err(Kind::into_db_err)?;
    if state.through.is_any_parked() {
        return Err(Kind::NestedOpen.into_db_err());
    }
    // PostgreSQL refuses by itself; elsewhere, what follows would commit by itself.
    let is_given_up = state.through.is_given_up(state.stack.depth());
    if is_given_up && core.pool().backend() != DbBackend::Postgres {
        return Err(Kind::Aborted.into_db_err());
    }
    Ok(())
}

/// Whether `who` may begin a transaction now.
pub(super) fn admit_begin(core: &Core, who: Who) -> Result<(), DbErr> {
    admit_direct(core, who)?;
    let state = core.lock();
    if state.through.is_given_up(state.stack.depth()) {
        Err(Kind::Aborted.into_db_err())
    } else {
        Ok(())
    }
}

/// Whether `who` may end its transaction now.
pub(super) fn admit_end(core: &Core, who: Who) -> Result<(), DbErr> {
    let mut state = core.lock();
    state.admit(who).map_err(Kind::into_db_err)?;
    if state.through.is_any_parked() {
        Err(Kind::NestedOpen.into_db_err())
    } else {
        Ok(())
    }
}

/// Notes what a failed statement did to the transaction around it.
pub(super) fn heed<T>(core: &Core, result: Result<T, DbErr>) -> Result<T, DbErr> {
    let Err(error) = &result else { return result };
    let backend = core.pool().backend();
    // A mock's errors have no codes. On PostgreSQL none are needed.
    let is_mocked = backend == DbBackend::Postgres && core.pool().database().is_mock_connection();
    if server::aborts(backend, error) || is_mocked && Error::of(error).is_none() {
        let mut state = core.lock();
        let depth = state.stack.depth();
        state.through.give_up(depth, backend != DbBackend::Postgres);
    }
    result
}

/// The session's own transaction, begun if it has not been; `None` in autocommit.
pub(super) async fn direct_transaction(
    core: &Arc<Core>,
) -> Result<Option<Arc<DatabaseTransaction>>, DbErr> {
    admit_direct(core, Who::Session)?;
    set_up_direct(core).await?;
    if !core.lock().is_transactional() {
        core.lock().stack.standing.stored();
        return Ok(None);
    }
    let open = core.lock().through.own().cloned();
    if let Some(transaction) = open {
        return Ok(Some(transaction));
    }
    let this = core.clone();
    enqueue(core, async move {
        let _turn = this.turn(Who::Session).await?;
        let begun = begin_direct(&this).await;
        if let Err(error) = &begun {
            this.lock()
                .stack
                .failures
                .not_begun(Error::of_begin(error.clone()));
        }
        begun
    })
    .await
}

async fn begin_direct(core: &Core) -> Result<Option<Arc<DatabaseTransaction>>, DbErr> {
    admit_direct(core, Who::Session)?;
    let (mode, set_up) = {
        let state = core.lock();
        if let Some(transaction) = state.through.own() {
            return Ok(Some(transaction.clone()));
        }
        (state.rules.mode, state.rules.on_begin.clone())
    };
    let Mode::Transaction(options) = mode else {
        return Ok(None);
    };
    let begun = core.pool().database().begin_with_options(options).await;
    let transaction = begun.inspect_err(|error| core.lock().note_failure(error, 0, true))?;
    for statement in set_up.iter().flat_map(|set_up| set_up.iter()) {
        vet(core, Who::Session, &statement.sql)?;
        transaction.execute_raw(statement.clone()).await?;
    }
    let transaction = Arc::new(transaction);
    let mut state = core.lock();
    state.stack.failures.acquired();
    state.stack.failures.begun();
    state.begun(transaction.clone());
    Ok(Some(transaction))
}

/// There is no connection that has to be set up, but a test is to see the statements.
async fn set_up_direct(core: &Arc<Core>) -> Result<(), DbErr> {
    if !core.lock().fresh {
        return Ok(());
    }
    let this = core.clone();
    enqueue(core, async move {
        let _turn = this.turn(Who::Session).await?;
        run_set_up_direct(&this).await
    })
    .await
}

async fn run_set_up_direct(core: &Core) -> Result<(), DbErr> {
    let set_up = {
        let state = core.lock();
        state.rules.on_acquire.clone().filter(|_| state.fresh)
    };
    for statement in set_up.iter().flat_map(|set_up| set_up.iter()) {
        vet(core, Who::Session, &statement.sql)?;
        core.pool()
            .database()
            .execute_raw(statement.clone())
            .await?;
    }
    core.lock().fresh = false;
    Ok(())
}

/// There is no connection to give back, but the same rule.
pub(super) fn release_direct(core: &Core) -> Result<(), DbErr> {
    admit_direct(core, Who::Session)?;
    let mut state = core.lock();
    if state.stack.depth() > 0 {
        return Err(Kind::TransactionOpen.into_db_err());
    }
    state.fresh = true;
    Ok(())
}

/// Ends the session's own transaction early.
pub(super) async fn end_direct(
    core: &Arc<Core>,
    turn: Turn,
    transaction: Arc<DatabaseTransaction>,
    commits: bool,
) -> Result<(), DbErr> {
    let transaction =
        Arc::into_inner(transaction).ok_or_else(|| Kind::StillRunning.into_db_err())?;
    let ended = end_through(core, transaction, commits, 1).await;
    let mut state = core.lock();
    if commits {
        state
            .stack
            .own_committed(ended.clone().map_err(Error::of_commit));
    } else {
        state.stack.hooks.rolled_back_to(0);
    }
    drop(state);
    drop(turn);
    run_hooks(core);
    ended
}

/// Ends one of SeaORM's transactions, which is, or was, open at this depth.
pub(super) async fn end_through(
    core: &Core,
    transaction: DatabaseTransaction,
    commits: bool,
    depth: usize,
) -> Result<(), DbErr> {
    let given_up = core.lock().through.take_given_up(depth) && commits;
    if !commits {
        return transaction.rollback().await;
    }
    if !given_up {
        return transaction.commit().await.map_err(|error| {
            if depth > 1 || !server::is_fatal(&error) {
                return error;
            }
            tracing::warn!(target: "tower_sea_orm::session", "the connection was lost while COMMIT was under way: {error}");
            Kind::OutcomeUnknown.into_db_err()
        });
    }
    // SeaORM would call it a success.
    let _ = transaction.rollback().await;
    Err(Kind::Aborted.into_db_err())
}

/// Opens a transaction of SeaORM's inside of what is open.
pub(super) fn open_through(core: &Core) -> Level {
    let mut state = core.lock();
    let level = state.new_id();
    state.stack.open(level);
    state.through.opened(level);
    level
}

/// Commits or rolls back a transaction that the handler began.
pub(super) async fn end_level(
    core: &Arc<Core>,
    level: Level,
    transaction: DatabaseTransaction,
    commits: bool,
) -> Result<(), DbErr> {
    let depth = core.lock().stack.depth();
    let ended = end_through(core, transaction, commits, depth).await;
    close_through(core, level, commits && ended.is_ok());
    ended
}

/// A transaction that the handler began was dropped.
pub(super) fn drop_through(core: &Arc<Core>, level: Level, transaction: DatabaseTransaction) {
    let mut state = core.lock();
    match state.through.park(level, transaction) {
        None => {
            state.stack.close(level, false);
            drop(state);
            run_hooks(core);
        }
        Some(transaction) => {
            drop(state);
            // SeaORM rolls it back.
            drop(transaction);
            close_through(core, level, false);
        }
    }
}

fn close_through(core: &Arc<Core>, level: Level, committed: bool) {
    let mut state = core.lock();
    state.stack.close(level, committed);
    let depth = state.stack.depth();
    state.through.forget_beyond(depth);
    let parked = state.through.unpark(level);
    drop(state);
    for transaction in parked {
        drop(transaction);
    }
    run_hooks(core);
}
