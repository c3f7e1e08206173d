//! Sessions that live until the end of the response's body.

use std::{
    future::{Future, ready},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use http::{StatusCode, header, response};
use http_body::Body;
use tokio::task::JoinHandle;

use super::{DbSession, Decision, Ended, SessionGuard, Settlement, slot::Phase};
use crate::{
    body::{BoxError, End, Finish, Hold, SessionBody},
    telemetry,
};

impl<Tag> DbSession<Tag> {
    /// Keeps the session, and its transaction, open until the end of `body`, which becomes the
    /// response's body, so that the body can stream rows. By default a session ends with the
    /// response's head.
    ///
    /// The last part of the body is withheld until COMMIT is acknowledged. If that fails, the body is
    /// aborted, and the client sees an incomplete response: HTTP/1.1 closes the connection, HTTP/2
    /// resets the stream. If the client disconnects, or the body fails, the transaction is rolled
    /// back.
    ///
    /// A response whose outcome is known at its head is settled there, and its body is passed through
    /// unchanged: an error, a response to HEAD, one without a body (204, 304), one whose body was
    /// replaced or read by a middleware.
    ///
    /// The connection is held for as long as the client takes to read; a client that stops reading loses it after
    /// the [`body_timeout`](crate::SessionPoolBuilder::body_timeout) (30 s). A session that is cut off (by that,
    /// by [`hold_timeout`](crate::SessionPoolBuilder::hold_timeout) or [`close`](crate::SessionPool::close)) aborts its
    /// body at once, even if the body has nothing to send. With
    /// [`DbSessionLayer::hold_until_body_end`](crate::DbSessionLayer::hold_until_body_end), all bodies of a
    /// service are held.
    ///
    /// `body` has to become the response's body. The layer cannot see a body that is used elsewhere: if it is
    /// dropped after the response's head has been sent, the transaction is rolled back although the response was
    /// a success.
    ///
    /// Over HTTP/1.0, a response without `Content-Length` ends with its connection, complete or not, and
    /// the client cannot tell an aborted body from a complete one.
    ///
    /// ```
    /// # #[cfg(all(feature = "axum", feature = "stream"))] {
    /// use axum::{body::Body, response::Response};
    /// use futures_util::StreamExt;
    /// use sea_orm::{DbErr, EntityTrait, QueryTrait, Statement};
    /// use tower_sea_orm::DbTx;
    ///
    /// async fn export(tx: DbTx) -> Result<Response, String> {
    ///     let sql = "SELECT name FROM item ORDER BY id";
    ///     let rows = tx.rows(Statement::from_string(tx.backend(), sql)).await.map_err(|_| "no rows")?;
    ///     let lines = rows.map(|row| Ok::<_, DbErr>(row?.try_get_by_index::<String>(0)? + "\n"));
    ///     Ok(Response::new(Body::new(tx.hold_until_body_end(Body::from_stream(lines)))))
    /// }
    /// # let _ = axum::routing::get::<_, _, ()>(export); }
    /// ```
    pub fn hold_until_body_end<B: Body>(&self, body: B) -> SessionBody<B> {
        // Not under the lock: the body is asked for its size, and may use the session.
        let (body, hold) = SessionBody::new(body);
        let mut state = self.core.lock();
        let is_open = state.phase == Phase::Open && !state.rules.is_head;
        let before = if is_open {
            state.hold.replace(hold)
        } else {
            Some(hold)
        };
        drop(state);
        if let Some(before) = before {
            before.pass();
        }
        body
    }
}

impl SessionGuard {
    /// The body that wants to decide, if there is one.
    pub(crate) fn hold(&self) -> Option<Hold> {
        self.core().lock().hold.take()
    }

    /// Leaves the session to the response's body; gives it back where the head decides.
    pub(crate) fn leave_to(self, hold: &Hold, head: &response::Parts) -> Result<(), Self> {
        let length = head.headers.get(header::CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
        let has_body = !head.status.is_informational()
            && !matches!(
                head.status,
                StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
            );
        if !has_body || !hold.is_wanted() {
            hold.pass();
            return Err(self);
        }
        let (mut last, ()) = http::Response::new(()).into_parts();
        last.status = head.status;
        last.headers.clone_from(&head.headers);
        // Known before the body decides, so that no cut comes in between.
        self.core().lock().held = Some(hold.downgrade());
        let guard = Arc::new(Mutex::new(Some(self)));
        match hold.engage(finish(guard.clone(), last), length) {
            Ok(()) => Ok(()),
            Err(finish) => {
                // The body came to its end at the last moment.
                let guard = guard.lock().unwrap_or_else(PoisonError::into_inner).take();
                drop(finish);
                guard.map_or(Ok(()), Err)
            }
        }
    }
}

/// Settles at the body's end, asking the rule once more if there are trailers. Dropped, it rolls back.
fn finish(guard: Arc<Mutex<Option<SessionGuard>>>, mut head: response::Parts) -> Finish {
    Box::new(move |End { trailers }| {
        let guard = guard.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(guard) = guard else {
            return Box::pin(ready(Ok(())));
        };
        let decision = match trailers {
            None => Decision::Commit,
            Some(trailers) => {
                head.headers.extend(trailers);
                guard.decide(&head)
            }
        };
        match guard.settle(decision) {
            Settlement::Now(ended) => Box::pin(ready(conclude(&guard, ended))),
            Settlement::Later(settlement) => {
                let runtime = guard.core().lock().runtime.clone();
                let settling = async move { conclude(&guard, settlement.await) };
                match runtime {
                    // A reader that has stopped reading does not poll: COMMIT must not wait for it.
                    Some(runtime) => Box::pin(InTask(runtime.spawn(settling))),
                    None => Box::pin(settling),
                }
            }
        }
    })
}

/// Whether the rest of the body may go out.
fn conclude(guard: &SessionGuard, ended: Ended) -> Result<(), BoxError> {
    match (ended, guard.cut_off()) {
        (Ended::Failed(error), _) | (_, Some(error)) => {
            telemetry::response_for(&error);
            Err(BoxError::from(error))
        }
        _ => Ok(()),
    }
}

/// A settlement in a task of its own, which ends when nobody waits for it any more.
struct InTask(JoinHandle<Result<(), BoxError>>);

impl Future for InTask {
    type Output = Result<(), BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0)
            .poll(cx)
            .map(|ended| ended.unwrap_or_else(|error| Err(error.into())))
    }
}

impl Drop for InTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}
