#![cfg_attr(docsrs, feature(doc_cfg))]
//! A request-scoped [SeaORM](sea_orm) session for every tower service.
//!
//! A [`DbSessionLayer`] gives every request one connection of the pool, as a [`DbSession`], and takes
//! it back whatever happens to the request: answer, error, panic, time-out, client gone.
//!
//! ```
//! use axum::{Json, Router, extract::Path, http::StatusCode, routing::get};
//! use sea_orm::{ActiveModelTrait, ActiveValue::Set, Database, EntityTrait, IntoActiveModel};
//! use tower_sea_orm::{DbSession, DbSessionLayer, DbTx};
//! # mod item {
//! #     use sea_orm::entity::prelude::*;
//! #     #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel, serde::Serialize)]
//! #     #[sea_orm(table_name = "item")]
//! #     pub struct Model { #[sea_orm(primary_key)] pub id: i32, pub name: String }
//! #     #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
//! #     pub enum Relation {}
//! #     impl ActiveModelBehavior for ActiveModel {}
//! # }
//! # use item::Entity as Item;
//! # #[derive(Debug)]
//! # enum AppError { NotFound, Database(sea_orm::DbErr) }
//! # impl From<sea_orm::DbErr> for AppError {
//! #     fn from(error: sea_orm::DbErr) -> Self { Self::Database(error) }
//! # }
//! # impl axum::response::IntoResponse for AppError {
//! #     fn into_response(self) -> axum::response::Response {
//! #         match self { Self::NotFound => StatusCode::NOT_FOUND, _ => StatusCode::INTERNAL_SERVER_ERROR }.into_response()
//! #     }
//! # }
//! # async fn translate(name: &str) -> String { name.to_uppercase() }
//!
//! async fn read(
//!     db: DbSession,
//!     Path(id): Path<i32>,
//! ) -> Result<Json<item::Model>, AppError> {
//!     let item = Item::find_by_id(id).one(&db).await?;
//!     item.map(Json).ok_or(AppError::NotFound)
//! }
//!
//! // One transaction: committed before a success leaves. A 4xx, a 5xx, a panic and
//! // a client that leaves roll back.
//! async fn rename(
//!     tx: DbTx,
//!     Path(id): Path<i32>,
//!     name: String,
//! ) -> Result<StatusCode, AppError> {
//!     let found = Item::find_by_id(id).one(&tx).await?.ok_or(AppError::NotFound)?;
//!     let mut item = found.into_active_model();
//!     item.name = Set(name);
//!     item.update(&tx).await?;
//!     Ok(StatusCode::NO_CONTENT)
//! }
//!
//! // Give the connection back while you wait for another service.
//! async fn translated(
//!     db: DbSession,
//!     Path(id): Path<i32>,
//! ) -> Result<String, AppError> {
//!     let item = Item::find_by_id(id).one(&db).await?.ok_or(AppError::NotFound)?;
//!     db.release().await?;
//!     let name = translate(&item.name).await;
//!     // The next statement, if there is one, checks a connection out again.
//!     Ok(name)
//! }
//!
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! let db = Database::connect("sqlite::memory:").await?; // SeaORM, unchanged
//! # {
//! #     use sea_orm::ConnectionTrait;
//! #     db.execute_unprepared("CREATE TABLE item (id integer PRIMARY KEY, name text NOT NULL)").await?;
//! #     db.execute_unprepared("INSERT INTO item VALUES (1, 'lamp')").await?;
//! # }
//! let app = Router::new()
//!     .route("/items/{id}", get(read).put(rename))
//!     .route("/items/{id}/translated", get(translated))
//!     .route_layer(DbSessionLayer::new(db).lazy()); // lazy: no statement, no connection
//! # use tower::ServiceExt;
//! # let send = |method: &str, path: &str, body: &'static str| {
//! #     let request = http::Request::builder().method(method).uri(path).body(axum::body::Body::from(body)).unwrap();
//! #     let app = app.clone();
//! #     async move {
//! #         let response = app.oneshot(request).await.unwrap();
//! #         let status = response.status().as_u16();
//! #         (status, axum::body::to_bytes(response.into_body(), 1000).await.unwrap())
//! #     }
//! # };
//! # assert_eq!(send("PUT", "/items/1", "desk lamp").await.0, 204);
//! # assert_eq!(send("GET", "/items/1", "").await, (200, r#"{"id":1,"name":"desk lamp"}"#.into()));
//! # assert_eq!(send("GET", "/items/1/translated", "").await, (200, "DESK LAMP".into()));
//! # assert_eq!(send("GET", "/items/2", "").await.0, 404);
//! # Ok::<(), sea_orm::DbErr>(())
//! # }).unwrap();
//! ```
//!
//! Code that is generic over SeaORM's `ConnectionTrait`, `StreamTrait` or `TransactionTrait` takes a
//! `&DbSession` as it is. Without axum, take the session from the request's extensions:
//! [`DbSession::from_extensions`]. Outside of requests, sessions come from a [`SessionPool`].
//!
//! A request's transaction is one argument, [`DbTx`], or one word on the layer:
//! [Transactions](guide::transactions) has the modes and a table of what happens when. Tests on a real
//! database leave nothing behind with the feature `testing`.
//!
//! New here? [Coming from FastAPI and SQLAlchemy](guide::from_fastapi) shows each piece beside its
//! counterpart; [Coming from `State<DatabaseConnection>`](guide::from_state) moves a service over
//! step by step. Something is wrong? [Troubleshooting](guide::troubleshooting) goes by what you see.
//!
//! # The flow
//!
//! ```text
//! request ─▶ DbSessionLayer ─▶ DbSessionService ─▶ ResponseFuture ─▶ response
//!             wraps once        per request         Acquiring ▸ Serving ▸ Settling
//!                                   │                    │ owns
//!                               SessionPool          the guard: whatever ends the
//!                               one queue of         future ends it, and it gives
//!                               waiters              the connection back
//!                                                        │ lends
//!                                                    DbSession, the handle
//! ```
//!
//! The request carries a handle, the future carries the guard. A handle can be cloned and kept; it
//! dies with the request. A session checks out before the handler runs, or with
//! [`lazy`](DbSessionLayer::lazy) at its first statement.
//!
//! Take `lazy()` if clients reach the service directly: the default holds a connection while the body of a
//! request comes in, so that a few slow uploads can take all of them. Take the default where a proxy
//! buffers request bodies, or none has any, and the handler should not begin without a connection.
//! [`eager_if(without_body)`](without_body) does the one or the other by the request.
//!
//! # The order of layers
//!
//! The layer that is added last to a [`Router`](https://docs.rs/axum/latest/axum/struct.Router.html) is the
//! outermost; in a `ServiceBuilder` it is the first one.
//!
//! | layer | where | why |
//! |---|---|---|
//! | tracing (`TraceLayer`) | outside of the session's | its span then has what the session does, and its response the session's own answers |
//! | panics (`CatchPanicLayer`) | outside | the panic has rolled the transaction back when it is answered |
//! | time-outs (`TimeoutLayer`) | outside | the time covers the wait for a connection and the COMMIT; a request dropped half-way is rolled back |
//! | concurrency limits, authentication without the database | outside | a request that is turned away takes no connection |
//! | authentication with the database, [`TransactionLayer`] | inside | they use the request's session |
//! | layers that read or replace response bodies (compression) | outside | a [held](DbSession::hold_until_body_end) body that is read or replaced inside is settled at its head |
//!
//! The layer's own answers need the body type of the service inside of it. An empty body is the default, so
//! a layer inside whose body has no `Default` (`TraceLayer`, in one `ServiceBuilder`) does not compile. Put
//! it outside, or say how that body is made (tower-http's features `map-response-body` and `util`):
//!
//! ```
//! # #[cfg(feature = "mock")] {
//! use axum::{Router, body::Body};
//! use tower::ServiceBuilder;
//! use tower_http::{ServiceBuilderExt, trace::TraceLayer};
//! use tower_sea_orm::DbSessionLayer;
//! # use sea_orm::{DbBackend, MockDatabase};
//! # let db = MockDatabase::new(DbBackend::Postgres).into_connection();
//! # let routes: Router = Router::new();
//!
//! // Outside, which is the better place:
//! let app: Router = routes.clone().layer(
//!     ServiceBuilder::new().layer(TraceLayer::new_for_http()).layer(DbSessionLayer::new(db.clone())),
//! );
//! // Inside, its body made an axum body again:
//! let layers = ServiceBuilder::new()
//!     .layer(DbSessionLayer::new(db))
//!     .map_response_body(Body::new)
//!     .layer(TraceLayer::new_for_http());
//! let app: Router = routes.layer(layers);
//! # let _ = app; }
//! ```
//!
//! # What is guaranteed
//!
//! | guarantee | meaning |
//! |---|---|
//! | **Acquire first** | The handler is not called before a connection is checked out. With `lazy()` nothing is checked out until the first statement, and a request that runs none costs the pool nothing. |
//! | **One request, one connection** | All statements through one request's session run on the same connection to the server, in a transaction or not, until the handler itself releases it. Behind a proxy that pools per transaction (PgBouncer, RDS Proxy, ProxySQL) this holds only inside a transaction. |
//! | **Released on every exit** | Any status, an error of the inner service, a panic, the future dropped at any await, the client gone, a time-out layer above or below, extensions cloned, a handle kept by a task. |
//! | **Only a clean connection goes back** | No statement in flight, nothing unread, no open transaction. What is not clean within the [`release_timeout`](SessionPoolBuilder::release_timeout) is closed and its slot freed. No cancelled request destroys an in-memory SQLite database. |
//! | **No driver call is cancelled half-way** | A driver call once started, acquiring included, runs to its end: in the request if it still waits, in a task of this crate if not. |
//! | **A handle that outlives its request is dead** | Its statements answer *session closed* and say what to do instead. It never touches another request's connection. |
//! | **A cancelled request stops costing the server** | With [`cancel_running`](SessionPoolBuilder::cancel_running): its running statement is cancelled on the server (PostgreSQL, MySQL, MariaDB; SQLite interrupts it), fenced so that it can never hit another request's. Outside of a transaction only a read is cancelled and a write is finished; inside, everything but COMMIT. Behind a proxy that pools per transaction only inside of transactions. |
//! | **Exhaustion is an answer, not a hang** | Waiting is bounded in time ([`acquire_timeout`](SessionPoolBuilder::acquire_timeout)) and in number ([`max_waiting`](SessionPoolBuilder::max_waiting)); then 503 with `Retry-After`, checked out lazily or not. Exhausted, database down and closing are told apart. |
//! | **Dropping is harmless** | No panic and no blocking, without a runtime, while unwinding, at shutdown. |
//! | **An acknowledged write is a committed write** | In a transaction, a success leaves only after the server committed. A failed COMMIT, a transaction that the server gave up after a failed statement (even if the handler swallowed the error), a nested transaction still open, a statement still running: each turns the answer into an error and the transaction into a rollback. If the connection is lost during COMMIT, the outcome is unknown; that is a separate kind of error, and is never retried. |
//! | **Everything else rolls back** | And the rollback is awaited, at most for the `release_timeout`, before the error leaves. Where the handler has dropped a statement half-way, as a time-out layer inside the session layer does, the answer waits 100 ms for that statement, and the rollback follows in a task. |
//! | **Nested transactions are a stack** | Only the innermost open handle runs statements. Ending one out of order is an error, not another one's data loss. |
//! | **No state leaks to the next request** | With [`reset`](SessionPoolBuilder::reset): settings, role, advisory locks, temporary tables, LISTEN and cursors of a session are gone before the next one has the connection. Not behind a proxy that pools per transaction. |
//! | **No deadlock between futures of one session** | Each future of a session that is still polled ends: `select!` by `&mut`, `buffered`, a statement that is kept and not polled any more. An open stream refuses other statements instead. |
//! | **While the database answers, requests are answered** | Silent idle connections, connects that fail and a server with no place left keep no request from the connections that work. Statements whose answers the network has lost end with an error as soon as requests wait for their connections and the server says that it does nothing; a single one where [`cancel_running`](SessionPoolBuilder::cancel_running) is on, or at the end of [`max_hold`](SessionPoolBuilder::max_hold). |
//! | **Fail-over heals by itself** | A write that the server refuses as read-only has the pool's connections closed, so that the next ones go where the name leads. |
//! | **A good citizen of tower** | The inner service's error passes untouched, readiness is respected, axum is optional, and any body type works. |
//! | **The client learns a status, the log the cause** | No database text, SQL or URL in an answer of this crate's; no password in its `Debug`. Every 5xx it makes is in the log. |
//!
//! # Cancel safety
//!
//! hyper drops the handler's future when the client goes away, and so do time-out layers and
//! `select!`. This is what happens to what was running:
//!
//! | dropped | what happens |
//! |---|---|
//! | a statement | It runs to its end on the server, in a task of this crate; with [`cancel_running`](SessionPoolBuilder::cancel_running) a read outside of a transaction is cancelled. The session's next statement waits for it; a session that is over gives its connection back after it. |
//! | a stream, half-read | What is left is read and thrown away in a task. The next statement waits for it. |
//! | a transaction, or the future of `transaction_async` | Rolled back before anything else happens on the connection. The statement that was running ends first. |
//! | `commit()`, or the request while it is committing | A COMMIT that was sent is seen through, and its hooks run. One that was not is a rollback. |
//! | a body that is held until its end | Its transaction is rolled back, unless COMMIT was sent. |
//! | the code of a raw closure (`with_postgres`, …) | Dropped as well, and the connection is closed: its state is unknown. An in-memory SQLite database keeps its connection. |
//! | a wait for a connection | The place in the queue is given up. No connection is lost. |
//! | the whole request | All of the above; the handles die, then the connection goes back. With `cancel_running` whatever runs in a transaction is cancelled as well, but never a COMMIT. |
//!
//! Each of these waits at most the `release_timeout` (5 s), then the connection is closed. An
//! in-memory SQLite database is waited for without a bound: it would die with its connection.
//!
//! # Limits
//!
//! - **`Drop` cannot wait.** When a request is dropped, its connection is back a moment later, not at
//!   once. A response is sent only after any transaction that the handler left open has been
//!   rolled back.
//! - **A streamed body has no session** unless it is
//!   [held until its end](DbSession::hold_until_body_end): a session ends when the response's head is there.
//! - **A running statement is not cancelled on the server** unless you say
//!   [`cancel_running`](SessionPoolBuilder::cancel_running). It ends by itself, or its connection is closed.
//! - **The session ends with the response.** A task that the handler spawned and did not await loses it:
//!   its next statement answers *session closed*.
//! - **Hooks live in memory.** A process that ends between COMMIT and `after_commit` loses them. For what
//!   must not be lost, write a row in the same transaction and send it from there.
//! - **`max_hold` and `close()` take the connection, not the handler:** that goes on until its next statement.
//! - **Behind PgBouncer before 1.21** put `statement-cache-capacity=0` into the URL, and use transactions only:
//!   outside of one, the statement that runs and the answer that comes can be another client's.
//! - **A connect that falls silent** is given up after 4 s, after twice as long the next time (up to the driver's
//!   `acquire_timeout`), and until then requests count on others that can still be opened. One that users of the plain
//!   `DatabaseConnection` or the driver's `min_connections` have begun is bounded by the driver alone, and
//!   [`close`](SessionPool::close) waits for it, for the `release_timeout` at most.
//! - **A reset sees the text of statements.** A function of your own that changes session state is not seen:
//!   [`SessionStateAlways`](Reset::SessionStateAlways). Where MySQL's or SQLite's state cannot be put back, the
//!   connection is closed.
//! - **The runtime's shutdown ends the crate's tasks.** What they were reading or rolling back is
//!   closed instead, and the server rolls back. Let the requests end first, as in the `items` example.
//! - **sqlx's `before_acquire` and `after_release` hooks are skipped** when a connection goes straight
//!   to the next session, and so is sqlx's ping. If you rely on them: [`warm(false)`](SessionPoolBuilder::warm).
//!   At least every 10 s (or `max_lifetime`, if that is shorter) each connection passes through sqlx's
//!   pool, which looks at its age.
//! - **A handler that uses its session and the plain `DatabaseConnection`** can deadlock with others
//!   like it: each holds a connection and waits for another one, until the acquire time-out. The ways
//!   out: run everything on the session; [`lazy`](DbSessionLayer::lazy) and
//!   [`release`](DbSession::release) before the other is used; [`reserve`](SessionPoolBuilder::reserve)
//!   connections for the plain users. A second session from `pool()` has the
//!   same trouble, but is seen: the log names the request, and where every request that holds one waits, one gets an error at
//!   once. So it is for jobs ([`transaction`](SessionPool::transaction) within another one). A
//!   [`session`](SessionPool::session) that the handler took from `pool()` is not attributed to the request,
//!   because it may have moved to another task.
//! - **Statements of one session run one after the other.** `join!` of two is not parallel.
//! - **Tables without transactions keep their rows.** MyISAM, Aria and MEMORY of MySQL and MariaDB ignore a
//!   ROLLBACK, so that a 4xx leaves what was written to them, and a statement that fails leaves a part of it.
//! - **SeaORM's metric callbacks and RBAC are not seen.** They belong to `DatabaseConnection`, and
//!   statements of a session do not pass through it.
//!
//! # Statuses
//!
//! | what happened | the layer's answer | `Retry-After` |
//! |---|---|---|
//! | no connection within `acquire_timeout`, too many others in the queue already ([`max_waiting`](SessionPoolBuilder::max_waiting)), database down, pool closed | 503 | 1–3 s, random |
//! | the same, lazily, and the handler answered 5xx | 503 instead of the handler's answer ([`keep_handler_errors`](DbSessionLayer::keep_handler_errors) lets that stand) | 1–3 s, random; none if the session had run a statement before |
//! | serialization failure, deadlock, SQLite busy: at COMMIT, or in a transaction whose handler answered 5xx | 503 | 1 s; none if something of the request was committed |
//! | the connection was taken away by [`max_hold`](SessionPoolBuilder::max_hold): an answer below 400 whose transaction was lost by it, or a 5xx | 504 | – |
//! | the server stopped a statement (`statement_timeout`, `max_execution_time`) and the handler answered 5xx | 504 | – |
//! | every connection is held by a request that waits for a second session | 500 for one of them, if its handler gives up | – |
//! | COMMIT failed for good or its outcome is unknown, the transaction was given up, something of it is still open or running | 500 | – |
//! | a session argument or a `TransactionLayer`, but no session layer | 500, with a text that names the layer | – |
//! | anything else | the handler's own answer | – |
//!
//! The body is empty; [`on_error`](DbSessionLayer::on_error) makes another answer, [`problem_json`] one
//! of `application/problem+json`. A gRPC request gets status 200 with `grpc-status` 14 or 13.
//!
//! A statement's error is SeaORM's `DbErr`. [`Error::of`] finds this crate's own failures in it, and
//! the server's errors that a retry may cure (serialization failure, deadlock, lock time-out): use its
//! [`status`](Error::status) and [`retry_after`](Error::retry_after) for your answer.
//!
//! # The log
//!
//! | target | level | what |
//! |---|---|---|
//! | `tower_sea_orm::session` | DEBUG | the span `db_session`, one per session, with `waited_ms`, `held_ms`, `statements` and `outcome` (released, committed, rolled back, unknown) when it closes |
//! | `tower_sea_orm::session` | WARN | a connection that had to be closed |
//! | `tower_sea_orm::pool` | WARN | no connection: in use, waiting, limit, waited; at most once a second |
//! | `tower_sea_orm::pool` | INFO | connections are available again |
//! | `tower_sea_orm::pool` | WARN | a session that holds its connection for longer than [`warn_hold`](SessionPoolBuilder::warn_hold) (10 s), with method, path and its last statement without values; INFO when it came back after all |
//! | `tower_sea_orm::pool` | WARN | a connection that was taken away, by `max_hold` or by [`close`](SessionPool::close) |
//! | `tower_sea_orm::pool` | WARN | a request or a job that waits for a second session of a pool while it holds one |
//! | `tower_sea_orm::pool` | WARN | a statement whose answer the network has lost, with method and path |
//! | `tower_sea_orm::pool` | INFO | a connect that took too long and was given up |
//! | `tower_sea_orm::pool` | WARN | statements that cannot be cancelled, and why |
//! | `tower_sea_orm::pool` | WARN | with `PoolConfig`: variables that begin like its settings and are none |
//! | `tower_sea_orm::pool` | INFO | with `PoolConfig`: a server that is waited for at the start, and when it is there |
//! | `tower_sea_orm` | ERROR | an answer of 500 that the crate made, or a body that it broke, with the cause |
//! | `tower_sea_orm` | WARN | an answer of 503 after a conflict, or of 504 after a statement that the server stopped |
//!
//! With `FmtSpan::CLOSE` of tracing-subscriber and the filter `tower_sea_orm=debug`, each session is
//! one line. [`SessionPool::status`] gives the numbers of this moment.
//!
//! # Features
//!
//! | feature | default | what |
//! |---|---|---|
//! | `axum` | yes | [`DbSession`], [`DbTx`], each also as an `Option`, and [`SessionPool`] as handler arguments |
//! | `stream` | yes | SeaORM's `StreamTrait` for sessions |
//! | `sqlx-postgres` | | PostgreSQL |
//! | `sqlx-mysql` | | MySQL and MariaDB; a MySQL account with a password also needs TLS (SeaORM's `runtime-tokio-rustls`), or sqlx's `mysql-rsa` |
//! | `sqlx-sqlite` | | SQLite |
//! | `mock` | | SeaORM's `MockDatabase` |
//! | `testing` | | `testing::TestPool`: sessions inside a transaction that is rolled back after the test |
//! | `config` | | `PoolConfig`: the pool's settings from the environment or a file, under SeaORM's and SQLAlchemy's names |
//! | `proxy` | | SeaORM's `ProxyDatabase`; SeaORM itself does not compile with it and `sqlx-mysql` or `sqlx-sqlite` |
//!
//! Turn on the driver here that you turn on in SeaORM. TLS is SeaORM's choice: its feature
//! `runtime-tokio-rustls` or `runtime-tokio-native-tls`.

mod answer;
mod body;
#[cfg(feature = "config")]
mod config;
mod connection;
mod error;
#[cfg(feature = "axum")]
mod extract;
mod future;
mod layer;
mod pool;
mod respond;
mod service;
mod session;
mod telemetry;
#[cfg(feature = "testing")]
pub mod testing;
mod transaction;

#[cfg(feature = "config")]
pub use self::config::{ConfigError, PoolConfig};
#[cfg(feature = "axum")]
pub use self::extract::MissingSession;
#[cfg(feature = "stream")]
pub use self::session::SessionStream;
pub use self::{
    body::{HoldFuture, HoldLayer, HoldService, SessionBody},
    error::Error,
    future::ResponseFuture,
    layer::{DbSessionLayer, unsafe_methods, without_body},
    pool::{Reset, SessionPool, SessionPoolBuilder, Status},
    respond::{EmptyBody, OnError, error_response, problem_json},
    service::DbSessionService,
    session::{DbSession, DbTx, Main, PoolSession, SessionTransaction},
    transaction::{Outcome, TransactionLayer, TransactionService},
};

/// Transactions in full, and guides for those who come from elsewhere.
pub mod guide {
    #[doc = include_str!("guide/from_fastapi.md")]
    pub mod from_fastapi {}

    #[doc = include_str!("guide/transactions.md")]
    pub mod transactions {}

    #[doc = include_str!("guide/from_state.md")]
    pub mod from_state {}

    #[doc = include_str!("guide/troubleshooting.md")]
    pub mod troubleshooting {}
}

/// The README's examples are tests as well.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
