//! [`Pressure`]: what the log is told of failures to acquire.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::Status;
use crate::{error::Error, telemetry::milliseconds};

/// Tells the log about failures to acquire without drowning it.
#[derive(Default)]
pub(crate) struct Pressure {
    /// The log was told of a failure, and not yet that it is over; so that nobody has to take turns while all
    /// is well.
    is_on: AtomicBool,
    burst: Mutex<Burst>,
}

#[derive(Default)]
struct Burst {
    /// When the log was last told; `None` while all is well.
    told: Option<Instant>,
    untold: u64,
}

impl Pressure {
    /// Tells the log, at most once a second. Only then the `status` is asked for: where many are turned away,
    /// that must not take long.
    pub(crate) fn failed(&self, error: &Error, status: impl FnOnce() -> Status, waited: Duration) {
        let mut burst = self.burst.lock().unwrap_or_else(PoisonError::into_inner);
        self.is_on.store(true, Ordering::Relaxed);
        if burst
            .told
            .is_some_and(|told| told.elapsed() < Duration::from_secs(1))
        {
            burst.untold += 1;
            return;
        }
        burst.told = Some(Instant::now());
        let suppressed = std::mem::take(&mut burst.untold);
        drop(burst);
        let status = status();
        tracing::warn!(
            target: "tower_sea_orm::pool",
            used = status.used, pending = status.pending, max = status.max,
            waited_ms = milliseconds(waited), suppressed,
            cause = std::error::Error::source(error).map(tracing::field::display),
            "{error}",
        );
    }

    pub(crate) fn relieved(&self) {
        if !self.is_on.load(Ordering::Relaxed) {
            return;
        }
        let mut burst = self.burst.lock().unwrap_or_else(PoisonError::into_inner);
        if burst
            .told
            .is_some_and(|told| told.elapsed() >= Duration::from_secs(1))
        {
            burst.told = None;
            self.is_on.store(false, Ordering::Relaxed);
            let suppressed = std::mem::take(&mut burst.untold);
            drop(burst);
            tracing::info!(target: "tower_sea_orm::pool", suppressed, "connections are available again");
        }
    }
}
