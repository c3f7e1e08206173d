//! [`Withheld`]: the end of a body, until its transaction is settled.

use bytes::Buf;
use http::HeaderMap;
use http_body::{Frame, SizeHint};

pub(super) struct Withheld<D> {
    data: Option<D>,
    pub(super) trailers: Option<HeaderMap>,
}

impl<D: Buf> Withheld<D> {
    /// Gives a frame back that is neither data nor trailers.
    pub(super) fn put(&mut self, frame: Frame<D>) -> Option<Frame<D>> {
        match frame.into_data() {
            // After the frame that completed the length come only empty ones.
            Ok(data) => {
                self.data.get_or_insert(data);
            }
            Err(frame) => match frame.into_trailers() {
                Ok(trailers) => self.trailers = Some(trailers),
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
            sum.set_upper(upper.saturating_add(self.len()));
        }
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
