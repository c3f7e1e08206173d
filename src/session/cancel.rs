//! [`Cancel`]: permission to have the server stop a running call.

use std::sync::Arc;

use sea_orm::DbBackend;

use crate::{
    connection::{CancelHandle, Operation, Peer},
    pool::{CheckedOut, PoolInner},
    sql::Classified,
};

/// Permission to have the server stop a running call.
pub(super) struct Cancel {
    handle: Arc<CancelHandle>,
    /// Also while the session goes on, which does not depend on the call.
    at_any_time: bool,
}

impl Cancel {
    /// Returns whether `operation` may be stopped, and how its connection is to be identified for that.
    ///
    /// Outside a transaction only what reads: a write is finished. Inside, every statement, but only when the
    /// session ends: the handler's transaction is not to be aborted behind its back.
    pub(super) fn of(
        operation: &Operation,
        text: Classified,
        in_transaction: bool,
        pool: &PoolInner,
        connection: &mut CheckedOut,
    ) -> (Option<Self>, Option<Peer>) {
        if !pool.settings().cancel_running || pool.is_test() {
            return (None, None);
        }
        // Also what is not to be stopped is identified: its answer may be lost.
        let is_work = operation.text().is_some() || matches!(operation, Operation::Begin(_));
        let Some(handle) = connection.cancel_handle().filter(|_| is_work) else {
            return (None, None);
        };
        let route = match pool.backend() {
            DbBackend::Sqlite => Peer::Server,
            _ => pool.cancels().route(),
        };
        let is_stoppable = operation.text().is_some() && (in_transaction || text.reads_only);
        let cancel = is_stoppable.then(|| {
            handle.prepare();
            Self {
                handle,
                at_any_time: !in_transaction,
            }
        });
        (cancel, Some(route))
    }

    /// The session has ended.
    pub(super) fn session_ended(&self) {
        self.handle.abandon();
    }

    /// The handler has dropped the statement, and may go on.
    pub(super) fn call_dropped(&self) {
        if self.at_any_time {
            self.handle.abandon();
        }
    }

    pub(super) fn cancel_handle(&self) -> Arc<CancelHandle> {
        self.handle.clone()
    }
}
