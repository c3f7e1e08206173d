//! [`SessionPool`]: where sessions come from.
//!
//! One first-in-first-out queue of waiters stands before the driver's pool. The driver's own
//! `acquire()` runs in tasks of the session pool, never in a request, because sqlx drops a
//! connection when an acquire is cancelled in its ping. Every connection, just released or just
//! acquired, goes to the oldest waiter that is still there.

mod acquire;
mod cancel;
mod checkout;
mod closing;
mod control;
mod current;
mod holders;
mod line;
#[cfg_attr(not(feature = "testing"), allow(dead_code))] // only a test's pool has one
mod outer;
mod pace;
mod ping;
mod queue;
mod rate;
mod refusals;
mod reset;
mod second;
mod source;
mod text;
mod ticket;
mod warm;
mod watch;

use std::{fmt, sync::Arc, time::Duration};

use sea_orm::{DatabaseConnection, DbBackend};

pub use self::reset::Reset;
pub(crate) use self::{
    acquire::Lease,
    checkout::{CheckedOut, Finished},
    closing::Admission,
    current::{Entered, current, enter},
    holders::{Grip, Holder, Key, Label},
    text::Text,
};
use self::{
    closing::Closing, control::Control, holders::Holders, outer::Outer, queue::Queue, refusals::Refusals,
    second::Second, source::Source,
};
use crate::{
    error::{Error, Kind},
    telemetry::Pressure,
};

/// The longest wait for a connection unless the driver's own time-out is shorter.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);
const WARN_HOLD: Duration = Duration::from_secs(10);

/// How many may wait for each connection, however slow they are.
const WAITING_PER_CONNECTION: u32 = 20;

/// Those may wait as well who can expect their turn within this time.
const PATIENCE: Duration = Duration::from_secs(1);

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
    control: Control,
    /// Prepared statements are not kept.
    unnamed: bool,
    pressure: Pressure,
    probe: ping::Probes,
    holders: Holders,
    second: Second,
    refusals: Refusals,
    closing: Closing,
    /// Only a test's pool has one.
    outer: Option<Outer>,
}

/// What a handle of the pool asks for; a clone may ask for something else.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) acquire_timeout: Duration,
    pub(crate) release_timeout: Duration,
    pub(crate) reserve: u32,
    /// `None`: in proportion to the connections.
    pub(crate) max_waiting: Option<u32>,
    pub(crate) warm: bool,
    pub(crate) reset: Reset,
    pub(crate) cancel_running: bool,
    pub(crate) warn_hold: Duration,
    pub(crate) max_hold: Duration,
}

/// Who may wait.
struct Room {
    /// So many in any case.
    certain: usize,
    /// And as many as can expect their turn within this time.
    patience: Duration,
}

/// What a [`SessionPool`] is doing right now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// Connections that sessions may hold at the same time: `max_connections` less `reserve`.
    pub limit: u32,
    /// Connections that sessions hold, those on their way back included.
    pub in_use: u32,
    /// Connections that came back a moment ago and wait for the next session, or, as none came, are
    /// on their way to the driver's pool.
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
            max_waiting: None,
            warm: true,
            reset: Reset::default(),
            cancel_running: false,
            warn_hold: WARN_HOLD,
            max_hold: Duration::MAX,
        };
        let unnamed = source.keeps_no_statements();
        let shared = Shared {
            database,
            source,
            queue: Queue::default(),
            control: Control::default(),
            unnamed,
            pressure: Pressure::default(),
            probe: ping::Probes::default(),
            holders: Holders::default(),
            second: Second::default(),
            refusals: Refusals::default(),
            closing: Closing::default(),
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

    /// How many may wait for a connection at the same time. One more is turned away, as exhausted: it
    /// would only find its client gone when its turn came. Default: as many as can expect their turn
    /// within a second (or half of `acquire_timeout` where that is less), by the pace of the last one; but
    /// 20 for each of the pool's `max_connections` in any case.
    ///
    /// Who is turned away is told at once. Where there are more than 1000 within two seconds, the others
    /// are told after half a second, so that clients that ask again without a pause do not take the
    /// processor from those that have a connection.
    ///
    /// Those for whom a connection can still be opened do not count. With 0 nobody waits for another
    /// one's connection.
    #[must_use]
    pub fn max_waiting(mut self, waiting: u32) -> Self {
        self.settings.max_waiting = Some(waiting);
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

    /// Has the server stop what runs for a session that has ended: what it does, what it costs and where
    /// its limits are stands at
    /// [`DbSessionLayer::cancel_running`](crate::DbSessionLayer::cancel_running). Default: off.
    ///
    /// ```
    /// # #[cfg(feature = "sqlx-sqlite")]
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// use std::time::Duration;
    /// use sea_orm::{ConnectionTrait, Database, DbBackend, Statement};
    /// use tower_sea_orm::SessionPool;
    ///
    /// let pool = SessionPool::new(Database::connect("sqlite::memory:").await?).cancel_running();
    /// let sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n";
    /// let endless = Statement::from_string(DbBackend::Sqlite, sql);
    /// let session = pool.session().await?;
    /// let query = session.query_one_raw(endless);
    /// assert!(tokio::time::timeout(Duration::from_millis(50), query).await.is_err());
    /// // The query is gone, the connection and its database are not.
    /// session.execute_unprepared("CREATE TABLE item (id integer)").await?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    #[must_use]
    pub fn cancel_running(mut self) -> Self {
        self.settings.cancel_running = true;
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

    /// How many may be in the queue besides those for whom a connection is still to be had.
    fn waiting_room(&self) -> Room {
        if let Some(waiting) = self.settings.max_waiting {
            return Room { certain: waiting as usize, patience: Duration::ZERO };
        }
        let max = self.shared.source.max_connections().unwrap_or(u32::MAX);
        Room {
            certain: max.saturating_mul(WAITING_PER_CONNECTION) as usize,
            patience: PATIENCE.min(self.settings.acquire_timeout / 2),
        }
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
            .field("holders", &self.shared.holders.len())
            .field("sessions", &self.open_sessions())
            .finish_non_exhaustive()
    }
}
