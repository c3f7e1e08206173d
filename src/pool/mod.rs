//! [`SessionPool`]: where sessions come from.
//!
//! One first-in-first-out queue of waiters stands before the driver's pool. The driver's own
//! `acquire()` runs in tasks of the session pool, never in a request, because sqlx drops a
//! connection when an acquire is cancelled in its ping. Every connection, just released or just
//! acquired, goes to the oldest waiter that is still there.

mod acquire;
mod checkout;
#[cfg_attr(not(feature = "testing"), allow(dead_code))] // only a test's pool has one
mod outer;
mod queue;
mod source;
mod warm;

use std::{fmt, sync::Arc, time::Duration};

use sea_orm::{DatabaseConnection, DbBackend};

pub(crate) use self::{
    acquire::Lease,
    checkout::{CheckedOut, Finished},
};
use self::{outer::Outer, queue::Queue, source::Source};
use crate::{
    error::{Error, Kind},
    telemetry::Pressure,
};

/// The longest wait for a connection unless the driver's own time-out is shorter.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);

/// A pool of sessions over a SeaORM [`DatabaseConnection`], shared by its clones.
///
/// The [`DbSessionLayer`](crate::DbSessionLayer) takes its sessions from one; background jobs and
/// command-line code use it directly. It is what `async_sessionmaker` is to SQLAlchemy.
///
/// Build **one** per database and clone it: two pools over one `DatabaseConnection` do not see each
/// other's waiters.
///
/// ```
/// # #[cfg(feature = "sqlx-sqlite")]
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// use sea_orm::{ConnectionTrait, Database};
/// use tower_sea_orm::SessionPool;
///
/// let pool = SessionPool::new(Database::connect("sqlite::memory:").await?);
/// let session = pool.session().await?;
/// session.execute_unprepared("CREATE TABLE item (id integer)").await?;
/// assert_eq!(pool.status().in_use, 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[derive(Clone)]
pub struct SessionPool {
    shared: Arc<Shared>,
    settings: Settings,
}

struct Shared {
    database: DatabaseConnection,
    source: Source,
    queue: Queue,
    pressure: Pressure,
    probe: tokio::sync::Mutex<Option<acquire::Probe>>,
    /// Only a test's pool has one.
    outer: Option<Outer>,
}

/// What a handle of the pool asks for; a clone may ask for something else.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) acquire_timeout: Duration,
    pub(crate) release_timeout: Duration,
    pub(crate) reserve: u32,
    pub(crate) warm: bool,
}

/// What a [`SessionPool`] is doing right now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// Connections that sessions may hold at the same time: `max_connections` less `reserve`.
    pub limit: u32,
    /// Connections that sessions hold, those on their way back included.
    pub in_use: u32,
    /// Connections that came back a moment ago and wait for the next session.
    pub warm: usize,
    /// Connections being fetched from the driver's pool for somebody who waits.
    pub acquiring: u32,
    /// Requests that wait for a connection.
    pub waiting: usize,
}

impl SessionPool {
    /// A pool of sessions over `database`.
    ///
    /// # Panics
    ///
    /// If `database` is disconnected, or of a driver whose feature is not enabled in this crate;
    /// the message names the feature. [`try_new`](Self::try_new) returns this as an error.
    #[track_caller]
    pub fn new(database: DatabaseConnection) -> Self {
        match Self::try_new(database) {
            Ok(pool) => pool,
            Err(error) => panic!("{error}"),
        }
    }

    /// A pool of sessions over `database`.
    ///
    /// # Errors
    ///
    /// If `database` is disconnected, or of a driver whose feature is not enabled in this crate.
    pub fn try_new(database: DatabaseConnection) -> Result<Self, Error> {
        let source = Source::of(&database)?;
        Ok(Self::over(database, source))
    }

    /// A pool over whatever `database` is, for handles that pass statements through to it.
    pub(crate) fn pass_through(database: DatabaseConnection) -> Self {
        Self::over(database, Source::Direct)
    }

    fn over(database: DatabaseConnection, source: Source) -> Self {
        Self::assemble(database, source, None)
    }

    fn assemble(database: DatabaseConnection, source: Source, outer: Option<Outer>) -> Self {
        let driver_timeout = source.acquire_timeout().unwrap_or(ACQUIRE_TIMEOUT);
        let settings = Settings {
            acquire_timeout: driver_timeout.min(ACQUIRE_TIMEOUT),
            release_timeout: RELEASE_TIMEOUT,
            reserve: 0,
            warm: true,
        };
        let shared = Shared {
            database,
            source,
            queue: Queue::default(),
            pressure: Pressure::default(),
            probe: tokio::sync::Mutex::new(None),
            outer,
        };
        Self { shared: Arc::new(shared), settings }
    }

    /// How long a session may wait for its connection. Default: the driver's `acquire_timeout`,
    /// but at most 5 s.
    #[must_use]
    pub fn acquire_timeout(mut self, timeout: Duration) -> Self {
        self.settings.acquire_timeout = timeout;
        self
    }

    /// How long giving a connection back may take (finishing a running statement, rolling back,
    /// sqlx's ping, each for itself) before the connection is closed and its slot freed.
    /// Default: 5 s. An in-memory SQLite database is waited for without a bound, because it would
    /// die with its connection.
    #[must_use]
    pub fn release_timeout(mut self, timeout: Duration) -> Self {
        self.settings.release_timeout = timeout;
        self
    }

    /// How many of the pool's connections sessions leave to those who use the
    /// [`DatabaseConnection`] itself. Default: 0.
    ///
    /// A handler that needs the plain pool while it holds a session deadlocks on a full pool until
    /// the acquire time-out: every connection is held by a request that waits for another one.
    /// With a reserve of 1 or more, or [`lazy`](crate::DbSessionLayer::lazy) sessions that are
    /// released before the plain pool is used, it does not.
    ///
    /// # Panics
    ///
    /// If it leaves no connection to the sessions.
    #[must_use]
    #[track_caller]
    pub fn reserve(mut self, connections: u32) -> Self {
        if self.shared.source.max_connections().is_some_and(|max| connections >= max) {
            panic!("{}", Error::from(Kind::InvalidReserve));
        }
        self.settings.reserve = connections;
        self
    }

    /// Whether a clean connection goes straight to the next session: to one that waits, or to one that
    /// comes within a second. Default: yes.
    ///
    /// Handed over warm, a connection skips the driver pool's pings and also sqlx's
    /// `before_acquire` and `after_release` hooks, which cannot be seen from here: say `false` if
    /// you rely on them.
    #[must_use]
    pub fn warm(mut self, warm: bool) -> Self {
        self.settings.warm = warm;
        self
    }

    /// The SeaORM connection underneath, for code that must have it.
    pub fn database(&self) -> &DatabaseConnection {
        &self.shared.database
    }

    /// What the pool is doing right now. Never waits.
    pub fn status(&self) -> Status {
        let mut status = self.shared.queue.status();
        status.limit = self.limit();
        status
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// How many connections sessions of this handle may hold at the same time.
    pub(crate) fn limit(&self) -> u32 {
        if self.is_test() {
            return 1;
        }
        let max = self.shared.source.max_connections().unwrap_or(u32::MAX);
        max.saturating_sub(self.settings.reserve).max(1)
    }

    /// Whether sessions pass their statements through (mock, proxy, plain handles).
    pub(crate) fn is_direct(&self) -> bool {
        matches!(self.shared.source, Source::Direct)
    }

    pub(crate) fn is_in_memory(&self) -> bool {
        self.shared.source.is_in_memory()
    }

    pub(crate) fn backend(&self) -> DbBackend {
        self.shared.database.get_database_backend()
    }

    pub(crate) fn pressure(&self) -> &Pressure {
        &self.shared.pressure
    }
}

impl fmt::Debug for SessionPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionPool")
            .field("settings", &self.settings)
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}
