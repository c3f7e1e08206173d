//! [`TransactionService`]: applies its layer's settings to the session, then serves.

use std::{
    fmt,
    task::{Context, Poll},
};

use http::{Request, Response, request::Parts};
use tower_service::Service;

use super::{TransactionLayer, future::TransactionFuture, layer::RoutePolicy};
use crate::{
    DbSession, DefaultDatabase, Error,
    error::Kind,
    response::{DefaultResponseForError, ResponseForError},
    telemetry,
};

/// The service that a [`TransactionLayer`] makes.
pub struct TransactionService<S, Tag = DefaultDatabase, Respond = DefaultResponseForError> {
    inner: S,
    layer: TransactionLayer<Tag, Respond>,
}

impl<S, Tag, Respond> TransactionService<S, Tag, Respond> {
    pub(super) fn new(inner: S, layer: TransactionLayer<Tag, Respond>) -> Self {
        Self { inner, layer }
    }

    /// Returns a reference to the inner service.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// Returns a mutable reference to the inner service.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// Returns the inner service.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S, Tag, Respond, ReqBody, ResBody> Service<Request<ReqBody>>
    for TransactionService<S, Tag, Respond>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    Respond: ResponseForError<ResBody>,
    Tag: 'static,
{
    // The service's own: a refusal has its body type, so that the layer fits
    // anywhere (G14).
    type Response = S::Response;
    type Error = S::Error;
    // Named and not boxed: a route that only sets options costs no allocation.
    type Future = TransactionFuture<S::Future, ResBody>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        // The inner service's alone: this layer waits for nothing (G14).
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        // Taken apart, because the response to a refusal is made from the head,
        // and the inner service gets all of it.
        let (parts, body) = request.into_parts();
        // Before the inner service is called, which may do its work in `call`.
        match apply::<Tag>(&self.layer.policy, &parts) {
            Ok(()) => TransactionFuture::serving(self.inner.call(Request::from_parts(parts, body))),
            Err(error) => {
                // Logged here: this response passes no `Responder`.
                telemetry::response_without_session(&error);
                TransactionFuture::refused(self.layer.respond.response_for_error(&error, &parts))
            }
        }
    }
}

/// Applies the policy to the request's session.
fn apply<Tag: 'static>(policy: &RoutePolicy, parts: &Parts) -> Result<(), Error> {
    // By the tag: a route must not set up another database's session.
    let session = parts.extensions.get::<DbSession<Tag>>();
    // A request that is retried or kept carries the handle of a session that is
    // over.
    let session = session.filter(|session| !session.has_ended());
    // An error, not a request without its transaction: half of its writes could
    // stand alone (G7).
    session.ok_or(Kind::NoSession)?.order(policy.order(parts))
}

impl<S: Clone, Tag, Respond: Clone> Clone for TransactionService<S, Tag, Respond> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            layer: self.layer.clone(),
        }
    }
}

impl<S: fmt::Debug, Tag, Respond> fmt::Debug for TransactionService<S, Tag, Respond> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransactionService")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}
