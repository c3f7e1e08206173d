//! [`Tally`]: what the sessions of one attempt at a request tell the retry layer around them.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use http::Extensions;

use crate::Error;

/// What the sessions of one attempt at a request tell the retry layer around them.
///
/// It travels in the request's extensions, not in the response's: a layer in between may make a response of its own, and what
/// a session has committed must not be forgotten with the one that it replaces.
#[derive(Debug)]
pub(crate) struct Tally {
    /// When the first attempt began.
    since: Instant,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    opened: u32,
    // Counted, not a flag that is taken back: a session that reports nothing, as one whose future was dropped, forbids the retry.
    undone: u32,
    failure: Option<Error>,
    /// The failure made a session's layer replace its handler's response, and is not in the log.
    is_unlogged: bool,
}

impl Tally {
    pub(crate) fn new(since: Instant) -> Arc<Self> {
        let counts = Mutex::default();
        Arc::new(Self { since, counts })
    }

    /// Returns how long the request with these extensions has been tried for; zero without a retry layer.
    pub(crate) fn elapsed_of(extensions: &Extensions) -> Duration {
        let tally = extensions.get::<Arc<Self>>();
        tally.map_or(Duration::ZERO, |tally| tally.since.elapsed())
    }

    /// A layer is about to open a session, whatever its tag is.
    pub(crate) fn opened(&self) {
        self.with(|counts| counts.opened += 1);
    }

    /// A session has ended of which nothing stands, because of `failure` perhaps. Returns whether the retry layer logs that,
    /// in place of a session's layer that has to log what it `replaces` a response for.
    pub(crate) fn undone(&self, failure: Option<Error>, replaces: bool) -> bool {
        self.with(|counts| {
            counts.undone += 1;
            if failure.is_none() || counts.failure.is_some() {
                return false;
            }
            counts.failure = failure;
            counts.is_unlogged = replaces;
            replaces
        })
    }

    /// Returns the failure that is still to be logged if its response is sent.
    pub(crate) fn unlogged(&self) -> Option<Error> {
        self.with(|counts| counts.failure.clone().filter(|_| counts.is_unlogged))
    }

    /// Returns the failure that one session has reported.
    pub(crate) fn failure(&self) -> Option<Error> {
        self.with(|counts| counts.failure.clone())
    }

    /// Returns whether nothing of any session stands.
    pub(crate) fn is_undone(&self) -> bool {
        self.with(|counts| counts.undone == counts.opened)
    }

    fn with<T>(&self, read: impl FnOnce(&mut Counts) -> T) -> T {
        read(&mut self.counts.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
