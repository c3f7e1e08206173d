//! Tests on a real database that leave nothing behind (feature `testing`).
//!
//! A [`TestPool`] runs all its sessions inside one transaction that is rolled
//! back at the end. A service's transactions become savepoints, so its commits
//! and rollbacks differ as in production, and tests run side by side on one
//! database without seeing each other.
//!
//! ```
//! # #[cfg(all(feature = "sqlx-sqlite", feature = "axum"))]
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! use axum::{Router, http::StatusCode, routing::post};
//! use sea_orm::{ConnectionTrait, Database};
//! use tower::ServiceExt;
//! use tower_sea_orm::{DbSessionLayer, DbTx, testing::TestPool};
//!
//! // The service under test takes its pool as an argument.
//! fn app(pool: tower_sea_orm::SessionPool) -> Router {
//!     Router::new().route("/items", post(create)).layer(DbSessionLayer::new(pool))
//! }
//! async fn create(tx: DbTx) -> StatusCode {
//!     tx.execute_unprepared("INSERT INTO item VALUES (1)").await.unwrap();
//!     tx.after_commit(async { /* ... send a mail */ }).unwrap();
//!     StatusCode::CREATED
//! }
//!
//! let db = Database::connect("sqlite::memory:").await?; // in your tests: TEST_DATABASE_URL
//! # db.execute_unprepared("CREATE TABLE item (id integer PRIMARY KEY)").await?;
//! let test = TestPool::begin(db.clone()).await?;
//! let request = http::Request::post("/items").body(axum::body::Body::empty()).unwrap();
//! let response = app(test.pool()).oneshot(request).await.unwrap();
//! assert_eq!(response.status(), StatusCode::CREATED);
//!
//! // The test sees what the service committed,
//! let session = test.session().await?;
//! assert_eq!(session.execute_unprepared("UPDATE item SET id = 2").await?.rows_affected(), 1);
//! drop(session);
//! // and what it would have sent.
//! assert_eq!(test.hooks(), 1);
//! test.rollback().await?;
//! // Nothing of it is left.
//! assert_eq!(db.execute_unprepared("DELETE FROM item").await?.rows_affected(), 0);
//! # Ok::<(), sea_orm::DbErr>(())
//! # }).unwrap();
//! ```
//!
//! To run a single handler without a service around it, use [`serve`].
//!
//! Differences from production:
//!
//! - There is one connection, and sessions take turns. A request that needs a second session while it
//!   holds one gets an error at once. Code that uses the plain `DatabaseConnection`, outside the pool,
//!   would see nothing of the test, so the connection of [`SessionPool::database`] is closed here: its
//!   statements fail. Run migrations on the real connection, before the test begins.
//! - Isolation level and access mode are those of the outer transaction, which has the database's defaults: a
//!   GET that writes in spite of `read_only_otherwise()` is not refused.
//! - Outside a transaction of its session, a statement that fails is rolled back to a savepoint, so
//!   every statement there becomes three.
//! - PostgreSQL checks deferred constraints at each COMMIT of a session; SQLite never checks them,
//!   because it does so only at the end of the outermost transaction.
//! - On MySQL and MariaDB, statements that commit implicitly (DDL) are refused: create the tables
//!   beforehand. On these, a deadlock also ends the outer transaction.
//! - Code that cannot be inspected (raw access, procedures) must leave the outer transaction alone. If it
//!   ends that transaction, its own statement, all later ones and [`TestPool::rollback`] return an error.
//! - The connection stays: `reset` resets nothing, `cancel_running` cancels nothing, and a statement that runs
//!   when `hold_timeout` is over goes on. A connection that is closed at the `release_timeout` ends the test's
//!   transaction.
//! - With tokio's clock paused, timeouts expire while the test waits for a server. SQLite and mocks have
//!   no server.
//! - Hooks are not run: see [`TestPool::hooks`].
//! - Sequences and `AUTO_INCREMENT` go on: PostgreSQL and MySQL do not roll them back.

use std::{
    convert::Infallible,
    fmt,
    future::poll_fn,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use http::{Method, Request, Response, uri::PathAndQuery};

use crate::{
    DbSession, DefaultDatabase, DefaultResponseForError, Error, Observer, PoolSession, SessionPool,
    SessionPoolBuilder,
    error::Kind,
    pool::{Label, observer::Executed, test_pool},
    response::{Responder, ResponsePolicy},
    session::{OpenedFor, Plan, SettleAt, try_open},
};

/// Runs a handler with a session, and ends the session by the handler's
/// response, as a [`DbSessionLayer`](crate::DbSessionLayer) around it would:
/// for unit tests that call a handler directly. With a plain handle
/// (`DbSession::from(db)`), work that the handler does in a
/// [`DbTx`](crate::DbTx) would never be committed.
///
/// Returns the response that a client would get, with the
/// [`Outcome`](crate::Outcome) in its extensions.
///
/// ```
/// # #[cfg(all(feature = "sqlx-sqlite", feature = "axum"))]
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// use axum::{Json, body::Body, http::StatusCode, response::IntoResponse};
/// use sea_orm::{ConnectionTrait, Database};
/// use tower_sea_orm::{DbTx, SessionPool, testing};
///
/// async fn create(tx: DbTx, Json(id): Json<i32>) -> StatusCode {
///     tx.execute_unprepared(&format!("INSERT INTO item VALUES ({id})")).await.unwrap();
///     if id < 0 { StatusCode::BAD_REQUEST } else { StatusCode::CREATED }
/// }
///
/// let pool = SessionPool::new(Database::connect("sqlite::memory:").await?);
/// # pool.database().execute_unprepared("CREATE TABLE item (id integer PRIMARY KEY)").await?;
/// for (id, status) in [(1, StatusCode::CREATED), (-1, StatusCode::BAD_REQUEST)] {
///     let response = testing::serve(pool.clone(), async |db| create(db.tx(), Json(id)).await.into_response());
///     assert_eq!(response.await.status(), status);
/// }
/// let left = pool.session().await?.execute_unprepared("DELETE FROM item").await?;
/// assert_eq!(left.rows_affected(), 1); // the first one was committed, the other one rolled back
/// # Ok::<(), sea_orm::DbErr>(())
/// # }).unwrap();
/// ```
///
/// # Cancel safety
///
/// If the future is dropped before COMMIT was sent, everything is rolled back.
// By the guard and the responder that a layer has, and not by a copy of what
// they do.
pub async fn serve<F, B>(pool: impl Into<SessionPool>, handler: F) -> Response<B>
where
    F: AsyncFnOnce(DbSession) -> Response<B>,
    B: Default,
{
    let (parts, ()) = Request::new(()).into_parts();
    let responder = Responder::<DefaultDatabase, _>::new::<B>(
        DefaultResponseForError,
        &parts,
        ResponsePolicy::default(),
    );
    let plan = Plan::new(OpenedFor::Request(Label {
        method: Method::GET,
        path: Some(PathAndQuery::from_static("/")),
        route: None,
    }));
    // Not eager: a handler that runs no statement needs no database.
    let Ok((session, guard)) = try_open(&pool.into(), plan, false) else {
        return responder.error(&Kind::Closing.into());
    };
    let mut handling = pin!(handler(session));
    // As a layer's future does it: a second session that the handler takes is
    // known as this request's (H11).
    let response = poll_fn(|cx| guard.poll(handling.as_mut(), cx)).await;
    match SettleAt::of(Ok::<_, Infallible>(response), guard) {
        SettleAt::Head(Ok(response), decision, guard) => {
            let ended = guard.settle(decision).resolve().await;
            responder.conclude(response, ended, &guard)
        }
        SettleAt::BodyEnd(response, usage) => responder.pending(response, usage),
        SettleAt::Head(Err(never), ..) => match never {},
    }
}

/// A [`SessionPool`] whose sessions all run inside one transaction, which is
/// rolled back at the end.
///
/// If it is dropped, it rolls back in a task, or closes the connection if the
/// runtime ends first; [`rollback`](Self::rollback) waits for the rollback.
#[must_use = "the transaction is rolled back when it is dropped"]
pub struct TestPool {
    pool: SessionPool,
    // An observer's: the real database below keeps no list of them for the
    // test.
    statements: Arc<StatementLog>,
}

/// The statements that a test's sessions have run, without values.
#[derive(Default)]
struct StatementLog(Mutex<Vec<String>>);

impl StatementLog {
    fn lock(&self) -> MutexGuard<'_, Vec<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for StatementLog {
    fn executed(&self, executed: &Executed<'_>) {
        // The session's own are no statements of the code under test.
        if !executed.is_control() {
            self.lock().push(executed.statement());
        }
    }
}

impl TestPool {
    /// Takes a connection from the database and opens the transaction. Pass a
    /// `DatabaseConnection`, or a [`SessionPool::builder`] with the settings
    /// that the service has in production; `reserved_connections`, `reset` and
    /// `cancel_running` have no effect, because there is one connection, which
    /// stays.
    ///
    /// # Errors
    ///
    /// If no connection can be acquired, the settings do not fit the database,
    /// or it is a mock or a proxy.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped half-way, the connection is returned or closed.
    pub async fn begin(database: impl Into<SessionPoolBuilder>) -> Result<Self, Error> {
        let statements = Arc::<StatementLog>::default();
        let builder = database.into().observe(statements.clone());
        let pool = SessionPool::from_inner(test_pool::begin(builder).await?);
        Ok(Self { pool, statements })
    }

    /// Returns the pool for the service under test.
    ///
    /// Its [`database()`](SessionPool::database) is closed, and statements on
    /// it (by `Migrator::up`, for example) fail: they would be committed
    /// outside the test's transaction, stay after the test, and might wait for
    /// locks that the test holds. Prepare data through
    /// [`session`](Self::session), and migrate on the plain
    /// `DatabaseConnection` before [`begin`](Self::begin).
    pub fn pool(&self) -> SessionPool {
        self.pool.clone()
    }

    /// Opens a session for the test itself, to prepare data and to inspect what
    /// the service did. Drop it before you call the service, because there is
    /// one connection. A request, or another session of the test, that comes
    /// while it is open gets an error at once.
    ///
    /// # Errors
    ///
    /// As [`SessionPool::session`].
    ///
    /// # Cancel safety
    ///
    /// As [`SessionPool::session`].
    pub async fn session(&self) -> Result<PoolSession, Error> {
        self.pool.own_session().await
    }

    /// Runs `work`, and asserts that the pool's sessions run this many
    /// statements meanwhile. BEGIN, COMMIT, ROLLBACK and savepoints are not
    /// counted. Keeps a handler from running one statement for each row:
    /// Django's `assertNumQueries` does the same.
    ///
    /// ```
    /// # #[cfg(feature = "sqlx-sqlite")]
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// use sea_orm::{ConnectionTrait, Database};
    /// use tower_sea_orm::testing::TestPool;
    ///
    /// let test = TestPool::begin(Database::connect("sqlite::memory:").await?).await?;
    /// let pool = test.pool();
    /// test.assert_statements(2, async {
    ///     let session = pool.session().await?;
    ///     session.execute_unprepared("SELECT 1").await?;
    ///     session.execute_unprepared("SELECT 2").await
    /// })
    /// .await?;
    /// # test.rollback().await?;
    /// # Ok::<(), sea_orm::DbErr>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Panics
    ///
    /// If it is another number; the message lists the statements, without
    /// values.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops `work`, and nothing is asserted.
    pub async fn assert_statements<T>(&self, expected: usize, work: impl Future<Output = T>) -> T {
        let before = self.statements.lock().len();
        let output = work.await;
        let ran = self.statements.lock()[before..].to_vec();
        assert!(
            ran.len() == expected,
            "{} statements instead of {expected}:\n{}",
            ran.len(),
            // All of them: a number says nothing of which one is too many.
            ran.join("\n")
        );
        output
    }

    /// Returns how many `after_commit` and `after_rollback` hooks would have
    /// run by now.
    pub fn hooks(&self) -> usize {
        self.pool.inner().test().map_or(0, |test| test.hooks())
    }

    /// Runs the hooks that would have run by now, in order, and returns how
    /// many there were.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped half-way, the hooks that have not run are lost.
    pub async fn run_hooks(&self) -> usize {
        let test = self.pool.inner().test();
        // By the test itself: nothing of its transaction is ever committed, so
        // that they would never run.
        let hooks = test.map(|test| test.take_hooks()).unwrap_or_default();
        let count = hooks.len();
        for hook in hooks {
            hook.await;
        }
        count
    }

    /// Waits for the last session's end, rolls everything back and returns the
    /// connection.
    ///
    /// # Errors
    ///
    /// If a session is still open after the `acquire_timeout` (at once if it is
    /// the test's own), or the connection is lost. The connection is then
    /// closed, and the server rolls back. Also if raw or stored code has ended
    /// the transaction ([`is_aborted`](Error::is_aborted)): the work done until
    /// then may be committed.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped half-way, the connection is closed, and the
    /// server rolls back.
    pub async fn rollback(self) -> Result<(), Error> {
        test_pool::roll_back(self.pool.inner()).await
    }
}

// A test that panics leaves nothing behind either.
impl Drop for TestPool {
    fn drop(&mut self) {
        if let Some(test) = self.pool.inner().test() {
            test.end();
        }
    }
}

impl fmt::Debug for TestPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestPool")
            .field("pool", &self.pool)
            .finish_non_exhaustive()
    }
}
