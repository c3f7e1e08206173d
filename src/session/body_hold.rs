//! [`SettleAt`]: whether a response's head settles its session, or the end of its body, for which the session lives on.

use std::{
    future::{Future, ready},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use http::{HeaderValue, Response, StatusCode, header, response};
use http_body::Body;
use tokio::task::JoinHandle;

use super::{
    core::Core,
    guard::{SessionGuard, decide},
    lend,
    positions::store_position,
    settle::{Decision, Ended, Settlement},
};
use crate::{
    body::{BoxError, End, Finish, Hold, SessionBody, Terms},
    telemetry::{self, Usage},
};

/// When a session is settled.
pub(crate) enum SettleAt<B, E> {
    /// Now, as the response's head decides.
    Head(Result<Response<B>, E>, Decision, SessionGuard),
    /// At the end of the body, which owns the guard from here on.
    BodyEnd(Response<B>, Usage),
}

impl<B, E> SettleAt<B, E> {
    /// Decides by the inner service's result. An error rolls back.
    pub(crate) fn of(result: Result<Response<B>, E>, guard: SessionGuard) -> Self {
        let response = match result {
            Ok(response) => response,
            // No response acknowledges anything (G8), and the error passes as
            // it is (G14).
            Err(error) => return Self::Head(Err(error), Decision::RollBack, guard),
        };
        let (mut head, body) = response.into_parts();
        let (rule, hold) = guard.rule_and_hold();
        let mut decision = decide(rule, &head);
        let mut guard = guard;
        if let Some(hold) = hold {
            // A success that will never be complete must not be committed.
            if hold.has_failed() {
                decision = Decision::RollBack;
            }
            if decision == Decision::RollBack {
                // A response whose work is rolled back waits for nothing at its
                // body's end.
                hold.pass();
            } else if let Some(error) = guard.cut_off() {
                // The body cannot be completed without its session, and a
                // server must not send it as complete. Shown by
                // `a_held_body_breaks_when_the_pool_closes`.
                hold.break_off(error);
            } else {
                let usage = guard.usage();
                store_position(&guard.core, &Ended::Pending, &mut head);
                guard = match guard.leave_to(&hold, &head) {
                    Ok(()) => return Self::BodyEnd(Response::from_parts(head, body), usage),
                    // The body will not be read to an end from here, so that
                    // the head decides (H24).
                    Err(guard) => guard,
                };
            }
        }
        Self::Head(Ok(Response::from_parts(head, body)), decision, guard)
    }
}

/// Has `body` hold the session until its end, if the session may still be held.
pub(super) fn hold_body<B: Body>(core: &Core, body: B) -> SessionBody<B> {
    // Not under the lock: the body is asked for its size, and may use the
    // session.
    let (body, hold) = SessionBody::new(body);
    let mut state = core.lock();
    // A response to HEAD has no body that could come to its end.
    let may_hold = state.phase.is_open() && !state.rules.is_head;
    let rejected = if may_hold {
        state.asked_hold.replace(hold)
    } else {
        Some(hold)
    };
    drop(state);
    // The last body asked for is the response's: one that was made before goes
    // nowhere, and decides nothing.
    if let Some(rejected) = rejected {
        rejected.pass();
    }
    body
}

impl SessionGuard {
    /// Leaves the session to the response's body; gives it back where the head
    /// decides.
    fn leave_to(self, hold: &Hold, head: &response::Parts) -> Result<(), Self> {
        let length = head.headers.get(header::CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
        let has_body = !head.status.is_informational()
            && !matches!(
                head.status,
                StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
            );
        // A server sends no such body and polls none, so that its end would
        // never come. Shown by `a_response_without_a_body_settles_at_its_head`.
        if !has_body || !hold.is_wanted() {
            hold.pass();
            return Err(self);
        }
        // A copy of what the rule is about: the head itself goes to the client,
        // long before the trailers are known.
        let (mut last, ()) = Response::new(()).into_parts();
        last.status = head.status;
        last.headers.clone_from(&head.headers);
        // Set before the body decides, so that a cut-off in between finds the
        // body to break off.
        self.core.lock().body_hold = Some(hold.downgrade());
        // Taken along, since the body is polled by the server, behind the
        // future that made the session current
        // (`a_held_body_finds_its_session_and_another_one_does_not`).
        let scope = self.scope();
        // Shared, so that it can be taken back if the body turns out to have
        // ended.
        let core = self.core.clone();
        let terms = Terms {
            // A body whose last byte is known need not be asked for its end
            // (H24).
            content_length: length,
            has_grpc_trailers: length.is_none() && core.lock().rules.has_trailers && is_grpc(head),
        };
        let guard = Arc::new(Mutex::new(Some(self)));
        match hold.engage(finish(guard.clone(), last), terms, Some(scope)) {
            Ok(()) => {
                // A body may have nothing to send for long, and its guard is
                // polled by nothing else meanwhile
                // (`held_bodies_lend_between_their_parts`).
                lend::offer(&core);
                Ok(())
            }
            Err(finish) => {
                // The body came to its end at the last moment.
                let guard = guard.lock().unwrap_or_else(PoisonError::into_inner).take();
                drop(finish);
                guard.map_or(Ok(()), Err)
            }
        }
    }
}

/// Returns whether the response's status is in its trailers. That of gRPC-Web
/// is in its data.
fn is_grpc(head: &response::Parts) -> bool {
    let kind = head.headers.get(header::CONTENT_TYPE);
    let kind = kind.map(HeaderValue::as_bytes).unwrap_or_default();
    let (name, rest) = kind.split_at_checked(16).unwrap_or((kind, b"-"));
    let is_named = name.eq_ignore_ascii_case(b"application/grpc");
    is_named && matches!(rest.first(), None | Some(b'+' | b';' | b' '))
}

/// Settles at the body's end, asking the rule once more if there are trailers.
/// Dropped, it rolls back.
fn finish(guard: Arc<Mutex<Option<SessionGuard>>>, mut head: response::Parts) -> Finish {
    Box::new(move |End { trailers }| {
        let guard = guard.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Taken back by `leave_to`: the head decides.
        let Some(guard) = guard else {
            return Box::pin(ready(Ok(())));
        };
        let decision = match trailers {
            // The head has said so, or the body would not have been left the
            // session.
            None => Decision::Commit,
            Some(trailers) => {
                head.headers.extend(trailers);
                let rule = guard.core.lock().rules.commit_when.clone();
                decide(rule, &head)
            }
        };
        match guard.settle(decision) {
            Settlement::Now(ended) => Box::pin(ready(conclude(&guard, ended))),
            Settlement::Later(settlement) => {
                // The session's own: the body may be polled on another one, or
                // on none.
                let runtime = guard.core.lock().runtime.clone();
                let settling = async move { conclude(&guard, settlement.await) };
                match runtime {
                    // A reader that has stopped reading does not poll: COMMIT
                    // must not wait for it.
                    Some(runtime) => Box::pin(InTask(runtime.spawn(settling))),
                    None => Box::pin(settling),
                }
            }
        }
    })
}

/// Lets the rest of the body out, unless the session failed to commit.
fn conclude(guard: &SessionGuard, ended: Ended) -> Result<(), BoxError> {
    // Also in autocommit: rows that come from a session that was cut off are
    // not all there are.
    match (ended, guard.cut_off()) {
        (Ended::Failed(error), _) | (_, Some(error)) => {
            telemetry::response_for(&error, &guard.core.home().lines);
            Err(BoxError::from(error))
        }
        _ => Ok(()),
    }
}

/// A settlement in a separate task, which is aborted when its future is
/// dropped.
struct InTask(JoinHandle<Result<(), BoxError>>);

impl Future for InTask {
    type Output = Result<(), BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0)
            .poll(cx)
            // The task panicked, or its runtime is gone: the body must not look
            // complete.
            .map(|ended| ended.unwrap_or_else(|error| Err(error.into())))
    }
}

impl Drop for InTask {
    fn drop(&mut self) {
        // The client has left. The guard is dropped with the task; a COMMIT
        // that was sent is seen through (H17).
        self.0.abort();
    }
}
