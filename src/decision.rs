//! [`SettleAt`]: the moment at which a response decides its session's transaction.

use http::Response;

use crate::session::{Decision, SessionGuard};

/// When a session is settled.
pub(crate) enum SettleAt<B, E> {
    /// Now, as the response's head decides.
    Head(Result<Response<B>, E>, Decision, SessionGuard),
    /// At the end of the body, which owns the guard from here on.
    BodyEnd(Response<B>),
}

impl<B, E> SettleAt<B, E> {
    /// Decides by the inner service's result. An error rolls back.
    pub(crate) fn of(result: Result<Response<B>, E>, guard: SessionGuard) -> Self {
        let response = match result {
            Ok(response) => response,
            // No response acknowledges anything (G8), and the error passes as it is (G14).
            Err(error) => return Self::Head(Err(error), Decision::RollBack, guard),
        };
        let (head, body) = response.into_parts();
        let mut decision = guard.decide(&head);
        let mut guard = guard;
        if let Some(hold) = guard.hold() {
            // A success that will never be complete must not be committed.
            if hold.has_failed() {
                decision = Decision::RollBack;
            }
            if decision == Decision::RollBack {
                // A response whose work is rolled back waits for nothing at its body's end.
                hold.pass();
            } else if let Some(error) = guard.cut_off() {
                // The body cannot be completed without its session, and a server must not send it as complete.
                hold.break_off(error);
            } else {
                guard = match guard.leave_to(&hold, &head) {
                    Ok(()) => return Self::BodyEnd(Response::from_parts(head, body)),
                    // The body will not be read to an end from here, so that the head decides (H24).
                    Err(guard) => guard,
                };
            }
        }
        Self::Head(Ok(Response::from_parts(head, body)), decision, guard)
    }
}
