//! G10, G17: `reserved_connections` and `lazy` for handlers that also use the plain `DatabaseConnection` (H11).

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use axum::{
    Router,
    extract::{Request, State},
    middleware::{Next, from_fn_with_state},
    response::Response,
    routing::{any, get},
};
use futures_util::{StreamExt, future::join_all, stream};
use http::StatusCode;
use sea_orm::{ConnectionTrait, Database, DatabaseConnection};
use tokio::time::timeout;
use tower_sea_orm::{DbSession, DbSessionLayer, DbTx, SessionPool};

use crate::support::{
    database::{Kind, SERVERS, TestDb, insert_item},
    pool::{assert_whole, layer_with, pool_with, session_layer},
    requests::{Failed, send},
    site::call,
    wait::BOUND,
};

#[tokio::test]
async fn h11_a_plain_connection_beside_a_session_is_an_error_not_a_hang() {
    async fn mixed(
        session: DbSession,
        State(plain): State<DatabaseConnection>,
    ) -> Result<(), Failed> {
        plain.execute_unprepared("SELECT 1").await?;
        session.execute_unprepared("SELECT 1").await?;
        Ok(())
    }
    async fn plain_while_released(
        session: DbSession,
        State(plain): State<DatabaseConnection>,
    ) -> Result<(), Failed> {
        session.execute_unprepared("SELECT 1").await?;
        session.release().await?;
        plain.execute_unprepared("SELECT 1").await?;
        session.execute_unprepared("SELECT 1").await?;
        Ok(())
    }
    for kind in [Kind::Postgres, Kind::MySql, Kind::SqliteFile] {
        let test = TestDb::new(kind).await;
        let connect = async |size, acquire_timeout| {
            let mut options = test.options(size);
            options.acquire_timeout(acquire_timeout);
            Database::connect(options).await.unwrap()
        };
        let db = connect(1, Duration::from_secs(3)).await;
        let app = |layer| {
            Router::new()
                .route("/", get(mixed))
                .route("/released", get(plain_while_released))
                .layer(layer)
                .with_state(db.clone())
        };

        let eager = app(session_layer(db.clone()));
        let answer = timeout(BOUND, send(&eager, "/")).await;
        assert_eq!(
            answer.expect("not a hang").status(),
            StatusCode::SERVICE_UNAVAILABLE,
            "{kind:?}"
        );
        assert_eq!(
            send(&eager, "/released").await.status(),
            StatusCode::OK,
            "{kind:?}"
        );

        let lazy = app(session_layer(db.clone()).lazy());
        assert_eq!(send(&lazy, "/").await.status(), StatusCode::OK, "{kind:?}");
        assert_whole(&test, &db, 1).await;

        let two = connect(2, BOUND).await;
        let reserved = Router::new()
            .route("/", get(mixed))
            .layer(layer_with(&two, |pool| pool.reserved_connections(1)))
            .with_state(two.clone());
        for answer in join_all((0..10).map(|_| send(&reserved, "/"))).await {
            assert_eq!(answer.status(), StatusCode::OK, "{kind:?}");
        }
        assert_whole(&test, &two, 2).await;
    }
}

/// A session store that uses the pool of the service: it loads a record before the handler and saves it after.
async fn store(State(pool): State<SessionPool>, request: Request, next: Next) -> Response {
    let load = async || {
        let session = pool.session().await.unwrap();
        session.execute_unprepared("SELECT 1").await.unwrap();
    };
    load().await;
    let response = next.run(request).await;
    load().await;
    response
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_store_on_the_same_pool_costs_no_request() {
    for kind in SERVERS {
        let test = TestDb::new(kind).await;
        let db = test.connect(5).await;
        let pool = pool_with(&db, |pool| pool.acquire_timeout(BOUND));
        let handler = async |tx: DbTx| {
            insert_item(&tx, &crate::support::database::unique_name()).await;
            // Where all can hold a connection, all do before the first of them saves its record.
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        for (inside, lazy) in [(true, true), (true, false), (false, false)] {
            let router = Router::new().route("/", any(handler));
            let store = from_fn_with_state(pool.clone(), store);
            let layer = DbSessionLayer::new(pool.clone());
            let layer = if lazy { layer.lazy() } else { layer };
            let app = if inside {
                router.layer(store).layer(layer)
            } else {
                router.layer(layer).layer(store)
            };
            if inside && !lazy {
                // Where all hold a connection before the store is called, the first one has to show that it wants another.
                assert_eq!(call(app.clone()).await.status(), 200);
            }
            let ok = AtomicUsize::new(0);
            stream::iter(0..100)
                .for_each_concurrent(20, async |_| {
                    let status = call(app.clone()).await.status();
                    ok.fetch_add(usize::from(status == 200), Ordering::Relaxed);
                })
                .await;
            assert_eq!(
                ok.into_inner(),
                100,
                "{kind:?}, inside: {inside}, lazy: {lazy}"
            );
        }
    }
}

#[tokio::test]
async fn fifty_clients_that_mix_sessions_and_plain_connections_are_served() {
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
