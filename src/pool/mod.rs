//! [`SessionPool`]: where sessions come from.
//!
//! One first-in-first-out queue of waiters stands before the driver's pool. The
//! driver's own `acquire()` runs in tasks of the session pool, never in a
//! request, because sqlx drops a connection when an acquire is cancelled in its
//! ping (<https://github.com/launchbadge/sqlx/issues/1869>). A connection, just
//! released or just acquired, goes to the waiter whose turn it is, which
//! `ledger` decides.

mod acquire;
mod admission;
mod anchor;
mod background;
mod builder;
mod call;
#[cfg_attr(
    not(any(feature = "sqlx-postgres", feature = "sqlx-mysql")),
    allow(dead_code)
)] // only a server is asked
mod cancel;
mod chain;
mod checked_out;
mod close;
mod closing;
mod cluster;
mod deadlock;
mod driver_pool;
mod entry;
mod eviction;
mod fetch;
mod fetches;
mod hold_watch;
mod holder;
mod idle;
mod inner;
mod ledger;
mod log;
mod lost_statements;
pub mod observer;
mod options;
mod plain_share;
mod probe;
mod reaper;
mod registry;
mod release;
mod slot;
#[cfg_attr(not(feature = "testing"), allow(dead_code))] // only a test's pool is one
pub(crate) mod test_pool;
#[cfg_attr(not(feature = "testing"), allow(dead_code))] // only a test's pool has one
mod test_transaction;
mod waiters;

use std::{fmt, sync::Arc, time::Duration};

use sea_orm::DatabaseConnection;
use tokio::runtime::Handle;

#[cfg(all(feature = "config", feature = "sqlx-sqlite"))]
pub(crate) use self::driver_pool::Memory;
pub(crate) use self::{
    acquire::time_until,
    call::{Finished, finish_abandoned},
    chain::next_chain,
    checked_out::{CheckedOut, Elsewhere, Lease, WayOut},
    closing::CountedSession,
    deadlock::{break_deadlock, expect_second},
    driver_pool::DriverPool,
    holder::{Doubt, Entered, Grip, Holder, InScope, Key, Label, Scope, current, enter},
    inner::PoolInner,
    observer::{Acquired, Executed, Observers, Released, SessionEnded},
    options::Settings,
    test_transaction::Hook,
    waiters::Claim,
};
pub use self::{
    builder::SessionPoolBuilder,
    ledger::Status,
    observer::{Observer, WeakSessionPool},
    options::PoolMode,
};
pub use crate::connection::Reset;
use crate::error::{Error, Kind};

/// A pool of sessions over a SeaORM [`DatabaseConnection`], shared by its
/// clones.
///
/// The [`DbSessionLayer`](crate::DbSessionLayer) takes its sessions from a
/// pool; background jobs and command-line code use one directly. It corresponds
/// to SQLAlchemy's `async_sessionmaker`.
///
/// Build **one** per database and clone it: two pools over one
/// `DatabaseConnection` do not see each other's waiting requests.
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
    inner: Arc<PoolInner>,
}

impl SessionPool {
    /// Creates a pool of sessions over `database` with the default settings;
    /// use [`builder`](Self::builder) for others.
    ///
    /// # Panics
    ///
    /// If `database` is disconnected, or of a driver whose feature is not
    /// enabled in this crate; the message names the feature.
    /// [`try_new`](Self::try_new) returns this as an error.
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
    /// If `database` is disconnected, or of a driver whose feature is not
    /// enabled in this crate.
    pub fn try_new(database: DatabaseConnection) -> Result<Self, Error> {
        Self::builder(database).build()
    }

    /// Starts a pool over `database` with settings other than the defaults.
    pub fn builder(database: DatabaseConnection) -> SessionPoolBuilder {
        SessionPoolBuilder::new(database)
    }

    /// Returns the underlying SeaORM connection, for code that must have it.
    /// For a `testing::TestPool`, that connection is closed, because its
    /// statements would not be part of the test.
    pub fn database(&self) -> &DatabaseConnection {
        self.inner.database()
    }

    /// Returns a handle that does not keep the pool alive.
    pub fn downgrade(&self) -> WeakSessionPool {
        WeakSessionPool::of(&self.inner)
    }

    /// Returns the pool's current state. Never waits.
    pub fn status(&self) -> Status {
        self.inner.status()
    }

    /// Checks that the database can be reached, for a health check. It opens a
    /// separate connection outside the pool and closes it again, so it never
    /// waits behind requests, and a full pool is not a failure.
    ///
    /// The result is at most 1 s old, and takes at most about 1 s; however many
    /// callers there are, the server sees one log-in a second. A server at its
    /// connection limit counts as reached; a Galera node that is not ready
    /// (`wsrep_ready` is `OFF`, as without quorum) does not. SQLite in memory
    /// has no server to ask: it counts as reached as long as the pool is open.
    ///
    /// ```
    /// # #[cfg(feature = "sqlx-sqlite")]
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// use sea_orm::Database;
    /// use tower_sea_orm::SessionPool;
    ///
    /// let pool = SessionPool::new(Database::connect("sqlite::memory:").await?);
    /// assert!(pool.ping().await.is_ok());
    /// pool.database().clone().close().await?;
    /// assert!(pool.ping().await.unwrap_err().is_closing());
    /// # Ok::<(), sea_orm::DbErr>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// [`is_unreachable`](Error::is_unreachable), or
    /// [`is_closing`](Error::is_closing) if the pool is closed. Also if it is
    /// called outside a tokio runtime.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost: the attempt goes on in a task, and the next caller gets
    /// its result.
    pub async fn ping(&self) -> Result<(), Error> {
        let PoolInner {
            probe,
            driver,
            database,
            ..
        } = &*self.inner;
        probe.ping(driver, database).await
    }

    /// Replaces every connection before its next use: after a migration, for
    /// example, or when the database's host name points to another server. Idle
    /// connections are closed now, those held by sessions when they are given
    /// back; running sessions are not disturbed, and later sessions get new
    /// connections. HikariCP's `softEvictConnections` does the same.
    ///
    /// Connections that users of the plain
    /// [`DatabaseConnection`](sea_orm::DatabaseConnection) hold at this moment
    /// are not tracked, and stay. Nothing happens on an in-memory SQLite
    /// database, which would die with its connection, on a `TestPool`, which
    /// would lose its transaction, or on a mock.
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
    /// If it is called outside a tokio runtime, which is needed to close
    /// connections.
    pub fn recycle(&self) -> Result<(), Error> {
        // Closing connections spawns tasks, which panics without a runtime
        // (H6).
        Handle::try_current().map_err(|_| Kind::NoRuntime)?;
        self.inner.evict();
        Ok(())
    }

    /// Closes the pool. New sessions, including those of new requests, are
    /// refused at once with [`is_closing`](Error::is_closing), and the layer
    /// answers 503 without calling the handler. Sessions that have begun,
    /// including those waiting for their connection, may go on for at most
    /// `within`. The rest are then cut off, as by
    /// [`hold_timeout`](crate::SessionPoolBuilder::hold_timeout), with the same
    /// error. Finally the driver's pool is closed, for users of the plain
    /// `DatabaseConnection` as well.
    ///
    /// It takes at most three
    /// [`release_timeout`](crate::SessionPoolBuilder::release_timeout)s beyond
    /// `within`. Returns how many sessions had to be cut off: their connection
    /// was taken away, or their wait for one ended. A transaction that was cut
    /// off is rolled back, and its request never gets a response below 400.
    ///
    /// Call it when the service is asked to stop, and stop the server when it
    /// returns: see the example `graceful_shutdown`. Calling it again is
    /// harmless.
    ///
    /// ```
    /// # #[cfg(feature = "sqlx-sqlite")]
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// use std::time::Duration;
    ///
    /// use sea_orm::Database;
    /// use tower_sea_orm::SessionPool;
    ///
    /// let pool = SessionPool::new(Database::connect("sqlite::memory:").await?);
    /// assert_eq!(pool.close(Duration::from_secs(10)).await, 0);
    /// assert!(pool.session().await.unwrap_err().is_closing());
    /// # Ok::<(), sea_orm::DbErr>(())
    /// # }).unwrap();
    /// ```
    ///
    /// Outside a tokio runtime, it does not wait: sessions that are still open
    /// are cut off at once.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped half-way, new sessions are still refused, but
    /// nothing more is cut off or closed: call it again.
    pub async fn close(&self, within: Duration) -> usize {
        close::close(&self.inner, within).await
    }

    /// Returns whether new sessions are refused: [`close`](Self::close) was
    /// called, or the driver's pool was closed.
    pub fn is_closed(&self) -> bool {
        self.inner.is_closed()
    }

    /// Returns a pool that passes statements through to `database`, whatever it
    /// is.
    pub(crate) fn pass_through(database: DatabaseConnection) -> Self {
        let driver = DriverPool::Direct(database.clone());
        Self::from_inner(PoolInner::new(
            database,
            driver,
            Settings::default(),
            Observers::default(),
            None,
        ))
    }

    pub(crate) fn from_inner(inner: Arc<PoolInner>) -> Self {
        Self { inner }
    }

    pub(crate) fn inner(&self) -> &Arc<PoolInner> {
        &self.inner
    }
}

impl WeakSessionPool {
    /// Returns the pool, unless all its handles and sessions are gone.
    pub fn upgrade(&self) -> Option<SessionPool> {
        self.inner().map(SessionPool::from_inner)
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

impl fmt::Debug for SessionPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionPool")
            .field("settings", self.inner.settings())
            .field("status", &self.status())
            .field("holders", &self.inner.registry.len())
            .field("sessions", &self.inner.closing.sessions())
            .finish_non_exhaustive()
    }
}
