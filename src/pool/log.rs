//! [`Throttle`] and [`Pressure`]: log lines that a storm of failures must not multiply.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::ledger::Status;
use crate::{error::Error, telemetry::milliseconds};

const SECOND: Duration = Duration::from_secs(1);

/// Writes a log line about a session, with the method and path of its request.
macro_rules! log_session {
    ($level:ident, $label:expr, $($line:tt)+) => {{
        let label: Option<$crate::pool::Label> = $label;
        tracing::$level!(
            target: "tower_sea_orm::pool",
            method = label.as_ref().map(|label| label.method.as_str()),
            route = label.as_ref().and_then(|label| label.route.as_deref()),
            path = label.as_ref().map(|label| label.uri.path()),
            $($line)+
        );
    }};
}
pub(super) use log_session;

/// Lets `MOST` log lines a second pass, and counts the rest.
#[derive(Default)]
pub(super) struct Throttle<const MOST: u32>(Mutex<Window>);

#[derive(Default)]
struct Window {
    since: Option<Instant>,
    lines: u32,
    suppressed: u64,
}

impl<const MOST: u32> Throttle<MOST> {
    fn lock(&self) -> MutexGuard<'_, Window> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns how many lines were suppressed since the last one, if another one may be written now.
    pub(super) fn next_line(&self) -> Option<u64> {
        let mut window = self.lock();
        if window.since.is_none_or(|since| since.elapsed() >= SECOND) {
            (window.since, window.lines) = (Some(Instant::now()), 0);
        }
        if window.lines == MOST {
            window.suppressed += 1;
            return None;
        }
        window.lines += 1;
        Some(std::mem::take(&mut window.suppressed))
    }

    /// Returns how many lines were suppressed, if the last second has seen none; they are forgotten then.
    fn calm(&self) -> Option<u64> {
        let mut window = self.lock();
        window.since.take_if(|since| since.elapsed() >= SECOND)?;
        Some(std::mem::take(&mut window.suppressed))
    }
}

/// Logs failures to acquire a connection, and when they are over.
#[derive(Default)]
pub(super) struct Pressure {
    /// A failure was logged, and not yet its end. Callers that acquire look only here while all is well.
    is_on: AtomicBool,
    lines: Throttle<1>,
}

impl Pressure {
    /// Logs a failure, at most once a second. Only then does it ask for the `status`, which locks the ledger.
    pub(super) fn failed(&self, error: &Error, status: impl FnOnce() -> Status, waited: Duration) {
        let line = self.lines.next_line();
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

    /// Logs that connections are available again, once no failure was logged for a second.
    pub(super) fn relieved(&self) {
        // Relaxed: seen late, the line comes with the next connection.
        if !self.is_on.load(Ordering::Relaxed) {
            return;
        }
        // Before the look: a failure that is logged in between turns it on again.
        self.is_on.store(false, Ordering::SeqCst);
        match self.lines.calm() {
            Some(suppressed) => {
                tracing::info!(target: "tower_sea_orm::pool", suppressed, "connections are available again");
            }
            // Not calm for a second yet: a service where every other request fails would log both lines in turn.
            None => self.is_on.store(true, Ordering::SeqCst),
        }
    }
}
