//! [`SessionPin`]: keeps a session's connection where the session would lend it.

use std::{fmt, sync::Arc};

use super::{core::Core, lend, slot::Slot};

/// Keeps a session's connection until it is dropped, where [`PoolMode::Transaction`](crate::PoolMode::Transaction) would
/// lend it; created by [`DbSession::pin`](crate::DbSession::pin).
#[must_use = "the connection is kept until this is dropped"]
pub struct SessionPin {
    core: Arc<Core>,
}

impl SessionPin {
    pub(super) fn new(core: &Arc<Core>) -> Self {
        let mut state = core.lock();
        let last = state.last_id();
        let in_transaction = state.stack.depth() > 0;
        state.pins.add(last, in_transaction);
        if let Slot::Idle(connection) = &mut state.slot {
            connection.withdraw();
        }
        drop(state);
        Self { core: core.clone() }
    }
}

impl Drop for SessionPin {
    fn drop(&mut self) {
        self.core.lock().pins.remove();
        lend::offer_unless_polled(&self.core);
    }
}

impl fmt::Debug for SessionPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionPin").finish_non_exhaustive()
    }
}
