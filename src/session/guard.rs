//! [`SessionGuard`]: the one way out of a session.

use std::{fmt, sync::Arc};

use tokio::sync::oneshot;

use super::core::Core;
use crate::error::Error;

/// Ends the session when it is dropped, whatever the reason.
///
/// The future that serves the request owns it; handles are only lent the session.
pub(crate) struct SessionGuard(Arc<Core>);

impl SessionGuard {
    pub(super) fn new(core: Arc<Core>) -> Self {
        Self(core)
    }

    /// Ends the session; there is something to wait for if a transaction has to be rolled back.
    pub(crate) fn settle(&self) -> Option<oneshot::Receiver<()>> {
        self.0.end()
    }

    /// Whether the session ran a statement, so that the request may have changed something.
    pub(crate) fn has_run(&self) -> bool {
        self.0.has_run()
    }

    /// Why the session got no connection, if it did not.
    pub(crate) fn failure(&self) -> Option<Error> {
        self.0.failure()
    }
}

impl Drop for SessionGuard {
    fn drop(&mut self) {
        drop(self.0.end());
    }
}

impl fmt::Debug for SessionGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionGuard").finish_non_exhaustive()
    }
}
