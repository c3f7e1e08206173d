//! G2, G10 in `PoolMode::Transaction`: sessions that lend their connection, beside others of the same pool.

use std::time::Duration;

use axum::{
    Router,
    extract::{Request, State},
    middleware::{Next, from_fn_with_state},
    response::Response,
    routing::get,
};
use futures_util::future::join_all;
use http::StatusCode;
use sea_orm::DbErr;
use tokio::time::timeout;
use tower_sea_orm::{DbSession, DbSessionLayer, PoolMode, SessionPool};

use super::{
    lending::{Gate, select},
    pool_mode::{rotating, transaction_mode},
};
use crate::support::{
    database::{Kind, TestDb, insert_item, unique_name},
    pool::{assert_whole, layer_with, pool_with},
    requests::{Failed, send, send_owned},
    wait::{BOUND, eventually},
};

/// The mode of the layer counts, and its sessions share the pool with those of another one.
#[tokio::test]
async fn a_layer_has_its_own_mode() {
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let db = test.connect(1).await;
        let pool = pool_with(&db, |pool| {
            pool.acquire_timeout(Duration::from_millis(200))
                .pool_mode(PoolMode::Session)
        });
        for (mode, answer) in [
            (PoolMode::Transaction, StatusCode::OK),
            (PoolMode::Session, StatusCode::SERVICE_UNAVAILABLE),
        ] {
            for inner in [None, Some(PoolMode::Session), Some(PoolMode::Transaction)] {
                let gate = Gate::new();
                let passed = gate.clone();
                let route = get(async move |db: DbSession| {
                    select(&db).await;
                    passed.pass().await;
                    select(&db).await;
                });
                let mut app = Router::new().route("/", route);
                if let Some(inner) = inner {
                    app = app.layer(DbSessionLayer::new(pool.clone()).pool_mode(inner));
                }
                let app = app.layer(DbSessionLayer::new(pool.clone()).pool_mode(mode));
                let request = tokio::spawn(send_owned(app, "/"));
                gate.reached(1).await;
                let other = Router::new()
                    .route("/", get(async |db: DbSession| select(&db).await))
                    .layer(DbSessionLayer::new(pool.clone()));
                let expected = if inner == Some(PoolMode::Session) {
                    StatusCode::SERVICE_UNAVAILABLE
                } else {
                    answer
                };
                assert_eq!(
                    send(&other, "/").await.status(),
                    expected,
                    "{mode:?} {inner:?}"
                );
                gate.open();
                let answer = timeout(BOUND, request).await.unwrap().unwrap();
                assert_eq!(answer.status(), StatusCode::OK);
            }
        }
    }
}

/// A session that waits for a second one while it may lend the first waits for itself no longer.
#[tokio::test]
async fn a_request_that_takes_a_second_session_between_its_statements_is_served() {
    async fn second(db: DbSession) -> Result<(), Failed> {
        insert_item(&db, &unique_name()).await;
        let session = db.pool().session().await.map_err(DbErr::from)?;
        insert_item(&session, &unique_name()).await;
        insert_item(&db, &unique_name()).await;
        insert_item(&session, &unique_name()).await;
        Ok(())
    }
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let db = test.connect(1).await;
        let layer = layer_with(&db, transaction_mode);
        let app = Router::new().route("/", get(second)).layer(layer);
        let requests = (0..8).map(|_| tokio::spawn(send_owned(app.clone(), "/")));
        for answer in timeout(BOUND, join_all(requests)).await.unwrap() {
            assert_eq!(answer.unwrap().status(), StatusCode::OK);
        }
        assert_whole(&test, &db, 1).await;
    }
}

#[tokio::test]
async fn a_pool_that_closes_waits_for_a_session_that_has_lent() {
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let db = test.connect(1).await;
        let layer = layer_with(&db, rotating);
        let pool: SessionPool = layer.pool().clone();
        let gate = Gate::new();
        let inner = gate.clone();
        let app = Router::new()
            .route(
                "/",
                get(async move |db: DbSession| {
                    select(&db).await;
                    inner.pass().await;
                    select(&db).await;
                }),
            )
            .layer(layer);
        let request = tokio::spawn(send_owned(app, "/"));
        gate.reached(1).await;
        let closing = tokio::spawn(async move { pool.close(BOUND).await });
        eventually("it closes", async || {
            closing.is_finished() || gate.is_reached()
        })
        .await;
        gate.open();
        let answer = timeout(BOUND, request).await.unwrap().unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(timeout(BOUND, closing).await.unwrap().unwrap(), 0);
    }
}

/// A session store on the same pool reads before the handler and writes after it, in sessions of its own.
#[tokio::test]
async fn a_session_store_on_the_same_pool_is_served() {
    async fn store(
        State(pool): State<SessionPool>,
        request: Request,
        next: Next,
    ) -> Result<Response, Failed> {
        let session = pool.session().await.map_err(DbErr::from)?;
        select(&session).await;
        drop(session);
        let response = next.run(request).await;
        let session = pool.session().await.map_err(DbErr::from)?;
        insert_item(&session, &unique_name()).await;
        Ok(response)
    }
    async fn handler(db: DbSession) {
        select(&db).await;
        insert_item(&db, &unique_name()).await;
    }
    for kind in Kind::ALL {
        // The store's layer outside the session's, and inside.
        for outside in [true, false] {
            let test = TestDb::new(kind).await;
            let db = test.connect(5).await;
            let layer = layer_with(&db, transaction_mode);
            let pool = layer.pool().clone();
            let max = pool.status().max;
            let (app, store) = (
                Router::new().route("/", get(handler)),
                from_fn_with_state(pool, store),
            );
            let app = if outside {
                app.layer(layer).layer(store)
            } else {
                app.layer(store).layer(layer)
            };
            let clients = (0..20).map(|_| {
                let app = app.clone();
                tokio::spawn(async move {
                    for _ in 0..5 {
                        assert_eq!(send(&app, "/").await.status(), StatusCode::OK);
                    }
                })
            });
            for client in timeout(BOUND, join_all(clients)).await.unwrap() {
                client.unwrap();
            }
            assert_whole(&test, &db, max).await;
        }
    }
}
