//! G3, G11: a panic rolls back and gives the connection back.

use std::{convert::Infallible, panic::resume_unwind, sync::Arc, thread};

use axum::{
    Router,
    body::Body,
    extract::FromRequest,
    routing::{any, get},
};
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use sea_orm::TransactionTrait;
use tower::ServiceExt;
use tower_http::catch_panic::CatchPanicLayer;
use tower_sea_orm::DbSession;

use crate::support::{
    case::{Doing, Writes, everywhere, half_way},
    database::{Kind, TestDb, count_items, insert_item},
    pool::{assert_whole, session_layer},
    requests::{request, send},
    wait::eventually,
};

/// A handler that panics with a transaction open.
async fn panics(writes: Arc<Writes>, db: DbSession) -> StatusCode {
    let _open = writes.write(&db).await;
    resume_unwind(Box::new("a panic in the handler"))
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

#[tokio::test]
async fn h13_a_panic_rolls_back_and_frees_the_slot() {
    async fn panics(session: DbSession) {
        let tx = session.begin().await.unwrap();
        insert_item(&tx, "panic").await;
        let inner = tx.begin().await.unwrap();
        insert_item(&inner, "inner").await;
        panic!("on purpose");
    }
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let db = test.connect(1).await;
        let layer = session_layer(db.clone());
        let pool = layer.pool().clone();
        let routes = Router::new().route("/", get(panics));
        let outside = routes
            .clone()
            .layer(layer.clone())
            .layer(CatchPanicLayer::new());
        let inside = routes.layer(CatchPanicLayer::new()).layer(layer);
        for app in [outside, inside] {
            assert_eq!(
                send(&app, "/").await.status(),
                StatusCode::INTERNAL_SERVER_ERROR
            );
            eventually("the slot is free", async || pool.status().used == 0).await;
            assert_eq!(count_items(&db, "panic").await, 0, "{kind:?}");
            assert_eq!(count_items(&db, "inner").await, 0, "{kind:?}");
        }
        assert_whole(&test, &db, 1).await;
    }
}
