//! [`TransactionFuture`]: a request that is served in its route's transaction, or refused.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use http::Response;
use pin_project::pin_project;

/// The future of a [`TransactionService`](crate::TransactionService).
#[pin_project]
#[must_use = "futures do nothing unless polled"]
pub struct TransactionFuture<F, B> {
    #[pin]
    state: State<F, B>,
}

#[pin_project(project = StateProj)]
enum State<F, B> {
    /// The inner service is at work.
    Serving(#[pin] F),
    /// The session cannot follow the layer's settings; `None` once that
    /// response was returned.
    Refused(Option<Response<B>>),
}

impl<F, B> TransactionFuture<F, B> {
    pub(super) fn serving(future: F) -> Self {
        let state = State::Serving(future);
        Self { state }
    }

    pub(super) fn refused(response: Response<B>) -> Self {
        let state = State::Refused(Some(response));
        Self { state }
    }
}

impl<F, B, E> Future for TransactionFuture<F, B>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<B>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProj::Serving(future) => future.poll(cx),
            // Made in `call`, because the future keeps no head to make it from.
            // Taken and not cloned: a body cannot be.
            StateProj::Refused(response) => match response.take() {
                Some(response) => Poll::Ready(Ok(response)),
                None => panic!("TransactionFuture polled after completion"),
            },
        }
    }
}

impl<F, B> fmt::Debug for TransactionFuture<F, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransactionFuture").finish_non_exhaustive()
    }
}
