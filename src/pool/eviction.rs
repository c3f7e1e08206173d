//! Evicting connections: all of a server that has become read-only, or all there are, for a migration. What
//! is idle is closed now, what a session holds when it comes back; HikariCP calls it a soft eviction.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::runtime::Handle;

use super::SessionPool;
use crate::error::{Error, Kind};

/// How soon a read-only server's connections are evicted again: twice as late each time, since a server may stay
/// read-only.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// After so long, the next one is another fail-over.
const CALM: Duration = Duration::from_secs(15);

/// How soon the log is told again.
const QUIET: Duration = Duration::from_secs(60);

/// When all connections were evicted last.
#[derive(Default)]
pub(super) struct Eviction {
    /// So that the lock is taken only where it ever happened.
    has_been: AtomicBool,
    last: Mutex<Option<Last>>,
}

#[derive(Clone, Copy)]
struct Last {
    at: Instant,
    pause: Duration,
}

impl Eviction {
    /// Notes an eviction that was asked for.
    fn note(&self) {
        self.set(&mut self.lock(), Duration::ZERO);
    }

    /// The last one goes on until now.
    fn extend(&self) {
        let mut last = self.lock();
        if let Some(last) = last.as_mut() {
            last.at = Instant::now();
        }
    }

    /// Notes one because of a refused write, unless it is too soon; returns how long ago the one before was.
    fn note_refusal(&self) -> Option<Duration> {
        let mut last = self.lock();
        let (past, pause) = last.map_or((Duration::MAX, Duration::ZERO), |last| {
            (last.at.elapsed(), last.pause)
        });
        if past < pause {
            return None;
        }
        let next = if past < CALM {
            (pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE)
        } else {
            FIRST_PAUSE
        };
        self.set(&mut last, next);
        Some(past)
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

    fn includes(&self, fetched: Instant) -> bool {
        self.has_been.load(Ordering::Relaxed) && self.lock().is_some_and(|last| fetched < last.at)
    }
}

impl SessionPool {
    /// Replaces every connection before its next use: after a migration, for example, or when the database's
    /// host name points to another server. Idle connections are closed now, those held by sessions when they
    /// are given back; running sessions are not disturbed, and later sessions get new connections. HikariCP's
    /// `softEvictConnections` does the same.
    ///
    /// Connections that users of the plain [`DatabaseConnection`](sea_orm::DatabaseConnection) hold at this
    /// moment are not tracked, and stay. Nothing happens on an in-memory SQLite database, which would die
    /// with its connection, on a `TestPool`, which would lose its transaction, or on a mock.
    ///
    /// ```
    /// # #[cfg(feature = "sqlx-sqlite")]
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// use sea_orm::{ConnectionTrait, Database};
    /// use tower_sea_orm::SessionPool;
    ///
    /// # let dir = tempfile::tempdir()?;
    /// # let url = format!("sqlite://{}?mode=rwc", dir.path().join("shop.db").display());
    /// let pool = SessionPool::new(Database::connect(url).await?);
    /// let session = pool.session().await?;
    /// session.execute_unprepared("CREATE TEMPORARY TABLE of_this_connection (id integer)").await?;
    /// pool.recycle()?;
    /// session.execute_unprepared("INSERT INTO of_this_connection VALUES (1)").await?; // not disturbed
    /// drop(session);
    /// let session = pool.session().await?; // on a new connection
    /// assert!(session.execute_unprepared("INSERT INTO of_this_connection VALUES (1)").await.is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// If it is called outside a tokio runtime, which is needed to close connections.
    pub fn recycle(&self) -> Result<(), Error> {
        Handle::try_current().map_err(|_| Kind::NoRuntime)?;
        if !self.is_in_memory() && !self.is_test() && !self.is_direct() {
            self.shared.eviction.note();
            self.evict_idle();
        }
        Ok(())
    }

    /// The server of a connection fetched at this time takes no writes: no other session is to have one to it.
    pub(super) fn leave_server(&self, fetched: Instant) {
        if self.is_evicted(fetched) {
            return;
        }
        let Some(past) = self.shared.eviction.note_refusal() else {
            return;
        };
        if past >= QUIET {
            tracing::warn!(target: "tower_sea_orm::pool", "the server is read-only: its connections are closed, so that new ones go to the server that takes writes");
        }
        self.evict_idle();
    }

    fn evict_idle(&self) {
        drop(self.shared.queue.take_warm());
        self.shared.source.close_idle();
    }

    /// A connection that was `fetched` at this time is back in the driver's pool. Where all were evicted on its way,
    /// a fetch that has begun since may get it, and brings no other than an evicted one.
    pub(super) fn has_returned(&self, fetched: Instant) {
        if self.is_evicted(fetched) {
            self.shared.source.close_idle();
            self.shared.eviction.extend();
        }
    }

    /// Whether a connection that was fetched from the driver's pool at this time has been evicted since.
    pub(super) fn is_evicted(&self, fetched: Instant) -> bool {
        self.shared.eviction.includes(fetched)
    }
}
