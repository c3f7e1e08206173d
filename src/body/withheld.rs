//! [`Withheld`]: the last frames of a body, until its transaction is settled, and [`Read`]: which frames are not among them.

use std::cmp::Ordering;

use bytes::Buf;
use http::HeaderMap;
use http_body::{Frame, SizeHint};

use super::{
    failure::{BodyError, Failure},
    hold::BoxError,
};

pub(super) struct Withheld<D> {
    data: Option<D>,
    pub(super) trailers: Option<HeaderMap>,
}

impl<D: Buf> Withheld<D> {
    /// Keeps the frame if it completes the body, and returns it otherwise.
    /// `length` is what the response declares.
    ///
    /// # Errors
    ///
    /// If the body contradicts its length. A server sends no more than the
    /// length, and takes less for an error of its own: the client would get
    /// something else than what was committed.
    pub(super) fn withhold(
        &mut self,
        frame: Option<Frame<D>>,
        read: u64,
        length: Option<u64>,
        ended: bool,
    ) -> Result<Option<Frame<D>>, BodyError> {
        match length.map(|length| read.cmp(&length)) {
            // Before the extra bytes reach hyper, which cuts them off over
            // HTTP/1: the client would get a complete response, and not the one
            // that was committed.
            Some(Ordering::Greater) => Err(BodyError::TooLong),
            // Only at its end: before that, more may come.
            Some(Ordering::Less) if ended => Err(BodyError::TooShort),
            // Without a declared length too, by the inner body's word alone
            // (H24).
            order if ended || order == Some(Ordering::Equal) => {
                Ok(frame.and_then(|frame| self.put(frame)))
            }
            _ => Ok(frame),
        }
    }

    /// Keeps the frame, or returns it if it is neither data nor trailers.
    fn put(&mut self, frame: Frame<D>) -> Option<Frame<D>> {
        match frame.into_data() {
            // Only empty frames follow the one that completed the length.
            Ok(data) => {
                self.data.get_or_insert(data);
            }
            Err(frame) => match frame.into_trailers() {
                Ok(trailers) => self.trailers = Some(trailers),
                // `http_body` may get further kinds of frames. One that is
                // neither data nor trailers completes no body.
                Err(frame) => return Some(frame),
            },
        }
        None
    }

    pub(super) fn take(&mut self) -> Option<Frame<D>> {
        self.data
            .take()
            .map(Frame::data)
            .or_else(|| self.trailers.take().map(Frame::trailers))
    }

    pub(super) fn len(&self) -> u64 {
        self.data.as_ref().map_or(0, |data| data.remaining() as u64)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.data.is_none() && self.trailers.is_none()
    }

    pub(super) fn added_to(&self, hint: &SizeHint) -> SizeHint {
        let mut sum = SizeHint::default();
        if let Some(upper) = hint.upper() {
            // Before the lower bound: `set_lower` panics above it
            // (<https://docs.rs/http-body/latest/http_body/struct.SizeHint.html#method.set_lower>).
            sum.set_upper(upper.saturating_add(self.len()));
        }
        // These bytes have left the inner body, and are still to come for the
        // reader.
        sum.set_lower(hint.lower().saturating_add(self.len()));
        sum
    }
}

impl<D> Default for Withheld<D> {
    fn default() -> Self {
        Self {
            data: None,
            trailers: None,
        }
    }
}

/// The result of polling the inner body.
pub(super) enum Read<D, E> {
    /// This goes to the reader.
    Through(Option<Result<Frame<D>, E>>),
    /// The frame waits for the transaction; there is more to read.
    Withheld,
    /// The body has ended.
    Ended,
    /// The body must not be completed.
    Failed(Failure),
}

impl<D: Buf, E: Into<BoxError>> Read<D, E> {
    /// The inner body's item, for a body that decides.
    pub(super) fn withholding(
        withheld: &mut Withheld<D>,
        item: Option<Result<Frame<D>, E>>,
        read: u64,
        length: Option<u64>,
        ended: bool,
    ) -> Self {
        let frame = match item.transpose() {
            Ok(frame) => frame,
            // As without the layer: the inner body's own error goes to the
            // server.
            Err(error) => return Self::Failed(Failure::breaking(error)),
        };
        match withheld.withhold(frame, read, length, ended) {
            Ok(Some(frame)) => Self::Through(Some(Ok(frame))),
            Ok(None) if ended => Self::Ended,
            Ok(None) => Self::Withheld,
            Err(error) => Self::Failed(Failure::breaking(error)),
        }
    }
}
