//! One test per way out of a request: whatever happens, the pool is whole afterwards.
//!
//! Every way is taken on every kind of database, eager and lazy. The requests write one row that
//! stays and one in a transaction that nobody commits, and leave the rest to the way out.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    future::{pending, poll_fn},
    net::Ipv4Addr,
    panic::resume_unwind,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    thread,
    time::Duration,
};

use axum::{
    BoxError, Router,
    body::{Body, Bytes},
    extract::FromRequest,
    handler::Handler,
    middleware::{self, Next},
    routing::any,
};
use futures_util::{
    FutureExt, StreamExt,
    future::{BoxFuture, join, join_all},
    stream,
};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::{
    body::Frame,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DbBackend, DbErr, Statement, StreamTrait, TransactionTrait,
};
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::Runtime,
    sync::{Barrier, Notify, mpsc},
    task::JoinHandle,
    time::timeout,
};
use tower::{Layer, Service, ServiceExt, service_fn, timeout::TimeoutLayer};
use tower_http::{catch_panic::CatchPanicLayer, timeout::TimeoutLayer as HttpTimeoutLayer};
use tower_sea_orm::{
    DbSession, DbSessionLayer, Error, PoolSession, SessionPool, SessionTransaction,
};

use crate::support::pool::session_layer;
use crate::support::{
    database::{Kind, TestDb, count_items, insert_item, unique_name},
    pool::assert_whole,
    wait::eventually,
    wire::Proxy,
};

/// How many connections the pools have.
const SIZE: u32 = 2;

/// How long anything here may take.
const BOUND: Duration = crate::support::wait::BOUND;

/// After what the time-out layers strike: while [`slow`] runs.
const STRIKE: Duration = Duration::from_millis(120);

/// Takes `way` on every kind of database, eager and lazy; each time the pool must be whole after it.
async fn everywhere(way: impl AsyncFn(&Case<'_>)) {
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        for lazy in [false, true] {
            eprintln!("{kind:?}, lazy: {lazy}");
            let case = Case::new(&test, lazy).await;
            let before = marks(case.layer.pool()).await;
            eventually("no session is out", async || {
                case.layer.pool().status().used == 0
            })
            .await;
            way(&case).await;
            case.assert_whole().await;
            assert_eq!(
                marks(case.layer.pool()).await,
                before,
                "no connection was closed for it"
            );
            case.close().await;
        }
    }
}

/// A pool of its own on one kind of database, and a layer over it.
struct Case<'t> {
    test: &'t TestDb,
    db: DatabaseConnection,
    layer: DbSessionLayer,
    writes: Arc<Writes>,
}

impl<'t> Case<'t> {
    async fn new(test: &'t TestDb, lazy: bool) -> Self {
        let db = test.connect(SIZE).await;
        let layer = session_layer(db.clone());
        let layer = if lazy { layer.lazy() } else { layer };
        Self {
            test,
            db,
            layer,
            writes: Arc::default(),
        }
    }

    fn writes(&self) -> Arc<Writes> {
        self.writes.clone()
    }

    /// The service: `handler` under the layer.
    fn app<H, T>(&self, handler: H) -> Router
    where
        H: Handler<T, ()>,
        T: 'static,
    {
        Router::new()
            .route("/", any(handler))
            .layer(self.layer.clone())
    }

    /// Asserts that nothing of the request is left but the row that stays.
    ///
    /// The plain users of the pool come first: a session would mend what another one broke.
    async fn assert_whole(&self) {
        assert_whole(self.test, &self.db, SIZE).await;
        eventually("no session is out", async || {
            self.layer.pool().status().used == 0
        })
        .await;
        self.assert_serves().await;
        let observer = self.test.observer().await;
        let view = observer.as_ref().unwrap_or(&self.db);
        let Writes {
            kept,
            lost,
            written,
            ..
        } = &*self.writes;
        if written.load(Ordering::SeqCst) {
            assert_eq!(
                count_items(view, kept).await,
                1,
                "what was written outside of a transaction is there"
            );
        }
        assert_eq!(
            count_items(view, lost).await,
            0,
            "what nobody committed is not there"
        );
        if let Some(observer) = observer {
            let _ = observer.close().await;
        }
    }

    /// Closes the pool, unless the database would be gone with it.
    async fn close(&self) {
        if self.test.kind != Kind::SqliteMemory {
            self.db.close_by_ref().await.unwrap();
        }
    }

    /// Asserts that as many next requests as there are connections run at once, and that others see
    /// what they write.
    async fn assert_serves(&self) {
        let limit = self.layer.pool().status().max;
        let together = Arc::new(Barrier::new(limit as usize));
        let names: Vec<String> = (0..limit).map(|_| unique_name()).collect();
        let requests = names.iter().map(|name| {
            let (name, together) = (name.clone(), together.clone());
            let app = self.app(move |db: DbSession| async move {
                insert_item(&db, &name).await;
                together.wait().await;
            });
            app.oneshot(request())
        });
        let answers = timeout(BOUND, join_all(requests))
            .await
            .expect("the next requests have a connection each");
        for answer in answers {
            assert_eq!(answer.unwrap().status(), StatusCode::OK, "a next request");
        }
        let observer = self.test.observer().await;
        let view = observer.as_ref().unwrap_or(&self.db);
        for name in &names {
            assert_eq!(
                count_items(view, name).await,
                1,
                "others see what the next request writes"
            );
        }
        if let Some(observer) = observer {
            let _ = observer.close().await;
        }
    }
}

/// What a request writes before it takes its way out.
#[derive(Debug)]
struct Writes {
    kept: String,
    lost: String,
    /// `kept` was acknowledged.
    written: AtomicBool,
    /// Told when the handler is where the way out finds it.
    reached: Notify,
    /// Told when the handler is gone, returned or dropped.
    left: Notify,
}

impl Default for Writes {
    fn default() -> Self {
        Self {
            kept: unique_name(),
            lost: unique_name(),
            written: AtomicBool::new(false),
            reached: Notify::new(),
            left: Notify::new(),
        }
    }
}

impl Writes {
    /// Writes the row that stays, then the other one in a transaction that is left open.
    async fn write(&self, db: &DbSession) -> SessionTransaction {
        insert_item(db, &self.kept).await;
        self.written.store(true, Ordering::SeqCst);
        let transaction = db.begin().await.expect("a transaction");
        insert_item(&transaction, &self.lost).await;
        transaction
    }

    fn is_written(&self) -> bool {
        self.written.load(Ordering::SeqCst)
    }

    fn reach(&self) {
        self.reached.notify_one();
    }

    async fn reached(&self) {
        timeout(BOUND, self.reached.notified())
            .await
            .expect("the handler got there");
    }

    async fn left(&self) {
        timeout(BOUND, self.left.notified())
            .await
            .expect("the handler is gone");
    }

    /// Tells `left` when it is dropped.
    fn on_leaving(self: &Arc<Self>) -> Leaving {
        Leaving(self.clone())
    }
}

struct Leaving(Arc<Writes>);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.left.notify_one();
    }
}

fn request() -> Request<Body> {
    Request::new(Body::empty())
}

/// The marks of all the pool's connections.
pub async fn marks(pool: &SessionPool) -> BTreeSet<i64> {
    let sessions = join_all((0..pool.status().max).map(|_| pool.session())).await;
    let sessions: Vec<PoolSession> = sessions.into_iter().map(Result::unwrap).collect();
    join_all(sessions.iter().map(|session| mark(&**session)))
        .await
        .into_iter()
        .collect()
}

/// What tells one connection to the server from another, for as long as it lives.
pub async fn mark<C: ConnectionTrait>(db: &C) -> i64 {
    let backend = db.get_database_backend();
    let sql = match backend {
        DbBackend::Postgres => "SELECT CAST(pg_backend_pid() AS bigint)",
        DbBackend::MySql => "SELECT CAST(CONNECTION_ID() AS SIGNED)",
        _ => {
            // Temporary tables are the connection's own.
            db.execute_unprepared(
                "CREATE TEMPORARY TABLE IF NOT EXISTS mark (id integer); \
                 INSERT INTO mark SELECT abs(random() / 2) WHERE NOT EXISTS (SELECT 1 FROM mark)",
            )
            .await
            .unwrap();
            "SELECT id FROM mark"
        }
    };
    let row = db
        .query_one_raw(Statement::from_string(backend, sql))
        .await
        .expect("a mark");
    row.unwrap().try_get_by_index(0).unwrap()
}

/// A query that takes about 0.3 seconds on the server.
async fn slow<C: ConnectionTrait>(db: &C) -> Result<(), DbErr> {
    let backend = db.get_database_backend();
    let sql = match backend {
        DbBackend::Postgres => "SELECT pg_sleep(0.3)",
        DbBackend::MySql => "SELECT SLEEP(0.3)",
        _ => {
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 400000) SELECT count(*) FROM n"
        }
    };
    db.query_all_raw(Statement::from_string(backend, sql))
        .await
        .map(drop)
}

/// A query for `500` rows.
fn rows(backend: DbBackend) -> Statement {
    let sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500) SELECT i FROM n";
    Statement::from_string(backend, sql)
}

/// Whether a statement was told that its session is closed.
fn is_closed<T>(result: &Result<T, DbErr>) -> bool {
    let error = result.as_ref().err().and_then(Error::of);
    error.is_some_and(|error| error.is_session_closed())
}

/// Polls `future` once; it must not be ready.
async fn start<F: Future + Unpin>(future: &mut F) {
    let ready = poll_fn(|cx| Poll::Ready(future.poll_unpin(cx).is_ready())).await;
    assert!(!ready, "it takes longer than one poll");
}

/// What a handler is in the middle of, with its transaction open.
#[derive(Debug, Clone, Copy)]
enum Doing {
    /// Nothing: its connection is idle.
    Nothing,
    /// One statement.
    Querying,
    /// One statement, and another one waits its turn.
    Queueing,
    /// A stream, half-read.
    Streaming,
}

impl Doing {
    const ALL: [Self; 4] = [
        Self::Nothing,
        Self::Querying,
        Self::Queueing,
        Self::Streaming,
    ];
}

/// A handler that never returns by itself, and is found in the middle of something.
async fn stay(doing: Doing, writes: Arc<Writes>, db: DbSession) {
    let _leaving = writes.on_leaving();
    let transaction = writes.write(&db).await;
    match doing {
        Doing::Nothing => writes.reach(),
        Doing::Querying => {
            let mut query = pin!(slow(&transaction));
            start(&mut query).await;
            writes.reach();
            let _ = query.await;
        }
        Doing::Queueing => {
            let (mut first, mut second) = (pin!(slow(&transaction)), pin!(slow(&transaction)));
            start(&mut first).await;
            start(&mut second).await;
            writes.reach();
            let _ = join(first, second).await;
        }
        Doing::Streaming => {
            let mut stream = transaction.stream_raw(rows(db.backend())).await.unwrap();
            stream.next().await.unwrap().unwrap();
            writes.reach();
            pending::<()>().await;
        }
    }
    pending().await
}

type Answer = Result<Response<Body>, Infallible>;

/// A request whose handler is in the middle of something.
async fn half_way(case: &Case<'_>, doing: Doing) -> BoxFuture<'static, Answer> {
    let writes = case.writes();
    let app = case.app(move |db: DbSession| stay(doing, writes, db));
    let mut answer = app.oneshot(request()).boxed();
    tokio::select! {
        biased;
        _ = &mut answer => panic!("a handler that stays has returned"),
        () = case.writes.reached() => {}
    }
    answer
}

/// A handler that panics with a transaction open.
async fn panics(writes: Arc<Writes>, db: DbSession) -> StatusCode {
    let _open = writes.write(&db).await;
    resume_unwind(Box::new("a panic in the handler"))
}

async fn answers_with(status: StatusCode) {
    everywhere(async |case| {
        let writes = case.writes();
        let app = case.app(move |db: DbSession| async move {
            let _open = writes.write(&db).await;
            status
        });
        let answer = app.oneshot(request()).await.unwrap();
        assert_eq!(answer.status(), status);
        assert!(case.writes.is_written());
    })
    .await;
}

#[tokio::test]
async fn an_answer_of_200_gives_the_connection_back() {
    answers_with(StatusCode::OK).await;
}

#[tokio::test]
async fn an_answer_of_404_gives_the_connection_back() {
    answers_with(StatusCode::NOT_FOUND).await;
}

#[tokio::test]
async fn an_answer_of_500_gives_the_connection_back() {
    answers_with(StatusCode::INTERNAL_SERVER_ERROR).await;
}

#[tokio::test]
async fn a_transaction_without_an_end_is_rolled_back_before_the_answer() {
    everywhere(async |case| {
        let writes = case.writes();
        let app = case.app(move |db: DbSession| async move { drop(writes.write(&db).await) });
        let answer = app.oneshot(request()).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        // Nobody but a waiting write could tell, so one that does not wait for locks looks.
        let name = case.writes.lost.clone();
        let again = case.app(move |db: DbSession| async move { insert_item(&db, &name).await });
        let answer = timeout(BOUND, again.oneshot(request()))
            .await
            .expect("no lock is left")
            .unwrap();
        assert_eq!(
            answer.status(),
            StatusCode::OK,
            "the unique name is free again"
        );
        let observer = case.test.observer().await;
        let view = observer.as_ref().unwrap_or(&case.db);
        assert_eq!(count_items(view, &case.writes.lost).await, 1);
        view.execute_unprepared(&format!(
            "DELETE FROM item WHERE name = '{}'",
            case.writes.lost
        ))
        .await
        .unwrap();
    })
    .await;
}

/// An error with nothing in common with this crate's.
#[derive(Debug, PartialEq)]
struct Teapot(u32);

#[tokio::test]
async fn an_inner_error_passes_untouched_and_gives_the_connection_back() {
    everywhere(async |case| {
        let writes = case.writes();
        let inner = service_fn(move |request: Request<Body>| {
            let writes = writes.clone();
            async move {
                let db: DbSession =
                    DbSession::from_extensions(request.extensions()).expect("a session");
                let _open = writes.write(&db).await;
                Err::<Response<Body>, _>(Teapot(418))
            }
        });
        let error = case
            .layer
            .layer(inner)
            .oneshot(request())
            .await
            .unwrap_err();
        assert_eq!(error, Teapot(418));
    })
    .await;
}

#[tokio::test]
async fn a_panic_in_the_handler_gives_the_connection_back() {
    everywhere(async |case| {
        let writes = case.writes();
        let app = case.app(move |db: DbSession| panics(writes, db));
        let error = tokio::spawn(app.oneshot(request())).await.unwrap_err();
        assert!(error.is_panic());
        assert!(case.writes.is_written());
    })
    .await;
}

#[tokio::test]
async fn a_panic_caught_outside_gives_the_connection_back() {
    everywhere(async |case| {
        let writes = case.writes();
        let app = case
            .app(move |db: DbSession| panics(writes, db))
            .layer(CatchPanicLayer::new());
        let answer = app.oneshot(request()).await.unwrap();
        assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert!(case.writes.is_written());
    })
    .await;
}

/// A body extractor that panics once it has read the body, with a transaction of the session open.
struct Explosive;

impl FromRequest<Arc<Writes>> for Explosive {
    type Rejection = Infallible;

    async fn from_request(
        request: Request<Body>,
        writes: &Arc<Writes>,
    ) -> Result<Self, Infallible> {
        let db: DbSession = DbSession::from_extensions(request.extensions()).expect("a session");
        let body = request.into_body().collect().await.unwrap();
        assert_eq!(body.to_bytes(), "body");
        let _open = writes.write(&db).await;
        resume_unwind(Box::new("a panic in an extractor"))
    }
}

#[tokio::test]
async fn a_panic_in_a_body_extractor_gives_the_connection_back() {
    everywhere(async |case| {
        let app = Router::new()
            .route("/", any(async |_: DbSession, _: Explosive| {}))
            .with_state(case.writes())
            .layer(case.layer.clone())
            .layer(CatchPanicLayer::new());
        let answer = app.oneshot(Request::new(Body::from("body"))).await.unwrap();
        assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert!(case.writes.is_written());
    })
    .await;
}

#[tokio::test]
async fn a_request_that_is_never_polled_costs_nothing() {
    everywhere(async |case| {
        let writes = case.writes();
        let mut app = case.app(move |db: DbSession| async move { drop(writes.write(&db).await) });
        for _ in 0..50 {
            let future = ServiceExt::<Request<Body>>::ready(&mut app)
                .await
                .unwrap()
                .call(request());
            drop(future);
            assert_eq!(case.layer.pool().status().used, 0);
        }
        assert!(!case.writes.is_written());
    })
    .await;
}

#[tokio::test]
async fn a_request_dropped_in_the_middle_of_anything_gives_the_connection_back() {
    for doing in Doing::ALL {
        everywhere(async |case| {
            let answer = half_way(case, doing).await;
            drop(answer);
            case.writes.left().await;
        })
        .await;
    }
}

#[tokio::test]
async fn a_time_out_layer_outside_gives_the_connection_back() {
    everywhere(async |case| {
        let writes = case.writes();
        let app = case.app(move |db: DbSession| stay(Doing::Querying, writes, db));
        let app = app.layer(HttpTimeoutLayer::with_status_code(
            StatusCode::REQUEST_TIMEOUT,
            STRIKE,
        ));
        let answer = app.oneshot(request()).await.unwrap();
        assert_eq!(answer.status(), StatusCode::REQUEST_TIMEOUT);
    })
    .await;
    everywhere(async |case| {
        let writes = case.writes();
        let app = case.app(move |db: DbSession| stay(Doing::Querying, writes, db));
        let error = TimeoutLayer::new(STRIKE)
            .layer(app)
            .oneshot(request())
            .await
            .unwrap_err();
        assert!(error.is::<tower::timeout::error::Elapsed>());
    })
    .await;
}

#[tokio::test]
async fn a_time_out_layer_inside_gives_the_connection_back() {
    everywhere(async |case| {
        let writes = case.writes();
        let handler = any(move |db: DbSession| stay(Doing::Querying, writes, db));
        let strike = HttpTimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, STRIKE);
        let app = Router::new()
            .route("/", handler)
            .layer(strike)
            .layer(case.layer.clone());
        let answer = app.oneshot(request()).await.unwrap();
        assert_eq!(answer.status(), StatusCode::REQUEST_TIMEOUT);
    })
    .await;
    everywhere(async |case| {
        let writes = case.writes();
        let handler = any(move |db: DbSession| stay(Doing::Querying, writes, db));
        let inner: Router = Router::new().route("/", handler);
        let app = case.layer.layer(TimeoutLayer::new(STRIKE).layer(inner));
        let error: BoxError = app.oneshot(request()).await.unwrap_err();
        assert!(error.is::<tower::timeout::error::Elapsed>());
    })
    .await;
}

/// What a client speaks.
#[derive(Debug, Clone, Copy)]
enum Http {
    One,
    Two,
}

/// When a client goes.
#[derive(Debug, Clone, Copy)]
enum During {
    /// Its request is complete, the handler runs a statement.
    Handler,
    /// The handler reads an upload.
    Upload,
}

/// How a client goes.
#[derive(Debug, Clone, Copy)]
enum Going {
    /// Its connection is cut.
    Cut,
    /// HTTP/2: it takes the one request back.
    Reset,
}

/// A client over a real connection goes while the handler is in the middle of something.
async fn client_goes(http: Http, going: Going, during: During) {
    everywhere(async |case| {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let app = match during {
            During::Handler => mid_handler(case),
            During::Upload => mid_upload(case),
        };
        let server = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        let cable = Proxy::start(port).await;
        let answer = send(http, cable.port(), during).await;
        case.writes.reached().await;
        match going {
            Going::Cut => cable.cut(),
            Going::Reset => answer.abort(),
        }
        case.writes.left().await;
        answer.abort();
        server.abort();
    })
    .await;
}

/// Sends a request: the first part of an upload that never ends, or all there is.
async fn send(http: Http, port: u16, during: During) -> JoinHandle<()> {
    let io = TcpStream::connect((Ipv4Addr::LOCALHOST, port))
        .await
        .unwrap();
    let io = TokioIo::new(io);
    let first = Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"first")));
    let body = match during {
        // An upload that nobody reads would keep hyper from seeing an HTTP/1 client go.
        During::Handler => Empty::new().boxed_unsync(),
        During::Upload => {
            StreamBody::new(stream::iter([first]).chain(stream::pending())).boxed_unsync()
        }
    };
    let uri = format!("http://127.0.0.1:{port}/");
    let request = Request::post(uri)
        .header("host", "localhost")
        .body(body)
        .unwrap();
    match http {
        Http::One => {
            let (mut sender, connection) = http1::handshake(io).await.unwrap();
            tokio::spawn(connection);
            tokio::spawn(async move { drop(sender.send_request(request).await) })
        }
        Http::Two => {
            let (mut sender, connection) =
                http2::handshake(TokioExecutor::new(), io).await.unwrap();
            tokio::spawn(connection);
            tokio::spawn(async move { drop(sender.send_request(request).await) })
        }
    }
}

/// A handler in the middle of a statement.
fn mid_handler(case: &Case<'_>) -> Router {
    let writes = case.writes();
    case.app(move |db: DbSession| stay(Doing::Querying, writes, db))
}

/// A handler that reads an upload with a transaction open.
fn mid_upload(case: &Case<'_>) -> Router {
    let writes = case.writes();
    case.app(move |db: DbSession, mut body: Body| async move {
        let _leaving = writes.on_leaving();
        assert!(
            matches!(body.frame().await, Some(Ok(_))),
            "the first part of the upload"
        );
        let _open = writes.write(&db).await;
        writes.reach();
        while let Some(Ok(_)) = body.frame().await {}
        StatusCode::BAD_REQUEST
    })
}

#[tokio::test]
async fn an_http1_client_that_disconnects_mid_handler_gives_the_connection_back() {
    client_goes(Http::One, Going::Cut, During::Handler).await;
}

#[tokio::test]
async fn an_http1_client_that_disconnects_mid_upload_gives_the_connection_back() {
    client_goes(Http::One, Going::Cut, During::Upload).await;
}

#[tokio::test]
async fn an_http2_client_that_disconnects_mid_handler_gives_the_connection_back() {
    client_goes(Http::Two, Going::Cut, During::Handler).await;
}

#[tokio::test]
async fn an_http2_client_that_disconnects_mid_upload_gives_the_connection_back() {
    client_goes(Http::Two, Going::Cut, During::Upload).await;
}

#[tokio::test]
async fn an_http2_client_that_resets_its_stream_gives_the_connection_back() {
    client_goes(Http::Two, Going::Reset, During::Handler).await;
    client_goes(Http::Two, Going::Reset, During::Upload).await;
}

#[tokio::test]
async fn a_handle_that_outlives_its_request_is_dead() {
    everywhere(async |case| {
        let (writes, (out, mut tasks)) = (case.writes(), mpsc::unbounded_channel());
        let go = Arc::new(Notify::new());
        let told = go.clone();
        let app = case.app(move |db: DbSession| async move {
            let transaction = writes.write(&db).await;
            let task = tokio::spawn(async move {
                told.notified().await;
                [
                    is_closed(&transaction.execute_unprepared("SELECT 1").await),
                    is_closed(&transaction.begin().await),
                    is_closed(&transaction.commit().await),
                    is_closed(&db.execute_unprepared("SELECT 1").await),
                    is_closed(&db.query_all_raw(rows(db.backend())).await),
                    is_closed(&db.stream_raw(rows(db.backend())).await),
                    is_closed(&db.begin().await),
                    is_closed(&db.ping().await),
                    is_closed(&db.release().await),
                ]
            });
            out.send(task).unwrap();
        });
        let answer = app.oneshot(request()).await.unwrap();
        // Its transaction is not committed: an OK would be untrue.
        assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
        // Others have all the connections there are: the dead handle must not reach theirs.
        let limit = case.layer.pool().status().max;
        let others = join_all((0..limit).map(|_| case.layer.pool().session())).await;
        go.notify_one();
        let task = tasks.recv().await.unwrap();
        let closed = timeout(BOUND, task)
            .await
            .expect("an answer for the dead handle")
            .unwrap();
        assert_eq!(closed, [true; 9]);
        drop(others);
    })
    .await;
}

#[tokio::test]
async fn a_statement_that_outlives_its_request_gets_an_answer() {
    everywhere(async |case| {
        let (writes, (out, mut tasks)) = (case.writes(), mpsc::unbounded_channel());
        let app = case.app(move |db: DbSession| async move {
            let transaction = writes.write(&db).await;
            let started = Arc::new(Notify::new());
            let running = started.clone();
            let task = tokio::spawn(async move {
                let (mut first, mut second) = (pin!(slow(&transaction)), pin!(slow(&transaction)));
                start(&mut first).await;
                start(&mut second).await;
                started.notify_one();
                join(first, second).await
            });
            out.send(task).unwrap();
            running.notified().await;
        });
        let answer = app.oneshot(request()).await.unwrap();
        // Its transaction is not committed: an OK would be untrue.
        assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let task = tasks.recv().await.unwrap();
        let (first, second) = timeout(BOUND, task)
            .await
            .expect("an answer for the stray statement")
            .unwrap();
        assert!(is_closed(&first), "{first:?}");
        assert!(is_closed(&second), "{second:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_task_on_another_thread_stops_with_its_request() {
    everywhere(async |case| {
        for round in 0..20 {
            let (out, mut tasks) = mpsc::unbounded_channel();
            let app = case.app(move |db: DbSession| async move {
                db.execute_unprepared("SELECT 1").await.unwrap();
                let started = Arc::new(Notify::new());
                let running = started.clone();
                let task = tokio::spawn(async move {
                    loop {
                        let result = db.execute_unprepared("SELECT 1").await;
                        started.notify_one();
                        if result.is_err() {
                            break result;
                        }
                    }
                });
                out.send(task).unwrap();
                running.notified().await;
            });
            let answer = app.oneshot(request()).await.unwrap();
            assert_eq!(answer.status(), StatusCode::OK);
            let task = tasks.recv().await.unwrap();
            let result = timeout(BOUND, task).await.expect("the task stops").unwrap();
            assert!(is_closed(&result), "round {round}: {result:?}");
        }
    })
    .await;
}

/// A middleware that copies the request's extensions into the response.
async fn copy_extensions(request: Request<Body>, next: Next) -> Response<Body> {
    let extensions = request.extensions().clone();
    let mut response = next.run(request).await;
    response.extensions_mut().extend(extensions);
    response
}

#[tokio::test]
async fn extensions_copied_into_the_response_hold_no_connection() {
    everywhere(async |case| {
        let writes = case.writes();
        let handler = any(move |db: DbSession| async move { drop(writes.write(&db).await) });
        let copying = middleware::from_fn(copy_extensions);
        let app = Router::new()
            .route("/", handler)
            .layer(copying)
            .layer(case.layer.clone());
        let answer = app.oneshot(request()).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        case.assert_serves().await;
        let db: DbSession = DbSession::from_extensions(answer.extensions()).expect("the copy");
        assert!(db.is_closed());
        assert!(is_closed(&db.execute_unprepared("SELECT 1").await));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_tasks_of_one_request_take_turns() {
    everywhere(async |case| {
        let names: Arc<[String]> = (0..20).map(|_| unique_name()).collect();
        let (writes, all) = (case.writes(), names.clone());
        let app = case.app(move |db: DbSession| async move {
            let transaction = writes.write(&db).await;
            drop(transaction);
            let tasks = (0..2).map(|half| {
                let (db, names) = (db.clone(), all.clone());
                tokio::spawn(async move {
                    for name in names.iter().skip(half).step_by(2) {
                        insert_item(&db, name).await;
                        assert_eq!(count_items(&db, name).await, 1);
                    }
                })
            });
            for task in join_all(tasks).await {
                task.unwrap();
            }
        });
        let answer = timeout(BOUND, app.oneshot(request()))
            .await
            .expect("no task waits for ever")
            .unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        let observer = case.test.observer().await;
        let view = observer.as_ref().unwrap_or(&case.db);
        for name in names.iter() {
            assert_eq!(count_items(view, name).await, 1);
        }
    })
    .await;
}

#[tokio::test]
async fn a_dropped_statement_does_not_disturb_the_next_one() {
    everywhere(async |case| {
        let names = [unique_name(), unique_name(), unique_name()];
        let (writes, [outside, before, after]) = (case.writes(), names.clone());
        let app = case.app(move |db: DbSession| async move {
            drop(writes.write(&db).await);
            start(&mut pin!(slow(&db))).await;
            insert_item(&db, &outside).await;
            let transaction = db.begin().await.unwrap();
            insert_item(&transaction, &before).await;
            tokio::select! {
                biased;
                _ = slow(&transaction) => panic!("slower than that"),
                () = std::future::ready(()) => {}
            }
            assert!(
                timeout(Duration::from_millis(1), slow(&transaction))
                    .await
                    .is_err()
            );
            insert_item(&transaction, &after).await;
            transaction.commit().await.unwrap();
        });
        let answer = app.oneshot(request()).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        let observer = case.test.observer().await;
        let view = observer.as_ref().unwrap_or(&case.db);
        for name in &names {
            assert_eq!(count_items(view, name).await, 1);
        }
    })
    .await;
}

#[tokio::test]
async fn a_stream_dropped_half_read_does_not_disturb_the_next_statement() {
    everywhere(async |case| {
        let writes = case.writes();
        let app = case.app(move |db: DbSession| async move {
            for read in [0, 1, 100, 499] {
                let mut stream = db.stream_raw(rows(db.backend())).await.unwrap();
                for _ in 0..read {
                    stream.next().await.unwrap().unwrap();
                }
                drop(stream);
                assert_eq!(
                    db.query_all_raw(rows(db.backend())).await.unwrap().len(),
                    500
                );
            }
            let transaction = writes.write(&db).await;
            let mut stream = transaction.stream_raw(rows(db.backend())).await.unwrap();
            stream.next().await.unwrap().unwrap();
            drop(stream);
            assert_eq!(
                count_items(&transaction, &writes.lost).await,
                1,
                "the transaction goes on"
            );
        });
        let answer = app.oneshot(request()).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
    })
    .await;
}

#[tokio::test]
async fn a_stream_read_to_its_end_or_kept_open_gives_the_connection_back() {
    everywhere(async |case| {
        let writes = case.writes();
        let app = case.app(move |db: DbSession| async move {
            let transaction = writes.write(&db).await;
            let mut stream = transaction.stream_raw(rows(db.backend())).await.unwrap();
            let mut read = 0;
            while let Some(row) = stream.next().await {
                row.unwrap();
                read += 1;
            }
            assert_eq!(read, 500);
            drop(stream);
            // Kept open until the handler is over.
            let mut stream = transaction.stream_raw(rows(db.backend())).await.unwrap();
            stream.next().await.unwrap().unwrap();
            let refused = transaction
                .execute_unprepared("SELECT 1")
                .await
                .unwrap_err();
            assert!(Error::of(&refused).unwrap().is_wrong_handle());
            StatusCode::OK
        });
        let answer = app.oneshot(request()).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
    })
    .await;
}

#[tokio::test]
async fn a_transaction_held_by_a_task_is_rolled_back_with_the_request() {
    everywhere(async |case| {
        let (writes, (out, mut held)) = (case.writes(), mpsc::unbounded_channel());
        let app = case.app(move |db: DbSession| async move {
            let transaction = writes.write(&db).await;
            out.send(tokio::spawn(async move {
                let _held = transaction;
                pending::<()>().await
            }))
            .unwrap();
        });
        let answer = app.oneshot(request()).await.unwrap();
        // Its transaction is not committed: an OK would be untrue.
        assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
        case.assert_whole().await;
        held.recv().await.unwrap().abort();
    })
    .await;
}

#[tokio::test]
async fn handles_dropped_on_a_plain_thread_give_the_connection_back() {
    everywhere(async |case| {
        let (writes, (out, mut kept)) = (case.writes(), mpsc::unbounded_channel());
        let app = case.app(move |db: DbSession| async move {
            let transaction = writes.write(&db).await;
            // While the request lives: the transaction is rolled back, the session goes on.
            let handles = (transaction, db.clone());
            thread::spawn(move || drop(handles)).join().unwrap();
            assert_eq!(count_items(&db, &writes.lost).await, 0);
            out.send((db.begin().await.unwrap(), db)).unwrap();
        });
        let answer = app.oneshot(request()).await.unwrap();
        // Its transaction is not committed: an OK would be untrue.
        assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
        // After it: the last handles.
        let kept = kept.recv().await.unwrap();
        thread::spawn(move || drop(kept)).join().unwrap();
        let session = case.layer.pool().session().await.unwrap();
        let transaction = session.begin().await.unwrap();
        thread::spawn(move || drop(session)).join().unwrap();
        thread::spawn(move || drop(transaction)).join().unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_request_dropped_on_a_plain_thread_gives_the_connection_back() {
    for doing in Doing::ALL {
        everywhere(async |case| {
            let answer = half_way(case, doing).await;
            thread::spawn(move || drop(answer)).join().unwrap();
        })
        .await;
    }
}

#[tokio::test]
async fn a_request_dropped_while_unwinding_gives_the_connection_back() {
    for doing in Doing::ALL {
        everywhere(async |case| {
            let answer = half_way(case, doing).await;
            let unwinding = thread::spawn(move || {
                let _answer = answer;
                resume_unwind(Box::new("a panic beside the request"))
            });
            assert!(unwinding.join().is_err());
        })
        .await;
    }
}

#[test]
fn a_runtime_dropped_with_sessions_out_panics_nowhere() {
    let outer = Runtime::new().unwrap();
    for (kind, doing) in Kind::ALL
        .into_iter()
        .flat_map(|kind| Doing::ALL.map(|doing| (kind, doing)))
    {
        eprintln!("{kind:?}, {doing:?}");
        let test = outer.block_on(TestDb::new(kind));
        let inner = Runtime::new().unwrap();
        let (case, tasks, handles) = inner.block_on(async {
            let case = Case::new(&test, false).await;
            let (out, mut handles) = mpsc::unbounded_channel();
            let writes = case.writes();
            let app = case.app(move |db: DbSession| async move {
                out.send(db.clone()).unwrap();
                stay(doing, writes, db).await;
            });
            let first = tokio::spawn(app.oneshot(request()));
            case.writes.reached().await;
            let idle = case.app(async |db: DbSession| {
                let _open = db.begin().await.unwrap();
                pending::<()>().await;
            });
            // One of them waits for ever for a connection.
            let others = [0, 1].map(|_| tokio::spawn(idle.clone().oneshot(request())));
            let pool = case.layer.pool();
            eventually("all connections are out", async || {
                pool.status().used == pool.status().max
            })
            .await;
            (
                case,
                Vec::from_iter([first].into_iter().chain(others)),
                handles.recv().await.unwrap(),
            )
        });
        thread::spawn(move || drop(inner))
            .join()
            .expect("the runtime's end panics nowhere");
        thread::spawn(move || drop(handles))
            .join()
            .expect("a handle's end panics nowhere");
        outer.block_on(async {
            for task in tasks {
                match task.await {
                    Err(ended) => assert!(ended.is_cancelled(), "a request's end panics nowhere"),
                    // The one that waited may have been told, before its own turn to be dropped came.
                    Ok(answer) => {
                        assert_eq!(answer.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE)
                    }
                }
            }
            if kind == Kind::SqliteMemory {
                // The connection ended with its runtime, and the database with it.
                let alive = timeout(BOUND, case.db.execute_unprepared("SELECT 1")).await;
                alive.expect("the pool has a connection").unwrap();
            } else {
                case.assert_whole().await;
            }
        });
    }
}
