//! One span per session, and the lines of the log that belong to no single place.
//!
//! The crate's documentation lists what is logged from INFO on.

use std::{
    collections::BTreeSet,
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use http::StatusCode;
use tracing::{Span, field::Empty};

use crate::error::Error;

/// The span of one session.
pub(crate) struct SessionSpan {
    span: Span,
    waited: Duration,
    held: Duration,
    since: Option<Instant>,
    statements: u64,
    lent: u64,
}

impl SessionSpan {
    pub(crate) fn open() -> Self {
        let span = tracing::debug_span!(
            target: "tower_sea_orm::session", "db_session",
            waited_ms = Empty, held_ms = Empty, statements = Empty, lent = Empty, outcome = Empty,
        );
        Self {
            span,
            waited: Duration::ZERO,
            held: Duration::ZERO,
            since: None,
            statements: 0,
            lent: 0,
        }
    }

    pub(crate) fn waited(&mut self, time: Duration) {
        self.waited += time;
    }

    pub(crate) fn checked_out(&mut self) {
        // Only while it has a connection: between `release()` and the next statement it holds none.
        self.since = Some(Instant::now());
    }

    pub(crate) fn released(&mut self) {
        self.held += self
            .since
            .take()
            .map(|since| since.elapsed())
            .unwrap_or_default();
    }

    /// The session's connection was lent to another one.
    pub(crate) fn lent(&mut self) {
        self.released();
        self.lent += 1;
    }

    pub(crate) fn was_lent(&self) -> bool {
        self.lent > 0
    }

    pub(crate) fn count(&mut self) {
        self.statements += 1;
    }

    /// Ends the span, which is closed when the returned value is dropped: not under a lock, because that runs
    /// the subscriber's code.
    pub(crate) fn close(&mut self, outcome: &'static str) -> ClosedSpan {
        self.released();
        // The handles keep the session's state, and with it this value, for longer than the session lasts.
        let span = std::mem::replace(&mut self.span, Span::none());
        ClosedSpan {
            span,
            waited: self.waited,
            held: self.held,
            statements: self.statements,
            lent: self.lent,
            outcome,
        }
    }
}

/// A span that records its fields when it is dropped.
#[must_use = "it is closed when it is dropped"]
pub(crate) struct ClosedSpan {
    span: Span,
    waited: Duration,
    held: Duration,
    statements: u64,
    lent: u64,
    outcome: &'static str,
}

impl Drop for ClosedSpan {
    fn drop(&mut self) {
        // The fields cost their formatting even where no subscriber wants the span.
        if !self.span.is_disabled() {
            self.span.record("waited_ms", milliseconds(self.waited));
            self.span.record("held_ms", milliseconds(self.held));
            self.span.record("statements", self.statements);
            self.span.record("lent", self.lent);
            self.span.record("outcome", self.outcome);
        }
    }
}

/// Logs why the crate responds with an error. The pool has logged a failed acquire and a connection that was
/// taken away already.
pub(crate) fn response_for(error: &Error) {
    // One line for each cause: under load these are the many, and the pool limits their rate (G15).
    if error.is_acquire() || error.is_hold_timeout() {
        return;
    }
    let cause = std::error::Error::source(error).map(tracing::field::display);
    if error.status() == StatusCode::INTERNAL_SERVER_ERROR {
        tracing::error!(target: "tower_sea_orm", cause, "{error}");
    } else {
        tracing::warn!(target: "tower_sea_orm", cause, "{error}");
    }
}

/// Logs that stored or raw code has ended a transaction.
pub(crate) fn ended_elsewhere(statement: &str) {
    tracing::error!(
        target: "tower_sea_orm::session", statement,
        "a transaction was ended behind its session's back: earlier changes may be committed",
    );
}

/// Logs an error that came after the stream was dropped.
pub(crate) fn stream_failed_unheard(error: &sea_orm::DbErr) {
    tracing::warn!(target: "tower_sea_orm::session", "a statement failed after its stream was dropped: {error}");
}

/// The number of statements that are logged once each. Later ones are not logged, so that texts with values in them
/// do not fill the memory.
const REMEMBERED: usize = 256;

/// Logs, once for each text, a statement that has no effect where each statement commits by itself.
pub(crate) fn needs_transaction(statement: &str) {
    static LOGGED: Mutex<BTreeSet<u64>> = Mutex::new(BTreeSet::new());
    // A hash and not the text: what is kept may not grow with the statements, and no value stays in memory.
    let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(statement);
    let mut logged = LOGGED.lock().unwrap_or_else(PoisonError::into_inner);
    let is_new = logged.len() < REMEMBERED && logged.insert(hash);
    // Not under the lock: logging runs the subscriber's code.
    drop(logged);
    if is_new {
        tracing::warn!(
            target: "tower_sea_orm::session", statement,
            "a lock, a cursor or a setting that ends with its transaction has no effect in a session that commits each statement by itself: take a `DbTx`, or put `.transaction()` on the layer",
        );
    }
}

/// In whole microseconds: a float's last digits would only be noise in the log.
pub(crate) fn milliseconds(time: Duration) -> f64 {
    time.as_micros() as f64 / 1e3
}
