//! [`SessionBodyLayer`]: holds the body of every response.

use std::{
    fmt,
    future::Future,
    marker::PhantomData,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{Request, Response};
use http_body::Body;
use pin_project::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::{DbSession, DefaultDatabase, SessionBody};

/// Keeps the session of every request until the end of its response's body, as
/// [`DbSession::hold_until_body_end`] does for one. Put it inside a
/// [`DbSessionLayer`](crate::DbSessionLayer), around a whole service or a
/// single route;
/// [`DbSessionLayer::hold_until_body_end`](crate::DbSessionLayer::hold_until_body_end)
/// adds it.
///
/// A request without a session is passed through unchanged.
#[must_use = "a layer does nothing until it wraps a service"]
// A function's result, so that the layer is `Send` and `Sync` whatever the tag
// is.
pub struct SessionBodyLayer<Tag = DefaultDatabase>(PhantomData<fn() -> Tag>);

impl SessionBodyLayer {
    /// Creates a layer for a service with a single database.
    pub fn new() -> Self {
        Self::tagged()
    }
}

impl<Tag> SessionBodyLayer<Tag> {
    /// Creates a layer for the sessions of a tag, for services with several
    /// databases.
    pub fn tagged() -> Self {
        Self(PhantomData)
    }
}

impl<S, Tag> Layer<S> for SessionBodyLayer<Tag> {
    type Service = SessionBodyService<S, Tag>;

    fn layer(&self, inner: S) -> Self::Service {
        SessionBodyService {
            inner,
            tag: PhantomData,
        }
    }
}

/// The service that a [`SessionBodyLayer`] makes.
pub struct SessionBodyService<S, Tag = DefaultDatabase> {
    inner: S,
    tag: PhantomData<fn() -> Tag>,
}

impl<S, Tag> SessionBodyService<S, Tag> {
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

impl<S, Tag, ReqBody, ResBody> Service<Request<ReqBody>> for SessionBodyService<S, Tag>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    ResBody: Body,
    Tag: 'static,
{
    // Of every response, held or not: a service has one type of body.
    type Response = Response<SessionBody<ResBody>>;
    type Error = S::Error;
    type Future = SessionBodyFuture<S::Future, Tag>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        // Taken out here, because the inner service keeps the request. None is
        // no error: without a session there is nothing to hold, and a route may
        // stand outside the session's layer.
        let session = DbSession::tagged(request.extensions()).ok();
        SessionBodyFuture {
            future: self.inner.call(request),
            session,
        }
    }
}

/// The future of a [`SessionBodyService`].
#[pin_project]
#[must_use = "futures do nothing unless polled"]
pub struct SessionBodyFuture<F, Tag = DefaultDatabase> {
    #[pin]
    future: F,
    session: Option<DbSession<Tag>>,
}

impl<F, Tag, B, E> Future for SessionBodyFuture<F, Tag>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body,
{
    type Output = Result<Response<SessionBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        // An error of the inner service has no body, and passes untouched
        // (G14).
        let response = ready!(this.future.poll(cx))?;
        Poll::Ready(Ok(response.map(|body| match this.session {
            // Each of them: whether head or body decides is found further out,
            // by the session's layer.
            Some(session) => session.hold_until_body_end(body),
            None => SessionBody::plain(body),
        })))
    }
}

impl Default for SessionBodyLayer {
    fn default() -> Self {
        Self::new()
    }
}

// By hand, because a derived one would ask the tag to be `Clone`.
impl<Tag> Clone for SessionBodyLayer<Tag> {
    fn clone(&self) -> Self {
        Self(PhantomData)
    }
}

impl<S: Clone, Tag> Clone for SessionBodyService<S, Tag> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            tag: PhantomData,
        }
    }
}

impl<Tag> fmt::Debug for SessionBodyLayer<Tag> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionBodyLayer").finish()
    }
}

impl<S: fmt::Debug, Tag> fmt::Debug for SessionBodyService<S, Tag> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionBodyService")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

impl<F, Tag> fmt::Debug for SessionBodyFuture<F, Tag> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionBodyFuture").finish_non_exhaustive()
    }
}
