//! [`RetryFuture`]: a request's attempts, one after the other.

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
use tower_service::Service;

use super::{attempt::Attempt, body::ReplayBody, service::Replays};

/// The future of a [`RetryService`](crate::RetryService).
///
/// Dropped, it ends the attempt that runs as without the layer, and no other
/// begins.
#[pin_project]
#[must_use = "futures do nothing unless polled"]
pub struct RetryFuture<S, ReqBody, ResBody>
where
    S: Service<Request<ReplayBody<ReqBody>>, Response = Response<ResBody>>,
    ReqBody: Body,
{
    #[pin]
    // tower's own, wrapped so that none of its types is in the public
    // interface.
    attempts: tower::retry::future::ResponseFuture<Replays, S, Request<ReplayBody<ReqBody>>>,
    // A function's result, so that the future is `Send` whatever the body is.
    body: PhantomData<fn() -> ResBody>,
}

impl<S, ReqBody, ResBody> RetryFuture<S, ReqBody, ResBody>
where
    S: Service<Request<ReplayBody<ReqBody>>, Response = Response<ResBody>>,
    ReqBody: Body,
{
    pub(super) fn new(
        attempts: tower::retry::future::ResponseFuture<Replays, S, Request<ReplayBody<ReqBody>>>,
    ) -> Self {
        let body = PhantomData;
        Self { attempts, body }
    }
}

impl<S, ReqBody, ResBody> Future for RetryFuture<S, ReqBody, ResBody>
where
    S: Service<Request<ReplayBody<ReqBody>>, Response = Response<ResBody>>,
    ReqBody: Body,
{
    type Output = Result<Response<ResBody>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut result = ready!(self.project().attempts.poll(cx));
        if let Ok(response) = &mut result {
            // A request that could be served once only passes no policy.
            let attempt = Attempt::of(response.extensions());
            response.extensions_mut().insert(attempt);
        }
        Poll::Ready(result)
    }
}

impl<S, ReqBody, ResBody> fmt::Debug for RetryFuture<S, ReqBody, ResBody>
where
    S: Service<Request<ReplayBody<ReqBody>>, Response = Response<ResBody>>,
    ReqBody: Body,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryFuture").finish_non_exhaustive()
    }
}
