//! [`SessionGuard`]: the one way out of a session.

use std::{fmt, sync::Arc};

use http::response;

use super::{
    core::Core,
    settle::{Decision, Settlement},
};
use crate::error::Error;

/// Ends the session when it is dropped, whatever the reason.
///
/// The future that serves the request owns it; handles are only lent the session.
pub(crate) struct SessionGuard(Arc<Core>);

impl SessionGuard {
    pub(super) fn new(core: Arc<Core>) -> Self {
        Self(core)
    }

    pub(super) fn core(&self) -> &Arc<Core> {
        &self.0
    }

    /// Ends the session as the response's head says.
    pub(crate) fn settle(&self, decision: Decision) -> Settlement {
        self.0.settle(decision)
    }

    /// Whether a response with this head commits the session's transaction.
    pub(crate) fn decide(&self, head: &response::Parts) -> Decision {
        let rule = self.0.lock().plan.commit_when.clone();
        let commits = rule.map_or_else(|| commits_by_default(head), |rule| rule(head));
        if commits { Decision::Commit } else { Decision::RollBack }
    }

    /// Whether something of the session may stand: sent again, the request would do it twice.
    pub(crate) fn may_have_committed(&self) -> bool {
        self.0.lock().committed
    }

    /// The failure that the layer should answer for if the handler gives up.
    pub(crate) fn failure(&self) -> Option<Error> {
        self.0.lock().failure.clone()
    }
}

impl Drop for SessionGuard {
    fn drop(&mut self) {
        drop(self.0.end());
    }
}

/// Below 400; for gRPC, `grpc-status` 0 or none.
fn commits_by_default(head: &response::Parts) -> bool {
    let is_ok = head.status.as_u16() < 400;
    is_ok && head.headers.get("grpc-status").is_none_or(|status| status == "0")
}

impl fmt::Debug for SessionGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionGuard").finish_non_exhaustive()
    }
}
