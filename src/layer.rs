//! [`DbSessionLayer`]: gives every request a session.

use std::{fmt, marker::PhantomData, sync::Arc};

use http::{Response, request::Parts, response};
use sea_orm::{DatabaseConnection, Statement, TransactionOptions};
use tower_layer::{Layer, Stack};

use crate::{
    DbSessionService, DefaultDatabase, Error, PoolMode, SessionBodyLayer, SessionPool,
    error::Kind,
    policy::{Checkout, Policy, Transactions},
    response::DefaultResponseForError,
};

/// Gives every request to the wrapped service a [`DbSession`](crate::DbSession), and takes the
/// connection back however the request ends.
///
/// By default the connection is checked out before the inner service is called;
/// [`lazy`](Self::lazy) sessions check out at their first statement.
///
/// `Tag` distinguishes several databases; `Respond` makes the response when no connection can be
/// acquired.
#[must_use = "a layer does nothing until it wraps a service"]
pub struct DbSessionLayer<Tag = DefaultDatabase, Respond = DefaultResponseForError> {
    pool: SessionPool,
    // Shared, since servers clone a service for each connection or request.
    policy: Arc<Policy>,
    respond: Respond,
    // A function's result, so that a layer is `Send` and `Sync` whatever its tag is.
    tag: PhantomData<fn() -> Tag>,
}

// Beside `tagged`, because the default of a type parameter does not guide inference: `DbSessionLayer::tagged(…)` would
// ask for the tag.
impl DbSessionLayer {
    /// Creates a layer over SeaORM's connection pool, or over a [`SessionPool`] that other code may
    /// share.
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
    /// If it is given a `DatabaseConnection` that is disconnected, or of a driver whose feature is not
    /// enabled in this crate; the message names the feature. [`try_new`](Self::try_new) returns this as an
    /// error.
    #[track_caller]
    pub fn new(pool: impl Into<SessionPool>) -> Self {
        Self::tagged(pool)
    }

    /// Creates a layer over SeaORM's connection pool.
    ///
    /// # Errors
    ///
    /// If `database` is disconnected, or of a driver whose feature is not enabled in this crate.
    pub fn try_new(database: DatabaseConnection) -> Result<Self, Error> {
        SessionPool::try_new(database).map(Self::new)
    }
}

impl<Tag> DbSessionLayer<Tag> {
    /// Creates a layer whose sessions carry a tag, for services with several databases.
    ///
    /// A request that writes to two databases has two transactions. The inner layer's transaction is committed
    /// first, and stays committed if the other one fails; that response has no `Retry-After`.
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
    /// Checks out at the first statement instead of before the handler: a request that runs no
    /// statement costs the pool nothing.
    pub fn lazy(mut self) -> Self {
        self.policy().checkout = Checkout::Lazy;
        self
    }

    /// Checks out before the handler for the requests that `predicate` selects, and at the first
    /// statement for the others.
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

    /// Runs every request in a transaction: one BEGIN before its first statement, COMMIT before a
    /// successful response is sent, ROLLBACK before any other. A request that runs no statement
    /// costs nothing on the wire.
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

    /// [`transaction`](Self::transaction) with an isolation level, an access mode, or SQLite's
    /// transaction mode. They also apply to the requests that
    /// [`transaction_if`](Self::transaction_if) selects.
    ///
    /// The options are sent with BEGIN, in one round trip. SQLite has no isolation levels (its
    /// transactions are serializable); for `READ ONLY`, `PRAGMA query_only` is set instead.
    pub fn transaction_with(mut self, options: TransactionOptions) -> Self {
        let policy = self.policy();
        policy.options = options;
        // The rule of an earlier `transaction_if` stays: these are its options.
        if matches!(policy.transactions, Transactions::None) {
            policy.transactions = Transactions::All;
        }
        self
    }

    /// Runs the requests that `predicate` selects in a [`transaction`](Self::transaction);
    /// [`unsafe_methods`](crate::unsafe_methods) selects all but GET, HEAD, OPTIONS and TRACE. In the other requests, each
    /// statement commits by itself.
    pub fn transaction_if<P>(mut self, predicate: P) -> Self
    where
        P: Fn(&Parts) -> bool + Send + Sync + 'static,
    {
        self.policy().transactions = Transactions::If(Arc::new(predicate));
        self
    }

    /// Runs the requests that [`transaction_if`](Self::transaction_if) does not select in a READ ONLY
    /// transaction, so that the server refuses their writes.
    pub fn read_only_otherwise(mut self) -> Self {
        self.policy().read_only_otherwise = true;
        self
    }

    /// Decides by the response's head whether a request's transaction is committed. Default: it is
    /// for a status below 400 and, for gRPC, a `grpc-status` of 0 or none.
    ///
    /// For a body that is [held until its end](crate::DbSession::hold_until_body_end) the rule is called
    /// a second time, with the trailers among the headers.
    pub fn commit_when<P>(mut self, rule: P) -> Self
    where
        P: Fn(&response::Parts) -> bool + Send + Sync + 'static,
    {
        self.policy().commit_when = Some(Arc::new(rule));
        self
    }

    /// Runs statements, made from the request's parts, after each BEGIN of a session's transaction;
    /// for row-level security, for example. With it, every request runs in a transaction.
    ///
    /// Pass values as bound values, never inside the SQL. A layer further out can put them into the
    /// request's extensions; if they are missing, return a statement that fails or that sets a value
    /// for which no rows are visible. The statements run again when a transaction begins after an early
    /// commit or rollback. If one fails, the transaction is rolled back and the handler's statement
    /// returns that error.
    ///
    /// ```
    /// # #[cfg(feature = "mock")] {
    /// # use sea_orm::{DbBackend, MockDatabase, Statement};
    /// # use tower_sea_orm::DbSessionLayer;
    /// # #[derive(Clone)] struct Tenant(String);
    /// # let db = MockDatabase::new(DbBackend::Postgres).into_connection();
    /// let layer = DbSessionLayer::new(db).on_begin(|parts| {
    ///     let tenant = parts.extensions.get::<Tenant>().map(|tenant| tenant.0.clone()).unwrap_or_default();
    ///     // `true`: until the end of the transaction, so that the next request starts without.
    ///     let sql = "SELECT set_config('app.tenant', $1, true)";
    ///     vec![Statement::from_sql_and_values(DbBackend::Postgres, sql, [tenant.into()])]
    /// });
    /// # let _ = layer; }
    /// ```
    pub fn on_begin<F>(mut self, set_up: F) -> Self
    where
        F: Fn(&Parts) -> Vec<Statement> + Send + Sync + 'static,
    {
        self.policy().on_begin = Some(Arc::new(set_up));
        self
    }

    /// Runs statements, made from the request's parts, on a request's connection before its first
    /// statement, and again after [`release`](crate::DbSession::release). Pass values as bound
    /// values, never inside the SQL.
    ///
    /// Their effects outlive the transaction. So that no other request gets them, a PostgreSQL connection is reset
    /// after the request if the pool's [`reset`](crate::SessionPoolBuilder::reset) is on for session state. Otherwise
    /// the connection is closed, which costs a new one each time. Prefer [`on_begin`](Self::on_begin) with settings
    /// that end with the transaction.
    ///
    /// If one of them fails, the handler's first statement returns its error, and the connection is closed:
    /// the session gets no other.
    ///
    /// # Panics
    ///
    /// If the database is SQLite in memory, which dies with its connection, or SeaORM's proxy, which has no
    /// connection per session. A mock runs the statements before the session's first one, so append results
    /// for them.
    #[track_caller]
    pub fn on_acquire<F>(mut self, set_up: F) -> Self
    where
        F: Fn(&Parts) -> Vec<Statement> + Send + Sync + 'static,
    {
        // The session's connection is closed afterwards, which neither of the two survives.
        if self.pool.inner().is_in_memory() || self.pool.inner().is_proxy() {
            panic!("{}", Error::from(Kind::CannotClose));
        }
        self.policy().on_acquire = Some(Arc::new(set_up));
        self
    }

    /// Sets for how long its sessions keep their connections. Default: as the pool's
    /// [`pool_mode`](crate::SessionPoolBuilder::pool_mode).
    ///
    /// With [`PoolMode::Transaction`] on one layer, every session of the pool is reset as by
    /// [`Reset::SessionState`](crate::Reset::SessionState). A layer inside another one with the same tag, whose session it
    /// uses, can set [`PoolMode::Session`] for its requests, but not the other way round.
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
    /// With [`PoolMode::Transaction`] over SeaORM's proxy, which has no connections to lend.
    #[track_caller]
    pub fn pool_mode(mut self, mode: PoolMode) -> Self {
        if mode == PoolMode::Transaction
            && let Err(error) = self.pool.inner().allow_lending()
        {
            panic!("{error}");
        }
        self.policy().pool_mode = Some(mode);
        self
    }

    /// Keeps a handler's own 5xx response if its session got no connection, or lost it to
    /// [`hold_timeout`](crate::SessionPoolBuilder::hold_timeout). By default the layer replaces it, because
    /// only the layer knows that 503 and `Retry-After` are right.
    pub fn keep_handler_errors(mut self) -> Self {
        self.policy().keep_handler_errors = true;
        self
    }

    /// Makes the layer's own responses, for when no connection can be acquired or a transaction could not be
    /// committed. Pass a closure from the error and the request's head to a response, or
    /// [`problem_json`](crate::problem_json). Default: an empty body.
    ///
    /// The parts are the complete head that the request had when it reached the layer, extensions included.
    /// They are copied before the handler runs, for each request.
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
    pub fn response_for_error<F, B>(self, respond: F) -> DbSessionLayer<Tag, F>
    where
        F: Fn(&Error, &Parts) -> Response<B>,
    {
        DbSessionLayer {
            pool: self.pool,
            policy: self.policy,
            respond,
            tag: PhantomData,
        }
    }

    /// Keeps every request's session until the end of its response's body instead of its head, as
    /// [`DbSession::hold_until_body_end`](crate::DbSession::hold_until_body_end) does for one request: for
    /// bodies that stream rows. Call it last: it returns a stack of two layers, whose responses have a
    /// [`SessionBody`](crate::SessionBody).
    pub fn hold_until_body_end(self) -> Stack<SessionBodyLayer<Tag>, Self> {
        // The first layer of a stack is the inner one: the body is held before its response reaches the session.
        Stack::new(SessionBodyLayer::tagged(), self)
    }

    fn policy(&mut self) -> &mut Policy {
        // A copy if the layer was cloned or has wrapped a service: those keep their settings.
        Arc::make_mut(&mut self.policy)
    }

    /// Returns the pool that the sessions come from.
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
