//! [`Eviction`]: when all connections were replaced last.
//!
//! All of a server that has become read-only are, or all there are, for a
//! migration. What is idle is closed now, what a session holds when it comes
//! back; HikariCP calls it a soft eviction.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{runtime::Handle, task::yield_now};

use super::driver_pool::DriverPool;

/// A read-only server's connections are evicted again this soon: twice as late
/// each time, since a server may stay read-only.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Once the host name leads to another server, writes are refused for up to so
/// long. Every connection of the pool made anew once a second is nothing to the
/// server, and reads hardly notice.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// After so long, the next one is another fail-over.
const CALM: Duration = Duration::from_secs(15);

/// How often others are let run so that evicted connections can be closed which
/// sqlx has promised to them.
const CLOSE_AGAIN: u32 = 100;

/// Another one is logged this soon.
const QUIET: Duration = Duration::from_secs(60);

pub(super) struct Eviction {
    driver: DriverPool,
    /// The lock is taken only where it ever happened.
    has_been: AtomicBool,
    last: Mutex<Option<Last>>,
}

#[derive(Clone, Copy)]
struct Last {
    at: Instant,
    pause: Duration,
}

impl Eviction {
    pub(super) fn new(driver: DriverPool) -> Arc<Self> {
        Arc::new(Self {
            driver,
            has_been: AtomicBool::new(false),
            last: Mutex::default(),
        })
    }

    /// Notes an eviction that was asked for.
    pub(super) fn note(&self) {
        // Without a pause: an eviction that was asked for must not keep a
        // read-only server from being left right after it.
        self.set(&mut self.lock(), Duration::ZERO);
    }

    /// Closes what is idle in the driver's pool, where all are evicted.
    pub(super) fn close_idle(self: &Arc<Self>) {
        if self.try_close_idle() {
            return;
        }
        // sqlx has promised a place to a fetch that has not run since, so that
        // nothing can be taken here; but a fetch that begins now, with another
        // place, may be given the old connection.
        if let Ok(runtime) = Handle::try_current() {
            let eviction = self.clone();
            runtime.spawn(async move {
                // Seen as an old connection that went on to serve after
                // `recycle()`, once in 14 runs
                // (`a_changed_password_reaches_new_connections_and_fails_no_request`).
                for _ in 0..CLOSE_AGAIN {
                    yield_now().await;
                    if eviction.try_close_idle() {
                        break;
                    }
                }
            });
        }
    }

    /// Returns whether none is left.
    fn try_close_idle(&self) -> bool {
        self.driver.close_idle();
        let is_any_left = self.driver.num_idle() > 0;
        // After the look: a fetch that has begun since the eviction may have
        // got one, and is to bring another one.
        self.extend();
        !is_any_left
    }

    /// Extends the last one until now.
    fn extend(&self) {
        let mut last = self.lock();
        if let Some(last) = last.as_mut() {
            last.at = Instant::now();
        }
    }

    /// Notes one because of a refused write, unless it is too soon. Returns
    /// whether it is to be logged.
    pub(super) fn note_refusal(&self) -> Option<bool> {
        let mut last = self.lock();
        let (past, pause) = last.map_or((Duration::MAX, Duration::ZERO), |last| {
            (last.at.elapsed(), last.pause)
        });
        // Each request's refused write comes by here, and closing all
        // connections for each would stop the reads as well. Shown by
        // `refused_writes_do_not_replace_a_connection_each`.
        if past < pause {
            return None;
        }
        // A refusal that follows soon is the same server's, which stays
        // read-only: the pauses grow, so that reads go on.
        let next = if past < CALM {
            (pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE)
        } else {
            FIRST_PAUSE
        };
        self.set(&mut last, next);
        Some(past >= QUIET)
    }

    fn set(&self, last: &mut Option<Last>, pause: Duration) {
        *last = Some(Last {
            at: Instant::now(),
            pause,
        });
        self.has_been.store(true, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Option<Last>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether a connection that was fetched from the driver's pool at
    /// this time has been evicted since.
    pub(super) fn includes(&self, fetched: Instant) -> bool {
        // Relaxed: a return that does not see it yet may as well have come
        // before it.
        self.has_been.load(Ordering::Relaxed) && self.lock().is_some_and(|last| fetched < last.at)
    }
}
