//! [`DbSessionLayer`]: gives every request a session.

use std::{fmt, marker::PhantomData, sync::Arc, time::Duration};

use http::request::Parts;
use sea_orm::DatabaseConnection;
use tower_layer::Layer;

use crate::{DbSessionService, Error, Main, SessionPool, respond::EmptyBody};

/// Gives every request of the service it wraps a [`DbSession`](crate::DbSession), and takes the
/// connection back whatever happens to the request.
///
/// By default the connection is checked out before the inner service is called;
/// [`lazy`](Self::lazy) sessions check out at their first statement.
///
/// `Tag` tells several databases apart, `Respond` makes the answer when no connection can be had.
#[must_use = "a layer does nothing until it wraps a service"]
pub struct DbSessionLayer<Tag = Main, Respond = EmptyBody> {
    pub(crate) pool: SessionPool,
    pub(crate) policy: Policy,
    pub(crate) respond: Respond,
    tag: PhantomData<fn() -> Tag>,
}

/// What the layer was told, shared with every service it wraps.
#[derive(Clone)]
pub(crate) struct Policy {
    pub(crate) checkout: Checkout,
    pub(crate) keep_handler_errors: bool,
}

/// When a request's connection is checked out.
#[derive(Clone)]
pub(crate) enum Checkout {
    Eager,
    Lazy,
    /// Eager where the predicate says so.
    EagerIf(Arc<dyn Fn(&Parts) -> bool + Send + Sync>),
}

impl Checkout {
    pub(crate) fn is_eager(&self, parts: &Parts) -> bool {
        match self {
            Self::Eager => true,
            Self::Lazy => false,
            Self::EagerIf(predicate) => predicate(parts),
        }
    }
}

impl DbSessionLayer {
    /// A layer over SeaORM's connection pool.
    ///
    /// ```
    /// # #[cfg(feature = "mock")] {
    /// use sea_orm::{DbBackend, MockDatabase};
    /// use tower_sea_orm::DbSessionLayer;
    ///
    /// let db = MockDatabase::new(DbBackend::Postgres).into_connection();
    /// let layer = DbSessionLayer::new(db).lazy();
    /// # let _ = layer; }
    /// ```
    ///
    /// # Panics
    ///
    /// If `database` is disconnected, or of a driver whose feature is not enabled in this crate;
    /// the message names the feature. [`try_new`](Self::try_new) returns this as an error.
    #[track_caller]
    pub fn new(database: DatabaseConnection) -> Self {
        Self::with_pool(SessionPool::new(database))
    }

    /// A layer over SeaORM's connection pool.
    ///
    /// # Errors
    ///
    /// If `database` is disconnected, or of a driver whose feature is not enabled in this crate.
    pub fn try_new(database: DatabaseConnection) -> Result<Self, Error> {
        SessionPool::try_new(database).map(Self::with_pool)
    }

    /// A layer over a pool that others use as well.
    pub fn with_pool(pool: SessionPool) -> Self {
        Self::tagged(pool)
    }
}

impl<Tag> DbSessionLayer<Tag> {
    /// A layer whose sessions carry a tag, for services with several databases.
    ///
    /// ```
    /// # #[cfg(feature = "mock")] {
    /// use sea_orm::{DbBackend, MockDatabase};
    /// use tower_sea_orm::{DbSessionLayer, SessionPool};
    ///
    /// enum Analytics {}
    /// let db = MockDatabase::new(DbBackend::Postgres).into_connection();
    /// // Handlers take a `DbSession<Analytics>`.
    /// let layer = DbSessionLayer::<Analytics>::tagged(SessionPool::new(db));
    /// # let _ = layer; }
    /// ```
    pub fn tagged(pool: SessionPool) -> Self {
        let policy = Policy { checkout: Checkout::Eager, keep_handler_errors: false };
        Self { pool, policy, respond: EmptyBody, tag: PhantomData }
    }
}

impl<Tag, Respond> DbSessionLayer<Tag, Respond> {
    /// Checks out at the first statement instead of before the handler: a request that runs none
    /// costs the pool nothing.
    pub fn lazy(mut self) -> Self {
        self.policy.checkout = Checkout::Lazy;
        self
    }

    /// Checks out before the handler for the requests that `predicate` picks, at the first
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
        self.policy.checkout = Checkout::EagerIf(Arc::new(predicate));
        self
    }

    /// Sets [`SessionPool::acquire_timeout`].
    pub fn acquire_timeout(mut self, timeout: Duration) -> Self {
        self.pool = self.pool.acquire_timeout(timeout);
        self
    }

    /// Sets [`SessionPool::release_timeout`].
    pub fn release_timeout(mut self, timeout: Duration) -> Self {
        self.pool = self.pool.release_timeout(timeout);
        self
    }

    /// Sets [`SessionPool::reserve`].
    ///
    /// # Panics
    ///
    /// If it leaves no connection to the sessions.
    #[track_caller]
    pub fn reserve(mut self, connections: u32) -> Self {
        self.pool = self.pool.reserve(connections);
        self
    }

    /// Sets [`SessionPool::warm`].
    pub fn warm(mut self, warm: bool) -> Self {
        self.pool = self.pool.warm(warm);
        self
    }

    /// Lets a handler's own 5xx answer stand when its session had got no connection. By default the
    /// layer answers instead, because only it knows that 503 and `Retry-After` are right.
    pub fn keep_handler_errors(mut self) -> Self {
        self.policy.keep_handler_errors = true;
        self
    }

    /// Makes the answer when no connection can be had: a closure from the error and the request's
    /// parts to a response, or [`ProblemJson`](crate::ProblemJson). Default: an empty body.
    pub fn on_error<R>(self, respond: R) -> DbSessionLayer<Tag, R> {
        DbSessionLayer { pool: self.pool, policy: self.policy, respond, tag: PhantomData }
    }

    /// The pool that the sessions come from.
    pub fn pool(&self) -> &SessionPool {
        &self.pool
    }
}

impl<S, Tag, Respond: Clone> Layer<S> for DbSessionLayer<Tag, Respond> {
    type Service = DbSessionService<S, Tag, Respond>;

    fn layer(&self, inner: S) -> Self::Service {
        DbSessionService::new(inner, self)
    }
}

impl<Tag, Respond: Clone> Clone for DbSessionLayer<Tag, Respond> {
    fn clone(&self) -> Self {
        Self { pool: self.pool.clone(), policy: self.policy.clone(), respond: self.respond.clone(), tag: PhantomData }
    }
}

impl<Tag, Respond> fmt::Debug for DbSessionLayer<Tag, Respond> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DbSessionLayer").field("pool", &self.pool).finish_non_exhaustive()
    }
}
