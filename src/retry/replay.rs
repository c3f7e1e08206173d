//! [`Recording`]: what is known of a request's body, for the next attempt.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

use super::attempt::Attempt;

/// The place of a request's body between its attempts: one of them has it, or
/// it is here.
// Locked to take and to put, never while the body is polled: its code is a
// user's.
pub(super) struct Shelf<B>(Mutex<Place<B>>);

struct Place<B> {
    recording: Option<Box<Recording<B>>>,
    /// The only attempt that may take it.
    attempt: Attempt,
}

/// A body, and the part of it that was read.
pub(super) struct Recording<B> {
    /// The rest of it.
    // Pinned for good, because it moves from attempt to attempt and may not be
    // `Unpin`.
    pub(super) body: Pin<Box<B>>,
    /// One buffer, and no list of chunks: chunks of one byte would keep a
    /// buffer of the connection's each.
    read: Vec<u8>,
    trailers: Option<HeaderMap>,
    // In bytes of data: trailers come once, and are as long as the server
    // allows.
    max: usize,
    /// The body has come to its end.
    pub(super) has_ended: bool,
    /// It was longer than `max`, or broke.
    is_incomplete: bool,
}

impl<B: Body> Recording<B> {
    pub(super) fn new(body: B, max: usize) -> Self {
        // Known beforehand, as by `Content-Length`: nothing is recorded in
        // vain.
        let is_incomplete = body.size_hint().lower() > max as u64;
        Self {
            body: Box::pin(body),
            read: Vec::new(),
            trailers: None,
            max,
            has_ended: false,
            is_incomplete,
        }
    }

    /// Returns what was recorded after the first `position` bytes.
    pub(super) fn after(&self, position: usize) -> &[u8] {
        // Nothing, once `give_up` has dropped it all.
        self.read.get(position..).unwrap_or_default()
    }

    pub(super) fn trailers(&self) -> Option<&HeaderMap> {
        self.trailers.as_ref()
    }

    /// Records a frame, and returns it with how many bytes of it were recorded.
    pub(super) fn record(&mut self, frame: Frame<B::Data>) -> (Frame<Bytes>, usize) {
        // Without a copy, where it is one buffer already.
        let frame = frame.map_data(|mut data| data.copy_to_bytes(data.remaining()));
        let mut recorded = 0;
        if let Some(data) = frame.data_ref()
            && !self.is_incomplete
        {
            // The frame goes on to the handler all the same: such a request is
            // served as without the layer. Never below zero, since nothing is
            // recorded beyond `max`.
            if data.len() > self.max - self.read.len() {
                self.give_up();
            } else {
                self.read.extend_from_slice(data);
                recorded = data.len();
            }
        } else if let Some(trailers) = frame.trailers_ref() {
            self.trailers = Some(trailers.clone());
        }
        (frame, recorded)
    }

    /// The body cannot be read a second time.
    pub(super) fn give_up(&mut self) {
        self.is_incomplete = true;
        // Not `clear`, which would keep the memory for as long as the request
        // lasts.
        self.read = Vec::new();
    }

    /// Returns whether nothing but trailers can come after the first `position`
    /// bytes.
    pub(super) fn is_end(&self, position: usize, has_trailers: bool) -> bool {
        let is_read =
            self.after(position).is_empty() && (self.has_ended || self.body.is_end_stream());
        // Trailers that are still to come: a server that takes this for the end
        // would drop them.
        is_read && (has_trailers || self.trailers.is_none())
    }

    pub(super) fn size_hint(&self, position: usize) -> SizeHint {
        if self.has_ended {
            return SizeHint::with_exact(self.after(position).len() as u64);
        }
        let (rest, recorded) = (self.body.size_hint(), self.after(position).len() as u64);
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(recorded));
        // No bound where it would overflow: one that is too low promises an end
        // that does not come.
        if let Some(upper) = rest.upper().and_then(|upper| upper.checked_add(recorded)) {
            hint.set_upper(upper);
        }
        hint
    }
}

impl<B> Shelf<B> {
    pub(super) fn new(recording: Recording<B>) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Place {
            recording: Some(Box::new(recording)),
            attempt: Attempt::FIRST,
        })))
    }

    /// Takes the body for an attempt. `None` if it has gone to a later one.
    pub(super) fn take(&self, attempt: Attempt) -> Option<Box<Recording<B>>> {
        self.with(|place| place.recording.take_if(|_| place.attempt == attempt))
    }

    pub(super) fn put_back(&self, recording: Box<Recording<B>>) {
        self.with(|place| place.recording = Some(recording));
    }

    /// Leaves the body to `attempt`, and says whether that can have all of it:
    /// no earlier attempt still reads it.
    pub(super) fn pass_to(&self, attempt: Attempt) -> bool {
        self.with(|place| {
            let recording = place.recording.as_ref();
            let may_pass = recording.is_some_and(|recording| !recording.is_incomplete);
            if may_pass {
                // From here on, what an earlier attempt has left behind gets
                // nothing of it (G20).
                place.attempt = attempt;
            }
            may_pass
        })
    }

    fn with<T>(&self, change: impl FnOnce(&mut Place<B>) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
