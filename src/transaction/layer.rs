//! [`TransactionLayer`]: a transaction for single routes.

use std::{borrow::Cow, fmt, marker::PhantomData, sync::Arc, time::Duration};

use http::{Response, request, response};
use sea_orm::{Statement, TransactionOptions};
use tower_layer::Layer;

use super::service::TransactionService;
use crate::{
    DefaultDatabase, Error,
    connection::search_path,
    policy::BeginRule,
    response::DefaultResponseForError,
    session::{CommitWhen, Mode, Order},
};

/// Runs the requests of single routes in a transaction, or exempts them from
/// the one that the surrounding [`DbSessionLayer`](crate::DbSessionLayer) sets.
/// It opens nothing itself: it only configures the request's session. If there
/// are several, the innermost wins.
///
/// ```
/// # #[cfg(all(feature = "axum", feature = "mock"))] {
/// # use axum::{Router, routing::{get, post}};
/// # use sea_orm::{DbBackend, IsolationLevel, MockDatabase, TransactionOptions};
/// # use tower_sea_orm::{DbSessionLayer, TransactionLayer};
/// # async fn read() {}
/// # async fn transfer() {}
/// # let db = MockDatabase::new(DbBackend::Postgres).into_connection();
/// let serializable =
///     TransactionOptions { isolation_level: Some(IsolationLevel::Serializable), ..Default::default() };
/// let app: Router = Router::new()
///     .route("/transfers", post(transfer).layer(TransactionLayer::with(serializable)))
///     .route("/items", get(read))
///     .route_layer(DbSessionLayer::new(db));
/// # let _ = app; }
/// ```
///
/// With replicas (`DbSessionLayer::replicas`, feature `replicas`), it moves a
/// request that reads to the primary, also if it is there for its time-outs
/// only, unless its options are READ ONLY. [`autocommit`](Self::autocommit)
/// does not belong on such a route: the request stays on its replica, without
/// the check for the client's own writes.
///
/// Without a session layer around it, it responds with 500 and logs the reason.
#[must_use = "a layer does nothing until it wraps a service"]
pub struct TransactionLayer<Tag = DefaultDatabase, Respond = DefaultResponseForError> {
    pub(super) policy: RoutePolicy,
    // A type and not a box, as in `DbSessionLayer`.
    pub(super) respond: Respond,
    // A function's result, so that a layer is `Send` and `Sync` whatever its
    // tag is.
    tag: PhantomData<fn() -> Tag>,
}

/// The settings that are applied to a request's session.
#[derive(Clone)]
pub(super) struct RoutePolicy {
    // Fixed for the route: a mode by request, as by `transaction_if`, is for
    // the session's layer.
    pub(super) mode: Mode,
    // Shared, since each request's session gets it.
    pub(super) commit_when: Option<CommitWhen>,
    pub(super) begin: BeginRule,
}

impl RoutePolicy {
    pub(super) fn order(&self, parts: &request::Parts) -> Order {
        Order {
            // A route's layer opens no session: what is about the connection
            // belongs to the layer that does.
            pool_mode: None,
            // Always one: without a mode, the session would keep the outer
            // layer's.
            mode: Some(self.mode),
            commit_when: self.commit_when.clone(),
            // No deadline, either: the session has begun, with its own.
            on_begin: self.begin.set_up(parts, None),
            on_acquire: None,
        }
    }
}

impl TransactionLayer {
    /// Creates a layer for a transaction with the database's default options.
    pub fn new() -> Self {
        Self::tagged(Some(TransactionOptions::default()))
    }

    /// Creates a layer for a transaction with an isolation level, an access
    /// mode, or SQLite's transaction mode.
    pub fn with(options: TransactionOptions) -> Self {
        Self::tagged(Some(options))
    }

    /// Creates a layer for no transaction: each statement commits by itself,
    /// even if an outer layer sets a transaction.
    pub fn autocommit() -> Self {
        Self::tagged(None)
    }
}

// Beside `new`, because the default of a type parameter does not guide
// inference.
impl<Tag> TransactionLayer<Tag> {
    /// Creates a layer for the sessions of a tag, for services with several
    /// databases; `None` is [`autocommit`](TransactionLayer::autocommit).
    pub fn tagged(options: Option<TransactionOptions>) -> Self {
        let mode = options.map_or(Mode::Autocommit, Mode::Transaction);
        let policy = RoutePolicy {
            mode,
            // None leaves the rule of the layer around it.
            commit_when: None,
            begin: BeginRule::default(),
        };
        Self {
            policy,
            respond: DefaultResponseForError,
            tag: PhantomData,
        }
    }
}

impl<Tag, Respond> TransactionLayer<Tag, Respond> {
    /// Decides which responses commit, as
    /// [`DbSessionLayer::commit_when`](crate::DbSessionLayer::commit_when)
    /// does.
    pub fn commit_when<P>(mut self, rule: P) -> Self
    where
        P: Fn(&response::Parts) -> bool + Send + Sync + 'static,
    {
        self.policy.commit_when = Some(Arc::new(rule));
        self
    }

    /// Runs statements after each BEGIN, as
    /// [`DbSessionLayer::on_begin`](crate::DbSessionLayer::on_begin) does; they
    /// run after those of the layers around it.
    pub fn on_begin<F>(mut self, set_up: F) -> Self
    where
        F: Fn(&request::Parts) -> Vec<Statement> + Send + Sync + 'static,
    {
        self.policy.begin.statements(Arc::new(set_up));
        self
    }

    /// Limits each statement of these routes' transactions, as
    /// [`DbSessionLayer::statement_timeout`](crate::DbSessionLayer::statement_timeout)
    /// does; zero takes the limit of the layers around it away. On SQLite,
    /// which has no such time-out, requests are answered with 500.
    ///
    /// ```
    /// # #[cfg(all(feature = "axum", feature = "mock"))] {
    /// # use std::time::Duration;
    /// # use axum::{Router, routing::get};
    /// # use sea_orm::{DbBackend, MockDatabase};
    /// # use tower_sea_orm::{DbSessionLayer, TransactionLayer};
    /// # async fn report() {}
    /// # let db = MockDatabase::new(DbBackend::Postgres).into_connection();
    /// let limits = TransactionLayer::new()
    ///     .statement_timeout(Duration::from_secs(30))
    ///     .lock_timeout(Duration::from_secs(1));
    /// let app: Router = Router::new()
    ///     .route("/report", get(report).layer(limits))
    ///     .route_layer(DbSessionLayer::new(db));
    /// # let _ = app; }
    /// ```
    pub fn statement_timeout(mut self, timeout: Duration) -> Self {
        // Not checked against the database, which the session's layer knows and
        // this one does not.
        self.policy.begin.statement_timeout(timeout);
        self
    }

    /// Limits each wait for a lock in these routes' transactions, as
    /// [`DbSessionLayer::lock_timeout`](crate::DbSessionLayer::lock_timeout)
    /// does; zero takes the limit of the layers around it away.
    pub fn lock_timeout(mut self, timeout: Duration) -> Self {
        self.policy.begin.lock_timeout(timeout);
        self
    }

    /// Sets one of PostgreSQL's parameters until the end of each transaction,
    /// as [`DbSessionLayer::set_local`](crate::DbSessionLayer::set_local) does;
    /// of two layers that set the same one, the inner one counts. On another
    /// database, requests are answered with 500.
    ///
    /// # Panics
    ///
    /// If `name` is not the name of a setting, or belongs to
    /// [`with`](TransactionLayer::with).
    #[track_caller]
    pub fn set_local<F>(mut self, name: impl Into<Cow<'static, str>>, value: F) -> Self
    where
        F: Fn(&request::Parts) -> String + Send + Sync + 'static,
    {
        // Only the name is checked here. A route's layer does not know its
        // database, so that each request asks for the rest.
        self.policy.begin.set_local(name.into(), Arc::new(value));
        self
    }

    /// Sets PostgreSQL's `search_path` until the end of each transaction, as
    /// [`DbSessionLayer::search_path`](crate::DbSessionLayer::search_path)
    /// does. On another database, requests are answered with 500.
    pub fn search_path<F>(self, schemas: F) -> Self
    where
        F: Fn(&request::Parts) -> Vec<String> + Send + Sync + 'static,
    {
        // Quoted on the way: a tenant's name out of a request must not become
        // SQL.
        self.set_local("search_path", move |parts| search_path(&schemas(parts)))
    }

    /// Makes the response when the session cannot follow this layer's settings,
    /// as
    /// [`DbSessionLayer::response_for_error`](crate::DbSessionLayer::response_for_error)
    /// does.
    // `Fn`, not `ResponseForError`: only such a bound has the types of a
    // closure's arguments inferred.
    pub fn response_for_error<F, B>(self, respond: F) -> TransactionLayer<Tag, F>
    where
        F: Fn(&Error, &request::Parts) -> Response<B>,
    {
        TransactionLayer {
            policy: self.policy,
            respond,
            tag: PhantomData,
        }
    }
}

impl Default for TransactionLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<S, Tag, Respond: Clone> Layer<S> for TransactionLayer<Tag, Respond> {
    type Service = TransactionService<S, Tag, Respond>;

    fn layer(&self, inner: S) -> Self::Service {
        TransactionService::new(inner, self.clone())
    }
}

// By hand, because a derived one would ask the tag to be `Clone`.
impl<Tag, Respond: Clone> Clone for TransactionLayer<Tag, Respond> {
    fn clone(&self) -> Self {
        Self {
            policy: self.policy.clone(),
            respond: self.respond.clone(),
            tag: PhantomData,
        }
    }
}

impl<Tag, Respond> fmt::Debug for TransactionLayer<Tag, Respond> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransactionLayer").finish_non_exhaustive()
    }
}
