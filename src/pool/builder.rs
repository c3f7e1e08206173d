//! [`SessionPoolBuilder`]: what concerns a pool is set once, before it is shared.

use std::{fmt, sync::Arc, time::Duration};

use sea_orm::DatabaseConnection;

use super::{
    PoolMode, Reset, SessionPool,
    driver_pool::{DriverPool, Memory},
    inner::PoolInner,
    observer::{Observer, Observers},
    options::Settings,
    test_transaction::TestTransaction,
};
use crate::error::Error;

/// Builds a [`SessionPool`]; created by [`SessionPool::builder`].
///
/// Every setting applies to all clones of the pool and all layers over it.
/// Durations may be anything up to [`Duration::MAX`].
///
/// ```
/// # #[cfg(feature = "sqlx-sqlite")]
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// use std::time::Duration;
///
/// use sea_orm::{ConnectOptions, Database};
/// use tower_sea_orm::{DbSessionLayer, SessionPool};
///
/// let mut options = ConnectOptions::new("sqlite::memory:");
/// options.max_connections(4);
/// let pool = SessionPool::builder(Database::connect(options).await?)
///     .acquire_timeout(Duration::from_secs(2))
///     .reserved_connections(1)
///     .build()?;
/// assert_eq!(pool.status().max, 3);
/// let layer = DbSessionLayer::new(pool);
/// # let _ = layer;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[must_use = "it does nothing until `build()`"]
pub struct SessionPoolBuilder {
    database: DatabaseConnection,
    settings: Settings,
    observers: Observers,
    /// `None`: the driver's, if it is shorter than the default.
    acquire_timeout: Option<Duration>,
}

impl SessionPoolBuilder {
    pub(super) fn new(database: DatabaseConnection) -> Self {
        Self {
            database,
            settings: Settings::default(),
            observers: Observers::default(),
            acquire_timeout: None,
        }
    }

    /// Sets how long a session may wait for its connection. Default: the
    /// driver's `acquire_timeout`, but at most 5 s.
    pub fn acquire_timeout(mut self, timeout: Duration) -> Self {
        self.acquire_timeout = Some(timeout);
        self
    }

    /// Sets how long giving a connection back may take before the connection is
    /// closed and its slot freed. It bounds each step on its own: finishing a
    /// running statement, rolling back, sqlx's ping. Default: 5 s. A statement
    /// in an SQLite file goes on behind that until it ends, with its locks. For
    /// an in-memory SQLite database the wait is unbounded, because the database
    /// would die with its connection.
    pub fn release_timeout(mut self, timeout: Duration) -> Self {
        self.settings.release_timeout = timeout;
        self
    }

    /// Sets how long the layer, [`SessionPool::transaction`] and a handler's
    /// own `commit()` wait for the server to answer a COMMIT. After that the
    /// outcome is [unknown](Error::is_outcome_unknown). Default: 30 s.
    ///
    /// Handles over a plain `DatabaseConnection` use SeaORM's `commit()`, which
    /// is not bounded.
    pub fn commit_timeout(mut self, timeout: Duration) -> Self {
        self.settings.commit_timeout = timeout;
        self
    }

    /// Sets how many of the pool's connections sessions leave to users of the
    /// [`DatabaseConnection`] itself. Default: 0. It must be less than
    /// `max_connections`.
    ///
    /// A handler that needs the plain pool while it holds a session deadlocks
    /// on a full pool until the acquire timeout: every connection is held by a
    /// request that waits for another one. A value of 1 or more prevents this,
    /// and so do [`lazy`](crate::DbSessionLayer::lazy) sessions that are
    /// released before the plain pool is used.
    pub fn reserved_connections(mut self, connections: u32) -> Self {
        self.settings.reserved_connections = connections;
        self
    }

    /// Sets how many requests may wait for a connection at the same time.
    /// Further requests are refused as exhausted: their clients would be gone
    /// by the time their turn came. Default: as many as can expect a connection
    /// within a second (or half of `acquire_timeout`, if that is less), judged
    /// by the pace of the last second, but always at least 20 for each of the
    /// pool's `max_connections`.
    ///
    /// Requests are refused at once. Requests for which a connection can still
    /// be opened do not count, nor those for which another one's connection can
    /// be lent, nor one that has lent its own and comes back for another. With
    /// 0, no request waits for a connection that another one uses.
    pub fn max_pending(mut self, waiting: u32) -> Self {
        self.settings.max_pending = Some(waiting);
        self
    }

    /// Sets whether a clean connection goes straight to the next session: to
    /// one that is waiting, or one that arrives before it has been idle for
    /// [too long](Self::test_before_acquire_if_idle_for). Default: `true`.
    ///
    /// On a saturated pool, users of the plain `DatabaseConnection` are not
    /// forgotten: one in a hundred of the connections that come back goes to
    /// the driver's pool, at least one in a fifth of its `acquire_timeout`, and
    /// as many as are taken there.
    ///
    /// A connection that is handed over directly skips the driver pool's pings
    /// and also sqlx's `before_acquire` and `after_release` hooks, which this
    /// crate cannot see: pass `false` if you rely on them.
    pub fn direct_handoff(mut self, enabled: bool) -> Self {
        self.settings.direct_handoff = enabled;
        self
    }

    /// Sets for how long an idle connection is kept for the next session
    /// without being tested. After that, it goes back to the driver's pool,
    /// which pings it, and again before it is used. Default: 30 s, but at most
    /// a tenth of the driver's `idle_timeout` and a quarter of its
    /// `max_lifetime`, which the driver's pool looks after. Zero keeps none:
    /// only a session that waits gets a connection directly.
    ///
    /// SeaORM's [`ConnectOptions`](sea_orm::ConnectOptions) has a setting of
    /// this name for users of the plain `DatabaseConnection`. These lack
    /// nothing by this one: while the driver's pool has no connection left,
    /// idle ones are returned to it.
    ///
    /// The server or the network may have closed a connection meanwhile. That
    /// costs the session's first statement time, but no answer:
    ///
    /// - a transaction begins on another connection;
    /// - a statement outside a transaction that only reads runs again on another one, once. It reads if its keywords say so
    ///   and it calls no functions but well-known ones of the servers (`count`, `coalesce`, `lower`, …); views
    ///   and policies that call others are not looked into. If it gets no answer for 1.2 s on a connection that has been idle for
    ///   a second, the server is asked, on a separate connection, whether it is at work for this client, and again after
    ///   growing pauses as long as it is. If it cannot say, as behind a proxy, the connection is given up after about 4 s;
    /// - anything else, such as a write outside a transaction, a stream or raw code, might happen twice. It is preceded by a
    ///   ping if the connection has been idle for a second. If it fails on one that has died within that second, its error is
    ///   [`is_connection_lost`](Error::is_connection_lost), except where the server says that it had closed the connection as
    ///   idle: then it runs on another one. Raw code gets the driver's error and does not run again, since only its author knows
    ///   what it has done.
    ///
    /// ```
    /// # #[cfg(feature = "sqlx-sqlite")]
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// use std::time::Duration;
    ///
    /// use sea_orm::{ConnectOptions, Database};
    /// use tower_sea_orm::SessionPool;
    ///
    /// # let dir = tempfile::tempdir()?;
    /// # let url = format!("sqlite://{}?mode=rwc", dir.path().join("shop.db").display());
    /// let mut options = ConnectOptions::new(url);
    /// options.max_connections(2); // the only one of a pool is not kept
    /// let pool = SessionPool::builder(Database::connect(options).await?)
    ///     .test_before_acquire_if_idle_for(Duration::from_secs(10))
    ///     .build()?;
    /// drop(pool.session().await?);
    /// assert_eq!(pool.status().idle, 1); // for the next session
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    pub fn test_before_acquire_if_idle_for(mut self, idle: Duration) -> Self {
        self.settings.test_before_acquire_if_idle_for = idle;
        self
    }

    /// Sets what is cleaned up on a connection when a session gives it back,
    /// released early or at its end. Default: [`Reset::RollbackOnly`].
    ///
    /// Session state of a SeaORM proxy cannot be reset: the proxy hands each
    /// statement to custom code, and there is no connection to reset. A mock
    /// has no state to leak and is accepted.
    pub fn reset(mut self, reset: Reset) -> Self {
        self.settings.reset = reset;
        self
    }

    /// Sets for how long a session keeps its connection. Default:
    /// [`PoolMode::Session`], to its end. A layer may have [another
    /// mode](crate::DbSessionLayer::pool_mode).
    ///
    /// SeaORM's proxy has no connections to lend: [`build`](Self::build)
    /// refuses [`PoolMode::Transaction`] there, and together with
    /// [`Reset::SessionStateAlways`], for which every statement leaves session
    /// state behind. On a mock, the mode only refuses what it refuses on a
    /// database.
    pub fn pool_mode(mut self, mode: PoolMode) -> Self {
        self.settings.pool_mode = mode;
        self
    }

    /// Has every connection that may be lent be lent whenever its session's
    /// handler waits, although nothing waits for it, and has the next statement
    /// use another one: for tests of a service in [`PoolMode::Transaction`],
    /// which otherwise show nothing without load. The pool needs two
    /// connections at least, and [`direct_handoff`](Self::direct_handoff):
    /// otherwise the connection that is lent comes back.
    ///
    /// ```
    /// # #[cfg(feature = "sqlx-sqlite")]
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// use sea_orm::{ConnectOptions, ConnectionTrait, Database};
    /// use tower_sea_orm::{PoolMode, SessionPool};
    ///
    /// # let dir = tempfile::tempdir()?;
    /// # let url = format!("sqlite://{}?mode=rwc", dir.path().join("shop.db").display());
    /// let db = Database::connect(ConnectOptions::new(url).max_connections(2).to_owned()).await?;
    /// let pool = SessionPool::builder(db).pool_mode(PoolMode::Transaction).rotate_connections().build()?;
    /// let session = pool.session().await?;
    /// session.execute_unprepared("CREATE TABLE item (id integer)").await?;
    /// while pool.status().used > 0 {
    ///     tokio::task::yield_now().await; // until it is lent
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    #[cfg(feature = "testing")]
    pub fn rotate_connections(mut self) -> Self {
        self.settings.rotates = true;
        self
    }

    /// Cancels, on the server, the statement that still runs for a session that
    /// has ended: the client disconnected, a layer's timeout fired, or the
    /// handler answered and left a statement behind. Default: off; the
    /// statement then runs to its end, and only afterwards is its connection
    /// free (or it is closed after the
    /// [`release_timeout`](Self::release_timeout)).
    ///
    /// # What is cancelled
    ///
    /// - In a transaction, every statement, because the transaction is rolled back anyway; but
    ///   never a COMMIT.
    /// - Outside a transaction, only statements that read, judged by their keywords: a single SELECT,
    ///   VALUES, TABLE, WITH, SHOW, DESCRIBE or EXPLAIN without a keyword that writes or locks. A write
    ///   is finished, as without this setting. A SELECT that calls a function of your own counts as a
    ///   read, whatever the function does.
    /// - A statement whose future is dropped while its request goes on (`select!`, `timeout`): the same
    ///   reads, outside a transaction. Inside a transaction, nothing is cancelled: that would abort the
    ///   handler's transaction.
    ///
    /// The connection is not closed: it waits for the cancel request's own
    /// result and the statement's end, rolls back, and serves the next request.
    /// So a cancellation never hits another request's statement.
    ///
    /// # How, and what it costs
    ///
    /// PostgreSQL gets `pg_cancel_backend`, MySQL and MariaDB `KILL QUERY`, on
    /// one more connection per pool: in addition to `max_connections`, opened
    /// with the first session or cancellation, closed after 5 s without use.
    /// The backend process or thread of a connection is read each time that the
    /// connection comes from the driver's pool, in one round trip before its
    /// first statement; one that is handed over directly pays nothing. SQLite
    /// gets a progress handler, which replaces one that you may have set.
    ///
    /// # Lost results
    ///
    /// The network may lose a connection while a statement runs on it. When a
    /// session exceeds [`hold_slow_threshold`](Self::hold_slow_threshold), and
    /// every 5 s from then on, the pool asks the server, on the same extra
    /// connection, whether it is still working on the statement. If it is not,
    /// three times within a few seconds, the result will not arrive: the
    /// statement ends with an error, its connection is closed, and a COMMIT's
    /// outcome is [unknown](Error::is_outcome_unknown). The same goes if the
    /// server was restarted meanwhile. The server is then told to end the
    /// process or thread (`pg_terminate_backend`, `KILL CONNECTION`), which
    /// releases its locks. Streams, raw closures and, behind a proxy,
    /// statements outside transactions are left alone:
    /// [`hold_timeout`](Self::hold_timeout) bounds these. Without this setting,
    /// the server is asked only while requests wait and no connection is free,
    /// and only whether it is running any longer statement of this account.
    ///
    /// # Limits
    ///
    /// - If the extra connection cannot be opened or does not answer, a warning is logged, and
    ///   statements are waited for as without this setting.
    /// - PostgreSQL lets a role cancel only statements of the same role, so this fails if
    ///   `after_connect` changes the session's user. MySQL and MariaDB let a user kill its own queries.
    /// - Behind a proxy that shares connections between transactions (PgBouncer), a connection's backend
    ///   is known only inside a transaction: each transaction on PostgreSQL then costs one more round
    ///   trip, and outside transactions nothing is cancelled. Such a proxy is recognised by a start-up
    ///   setting that does not arrive. A proxy for MySQL is recognised if it makes up connection numbers,
    ///   and then nothing is cancelled; do not use this setting behind any other proxy for MySQL.
    /// - PgBouncer before 1.21 does not support prepared statements. `statement-cache-capacity=0` in the URL
    ///   sends them without names; even so they are safe only inside transactions, because outside, a
    ///   statement may be prepared on one connection and run on another.
    /// - A SQLite statement that is waiting for another connection's lock is not cancelled.
    ///
    /// ```
    /// # #[cfg(feature = "sqlx-sqlite")]
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// use std::time::Duration;
    /// use sea_orm::{ConnectionTrait, Database, DbBackend, Statement};
    /// use tower_sea_orm::SessionPool;
    ///
    /// let pool = SessionPool::builder(Database::connect("sqlite::memory:").await?).cancel_running().build()?;
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
    pub fn cancel_running(mut self) -> Self {
        self.settings.cancel_running = true;
        self
    }

    /// Sets after how long a session that still holds its connection is logged
    /// at WARN: method and path of its request, for how long, and its last
    /// statement without values. When the connection is back, another line says
    /// so. Default: 10 s; [`Duration::MAX`] turns it off, and zero is refused.
    ///
    /// A session that may lend its connection, before its first statement or in
    /// [`PoolMode::Transaction`], is not logged: its connection goes back to
    /// the pool until the next statement.
    pub fn hold_slow_threshold(mut self, time: Duration) -> Self {
        self.settings.hold_slow_threshold = time;
        self
    }

    /// Sets after how long a session's connection is taken away. Default: never
    /// ([`Duration::MAX`]); zero is refused.
    ///
    /// A running statement is ended as if the request had been dropped, the
    /// transaction is rolled back, and the connection serves other requests, or
    /// is closed if that takes longer than the
    /// [`release_timeout`](Self::release_timeout). A COMMIT that was sent runs
    /// to completion first. The handler goes on: the statement that was running
    /// and every later one fail with an error for which
    /// [`Error::is_hold_timeout`] returns `true`.
    ///
    /// A request that lost its transaction this way never gets a response below
    /// 400: the layer answers
    /// 504. If a statement failed for this reason, a 5xx from the handler becomes 504 as well. A
    /// [held](crate::DbSession::hold_until_body_end) body is aborted.
    ///
    /// The time counts from the checkout; it starts anew after
    /// [`release`](crate::DbSession::release), and when a connection that may
    /// be lent goes back to the pool instead.
    ///
    /// ```
    /// # #[cfg(feature = "sqlx-sqlite")]
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// use std::time::Duration;
    ///
    /// use sea_orm::{ConnectionTrait, Database};
    /// use tower_sea_orm::{Error, SessionPool};
    ///
    /// let db = Database::connect("sqlite::memory:").await?;
    /// let pool = SessionPool::builder(db).hold_timeout(Duration::from_millis(20)).build()?;
    /// let session = pool.session().await?;
    /// while !session.is_closed() {
    ///     tokio::time::sleep(Duration::from_millis(5)).await;
    /// }
    /// let error = session.execute_unprepared("SELECT 1").await.unwrap_err();
    /// assert!(Error::of(&error).unwrap().is_hold_timeout());
    /// # Ok::<(), sea_orm::DbErr>(())
    /// # }).unwrap();
    /// ```
    pub fn hold_timeout(mut self, time: Duration) -> Self {
        self.settings.hold_timeout = time;
        self
    }

    /// Sets how long a session that is [held until the end of its response's
    /// body](crate::DbSession::hold_until_body_end) waits for a client that has
    /// stopped reading. After that, the session is cut off as by
    /// [`hold_timeout`](Self::hold_timeout) and the body is aborted, so that
    /// slow or stalled clients cannot take all connections. The time starts
    /// anew with each part that the server takes from the body; it is checked
    /// once a second. A body that has nothing to send, such as an event stream
    /// without events, does not count as unread:
    /// [`hold_timeout`](Self::hold_timeout) bounds that case. Default: 30 s;
    /// [`Duration::MAX`] turns it off, and zero is refused.
    ///
    /// This crate does not see what the client reads, only what the server
    /// takes: hyper takes the next part when the operating system has accepted
    /// the previous one, which it does only when about a third of the
    /// connection's send buffer is free. Linux lets this buffer grow to 4 MB
    /// (`net.ipv4.tcp_wmem`), so a client that reads a large body at less than
    /// about 1.4 MB in this time (46 kB/s for 30 s) may be cut off although it
    /// is reading. For slower clients, give the listener a smaller send buffer,
    /// which its connections inherit (with 64 KiB, 150 kB in this time are
    /// enough):
    ///
    /// ```no_run
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// let socket = tokio::net::TcpSocket::new_v4()?;
    /// socket.set_send_buffer_size(64 * 1024)?;
    /// socket.bind(([0, 0, 0, 0], 3000).into())?;
    /// let listener = socket.listen(1024)?; // for `axum::serve`
    /// # let _ = listener;
    /// # Ok::<(), std::io::Error>(())
    /// # }).unwrap();
    /// ```
    pub fn body_timeout(mut self, time: Duration) -> Self {
        self.settings.body_timeout = time;
        self
    }

    /// Adds an observer of the pool's sessions, for metrics.
    pub fn observe(mut self, observer: impl Observer + 'static) -> Self {
        self.observers.add(observer);
        self
    }

    /// Sets how often one request may run the same statement before it is
    /// logged: at the session's end, at WARN, with the count, the route and the
    /// statement without values. Of several, the one that came most often is
    /// logged. Statements are the same if their texts are: they differ in bound
    /// values only, not in values that are written into the text. Default:
    /// 10. Zero counts as 1, and [`u32::MAX`] logs none.
    ///
    /// A statement for each row of another one's result (*N + 1*) costs a round
    /// trip for each: SeaORM's [`LoaderTrait`](sea_orm::LoaderTrait) and
    /// `find_with_related` load all of them with one. Jobs and sessions that a
    /// handler takes from the pool itself are not looked at.
    pub fn n_plus_one_threshold(mut self, times: u32) -> Self {
        // At zero, a statement that came once would be a repeated one.
        self.settings.n_plus_one_threshold = times.max(1);
        self
    }

    /// Builds the pool, if its settings are consistent with each other and with
    /// the database.
    ///
    /// # Errors
    ///
    /// - the database is disconnected, or of a driver whose feature is not enabled in this crate; the
    ///   text names the feature;
    /// - [`reserved_connections`](Self::reserved_connections) leaves no connection for sessions;
    /// - [`hold_slow_threshold`](Self::hold_slow_threshold), [`hold_timeout`](Self::hold_timeout) or [`body_timeout`](Self::body_timeout) is
    ///   zero;
    /// - session state is to be [reset](Self::reset), but the database is a proxy.
    pub fn build(self) -> Result<SessionPool, Error> {
        // First: asked for its backend, a disconnected `DatabaseConnection`
        // panics (<https://github.com/SeaQL/sea-orm/issues/2483>).
        let driver = DriverPool::of(&self.database)?;
        self.build_over(driver, None).map(SessionPool::from_inner)
    }

    /// Builds the pool over what its database is known to be.
    pub(super) fn build_over(
        self,
        driver: DriverPool,
        test: Option<TestTransaction>,
    ) -> Result<Arc<PoolInner>, Error> {
        let Self {
            database,
            mut settings,
            observers,
            acquire_timeout,
        } = self;
        // Here and not in the setters: some of it depends on the driver, and
        // the order of the setters is the user's.
        settings.check(&driver)?;
        // The driver's own, where that is shorter: it was set so that requests
        // wait no longer. Longer ones are mostly sqlx's default of 30 s, and no
        // client is patient for so long.
        let default = settings.acquire_timeout;
        let drivers = || driver.acquire_timeout().unwrap_or(default).min(default);
        // A value that the user has set stays as it is, also a longer one.
        settings.acquire_timeout = acquire_timeout.unwrap_or_else(drivers);
        if test.is_none() {
            warn_of_limits(&driver);
        }
        Ok(PoolInner::new(database, driver, settings, observers, test))
    }

    pub(super) fn database(&self) -> &DatabaseConnection {
        &self.database
    }
}

/// Warns of a database that its driver's pool will end. One that connections
/// share is [kept](super::anchor::Anchor).
fn warn_of_limits(driver: &DriverPool) {
    let is_limited = driver.idle_timeout().is_some() || driver.max_lifetime().is_some();
    if is_limited && driver.memory() == Some(Memory::Private) {
        tracing::warn!(
            target: "tower_sea_orm::pool",
            "the database in memory belongs to one connection and is gone when the driver closes that for its idle_timeout or max_lifetime: \
             connect with `ConnectOptions::idle_timeout(None).max_lifetime(None)`, or share it (`sqlite::memory:`)",
        );
    }
}

/// A pool with the default settings.
impl From<DatabaseConnection> for SessionPoolBuilder {
    fn from(database: DatabaseConnection) -> Self {
        Self::new(database)
    }
}

impl fmt::Debug for SessionPoolBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            settings,
            acquire_timeout,
            ..
        } = self;
        f.debug_struct("SessionPoolBuilder")
            .field("settings", settings)
            .field("acquire_timeout", acquire_timeout)
            .finish_non_exhaustive()
    }
}
