//! [`ReplayBody`]: a request's body that can be read once more.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::{
    attempt::Attempt,
    replay::{Recording, Shelf},
};
use crate::body::BoxError;

/// A request's body that a [`RetryLayer`](crate::RetryLayer) can send once
/// more: the body that the services inside the layer get.
///
/// It records what is read of it, while it is read. A later attempt gets the
/// same bytes and the same trailers, and what no earlier attempt has read comes
/// from the original body. The chunks may be other ones.
pub struct ReplayBody<B: Body> {
    // Shared by the attempts: tower copies a request before it is served for
    // the first time.
    shelf: Arc<Shelf<B>>,
    attempt: Attempt,
    /// Taken from the shelf with the first read.
    reading: Option<Reading<B>>,
    /// Before that, so that no lock is held while the body is asked.
    hint: SizeHint,
    is_end: bool,
}

struct Reading<B: Body> {
    // Boxed, since a request's body is moved by every layer inside.
    recording: Box<Recording<B>>,
    position: usize,
    has_trailers: bool,
}

impl<B: Body> ReplayBody<B> {
    pub(super) fn new(body: B, max: usize) -> Self {
        let recording = Recording::new(body, max);
        Self {
            // As the original's: hyper's client, to which a proxy hands it on,
            // chooses between a length and chunks by it.
            hint: recording.size_hint(0),
            is_end: recording.is_end(0, false),
            shelf: Shelf::new(recording),
            attempt: Attempt::FIRST,
            reading: None,
        }
    }

    /// Returns the body for the next attempt.
    pub(super) fn next(&self) -> Self {
        Self {
            shelf: self.shelf.clone(),
            attempt: self.attempt.next(),
            reading: None,
            // Not known while an earlier attempt may be reading: `rewind`
            // tells.
            hint: SizeHint::new(),
            is_end: false,
        }
    }

    /// Gets the body ready for its attempt; false if an earlier attempt has not
    /// left all of it.
    pub(super) fn rewind(&mut self) -> bool {
        if !self.shelf.pass_to(self.attempt) {
            return false;
        }
        if let Some(recording) = self.shelf.take(self.attempt) {
            self.hint = recording.size_hint(0);
            self.is_end = recording.is_end(0, false);
            // Back at once: its attempt may never read it, and the next one
            // needs it.
            self.shelf.put_back(recording);
        }
        true
    }
}

impl<B: Body> Body for ReplayBody<B>
where
    B::Error: Into<BoxError>,
{
    // Not the original's type: recorded and new bytes have to be of one.
    type Data = Bytes;
    // The original's, or this body's own.
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        // Movable: the original is pinned in a box of its own.
        let this = self.get_mut();
        if this.reading.is_none() {
            // With the first read, and not with the request: a handler that
            // never reads leaves it on the shelf, where the next attempt finds
            // it.
            let taken = this.shelf.take(this.attempt);
            this.reading = taken.map(Reading::new);
        }
        match &mut this.reading {
            Some(reading) => reading.poll(cx),
            // Never the end: what is read so far must not look complete.
            None => Poll::Ready(Some(Err(BoxError::from(
                "the request was sent again, and its body is another attempt's",
            )))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.reading {
            Some(reading) => reading
                .recording
                .is_end(reading.position, reading.has_trailers),
            None => self.is_end,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.reading {
            Some(reading) => reading.recording.size_hint(reading.position),
            None => self.hint,
        }
    }
}

impl<B: Body> Reading<B> {
    fn new(recording: Box<Recording<B>>) -> Self {
        Self {
            recording,
            position: 0,
            has_trailers: false,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>>
    where
        B::Error: Into<BoxError>,
    {
        let recorded = self.recording.after(self.position);
        if !recorded.is_empty() {
            // A copy: a later attempt may need the recording as well.
            let data = Bytes::copy_from_slice(recorded);
            self.position += data.len();
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if let Some(trailers) = self.recording.trailers()
            && !self.has_trailers
        {
            self.has_trailers = true;
            return Poll::Ready(Some(Ok(Frame::trailers(trailers.clone()))));
        }
        if self.recording.has_ended {
            return Poll::Ready(None);
        }
        let frame = ready!(self.recording.body.as_mut().poll_frame(cx));
        Poll::Ready(match frame {
            Some(Ok(frame)) => {
                let (frame, recorded) = self.recording.record(frame);
                self.position += recorded;
                self.has_trailers |= frame.is_trailers();
                Some(Ok(frame))
            }
            Some(Err(error)) => {
                // The client has gone, or sends nonsense: there is no whole
                // body to be sent once more.
                self.recording.give_up();
                Some(Err(error.into()))
            }
            None => {
                self.recording.has_ended = true;
                None
            }
        })
    }
}

impl<B: Body> Drop for ReplayBody<B> {
    fn drop(&mut self) {
        if let Some(reading) = self.reading.take() {
            // With the body, and not with the response: a task may read on for
            // longer than its attempt, and until then there is no other one.
            self.shelf.put_back(reading.recording);
        }
    }
}

impl<B: Body> fmt::Debug for ReplayBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplayBody")
            // Not what was recorded, which is a client's (G15).
            .field("attempt", &self.attempt)
            .finish_non_exhaustive()
    }
}
