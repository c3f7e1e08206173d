//! [`DbSession`]: the handle that a handler uses.

mod call;
mod core;
mod cut;
mod direct;
mod executor;
mod exit;
mod failures;
mod guard;
mod held;
mod hooks;
mod locked;
mod open;
mod outcome;
mod plan;
#[cfg(feature = "_sqlx")]
mod raw;
mod running;
mod savepoint;
mod settle;
mod slot;
mod stop;
#[cfg(feature = "stream")]
mod stream;
mod turn;
mod tx;
mod worker;

use std::{fmt, marker::PhantomData, sync::Arc};

use http::Extensions;
use sea_orm::{
    AccessMode, DatabaseConnection, DbBackend, DbErr, IsolationLevel, Schema, SchemaBuilder,
    TransactionError, TransactionTrait,
};

#[cfg(feature = "stream")]
pub use self::stream::SessionStream;
use self::{
    core::Core,
    slot::{Phase, Slot, Who},
};
pub(crate) use self::{
    guard::{GRPC_STATUS, SessionGuard, is_success},
    plan::{CommitWhen, Mode, Order, Plan, Rules},
    settle::{Decision, Ended, Settlement},
};
pub use self::{open::PoolSession, outcome::Outcome, savepoint::SessionTransaction, tx::DbTx};
use crate::{
    connection::Operation,
    error::{Error, Kind},
    pool::{Admission, SessionPool},
};

/// The default tag. Only services with several databases need another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DefaultDatabase {}

/// A request's database session: one connection, lent to the handler.
///
/// It implements SeaORM's `ConnectionTrait`, `StreamTrait` and `TransactionTrait`, so you can use
/// it wherever generic code takes a `&DatabaseConnection`: `Item::find().all(&session)`.
///
/// Clones are handles to the same session. Statements of one session run one after the other, on
/// one connection to the server; concurrent ones queue. When the request ends, the handles stop
/// working: their statements fail with *session closed*, and can never reach another request's
/// connection.
///
/// `Tag` distinguishes several databases of one service; `DbSession` is `DbSession<DefaultDatabase>`.
///
/// # Concurrent statements
///
/// Every future of a session that is polled completes, in the order of the first polls: a future that is
/// kept but no longer polled does not hold up any other. While one future waits for another, a task of this
/// crate runs the pending work, raw code included. A stream is the exception: while it is open, other
/// statements are refused at once.
///
/// ```
/// # #[cfg(feature = "sqlx-sqlite")]
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// use std::{pin::pin, time::Duration};
///
/// use futures_util::{StreamExt, stream::{self, FuturesUnordered}};
/// use sea_orm::{ConnectionTrait, Database, DbBackend, DbErr, Statement};
/// use tower_sea_orm::SessionPool;
///
/// # let database = Database::connect("sqlite::memory:").await?;
/// # database.execute_unprepared("CREATE TABLE job (beats integer NOT NULL); INSERT INTO job VALUES (0)").await?;
/// let session = SessionPool::new(database).session().await?;
/// let select = || session.query_one_raw(Statement::from_string(DbBackend::Sqlite, "SELECT 1"));
///
/// // A heartbeat beside a long statement.
/// let mut long = pin!(select());
/// let mut tick = tokio::time::interval(Duration::from_millis(1));
/// loop {
///     tokio::select! {
///         row = &mut long => break assert!(row?.is_some()),
///         _ = tick.tick() => { session.execute_unprepared("UPDATE job SET beats = beats + 1").await?; }
///     }
/// }
///
/// // A statement for each item, and another one in the loop's body.
/// let mut rows = stream::iter(0..10).map(|_| select()).buffered(4);
/// while let Some(row) = rows.next().await {
///     assert!(row?.is_some());
///     session.execute_unprepared("UPDATE job SET beats = beats + 1").await?;
/// }
///
/// let mut rows: FuturesUnordered<_> = (0..10).map(|_| select()).collect();
/// while let Some(row) = rows.next().await {
///     assert!(row?.is_some());
///     session.execute_unprepared("UPDATE job SET beats = beats + 1").await?;
/// }
/// # Ok::<(), DbErr>(())
/// # }).unwrap();
/// ```
///
/// # Cancel safety
///
/// Dropping the future of a statement, for example in `select!`, is safe. If the statement's turn has not
/// come, it is not sent. If it is running, it runs to completion on the server, in a task of this crate,
/// and the session's next statement waits for it.
pub struct DbSession<Tag = DefaultDatabase> {
    core: Arc<Core>,
    tag: PhantomData<fn() -> Tag>,
}

impl DbSession {
    /// Returns a request's session from the extensions where the layer put it; for handlers without
    /// axum.
    ///
    /// # Errors
    ///
    /// [`is_missing_layer`](Error::is_missing_layer) if there is none.
    pub fn from_extensions(extensions: &Extensions) -> Result<Self, Error> {
        Self::tagged(extensions)
    }
}

impl<Tag> DbSession<Tag> {
    fn guarded(core: Arc<Core>, admission: Admission<'_>) -> (Self, SessionGuard) {
        let guard = SessionGuard::new(core.clone(), admission);
        (
            Self {
                core,
                tag: PhantomData,
            },
            guard,
        )
    }

    /// [`from_extensions`](DbSession::from_extensions) for the sessions of a tag:
    /// `DbSession::<Analytics>::tagged(request.extensions())`.
    ///
    /// # Errors
    ///
    /// [`is_missing_layer`](Error::is_missing_layer) if there is none.
    pub fn tagged(extensions: &Extensions) -> Result<Self, Error>
    where
        Tag: 'static,
    {
        extensions
            .get::<Self>()
            .cloned()
            .ok_or_else(|| Kind::MissingLayer.into())
    }

    /// Returns the pool that the session comes from, for work that outlives the request.
    ///
    /// ```
    /// # #[cfg(feature = "sqlx-sqlite")]
    /// # fn handler(session: tower_sea_orm::DbSession) {
    /// let pool = session.pool().clone();
    /// tokio::spawn(async move {
    ///     let session = pool.session().await?;
    ///     // ... statements on a session of its own
    ///     Ok::<(), tower_sea_orm::Error>(())
    /// });
    /// # }
    /// ```
    pub fn pool(&self) -> &SessionPool {
        self.core.pool()
    }

    /// Returns the database's kind.
    pub fn backend(&self) -> DbBackend {
        self.pool().backend()
    }

    /// Returns the database's kind; the method has the name that SeaORM's own types use.
    pub fn get_database_backend(&self) -> DbBackend {
        self.backend()
    }

    /// Returns a builder for schema statements in the database's dialect.
    pub fn get_schema_builder(&self) -> SchemaBuilder {
        Schema::new(self.backend()).builder()
    }

    /// Returns whether the session no longer runs statements: the request that it belongs to has ended, or its
    /// connection was taken away ([`hold_timeout`](crate::SessionPoolBuilder::hold_timeout), [`close`](SessionPool::close)).
    pub fn is_closed(&self) -> bool {
        self.core.is_over()
    }

    /// Whether the session is to have a connection before its first statement, and has none.
    pub(crate) fn is_to_check_out(&self) -> bool {
        let state = self.core.lock();
        !self.pool().is_direct() && state.phase == Phase::Open && matches!(state.slot, Slot::Empty)
    }

    /// Acquires the session's connection before its first statement.
    pub(crate) async fn check_out(&self) -> Result<(), Error> {
        let acquired = self.core.check_out_early().await;
        acquired.map_err(|error| {
            Error::of(&error).unwrap_or_else(|| Error::with_source(Kind::ConnectionLost, error))
        })
    }

    /// Whether the request that the session belongs to has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.core.has_ended()
    }

    /// Gives the connection back before the request ends. The next statement checks one out again.
    ///
    /// Call it before slow work that needs no database, such as a call to another service: the
    /// connection serves other requests in the meantime.
    ///
    /// # Errors
    ///
    /// If a transaction or a stream of the session is still open: call [`commit`](Self::commit) or
    /// [`rollback`](Self::rollback) first.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it resolves, the session keeps its connection.
    pub async fn release(&self) -> Result<(), DbErr> {
        if self.pool().is_direct() {
            return self.core.release_direct();
        }
        self.core.release().await
    }

    /// Checks that the connection answers.
    ///
    /// # Errors
    ///
    /// The driver's error, or this crate's own if no connection could be acquired.
    ///
    /// # Cancel safety
    ///
    /// As for any statement.
    pub async fn ping(&self) -> Result<(), DbErr> {
        if self.pool().is_direct() {
            self.core.check_open()?;
            return self.pool().database().ping().await;
        }
        self.core.run(Who::Session, Operation::Ping).await.map(drop)
    }

    /// Runs `callback` in a transaction: committed if it returns `Ok`, rolled back otherwise.
    ///
    /// # Errors
    ///
    /// The callback's own error, or the error of BEGIN, COMMIT or ROLLBACK.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before COMMIT was sent, the transaction is rolled back. A COMMIT
    /// that was sent runs to completion.
    pub async fn transaction_async<F, T, E>(&self, callback: F) -> Result<T, TransactionError<E>>
    where
        F: for<'c> AsyncFnOnce(&'c SessionTransaction) -> Result<T, E> + Send,
        T: Send,
        E: fmt::Display + fmt::Debug + Send,
    {
        let transaction = self.begin().await?;
        transaction.run_async(callback).await
    }

    /// [`transaction_async`](Self::transaction_async) with an isolation level and access mode.
    ///
    /// # Errors
    ///
    /// As [`transaction_async`](Self::transaction_async).
    pub async fn transaction_with_config_async<F, T, E>(
        &self,
        callback: F,
        isolation_level: Option<IsolationLevel>,
        access_mode: Option<AccessMode>,
    ) -> Result<T, TransactionError<E>>
    where
        F: for<'c> AsyncFnOnce(&'c SessionTransaction) -> Result<T, E> + Send,
        T: Send,
        E: fmt::Display + fmt::Debug + Send,
    {
        let transaction = self.begin_with_config(isolation_level, access_mode).await?;
        transaction.run_async(callback).await
    }
}

impl<Tag> Clone for DbSession<Tag> {
    fn clone(&self) -> Self {
        Self {
            core: self.core.clone(),
            tag: PhantomData,
        }
    }
}

impl<Tag> fmt::Debug for DbSession<Tag> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DbSession")
            .field("closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}

/// Creates a plain handle that belongs to no request: outside a transaction, every statement takes its own
/// connection from `database`, as it would without this crate. For unit tests and for migrating a service
/// step by step.
///
/// The rules of a session apply (one statement after the other inside a transaction, nested transactions as a
/// stack, a transaction that the server has aborted is not committed), but there is no response that ends it:
/// work done through [`tx()`](DbSession::tx) is rolled back when the last handle is dropped, unless
/// [`commit`](DbSession::commit) was called, and hooks that would wait for its end are refused. To let a
/// handler's response decide in a unit test, run the handler with `testing::serve`.
impl From<DatabaseConnection> for DbSession {
    fn from(database: DatabaseConnection) -> Self {
        let plan = Plan {
            is_plain: true,
            ..Plan::default()
        };
        Self {
            core: Core::new(SessionPool::pass_through(database), plan),
            tag: PhantomData,
        }
    }
}
