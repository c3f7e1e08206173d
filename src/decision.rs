//! [`decide`]: what an answer means for its session's transaction.

use http::Response;

use crate::session::{Decision, SessionGuard};

/// Where an answer's fate is decided.
pub(crate) enum Fate<B, E> {
    /// Now.
    Head(Result<Response<B>, E>, Decision, SessionGuard),
    /// At the end of the body, which has the guard.
    Body(Response<B>),
}

/// What the answer means for the session's transaction.
pub(crate) fn decide<B, E>(guard: SessionGuard, result: Result<Response<B>, E>) -> Fate<B, E> {
    let response = match result {
        Ok(response) => response,
        Err(error) => return Fate::Head(Err(error), Decision::RollBack, guard),
    };
    let (head, body) = response.into_parts();
    let mut decision = guard.decide(&head);
    let mut guard = guard;
    if let Some(hold) = guard.hold() {
        if hold.has_failed() {
            decision = Decision::RollBack;
        }
        if decision == Decision::RollBack {
            hold.pass();
        } else if let Some(error) = guard.cut_off() {
            // It was to live for its body, which would go on without.
            hold.break_off(error);
        } else {
            guard = match guard.leave_to(&hold, &head) {
                Ok(()) => return Fate::Body(Response::from_parts(head, body)),
                Err(guard) => guard,
            };
        }
    }
    Fate::Head(Ok(Response::from_parts(head, body)), decision, guard)
}
