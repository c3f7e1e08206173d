//! Futures that are polled a given number of times and no further.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    task::Poll,
};

use futures_util::FutureExt;
use tokio::time::timeout;

use super::wait::BOUND;

/// Polls `future` once.
pub async fn once<F: Future + ?Sized>(mut future: Pin<&mut F>) -> Poll<F::Output> {
    poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await
}

/// Polls `future` at most `polls` times; its output if it has ended by then.
pub async fn after_polls<F: Future>(polls: u32, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Polls `future` until it is ready or has been pending `pendings` times; `None` if it was dropped.
///
/// Between two polls it waits to be woken.
pub async fn drop_at<F: Future>(pendings: usize, future: F) -> Option<F::Output> {
    let mut future = Box::pin(future);
    let mut seen = 0;
    let driven = poll_fn(move |cx| match future.poll_unpin(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => {
            seen += 1;
            if seen < pendings {
                Poll::Pending
            } else {
                Poll::Ready(None)
            }
        }
    });
    timeout(BOUND, driven).await.expect("a request hangs")
}

/// A future that its first poll has started and not ended. On a busy machine, the server may have answered before that
/// poll is over: then the next one is taken.
pub async fn under_way<F: Future + Unpin>(mut start: impl FnMut() -> F) -> F {
    loop {
        let mut future = start();
        if once(Pin::new(&mut future)).await.is_pending() {
            return future;
        }
    }
}
