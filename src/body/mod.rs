//! [`SessionBody`]: a response body that ends when its transaction is committed.
//!
//! A server drops a body without polling it to its end once `Content-Length` is
//! met, and never polls one whose `is_end_stream()` is true
//! (<https://github.com/hyperium/hyper/issues/1521>). So the frame after which
//! nothing more would be asked for is withheld until COMMIT is acknowledged; if
//! that fails, the client never gets it.

use std::{
    fmt, mem,
    pin::Pin,
    sync::{Mutex, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::Buf;
use futures_util::future::BoxFuture;
use http_body::{Body, Frame, SizeHint};
use pin_project::pin_project;

use self::{
    failure::{BodyError, Failure},
    hold::{HoldGuard, Seen},
    withheld::{Read, Withheld},
};

mod failure;
mod hold;
#[cfg(test)]
mod tests;
mod withheld;

use crate::pool::Scope;

// The side of the session and the response future.
pub(crate) use self::hold::{BoxError, End, Finish, Hold, Terms, WeakHold};

/// A response body that is produced while a transaction is open, and ends when
/// it is committed.
///
/// The frames of the inner body pass through as they arrive. Its end does not:
/// the frame that completes the declared length or is known to be the last one,
/// the trailers, and the end itself are withheld until the transaction is
/// settled. If COMMIT fails, the body fails instead of ending, and the client
/// sees an incomplete response. The transaction is rolled back on an error of
/// the inner body, if the body is shorter or longer than its length, and if it
/// is dropped before its end.
///
/// A gRPC response over HTTP/2 (`content-type: application/grpc`) does not
/// break off if COMMIT fails or the session is cut off: it ends with trailers
/// of the layer's own, whose `grpc-status` is
/// [`Error::grpc_code`](crate::Error::grpc_code), in place of the handler's.
///
/// If the outcome is known at the response's head (a response to HEAD, one
/// without a body, one that a middleware has read to its end or replaced), the
/// transaction is settled there and the body is passed through unchanged.
///
/// An HTTP/1.0 response without `Content-Length` ends with its connection,
/// complete or not, and the client cannot tell the two apart. For HTTP/1.0
/// clients (`ab`, nginx towards its upstreams unless `proxy_http_version` says
/// 1.1), give responses that matter a length.
#[pin_project]
#[must_use = "a body that is dropped rolls its transaction back"]
pub struct SessionBody<B: Body> {
    /// Dropped at its end: a stream that it keeps open would refuse COMMIT.
    /// Declared before `state`, so that it is dropped before the transaction is
    /// rolled back.
    #[pin]
    inner: Option<B>,
    /// The number of bytes that the inner body has yielded.
    read: u64,
    /// The length that the inner body declared.
    exact: Option<u64>,
    withheld: Withheld<B::Data>,
    state: BodyState,
}

enum BodyState {
    /// The inner body is read. Its end goes through as well unless the hold is
    /// engaged; without a hold there is nothing to wait for.
    Reading(Option<HoldGuard>),
    /// The inner body has ended, the transaction is being settled. The mutex
    /// makes the future `Sync`, and is never locked.
    Settling {
        future: Mutex<BoxFuture<'static, Result<(), BoxError>>>,
        has_grpc_trailers: bool,
    },
    /// Settled; the withheld frames are passed on, or the trailers that say
    /// that it failed.
    Delivering,
    /// An error was passed on. Nothing follows it, and the body has not ended.
    Failed,
}

impl<B: Body> SessionBody<B> {
    /// Creates a body, and the hold by which the response future makes it wait
    /// for a transaction.
    pub(crate) fn new(inner: B) -> (Self, Hold) {
        let (hold, guard) = Hold::new(inner.is_end_stream());
        (
            Self::with_state(inner, BodyState::Reading(Some(guard))),
            hold,
        )
    }

    /// Creates a body that no transaction waits for.
    ///
    /// For a handler that holds its transaction in one branch only: both
    /// branches then have the same type.
    pub fn plain(inner: B) -> Self {
        Self::with_state(inner, BodyState::Reading(None))
    }

    fn with_state(inner: B, state: BodyState) -> Self {
        // Noted at the beginning: a body's hint shrinks as it is read.
        let exact = inner.size_hint().exact();
        Self {
            inner: Some(inner),
            read: 0,
            exact,
            withheld: Withheld::default(),
            state,
        }
    }
}

impl<B> Body for SessionBody<B>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        loop {
            let this = self.as_mut().project();
            match this.state {
                // In a loop: what is withheld here leads to COMMIT in the same
                // poll, since nothing would wake the reader for it.
                BodyState::Reading(_) => match ready!(self.as_mut().poll_inner(cx)) {
                    Read::Through(item) => {
                        return Poll::Ready(item.map(|frame| frame.map_err(Into::into)));
                    }
                    Read::Withheld => {}
                    Read::Ended => {
                        // Cut off meanwhile: what was withheld must not
                        // complete the body.
                        if let Err(failure) = self.as_mut().settle() {
                            return Poll::Ready(Some(self.fail(failure)));
                        }
                    }
                    Read::Failed(failure) => return Poll::Ready(Some(self.fail(failure))),
                },
                BodyState::Settling {
                    future,
                    has_grpc_trailers,
                } => {
                    // Never locked, so never poisoned.
                    let future = future.get_mut().unwrap_or_else(PoisonError::into_inner);
                    match ready!(future.as_mut().poll(cx)) {
                        // `Ok` is also a rollback that the trailers ask for:
                        // they go out, and tell the client so.
                        Ok(()) => *this.state = BodyState::Delivering,
                        Err(error) => {
                            let error = BodyError::NotCommitted(error);
                            let failure = Failure::new(error, *has_grpc_trailers);
                            return Poll::Ready(Some(self.fail(failure)));
                        }
                    }
                }
                // Data before trailers; then `None` is the end.
                BodyState::Delivering => return Poll::Ready(this.withheld.take().map(Ok)),
                BodyState::Failed => return Poll::Ready(None),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.state {
            BodyState::Reading(guard) => {
                // `true` would keep the server from polling for the end, which
                // is where COMMIT is sent (H24).
                !is_open(guard) && self.inner.as_ref().is_none_or(Body::is_end_stream)
            }
            BodyState::Delivering => self.withheld.is_empty(),
            // A body that has failed has not ended: the server would finish the
            // response as if it were complete.
            BodyState::Settling { .. } | BodyState::Failed => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        let inner = match &self.state {
            BodyState::Reading(guard) => {
                let hint = self
                    .inner
                    .as_ref()
                    .map_or_else(SizeHint::default, Body::size_hint);
                if !is_open(guard) {
                    // An exact one stays exact, zero as well: hyper makes
                    // `Content-Length` of it.
                    return hint;
                }
                hint
            }
            // The inner body has ended: what is withheld is added below.
            BodyState::Settling { .. } => SizeHint::with_exact(0),
            BodyState::Delivering => return SizeHint::with_exact(self.withheld.len()),
            BodyState::Failed => return SizeHint::default(),
        };
        let hint = self.withheld.added_to(&inner);
        // A server does not poll for the end of what is exactly empty.
        if hint.exact() == Some(0) {
            SizeHint::default()
        } else {
            hint
        }
    }
}

impl<B> SessionBody<B>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    fn poll_inner(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Read<B::Data, B::Error>> {
        let this = self.project();
        let (BodyState::Reading(guard), Some(mut inner)) = (this.state, this.inner.as_pin_mut())
        else {
            return Poll::Ready(Read::Through(None));
        };
        // With a hold, its own waker goes to the inner body: only so is it
        // known for how long the reader leaves news unread.
        let item = match guard.as_ref().map(|guard| guard.ask(cx.waker())) {
            None => ready!(inner.as_mut().poll_frame(cx)),
            Some(Ok((waker, scope))) => {
                // Not longer than this poll.
                let _scope = scope.map(Scope::enter);
                ready!(inner.as_mut().poll_frame(&mut Context::from_waker(&waker)))
            }
            Some(Err(cut_off)) => return Poll::Ready(Read::Failed(cut_off.into())),
        };
        let ended = match &item {
            None => true,
            Some(Ok(frame)) => {
                // Also before the head has passed the layer: what a middleware
                // below it has read counts.
                let len = frame.data_ref().map_or(0, |data| data.remaining() as u64);
                *this.read = this.read.saturating_add(len);
                // Nothing would be asked for behind it, so that it has to be
                // the frame that waits.
                frame.is_trailers() || inner.is_end_stream()
            }
            Some(Err(_)) => false,
        };
        let (read, exact) = (*this.read, *this.exact);
        // hyper asks for nothing behind the length (H24): whatever the body
        // says, this is its end.
        let seen = Seen::of(&item, ended || exact == Some(read));
        // After the poll and not before it: the head may have passed the layer
        // in between.
        let terms = guard.as_ref().map(|guard| guard.report(read, seen));
        Poll::Ready(match terms.transpose().map(Option::flatten) {
            Err(cut_off) => Read::Failed(cut_off.into()),
            Ok(None) => Read::Through(item),
            Ok(Some(terms)) => {
                // The header first: where there is one, hyper counts by it.
                let length = terms.content_length.or(exact);
                Read::withholding(this.withheld, item, read, length, ended)
            }
        })
    }

    /// The inner body is complete: settles the transaction if the body decides.
    fn settle(self: Pin<&mut Self>) -> Result<(), Failure> {
        let mut this = self.project();
        // Before COMMIT is sent: a row stream in it would keep the connection
        // (H10).
        this.inner.set(None);
        // Failed meanwhile, in case `finish` panics: the body must not end
        // then.
        let BodyState::Reading(Some(guard)) = mem::replace(this.state, BodyState::Failed) else {
            return Ok(());
        };
        if let Some((finish, terms)) = guard.finish()? {
            // `grpc-status` in them may say that the call has failed: then
            // `finish` rolls back behind a 200.
            let trailers = this.withheld.trailers.clone();
            *this.state = BodyState::Settling {
                future: Mutex::new(finish(End { trailers })),
                has_grpc_trailers: terms.has_grpc_trailers,
            };
        }
        Ok(())
    }

    /// The end will not be passed on: returns what comes in its place. If
    /// `finish` was not called yet, it is dropped, which rolls back.
    fn fail(self: Pin<&mut Self>, failure: Failure) -> Result<Frame<B::Data>, BoxError> {
        let mut this = self.project();
        // Before `state`, with which a rollback begins: a row stream in the
        // body would keep the connection from it (H10).
        this.inner.set(None);
        // What was withheld would complete the body.
        *this.withheld = Withheld::default();
        // Behind fewer bytes than were declared, trailers would be no proper
        // end.
        if let Some(trailers) = failure.trailers.filter(|_| this.exact.is_none()) {
            *this.state = BodyState::Delivering;
            return Ok(Frame::trailers(trailers));
        }
        *this.state = BodyState::Failed;
        // Fails instead of ending: an incomplete body is all that can still be
        // said (G7).
        Err(failure.error)
    }
}

// For a layer's own responses, which have the type of the handler's: this one
// for the default, the next for `problem_json`.
impl<B: Body + Default> Default for SessionBody<B> {
    /// A [`plain`](Self::plain) one.
    fn default() -> Self {
        Self::plain(B::default())
    }
}

impl<B: Body + From<String>> From<String> for SessionBody<B> {
    /// A [`plain`](Self::plain) one.
    fn from(text: String) -> Self {
        Self::plain(B::from(text))
    }
}

impl<B: Body> fmt::Debug for SessionBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            BodyState::Reading(_) => "reading",
            BodyState::Settling { .. } => "settling",
            BodyState::Delivering => "delivering",
            BodyState::Failed => "failed",
        };
        f.debug_struct("SessionBody")
            .field("state", &state)
            .field("read", &self.read)
            .finish_non_exhaustive()
    }
}

/// Returns whether the body may still have to wait for its end.
fn is_open(guard: &Option<HoldGuard>) -> bool {
    guard.as_ref().is_some_and(HoldGuard::is_open)
}
