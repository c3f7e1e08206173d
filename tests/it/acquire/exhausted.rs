//! G1, G10: an exhausted pool is a 503 in the form that the client asked for, distinct from a server that is down.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, body::Body, extract::State, response::Response, routing::get};
use http::{Method, Request, StatusCode, header};
use sea_orm::{ConnectionTrait, Database};
use tokio::time::timeout;
use tower::{Layer, ServiceExt, service_fn};
use tower_sea_orm::{DbSession, Error, PoolSession, error_response, problem_json};

use crate::support::{
    database::{Kind, TestDb, insert_item},
    pool::{assert_whole, layer_with},
    requests::{Own, exhausted, send, text},
    servers::OwnServer,
    site::Site,
    wait::{BOUND, eventually},
};

#[tokio::test]
async fn h25_a_database_that_is_down_is_distinguished_from_a_full_pool() {
    async fn statement(session: DbSession) -> Result<(), (StatusCode, String)> {
        let result = session.execute_unprepared("SELECT 1").await;
        result.map(drop).map_err(|error| {
            (
                StatusCode::INTERNAL_SERVER_ERROR,
                describe(Error::of(&error).as_ref()),
            )
        })
    }
    for mut server in [OwnServer::postgres(), OwnServer::mysql()] {
        let test = TestDb::on(&server).await;
        let mut options = test.options(1);
        options.acquire_timeout(Duration::from_secs(3));
        let db = Database::connect(options).await.unwrap();
        let layer = layer_with(&db, |pool| pool.acquire_timeout(Duration::from_secs(3)));
        let pool = layer.pool().clone();
        let routes = Router::new().route("/", get(statement));
        let respond = |error: &Error, parts: &http::request::Parts| {
            error_response(error, parts, Body::from(describe(Some(error))))
        };
        let eager = routes
            .clone()
            .layer(layer.clone().response_for_error(respond));
        let lazy = routes
            .clone()
            .layer(layer.clone().lazy().response_for_error(respond));
        let handler = routes.layer(layer.lazy().keep_handler_errors());

        let expect = async |what: &str| {
            for app in [&eager, &lazy] {
                let answer = timeout(BOUND, send(app, "/"))
                    .await
                    .expect("in bounded time");
                assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
                let wait = answer.headers()[header::RETRY_AFTER]
                    .to_str()
                    .unwrap()
                    .to_owned();
                assert!(
                    (1..=3).contains(&wait.parse().unwrap()),
                    "Retry-After: {wait}"
                );
                assert_eq!(text(answer).await, what);
            }
            let answer = send(&handler, "/").await;
            assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
            assert_eq!(text(answer).await, what, "what the handler learns");
        };
        let holder = pool.session().await.unwrap();
        expect("exhausted").await;
        drop(holder);
        assert_eq!(send(&eager, "/").await.status(), StatusCode::OK);

        server.stop();
        expect("down").await;
        server.start();
        eventually("it works again", async || {
            send(&lazy, "/").await.status() == StatusCode::OK
        })
        .await;
        assert_eq!(send(&eager, "/").await.status(), StatusCode::OK);
        assert_whole(&test, &db, 1).await;

        db.clone().close().await.unwrap();
        expect("closing").await;
        drop(server);
    }
}

/// Names the kind of failure to acquire.
fn describe(error: Option<&Error>) -> String {
    let what = match error {
        Some(error) if error.is_exhausted() => "exhausted",
        Some(error) if error.is_unreachable() => "down",
        Some(error) if error.is_closing() => "closing",
        _ => "something else",
    };
    what.to_owned()
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
async fn a_500_after_a_failed_acquire_becomes_a_503_by_default() {
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
async fn eager_if_decides_which_requests_acquire_first() {
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
async fn no_retry_after_if_the_request_has_run_a_statement() {
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

#[tokio::test]
async fn with_without_body_a_request_with_a_body_acquires_late() {
    let site = Site::new(Kind::SqliteFile).await;
    let app = Router::new()
        .route(
            "/",
            axum::routing::any(async |db: DbSession| db.pool().status().used.to_string()),
        )
        .layer(site.layer.clone().eager_if(tower_sea_orm::without_body));
    let request = |method: &str| Request::builder().method(method).uri("/");
    let cases = [
        (request("GET"), "1"),
        (request("POST").header(header::CONTENT_LENGTH, 0), "1"),
        (request("POST").header(header::CONTENT_LENGTH, 9), "0"),
        (request("GET").header(header::CONTENT_LENGTH, 9), "0"),
        (
            request("POST").header(header::TRANSFER_ENCODING, "chunked"),
            "0",
        ),
        (request("POST"), "1"),
        (request("POST").version(http::Version::HTTP_2), "0"),
        (request("GET").version(http::Version::HTTP_2), "1"),
    ];
    for (n, (request, expected)) in cases.into_iter().enumerate() {
        let answer = app
            .clone()
            .oneshot(request.body(Body::empty()).unwrap())
            .await
            .unwrap();
        let body = axum::body::to_bytes(answer.into_body(), 10).await.unwrap();
        assert_eq!(body, expected, "{n}");
        site.assert_whole().await;
    }
}
