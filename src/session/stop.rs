//! [`Stop`]: whether the server may be told to stop a running call, and when.

use std::sync::Arc;

use sea_orm::DbBackend;

use super::core::Core;
use crate::{
    connection::{CancelHandle, Operation, Peer},
    pool::CheckedOut,
    sql::Classified,
};

/// A call that may be stopped.
pub(super) struct Stop {
    victim: Arc<CancelHandle>,
    /// Also while the session goes on: nothing depends on it.
    at_any_time: bool,
}

impl Stop {
    /// The session has ended.
    pub(super) fn at_the_end(&self) {
        self.victim.abandon();
    }

    /// The handler has dropped the statement, and may go on.
    pub(super) fn when_dropped(&self) {
        if self.at_any_time {
            self.victim.abandon();
        }
    }

    pub(super) fn cancel_handle(&self) -> Arc<CancelHandle> {
        self.victim.clone()
    }
}

impl Core {
    /// Whether `operation` may be stopped, and what there is to know for that.
    ///
    /// Outside of a transaction only what reads: a write is finished. Inside, every statement, but only
    /// when the session ends: the handler's transaction is not to be aborted behind its back.
    pub(super) fn stop_for(
        &self,
        operation: &Operation,
        text: Classified,
        in_transaction: bool,
        connection: &mut CheckedOut,
    ) -> (Option<Stop>, Option<Peer>) {
        let pool = self.pool();
        if !pool.settings().cancel_running || pool.is_test() {
            return (None, None);
        }
        // Also for what is not to be stopped: its answer may be lost.
        let is_work = operation.text().is_some() || matches!(operation, Operation::Begin(_));
        let stoppable = operation.text().is_some() && (in_transaction || text.reads_only);
        let Some(victim) = connection.cancel_handle().filter(|_| is_work) else {
            return (None, None);
        };
        let identify = Some(if pool.backend() == DbBackend::Sqlite {
            Peer::Server
        } else {
            pool.route()
        });
        if !stoppable {
            return (None, identify);
        }
        victim.prepare();
        (
            Some(Stop {
                victim,
                at_any_time: !in_transaction,
            }),
            identify,
        )
    }
}
