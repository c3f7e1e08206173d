//! The layer keeps tower's contract, and its own words: readiness, errors, bodies, extractors.

use std::{
    collections::BTreeMap,
    fmt,
    panic::{AssertUnwindSafe, Location, catch_unwind},
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    task::Poll,
    thread,
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{FromRequestParts, State},
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::{future::join_all, poll};
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use sea_orm::{
    ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DbBackend, DbErr, MockDatabase,
    MockExecResult, Statement, Transaction, TransactionTrait, Value,
};
use static_assertions::{assert_impl_all, assert_not_impl_any};
use tokio::time::timeout;
use tower::{Layer, Service, ServiceBuilder, ServiceExt, limit::ConcurrencyLimitLayer, service_fn};
use tower_sea_orm::{
    DbSession, DbSessionLayer, DbSessionService, DefaultDatabase, DefaultResponseForError, Error,
    MissingSession, PoolSession, ResponseFuture, SessionPool, SessionStream, SessionTransaction,
    Status, error_response, problem_json,
};
use tower_test::mock;

use crate::support::pool::{layer_with, opened, session_layer, session_pool};
use crate::{
    hazards::{Failed, backend_pid, send, text},
    support::{
        database::{Kind, TestDb, count_items, insert_item},
        pool::assert_whole,
        wait::{BOUND, eventually},
    },
};

/// A second database's tag.
enum Analytics {}

type Routed = axum::routing::Route;

assert_impl_all!(DbSession: Send, Sync, Unpin, Clone, fmt::Debug);
assert_impl_all!(DbSession<Analytics>: Send, Sync, Unpin, Clone, fmt::Debug);
assert_impl_all!(DbSessionLayer: Send, Sync, Unpin, Clone, fmt::Debug);
assert_impl_all!(DbSessionLayer<Analytics, DefaultResponseForError>: Send, Sync, Unpin, Clone, fmt::Debug);
assert_impl_all!(DbSessionService<Routed>: Send, Sync, Unpin, Clone, fmt::Debug);
assert_impl_all!(ResponseFuture<Routed, Request<Body>>: Send, fmt::Debug);
assert_impl_all!(SessionTransaction: Send, Sync, Unpin, fmt::Debug);
assert_impl_all!(SessionStream<'static>: Send, Unpin, fmt::Debug);
assert_impl_all!(SessionPool: Send, Sync, Unpin, Clone, fmt::Debug);
assert_impl_all!(PoolSession: Send, Sync, Unpin, fmt::Debug);
assert_impl_all!(Error: Send, Sync, Unpin, Clone, std::error::Error);
assert_impl_all!(MissingSession: Send, Sync, Unpin, Clone, std::error::Error, IntoResponse);
assert_impl_all!(Status: Send, Sync, Unpin, Copy, Eq, fmt::Debug);
assert_impl_all!(DefaultResponseForError: Send, Sync, Unpin, Copy, Default, fmt::Debug);
assert_impl_all!(DefaultDatabase: Send, Sync, Unpin, Copy, Eq, fmt::Debug);
// One way out each.
assert_not_impl_any!(SessionTransaction: Clone);
assert_not_impl_any!(PoolSession: Clone);

#[tokio::test]
async fn the_inner_service_that_was_polled_ready_is_the_one_called() {
    for lazy in [false, true] {
        let test = TestDb::new(Kind::SqliteMemory).await;
        let mut layer = session_layer(test.connect(1).await);
        if lazy {
            layer = layer.lazy();
        }
        let pool = layer.pool().clone();
        let (mut service, mut handle) =
            mock::spawn_layer::<Request<()>, Response<String>, _>(layer);

        handle.allow(0);
        assert!(
            service.poll_ready().is_pending(),
            "not ready when the inner service is not"
        );
        handle.allow(1);
        assert!(matches!(service.poll_ready(), Poll::Ready(Ok(()))));
        // A mock panics when it is called without having been polled ready.
        let answer = tokio::spawn(service.call(Request::new(())));
        let (request, respond) = handle.next_request().await.unwrap();
        assert!(
            service.poll_ready().is_pending(),
            "the next call needs readiness of its own"
        );
        let session: DbSession = DbSession::from_extensions(request.extensions()).unwrap();
        session.ping().await.unwrap();
        respond.send_response(Response::new("hello".to_owned()));
        assert_eq!(answer.await.unwrap().unwrap().body(), "hello");
        assert!(session.is_closed());
        eventually("the connection is back", async || pool.status().used == 0).await;
    }
}

#[tokio::test]
async fn readiness_that_was_reserved_is_used_and_not_taken_twice() {
    let test = TestDb::new(Kind::SqliteMemory).await;
    let layer = session_layer(test.connect(1).await);
    // Its permit is reserved by `poll_ready`, and calling it without one panics.
    let limited = ConcurrencyLimitLayer::new(1);
    let mut service = ServiceBuilder::new()
        .layer(layer)
        .layer(limited)
        .service(service_fn(async |_: Request<()>| {
            tokio::task::yield_now().await;
            Ok::<_, Own>(Response::new(String::new()))
        }));
    for _ in 0..20 {
        let first = service.ready().await.unwrap().call(Request::new(()));
        assert!(
            poll!(pin!(service.clone().ready())).is_pending(),
            "the one permit is with the first call"
        );
        let mut copy = service.clone();
        let second = async { copy.ready().await.unwrap().call(Request::new(())).await };
        let both = timeout(BOUND, async { futures_util::join!(first, second) }).await;
        let (first, second) = both.expect("both are served");
        first.unwrap();
        second.unwrap();
    }
}

#[tokio::test]
async fn the_inner_service_is_not_called_before_a_connection_is_checked_out() {
    let test = TestDb::new(Kind::SqliteMemory).await;
    let layer = session_layer(test.connect(1).await);
    let holder = layer.pool().session().await.unwrap();
    let (mut service, mut handle) = mock::spawn_layer::<Request<()>, Response<String>, _>(layer);
    handle.allow(1);
    assert!(service.poll_ready().is_ready());
    let mut answer = Box::pin(service.call(Request::new(())));
    for _ in 0..100 {
        assert!(poll!(&mut answer).is_pending());
        assert!(
            handle.poll_request().is_pending(),
            "called without a connection"
        );
        tokio::task::yield_now().await;
    }
    drop(holder);
    let answer = tokio::spawn(answer);
    let (request, respond) = handle.next_request().await.unwrap();
    assert!(request.extensions().get::<DbSession>().is_some());
    respond.send_response(Response::new(String::new()));
    answer.await.unwrap().unwrap();
}

/// An error of a service that is nobody else's.
#[derive(Debug, PartialEq)]
struct Own(u32);

#[tokio::test]
async fn the_inner_services_error_passes_untouched_and_ends_the_session() {
    let test = TestDb::new(Kind::SqliteMemory).await;
    let db = test.connect(1).await;
    let kept = Arc::new(Mutex::new(None));
    let keep = kept.clone();
    let service = session_layer(db.clone()).layer(service_fn(move |request: Request<()>| {
        let keep = keep.clone();
        async move {
            let session: DbSession = DbSession::from_extensions(request.extensions()).unwrap();
            let tx = session.begin().await.unwrap();
            insert_item(&tx, "lost").await;
            *keep.lock().unwrap() = Some((session, tx));
            Err::<Response<String>, Own>(Own(7))
        }
    }));
    assert_eq!(service.oneshot(Request::new(())).await.unwrap_err(), Own(7));
    let (session, tx) = kept.lock().unwrap().take().unwrap();
    let error = Error::of(&session.execute_unprepared("SELECT 1").await.unwrap_err()).unwrap();
    assert!(error.is_session_closed());
    let error = Error::of(&tx.commit().await.unwrap_err()).unwrap();
    assert!(error.is_session_closed());
    assert_whole(&test, &db, 1).await;
    assert_eq!(count_items(&db, "lost").await, 0);
}

#[tokio::test]
async fn an_error_of_readiness_passes_untouched() {
    let layer = session_layer(MockDatabase::new(DbBackend::Sqlite).into_connection());
    let (mut service, mut handle) = mock::spawn_layer::<Request<()>, Response<String>, _>(layer);
    handle.send_error("not today");
    let Poll::Ready(Err(error)) = service.poll_ready() else {
        panic!("no error")
    };
    assert_eq!(error.to_string(), "not today");
}

#[tokio::test]
async fn any_body_will_do() {
    let test = TestDb::new(Kind::SqliteMemory).await;
    let layer = session_layer(test.connect(1).await);
    let full = layer
        .clone()
        .layer(service_fn(async |request: Request<Full<Bytes>>| {
            let session: DbSession = DbSession::from_extensions(request.extensions()).unwrap();
            session.ping().await.unwrap();
            let body = request.into_body().collect().await.unwrap().to_bytes();
            Ok::<_, Own>(Response::new(Full::new(body)))
        }));
    let request = Request::new(Full::new(Bytes::from_static(b"echo")));
    let response = full.oneshot(request).await.unwrap();
    assert_eq!(
        response.into_body().collect().await.unwrap().to_bytes(),
        "echo"
    );

    let unit = layer.layer(service_fn(async |_: Request<u8>| {
        Ok::<_, Own>(Response::new(5_u64))
    }));
    assert_eq!(*unit.oneshot(Request::new(1)).await.unwrap().body(), 5);
}

#[tokio::test]
async fn clones_serve_and_the_inner_service_can_be_reached() {
    let test = TestDb::new(Kind::SqliteMemory).await;
    let db = test.connect(1).await;
    let mut service = ServiceBuilder::new()
        .layer(session_layer(db.clone()))
        .service(service_fn(async |_: Request<()>| {
            Ok::<_, Own>(Response::new(String::new()))
        }));
    let mut copy = service.clone();
    copy.ready()
        .await
        .unwrap()
        .call(Request::new(()))
        .await
        .unwrap();
    service
        .ready()
        .await
        .unwrap()
        .call(Request::new(()))
        .await
        .unwrap();
    let _ = (service.get_ref(), copy.get_mut());
    service
        .into_inner()
        .oneshot(Request::new(()))
        .await
        .unwrap();
    assert_whole(&test, &db, 1).await;
}

#[tokio::test]
async fn a_mock_database_answers_and_logs_the_transaction() {
    let row = BTreeMap::from([("name", Value::from("from the mock"))]);
    let db = MockDatabase::new(DbBackend::Postgres)
        .append_query_results([[row]])
        .append_exec_results([MockExecResult {
            last_insert_id: 1,
            rows_affected: 1,
        }])
        .into_connection();
    let select = || Statement::from_string(DbBackend::Postgres, "SELECT name FROM item");
    let insert =
        || Statement::from_string(DbBackend::Postgres, "INSERT INTO item (name) VALUES ('x')");
    let app = Router::new()
        .route(
            "/",
            get(async move |db: DbSession| {
                let name = db
                    .query_one_raw(select())
                    .await?
                    .unwrap()
                    .try_get::<String>("", "name")?;
                let tx = db.begin().await?;
                tx.execute_raw(insert()).await?;
                tx.commit().await?;
                Ok::<_, Failed>(name)
            }),
        )
        .layer(session_layer(db.clone()));
    let answer = send(&app, "/").await;
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(text(answer).await, "from the mock");
    let begin = Statement::from_string(DbBackend::Postgres, "BEGIN");
    let commit = Statement::from_string(DbBackend::Postgres, "COMMIT");
    let expected = [
        Transaction::one(select()),
        Transaction::many([begin, insert(), commit]),
    ];
    assert_eq!(db.into_transaction_log(), expected);
}

#[tokio::test]
async fn a_mock_transaction_that_is_dropped_is_rolled_back() {
    let db = MockDatabase::new(DbBackend::Postgres).into_connection();
    let app = Router::new()
        .route(
            "/",
            get(async |db: DbSession| drop(db.begin().await.unwrap())),
        )
        .layer(session_layer(db.clone()));
    assert_eq!(send(&app, "/").await.status(), StatusCode::OK);
    let log = format!("{:?}", db.into_transaction_log());
    assert!(log.contains("ROLLBACK") && !log.contains("COMMIT"), "{log}");
}

#[tokio::test]
async fn a_missing_layer_names_itself() {
    async fn optional(session: Option<DbSession>) -> &'static str {
        if session.is_some() { "some" } else { "none" }
    }
    let app = Router::new()
        .route("/session", get(async |_: DbSession| ()))
        .route("/tagged", get(async |_: DbSession<Analytics>| ()))
        .route("/pool", get(async |_: SessionPool| ()))
        .route("/optional", get(optional));
    for uri in ["/session", "/tagged", "/pool"] {
        let answer = send(&app, uri).await;
        assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR, "{uri}");
        assert!(text(answer).await.contains("DbSessionLayer"), "{uri}");
    }
    assert_eq!(text(send(&app, "/optional").await).await, "none");
    let (parts, ()) = Request::new(()).into_parts();
    let error = DbSession::from_extensions(&parts.extensions).unwrap_err();
    assert!(error.is_missing_layer() && error.status() == StatusCode::INTERNAL_SERVER_ERROR);

    let app = app.layer(session_layer(
        MockDatabase::new(DbBackend::Sqlite).into_connection(),
    ));
    for uri in ["/session", "/pool", "/optional"] {
        assert_eq!(send(&app, uri).await.status(), StatusCode::OK, "{uri}");
    }
    assert_eq!(text(send(&app, "/optional").await).await, "some");
    // A session of another tag is not it.
    assert_eq!(
        send(&app, "/tagged").await.status(),
        StatusCode::INTERNAL_SERVER_ERROR
    );
}

#[tokio::test]
async fn work_that_outlives_the_request_takes_the_pool() {
    let test = TestDb::new(Kind::SqliteMemory).await;
    let db = test.connect(1).await;
    let (sender, mut done) = tokio::sync::mpsc::channel(1);
    let app = Router::new()
        .route(
            "/",
            get(async move |session: DbSession, pool: SessionPool| {
                tokio::spawn(async move {
                    let own = pool.session().await.unwrap();
                    let dead = session.execute_unprepared("SELECT 1").await.unwrap_err();
                    insert_item(&*own, "later").await;
                    sender.send(dead).await.unwrap();
                });
            }),
        )
        .layer(session_layer(db.clone()));
    assert_eq!(send(&app, "/").await.status(), StatusCode::OK);
    let error = Error::of(&done.recv().await.unwrap()).unwrap();
    assert!(error.is_session_closed());
    assert!(
        error.to_string().contains("session.pool()"),
        "the way out: {error}"
    );
    assert_whole(&test, &db, 1).await;
    assert_eq!(count_items(&db, "later").await, 1);
}

#[tokio::test]
async fn middleware_and_handler_share_one_session() {
    async fn first(request: Request<Body>, next: Next) -> Result<Response, Failed> {
        let (mut parts, body) = request.into_parts();
        let session: DbSession = DbSession::from_request_parts(&mut parts, &())
            .await
            .unwrap();
        let before = backend_pid(&session).await;
        let mut response = next.run(Request::from_parts(parts, body)).await;
        assert_eq!(
            backend_pid(&session).await,
            before,
            "alive until the answer has left the layer"
        );
        response.headers_mut().insert("pid", before.into());
        Ok(response)
    }
    for kind in [Kind::Postgres, Kind::MySql] {
        let test = TestDb::new(kind).await;
        let db = test.connect(3).await;
        let app = Router::new()
            .route(
                "/",
                get(async |session: DbSession| backend_pid(&session).await.to_string()),
            )
            .layer(from_fn(first))
            .layer(session_layer(db.clone()));
        for answer in join_all((0..10).map(|_| send(&app, "/"))).await {
            let pid = answer.headers()["pid"].to_str().unwrap().to_owned();
            assert_eq!(text(answer).await, pid);
        }
        assert_whole(&test, &db, 3).await;
    }
}

#[tokio::test]
async fn a_nested_layer_reuses_the_session() {
    let test = TestDb::new(Kind::SqliteMemory).await;
    let db = test.connect(1).await;
    let layer = session_layer(db.clone());
    let app = Router::new()
        .route(
            "/",
            get(async |session: DbSession, pool: SessionPool| {
                session.ping().await?;
                Ok::<_, Failed>(pool.status().used.to_string())
            }),
        )
        .layer(layer.clone())
        .layer(layer.clone())
        .layer(layer);
    // With one connection in all, a second session could not be had.
    let answer = send(&app, "/").await;
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(text(answer).await, "1");
    assert_whole(&test, &db, 1).await;
}

#[tokio::test]
async fn two_databases_are_told_apart_by_their_tags() {
    let (main, other) = (
        TestDb::new(Kind::SqliteMemory).await,
        TestDb::new(Kind::SqliteFile).await,
    );
    let (main_db, other_db) = (main.connect(1).await, other.connect(1).await);
    let app = Router::new()
        .route(
            "/",
            get(
                async |session: DbSession, analytics: DbSession<Analytics>| {
                    insert_item(&session, "main").await;
                    let tx = analytics.begin().await.unwrap();
                    insert_item(&tx, "analytics").await;
                    tx.commit().await.unwrap();
                },
            ),
        )
        .layer(session_layer(main_db.clone()))
        .layer(DbSessionLayer::<Analytics>::tagged(session_pool(
            other_db.clone(),
        )));
    assert_eq!(send(&app, "/").await.status(), StatusCode::OK);
    for (test, db, present, absent) in [
        (&main, &main_db, "main", "analytics"),
        (&other, &other_db, "analytics", "main"),
    ] {
        assert_whole(test, db, 1).await;
        assert_eq!(count_items(db, present).await, 1);
        assert_eq!(count_items(db, absent).await, 0);
    }
}

#[tokio::test]
async fn misuse_panics_in_the_callers_line_or_is_an_error() {
    let disconnected = DatabaseConnection::default;
    let text = panics_here(|| drop(DbSessionLayer::new(disconnected())));
    assert!(text.contains("disconnected"), "{text}");
    panics_here(|| drop(SessionPool::new(disconnected())));
    panics_here(|| drop(SessionPool::from(disconnected())));
    assert!(
        SessionPool::builder(disconnected())
            .build()
            .unwrap_err()
            .to_string()
            .contains("disconnected")
    );
    assert!(
        DbSessionLayer::try_new(disconnected())
            .unwrap_err()
            .to_string()
            .contains("disconnected")
    );
    assert!(
        SessionPool::try_new(disconnected())
            .unwrap_err()
            .to_string()
            .contains("disconnected")
    );

    let test = TestDb::new(Kind::SqliteMemory).await;
    let db = test.connect(1).await;
    for reserve in [1, 9, u32::MAX] {
        let error = SessionPool::builder(db.clone())
            .reserved_connections(reserve)
            .build()
            .unwrap_err();
        assert!(
            error.to_string().contains("reserved_connections"),
            "{error}"
        );
    }
}

/// The text of the panic of `misuse`, which names the line that this is called in.
#[track_caller]
fn panics_here(misuse: impl FnOnce()) -> String {
    static SEEN: Mutex<Option<(String, String)>> = Mutex::new(None);
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let here = Location::caller();
    let one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let (mine, others) = (thread::current().id(), Arc::new(std::panic::take_hook()));
    let before = others.clone();
    std::panic::set_hook(Box::new(move |info| {
        if thread::current().id() == mine {
            let place = info
                .location()
                .map(|place| format!("{}:{}", place.file(), place.line()))
                .unwrap_or_default();
            let text = info.payload_as_str().unwrap_or_default().to_owned();
            *SEEN.lock().unwrap_or_else(PoisonError::into_inner) = Some((place, text));
        } else {
            before(info);
        }
    }));
    let panicked = catch_unwind(AssertUnwindSafe(misuse));
    std::panic::set_hook(Box::new(move |info| others(info)));
    let seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner).take();
    drop(one);
    assert!(panicked.is_err(), "no panic");
    let (place, text) = seen.unwrap();
    assert_eq!(place, format!("{}:{}", here.file(), here.line()));
    text
}

/// A layer whose only connection is held, and its holder.
async fn exhausted(test: &TestDb) -> (DbSessionLayer, PoolSession) {
    let layer = layer_with(&test.connect(1).await, |pool| {
        pool.acquire_timeout(Duration::from_secs(1))
    });
    let holder = opened(layer.pool()).await;
    (layer, holder)
}

#[tokio::test]
async fn exhaustion_is_an_answer_in_the_form_that_was_asked_for() {
    let test = TestDb::new(Kind::SqliteMemory).await;
    let (layer, _holder) = exhausted(&test).await;
    let routes = Router::new().route("/busy", get(async |_: DbSession| ()));

    let answer = send(&routes.clone().layer(layer.clone()), "/busy").await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.headers().contains_key(header::RETRY_AFTER));
    assert_eq!(text(answer).await, "", "an empty body by default");

    let problem = layer
        .clone()
        .response_for_error(problem_json)
        .layer(service_fn(async |_: Request<()>| {
            Ok::<_, Own>(Response::new("never called".to_owned()))
        }));
    let answer = problem.oneshot(Request::new(())).await.unwrap();
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(
        answer.headers()[header::CONTENT_TYPE],
        "application/problem+json"
    );
    let body: serde_json::Value = serde_json::from_str(answer.body()).unwrap();
    assert_eq!(body["status"], 503);
    assert_eq!(body["title"], "the service is busy");

    let own = layer
        .clone()
        .response_for_error(|error: &Error, parts: &http::request::Parts| {
            assert!(error.is_exhausted());
            let mut response =
                error_response(error, parts, Body::from(parts.uri.path().to_owned()));
            *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
            response
        });
    let answer = send(&routes.clone().layer(own), "/busy").await;
    assert_eq!(answer.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(text(answer).await, "/busy");

    let grpc = Request::post("/busy").header(header::CONTENT_TYPE, "application/grpc+proto");
    let answer = routes
        .layer(layer)
        .oneshot(grpc.body(Body::empty()).unwrap())
        .await
        .unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.headers()[header::CONTENT_TYPE], "application/grpc");
    assert_eq!(answer.headers()["grpc-status"], "14");
    assert!(!answer.headers().contains_key(header::RETRY_AFTER));
}

#[tokio::test]
async fn a_handlers_500_after_a_failed_acquire_becomes_503_unless_told_not_to() {
    async fn fails(session: DbSession) -> Result<(), (StatusCode, &'static str)> {
        let result = session.execute_unprepared("SELECT 1").await;
        result
            .map(drop)
            .map_err(|_| (StatusCode::INTERNAL_SERVER_ERROR, "own words"))
    }
    async fn copes(session: DbSession) -> (StatusCode, &'static str) {
        assert!(session.execute_unprepared("SELECT 1").await.is_err());
        (StatusCode::NOT_FOUND, "own words")
    }
    async fn unrelated() -> (StatusCode, &'static str) {
        (StatusCode::INTERNAL_SERVER_ERROR, "own words")
    }
    let test = TestDb::new(Kind::SqliteMemory).await;
    let (layer, _holder) = exhausted(&test).await;
    let routes = Router::new()
        .route("/fails", get(fails))
        .route("/copes", get(copes))
        .route("/unrelated", get(unrelated));
    let corrected = routes.clone().layer(layer.clone().lazy());
    let kept = routes.layer(layer.lazy().keep_handler_errors());

    let answer = send(&corrected, "/fails").await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.headers().contains_key(header::RETRY_AFTER));
    assert_eq!(text(answer).await, "");
    for (app, uri, status) in [
        (&kept, "/fails", StatusCode::INTERNAL_SERVER_ERROR),
        (&corrected, "/copes", StatusCode::NOT_FOUND),
        (&corrected, "/unrelated", StatusCode::INTERNAL_SERVER_ERROR),
    ] {
        let answer = send(app, uri).await;
        assert_eq!(answer.status(), status, "{uri}");
        assert_eq!(text(answer).await, "own words", "{uri}");
    }
}

#[tokio::test]
async fn the_predicate_picks_who_checks_out_first() {
    let test = TestDb::new(Kind::SqliteMemory).await;
    let (layer, _holder) = exhausted(&test).await;
    let app =
        Router::new()
            .fallback(async |_: DbSession| ())
            .layer(layer.eager_if(|parts| {
                parts.method != Method::OPTIONS && parts.uri.path() != "/health"
            }));
    for (method, uri, status) in [
        (Method::GET, "/", StatusCode::SERVICE_UNAVAILABLE),
        (Method::OPTIONS, "/", StatusCode::OK),
        (Method::GET, "/health", StatusCode::OK),
        (Method::POST, "/other", StatusCode::SERVICE_UNAVAILABLE),
    ] {
        let request = Request::builder()
            .method(method.clone())
            .uri(uri)
            .body(Body::empty())
            .unwrap();
        assert_eq!(
            app.clone().oneshot(request).await.unwrap().status(),
            status,
            "{method} {uri}"
        );
    }
}

#[tokio::test]
async fn nothing_of_the_database_leaks_to_the_client_or_into_debug() {
    // Nobody listens on the discard port.
    let mut options = ConnectOptions::new("postgres://someone:hunter2@127.0.0.1:9/hidden");
    options
        .connect_lazy(true)
        .acquire_timeout(Duration::from_secs(1))
        .sqlx_logging(false);
    let db = Database::connect(options).await.unwrap();
    let layer = layer_with(&db, |pool| pool.acquire_timeout(Duration::from_secs(1)));
    let secrets = [
        "someone",
        "hunter2",
        "127.0.0.1",
        "hidden",
        "refused",
        "SELECT",
        "sqlx",
    ];
    let hides = |what: &str, text: &str| {
        for secret in secrets {
            assert!(!text.contains(secret), "{what} tells `{secret}`: {text}");
        }
    };
    let pool = layer.pool().clone();
    hides("the layer's Debug", &format!("{layer:?}"));
    hides("the pool's Debug", &format!("{pool:?}"));

    let error = pool.session().await.unwrap_err();
    assert!(error.is_unreachable(), "{error:?}");
    hides("the error's Display", &error.to_string());
    assert!(
        std::error::Error::source(&error).is_some(),
        "the log learns the cause"
    );

    async fn tells(session: DbSession) -> Result<(), (StatusCode, String)> {
        let result = session.execute_unprepared("SELECT 1").await;
        result
            .map(drop)
            .map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
    }
    let routes = Router::new().route("/", get(tells));
    let lazy = layer.clone().lazy();
    hides("the service's Debug", &format!("{:?}", lazy.layer(())));
    let apps = [
        routes.clone().layer(layer.clone()),
        routes.clone().layer(layer.response_for_error(problem_json)),
        routes.clone().layer(lazy.clone()),
        routes
            .clone()
            .layer(lazy.clone().response_for_error(problem_json)),
        routes.layer(lazy.keep_handler_errors()),
    ];
    for (nth, app) in apps.iter().enumerate() {
        let answer = send(app, "/").await;
        let status = if nth == 4 {
            StatusCode::INTERNAL_SERVER_ERROR
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        assert_eq!(answer.status(), status);
        hides("the body", &text(answer).await);
    }
}

#[tokio::test]
async fn fifty_clients_that_mix_session_and_plain_connection_are_all_served() {
    async fn plain_first(
        session: DbSession,
        State(plain): State<DatabaseConnection>,
    ) -> Result<(), Failed> {
        plain.execute_unprepared("SELECT 1").await?;
        session.execute_unprepared("SELECT 1").await?;
        Ok(())
    }
    async fn session_first(
        session: DbSession,
        State(plain): State<DatabaseConnection>,
    ) -> Result<(), Failed> {
        session.execute_unprepared("SELECT 1").await?;
        plain.execute_unprepared("SELECT 1").await?;
        Ok(())
    }
    for kind in [Kind::Postgres, Kind::MySql, Kind::SqliteFile] {
        let test = TestDb::new(kind).await;
        let db = test.connect(5).await;
        let layer = session_layer(db.clone());
        let lazy = Router::new()
            .route("/", get(plain_first))
            .layer(layer.clone().lazy())
            .with_state(db.clone());
        let reserve = Router::new()
            .route("/", get(session_first))
            .layer(layer_with(&db, |pool| pool.reserved_connections(1)));
        let reserve = reserve.with_state(db.clone());
        for (what, app) in [("lazy", lazy), ("reserved_connections", reserve)] {
            let clients = (0..50).map(|_| {
                let app = app.clone();
                tokio::spawn(async move {
                    for _ in 0..5 {
                        let answer = send(&app, "/").await;
                        assert_eq!(answer.status(), StatusCode::OK, "{kind:?}, {what}");
                    }
                })
            });
            for client in join_all(clients).await {
                client.unwrap();
            }
            assert_whole(&test, &db, 5).await;
        }
    }
}

#[tokio::test]
async fn the_pool_counts_those_who_wait() {
    let test = TestDb::new(Kind::Postgres).await;
    let db = test.connect(1).await;
    let pool = session_pool(db.clone());
    let holder = pool.session().await.unwrap();
    let mut waiting: Vec<_> = (0..6).map(|_| Box::pin(pool.session())).collect();
    for wait in &mut waiting {
        assert!(poll!(wait).is_pending());
    }
    assert_eq!(
        (pool.status().used, pool.status().pending, pool.status().max),
        (1, 6, 1)
    );
    drop(waiting.pop());
    assert_eq!(pool.status().pending, 5);
    drop(holder);
    eventually("the oldest has its connection", async || {
        pool.status().pending == 4
    })
    .await;
    // It goes without having looked: the next one's turn.
    drop(waiting.remove(0));
    eventually("the next has it", async || {
        pool.status().pending == 3 && pool.status().used == 1
    })
    .await;
    for _ in 0..100 {
        assert_eq!((pool.status().pending, pool.status().used), (3, 1));
        tokio::task::yield_now().await;
    }
    for wait in waiting {
        drop(wait.await.unwrap());
    }
    assert_eq!(pool.status().pending, 0);
    assert_whole(&test, &db, 1).await;
}

#[test]
fn errors_answer_questions() {
    let failure = DbErr::ConnectionAcquire(sea_orm::ConnAcquireErr::Timeout);
    let error = Error::of(&failure).unwrap();
    assert!(error.is_exhausted() && error.is_acquire() && error.is_retryable());
    assert!(
        !error.is_unreachable()
            && !error.is_closing()
            && !error.is_conflict()
            && !error.is_session_closed()
    );
    for _ in 0..50 {
        let wait = error.retry_after().unwrap().as_secs();
        assert!((1..=3).contains(&wait), "{wait}");
    }
    let closed = DbErr::ConnectionAcquire(sea_orm::ConnAcquireErr::ConnectionClosed);
    assert!(Error::of(&closed).unwrap().is_closing());
    assert!(Error::of(&DbErr::RecordNotFound(String::new())).is_none());
}

#[tokio::test]
async fn a_request_that_has_run_a_statement_is_not_told_to_come_back() {
    async fn writes_and_waits(
        session: DbSession,
        State(held): State<Held>,
    ) -> Result<(), StatusCode> {
        insert_item(&session, "written").await;
        session.release().await.unwrap();
        let holder = session.pool().session().await.unwrap();
        held.lock().unwrap().push(holder);
        session
            .execute_unprepared("SELECT 1")
            .await
            .map(drop)
            .map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
    }
    type Held = Arc<Mutex<Vec<PoolSession>>>;
    let test = TestDb::new(Kind::SqliteFile).await;
    let layer = layer_with(&test.connect(1).await, |pool| {
        pool.acquire_timeout(Duration::from_secs(1))
    });
    let app = Router::new()
        .route("/", get(writes_and_waits))
        .with_state(Held::default())
        .layer(layer);

    let answer = send(&app, "/").await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(
        !answer.headers().contains_key(header::RETRY_AFTER),
        "what it wrote would be written twice"
    );
}
