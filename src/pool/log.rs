//! [`Pressure`] and other log lines of a pool, which a storm of failures must
//! not multiply.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use sea_orm::DbErr;

use super::ledger::Status;
use crate::{
    error::Error,
    telemetry::{Throttle, milliseconds},
};

/// Writes a log line about a session, with the method and path of its request.
macro_rules! log_session {
    ($level:ident, $label:expr, $($line:tt)+) => {{
        let label: Option<$crate::pool::Label> = $label;
        tracing::$level!(
            target: "tower_sea_orm::pool",
            method = label.as_ref().map(|label| label.method.as_str()),
            route = label.as_ref().and_then(|label| label.route.as_deref()),
            path = label.as_ref().and_then(|label| label.path.as_ref()).map(http::uri::PathAndQuery::path),
            $($line)+
        );
    }};
}
pub(super) use log_session;

/// Logs failures to acquire a connection, and when they are over.
#[derive(Default)]
pub(super) struct Pressure {
    /// A failure was logged, and not yet its end. Callers that acquire look
    /// only here while all is well.
    is_on: AtomicBool,
    lines: Throttle,
}

/// What [`Pressure`] has its lines counted as.
const FAILED: &str = "acquire";

impl Pressure {
    /// Logs a failure, at most once a second. Only then does it ask for the
    /// `status`, which locks the ledger.
    pub(super) fn failed(&self, error: &Error, status: impl FnOnce() -> Status, waited: Duration) {
        let line = self.lines.next_line(FAILED, 1);
        // Also for a line that is suppressed: its end is to be told, too.
        self.is_on.store(true, Ordering::SeqCst);
        let Some(suppressed) = line else { return };
        let status = status();
        tracing::warn!(
            target: "tower_sea_orm::pool",
            used = status.used, pending = status.pending, max = status.max,
            waited_ms = milliseconds(waited), suppressed,
            cause = std::error::Error::source(error).map(tracing::field::display),
            "{error}",
        );
    }

    /// Logs that connections are available again, once no failure was logged
    /// for a second.
    pub(super) fn relieved(&self) {
        // Relaxed: seen late, the line comes with the next connection.
        if !self.is_on.load(Ordering::Relaxed) {
            return;
        }
        // Before the look: a failure that is logged in between turns it on
        // again.
        self.is_on.store(false, Ordering::SeqCst);
        match self.lines.calm(FAILED) {
            Some(suppressed) => {
                tracing::info!(target: "tower_sea_orm::pool", suppressed, "connections are available again");
            }
            // Not calm for a second yet: a service where every other request
            // fails would log both lines in turn.
            None => self.is_on.store(true, Ordering::SeqCst),
        }
    }
}

/// Why a connection is not clean.
pub(super) enum Unclean {
    /// The server did not answer in time.
    InTime,
    Failed(DbErr),
}

impl Unclean {
    /// Logs why the connection is closed, with the number of lines left out.
    pub(super) fn log(&self, suppressed: u64) {
        match self {
            Self::InTime => {
                tracing::warn!(target: "tower_sea_orm::session", suppressed, "closed a connection that could not be rolled back or reset within the release timeout");
            }
            Self::Failed(error) => {
                tracing::warn!(target: "tower_sea_orm::session", suppressed, "closed a connection that could not be rolled back or reset: {error}");
            }
        }
    }
}
