//! Sessions as axum handler arguments (feature `axum`).

use std::convert::Infallible;

use axum_core::{
    extract::{FromRequestParts, OptionalFromRequestParts},
    response::{IntoResponse, Response},
};
use http::{StatusCode, request::Parts};

#[cfg(feature = "retry")]
use crate::Attempt;
use crate::{DbSession, DbTx, Error, SessionPool, telemetry};

/// The rejection of a session argument if no layer provides a session: status
/// 500, with a static text that names the layer. It is also logged.
#[derive(Debug, Clone)]
// A type of its own, because axum asks rejections to be responses, and `Error`
// belongs to no web framework (G14).
pub struct MissingSession(Error);

impl IntoResponse for MissingSession {
    fn into_response(self) -> Response {
        // No layer is there to log it.
        telemetry::response_without_session(&self.0);
        // The text is one of this crate's and about the routes: nothing of the
        // database is in it (G15).
        (StatusCode::INTERNAL_SERVER_ERROR, self.0.to_string()).into_response()
    }
}

impl std::fmt::Display for MissingSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for MissingSession {}

impl<S: Sync, Tag: 'static> FromRequestParts<S> for DbSession<Tag> {
    type Rejection = MissingSession;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, MissingSession> {
        // A handle, not the session: the request's future owns that (G3).
        Self::tagged(&parts.extensions).map_err(MissingSession)
    }
}

// For handlers that are used with and without a layer: axum's `Option` asks for
// this trait.
impl<S: Sync, Tag: 'static> OptionalFromRequestParts<S> for DbSession<Tag> {
    // Never an error: `None` is what was asked for.
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Infallible> {
        Ok(Self::tagged(&parts.extensions).ok())
    }
}

/// Puts the request's session into a transaction.
impl<S: Sync, Tag: 'static> FromRequestParts<S> for DbTx<Tag> {
    type Rejection = MissingSession;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, MissingSession> {
        Self::tagged(&parts.extensions).map_err(MissingSession)
    }
}

impl<S: Sync, Tag: 'static> OptionalFromRequestParts<S> for DbTx<Tag> {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Infallible> {
        Ok(Self::tagged(&parts.extensions).ok())
    }
}

/// The pool of the request's [`DbSession`].
impl<S: Sync> FromRequestParts<S> for SessionPool {
    type Rejection = MissingSession;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, MissingSession> {
        // By way of the session, since a layer's `by` may have picked another
        // pool than its own.
        let session = DbSession::from_extensions(&parts.extensions).map_err(MissingSession)?;
        Ok(session.pool().clone())
    }
}

/// The attempt at the request that the handler serves.
#[cfg(feature = "retry")]
impl<S: Sync> FromRequestParts<S> for Attempt {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self::of(&parts.extensions))
    }
}
