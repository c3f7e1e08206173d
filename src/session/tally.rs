//! What sessions and a retry layer know of each other: [`Tally`], what the
//! sessions of one attempt at a request tell the layer around them; and
//! [`OpenSession`], a session that is open around the layer, whatever its tag
//! is.

use std::{
    any::TypeId,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};

use http::Extensions;

use super::{
    core::Core,
    db_session::{DbSession, DefaultDatabase},
    end::refuse,
};
use crate::{
    error::{Error, Kind},
    pool::PoolInner,
    telemetry,
};

/// What the sessions of one attempt at a request tell the retry layer around
/// them.
///
/// It travels in the request's extensions, not in the response's: a layer in
/// between may make a response of its own, and what a session has committed
/// must not be forgotten with the one that it replaces.
pub(crate) struct Tally {
    /// When the first attempt began.
    since: Instant,
    /// A session is open around the retry layer.
    is_within_session: bool,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    opened: u32,
    // Counted, not a flag that is taken back: a session that reports nothing,
    // as one whose future was dropped, forbids the retry.
    undone: u32,
    failure: Option<Error>,
    /// The failure made a layer replace its handler's response, and is not in
    /// the log yet. The pool has the place for it.
    unlogged: Option<Arc<PoolInner>>,
}

impl Tally {
    pub(crate) fn new(since: Instant) -> Arc<Self> {
        Self::of(since, false)
    }

    /// One that admits no session: another is open around the retry layer.
    pub(crate) fn within_session() -> Arc<Self> {
        Self::of(Instant::now(), true)
    }

    fn of(since: Instant, is_within_session: bool) -> Arc<Self> {
        Arc::new(Self {
            since,
            is_within_session,
            counts: Mutex::default(),
        })
    }

    /// Returns how long the request with these extensions has been tried for;
    /// zero without a retry layer.
    pub(crate) fn elapsed_of(extensions: &Extensions) -> Duration {
        let tally = extensions.get::<Arc<Self>>();
        tally.map_or(Duration::ZERO, |tally| tally.since.elapsed())
    }

    /// A layer is about to open a session, whatever its tag is.
    pub(crate) fn opened(&self) -> Result<(), Error> {
        // Each attempt would do its work again within the outer session, which
        // nothing rolls back in between
        // (`a_retry_layer_between_two_session_layers_is_refused`).
        if self.is_within_session {
            return Err(Kind::RetryInside.into());
        }
        self.with(|counts| counts.opened += 1);
        Ok(())
    }

    /// A session has ended of which nothing stands, because of `failure`
    /// perhaps. Returns whether the retry layer logs that, in place of a
    /// session's layer that `logs` what it replaces a response for.
    pub(crate) fn undone(&self, failure: Option<Error>, logs: Option<&Arc<PoolInner>>) -> bool {
        self.with(|counts| {
            counts.undone += 1;
            // The first of them: what fails after it fails because of it, and
            // one line says what was retried.
            if failure.is_none() || counts.failure.is_some() {
                return false;
            }
            counts.failure = failure;
            // Not logged yet: if another attempt succeeds, there is nothing
            // that needs a line.
            counts.unlogged = logs.cloned();
            logs.is_some()
        })
    }

    /// Logs the failure, whose response is sent, unless that was done.
    pub(crate) fn log(&self) {
        let unlogged = self.with(|counts| counts.failure.clone().zip(counts.unlogged.take()));
        if let Some((failure, pool)) = unlogged {
            telemetry::response_for(&failure, &pool.lines);
        }
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

/// A session in its request's extensions, by which a retry layer that is
/// further in finds it whatever its tag is.
#[derive(Clone)]
// Weak: a request that a retry layer keeps for another attempt must not keep
// its session.
pub(crate) struct OpenSession(Weak<Core>);

impl OpenSession {
    /// Notes a session in its request's extensions.
    pub(crate) fn note<Tag: 'static>(session: &DbSession<Tag>, extensions: &mut Extensions) {
        // The default tag's is found without, and costs nothing.
        if TypeId::of::<Tag>() != TypeId::of::<DefaultDatabase>() {
            extensions.insert(Self::of(session));
        }
    }

    fn of<Tag>(session: &DbSession<Tag>) -> Self {
        Self(Arc::downgrade(session.handle().core))
    }

    /// Returns a session that is open around what gets a request with these
    /// extensions.
    pub(crate) fn find(extensions: &Extensions) -> Option<Self> {
        let session = extensions.get::<DbSession>();
        // A request that was kept carries the handle of a session that is over.
        let session = session.filter(|session| !session.has_ended());
        let tagged = || {
            extensions
                .get::<Self>()
                .filter(|one| one.is_open())
                .cloned()
        };
        session.map(Self::of).or_else(tagged)
    }

    fn is_open(&self) -> bool {
        self.0.upgrade().is_some_and(|core| !core.is_over())
    }

    /// Ends it: with a retry layer inside, its response is an error.
    pub(crate) fn refuse_retries(&self) {
        if let Some(core) = self.0.upgrade() {
            refuse(&core, Kind::RetryInside);
        }
    }
}
