//! [`TransactionLayer`]: a transaction for single routes.

use std::{fmt, marker::PhantomData, sync::Arc};

use http::{Response, request, response};
use sea_orm::{Statement, TransactionOptions};
use tower_layer::Layer;

use super::service::TransactionService;
use crate::{
    DefaultDatabase, Error,
    policy::SetUp,
    response::DefaultResponseForError,
    session::{CommitWhen, Mode, Order},
};

/// Runs the requests of single routes in a transaction, or exempts them from the one that the
/// surrounding [`DbSessionLayer`](crate::DbSessionLayer) sets. It opens nothing itself: it only
/// configures the request's session. If there are several, the innermost wins.
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
/// Without a session layer around it, it responds with 500 and logs the reason.
#[must_use = "a layer does nothing until it wraps a service"]
pub struct TransactionLayer<Tag = DefaultDatabase, Respond = DefaultResponseForError> {
    pub(super) policy: RoutePolicy,
    pub(super) respond: Respond,
    // A function's result, so that a layer is `Send` and `Sync` whatever its tag is.
    tag: PhantomData<fn() -> Tag>,
}

/// The settings that are applied to a request's session.
#[derive(Clone)]
pub(super) struct RoutePolicy {
    pub(super) mode: Mode,
    pub(super) commit_when: Option<CommitWhen>,
    pub(super) on_begin: Option<SetUp>,
}

impl RoutePolicy {
    pub(super) fn order(&self, parts: &request::Parts) -> Order {
        Order {
            pool_mode: None,
            mode: Some(self.mode),
            commit_when: self.commit_when.clone(),
            on_begin: self.on_begin.as_ref().map(|set_up| set_up(parts)),
            on_acquire: None,
        }
    }
}

impl TransactionLayer {
    /// Creates a layer for a transaction with the database's default options.
    pub fn new() -> Self {
        Self::tagged(Some(TransactionOptions::default()))
    }

    /// Creates a layer for a transaction with an isolation level, an access mode, or SQLite's transaction mode.
    pub fn with(options: TransactionOptions) -> Self {
        Self::tagged(Some(options))
    }

    /// Creates a layer for no transaction: each statement commits by itself, even if an outer layer sets a
    /// transaction.
    pub fn autocommit() -> Self {
        Self::tagged(None)
    }
}

impl<Tag> TransactionLayer<Tag> {
    /// Creates a layer for the sessions of a tag, for services with several databases; `None` is
    /// [`autocommit`](TransactionLayer::autocommit).
    pub fn tagged(options: Option<TransactionOptions>) -> Self {
        let mode = options.map_or(Mode::Autocommit, Mode::Transaction);
        let policy = RoutePolicy {
            mode,
            commit_when: None,
            on_begin: None,
        };
        Self {
            policy,
            respond: DefaultResponseForError,
            tag: PhantomData,
        }
    }
}

impl<Tag, Respond> TransactionLayer<Tag, Respond> {
    /// Decides which responses commit, as [`DbSessionLayer::commit_when`](crate::DbSessionLayer::commit_when)
    /// does.
    pub fn commit_when<P>(mut self, rule: P) -> Self
    where
        P: Fn(&response::Parts) -> bool + Send + Sync + 'static,
    {
        self.policy.commit_when = Some(Arc::new(rule));
        self
    }

    /// Runs statements after each BEGIN, as
    /// [`DbSessionLayer::on_begin`](crate::DbSessionLayer::on_begin) does; they run after those of the
    /// layers around it.
    pub fn on_begin<F>(mut self, set_up: F) -> Self
    where
        F: Fn(&request::Parts) -> Vec<Statement> + Send + Sync + 'static,
    {
        self.policy.on_begin = Some(Arc::new(set_up));
        self
    }

    /// Makes the response when the session cannot follow this layer's settings, as
    /// [`DbSessionLayer::response_for_error`](crate::DbSessionLayer::response_for_error) does.
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
