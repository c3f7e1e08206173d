//! `DbSessionLayer::deadline`: a request waits for connections no longer than its client does.

use std::time::{Duration, Instant};

use axum::{Router, body::Body, routing::get};
use futures_util::future::join_all;
use http::{Request, Response, StatusCode};
use sea_orm::{ConnectionTrait, Statement};
use tower::ServiceExt;
use tower_sea_orm::{DbSession, DbSessionLayer, SessionPool, grpc_timeout};

use crate::support::{
    database::{Kind, TestDb, insert_item, unique_name},
    pool::{assert_whole, pool_with},
    site::Site,
    wait::{BOUND, eventually},
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
                eventually("it is back", async || pool.status().used == 0).await;
                if timeout == "0n" {
                    // At hand is what it may take, and on a busy machine that is a moment later.
                    eventually("it needs no time", async || {
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

/// Its own connection is dead when it begins, and no other one can be opened.
#[tokio::test]
async fn a_session_waits_for_another_connection_no_longer_than_its_deadline() {
    for kind in [Kind::Postgres, Kind::MySql] {
        let (site, proxy) = Site::behind_a_proxy(kind).await;
        let site = site.pooled(|pool| {
            pool.acquire_timeout(BOUND)
                .direct_handoff(true)
                .test_before_acquire_if_idle_for(BOUND)
        });
        let layer = site.layer.clone().deadline(grpc_timeout);
        for (name, layer) in [
            ("eager", layer.clone()),
            ("lazy", layer.clone().lazy()),
            ("in a transaction", layer.transaction()),
        ] {
            let app = app(layer);
            // Now and then, one visits the driver's pool instead.
            let pool = site.layer.pool();
            eventually("all are idle", async || {
                let sessions = join_all((0..site.size).map(|_| pool.session())).await;
                drop(sessions);
                pool.status().idle == site.size as usize
            })
            .await;
            proxy.mute(true);
            proxy.cut();
            eventually("it is closed", async || proxy.connections() == 0).await;
            // A connection that was used in the last millisecond does not count as rested.
            tokio::time::sleep(Duration::from_millis(2)).await;
            let began = Instant::now();
            let status = call(&app, "100m").await.status();
            assert_ne!(status, 200, "{kind:?}, {name}");
            assert!(began.elapsed() < BOUND / 2, "{kind:?}, {name}");
            proxy.mute(false);
            // The driver waits for the answer to its log-in as long as it waits at all.
            proxy.cut();
            eventually("it serves again", async || {
                call(&app, "").await.status() == 200
            })
            .await;
        }
        // Its idle connections go back with the pool.
        let site = site.pooled(|pool| pool);
        site.assert_whole().await;
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
