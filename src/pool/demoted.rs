//! A server that has become read-only: its connections are closed, and the next ones go where the name leads.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use sea_orm::DbErr;

use super::SessionPool;

/// How soon the pool is emptied again.
const PAUSE: Duration = Duration::from_secs(1);

/// How soon the log is told again.
const QUIET: Duration = Duration::from_secs(60);

/// When a server refused a write last.
#[derive(Default)]
pub(super) struct Demotion {
    /// So that the lock is taken only where it ever happened.
    has_been: AtomicBool,
    last: Mutex<Option<Instant>>,
}

impl Demotion {
    /// Notes another refusal; tells how long the one before is past, unless it was just now.
    fn note(&self) -> Option<Duration> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let past = last.map_or(Duration::MAX, |last| last.elapsed());
        if past < PAUSE {
            return None;
        }
        *last = Some(Instant::now());
        self.has_been.store(true, Ordering::Relaxed);
        Some(past)
    }

    fn is_before(&self, fetched: Instant) -> bool {
        self.has_been.load(Ordering::Relaxed)
            && self.last.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|last| fetched < last)
    }
}

impl SessionPool {
    /// The server refused a write: nobody else is to have a connection to it.
    pub(super) fn leave_server(&self, error: &DbErr) {
        let Some(past) = self.shared.demotion.note() else { return };
        if past >= QUIET {
            tracing::warn!(target: "tower_sea_orm::pool", "the server is read-only: its connections are closed, so that new ones go to the server that takes writes: {error}");
        }
        drop(self.shared.queue.take_warm());
        self.shared.source.close_idle();
    }

    /// Whether a connection that the driver's pool gave at this time may lead to a server that is read-only.
    pub(super) fn has_left_since(&self, fetched: Instant) -> bool {
        self.shared.demotion.is_before(fetched)
    }
}
