//! [`Read`]: what a poll of the inner body has brought.

use bytes::Buf;
use http_body::Frame;

use super::{failure::Failure, hold::BoxError, withheld::Withheld};

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
