//! Transactions that the handler began, where they are SeaORM's.

use std::sync::Arc;

use sea_orm::{DatabaseTransaction, DbErr, TransactionOptions, TransactionTrait};

use super::{
    super::{
        core::Core,
        stack::{Caller, TransactionId},
        statement::Handle,
    },
    own::{admit, enter, heed, send_end},
};
use crate::error::Kind;

/// Begins a transaction inside what is open.
pub(in crate::session) async fn begin(
    handle: Handle<'_>,
    options: TransactionOptions,
) -> Result<(TransactionId, DatabaseTransaction), DbErr> {
    let core = handle.core;
    // The session's own transaction first, if there is to be one: this one is a
    // savepoint in it.
    let own = enter(handle).await?;
    // Once more: that may have waited, and another transaction may have been
    // begun meanwhile.
    admit(core, handle.caller)?;
    // A SAVEPOINT would fail in such a transaction, and take it along.
    if is_given_up(core) {
        return Err(Kind::Aborted.into_db_err());
    }
    let begun = match handle.through.or(own.as_deref()) {
        Some(outer) => outer.begin_with_options(options).await,
        None => core.pool().database().begin_with_options(options).await,
    };
    let transaction = heed(core, begun)?;
    let mut state = core.lock();
    let id = state.new_id();
    state.stack.open(id);
    state.through.opened(id);
    Ok((id, transaction))
}

fn is_given_up(core: &Core) -> bool {
    let state = core.lock();
    state.through.is_given_up(state.stack.depth())
}

/// Commits or rolls back a transaction that the handler began.
pub(in crate::session) async fn end(
    core: &Arc<Core>,
    id: TransactionId,
    transaction: &mut Option<DatabaseTransaction>,
    commits: bool,
) -> Result<(), DbErr> {
    let depth = {
        let mut state = core.lock();
        let depth = state
            .admit(Caller::Transaction(id))
            .map_err(Kind::into_db_err)?;
        // SeaORM still has a transaction inside this one, and would end that
        // one instead (H4).
        if state.through.is_any_parked() {
            return Err(Kind::NestedOpen.into_db_err());
        }
        depth
    };
    let Some(transaction) = transaction.take() else {
        return Ok(());
    };
    // Taken out of its handle: that one's `Drop` must not roll back what is
    // being committed.
    let ended = send_end(core, transaction, commits, depth).await;
    // Also after an error: SeaORM has given the transaction up, and a handle
    // that stayed open would refuse all others.
    close(core, id, commits && ended.is_ok());
    ended
}

/// Rolls back a transaction whose handle was dropped, once those inside it have
/// ended.
pub(in crate::session) fn abandon(
    core: &Arc<Core>,
    id: TransactionId,
    transaction: DatabaseTransaction,
) {
    let mut state = core.lock();
    // SeaORM panics if a transaction goes while one inside it is in a query, so
    // that an unwinding aborts (H16).
    let parked = state.through.park(id, transaction);
    let Some(transaction) = parked else {
        state.stack.close(id, false);
        drop(state);
        return core.run_hooks();
    };
    drop(state);
    // SeaORM rolls it back. Under no lock, because it calls the driver.
    drop(transaction);
    close(core, id, false);
}

fn close(core: &Arc<Core>, id: TransactionId, is_committed: bool) {
    let mut state = core.lock();
    state.stack.close(id, is_committed);
    let depth = state.stack.depth();
    // A later transaction at that depth is another one.
    state.through.forget_beyond(depth);
    let parked = state.through.unpark(id);
    drop(state);
    // In this order: SeaORM ends whichever is the innermost.
    parked.into_iter().for_each(drop);
    core.run_hooks();
}
