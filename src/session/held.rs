//! Sessions that live until the end of the response's body.

use std::sync::{Arc, Mutex, PoisonError};

use http::{StatusCode, Version, header, response};
use http_body::Body;

use super::{DbSession, Decision, Ended, SessionGuard, slot::Phase};
use crate::{
    body::{BoxError, End, Finish, Hold, SessionBody},
    telemetry,
};

impl<Tag> DbSession<Tag> {
    /// Keeps the session, and its transaction, until the end of `body`, which becomes the response's
    /// body: so that it can read rows as it goes. By default a session ends with the response's head.
    ///
    /// The last part of the body is withheld until COMMIT is acknowledged. If that fails, the body
    /// breaks, and the client sees an incomplete answer: HTTP/1.1 closes the connection, HTTP/2 resets
    /// the stream. If the client leaves, or the body fails, the transaction is rolled back.
    ///
    /// A response whose fate is known at its head is settled there, and its body passed on as it is:
    /// an error, an answer to HEAD, one without a body (204, 304), one whose body was replaced or read
    /// by a middleware, one over HTTP/1.0 without `Content-Length` (its end looks the same, complete or
    /// not).
    ///
    /// The connection is held for as long as the client takes to read. With
    /// [`DbSessionLayer::hold_until_body_end`](crate::DbSessionLayer::hold_until_body_end), all bodies of a
    /// service are held.
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
        let mut state = self.core.lock();
        if state.phase != Phase::Open || state.rules.is_head {
            return SessionBody::plain(body);
        }
        let (body, hold) = SessionBody::new(body);
        let before = state.hold.replace(hold);
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
    pub(crate) fn leave_to(self, hold: &Hold, head: &response::Parts, version: Version) -> Result<(), Self> {
        let length = head.headers.get(header::CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
        let has_body = !head.status.is_informational()
            && !matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let shows_its_end = version >= Version::HTTP_11 || length.is_some();
        if !has_body || !shows_its_end || !hold.is_wanted() {
            hold.pass();
            return Err(self);
        }
        let (mut last, ()) = http::Response::new(()).into_parts();
        last.status = head.status;
        last.headers.clone_from(&head.headers);
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
        Box::pin(async move {
            let Some(guard) = guard.lock().unwrap_or_else(PoisonError::into_inner).take() else { return Ok(()) };
            let decision = match trailers {
                None => Decision::Commit,
                Some(trailers) => {
                    head.headers.extend(trailers);
                    guard.decide(&head)
                }
            };
            let ended = guard.settle(decision).resolve().await;
            match (ended, guard.cut_off()) {
                (Ended::Failed(error), _) | (_, Some(error)) => {
                    telemetry::answered(&error);
                    Err(BoxError::from(error))
                }
                _ => Ok(()),
            }
        })
    })
}
