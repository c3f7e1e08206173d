//! G14, G15: `response_for_error`: whose request the layer's own responses answer, and in which form.

use std::convert::Infallible;

use axum::{
    Router,
    body::{Body, Bytes},
    http::StatusCode,
    response::IntoResponse,
    routing::get,
};
use http::{Request, Response, header};
use http_body_util::{BodyExt, Full};
use sea_orm::{ConnectionTrait, DbErr, Statement};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_http::trace::TraceLayer;
use tower_sea_orm::{
    DbSession, DbTx, Error, Outcome, TransactionLayer, error_response, problem_json,
    testing::{self, TestPool},
};

use crate::support::{
    database::{Kind, TestDb, count_items, insert_item},
    pool::{assert_whole, session_pool},
    requests::exhausted,
    site::{DEFERRING, Site, violate},
};

const GRPC: &str = "application/grpc+proto";

fn grpc() -> Request<Body> {
    Request::post("/")
        .header(header::CONTENT_TYPE, GRPC)
        .body(Body::empty())
        .unwrap()
}

fn code<B>(response: &Response<B>) -> &str {
    response.headers()["grpc-status"].to_str().unwrap()
}

#[tokio::test]
async fn a_grpc_error_response_has_no_body() {
    let test = TestDb::new(Kind::SqliteMemory).await;
    let (layer, _holder) = exhausted(&test).await;
    let handler = || Router::new().route("/", axum::routing::post(async |_: DbSession| ()));
    let answers = [
        handler()
            .layer(layer.clone())
            .oneshot(grpc())
            .await
            .unwrap(),
        handler()
            .layer(layer.clone().response_for_error(problem_json))
            .oneshot(grpc())
            .await
            .unwrap(),
        handler()
            .layer(TransactionLayer::new().response_for_error(problem_json))
            .oneshot(grpc())
            .await
            .unwrap(),
    ];
    for (n, answer) in answers.into_iter().enumerate() {
        assert_eq!(answer.status(), StatusCode::OK, "{n}");
        assert_eq!(answer.headers()[header::CONTENT_TYPE], "application/grpc");
        assert_eq!(code(&answer), if n < 2 { "14" } else { "13" });
        assert!(
            http_body::Body::is_end_stream(answer.body()),
            "{n}: trailers only"
        );
        assert_eq!(
            axum::body::to_bytes(answer.into_body(), 100)
                .await
                .unwrap()
                .len(),
            0,
            "{n}"
        );
    }
}

#[tokio::test]
async fn a_grpc_response_whose_commit_fails_is_an_error_without_a_body() {
    for kind in DEFERRING {
        let site = Site::new(kind).await;
        site.defer().await;
        let handler = async |tx: DbTx| {
            insert_item(&tx, "lost").await;
            violate(&tx).await;
            let trailers = http::HeaderMap::from_iter([(
                header::HeaderName::from_static("grpc-status"),
                "0".parse().unwrap(),
            )]);
            let body = Full::new(Bytes::from_static(b"reply"))
                .with_trailers(std::future::ready(Some(Ok(trailers))));
            ([(header::CONTENT_TYPE, GRPC)], Body::new(body))
        };
        let app = Router::new()
            .route("/", axum::routing::post(handler))
            .layer(site.layer.clone());
        let answer = app.oneshot(grpc()).await.unwrap();
        assert_eq!(
            (answer.status(), code(&answer)),
            (StatusCode::OK, "13"),
            "{kind:?}"
        );
        assert!(
            http_body::Body::is_end_stream(answer.body()),
            "{kind:?}: trailers only"
        );
        assert_eq!(site.count("lost").await, 0, "{kind:?}");
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn a_grpc_handlers_failure_after_a_failed_acquire_becomes_unavailable() {
    let test = TestDb::new(Kind::SqliteMemory).await;
    let (layer, _holder) = exhausted(&test).await;
    for (own, expected) in [
        ("13", "14"),
        ("2", "14"),
        ("14", "14"),
        ("5", "5"),
        ("0", "0"),
        ("8", "8"),
    ] {
        let handler = async move |db: DbSession| {
            db.execute_unprepared("SELECT 1").await.unwrap_err();
            (
                [
                    (header::CONTENT_TYPE, GRPC),
                    (header::HeaderName::from_static("grpc-status"), own),
                ],
                (),
            )
                .into_response()
        };
        let route = Router::new().route("/", axum::routing::post(handler));
        let answer = route
            .clone()
            .layer(layer.clone().lazy())
            .oneshot(grpc())
            .await
            .unwrap();
        assert_eq!(
            (answer.status().as_u16(), code(&answer)),
            (200, expected),
            "{own}"
        );
        let kept = route.layer(layer.clone().lazy().keep_handler_errors());
        assert_eq!(code(&kept.oneshot(grpc()).await.unwrap()), own);
    }
}

#[tokio::test]
async fn a_grpc_client_does_not_retry_what_may_be_committed() {
    let site = Site::new(Kind::Postgres).await;
    let handler = async |tx: DbTx| {
        insert_item(&tx, "stands").await;
        tx.commit().await.unwrap();
        let sql = "DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '40001'; END $$";
        tx.execute_unprepared(sql).await.unwrap_err();
        [(header::HeaderName::from_static("grpc-status"), "13")].into_response()
    };
    let app = Router::new()
        .route("/", axum::routing::post(handler))
        .layer(site.layer.clone());
    let answer = app.oneshot(grpc()).await.unwrap();
    assert_eq!(code(&answer), "14");
    assert_eq!(answer.headers()["grpc-retry-pushback-ms"], "-1");
    assert_eq!(site.count("stands").await, 1);
    site.assert_whole().await;
}

#[test]
fn an_error_knows_its_code_in_grpc() {
    let timeout = DbErr::ConnectionAcquire(sea_orm::ConnAcquireErr::Timeout);
    assert_eq!(Error::of(&timeout).unwrap().grpc_code(), 14);
}

#[derive(Clone, Debug, PartialEq)]
struct Tenant(u8);

/// Returns the request's parts that the response's maker saw.
fn seen(parts: &http::request::Parts) -> String {
    let tenant = parts.extensions.get::<Tenant>().map(|tenant| tenant.0);
    let id = parts
        .headers
        .get("x-request-id")
        .map(|id| id.to_str().unwrap());
    format!(
        "{} {} {:?} {:?} {tenant:?}",
        parts.method, parts.uri, parts.version, id
    )
}

#[tokio::test]
async fn a_closure_sees_the_whole_head_at_the_start_and_at_the_end() {
    let request = || {
        let mut request = Request::put("/a?b=c")
            .header("x-request-id", "7")
            .body(Body::empty())
            .unwrap();
        request.extensions_mut().insert(Tenant(3));
        request
    };
    let expected = r#"PUT /a?b=c HTTP/1.1 Some("7") Some(3)"#;
    let test = TestDb::new(Kind::SqliteMemory).await;
    let (layer, holder) = exhausted(&test).await;
    let text = async |response: Response<Body>| {
        String::from_utf8(
            axum::body::to_bytes(response.into_body(), 1000)
                .await
                .unwrap()
                .to_vec(),
        )
        .unwrap()
    };
    // Neither closure needs its types written down.
    let layer = layer
        .response_for_error(|error, parts| error_response(error, parts, Body::from(seen(parts))));
    let app = Router::new()
        .route("/a", axum::routing::put(async |_: DbSession| ()))
        .layer(layer);
    let answer = app.oneshot(request()).await.unwrap();
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(text(answer).await, expected);
    drop(holder);

    let layer = TransactionLayer::new();
    let layer = layer
        .response_for_error(|error, parts| error_response(error, parts, Body::from(seen(parts))));
    let app = Router::new()
        .route("/a", axum::routing::put(async || ()))
        .layer(layer);
    assert_eq!(text(app.oneshot(request()).await.unwrap()).await, expected);

    for kind in DEFERRING {
        let site = Site::new(kind).await;
        site.defer().await;
        let layer = site.layer.clone();
        let layer = layer.response_for_error(|error, parts| {
            error_response(error, parts, Body::from(seen(parts)))
        });
        let app = Router::new()
            .route(
                "/a",
                axum::routing::put(async |tx: DbTx| violate(&tx).await),
            )
            .layer(layer);
        let answer = app.oneshot(request()).await.unwrap();
        assert_eq!(
            answer.status(),
            StatusCode::INTERNAL_SERVER_ERROR,
            "{kind:?}"
        );
        assert_eq!(
            text(answer).await,
            expected,
            "{kind:?}: a COMMIT that failed"
        );
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn the_layer_works_around_one_that_changes_the_body() {
    let site = Site::new(Kind::SqliteFile).await;
    let app = ServiceBuilder::new()
        .layer(site.layer.clone())
        .map_response(|response: Response<_>| response.map(Body::new))
        .layer(TraceLayer::new_for_http())
        .service(Router::new().route(
            "/",
            get(async |db: DbSession| insert_item(&db, "row").await),
        ));
    let answer = app.oneshot(Request::new(Body::empty())).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);

    /// Not `Default`.
    struct Own(&'static str);
    let own = site
        .layer
        .clone()
        .response_for_error(|error, parts| error_response(error, parts, Own("from the layer")));
    let app = own.layer(service_fn(async |_: Request<()>| {
        Ok::<_, Infallible>(Response::new(Own("from inside")))
    }));
    assert_eq!(
        app.oneshot(Request::new(())).await.unwrap().body().0,
        "from inside"
    );
    site.assert_whole().await;
}

#[tokio::test]
async fn a_session_is_taken_from_extensions_without_a_type_written_down() {
    enum Analytics {}
    let site = Site::new(Kind::SqliteFile).await;
    let inner = service_fn(async |request: Request<()>| {
        let tx = DbSession::from_extensions(request.extensions())?.tx();
        insert_item(&tx, "one").await;
        let again = DbTx::from_extensions(request.extensions())?;
        insert_item(&again, "two").await;
        assert!(
            DbSession::<Analytics>::tagged(request.extensions())
                .unwrap_err()
                .is_missing_layer()
        );
        assert!(
            DbTx::<Analytics>::tagged(request.extensions())
                .unwrap_err()
                .is_missing_layer()
        );
        Ok::<_, Error>(Response::new(String::new()))
    });
    site.layer
        .layer(inner)
        .call(Request::new(()))
        .await
        .unwrap();
    assert_eq!(site.seen(["one", "two"]).await, [true, true]);
    site.assert_whole().await;
}

#[tokio::test]
async fn a_handler_called_by_a_test_commits_by_its_answer() {
    async fn create(tx: DbTx, name: &str, status: StatusCode) -> StatusCode {
        insert_item(&tx, name).await;
        status
    }
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let db = test.connect(2).await;
        let cases = [
            ("made", StatusCode::CREATED, 1),
            ("refused", StatusCode::CONFLICT, 0),
        ];
        for (name, status, count) in cases {
            let answer: Response<Body> = testing::serve(session_pool(db.clone()), async |db| {
                create(db.tx(), name, status).await.into_response()
            })
            .await;
            assert_eq!(answer.status(), status);
            assert_eq!(
                answer.extensions().get::<Outcome>().unwrap().is_committed(),
                count == 1
            );
            assert_eq!(count_items(&db, name).await, count, "{kind:?}");
        }
        // Over a test's own transaction as well.
        let outer = TestPool::begin(db.clone()).await.unwrap();
        let answer = testing::serve(outer.pool(), async |db| {
            create(db.tx(), "within", StatusCode::CREATED)
                .await
                .into_response()
        });
        assert_eq!(answer.await.status(), StatusCode::CREATED);
        outer.rollback().await.unwrap();
        assert_eq!(count_items(&db, "within").await, 0, "{kind:?}");
        // A held body is read to its end by the test.
        let answer = testing::serve(session_pool(db.clone()), async |db| {
            let tx = db.tx();
            insert_item(&tx, "held").await;
            Response::new(Body::new(tx.hold_until_body_end(Body::from("all"))))
        });
        let body = axum::body::to_bytes(answer.await.into_body(), 10)
            .await
            .unwrap();
        assert_eq!(
            (&body[..], count_items(&db, "held").await),
            (&b"all"[..], 1),
            "{kind:?}"
        );
        assert_whole(&test, &db, 2).await;
    }
}

#[tokio::test]
async fn nothing_goes_past_a_tests_transaction() {
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let db = test.connect(2).await;
        let outer = TestPool::begin(db.clone()).await.unwrap();
        let pool = outer.pool();
        let past = pool.database();
        assert_eq!(past.get_database_backend(), kind.backend());
        let sql = "CREATE TABLE past (id integer)";
        assert!(past.execute_unprepared(sql).await.is_err(), "{kind:?}");
        assert!(
            past.query_one_raw(Statement::from_string(kind.backend(), "SELECT 1"))
                .await
                .is_err()
        );
        let session = outer.session().await.unwrap();
        insert_item(&session, "within").await;
        drop(session);
        pool.ping().await.unwrap();
        outer.rollback().await.unwrap();
        assert!(
            db.execute_unprepared("DELETE FROM past").await.is_err(),
            "{kind:?}: it was never made"
        );
        assert_whole(&test, &db, 2).await;
    }
}
