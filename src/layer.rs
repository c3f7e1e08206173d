//! [`DbSessionLayer`]: gives every request a session.

use std::{borrow::Cow, fmt, marker::PhantomData, sync::Arc, time::Duration};

use http::{Response, request::Parts, response};
use sea_orm::{DatabaseConnection, Statement, TransactionOptions};
use tower_layer::{Layer, Stack};

#[cfg(feature = "replicas")]
use crate::replicas::Replicas;
use crate::{
    DbSessionService, DefaultDatabase, Error, PoolMode, SessionBodyLayer, SessionPool,
    connection::search_path,
    policy::{BeginRule, Checkout, Policy, Transactions},
    response::DefaultResponseForError,
};

/// Gives every request to the wrapped service a
/// [`DbSession`](crate::DbSession), and takes the connection back however the
/// request ends.
///
/// By default the connection is checked out before the inner service is called;
/// [`lazy`](Self::lazy) sessions check out at their first statement.
///
/// `Tag` distinguishes several databases; `Respond` makes the response when no
/// connection can be acquired.
#[must_use = "a layer does nothing until it wraps a service"]
pub struct DbSessionLayer<Tag = DefaultDatabase, Respond = DefaultResponseForError> {
    pool: SessionPool,
    // Shared, since servers clone a service for each connection or request.
    policy: Arc<Policy>,
    // A type and not a box: the default costs a request nothing but a header's
    // clone.
    respond: Respond,
    // A function's result, so that a layer is `Send` and `Sync` whatever its
    // tag is.
    tag: PhantomData<fn() -> Tag>,
}

// Beside `tagged`, because the default of a type parameter does not guide
// inference: `DbSessionLayer::tagged(…)` would ask for the tag.
impl DbSessionLayer {
    /// Creates a layer over SeaORM's connection pool, or over a [`SessionPool`]
    /// that other code may share.
    ///
    /// ```
    /// # #[cfg(feature = "mock")] {
    /// use sea_orm::{DbBackend, MockDatabase};
    /// use tower_sea_orm::{DbSessionLayer, SessionPool};
    ///
    /// let db = MockDatabase::new(DbBackend::Postgres).into_connection();
    /// let layer = DbSessionLayer::new(db).lazy();
    ///
    /// // With settings of the pool:
    /// let db = MockDatabase::new(DbBackend::Postgres).into_connection();
    /// let pool = SessionPool::builder(db).max_pending(100).build()?;
    /// let layer = DbSessionLayer::new(pool).lazy();
    /// # let _ = layer; }
    /// # Ok::<(), tower_sea_orm::Error>(())
    /// ```
    ///
    /// # Panics
    ///
    /// If it is given a `DatabaseConnection` that is disconnected, or of a
    /// driver whose feature is not enabled in this crate; the message names the
    /// feature. [`try_new`](Self::try_new) returns this as an error.
    #[track_caller]
    pub fn new(pool: impl Into<SessionPool>) -> Self {
        Self::tagged(pool)
    }

    /// Creates a layer over SeaORM's connection pool.
    ///
    /// # Errors
    ///
    /// If `database` is disconnected, or of a driver whose feature is not
    /// enabled in this crate.
    pub fn try_new(database: DatabaseConnection) -> Result<Self, Error> {
        // For a connection that may be `Disconnected`, which panics at its
        // first question (<https://github.com/SeaQL/sea-orm/issues/2483>).
        SessionPool::try_new(database).map(Self::new)
    }
}

impl<Tag> DbSessionLayer<Tag> {
    /// Creates a layer whose sessions carry a tag, for services with several
    /// databases.
    ///
    /// A request that writes to two databases has two transactions. The inner
    /// layer's transaction is committed first, and stays committed if the other
    /// one fails; that response has no `Retry-After`.
    ///
    /// ```
    /// # #[cfg(feature = "mock")] {
    /// use sea_orm::{DbBackend, MockDatabase};
    /// use tower_sea_orm::DbSessionLayer;
    ///
    /// enum Analytics {}
    /// let db = MockDatabase::new(DbBackend::Postgres).into_connection();
    /// // Handlers take a `DbSession<Analytics>`.
    /// let layer = DbSessionLayer::<Analytics>::tagged(db);
    /// # let _ = layer; }
    /// ```
    ///
    /// # Panics
    ///
    /// As [`new`](DbSessionLayer::new).
    #[track_caller]
    pub fn tagged(pool: impl Into<SessionPool>) -> Self {
        Self {
            pool: pool.into(),
            policy: Arc::default(),
            respond: DefaultResponseForError,
            tag: PhantomData,
        }
    }
}

impl<Tag, Respond> DbSessionLayer<Tag, Respond> {
    /// Checks out at the first statement instead of before the handler: a
    /// request that runs no statement costs the pool nothing.
    pub fn lazy(mut self) -> Self {
        self.policy().checkout = Checkout::Lazy;
        self
    }

    /// Checks out before the handler for the requests that `predicate` selects,
    /// and at the first statement for the others.
    ///
    /// ```
    /// # #[cfg(feature = "mock")] {
    /// # use sea_orm::{DbBackend, MockDatabase};
    /// # use tower_sea_orm::DbSessionLayer;
    /// # let db = MockDatabase::new(DbBackend::Postgres).into_connection();
    /// // A CORS preflight or a health check costs no connection.
    /// let layer = DbSessionLayer::new(db)
    ///     .eager_if(|parts| parts.method != http::Method::OPTIONS && parts.uri.path() != "/health");
    /// # let _ = layer; }
    /// ```
    pub fn eager_if<P>(mut self, predicate: P) -> Self
    where
        P: Fn(&Parts) -> bool + Send + Sync + 'static,
    {
        self.policy().checkout = Checkout::EagerIf(Arc::new(predicate));
        self
    }

    /// Runs every request in a transaction: one BEGIN before its first
    /// statement, COMMIT before a successful response is sent, ROLLBACK before
    /// any other. A request that runs no statement costs nothing on the wire.
    ///
    /// ```
    /// # #[cfg(feature = "mock")] {
    /// # use sea_orm::{DbBackend, MockDatabase};
    /// # use tower_sea_orm::{DbSessionLayer, unsafe_methods};
    /// # let db = MockDatabase::new(DbBackend::Postgres).into_connection();
    /// // Reads commit by themselves, everything that may write is a transaction.
    /// let layer = DbSessionLayer::new(db).transaction_if(unsafe_methods);
    /// # let _ = layer; }
    /// ```
    pub fn transaction(mut self) -> Self {
        self.policy().transactions = Transactions::All;
        self
    }

    /// [`transaction`](Self::transaction) with an isolation level, an access
    /// mode, or SQLite's transaction mode. They also apply to the requests that
    /// [`transaction_if`](Self::transaction_if) selects.
    ///
    /// The options are sent with BEGIN, in one round trip. SQLite has no
    /// isolation levels (its transactions are serializable); for `READ ONLY`,
    /// `PRAGMA query_only` is set instead.
    pub fn transaction_with(mut self, options: TransactionOptions) -> Self {
        let policy = self.policy();
        policy.options = options;
        // The rule of an earlier `transaction_if` stays: these are its options.
        if matches!(policy.transactions, Transactions::None) {
            policy.transactions = Transactions::All;
        }
        self
    }

    /// Runs the requests that `predicate` selects in a
    /// [`transaction`](Self::transaction);
    /// [`unsafe_methods`](crate::unsafe_methods) selects all but GET, HEAD,
    /// OPTIONS and TRACE. In the other requests, each statement commits by
    /// itself.
    pub fn transaction_if<P>(mut self, predicate: P) -> Self
    where
        P: Fn(&Parts) -> bool + Send + Sync + 'static,
    {
        self.policy().transactions = Transactions::If(Arc::new(predicate));
        self
    }

    /// Runs the requests that [`transaction_if`](Self::transaction_if) does not
    /// select in a READ ONLY transaction, so that the server refuses their
    /// writes.
    pub fn read_only_otherwise(mut self) -> Self {
        self.policy().read_only_otherwise = true;
        self
    }

    /// Decides by the response's head whether a request's transaction is
    /// committed. Default: it is for a status below 400 and, for gRPC, a
    /// `grpc-status` of 0 or none.
    ///
    /// For a body that is [held until its
    /// end](crate::DbSession::hold_until_body_end) the rule is called a second
    /// time, with the trailers among the headers.
    pub fn commit_when<P>(mut self, rule: P) -> Self
    where
        P: Fn(&response::Parts) -> bool + Send + Sync + 'static,
    {
        self.policy().commit_when = Some(Arc::new(rule));
        self
    }

    /// Runs statements, made from the request's parts, after each BEGIN of a
    /// session's transaction. With it, every request runs in a transaction.
    /// Settings of PostgreSQL's, for row-level security for example, cost no
    /// round trip by [`set_local`](Self::set_local).
    ///
    /// Pass values as bound values, never inside the SQL. A layer further out
    /// can put them into the request's extensions; if they are missing, return
    /// a statement that fails or that sets a value for which no rows are
    /// visible. The statements run again when a transaction begins after an
    /// early commit or rollback. If one fails, the transaction is rolled back
    /// and the handler's statement returns that error.
    ///
    /// ```
    /// # #[cfg(feature = "mock")] {
    /// # use sea_orm::{DbBackend, MockDatabase, Statement};
    /// # use tower_sea_orm::DbSessionLayer;
    /// # #[derive(Clone)] struct User(i64);
    /// # let db = MockDatabase::new(DbBackend::Postgres).into_connection();
    /// let layer = DbSessionLayer::new(db).on_begin(|parts| {
    ///     let user = parts.extensions.get::<User>().map(|user| user.0);
    ///     let sql = "SELECT pg_advisory_xact_lock($1)";
    ///     vec![Statement::from_sql_and_values(DbBackend::Postgres, sql, [user.into()])]
    /// });
    /// # let _ = layer; }
    /// ```
    pub fn on_begin<F>(mut self, set_up: F) -> Self
    where
        F: Fn(&Parts) -> Vec<Statement> + Send + Sync + 'static,
    {
        self.begin().statements(Arc::new(set_up));
        self
    }

    /// Limits each statement of a request's transactions to `timeout`, by
    /// PostgreSQL's `statement_timeout`, MariaDB's `max_statement_time`, or
    /// MySQL's `max_execution_time`, which limits reads only. With it, every
    /// request runs in a transaction.
    ///
    /// A statement that takes longer fails with
    /// [`is_statement_timeout`](Error::is_statement_timeout); if the handler
    /// then responds with a 5xx, the layer responds with 504 instead. Zero is
    /// no limit, as in PostgreSQL's configuration, and so is more than the
    /// server can count (25 days at least). Fractions of a millisecond are
    /// rounded up.
    ///
    /// On PostgreSQL it travels in BEGIN's own text and ends with the
    /// transaction. On MySQL and MariaDB it is a setting of the connection: it
    /// is set with BEGIN, and one more round trip after the end of the
    /// transaction puts back what was there before.
    ///
    /// ```
    /// # #[cfg(feature = "mock")] {
    /// # use std::time::Duration;
    /// # use sea_orm::{DbBackend, MockDatabase};
    /// # use tower_sea_orm::DbSessionLayer;
    /// # let db = MockDatabase::new(DbBackend::Postgres).into_connection();
    /// let layer = DbSessionLayer::new(db)
    ///     .statement_timeout(Duration::from_secs(5))
    ///     .lock_timeout(Duration::from_millis(500));
    /// # let _ = layer; }
    /// ```
    ///
    /// # Panics
    ///
    /// On SQLite, which has no such time-out.
    #[track_caller]
    pub fn statement_timeout(mut self, timeout: Duration) -> Self {
        self.begin().statement_timeout(timeout);
        self.assert_begin()
    }

    /// Limits each wait for a lock in a request's transactions to `timeout`, by
    /// PostgreSQL's `lock_timeout`, MySQL's and MariaDB's
    /// `innodb_lock_wait_timeout` and `lock_wait_timeout`, or SQLite's
    /// `busy_timeout`, also while BEGIN waits. With it, every request runs in a
    /// transaction.
    ///
    /// A statement that gets no lock in time fails with
    /// [`is_lock_not_available`](Error::is_lock_not_available); if the handler
    /// then responds with a 5xx, the layer responds with 503 and `Retry-After`
    /// instead. Zero is no limit (on MySQL and MariaDB it is a year for a
    /// table's lock). Fractions of a millisecond are rounded up, and on MySQL
    /// and MariaDB fractions of a second.
    ///
    /// It costs what [`statement_timeout`](Self::statement_timeout) does; both
    /// together cost no more than one.
    pub fn lock_timeout(mut self, timeout: Duration) -> Self {
        // Every database has one: nothing to be checked, unlike
        // `statement_timeout`, which SQLite lacks.
        self.begin().lock_timeout(timeout);
        self
    }

    /// Sets PostgreSQL's parameter `name` to a value, made from the request's
    /// parts, until the end of each of the request's transactions; for
    /// row-level security, for example. With it, every request runs in a
    /// transaction.
    ///
    /// It travels in BEGIN's own text, as `set_config(name, value, true)`, and
    /// costs no round trip. The value may be any text: it is quoted, whatever
    /// the server's settings are. One with a NUL character, or that the server
    /// refuses for this parameter, fails the handler's statement. A layer
    /// further out can put what it depends on into the request's extensions; if
    /// that is missing, return a value for which no rows are visible.
    ///
    /// ```
    /// # #[cfg(feature = "mock")] {
    /// # use sea_orm::{DbBackend, MockDatabase};
    /// # use tower_sea_orm::DbSessionLayer;
    /// # #[derive(Clone)] struct Tenant(String);
    /// # let db = MockDatabase::new(DbBackend::Postgres).into_connection();
    /// let layer = DbSessionLayer::new(db).set_local("app.tenant", |parts| {
    ///     parts.extensions.get::<Tenant>().map(|tenant| tenant.0.clone()).unwrap_or_default()
    /// });
    /// # let _ = layer; }
    /// ```
    ///
    /// # Panics
    ///
    /// If `name` is not the name of a setting (letters, digits, `_` and `$`, in
    /// parts between dots), if it belongs to
    /// [`transaction_with`](Self::transaction_with), or if the database is not
    /// PostgreSQL.
    #[track_caller]
    pub fn set_local<F>(mut self, name: impl Into<Cow<'static, str>>, value: F) -> Self
    where
        F: Fn(&Parts) -> String + Send + Sync + 'static,
    {
        self.begin().set_local(name.into(), Arc::new(value));
        self.assert_begin()
    }

    /// [`set_local`](Self::set_local) for PostgreSQL's `search_path`, of
    /// schemas that are looked into in this order; for a schema to each tenant,
    /// for example. Their names are quoted.
    ///
    /// ```
    /// # #[cfg(feature = "mock")] {
    /// # use sea_orm::{DbBackend, MockDatabase};
    /// # use tower_sea_orm::DbSessionLayer;
    /// # #[derive(Clone)] struct Tenant(String);
    /// # let db = MockDatabase::new(DbBackend::Postgres).into_connection();
    /// let layer = DbSessionLayer::new(db).search_path(|parts| {
    ///     let tenant = parts.extensions.get::<Tenant>();
    ///     tenant.map(|tenant| tenant.0.clone()).into_iter().collect()
    /// });
    /// # let _ = layer; }
    /// ```
    ///
    /// # Panics
    ///
    /// If the database is not PostgreSQL.
    #[track_caller]
    pub fn search_path<F>(self, schemas: F) -> Self
    where
        F: Fn(&Parts) -> Vec<String> + Send + Sync + 'static,
    {
        // Quoted on the way: a tenant's name out of a request must not become
        // SQL.
        self.set_local("search_path", move |parts| search_path(&schemas(parts)))
    }

    /// Names each transaction of a request in PostgreSQL's `pg_stat_activity`
    /// and, where `log_line_prefix` has `%a`, in the server's log. A slow query
    /// or a lock holder listed there then shows its route and trace ID.
    ///
    /// It is PostgreSQL's `application_name`, and travels as
    /// [`set_local`](Self::set_local) does: no round trip, and the statements'
    /// own texts stay the same, so that they are prepared once. The name is
    /// restored when the transaction ends. What is not printable ASCII becomes
    /// `?`. PostgreSQL keeps 63 bytes: put the 32-digit trace ID first
    /// ([sqlcommenter](https://google.github.io/sqlcommenter/spec/)'s
    /// `traceparent` and a route are too long together).
    ///
    /// Unlike `set_local`, it puts no request into a transaction: statements
    /// that commit by themselves run under the connection's own name, because
    /// naming each of them would cost a round trip.
    ///
    /// ```
    /// # #[cfg(all(feature = "axum", feature = "mock"))] {
    /// # use sea_orm::{DbBackend, MockDatabase};
    /// use axum::extract::MatchedPath;
    /// use tower_sea_orm::{DbSessionLayer, trace_id, unsafe_methods};
    ///
    /// # let db = MockDatabase::new(DbBackend::Postgres).into_connection();
    /// // 0af7651916cd43dd8448eb211c80319c PUT /items/{id}
    /// let layer = DbSessionLayer::new(db).transaction_if(unsafe_methods).application_name(|parts| {
    ///     let route = parts.extensions.get::<MatchedPath>().map_or("", MatchedPath::as_str);
    ///     format!("{} {} {route}", trace_id(parts).unwrap_or("-"), parts.method)
    /// });
    /// # let _ = layer; }
    /// ```
    ///
    /// # Panics
    ///
    /// If the database is not PostgreSQL.
    #[track_caller]
    pub fn application_name<F>(mut self, name: F) -> Self
    where
        F: Fn(&Parts) -> String + Send + Sync + 'static,
    {
        self.begin().application_name(Arc::new(name));
        self.assert_begin()
    }

    /// Runs statements, made from the request's parts, on a request's
    /// connection before its first statement, and again after
    /// [`release`](crate::DbSession::release). Pass values as bound values,
    /// never inside the SQL.
    ///
    /// Their effects outlive the transaction. So that no other request gets
    /// them, a PostgreSQL connection is reset after the request if the pool's
    /// [`reset`](crate::SessionPoolBuilder::reset) is on for session state.
    /// Otherwise the connection is closed, which costs a new one each time.
    /// Prefer [`set_local`](Self::set_local), or [`on_begin`](Self::on_begin)
    /// with what ends with the transaction.
    ///
    /// If one of them fails, the handler's first statement returns its error,
    /// and the connection is closed: the session gets no other.
    ///
    /// # Panics
    ///
    /// If the database is SQLite in memory, which dies with its connection, or
    /// SeaORM's proxy, which has no connection per session. A mock runs the
    /// statements before the session's first one, so append results for them.
    #[track_caller]
    pub fn on_acquire<F>(mut self, set_up: F) -> Self
    where
        F: Fn(&Parts) -> Vec<Statement> + Send + Sync + 'static,
    {
        // The session's connection is closed afterwards, which neither of the
        // two survives.
        if let Err(error) = self.pool.inner().check_on_acquire() {
            panic!("{error}");
        }
        self.policy().on_acquire = Some(Arc::new(set_up));
        self
    }

    /// Bounds by a request's own deadline how long it waits for connections:
    /// nobody waits any more for the response to one that is served later.
    /// `left` returns how much longer its client waits; `None` is no deadline.
    /// No wait is longer than the pool's
    /// [`acquire_timeout`](crate::SessionPoolBuilder::acquire_timeout) either;
    /// a read that its replica has no connection for waits anew for one to the
    /// primary. The error is the same. With no time left, a session only gets a connection
    /// that is idle.
    ///
    /// Together with [`statement_timeout`](Self::statement_timeout), the
    /// server's limit for a request's statements is the smaller one of that and
    /// of what is left when the request comes in: the time that passes until
    /// then is not subtracted.
    ///
    /// A running statement is not ended by the deadline itself. Put a layer
    /// that drops the request outside this one, such as tower-http's
    /// `TimeoutLayer` or tonic's own, and see
    /// [`cancel_running`](crate::SessionPoolBuilder::cancel_running).
    ///
    /// ```
    /// # #[cfg(feature = "mock")] {
    /// # use sea_orm::{DbBackend, MockDatabase};
    /// use tower_sea_orm::{DbSessionLayer, grpc_timeout};
    ///
    /// # let db = MockDatabase::new(DbBackend::Postgres).into_connection();
    /// let layer = DbSessionLayer::new(db).deadline(grpc_timeout);
    /// # let _ = layer; }
    /// ```
    pub fn deadline<F>(mut self, left: F) -> Self
    where
        F: Fn(&Parts) -> Option<Duration> + Send + Sync + 'static,
    {
        // A closure, since protocols have headers of their own for it, as gRPC
        // has.
        self.policy().deadline = Some(Arc::new(left));
        self
    }

    /// Picks the pool for each request: a tenant's, or a replica's for the
    /// requests that only read. A request for which `pick` returns `None` gets
    /// the response for [`is_unknown_database`](Error::is_unknown_database),
    /// 404 by default, and is not logged above DEBUG.
    ///
    /// `pick` sees the request's head with what layers further out have put
    /// into its extensions. It must not block: keep the pools in a map, and
    /// open one that is missing with sqlx's `connect_lazy`, which connects with
    /// the first session. If it panics, so does the service.
    ///
    /// Settings such as [`set_local`](Self::set_local) are checked against the
    /// layer's own pool, the one given to [`new`](DbSessionLayer::new), so all
    /// picked ones must be over the same kind of database. Set a
    /// [`pool_mode`](crate::SessionPoolBuilder::pool_mode) on the picked pools
    /// themselves: the layer's counts for such a pool from its first request
    /// on, and sessions that it had before are not reset for it. A layer of the
    /// same tag inside this one has to pick the same pool; otherwise the
    /// response is a 500.
    ///
    /// ```
    /// # #[cfg(feature = "sqlx-sqlite")]
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// # use std::{collections::HashMap, convert::Infallible};
    /// # use http::{Request, Response};
    /// # use sea_orm::Database;
    /// # use tower::{Layer, ServiceExt, service_fn};
    /// use tower_sea_orm::{DbSession, DbSessionLayer, SessionPool};
    ///
    /// let home = SessionPool::new(Database::connect("sqlite::memory:").await?);
    /// let acme = SessionPool::new(Database::connect("sqlite::memory:").await?);
    /// let tenants = HashMap::from([("acme".to_owned(), acme)]);
    /// let layer = DbSessionLayer::new(home).by(move |parts| {
    ///     // A stand-in: a service would take the tenant from a token that it has verified.
    ///     tenants.get(parts.headers.get("x-tenant")?.to_str().ok()?).cloned()
    /// });
    /// # let inner = service_fn(async |request: Request<()>| {
    /// #     DbSession::<tower_sea_orm::DefaultDatabase>::from_extensions(request.extensions()).unwrap();
    /// #     Ok::<_, Infallible>(Response::new(String::new()))
    /// # });
    /// let service = layer.layer(inner); // `Router::layer`, with axum
    /// let request = |tenant| Request::get("/").header("x-tenant", tenant).body(()).unwrap();
    /// assert_eq!(service.clone().oneshot(request("acme")).await.unwrap().status(), 200);
    /// assert_eq!(service.oneshot(request("nobody")).await.unwrap().status(), 404);
    /// # Ok::<(), sea_orm::DbErr>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// A pool over another kind of database, or one that cannot do what the
    /// layer's settings ask for, is a mistake of the service: the response is a
    /// 500, and the log says what is wrong.
    pub fn by<F>(mut self, pick: F) -> Self
    where
        F: Fn(&Parts) -> Option<SessionPool> + Send + Sync + 'static,
    {
        // The pool is checked at each request: the layer cannot know the pools
        // beforehand.
        self.policy().by = Some(Arc::new(pick));
        self
    }

    /// Sends reads to replicas and makes sure that clients see their own writes
    /// (feature `replicas`, PostgreSQL and MariaDB).
    ///
    /// A request with a safe method gets a session in a READ ONLY transaction
    /// on a replica, or on the primary if no replica can serve it. A handler of
    /// such a request that takes a [`DbTx`](crate::DbTx), or one inside a
    /// [`TransactionLayer`](crate::TransactionLayer) whose transactions are not
    /// READ ONLY, gets the primary. All other requests get it as well, with the
    /// layer's own settings. The settings of transactions and connections, such
    /// as [`set_local`](Self::set_local) and [`on_acquire`](Self::on_acquire),
    /// apply on replicas as well.
    ///
    /// COMMIT returns the position it reached, in the same round trip. Where
    /// statements commit one by one, the request asks for it at its end, which
    /// is one round trip more: see [`transaction_if`](Self::transaction_if).
    /// With [held bodies](Self::hold_until_body_end), the position is not known
    /// yet when the response's head leaves: then the client's next reads go to
    /// the primary.
    ///
    /// [`Replicas`] describes the cluster, and [Scaling
    /// out](crate::guide::scaling_out) has an example, the costs and the
    /// limits.
    ///
    /// # Panics
    ///
    /// If the layer's pool is not the primary's, a replica's pool is the
    /// primary's, the servers are not all PostgreSQL or all MariaDB, there is
    /// no replica, or [`by`](Self::by) picks the pools.
    #[cfg(feature = "replicas")]
    #[track_caller]
    pub fn replicas(mut self, replicas: Replicas) -> Self {
        // Where the service is built and not at its first request: it would be
        // found in production otherwise.
        if let Err(kind) = self.policy.check_replicas(self.pool.inner(), &replicas) {
            panic!("{}", Error::from(kind));
        }
        self.policy().replicas = Some(replicas);
        // Again, because `pool_mode` and `replicas` may be called in either
        // order.
        if let Err(error) = self.policy.lend_replicas() {
            panic!("{error}");
        }
        self
    }

    /// Sets for how long its sessions keep their connections. Default: as the
    /// pool's [`pool_mode`](crate::SessionPoolBuilder::pool_mode).
    ///
    /// With [`PoolMode::Transaction`] on one layer, every session of the pool
    /// is reset as by [`Reset::SessionState`](crate::Reset::SessionState). A
    /// layer inside another one with the same tag, whose session it uses, can
    /// set [`PoolMode::Session`] for its requests, but not the other way round.
    ///
    /// ```
    /// # #[cfg(feature = "mock")] {
    /// # use sea_orm::{DbBackend, MockDatabase};
    /// use tower_sea_orm::{DbSessionLayer, PoolMode, SessionPool};
    ///
    /// # let db = MockDatabase::new(DbBackend::Postgres).into_connection();
    /// let pool = SessionPool::new(db);
    /// let uploads = DbSessionLayer::new(pool.clone()).pool_mode(PoolMode::Transaction);
    /// let reports = DbSessionLayer::new(pool);
    /// # let _ = (uploads, reports); }
    /// ```
    ///
    /// # Panics
    ///
    /// With [`PoolMode::Transaction`] over SeaORM's proxy, which has no
    /// connections to lend, or over a pool with
    /// [`Reset::SessionStateAlways`](crate::Reset::SessionStateAlways), for
    /// which every statement leaves session state behind.
    #[track_caller]
    pub fn pool_mode(mut self, mode: PoolMode) -> Self {
        if mode == PoolMode::Transaction
            && let Err(error) = self.pool.inner().allow_lending()
        {
            panic!("{error}");
        }
        self.policy().pool_mode = Some(mode);
        #[cfg(feature = "replicas")]
        if let Err(error) = self.policy.lend_replicas() {
            panic!("{error}");
        }
        self
    }

    /// Names a request's route, such as `/items/{id}`, for the log's lines
    /// about its session and for [`Observer`](crate::Observer)s, whose labels
    /// must be few: the path itself has identifiers in it.
    ///
    /// With axum, the router has put the route into the request's extensions
    /// where the layer was added to it by `layer` or `route_layer`. With tonic,
    /// the path is the route: `parts.uri.path()`.
    ///
    /// ```
    /// # #[cfg(all(feature = "axum", feature = "mock"))] {
    /// # use sea_orm::{DbBackend, MockDatabase};
    /// use axum::extract::MatchedPath;
    /// use tower_sea_orm::DbSessionLayer;
    ///
    /// # let db = MockDatabase::new(DbBackend::Postgres).into_connection();
    /// let layer = DbSessionLayer::new(db)
    ///     .http_route(|parts| Some(parts.extensions.get::<MatchedPath>()?.as_str().into()));
    /// # let _ = layer; }
    /// ```
    pub fn http_route<F>(mut self, route: F) -> Self
    where
        F: Fn(&Parts) -> Option<Arc<str>> + Send + Sync + 'static,
    {
        // Asked of a closure: the route is known to the router, and each
        // framework has its own (G14).
        self.policy().http_route = Some(Arc::new(route));
        self
    }

    /// Adds a `Server-Timing` header to the responses of requests that had a
    /// session, for browsers' developer tools: how long the request has waited
    /// for a connection, and how long it has held one, with the number of its
    /// statements. For a [held body](Self::hold_until_body_end), until the
    /// response's head. Default: off, because it tells clients how the service
    /// works ([why that
    /// matters](https://www.w3.org/TR/server-timing/#privacy-and-security)).
    ///
    /// ```text
    /// server-timing: db-wait;dur=0.012;desc="waited for a connection", db-hold;dur=1.74;desc="held a connection, 3 statements"
    /// ```
    ///
    /// ```
    /// # #[cfg(feature = "mock")] {
    /// # use std::convert::Infallible;
    /// # use http::{Request, Response};
    /// # use sea_orm::{DbBackend, MockDatabase};
    /// # use tower::{Layer, ServiceExt, service_fn};
    /// # use tower_sea_orm::DbSessionLayer;
    /// # let db = MockDatabase::new(DbBackend::Postgres).into_connection();
    /// # let inner = service_fn(async |_: Request<()>| Ok::<_, Infallible>(Response::new(String::new())));
    /// let service = DbSessionLayer::new(db).server_timing().layer(inner);
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// let response = service.oneshot(Request::new(())).await.unwrap();
    /// let timing = response.headers()["server-timing"].to_str().unwrap();
    /// assert!(timing.starts_with("db-wait;dur="));
    /// # }); }
    /// ```
    pub fn server_timing(mut self) -> Self {
        self.policy().response.times = true;
        self
    }

    /// Keeps a handler's own 5xx response if its session got no connection, or
    /// lost it to [`hold_timeout`](crate::SessionPoolBuilder::hold_timeout). By
    /// default the layer replaces it, because only the layer knows that 503 and
    /// `Retry-After` are right.
    pub fn keep_handler_errors(mut self) -> Self {
        self.policy().response.keeps_errors = true;
        self
    }

    /// Makes the layer's own responses, for when no connection can be acquired
    /// or a transaction could not be committed. Pass a closure from the error
    /// and the request's head to a response, or
    /// [`problem_json`](crate::problem_json). Default: an empty body.
    ///
    /// The parts are the complete head that the request had when it reached the
    /// layer, extensions included. They are copied before the handler runs, for
    /// each request.
    ///
    /// ```
    /// # #[cfg(feature = "mock")] {
    /// # use http::Response;
    /// # use sea_orm::{DbBackend, MockDatabase};
    /// # use tower_sea_orm::{DbSessionLayer, error_response};
    /// # let db = MockDatabase::new(DbBackend::Postgres).into_connection();
    /// let layer = DbSessionLayer::new(db).response_for_error(|error, parts| {
    ///     let body = format!("{} could not be served", parts.uri.path());
    ///     error_response(error, parts, body) // the status and `Retry-After` that belong to it
    /// });
    /// # let _ = layer; }
    /// ```
    // `Fn`, not `ResponseForError`: only such a bound has the types of a
    // closure's arguments inferred.
    pub fn response_for_error<F, B>(self, respond: F) -> DbSessionLayer<Tag, F>
    where
        F: Fn(&Error, &Parts) -> Response<B>,
    {
        DbSessionLayer {
            // Field by field, since the layer's type changes with the
            // closure's.
            pool: self.pool,
            policy: self.policy,
            respond,
            tag: PhantomData,
        }
    }

    /// Keeps every request's session until the end of its response's body
    /// instead of its head, as
    /// [`DbSession::hold_until_body_end`](crate::DbSession::hold_until_body_end)
    /// does for one request: for bodies that stream rows. Call it last: it
    /// returns a stack of two layers, whose responses have a
    /// [`SessionBody`](crate::SessionBody).
    pub fn hold_until_body_end(self) -> Stack<SessionBodyLayer<Tag>, Self> {
        // The first layer of a stack is the inner one: the body is held before
        // its response reaches the session.
        Stack::new(SessionBodyLayer::tagged(), self)
    }

    fn begin(&mut self) -> &mut BeginRule {
        &mut self.policy().begin
    }

    /// # Panics
    ///
    /// If the database cannot do what each BEGIN is to bring along.
    #[track_caller]
    fn assert_begin(self) -> Self {
        self.policy.begin.assert_for(self.pool.inner().backend());
        self
    }

    fn policy(&mut self) -> &mut Policy {
        // A copy if the layer was cloned or has wrapped a service: those keep
        // their settings.
        Arc::make_mut(&mut self.policy)
    }

    /// Returns the pool that the sessions come from, unless [`by`](Self::by)
    /// picks another.
    pub fn pool(&self) -> &SessionPool {
        &self.pool
    }
}

impl<S, Tag, Respond: Clone> Layer<S> for DbSessionLayer<Tag, Respond> {
    type Service = DbSessionService<S, Tag, Respond>;

    fn layer(&self, inner: S) -> Self::Service {
        DbSessionService::new(
            inner,
            self.pool.clone(),
            self.policy.clone(),
            self.respond.clone(),
        )
    }
}

// By hand, because a derived one would ask the tag to be `Clone`.
impl<Tag, Respond: Clone> Clone for DbSessionLayer<Tag, Respond> {
    fn clone(&self) -> Self {
        Self {
            pool: self.pool.clone(),
            policy: self.policy.clone(),
            respond: self.respond.clone(),
            tag: PhantomData,
        }
    }
}

impl<Tag, Respond> fmt::Debug for DbSessionLayer<Tag, Respond> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DbSessionLayer")
            .field("pool", &self.pool)
            .finish_non_exhaustive()
    }
}
