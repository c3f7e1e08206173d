//! One span per session, with what it has used, and one per statement.

use std::{
    mem,
    time::{Duration, Instant},
};

use sea_orm::{DbBackend, DbErr};
use tracing::{Level, Span, dispatcher, field::Empty, level_filters::LevelFilter, span::Id};

use super::{error_type, milliseconds, system_name};
use crate::sql::Redacted;

/// A span that is closed with its own subscriber as the thread's.
///
/// tracing-subscriber's registry closes the span around it in whichever is the
/// thread's then, and panics if that does not know it
/// (<https://github.com/tokio-rs/tracing/blob/main/tracing-subscriber/src/registry/sharded.rs>,
/// `DataInner::clear`).
#[derive(Clone)]
pub(crate) struct OwnSpan(Span);

impl OwnSpan {
    fn none() -> Self {
        Self(Span::none())
    }
}

impl Drop for OwnSpan {
    fn drop(&mut self) {
        // Its own: a guard that is dropped in another thread, or after a test's
        // subscriber has gone, has another default.
        let subscriber = self.0.with_subscriber(|(_, subscriber)| subscriber.clone());
        if let Some(subscriber) = subscriber {
            let span = mem::replace(&mut self.0, Span::none());
            dispatcher::with_default(&subscriber, || drop(span));
        }
    }
}

/// What a session has used of its pool.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    /// How long it has waited for connections in all.
    pub(crate) waited: Duration,
    /// How long it has held connections in all.
    pub(crate) held: Duration,
    /// How many statements it has run.
    pub(crate) statements: u64,
    /// How often it has lent its connection.
    pub(crate) lent: u64,
}

/// The span of one session, and what it records.
pub(crate) struct SessionSpan {
    span: OwnSpan,
    usage: Usage,
    since: Option<Instant>,
}

impl SessionSpan {
    pub(crate) fn open() -> Self {
        // Asked first: `log` is a feature of tracing that sqlx turns on, and by
        // that even a span that nothing wants is formatted for it.
        let span = if LevelFilter::current() >= Level::DEBUG {
            tracing::debug_span!(
                target: "tower_sea_orm::session", "db_session",
                // Declared empty, since `record` passes over a field that the
                // span does not have.
                waited_ms = Empty, held_ms = Empty, statements = Empty, lent = Empty, outcome = Empty,
            )
        } else {
            Span::none()
        };
        Self {
            span: OwnSpan(span),
            usage: Usage::default(),
            since: None,
        }
    }

    pub(crate) fn waited(&mut self, time: Duration) {
        self.usage.waited += time;
    }

    pub(crate) fn checked_out(&mut self) {
        // Only while it has a connection: between `release()` and the next
        // statement it holds none.
        self.since = Some(Instant::now());
    }

    /// Returns for how long the session has held the connection that it gives
    /// back, if it had one.
    pub(crate) fn released(&mut self) -> Option<Duration> {
        let held = self.since.take()?.elapsed();
        self.usage.held += held;
        Some(held)
    }

    /// The session's connection was lent to another one.
    pub(crate) fn lent(&mut self) -> Option<Duration> {
        self.usage.lent += 1;
        self.released()
    }

    pub(crate) fn was_lent(&self) -> bool {
        self.usage.lent > 0
    }

    pub(crate) fn count(&mut self) {
        self.usage.statements += 1;
    }

    /// Returns what the session has used so far.
    pub(crate) fn usage(&self) -> Usage {
        let current = self.since.map(|since| since.elapsed());
        Usage {
            held: self.usage.held + current.unwrap_or_default(),
            ..self.usage
        }
    }

    pub(crate) fn span(&self) -> OwnSpan {
        self.span.clone()
    }

    /// Ends the span, which is closed when the returned value is dropped: not
    /// under a lock, because that runs the subscriber's code.
    pub(crate) fn close(&mut self, outcome: &'static str) -> ClosedSpan {
        self.released();
        // The handles keep the session's state, and with it this value, for
        // longer than the session lasts.
        let span = mem::replace(&mut self.span, OwnSpan::none());
        ClosedSpan {
            span,
            usage: self.usage,
            outcome,
        }
    }
}

/// A span that records its fields when it is dropped.
#[must_use = "it is closed when it is dropped"]
pub(crate) struct ClosedSpan {
    span: OwnSpan,
    usage: Usage,
    outcome: &'static str,
}

impl Drop for ClosedSpan {
    fn drop(&mut self) {
        let span = &self.span.0;
        // The fields cost their formatting even where no subscriber wants the
        // span.
        if !span.is_disabled() {
            let Usage {
                waited,
                held,
                statements,
                lent,
            } = self.usage;
            span.record("waited_ms", milliseconds(waited));
            span.record("held_ms", milliseconds(held));
            span.record("statements", statements);
            span.record("lent", lent);
            span.record("outcome", self.outcome);
        }
    }
}

/// Returns whether a subscriber wants a span for each statement.
pub(crate) fn statements_are_traced() -> bool {
    tracing::span_enabled!(target: "tower_sea_orm::statement", Level::DEBUG)
}

/// The span of one statement, with the fields of OpenTelemetry's conventions
/// for database clients
/// (<https://opentelemetry.io/docs/specs/semconv/database/database-spans/>).
pub(crate) fn statement_span(
    session: &OwnSpan,
    backend: DbBackend,
    statement: &Redacted,
) -> OwnSpan {
    // Asked first: to take the values out of a text costs more than the span.
    if !statements_are_traced() {
        return OwnSpan::none();
    }
    // Without values: traces have other readers than the database has (G15).
    let text = &*statement.without_values(backend);
    // The first word alone: a span's name must not be different for each text.
    let summary = text.split_whitespace().next().unwrap_or_default();
    let open = |parent: Option<Id>| {
        tracing::debug_span!(
            target: "tower_sea_orm::statement", parent: parent, "db_statement",
            otel.name = summary, otel.kind = "client", otel.status_code = Empty,
            db.system.name = system_name(backend), db.query.text = text, error.type = Empty,
            tower_sea_orm.begins = Empty,
        )
    };
    // With the subscriber that the session's span belongs to: the thread's own
    // may be another one by now, which does not know that span, and
    // tracing-subscriber panics about such a parent.
    let child = session.0.with_subscriber(|(id, subscriber)| {
        dispatcher::with_default(subscriber, || open(Some(id.clone())))
    });
    // Without a session's span, as one that its level filters out, the
    // handler's own is the parent.
    OwnSpan(child.unwrap_or_else(|| open(Span::current().id())))
}

/// Records in its span that BEGIN is sent before a statement.
pub(crate) fn statement_begins(OwnSpan(span): &OwnSpan) {
    span.record("tower_sea_orm.begins", true);
}

/// Records in its span why a statement has failed.
pub(crate) fn statement_failed(OwnSpan(span): &OwnSpan, error: &DbErr) {
    if !span.is_disabled() {
        span.record("otel.status_code", "ERROR");
        // Not the error's text, which may have values in it (G15).
        span.record("error.type", &*error_type(error));
    }
}
