#![cfg_attr(docsrs, feature(doc_cfg))]
//! A request-scoped [SeaORM](sea_orm) session for every tower service.
//!
//! A [`DbSessionLayer`] gives every request one connection from the pool, as a
//! [`DbSession`], and takes it back however the request ends: response, error,
//! panic, timeout or client disconnect.
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
//! Code that is generic over SeaORM's `ConnectionTrait`, `StreamTrait` or
//! `TransactionTrait` takes a `&DbSession` as it is. Without axum, take the
//! session from the request's extensions: [`DbSession::from_extensions`].
//! Outside requests, sessions come from a [`SessionPool`].
//!
//! To run a request in a transaction, take a [`DbTx`] as an argument or call
//! one method on the layer: [Transactions](guide::transactions) describes the
//! modes, and [Statuses](#statuses) what happens in each situation. With the
//! feature `testing`, tests on a real database leave nothing behind.
//!
//! New here? There are pages for those who come from [FastAPI and
//! SQLAlchemy](guide::from_fastapi), [Django and
//! Rails](guide::from_django_and_rails), [Loco](guide::from_loco),
//! [`State<DatabaseConnection>`](guide::from_state), [axum-sqlx-tx and
//! axum-sea-orm-tx](guide::from_axum_sqlx_tx).
//!
//! | | |
//! |---|---|
//! | [Where to find what](guide::where_to_find_what) | an index by the words that you would search for, and short answers: GraphQL, tonic, WebSockets, OpenTelemetry, actix-web |
//! | [Choosing a mode](guide::choosing_a_mode) | what a service does, what to write for it, and what that costs |
//! | [Transactions](guide::transactions) | the modes in full, how a transaction ends, time-outs, hooks, streamed bodies |
//! | [Testing](guide::testing) | on SQLite in memory, on a real database that keeps nothing of it, on a mock; migrations in tests |
//! | [Recipes](guide::recipes) | tenants, two databases, jobs, another try after a deadlock, passwords that change, unit tests |
//! | *Scaling out* (`guide::scaling_out`, with the feature `replicas`) | reads on replicas, what a fail-over does to them, a database for each tenant, how many connections |
//! | [Operating](guide::operating) | pool sizes, timeouts, readiness, Kubernetes, PgBouncer and other poolers, migrations, what to watch |
//! | [Telemetry](guide::telemetry) | the log, traces, metrics for OpenTelemetry and Prometheus, alarms |
//! | [Troubleshooting](guide::troubleshooting) | from the symptom to the remedy |
//! | [Glossary](guide::glossary) | the words of this documentation, a sentence each |
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
//! The request carries a handle, the future owns the guard. A handle can be
//! cloned and kept, but it stops working when the request ends. A session
//! checks its connection out before the handler runs or, with
//! [`lazy`](DbSessionLayer::lazy), at its first statement.
//!
//! A session that has its connection before the handler runs lends it until the
//! first statement: if the request waits for something else (its body, another
//! service) while other requests wait for a connection, it gives its own to the
//! first of them, and its first statement acquires another one. A few slow
//! uploads do not take all connections. All statements still run on one
//! connection. A session that comes back for one waits its turn, for what is
//! left of the `acquire_timeout`, and is not refused by `max_pending`. A
//! [`transaction`](SessionPool::transaction) of a pool lends as well; a
//! [`SessionPool::session`] does not. Only sessions of the same pool borrow:
//! users of the plain `DatabaseConnection` do not.
//!
//! From its first statement on, a session keeps its connection. Where handlers
//! wait for other services between their statements, that is what limits the
//! pool: call [`release`](DbSession::release) before such work, or have the
//! pool lend connections between statements as well, with
//! [`PoolMode::Transaction`].
//!
//! Use `lazy()` if many requests run no statement at all: they cost the pool
//! nothing. Use the default if the handler should not start before there was a
//! connection for it. [`eager_if(without_body)`](without_body) chooses per
//! request.
//!
//! # The order of layers
//!
//! The layer added last to a
//! [`Router`](https://docs.rs/axum/latest/axum/struct.Router.html) is the
//! outermost; in a `ServiceBuilder`, the first one is.
//!
//! | layer | where | why |
//! |---|---|---|
//! | tracing (`TraceLayer`) | outside the session's | its span covers what the session does, and it sees the session layer's own responses |
//! | panics (`CatchPanicLayer`) | outside | the panic drops the session, which rolls its transaction back, before it is turned into a response |
//! | timeouts (`TimeoutLayer`) | outside | the timeout covers the wait for a connection and the COMMIT; a request dropped half-way is rolled back |
//! | concurrency limits, authentication without the database | outside | a rejected request takes no connection |
//! | authentication with the database, [`TransactionLayer`] | inside | they use the request's session |
//! | retries (`RetryLayer`, feature `retry`) | directly outside, and inside tracing, timeouts and authentication | what is between it and the session's layer runs again with each attempt; the layers around it see one request |
//! | layers that read or replace response bodies (compression) | outside | a [held](DbSession::hold_until_body_end) body that is read or replaced inside is settled at its head |
//!
//! The layer's own responses need the body type of the service inside it. An
//! empty body is the default, so an inner layer whose body type has no
//! `Default` (`TraceLayer`, in one `ServiceBuilder`) does not compile. Put that
//! layer outside, or convert its body (tower-http's features
//! `map-response-body` and `util`):
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
//! | **Acquire first** | The handler is not called before a connection is checked out. It may be lent to others until the first statement. With `lazy()` nothing is checked out until the first statement, and a request that runs none costs the pool nothing. |
//! | **One request, one connection** | All statements through one request's session run on the same connection to the server, in a transaction or not, until the handler itself releases it. In [`PoolMode::Transaction`], which is opt-in, this holds for each transaction, and from the first statement that leaves session state on; a statement that asks about an earlier one which may have run elsewhere is refused. Behind a proxy that pools per transaction (PgBouncer, RDS Proxy, ProxySQL) this holds only inside a transaction. |
//! | **Released on every exit** | Any status, an error from the inner service, a panic, the future dropped at any await, a client disconnect, a timeout layer above or below, cloned extensions, a handle kept by a task. |
//! | **Only a clean connection goes back** | No statement in flight, nothing unread, no open transaction. A connection that cannot be made clean within the [`release_timeout`](SessionPoolBuilder::release_timeout) is closed and its slot freed. A cancelled request never destroys an in-memory SQLite database. |
//! | **No driver call is cancelled half-way** | Once started, a driver call (acquiring included) runs to completion: in the request if it still waits, otherwise in a task of this crate. One that takes too long is given up together with its connection, which is closed and never used again. |
//! | **A handle that outlives its request is dead** | Its statements fail with *session closed*, and the error says what to do instead. It never touches another request's connection. |
//! | **A cancelled request stops costing the server** | With [`cancel_running`](SessionPoolBuilder::cancel_running): its running statement is cancelled on the server (PostgreSQL, MySQL, MariaDB; SQLite interrupts it), fenced so that the cancellation can never hit another request's statement. Outside a transaction only a read is cancelled and a write is finished; inside, everything but COMMIT. Behind a proxy that pools per transaction, this works only inside transactions. |
//! | **Exhaustion is an error, not a hang** | Both the wait ([`acquire_timeout`](SessionPoolBuilder::acquire_timeout)) and the queue ([`max_pending`](SessionPoolBuilder::max_pending)) are bounded; beyond that, the client gets 503 with `Retry-After`, whether the checkout is lazy or not. Pool exhausted, database down and pool closing are distinct errors. |
//! | **Dropping is harmless** | No panic and no blocking, not even without a runtime, while unwinding or at shutdown. |
//! | **An acknowledged write is a committed write** | In a transaction, a success response is sent only after the server has committed. A failed COMMIT, a transaction that the server aborted after a failed statement (even if the handler swallowed the error), a nested transaction still open, a statement still running: each turns the response into an error and rolls the transaction back. If the connection is lost during COMMIT, the outcome is unknown; that is a separate kind of error, and is never retried. |
//! | **Everything else rolls back** | The rollback is awaited, for at most the `release_timeout`, before the error response is sent. If the handler dropped a statement half-way, as a timeout layer inside the session layer does, the response waits 100 ms for that statement (a second where [`cancel_running`](SessionPoolBuilder::cancel_running) stops it), and the rollback follows in a task. |
//! | **Nested transactions are a stack** | Only the innermost open handle runs statements. Ending one out of order is an error and never loses another transaction's data. |
//! | **No state leaks to the next request** | With [`reset`](SessionPoolBuilder::reset), a session's settings, role, advisory locks, temporary tables, LISTEN and cursors are gone before the next session gets the connection. Not available behind a proxy that pools per transaction. |
//! | **No deadlock between futures of one session** | Every future of a session that is still polled completes: with `select!` on `&mut` futures, with `buffered`, beside a statement that is kept but no longer polled. While a stream is open, other statements are refused instead. |
//! | **While the database answers, requests are served** | Silent idle connections, failing connects and a server at its connection limit do not keep requests from the connections that work. If the network loses the results of statements, they fail once requests are waiting for their connections and the server reports that it is running nothing for them ([exceptions](guide::troubleshooting#a-statement-never-ends-although-the-server-has-nothing-to-do)); a single such statement ends with an error if [`cancel_running`](SessionPoolBuilder::cancel_running) is on, or at the end of [`hold_timeout`](SessionPoolBuilder::hold_timeout). |
//! | **Fail-over needs no restart** | When the server refuses a write as read-only, the pool's connections are closed, so that new ones connect to whichever server the host name then points to. Statements on a server that fell silent end with `hold_timeout` ([why](guide::troubleshooting#requests-are-refused-after-a-fail-over-although-the-new-server-answers)). |
//! | **Clients read their own writes** | With `DbSessionLayer::replicas` (feature `replicas`), a request that reads on a replica sees what its client's earlier requests have committed, as long as the client sends back the latest position it received, and no replica takes a write. |
//! | **Only what is undone is done again** | With `RetryLayer` (feature `retry`), a request runs again only if nothing of it was committed: never after an unknown outcome or an early commit. Its body is the same, byte for byte. |
//! | **A good citizen of tower** | The inner service's error passes through unchanged, readiness is respected, axum is optional, and any body type works. |
//! | **The client gets a status, the log the cause** | No response made by this crate contains database text, SQL or a URL; no `Debug` output of its types contains a password. Every 5xx it makes is logged. |
//!
//! # Cancel safety
//!
//! hyper drops the handler's future when the client disconnects; timeout layers
//! and `select!` drop it too. This is what happens to the work in progress:
//!
//! | dropped | what happens |
//! |---|---|
//! | a statement | It runs to completion on the server, in a task of this crate; with [`cancel_running`](SessionPoolBuilder::cancel_running), a read outside a transaction is cancelled. The session's next statement waits for it; a session that has ended gives its connection back afterwards. |
//! | a stream, half-read | The remaining rows are read and discarded in a task. The next statement waits for that. |
//! | a transaction, or the future of `transaction_async` | Rolled back before anything else happens on the connection. A running statement ends first. |
//! | `commit()`, or the request while it is committing | A COMMIT that was sent runs to completion, and its hooks run. If it was not sent, the transaction is rolled back. |
//! | a body that is held until its end | Its transaction is rolled back, unless COMMIT was sent. |
//! | the code of a raw closure (`with_postgres`, …) | Dropped as well, and the connection is closed: its state is unknown. An in-memory SQLite database keeps its connection. |
//! | a wait for a connection | The place in the queue is given up. No connection is lost. |
//! | the whole request | All of the above; the handles stop working, then the connection goes back. With `cancel_running`, a statement running in a transaction is cancelled as well, but never a COMMIT. |
//!
//! Each step of these (the running call, then the rollback) may take the
//! `release_timeout` (5 s); after that, the connection is closed. For an
//! in-memory SQLite database the wait is unbounded, because the database would
//! die with its connection.
//!
//! # Limits
//!
//! - **`Drop` cannot wait.** When a request is dropped, its connection goes back a moment later, not
//!   at once. A response is sent only after any transaction that the handler left open has been
//!   rolled back.
//! - **A streamed body has no session** unless it is [held until its end](DbSession::hold_until_body_end): a
//!   session ends when the response's head is ready.
//! - **A running statement is not cancelled on the server** unless you enable
//!   [`cancel_running`](SessionPoolBuilder::cancel_running). It ends by itself, or its connection is closed.
//! - **The session ends with the response.** A task that the handler spawned and did not await
//!   loses it: its next statement fails with *session closed*.
//! - **Hooks live in memory.** A process that ends between COMMIT and `after_commit` loses them. If a
//!   message must not be lost, write it as a row in the same transaction and send it from there.
//! - **`hold_timeout` and `close()` take the connection, not the handler:** the handler goes on until its next
//!   statement, which fails.
//! - **Behind PgBouncer before 1.21** put `statement-cache-capacity=0` into the URL, and use transactions only:
//!   outside one, the statement that runs and the result that comes back can be another client's.
//! - **A connection attempt that gets no reply** is given up after 4 s, and after twice as long the next time (up to
//!   the driver's `acquire_timeout`); until then, requests rely on further connections that can still be opened. An
//!   attempt started by users of the plain `DatabaseConnection`, or by the driver's `min_connections`, is bounded by
//!   the driver alone, and [`close`](SessionPool::close) waits for it, for at most the `release_timeout`.
//! - **A reset is decided by the text of statements.** It does not notice a function of yours that changes session
//!   state; use [`SessionStateAlways`](Reset::SessionStateAlways) for that. If MySQL's or SQLite's state cannot
//!   be restored, the connection is closed.
//! - **The runtime's shutdown ends the crate's tasks.** The connections that they were reading from or
//!   rolling back are closed instead, and the server rolls back. Let the requests finish first, as in
//!   the `items` example.
//! - **sqlx's `before_acquire` and `after_release` hooks are skipped** when a connection goes straight to the
//!   next session, and so is sqlx's ping. If you rely on them, set [`direct_handoff(false)`](SessionPoolBuilder::direct_handoff). After
//!   10 s and a hundred uses, and at the latest after a quarter of its `max_lifetime`, each connection passes through
//!   sqlx's pool, which looks at its age.
//! - **A handler that uses its session and the plain `DatabaseConnection`** can deadlock with others like it: each
//!   holds a connection and waits for another one, until the acquire timeout. To avoid this, run everything on the
//!   session; or use [`lazy`](DbSessionLayer::lazy) and [`release`](DbSession::release) before the plain connection is
//!   used; or keep connections for plain users with
//!   [`reserved_connections`](SessionPoolBuilder::reserved_connections). A second session from `pool()` has
//!   the same problem, but is detected: the log names the request, and if every request that holds a connection waits
//!   for another, one of them gets an error at once. The same goes for jobs ([`transaction`](SessionPool::transaction)
//!   within another one). A [`session`](SessionPool::session) that the handler took from `pool()` is not attributed to
//!   the request, because it may have moved to another task.
//! - **Statements of one session run one after the other.** `join!` of two is not parallel.
//! - **Tables without transactions keep their rows.** MyISAM, Aria and MEMORY of MySQL and MariaDB ignore
//!   ROLLBACK, so rows written to them stay after a 4xx, and a failed statement leaves part of its rows.
//! - **What keeps its own connection does not see the session.** A repository in the state with a
//!   `DatabaseConnection` in it runs beside the request's transaction. Give it a [`CurrentSession`].
//! - **SeaORM's metric callbacks and RBAC do not apply.** They belong to `DatabaseConnection`, and
//!   statements of a session do not pass through it.
//!
//! # Statuses
//!
//! | what happens | the client gets | the transaction | [`Outcome`] |
//! |---|---|---|---|
//! | the handler returns below 400 | its response | is committed first | committed; untouched if no statement ran |
//! | the handler returns 4xx or 5xx, [`set_rollback_only`](DbSession::set_rollback_only) was called, or gRPC's `grpc-status` is not 0 | its response, a 200 after `set_rollback_only` as well | is rolled back first | rolled back |
//! | [`commit_when`](DbSessionLayer::commit_when) decides otherwise | its response | as it says | as it says |
//! | the inner service returns an error | the error, unchanged | is rolled back first | – |
//! | the handler panics | whatever the server, or a `CatchPanicLayer`, sends | is rolled back | – |
//! | the client disconnects, or a timeout outside the layer fires | nothing, or the timeout layer's response | is rolled back, unless COMMIT was sent: then it completes | – |
//! | a timeout layer inside this one answers while a statement runs | its 4xx or 5xx, after 100 ms at most (a second where `cancel_running` stops the statement); a response below 400 waits a second for the statement, then becomes a 500 | is rolled back when the statement has ended | rolled back |
//! | the pool is exhausted ([`acquire_timeout`](SessionPoolBuilder::acquire_timeout), [`max_pending`](SessionPoolBuilder::max_pending)), the server is down or at its connection limit, the pool is closing | 503, `Retry-After` 1–3 s, random | was not begun | – |
//! | the same at a statement (with lazy checkout, after the connection was lent, or because it died while it was idle and no other can be acquired), and the handler returns 5xx | 503 instead ([`keep_handler_errors`](DbSessionLayer::keep_handler_errors) keeps the handler's); no `Retry-After` if the session had run a statement before | was not begun | untouched; autocommit or rolled back where the connection had died |
//! | the same, and the handler swallows the error and answers below 400 | 503 instead; the handler's response if it was a plain statement in autocommit, which promises nothing | was not begun | failed, [`is_acquire`](Error::is_acquire) |
//! | every connection is held by a request that waits for a second session | 500 for one of them, if its handler gives up | is rolled back | rolled back |
//! | the connection died while it was idle | the handler's response | begins on another connection; so does a first statement in autocommit if the server reports that it closed the connection as idle (MariaDB does not) | committed |
//! | the server refuses COMMIT (a deferred constraint), or says instead that it had ended the connection as idle (`idle_in_transaction_session_timeout`) | 500 | is rolled back | failed, [`is_commit_failed`](Error::is_commit_failed) |
//! | COMMIT, or a statement in a transaction before a 5xx, meets a conflict (serialization failure, deadlock, lock timeout, SQLite busy) | 503, `Retry-After` 1 s | is rolled back | failed or rolled back |
//! | the same in a transaction that the handler has begun in an autocommit session, and the handler returns 5xx | 503; `Retry-After` 1 s unless a statement ran outside that transaction | is rolled back | – |
//! | a plain statement in autocommit meets a conflict, and the handler returns 5xx | the handler's response, without `Retry-After`: what the request did before stands, and the handler may repeat that one statement itself ([`is_conflict`](Error::is_conflict)) | – | – |
//! | with replicas (feature `replicas`): the second transaction of one request begins on a replica that is behind, and the handler returns 5xx | 503, `Retry-After` 1 s unless the first one was committed ([`is_replica_behind`](Error::is_replica_behind)) | was not begun | failed or rolled back |
//! | the connection is lost during COMMIT, or the server does not answer it within the [`commit_timeout`](SessionPoolBuilder::commit_timeout) | 500 | may be committed or not; never retried | [unknown](Outcome::is_unknown) |
//! | the connection is lost before COMMIT | whatever the handler returns for the error; a 500 in place of a response below 400 | is lost with the connection | failed |
//! | with replicas (feature `replicas`): the connection is lost in a request that only reads, after its first statement, and the handler returns 5xx or below 400 | 503, `Retry-After` 1 s ([`is_connection_lost`](Error::is_connection_lost)) | is lost with the connection; it was READ ONLY | failed or rolled back |
//! | a statement fails, the handler swallows the error and answers below 400: PostgreSQL; a deadlock on MySQL; a full disk on SQLite | 500; 503 after a conflict | was aborted by the server, and is rolled back | failed, [`is_aborted`](Error::is_aborted) |
//! | the same, with an error that leaves the transaction alive (MySQL, SQLite), or in a nested transaction that was rolled back or dropped | its response | is committed, without the nested one | committed |
//! | raw code (`with_postgres`, …) has ended the transaction | 500 | is whatever the code left | failed, `is_aborted` |
//! | the server stops a statement ([`statement_timeout`](DbSessionLayer::statement_timeout), `max_execution_time`) and the handler returns 5xx | 504, in autocommit as well | is rolled back | rolled back |
//! | a nested transaction is still open and its handle held, or a statement runs for longer than a second after the handler's response | 500 | is rolled back | failed, [`is_unfinished`](Error::is_unfinished) |
//! | a statement in another task ends within that second | its response | is committed after it | committed |
//! | the handler keeps a transaction of `begin()` open in an autocommit session and answers below 400 | 500 | is rolled back | – |
//! | an early [`commit()`](DbSession::commit) succeeded, the handler returns 4xx | its response | stays committed | rolled back: the statements after it |
//! | an early `commit()` failed, the handler returns below 400 | 500; 503 after a conflict | is rolled back | failed |
//! | the same, but the handler recovered: `rollback()`, or another commit (not after an unknown outcome) | its response | as that says | as that says |
//! | [`hold_timeout`](SessionPoolBuilder::hold_timeout) took the connection: its transaction is lost and the handler returns below 400, or a statement failed because of it and the handler returns 5xx | 504 | is rolled back | failed below 400, [`is_hold_timeout`](Error::is_hold_timeout); otherwise rolled back |
//! | [`close`](SessionPool::close) cut the request off | 503 | is rolled back | – |
//! | [`by`](DbSessionLayer::by) picks no pool for the request | 404, and the handler does not run | – | – |
//! | `by` picks a pool that the layer cannot use, or another one than the layer around it | 500, with its cause in the log | – | – |
//! | a session argument or a `TransactionLayer`, but no session layer | 500, with a text that names the layer | – | – |
//!
//! A response is sent once its transaction has ended: by then its locks are
//! free, and other connections see the result. The connection goes back in
//! every case, or is closed if it cannot be clean. `Retry-After` is sent only
//! if the session has committed nothing; otherwise a retry would do that work
//! twice. Below a `RetryLayer` (feature `retry`), that goes for all sessions of
//! the request, also those of other tags and of [`SessionPool::session`].
//! Writes through the plain `DatabaseConnection` are not taken into account.
//! Jobs ([`SessionPool::transaction`]) get the same outcomes as errors.
//!
//! The body is empty; use
//! [`response_for_error`](DbSessionLayer::response_for_error) for a different
//! response, with [`problem_json`] for one of `application/problem+json`. A
//! gRPC request gets status 200 with `grpc-status` 14, 13 or, in place of a
//! 504, 4, and in place of a 404, 5; for a stream that is
//! [held](DbSession::hold_until_body_end), in its trailers.
//!
//! Statements return SeaORM's `DbErr`. [`Error::of`] finds this crate's own
//! failures in it, and server errors that a retry may cure (serialization
//! failure, deadlock, lock timeout): use its [`status`](Error::status) and
//! [`retry_after`](Error::retry_after) for your response.
//!
//! # The log
//!
//! | target | level | what |
//! |---|---|---|
//! | `tower_sea_orm::session` | DEBUG | the span `db_session`, one per session, with `waited_ms`, `held_ms`, `statements`, `lent` (how often it lent its connection) and `outcome` (released, committed, rolled_back, failed, unknown) when it closes |
//! | `tower_sea_orm::statement` | DEBUG | the span `db_statement`, one for each statement, COMMIT and ROLLBACK ([Telemetry](guide::telemetry#traces)) |
//! | `tower_sea_orm::session` | ERROR | a transaction that something else has ended; hooks that panicked, or that had no runtime to run on |
//! | `tower_sea_orm::session` | WARN | a statement that has no effect outside a transaction, such as `SELECT … FOR UPDATE`, in a session without one; once for each text, up to 256 |
//! | `tower_sea_orm::session` | WARN | a statement that one request has run more than [ten times](SessionPoolBuilder::n_plus_one_threshold), with its count and route |
//! | `tower_sea_orm::session` | WARN | a connection that had to be closed, or that was lost during COMMIT; an error of a stream that the handler has dropped |
//! | `tower_sea_orm::pool` | WARN | no connection could be acquired: used, pending, max, waited_ms; at most once a second |
//! | `tower_sea_orm::pool` | INFO | connections are available again |
//! | `tower_sea_orm::pool` | WARN | a session that holds its connection for longer than [`hold_slow_threshold`](SessionPoolBuilder::hold_slow_threshold) (10 s), with method, path, route and its last statement without values; INFO when it gives the connection back after all |
//! | `tower_sea_orm::pool` | WARN | a connection that was taken away, by `hold_timeout` or by [`close`](SessionPool::close) |
//! | `tower_sea_orm::pool` | WARN | a request or a job that waits for a second session of a pool while it holds one |
//! | `tower_sea_orm::pool` | WARN | a statement whose result the network has lost, with method and path |
//! | `tower_sea_orm::pool` | INFO | a connection attempt that took too long and was given up |
//! | `tower_sea_orm::pool` | WARN | no further connection can be opened, while others are in use; the server is read-only, and its connections are closed |
//! | `tower_sea_orm::pool` | WARN | a connection that was closed because its ping or its cancel request was not answered; INFO for an idle one |
//! | `tower_sea_orm::pool` | WARN | a driver pool that did not close in time |
//! | `tower_sea_orm::pool` | ERROR | an [`Observer`] that panicked |
//! | `tower_sea_orm::pool` | WARN | statements that cannot be cancelled, and why |
//! | `tower_sea_orm::pool` | WARN | with `PoolConfig`: variables that have the prefix of its settings but are not settings |
//! | `tower_sea_orm::pool` | INFO | with `PoolConfig`: waiting for the server at startup, and when it is available; WARN if it did not answer in time |
//! | `tower_sea_orm` | ERROR | a 500 made by the crate, or a body that it aborted, with the cause; of each kind, 16 times a second, and always if something may be stored |
//! | `tower_sea_orm` | WARN | a 503 after a conflict, a refused write on a read-only server, a lost read or a stale plan, or a 504 after the server stopped a statement; of each kind, once a second |
//! | `tower_sea_orm::replicas` | WARN, INFO | with `replicas`: a replica goes out of use, and why; it is in use again |
//! | `tower_sea_orm::retry` | DEBUG | with `RetryLayer`: an attempt that a transient failure has undone, with its number and error, and whether there is another one; the 503 of an attempt that is followed by another is not logged |
//!
//! With `FmtSpan::CLOSE` of tracing-subscriber and the filter
//! `tower_sea_orm::session=debug`, each session writes one line; with
//! `tower_sea_orm=debug`, each statement does so as well.
//! [`SessionPool::status`] returns the current numbers.
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
//! | `opentelemetry` | | `OpenTelemetryObserver`: metrics by OpenTelemetry's conventions |
//! | `metrics` | | `MetricsObserver`: the same through the `metrics` crate, for Prometheus |
//! | `retry` | | `RetryLayer`: requests and jobs that a conflict or another passing failure has undone run again |
//! | `replicas` | | `Replicas`: reads on the replicas of a PostgreSQL, MariaDB or Galera cluster, where clients see their own writes; needs `sqlx-postgres` or `sqlx-mysql`, and without either `DbSessionLayer::replicas` panics |
//! | `proxy` | | SeaORM's `ProxyDatabase`; SeaORM itself does not compile with it and `sqlx-mysql` or `sqlx-sqlite` |
//!
//! Enable the same driver here as in SeaORM. TLS is configured in SeaORM, by
//! its feature `runtime-tokio-rustls` or `runtime-tokio-native-tls`.

mod body;
mod body_layer;
#[cfg(feature = "config")]
mod config;
mod connection;
mod error;
#[cfg(feature = "axum")]
mod extract;
mod future;
mod layer;
#[cfg(feature = "metrics")]
mod metrics;
#[cfg(feature = "opentelemetry")]
mod opentelemetry;
mod policy;
mod pool;
#[cfg_attr(
    not(feature = "replicas"),
    allow(
        dead_code,
        unreachable_pub,
        reason = "only `Replicas` makes and shows positions"
    )
)]
mod position;
#[cfg(feature = "replicas")]
mod replicas;
mod response;
#[cfg(feature = "retry")]
mod retry;
mod service;
mod session;
mod sql;
#[cfg(any(feature = "opentelemetry", feature = "metrics"))]
// Only the observers name a database.
mod target;
mod telemetry;
// Behind a feature: nothing of it belongs in a service.
#[cfg(feature = "testing")]
pub mod testing;
mod transaction;

#[cfg(feature = "config")]
pub use self::config::{ConfigError, PoolConfig};
#[cfg(feature = "axum")]
pub use self::extract::MissingSession;
#[cfg(feature = "metrics")]
pub use self::metrics::MetricsObserver;
#[cfg(feature = "opentelemetry")]
pub use self::opentelemetry::OpenTelemetryObserver;
#[cfg(feature = "retry")]
pub use self::retry::{Attempt, ReplayBody, RetryFuture, RetryLayer, RetryPolicy, RetryService};
#[cfg(feature = "stream")]
pub use self::session::SessionStream;
pub use self::{
    body::SessionBody,
    body_layer::{SessionBodyFuture, SessionBodyLayer, SessionBodyService},
    error::Error,
    future::ResponseFuture,
    layer::DbSessionLayer,
    policy::{grpc_timeout, trace_id, unsafe_methods, without_body},
    pool::{
        Observer, PoolMode, Reset, SessionPool, SessionPoolBuilder, Status, WeakSessionPool,
        observer,
    },
    response::{DefaultResponseForError, ResponseForError, error_response, problem_json},
    service::DbSessionService,
    session::{
        CurrentSession, DbSession, DbTx, DefaultDatabase, Outcome, PoolSession, SessionPin,
        SessionTransaction,
    },
    transaction::{TransactionFuture, TransactionLayer, TransactionService},
};
#[cfg(feature = "replicas")]
pub use self::{
    position::{ParsePositionError, Position},
    replicas::{
        OutOfUse, PositionCarrier, PositionCookie, PositionHeader, ReplicaStatus, Replicas,
    },
};

/// Guides: an index, modes and transactions, testing, recipes, operating,
/// telemetry, troubleshooting, a glossary, and pages for those who come from
/// elsewhere.
// Modules, so that their links are checked and their examples run with the
// crate's own.
pub mod guide {
    #[doc = include_str!("guide/where_to_find_what.md")]
    pub mod where_to_find_what {}

    #[doc = include_str!("guide/from_fastapi.md")]
    pub mod from_fastapi {}

    #[doc = include_str!("guide/choosing_a_mode.md")]
    pub mod choosing_a_mode {}

    #[doc = include_str!("guide/transactions.md")]
    pub mod transactions {}

    #[doc = include_str!("guide/testing.md")]
    pub mod testing {}

    #[doc = include_str!("guide/recipes.md")]
    pub mod recipes {}

    #[doc = include_str!("guide/from_state.md")]
    pub mod from_state {}

    #[doc = include_str!("guide/from_django_and_rails.md")]
    pub mod from_django_and_rails {}

    #[doc = include_str!("guide/from_axum_sqlx_tx.md")]
    pub mod from_axum_sqlx_tx {}

    #[doc = include_str!("guide/from_loco.md")]
    pub mod from_loco {}

    #[doc = include_str!("guide/operating.md")]
    pub mod operating {}

    #[doc = include_str!("guide/scaling_out.md")]
    #[cfg(feature = "replicas")]
    pub mod scaling_out {}

    #[doc = include_str!("guide/telemetry.md")]
    pub mod telemetry {}

    #[doc = include_str!("guide/troubleshooting.md")]
    pub mod troubleshooting {}

    #[doc = include_str!("guide/glossary.md")]
    pub mod glossary {}
}

/// The README's examples are tests as well.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
