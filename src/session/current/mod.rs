//! [`CurrentSession`]: a connection for repositories, which finds the session of the request that is being polled.

mod sea_orm;

use std::{any::TypeId, fmt, marker::PhantomData, sync::Arc};

use ::sea_orm::{DbBackend, Schema, SchemaBuilder};

use super::{
    core::Core,
    db_session::{DbSession, DefaultDatabase},
    guard::SessionGuard,
    open::open_eager,
    plan::{OpenedFor, Plan},
    stack::Caller,
    statement::Handle,
};
use crate::{
    error::{Error, Kind},
    pool::{Scope, SessionPool},
};

/// Finds the current request's session, for repositories in application state
/// that can't take it as an argument.
///
/// Such a repository keeps its connection inside, often behind an `Arc<dyn …>`.
///
/// `CurrentSession` implements SeaORM's `ConnectionTrait`, `StreamTrait` and
/// `TransactionTrait` and can be kept for as long as the service runs. Each
/// statement runs in the session that the request has from its
/// [`DbSessionLayer`](crate::DbSessionLayer): in the handler's transaction if
/// it has one, and committed or rolled back with it. Where you can pass a
/// [`DbSession`] along, do: the compiler then sees to it that there is one.
///
/// ```
/// # #[cfg(all(feature = "axum", feature = "sqlx-sqlite"))]
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// # use axum::http::StatusCode;
/// use std::sync::Arc;
///
/// use axum::{Router, extract::State, routing::post};
/// use futures_util::future::BoxFuture;
/// use sea_orm::{ConnectionTrait, Database, DbErr};
/// use tower_sea_orm::{CurrentSession, DbSessionLayer, SessionPool};
///
/// trait Items: Send + Sync {
///     fn add(&self) -> BoxFuture<'_, Result<(), DbErr>>;
/// }
///
/// struct SqlItems {
///     db: CurrentSession, // before: DatabaseConnection
/// }
///
/// impl Items for SqlItems {
///     fn add(&self) -> BoxFuture<'_, Result<(), DbErr>> {
///         Box::pin(async { self.db.execute_unprepared("INSERT INTO item VALUES (1)").await.map(drop) })
///     }
/// }
///
/// async fn handler(State(items): State<Arc<dyn Items>>) -> StatusCode {
///     items.add().await.unwrap();
///     StatusCode::CONFLICT // rolls back what the repository has done
/// }
///
/// let db = Database::connect("sqlite::memory:").await?;
/// # db.execute_unprepared("CREATE TABLE item (id integer)").await?;
/// let pool = SessionPool::new(db);
/// let items: Arc<dyn Items> = Arc::new(SqlItems { db: CurrentSession::new(pool.clone()) });
/// let app: Router = Router::new()
///     .route("/items", post(handler))
///     .layer(DbSessionLayer::new(pool.clone()).transaction())
///     .with_state(items);
/// # use tower::ServiceExt;
/// # let request = http::Request::post("/items").body(axum::body::Body::empty()).unwrap();
/// # assert_eq!(app.oneshot(request).await.unwrap().status(), 409);
/// # let left = pool.database().execute_unprepared("DELETE FROM item").await?;
/// # assert_eq!(left.rows_affected(), 0);
/// # Ok::<(), DbErr>(())
/// # }).unwrap();
/// ```
///
/// # Where it finds a session
///
/// While this crate polls it, the innermost of these is the current session:
///
/// - the request's, below a [`DbSessionLayer`](crate::DbSessionLayer) with the same tag. `join!`, `select!` and
///   `FuturesUnordered` inside the handler are polled by it, so that the work in them finds it as well;
/// - that of a body which is [held](DbSession::hold_until_body_end), while the body is polled;
/// - that of a job ([`SessionPool::transaction`]) on the same database;
/// - one whose [`scope`](DbSession::scope) has been entered.
///
/// With replicas (feature `replicas`), it finds the session wherever that
/// reads; create it with the primary's pool.
///
/// A spawned task, a hook and a body that is not held have none: there,
/// statements fail with an error that says so
/// ([`is_missing_layer`](Error::is_missing_layer)), unless
/// [`or_own_session`](Self::or_own_session) is set. A future looks for its
/// session when it is first polled, and not when it is made.
///
/// A transaction from `begin()` is a nested one of the current session, as with
/// [`DbSession`]: pass it to the code that is to run in it. While it is open,
/// statements that do not go through it are refused.
///
/// Create it when the service starts: requests only make their sessions known
/// from then on, so that services without one pay nothing for it. Those with
/// one pay some 400 instructions for each request, and no allocation.
pub struct CurrentSession<Tag = DefaultDatabase> {
    pool: SessionPool,
    /// Outside a request, each call opens a session.
    opens_own: bool,
    // A function's result, so that it is `Send` and `Sync` whatever its tag is.
    tag: PhantomData<fn() -> Tag>,
}

// Beside `tagged`, because the default of a type parameter does not guide
// inference: `CurrentSession::tagged(…)` would ask for the tag.
impl CurrentSession {
    /// Creates one for the sessions of a layer over `pool`. Give both the same
    /// [`SessionPool`].
    ///
    /// # Panics
    ///
    /// As [`DbSessionLayer::new`](crate::DbSessionLayer::new).
    #[track_caller]
    pub fn new(pool: impl Into<SessionPool>) -> Self {
        Self::tagged(pool)
    }
}

impl<Tag> CurrentSession<Tag> {
    /// Creates one for the sessions of a tag, for services with several
    /// databases.
    ///
    /// # Panics
    ///
    /// As [`new`](CurrentSession::new).
    #[track_caller]
    pub fn tagged(pool: impl Into<SessionPool>) -> Self {
        // Here and not with the first call, which would find no scope: its
        // request is being polled already.
        Scope::look();
        Self {
            pool: pool.into(),
            opens_own: false,
            tag: PhantomData,
        }
    }

    /// Has each call outside a request open a session of its own, which ends
    /// with it (a transaction's with its handle, and a stream's with the
    /// stream), instead of returning an error. For repositories that background
    /// tasks use as well.
    ///
    /// Two such calls share no transaction: run what belongs together in a
    /// [`scope`](DbSession::scope) or a
    /// [`transaction`](SessionPool::transaction).
    #[must_use = "it returns the setting, and changes none in place"]
    pub fn or_own_session(mut self) -> Self {
        self.opens_own = true;
        self
    }

    /// Returns the current session, for what SeaORM's traits do not have:
    /// hooks, `release()`, `scope()`.
    ///
    /// # Errors
    ///
    /// [`is_missing_layer`](Error::is_missing_layer) if there is none.
    pub fn session(&self) -> Result<DbSession<Tag>, Error>
    where
        Tag: 'static,
    {
        let core = self.current().ok_or(Kind::NoCurrentSession)?;
        Ok(DbSession::over(core))
    }

    /// Returns the pool that it was created with.
    pub fn pool(&self) -> &SessionPool {
        &self.pool
    }

    /// Returns the database's kind.
    pub fn backend(&self) -> DbBackend {
        self.pool.inner().backend()
    }

    /// Returns the database's kind; the method has the name that SeaORM's own
    /// types use.
    pub fn get_database_backend(&self) -> DbBackend {
        self.backend()
    }

    /// Returns a builder for schema statements in the database's dialect.
    pub fn get_schema_builder(&self) -> SchemaBuilder {
        Schema::new(self.backend()).builder()
    }

    fn current(&self) -> Option<Arc<Core>>
    where
        Tag: 'static,
    {
        let own = self.pool.inner();
        let mut jobs = Vec::<Arc<Core>>::new();
        Scope::find(|scope| match scope.tag() {
            None => {
                let job = scope.session::<Core>()?;
                if job.pool().driver().is_same(own.driver()) {
                    return Some(job);
                }
                // It may still be on the database that the layer's `by` has
                // picked for the request.
                jobs.push(job);
                None
            }
            Some(tag) if tag == TypeId::of::<Tag>() => {
                let session = scope.session::<Core>()?;
                let driver = session.pool().driver();
                let job = jobs
                    .drain(..)
                    .find(|job| job.pool().driver().is_same(driver));
                Some(job.unwrap_or(session.clone()))
            }
            Some(_) => None,
        })
    }

    /// Finds the session to run something in.
    async fn find(&self) -> Result<Found, Error>
    where
        Tag: 'static,
    {
        if let Some(core) = self.current() {
            return Ok(Found { core, own: None });
        }
        if !self.opens_own {
            // An error and no session of its own: what is written there would
            // not be part of the handler's transaction, and no answer would say
            // so.
            return Err(Kind::NoCurrentSession.into());
        }
        let plan = Plan::new(OpenedFor::User);
        // Boxed, so that a statement in a request does not carry the room for
        // it.
        let opened = Box::pin(open_eager::<Tag>(&self.pool, plan)).await?;
        let own = Box::new(opened.1);
        Ok(Found {
            core: own.core.clone(),
            // Kept with what it has opened: the session must not end before its
            // stream or transaction
            // (`a_stream_has_its_session_until_it_is_dropped`).
            own: Some(own),
        })
    }
}

/// The session in which something runs.
struct Found {
    core: Arc<Core>,
    /// Ends the session with the call that has opened it.
    own: Option<Box<SessionGuard>>,
}

impl Found {
    fn handle(&self) -> Handle<'_> {
        Handle {
            core: &self.core,
            caller: Caller::Session,
            through: None,
        }
    }
}

// By hand, because a derived one would ask the tag to be `Clone`.
impl<Tag> Clone for CurrentSession<Tag> {
    fn clone(&self) -> Self {
        Self {
            pool: self.pool.clone(),
            opens_own: self.opens_own,
            tag: PhantomData,
        }
    }
}

impl<Tag> fmt::Debug for CurrentSession<Tag> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CurrentSession")
            .field("pool", &self.pool)
            .finish_non_exhaustive()
    }
}
