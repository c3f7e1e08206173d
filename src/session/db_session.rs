//! [`DbSession`]: the handle that a handler uses.

use std::{
    any::TypeId,
    fmt,
    future::{Future, poll_fn},
    marker::PhantomData,
    pin::pin,
    sync::Arc,
};

use http::Extensions;
use http_body::Body;
#[cfg(feature = "stream")]
use sea_orm::Statement;
#[cfg(feature = "_sqlx")]
use sea_orm::sqlx;
use sea_orm::{
    AccessMode, DatabaseConnection, DbBackend, DbErr, IsolationLevel, Schema, SchemaBuilder,
    TransactionError, TransactionOptions, TransactionTrait,
};

#[cfg(feature = "_sqlx")]
use super::raw::raw_access;
#[cfg(feature = "stream")]
use super::stream::SessionStream;
use super::{
    acquire::check_out_early,
    body_hold::hold_body,
    core::Core,
    early_end::end_early,
    end::release_early,
    guard::SessionGuard,
    hooks::After,
    lend::SessionPin,
    order, pass_through,
    plan::{Mode, OpenedFor, Order, Plan},
    slot::Slot,
    stack::Caller,
    statement::{Handle, run},
    transaction::SessionTransaction,
    tx::DbTx,
};
use crate::{
    body::SessionBody,
    connection::Operation,
    error::{Error, Kind},
    pool::{CountedSession, Scope, SessionPool},
};

/// The default tag. Only services with several databases need another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DefaultDatabase {}

/// A request's database session: one connection, lent to the handler.
///
/// It implements SeaORM's `ConnectionTrait`, `StreamTrait` and
/// `TransactionTrait`, so you can use it wherever generic code takes a
/// `&DatabaseConnection`: `Item::find().all(&session)`.
///
/// Clones are handles to the same session. Statements of one session run one
/// after the other, on one connection to the server; concurrent ones queue.
/// When the request ends, the handles stop working: their statements fail with
/// *session closed*, and can never reach another request's connection.
///
/// `Tag` distinguishes several databases of one service; `DbSession` is
/// `DbSession<DefaultDatabase>`.
///
/// # Concurrent statements
///
/// Every future of a session that is polled completes, in the order of the
/// first polls: a future that is kept but no longer polled does not hold up any
/// other. While one future waits for another, a task of this crate runs the
/// pending work, raw code included. A stream is the exception: while it is
/// open, other statements are refused at once.
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
/// Dropping the future of a statement, for example in `select!`, is safe. If
/// the statement's turn has not come, it is not sent. If it is running, it runs
/// to completion on the server, in a task of this crate, and the session's next
/// statement waits for it.
pub struct DbSession<Tag = DefaultDatabase> {
    core: Arc<Core>,
    // A function's result, so that a handle is `Send` and `Sync` whatever its
    // tag is.
    tag: PhantomData<fn() -> Tag>,
}

// Beside `tagged`, because the default of a type parameter does not guide
// inference: `DbSession::tagged(…)` would ask for the tag.
impl DbSession {
    /// Returns a request's session from the extensions where the layer put it;
    /// for handlers without axum.
    ///
    /// # Errors
    ///
    /// [`is_missing_layer`](Error::is_missing_layer) if there is none.
    pub fn from_extensions(extensions: &Extensions) -> Result<Self, Error> {
        Self::tagged(extensions)
    }
}

impl<Tag> DbSession<Tag> {
    /// [`from_extensions`](DbSession::from_extensions) for the sessions of a
    /// tag: `DbSession::<Analytics>::tagged(request.extensions())`.
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

    /// Returns the pool that the session comes from, for work that outlives the
    /// request. With replicas (feature `replicas`), it is the primary's pool.
    ///
    /// ```
    /// # #[cfg(feature = "sqlx-sqlite")]
    /// # fn handler(session: tower_sea_orm::DbSession) {
    /// let pool = session.pool().clone();
    /// tokio::spawn(async move {
    ///     let session = pool.session().await?;
    ///     // ... statements on another session
    ///     Ok::<(), tower_sea_orm::Error>(())
    /// });
    /// # }
    /// ```
    pub fn pool(&self) -> &SessionPool {
        self.core.session_pool()
    }

    /// Returns the database's kind.
    pub fn backend(&self) -> DbBackend {
        self.core.pool().backend()
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

    /// Returns whether the session no longer runs statements: the request that
    /// it belongs to has ended, or its connection was taken away
    /// ([`hold_timeout`](crate::SessionPoolBuilder::hold_timeout),
    /// [`close`](SessionPool::close)).
    pub fn is_closed(&self) -> bool {
        self.core.is_over()
    }

    /// Gives the connection back before the request ends. The next statement
    /// checks one out again.
    ///
    /// Call it before slow work that needs no database, such as a call to
    /// another service: the connection serves other requests in the meantime.
    ///
    /// # Errors
    ///
    /// If a transaction or a stream of the session is still open: call
    /// [`commit`](Self::commit) or [`rollback`](Self::rollback) first.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it resolves, the session keeps its
    /// connection.
    pub async fn release(&self) -> Result<(), DbErr> {
        if self.core.pool().is_direct() {
            return pass_through::release(&self.core);
        }
        release_early(&self.core).await
    }

    /// Keeps the session's connection, from its next statement on if it has
    /// none, until the returned value is dropped, where
    /// [`PoolMode::Transaction`](crate::PoolMode::Transaction) would lend it
    /// between two statements. In
    /// [`PoolMode::Session`](crate::PoolMode::Session) it is kept anyway.
    ///
    /// For statements that depend on the connection without their text saying
    /// so, such as a function of your own that changes session state, and for
    /// those that ask about an earlier statement: call it before that earlier
    /// one, or the question is refused. Session state that such functions leave
    /// behind is not reset: take it back before you drop the pin.
    /// [`release`](Self::release) gives the connection back all the same.
    ///
    /// ```
    /// # #[cfg(feature = "sqlx-sqlite")]
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// use sea_orm::{ConnectionTrait, Database};
    /// use tower_sea_orm::{PoolMode, SessionPool};
    ///
    /// let db = Database::connect("sqlite::memory:").await?;
    /// let pool = SessionPool::builder(db).pool_mode(PoolMode::Transaction).build()?;
    /// let session = pool.session().await?;
    /// session.execute_unprepared("CREATE TABLE item (id integer)").await?;
    /// let pin = session.pin();
    /// session.execute_unprepared("INSERT INTO item VALUES (1), (2)").await?;
    /// session.execute_unprepared("SELECT changes()").await?; // refused without the pin
    /// drop(pin);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    pub fn pin(&self) -> SessionPin {
        SessionPin::new(&self.core)
    }

    /// Checks that the connection answers.
    ///
    /// # Errors
    ///
    /// The driver's error, or this crate's own if no connection could be
    /// acquired.
    ///
    /// # Cancel safety
    ///
    /// As for any statement.
    pub async fn ping(&self) -> Result<(), DbErr> {
        if self.core.pool().is_direct() {
            return pass_through::ping(&self.core).await;
        }
        run(&self.core, Caller::Session, Operation::Ping)
            .await
            .map(drop)
    }

    /// Runs `callback` in a transaction: committed if it returns `Ok`, rolled
    /// back otherwise.
    ///
    /// # Errors
    ///
    /// The callback's own error, or the error of BEGIN, COMMIT or ROLLBACK.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before COMMIT was sent, the transaction is
    /// rolled back. A COMMIT that was sent runs to completion.
    pub async fn transaction_async<F, T, E>(&self, callback: F) -> Result<T, TransactionError<E>>
    where
        F: for<'c> AsyncFnOnce(&'c SessionTransaction) -> Result<T, E> + Send,
        T: Send,
        E: fmt::Display + fmt::Debug + Send,
    {
        self.transaction_with_config_async(callback, None, None)
            .await
    }

    /// [`transaction_async`](Self::transaction_async) with an isolation level
    /// and access mode.
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

    /// Puts the session into its own transaction from its next statement on,
    /// and returns a handle to it. If the session is already in one, nothing
    /// changes.
    ///
    /// ```
    /// # #[cfg(feature = "mock")] {
    /// # use sea_orm::{ConnectionTrait, DbBackend, MockDatabase, MockExecResult};
    /// use tower_sea_orm::DbSession;
    ///
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// # let done = MockExecResult { last_insert_id: 0, rows_affected: 1 };
    /// # let db = MockDatabase::new(DbBackend::Sqlite).append_exec_results([done]).into_connection();
    /// let session = DbSession::from(db); // in a service: a handler's argument
    /// let tx = session.tx();
    /// tx.execute_unprepared("UPDATE item SET hits = hits + 1").await?;
    /// tx.commit().await?; // in a service: left to the response
    /// # Ok::<(), sea_orm::DbErr>(())
    /// # }).unwrap(); }
    /// ```
    pub fn tx(&self) -> DbTx<Tag> {
        // First: a transaction that has begun on a replica takes no writes
        // (`g19_a_request_that_writes_gets_the_primary`).
        order::write(&self.core);
        // No more than that: BEGIN goes out with the first statement, and a
        // `DbTx` that runs none costs no round trip.
        self.core.lock().rules.need_transaction();
        DbTx(self.clone())
    }

    /// [`tx`](Self::tx) with an isolation level, an access mode, or SQLite's
    /// transaction mode. They replace the options set by a layer.
    ///
    /// # Errors
    ///
    /// If the transaction has begun with other options.
    pub fn tx_with(&self, options: TransactionOptions) -> Result<DbTx<Tag>, DbErr> {
        // Refused once it has begun with others: an isolation level that is
        // asked for and not in force is an error that nothing shows
        // (`options_that_come_too_late_are_an_error_for_the_handler`).
        let mode = Mode::Transaction(options);
        order::set_mode(&self.core, mode).map_err(Kind::into_db_err)?;
        Ok(DbTx(self.clone()))
    }

    /// Returns whether the session reads on a replica at the moment, with
    /// [`DbSessionLayer::replicas`](crate::DbSessionLayer::replicas) (feature
    /// `replicas`). It moves to the primary if the replica cannot serve its
    /// first statement.
    #[cfg(feature = "replicas")]
    pub fn is_replica(&self) -> bool {
        let replication = self.core.replication();
        replication.is_some_and(|replication| replication.is_on_replica())
    }

    /// Returns whether the session is in its own transaction, or will be with
    /// its next statement.
    pub fn is_transactional(&self) -> bool {
        self.core.lock().is_transactional()
    }

    /// Commits the session's transaction now instead of with the response. The
    /// next statement begins another one. If no statement has run in the
    /// transaction yet, there is nothing to commit.
    ///
    /// For changes that must stay whatever the response is, such as the counter
    /// of a failed log-in that answers 401:
    ///
    /// ```
    /// # use axum::http::StatusCode;
    /// # use sea_orm::ConnectionTrait;
    /// # use tower_sea_orm::DbTx;
    /// async fn log_in(tx: DbTx) -> Result<StatusCode, StatusCode> {
    ///     let failed = |_| StatusCode::INTERNAL_SERVER_ERROR;
    ///     // ... the password was wrong:
    ///     tx.execute_unprepared("UPDATE account SET failures = failures + 1").await.map_err(failed)?;
    ///     tx.commit().await.map_err(failed)?;
    ///     Err(StatusCode::UNAUTHORIZED) // rolls back nothing: there is nothing open
    /// }
    /// # #[cfg(all(feature = "axum", feature = "mock"))] {
    /// # use sea_orm::{DbBackend, MockDatabase, MockExecResult};
    /// # use tower::{Service, ServiceExt};
    /// # let done = MockExecResult { last_insert_id: 0, rows_affected: 1 };
    /// # let db = MockDatabase::new(DbBackend::Postgres).append_exec_results([done]).into_connection();
    /// # let app = axum::Router::new().route("/", axum::routing::post(log_in));
    /// # let mut app = app.layer(tower_sea_orm::DbSessionLayer::new(db.clone()));
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// #     let request = http::Request::post("/").body(axum::body::Body::empty()).unwrap();
    /// #     assert_eq!(app.call(request).await.unwrap().status(), 401);
    /// # });
    /// # drop(app);
    /// # let log = format!("{:?}", db.into_transaction_log());
    /// # assert!(log.contains("COMMIT") && !log.contains("ROLLBACK"), "{log}"); }
    /// ```
    ///
    /// # Errors
    ///
    /// The server's error; [`is_aborted`](Error::is_aborted) if the server has
    /// aborted the transaction after a failed statement;
    /// [`is_outcome_unknown`](Error::is_outcome_unknown) if the connection was
    /// lost meanwhile, or the server did not answer within the
    /// [`commit_timeout`](crate::SessionPoolBuilder::commit_timeout). Unless
    /// the outcome is unknown, the transaction is then rolled back. An unknown
    /// outcome stays unknown for the rest of the request: you cannot recover
    /// from it, and the response becomes an error. You can recover from any
    /// other failed COMMIT by a [`rollback`](Self::rollback), which
    /// acknowledges the failure, or by another commit that succeeds; otherwise
    /// the response becomes an error as well. If the future was dropped before
    /// it returned the failure, only a `rollback` recovers.
    ///
    /// Also if the session is not in a transaction, is set to [roll back
    /// only](Self::set_rollback_only), or has a nested transaction open.
    ///
    /// # Cancel safety
    ///
    /// Once sent, a COMMIT runs to completion even if this future is dropped.
    pub async fn commit(&self) -> Result<(), DbErr> {
        end_early(&self.core, true).await
    }

    /// Rolls the session's transaction back now. The next statement begins
    /// another one.
    ///
    /// # Errors
    ///
    /// If the session is not in a transaction, has a nested transaction open,
    /// or the server reports an error;
    /// [`is_outcome_unknown`](Error::is_outcome_unknown) if an earlier COMMIT
    /// of the request may have taken effect.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped at any point, the transaction is rolled back
    /// before anything else happens.
    pub async fn rollback(&self) -> Result<(), DbErr> {
        end_early(&self.core, false).await
    }

    /// Marks the session's transaction, and every later one of this request, to
    /// be rolled back whatever the response is: for dry runs, or a handler that
    /// answers 200 with a list of errors.
    ///
    /// # Errors
    ///
    /// If the session is not in a transaction, because nothing could be rolled
    /// back.
    pub fn set_rollback_only(&self) -> Result<(), DbErr> {
        let mut state = self.core.lock();
        // A quiet `Ok` would be a dry run that stores everything.
        if !state.is_transactional() {
            return Err(Kind::NoTransaction.into_db_err());
        }
        // Never set back: a function that the handler calls must not make a dry
        // run real
        // (`set_rollback_only_rolls_back_every_response_and_refuses_commit`).
        state.rollback_only = true;
        Ok(())
    }

    /// Runs `hook` after the transaction was committed: for mails, messages and
    /// caches that must not see changes that may still be rolled back.
    ///
    /// Hooks run in the order of their registration, in a separate task, once
    /// the connection has been given back (after an early
    /// [`commit`](Self::commit): at once). They do not delay the response, and
    /// run even if the client has disconnected. A hook registered while a
    /// nested transaction is open belongs to that transaction and is dropped if
    /// that is rolled back. If it stays unknown whether the COMMIT took effect,
    /// no hook runs. Hooks live in memory: they are lost if the process ends.
    ///
    /// In a session without a transaction, earlier statements are already
    /// committed, so the hook runs at once.
    ///
    /// # Errors
    ///
    /// If the request has ended, or on a handle that belongs to none
    /// (`DbSession::from(db)`) in a transaction, which nothing would end.
    pub fn after_commit(
        &self,
        hook: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), DbErr> {
        self.core.register(Caller::Session, After::Commit, hook)
    }

    /// Runs `hook` after the transaction was rolled back, whatever the reason,
    /// even if the client has disconnected: to remove a file that was uploaded
    /// meanwhile, for example. Otherwise it works as
    /// [`after_commit`](Self::after_commit); in a session without a transaction
    /// it never runs.
    ///
    /// # Errors
    ///
    /// If the request has ended, or on a handle that belongs to none
    /// (`DbSession::from(db)`) in a transaction, which nothing would end.
    pub fn after_rollback(
        &self,
        hook: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), DbErr> {
        self.core.register(Caller::Session, After::Rollback, hook)
    }

    /// Returns the rows of one statement as they arrive, in a stream that
    /// borrows nothing: for a response's body, which outlives the handler.
    ///
    /// A body that streams rows needs its session to live as long:
    /// [`hold_until_body_end`](Self::hold_until_body_end).
    ///
    /// # Errors
    ///
    /// If no connection can be acquired, or another handle of the session has
    /// to be used at the moment ([`is_wrong_handle`](Error::is_wrong_handle)).
    /// Errors from the server are returned as items of the stream.
    ///
    /// # Cancel safety
    ///
    /// If the stream is dropped half-read, it is read to its end in a task, and
    /// the session's next statement waits for that.
    #[cfg(feature = "stream")]
    pub async fn rows(&self, statement: Statement) -> Result<SessionStream<'static>, DbErr> {
        SessionStream::of_session(&self.core, Caller::Session, statement).await
    }

    /// Keeps the session, and its transaction, open until the end of `body`,
    /// which becomes the response's body, so that the body can stream rows. By
    /// default a session ends with the response's head.
    ///
    /// The last part of the body is withheld until COMMIT is acknowledged. If
    /// that fails, the body is aborted, and the client sees an incomplete
    /// response: HTTP/1.1 closes the connection, HTTP/2 resets the stream. A
    /// gRPC response ends with the layer's own status in its trailers instead
    /// ([`SessionBody`](crate::SessionBody)). If the client disconnects, or the
    /// body fails, the transaction is rolled back.
    ///
    /// A response whose outcome is known at its head is settled there, and its
    /// body is passed through unchanged: an error, a response to HEAD, one
    /// without a body (204, 304), one whose body was replaced or read by a
    /// middleware.
    ///
    /// The connection is held for as long as the client takes to read; a client
    /// that stops reading loses it after the
    /// [`body_timeout`](crate::SessionPoolBuilder::body_timeout) (30 s). A
    /// session that is cut off (by that, by
    /// [`hold_timeout`](crate::SessionPoolBuilder::hold_timeout) or
    /// [`close`](crate::SessionPool::close)) aborts its body at once, even if
    /// the body has nothing to send. With
    /// [`DbSessionLayer::hold_until_body_end`](crate::DbSessionLayer::hold_until_body_end),
    /// all bodies of a service are held.
    ///
    /// `body` has to become the response's body. The layer cannot see a body
    /// that is used elsewhere: if it is dropped after the response's head has
    /// been sent, the transaction is rolled back although the response was a
    /// success.
    ///
    /// Over HTTP/1.0, a response without `Content-Length` ends with its
    /// connection, complete or not, and an aborted body looks like a complete
    /// one to the client.
    ///
    /// ```
    /// # #[cfg(all(feature = "axum", feature = "stream"))] {
    /// use axum::{body::Body, response::Response};
    /// use futures_util::StreamExt;
    /// use sea_orm::{DbErr, EntityTrait, QueryTrait, Statement};
    /// use tower_sea_orm::DbTx;
    ///
    /// async fn export(tx: DbTx) -> Result<Response, String> {
    ///     let sql = "SELECT name FROM item ORDER BY id";
    ///     let rows = tx.rows(Statement::from_string(tx.backend(), sql)).await.map_err(|_| "no rows")?;
    ///     let lines = rows.map(|row| Ok::<_, DbErr>(row?.try_get_by_index::<String>(0)? + "\n"));
    ///     Ok(Response::new(Body::new(tx.hold_until_body_end(Body::from_stream(lines)))))
    /// }
    /// # let _ = axum::routing::get::<_, _, ()>(export); }
    /// ```
    pub fn hold_until_body_end<B: Body>(&self, body: B) -> SessionBody<B> {
        hold_body(&self.core, body)
    }

    /// Runs `future` with this session as the current one, so that a
    /// [`CurrentSession`](crate::CurrentSession) inside finds it. A request's
    /// own future runs like this anyway: use it for a spawned task, for a
    /// session from [`SessionPool::session`], and for work in a second session
    /// beside the request's.
    ///
    /// The session's life stays what it is: once its request has ended,
    /// statements of a task fail with *session closed*.
    ///
    /// ```
    /// # #[cfg(feature = "sqlx-sqlite")]
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// use sea_orm::{ConnectionTrait, Database};
    /// use tower_sea_orm::{CurrentSession, SessionPool};
    ///
    /// let pool = SessionPool::new(Database::connect("sqlite::memory:").await?);
    /// let db: CurrentSession = CurrentSession::new(pool.clone());
    /// let job = tokio::spawn(async move {
    ///     let session = pool.session().await?;
    ///     session.scope(async { db.execute_unprepared("CREATE TABLE item (id integer)").await }).await
    /// });
    /// # job.await.unwrap()?;
    /// # Ok::<(), sea_orm::DbErr>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Cancel safety
    ///
    /// As that of `future`.
    pub fn scope<F>(&self, future: F) -> impl Future<Output = F::Output> + use<Tag, F>
    where
        F: Future,
        Tag: 'static,
    {
        let scope = Scope::new(Some(TypeId::of::<Tag>()), self.core.clone());
        async move {
            let mut future = pin!(future);
            poll_fn(|cx| {
                // For this poll only: between two of them, the thread polls
                // other requests.
                let _scope = scope.clone().enter();
                future.as_mut().poll(cx)
            })
            .await
        }
    }

    #[cfg(feature = "sqlx-postgres")]
    raw_access!(with_postgres, Postgres, sqlx::PgConnection, "PostgreSQL");
    #[cfg(feature = "sqlx-mysql")]
    raw_access!(with_mysql, MySql, sqlx::MySqlConnection, "MySQL");
    #[cfg(feature = "sqlx-sqlite")]
    raw_access!(with_sqlite, Sqlite, sqlx::SqliteConnection, "SQLite");

    pub(super) fn guarded(core: Arc<Core>, counted: CountedSession<'_>) -> (Self, SessionGuard)
    where
        Tag: 'static,
    {
        let tag = (!core.origin.is_job()).then_some(TypeId::of::<Tag> as fn() -> TypeId);
        let guard = SessionGuard::new(core.clone(), tag, counted);
        (Self::over(core), guard)
    }

    /// A handle to the session.
    pub(super) fn over(core: Arc<Core>) -> Self {
        let tag = PhantomData;
        Self { core, tag }
    }

    /// Returns whether the session still has to acquire its connection.
    pub(crate) fn is_to_check_out(&self) -> bool {
        let state = self.core.lock();
        !self.core.pool().is_direct() && state.phase.is_open() && matches!(state.slot, Slot::Empty)
    }

    /// Acquires the session's connection before its first statement.
    pub(crate) async fn check_out(&self) -> Result<(), Error> {
        let acquired = check_out_early(&self.core).await;
        acquired.map_err(|error| {
            // The layer answers by this error's status, and needs one for every
            // way in which acquiring can fail.
            let known = Error::of(&error).filter(|known| !known.is_connection_lost());
            // With its cause, for the log.
            known.unwrap_or_else(|| Error::with_source(Kind::ConnectionLost, error))
        })
    }

    /// Returns whether the request that the session belongs to has ended.
    pub(crate) fn has_ended(&self) -> bool {
        let state = self.core.lock();
        // A session that was cut off is closed before that.
        state.phase.is_over() && state.phase.cut_off().is_none()
    }

    /// Applies what a layer inside the session's own asks for.
    pub(crate) fn order(&self, order: Order) -> Result<(), Error> {
        order::apply(&self.core, order).map_err(Error::from)
    }

    pub(super) fn handle(&self) -> Handle<'_> {
        Handle {
            core: &self.core,
            caller: Caller::Session,
            through: None,
        }
    }
}

// By hand, because a derived one would ask the tag to be `Clone`.
impl<Tag> Clone for DbSession<Tag> {
    fn clone(&self) -> Self {
        Self::over(self.core.clone())
    }
}

impl<Tag> fmt::Debug for DbSession<Tag> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DbSession")
            .field("closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}

/// Creates a plain handle that belongs to no request: outside a transaction,
/// every statement takes its own connection from `database`, as it would
/// without this crate. For unit tests and for migrating a service step by step.
///
/// The rules of a session apply (one statement after the other inside a
/// transaction, nested transactions as a stack, a transaction that the server
/// has aborted is not committed), but there is no response that ends it: work
/// done through [`tx()`](DbSession::tx) is rolled back when the last handle is
/// dropped, unless [`commit`](DbSession::commit) was called, and hooks that
/// would wait for its end are refused. To let a handler's response decide in a
/// unit test, run the handler with `testing::serve`.
impl From<DatabaseConnection> for DbSession {
    fn from(database: DatabaseConnection) -> Self {
        let plan = Plan::new(OpenedFor::Plain);
        Self::over(Core::new(SessionPool::pass_through(database), plan))
    }
}
