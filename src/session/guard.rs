//! [`SessionGuard`]: ends the session of a request, however the request ends.

use std::{
    any::TypeId,
    fmt,
    pin::Pin,
    sync::{Arc, Weak, atomic::Ordering},
    task::{Context, Poll},
};

use http::{HeaderMap, HeaderName, Response, StatusCode, response};

use super::{
    core::Core,
    end::end,
    lend,
    plan::CommitWhen,
    positions::store_position,
    settle::{Decision, Ended, Settlement, settle},
    state::State,
};
use crate::{
    body::Hold,
    error::Error,
    pool::{self, CountedSession, Entered, InScope, Key, PoolInner, Scope},
    telemetry::Usage,
};

/// Ends the session when it is dropped, whatever the reason.
///
/// The future that serves the request owns it; handles are only lent the
/// session.
pub(crate) struct SessionGuard {
    pub(super) core: Arc<Core>,
    /// The entry of a session without a connection in its pool's register,
    /// which `close` looks at.
    // A mock's session is cut off by `close` as any other
    // (`a_mocks_sessions_are_cut_off_as_well`).
    direct: Option<Key>,
    /// The session's tag, by which what its request polls finds it; `None` for
    /// a job.
    // A function, which is a third of the size.
    tag: Option<fn() -> TypeId>,
}

impl SessionGuard {
    /// The session that was `counted` ends with the guard.
    pub(super) fn new(
        core: Arc<Core>,
        tag: Option<fn() -> TypeId>,
        counted: CountedSession<'_>,
    ) -> Self {
        // From here on, the guard's `Drop` uncounts it.
        counted.begin();
        // Until it has ended, nothing of its request is known to be undone
        // (G20).
        if let Some(request) = &core.origin.outer {
            request.beside().fetch_add(1, Ordering::Relaxed);
        }
        let holder: Weak<Core> = Arc::downgrade(&core);
        let direct = core
            .home()
            .is_direct()
            .then(|| core.home().note_direct(holder));
        Self { core, direct, tag }
    }

    /// Attributes the sessions that are opened on this thread to this request,
    /// until the returned value is dropped. A second session of the same pool
    /// has to count as this request's: one that waits for it is a deadlock.
    /// What runs on this thread meanwhile finds the session as the current one.
    pub(crate) fn enter(&self) -> (Option<InScope>, Option<Entered>) {
        let scope = Scope::is_looked_for().then(|| self.scope().enter());
        (scope, self.core.request_holder().map(pool::enter))
    }

    pub(super) fn scope(&self) -> Scope {
        Scope::new(self.tag.map(|tag| tag()), self.core.clone())
    }

    /// Polls the future that the session was opened for. Sessions opened
    /// meanwhile are its request's; if it waits for something, a connection
    /// that nothing has run on is lent to whatever waits for one.
    pub(crate) fn poll<F: Future>(
        &self,
        future: Pin<&mut F>,
        cx: &mut Context<'_>,
    ) -> Poll<F::Output> {
        let entered = self.enter();
        let polled = future.poll(cx);
        drop(entered);
        if polled.is_pending() {
            // It waits for a client's upload or for another service, and needs
            // its connection for neither
            // (`slow_uploads_over_a_real_connection_keep_no_connection_from_others`).
            lend::offer(&self.core);
        }
        polled
    }

    /// Stores the position of what the session has committed in its response.
    pub(crate) fn store_position<B>(&self, ended: &Ended, response: Response<B>) -> Response<B> {
        // First, so that a service without replicas does not take its responses
        // apart.
        if self.core.replication().is_none() {
            return response;
        }
        let (mut head, body) = response.into_parts();
        store_position(&self.core, ended, &mut head);
        Response::from_parts(head, body)
    }

    /// Ends the session as the response's head says.
    pub(crate) fn settle(&self, decision: Decision) -> Settlement {
        settle(&self.core, decision)
    }

    /// Returns the rule for the session's transaction, and the body that asked
    /// to decide, if there is one.
    pub(super) fn rule_and_hold(&self) -> (Option<CommitWhen>, Option<Hold>) {
        // Cloned out: the rule is user code, and may use the session.
        let mut state = self.core.lock();
        (state.rules.commit_when.clone(), state.asked_hold.take())
    }

    /// Returns what the session has used so far.
    pub(crate) fn usage(&self) -> Usage {
        self.core.lock().span.usage()
    }

    /// Sums up the session that has `ended`.
    // All under one lock: a response is made of it, and each look at the state
    // costs every request.
    pub(crate) fn summary(&self, ended: &Ended) -> Summary {
        let (origin, state) = (&self.core.origin, self.core.lock());
        // Of any session of the request: with a `Retry-After`, the client would
        // do that part again
        // (`a_conflict_beside_a_committed_job_has_no_retry_after`).
        let may_have_committed =
            state.stack.standing.may_stand() || origin.has_committed_beside.load(Ordering::Relaxed);
        // It may still commit:
        // `g20_a_session_beside_that_is_still_open_forbids_a_retry`.
        let is_any_open = origin.open_beside.load(Ordering::Relaxed) > 0;
        Summary {
            lost: state.phase.lost(),
            failure: state.stack.failures.current().cloned(),
            usage: state.span.usage(),
            may_have_committed,
            is_undone: !may_have_committed && !is_any_open && is_undone(&state, ended),
        }
    }

    /// Returns why the session's connection was taken away before its end, if
    /// it was.
    pub(crate) fn cut_off(&self) -> Option<Error> {
        self.core.lock().cut_off()
    }

    /// Returns the pool that the session was opened in.
    pub(crate) fn pool(&self) -> &Arc<PoolInner> {
        self.core.home()
    }
}

/// What a session that has ended means for its request.
pub(crate) struct Summary {
    /// Why an open transaction of the session was lost before its end, if it
    /// was.
    pub(crate) lost: Option<Error>,
    /// The failure that the layer answers for if the handler gives up.
    pub(crate) failure: Option<Error>,
    pub(crate) usage: Usage,
    /// Something of the request may be stored, so that sending it again would
    /// do it twice.
    pub(crate) may_have_committed: bool,
    /// Nothing of the request stands, or can still come to stand.
    pub(crate) is_undone: bool,
}

/// Returns whether nothing that a session has done itself can still come to
/// stand.
fn is_undone(state: &State, ended: &Ended) -> bool {
    // A call that still runs may commit yet: it may be a COMMIT itself.
    let is_over = state.slot.call().is_none();
    is_over
        && match ended {
            Ended::Committed | Ended::Pending => false,
            // A cluster that has lost its quorum in the middle of COMMIT may
            // keep the transaction.
            Ended::Failed(error) => {
                !(error.may_stand() || state.commit_failed && error.is_read_only())
            }
            Ended::Autocommit | Ended::Untouched | Ended::RolledBack => true,
        }
}

impl Drop for SessionGuard {
    fn drop(&mut self) {
        // Comes here on every way out, a panic of the handler included (H13),
        // and waits for nothing (G11): a rollback that is due runs in a task.
        // Shown by `h13_a_panic_rolls_back_and_frees_the_slot`.
        drop(end(&self.core));
        // Behind the end, which may still note that something stands.
        if let Some(request) = &self.core.origin.outer {
            request.beside().fetch_sub(1, Ordering::Relaxed);
        }
        if let Some(key) = self.direct {
            self.core.home().note_return(key);
        }
        if let Some(replication) = self.core.replication() {
            replication.ended();
        }
        // Last, because `close` waits for this.
        self.core.home().session_ended();
    }
}

/// Decides by a response's head whether a session's transaction is committed.
pub(super) fn decide(rule: Option<CommitWhen>, head: &response::Parts) -> Decision {
    Decision::of(match rule {
        Some(rule) => rule(head),
        None => is_success(head.status, &head.headers),
    })
}

/// A constant, because a name in a string would be parsed for each response.
pub(crate) static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// Below 400; for gRPC, `grpc-status` 0 or none.
pub(crate) fn is_success(status: StatusCode, headers: &HeaderMap) -> bool {
    // In the head of a response without messages (*Trailers-Only*,
    // <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>); elsewhere it comes behind
    // the body.
    status.as_u16() < 400 && headers.get(&GRPC_STATUS).is_none_or(|status| status == "0")
}

impl fmt::Debug for SessionGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionGuard").finish_non_exhaustive()
    }
}
