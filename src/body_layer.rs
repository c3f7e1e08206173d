//! [`HoldLayer`]: holds the body of every response.

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
use tower::Service;
use tower_layer::Layer;

use crate::{DbSession, Main, SessionBody};

/// Keeps the session of every request until the end of its response's body, as
/// [`DbSession::hold_until_body_end`] does for one. Put it inside a
/// [`DbSessionLayer`](crate::DbSessionLayer), around a whole service or a single route;
/// [`DbSessionLayer::hold_until_body_end`](crate::DbSessionLayer::hold_until_body_end) adds it.
///
/// A request without a session is passed through unchanged.
#[must_use = "a layer does nothing until it wraps a service"]
pub struct HoldLayer<Tag = Main>(PhantomData<fn() -> Tag>);

impl HoldLayer {
    /// Creates a layer for a service with a single database.
    pub fn new() -> Self {
        Self::tagged()
    }
}

impl<Tag> HoldLayer<Tag> {
    /// Creates a layer for the sessions of a tag, for services with several databases.
    pub fn tagged() -> Self {
        Self(PhantomData)
    }
}

impl<S, Tag> Layer<S> for HoldLayer<Tag> {
    type Service = HoldService<S, Tag>;

    fn layer(&self, inner: S) -> Self::Service {
        HoldService {
            inner,
            tag: PhantomData,
        }
    }
}

/// The service that a [`HoldLayer`] makes.
pub struct HoldService<S, Tag = Main> {
    inner: S,
    tag: PhantomData<fn() -> Tag>,
}

impl<S, Tag, ReqBody, ResBody> Service<Request<ReqBody>> for HoldService<S, Tag>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    ResBody: Body,
    Tag: 'static,
{
    type Response = Response<SessionBody<ResBody>>;
    type Error = S::Error;
    type Future = HoldFuture<S::Future, Tag>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let session = DbSession::tagged(request.extensions()).ok();
        HoldFuture {
            future: self.inner.call(request),
            session,
        }
    }
}

/// The future of a [`HoldService`].
#[pin_project]
#[must_use = "futures do nothing unless polled"]
pub struct HoldFuture<F, Tag = Main> {
    #[pin]
    future: F,
    session: Option<DbSession<Tag>>,
}

impl<F, Tag, B, E> Future for HoldFuture<F, Tag>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body,
{
    type Output = Result<Response<SessionBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let response = ready!(this.future.poll(cx))?;
        Poll::Ready(Ok(response.map(|body| match this.session {
            Some(session) => session.hold_until_body_end(body),
            None => SessionBody::plain(body),
        })))
    }
}

impl Default for HoldLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<Tag> Clone for HoldLayer<Tag> {
    fn clone(&self) -> Self {
        Self(PhantomData)
    }
}

impl<S: Clone, Tag> Clone for HoldService<S, Tag> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            tag: PhantomData,
        }
    }
}

impl<Tag> fmt::Debug for HoldLayer<Tag> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HoldLayer").finish()
    }
}

impl<S: fmt::Debug, Tag> fmt::Debug for HoldService<S, Tag> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HoldService")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

impl<F, Tag> fmt::Debug for HoldFuture<F, Tag> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HoldFuture").finish_non_exhaustive()
    }
}
