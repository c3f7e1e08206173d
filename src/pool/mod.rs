//! [`SessionPool`]: where sessions come from.
//!
//! One first-in-first-out queue of waiters stands before the driver's pool. The driver's own
//! `acquire()` runs in tasks of the session pool, never in a request, because sqlx drops a
//! connection when an acquire is cancelled in its ping (<https://github.com/launchbadge/sqlx/issues/1869>). Every
//! connection, just released or just acquired, goes to the oldest waiter that is still there.

mod acquire;
mod admission;
mod builder;
mod cancel;
mod checked_out;
mod closing;
mod current_request;
mod deadlock;
mod driver_pool;
mod eviction;
mod hold_watch;
mod idle;
mod ledger;
mod log;
mod lost_statements;
mod probe;
mod rate;
mod registry;
mod slot;
#[cfg_attr(not(feature = "testing"), allow(dead_code))] // only a test's pool has one
mod test_transaction;

use std::{fmt, sync::Arc};

use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend};

pub use self::builder::SessionPoolBuilder;
pub(crate) use self::{
    acquire::Lease,
    builder::Settings,
    checked_out::{CheckedOut, Finished},
    closing::Admission,
    current_request::{Entered, current, enter},
    registry::{Doubt, Grip, Holder, Key, Label},
    test_transaction::Hook,
};
use self::{
    cancel::Control, closing::Closing, deadlock::Second, driver_pool::DriverPool, ledger::Ledger,
    log::Pressure, registry::Registry, test_transaction::TestTransaction,
};
pub use crate::connection::Reset;
use crate::error::Error;

/// A pool of sessions over a SeaORM [`DatabaseConnection`], shared by its clones.
///
/// The [`DbSessionLayer`](crate::DbSessionLayer) takes its sessions from a pool; background jobs
/// and command-line code use one directly. It corresponds to SQLAlchemy's `async_sessionmaker`.
///
/// Build **one** per database and clone it: two pools over one `DatabaseConnection` do not see each
/// other's waiting requests.
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
/// assert_eq!(pool.status().used, 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[derive(Clone)]
pub struct SessionPool {
    shared: Arc<Shared>,
}

struct Shared {
    database: DatabaseConnection,
    settings: Settings,
    source: DriverPool,
    queue: Ledger,
    control: Control,
    /// Prepared statements are not kept.
    unnamed: bool,
    pressure: Pressure,
    probe: probe::Probes,
    eviction: eviction::Eviction,
    holders: Registry,
    second: Second,
    closing: Closing,
    /// Only a test's pool has one.
    outer: Option<TestTransaction>,
}

/// The current state of a [`SessionPool`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// Connections that sessions may hold at the same time: `max_connections` less `reserved_connections`.
    pub max: u32,
    /// Connections that sessions hold, those on their way back included.
    pub used: u32,
    /// Connections that came back a moment ago and wait for the next session or, if none came, are
    /// on their way to the driver's pool.
    pub idle: usize,
    /// Connections being fetched from the driver's pool for waiting requests.
    pub acquiring: u32,
    /// Requests waiting for a connection.
    pub pending: usize,
}

impl SessionPool {
    /// Creates a pool of sessions over `database` with the default settings; use
    /// [`builder`](Self::builder) for others.
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

    /// Creates a pool of sessions over `database` with the default settings.
    ///
    /// # Errors
    ///
    /// If `database` is disconnected, or of a driver whose feature is not enabled in this crate.
    pub fn try_new(database: DatabaseConnection) -> Result<Self, Error> {
        Self::builder(database).build()
    }

    /// A pool over whatever `database` is, for handles that pass statements through to it.
    pub(crate) fn pass_through(database: DatabaseConnection) -> Self {
        Self::assemble(database, DriverPool::Direct, Settings::default(), None)
    }

    fn assemble(
        database: DatabaseConnection,
        source: DriverPool,
        settings: Settings,
        outer: Option<TestTransaction>,
    ) -> Self {
        let limit = if outer.is_some() {
            1
        } else {
            settings.limit(&source)
        };
        let shared = Shared {
            queue: Ledger::new(limit, settings.room(&source)),
            unnamed: source.keeps_no_statements(),
            database,
            settings,
            source,
            control: Control::default(),
            pressure: Pressure::default(),
            probe: probe::Probes::default(),
            eviction: eviction::Eviction::default(),
            holders: Registry::default(),
            second: Second::default(),
            closing: Closing::default(),
            outer,
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Returns the underlying SeaORM connection, for code that must have it. For a `testing::TestPool`, that
    /// connection is closed, because its statements would not be part of the test.
    pub fn database(&self) -> &DatabaseConnection {
        self.shared
            .outer
            .as_ref()
            .map_or(&self.shared.database, TestTransaction::stand_in)
    }

    /// Returns the pool's current state. Never waits.
    pub fn status(&self) -> Status {
        self.shared.queue.status()
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.shared.settings
    }

    /// Whether sessions pass their statements through (mock, proxy, plain handles).
    pub(crate) fn is_direct(&self) -> bool {
        matches!(self.shared.source, DriverPool::Direct)
    }

    /// Whether sessions of both run on the same database.
    pub(crate) fn has_database_of(&self, other: &Self) -> bool {
        let (one, other) = (&self.shared, &other.shared);
        Arc::ptr_eq(one, other)
            || one.source.is_same(&other.source)
            || is_same_stand_in(&one.database, &other.database)
    }

    /// Whether statements run on a server that can be asked about them by another connection.
    pub(crate) fn has_server(&self) -> bool {
        !self.is_test() && self.shared.source.has_server()
    }

    /// Whether SeaORM's proxy is underneath.
    pub(crate) fn is_proxy(&self) -> bool {
        self.is_direct() && !self.shared.database.is_mock_connection()
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

impl From<DatabaseConnection> for SessionPool {
    /// A pool with the default settings.
    ///
    /// # Panics
    ///
    /// As [`SessionPool::new`].
    #[track_caller]
    fn from(database: DatabaseConnection) -> Self {
        Self::new(database)
    }
}

/// Whether both are the same mock or proxy.
fn is_same_stand_in(one: &DatabaseConnection, other: &DatabaseConnection) -> bool {
    #[allow(unused_imports)] // without both features
    use sea_orm::DatabaseConnectionType;
    match (&one.inner, &other.inner) {
        #[cfg(feature = "mock")]
        (
            DatabaseConnectionType::MockDatabaseConnection(one),
            DatabaseConnectionType::MockDatabaseConnection(other),
        ) => Arc::ptr_eq(one, other),
        #[cfg(feature = "proxy")]
        (
            DatabaseConnectionType::ProxyDatabaseConnection(one),
            DatabaseConnectionType::ProxyDatabaseConnection(other),
        ) => Arc::ptr_eq(one, other),
        _ => false,
    }
}

impl fmt::Debug for SessionPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionPool")
            .field("settings", self.settings())
            .field("status", &self.status())
            .field("holders", &self.shared.holders.len())
            .field("sessions", &self.open_sessions())
            .finish_non_exhaustive()
    }
}
