//! Spans of sessions and statements, and the lines of the log that belong to no
//! single place.
//!
//! The crate's documentation lists what is logged from INFO on.

mod spans;
mod throttle;

use std::{
    borrow::Cow,
    collections::BTreeSet,
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use http::StatusCode;
use sea_orm::{DbBackend, DbErr};

pub(crate) use self::{
    spans::{
        OwnSpan, SessionSpan, Usage, statement_begins, statement_failed, statement_span,
        statements_are_traced,
    },
    throttle::Throttle,
};
use crate::error::{Error, server};

/// Returns the value of OpenTelemetry's `db.system.name`. MariaDB is not told
/// from MySQL.
pub(crate) fn system_name(backend: DbBackend) -> &'static str {
    match backend {
        DbBackend::MySql => "mysql",
        DbBackend::Postgres => "postgresql",
        DbBackend::Sqlite => "sqlite",
        // `DbBackend` may grow.
        _ => "other_sql",
    }
}

/// Returns the value of OpenTelemetry's `error.type`: the server's code, or the
/// kind of the error.
pub(crate) fn error_type(error: &DbErr) -> Cow<'static, str> {
    if let Some(code) = server::code(error) {
        return code.into();
    }
    match error {
        // A few fixed words, and `_OTHER` for the rest, as the conventions ask
        // for
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

/// How many lines of one kind are written each second. A 503 or 504 has the
/// same cause for all requests, as a server that has become read-only; a 500
/// may have one of its own.
const WARNINGS: u32 = 1;
const ERRORS: u32 = 16;

/// Lines that belong to no pool.
static LINES: Throttle = Throttle::new();

/// Logs why the crate responds with an error. The pool has logged a failed
/// acquire and a connection that was taken away already.
pub(crate) fn response_for(error: &Error, lines: &Throttle) {
    if error.is_acquire() || error.is_hold_timeout() {
        return;
    }
    // A client's mistake, which any client can make as often as it likes.
    if error.is_unknown_database() {
        tracing::debug!(target: "tower_sea_orm", "{error}");
        return;
    }
    // A 503 or 504 is for those who run the database, a 500 for those who wrote
    // the service (G15).
    let is_warning = error.status() != StatusCode::INTERNAL_SERVER_ERROR;
    let most = match is_warning {
        true => WARNINGS,
        // Each write that may be stored without an acknowledgement has to be
        // looked up.
        false if error.may_stand() => u32::MAX,
        false => ERRORS,
    };
    let Some(suppressed) = lines.next_line(error.kind_text(), most) else {
        return;
    };
    let suppressed = (suppressed > 0).then_some(suppressed);
    // As a field: the message stays the same text, by which lines can be
    // counted.
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
// Not throttled: each time, a change may stand that its client takes for
// undone.
pub(crate) fn ended_elsewhere(statement: &str) {
    tracing::error!(
        target: "tower_sea_orm::session", statement,
        "a transaction was ended behind its session's back: earlier changes may be committed",
    );
}

/// Logs that stored or raw code was cut off in a transaction.
// Not throttled, for the same reason.
pub(crate) fn cut_off_in_transaction(statement: &str) {
    tracing::error!(
        target: "tower_sea_orm::session", statement,
        "raw or stored code was cut off in a transaction, and its connection closed: what it had not committed itself is rolled back",
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

/// The number of statements that are logged once each. Later ones are not
/// logged, so that texts with values in them do not fill the memory.
const REMEMBERED: usize = 256;

/// Logs, once for each text, a statement that has no effect where each
/// statement commits by itself.
pub(crate) fn needs_transaction(statement: &str) {
    // For all pools, since the mistake is in the program. A `BTreeSet`, because
    // a static needs a `const` constructor.
    static LOGGED: Mutex<BTreeSet<u64>> = Mutex::new(BTreeSet::new());
    // A hash and not the text: what is kept may not grow with the statements,
    // and no value stays in memory.
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
