//! One span per session, and the lines of the log that belong to no single place.
//!
//! The crate's documentation lists what is logged from INFO on.

mod throttle;

use std::{
    borrow::Cow,
    collections::BTreeSet,
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
    mem,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use http::StatusCode;
use sea_orm::{DbBackend, DbErr};
use tracing::{Level, Span, dispatcher, field::Empty, level_filters::LevelFilter, span::Id};

pub(crate) use self::throttle::Throttle;
use crate::{
    error::{Error, server},
    sql::Redacted,
};

/// A span that is closed with its own subscriber as the thread's.
///
/// tracing-subscriber's registry closes the span around it in whichever is the thread's then, and panics if that does not
/// know it (<https://github.com/tokio-rs/tracing/blob/main/tracing-subscriber/src/registry/sharded.rs>, `DataInner::clear`).
#[derive(Clone)]
pub(crate) struct OwnSpan(Span);

impl OwnSpan {
    fn none() -> Self {
        Self(Span::none())
    }
}

impl Drop for OwnSpan {
    fn drop(&mut self) {
        // Its own: a guard that is dropped in another thread, or after a test's subscriber has
        // gone, has another default.
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
        // Asked first: `log` is a feature of tracing that sqlx turns on, and by that even a span that nothing wants is
        // formatted for it.
        let span = if LevelFilter::current() >= Level::DEBUG {
            tracing::debug_span!(
                target: "tower_sea_orm::session", "db_session",
                // Declared empty, since `record` passes over a field that the span does not have.
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
        // Only while it has a connection: between `release()` and the next statement it holds none.
        self.since = Some(Instant::now());
    }

    /// Returns for how long the session has held the connection that it gives back, if it had one.
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

    /// Ends the span, which is closed when the returned value is dropped: not under a lock, because that runs
    /// the subscriber's code.
    pub(crate) fn close(&mut self, outcome: &'static str) -> ClosedSpan {
        self.released();
        // The handles keep the session's state, and with it this value, for longer than the session lasts.
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
        // The fields cost their formatting even where no subscriber wants the span.
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

/// The span of one statement, with the fields of OpenTelemetry's conventions for database clients
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
    // With the subscriber that the session's span belongs to: the thread's own may be another one by now, which does not know
    // that span, and tracing-subscriber panics about such a parent.
    let child = session.0.with_subscriber(|(id, subscriber)| {
        dispatcher::with_default(subscriber, || open(Some(id.clone())))
    });
    // Without a session's span, as one that its level filters out, the handler's own is the parent.
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

/// Returns the value of OpenTelemetry's `db.system.name`. MariaDB is not told from MySQL.
pub(crate) fn system_name(backend: DbBackend) -> &'static str {
    match backend {
        DbBackend::MySql => "mysql",
        DbBackend::Postgres => "postgresql",
        DbBackend::Sqlite => "sqlite",
        // `DbBackend` may grow.
        _ => "other_sql",
    }
}

/// Returns the value of OpenTelemetry's `error.type`: the server's code, or the kind of the error.
pub(crate) fn error_type(error: &DbErr) -> Cow<'static, str> {
    if let Some(code) = server::code(error) {
        return code.into();
    }
    match error {
        // A few fixed words, and `_OTHER` for the rest, as the conventions ask for
        // (<https://opentelemetry.io/docs/specs/semconv/registry/attributes/error/>).
        DbErr::ConnectionAcquire(_) => "connection_acquire".into(),
        DbErr::Conn(_) => "connection".into(),
        _ => "_OTHER".into(),
    }
}

/// Logs a statement that one request has run again and again.
pub(crate) fn repeated(
    statement: &str,
    times: u32,
    method: Option<&str>,
    route: Option<&str>,
    suppressed: u64,
) {
    let suppressed = (suppressed > 0).then_some(suppressed);
    tracing::warn!(
        target: "tower_sea_orm::session", statement, times, method, route, suppressed,
        "a request has run one statement again and again: load what it needs with one statement, as by SeaORM's `LoaderTrait`",
    );
}

/// How many lines of one kind are written each second. A 503 or 504 has the same cause for all requests, as a server that has become
/// read-only; a 500 may have one of its own.
const WARNINGS: u32 = 1;
const ERRORS: u32 = 16;

/// Lines that belong to no pool.
static LINES: Throttle = Throttle::new();

/// Logs why the crate responds with an error. The pool has logged a failed acquire and a connection that was
/// taken away already.
pub(crate) fn response_for(error: &Error, lines: &Throttle) {
    if error.is_acquire() || error.is_hold_timeout() {
        return;
    }
    // A client's mistake, which any client can make as often as it likes.
    if error.is_unknown_database() {
        tracing::debug!(target: "tower_sea_orm", "{error}");
        return;
    }
    // A 503 or 504 is for those who run the database, a 500 for those who wrote the service (G15).
    let is_warning = error.status() != StatusCode::INTERNAL_SERVER_ERROR;
    let most = match is_warning {
        true => WARNINGS,
        // Each write that may be stored without an acknowledgement has to be looked up.
        false if error.may_stand() => u32::MAX,
        false => ERRORS,
    };
    let Some(suppressed) = lines.next_line(error.kind_text(), most) else {
        return;
    };
    let suppressed = (suppressed > 0).then_some(suppressed);
    // As a field: the message stays the same text, by which lines can be counted.
    let cause = std::error::Error::source(error).map(tracing::field::display);
    if is_warning {
        tracing::warn!(target: "tower_sea_orm", suppressed, cause, "{error}");
    } else {
        tracing::error!(target: "tower_sea_orm", suppressed, cause, "{error}");
    }
}

/// The same for a request that has no session, and so no pool.
pub(crate) fn response_without_session(error: &Error) {
    response_for(error, &LINES);
}

/// Logs that stored or raw code has ended a transaction.
// Not throttled: each time, a change may stand that its client takes for undone.
pub(crate) fn ended_elsewhere(statement: &str) {
    tracing::error!(
        target: "tower_sea_orm::session", statement,
        "a transaction was ended behind its session's back: earlier changes may be committed",
    );
}

/// Logs an error that came after the stream was dropped.
pub(crate) fn stream_failed_unheard(error: &DbErr) {
    let Some(suppressed) = LINES.next_line("stream", ERRORS) else {
        return;
    };
    let suppressed = (suppressed > 0).then_some(suppressed);
    tracing::warn!(target: "tower_sea_orm::session", suppressed, "a statement failed after its stream was dropped: {error}");
}

/// The number of statements that are logged once each. Later ones are not logged, so that texts with values in them
/// do not fill the memory.
const REMEMBERED: usize = 256;

/// Logs, once for each text, a statement that has no effect where each statement commits by itself.
pub(crate) fn needs_transaction(statement: &str) {
    // For all pools, since the mistake is in the program. A `BTreeSet`, because a static needs a
    // `const` constructor.
    static LOGGED: Mutex<BTreeSet<u64>> = Mutex::new(BTreeSet::new());
    // A hash and not the text: what is kept may not grow with the statements, and no value stays in memory.
    let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(statement);
    let mut logged = LOGGED.lock().unwrap_or_else(PoisonError::into_inner);
    // Full, it stays full: to forget the oldest would log it again and again.
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
