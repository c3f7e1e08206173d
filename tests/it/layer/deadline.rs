//! `DbSessionLayer::deadline`: a request waits for connections no longer than its client does.

use std::time::{Duration, Instant};

use axum::{Router, body::Body, routing::get};
use http::{Request, Response, StatusCode};
use sea_orm::{ConnectionTrait, Statement};
use tower::ServiceExt;
use tower_sea_orm::{DbSession, DbSessionLayer, SessionPool, grpc_timeout};

use crate::support::{
    database::{Kind, TestDb, insert_item, unique_name},
    pool::{assert_whole, pool_with},
    wait::BOUND,
};

async fn call(app: &Router, timeout: &str) -> Response<Body> {
    let request = Request::get("/").header("grpc-timeout", timeout);
    app.clone()
        .oneshot(request.body(Body::empty()).unwrap())
        .await
        .unwrap()
}

fn app(layer: DbSessionLayer) -> Router {
    let write = async |db: DbSession| {
        let done = db.execute_unprepared("SELECT 1").await;
        done.map(drop).map_err(|_| StatusCode::BAD_GATEWAY)
    };
    Router::new().route("/", get(write)).layer(layer)
}

/// A pool of one, whose requests may wait for long.
async fn pool_of_one(test: &TestDb) -> SessionPool {
    pool_with(&test.connect(1).await, |pool| pool.acquire_timeout(BOUND))
}

#[tokio::test]
async fn a_request_waits_no_longer_than_its_deadline() {
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let pool = pool_of_one(&test).await;
        for layer in [
            DbSessionLayer::new(pool.clone()),
            DbSessionLayer::new(pool.clone()).lazy(),
        ] {
            let app = app(layer.deadline(grpc_timeout));
            let held = pool.session().await.unwrap();
            // First: a session that lends would be without its connection after the statement.
            let pin = held.pin();
            insert_item(&held, &unique_name()).await;
            for timeout in ["50m", "0n", "100000u"] {
                let began = Instant::now();
                assert_eq!(
                    call(&app, timeout).await.status(),
                    503,
                    "{kind:?} {timeout}"
                );
                assert!(began.elapsed() < BOUND / 2, "{kind:?} {timeout}");
            }
            drop(pin);
            drop(held);
            // With time, or where none is needed.
            for timeout in ["10S", "99999999H", "0n", "soon", "-1S", "123456789S", ""] {
                crate::support::wait::eventually("it is back", async || pool.status().used == 0)
                    .await;
                if timeout == "0n" {
                    // At hand is what it may take, and on a busy machine that is a moment later.
                    crate::support::wait::eventually("it needs no time", async || {
                        call(&app, timeout).await.status() == 200
                    })
                    .await;
                    continue;
                }
                assert_eq!(
                    call(&app, timeout).await.status(),
                    200,
                    "{kind:?} {timeout}"
                );
            }
        }
        assert_whole(&test, pool.database(), 1).await;
    }
}

#[tokio::test]
async fn where_statements_are_limited_the_deadline_limits_them() {
    let test = TestDb::new(Kind::Postgres).await;
    let db = test.connect(2).await;
    let limit = get(async |db: DbSession| {
        let sql = "SELECT setting FROM pg_settings WHERE name = 'statement_timeout'";
        let row = db
            .query_one_raw(Statement::from_string(db.backend(), sql))
            .await;
        let row = row.ok().flatten();
        row.map(|row| row.try_get::<String>("", "setting").unwrap())
            .unwrap_or_default()
    });
    for (own, timeout, expected) in [
        (Some(10_000), "3S", "3000"),
        (Some(10_000), "30S", "10000"),
        (Some(10_000), "soon", "10000"),
        (Some(10_000), "0n", "1"),
        (Some(0), "3S", "3000"),
        (Some(0), "soon", "0"),
        (None, "3S", "0"),
    ] {
        let mut layer = DbSessionLayer::new(db.clone()).deadline(grpc_timeout);
        if let Some(own) = own {
            layer = layer.statement_timeout(Duration::from_millis(own));
        }
        let app = Router::new().route("/", limit.clone()).layer(layer);
        let response = call(&app, timeout).await;
        let body = axum::body::to_bytes(response.into_body(), 100)
            .await
            .unwrap();
        // One millisecond may be too short for the statement itself.
        let is_short = expected == "1" && body.is_empty();
        assert!(body == expected || is_short, "{own:?} {timeout}: {body:?}");
    }
}
