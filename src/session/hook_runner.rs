//! Registers hooks, and runs those whose time has come.

use std::{future::Future, sync::Arc};

use sea_orm::DbErr;
use tokio::runtime::Handle;

use super::{core::Core, hooks::After, stack::Caller};
use crate::error::Kind;

/// Registers `hook` for the transaction of `caller`.
pub(super) fn register(
    core: &Arc<Core>,
    caller: Caller,
    after: After,
    hook: impl Future<Output = ()> + Send + 'static,
) -> Result<(), DbErr> {
    let mut state = core.lock();
    if !state.phase.is_open() {
        return Err(state.closed().into_db_err());
    }
    // The hook could hold the last handle, and each would wait for the other to go.
    if core.origin.is_plain() && state.is_transactional() {
        return Err(Kind::NoEnd.into_db_err());
    }
    let depth = state.depth_of(caller).map_err(Kind::into_db_err)?;
    state.stack.hooks.register(depth, after, hook);
    drop(state);
    run_hooks(core);
    Ok(())
}

/// Runs the hooks that are due, one after the other in a task; the pool of a test keeps them instead.
pub(super) fn run_hooks(core: &Arc<Core>) {
    let mut state = core.lock();
    let due = state.stack.hooks.take_due();
    if due.is_empty() {
        return;
    }
    let runtime = state.runtime.clone();
    drop(state);
    let Some(due) = core.pool().keep_hooks(due) else {
        return;
    };
    let Some(runtime) = runtime.or_else(|| Handle::try_current().ok()) else {
        tracing::error!(target: "tower_sea_orm::session", "hooks did not run: no tokio runtime");
        return;
    };
    if core.lock().stack.hooks.enqueue(due) {
        runtime.spawn(run_queue(core.clone()));
    }
}

async fn run_queue(core: Arc<Core>) {
    while let Some(hook) = next(&core) {
        // In a separate task, so that its panic ends nothing else.
        if tokio::spawn(hook)
            .await
            .is_err_and(|error| error.is_panic())
        {
            tracing::error!(target: "tower_sea_orm::session", "a hook panicked; the hooks after it still run");
        }
    }
}

fn next(core: &Core) -> Option<crate::pool::Hook> {
    core.lock().stack.hooks.next()
}
