//! G4, G5: a transaction dropped around BEGIN or in a statement frees its slot (hazards H1 and H3).

use std::{pin::pin, time::Duration};

use axum::{Router, routing::get};
use futures_util::future::{Either, join_all, select};
use http::StatusCode;
use sea_orm::{ConnectionTrait, Database, DatabaseConnection, Statement, TransactionTrait};
use tokio::time::timeout;
use tower_sea_orm::{DbSession, testing};

use crate::support::{
    database::{Kind, TestDb, count_items, insert_item, unique_name},
    futures::after_polls,
    pool::{assert_whole, layer_with, open_transactions, session_layer, session_pool},
    requests::{Failed, RELEASE, send, write},
    site::port_of,
    wait::eventually,
    wire::Proxy,
};

#[tokio::test]
async fn h1_a_request_cancelled_around_begin_never_poisons_the_pool() {
    for kind in [Kind::Postgres, Kind::MySql] {
        let test = TestDb::new(kind).await;
        let proxy = Proxy::start(port_of(test.url())).await;
        let db = Database::connect(test.options_at(&proxy.url(test.url()), 1))
            .await
            .unwrap();
        let observer = test.observer().await.unwrap();
        let app = Router::new()
            .route(
                "/begin",
                get(async |db: DbSession| {
                    let tx = db.begin().await?;
                    insert_item(&tx, &unique_name()).await;
                    tx.rollback().await.map_err(Failed)
                }),
            )
            .route("/write/{name}", get(write))
            .layer(session_layer(db.clone()));

        proxy.delay_replies(Duration::from_millis(2));
        for round in 0..80 {
            // From before BEGIN is sent until after ROLLBACK is acknowledged.
            let cancelled = Duration::from_micros(150 * round);
            let _ = timeout(cancelled, send(&app, "/begin")).await;
            let name = unique_name();
            assert_eq!(
                send(&app, &format!("/write/{name}")).await.status(),
                StatusCode::OK
            );
            assert_eq!(
                count_items(&observer, &name).await,
                1,
                "{kind:?}: acknowledged, cancelled at {cancelled:?}"
            );
        }
        for polls in 0..20 {
            let _ = after_polls(polls, send(&app, "/begin")).await;
            let name = unique_name();
            assert_eq!(
                send(&app, &format!("/write/{name}")).await.status(),
                StatusCode::OK
            );
            assert_eq!(
                count_items(&observer, &name).await,
                1,
                "{kind:?}: acknowledged, cancelled at poll {polls}"
            );
        }
        assert_eq!(open_transactions(&observer).await, 0);
        proxy.delay_replies(Duration::ZERO);
        assert_whole(&test, &db, 1).await;
    }
}

#[tokio::test]
async fn h3_a_transaction_dropped_in_a_long_statement_frees_its_slot_in_time() {
    for kind in [Kind::Postgres, Kind::MySql] {
        let test = TestDb::new(kind).await;
        let db = test.connect(1).await;
        let observer = test.observer().await.unwrap();
        let layer = layer_with(&db, |pool| pool.release_timeout(RELEASE));
        let pool = layer.pool().clone();
        let app = Router::new()
            .route(
                "/sleep",
                get(async move |db: DbSession| {
                    let tx = db.begin().await?;
                    insert_item(&tx, "dropped").await;
                    let slept = tx.query_one_raw(sleep(kind, 600)).await;
                    slept.map(drop).map_err(Failed)
                }),
            )
            .route("/write/{name}", get(write))
            .layer(layer);

        let request = Box::pin(send(&app, "/sleep"));
        let running = pin!(eventually("the statement runs", async || is_sleeping(
            &observer
        )
        .await));
        let Either::Right(((), request)) = select(request, running).await else {
            panic!("the request ended")
        };
        drop(request);
        eventually("the slot is free", async || pool.status().used == 0).await;
        assert_eq!(send(&app, "/write/next").await.status(), StatusCode::OK);
        // The server has not noticed yet that nobody waits for the statement.
        end_sleeping(&observer).await;
        assert_whole(&test, &db, 1).await;
        assert_eq!(count_items(&observer, "dropped").await, 0);
    }
}

#[tokio::test]
async fn h3m_a_statement_dropped_after_any_number_of_polls_loses_no_permit() {
    let test = TestDb::new(Kind::MySql).await;
    let db = test.connect(1).await;
    let pool = session_pool(db.clone());
    for polls in 1..=18 {
        let session = pool.session().await.unwrap();
        let tx = session.begin().await.unwrap();
        insert_item(&tx, "dropped").await;
        // A text of its own each time: the driver has not prepared it yet.
        let sql = format!("SELECT SLEEP(0.02) AS {}", unique_name());
        drop(
            after_polls(
                polls % 6,
                tx.query_one_raw(Statement::from_string(tx.backend(), sql)),
            )
            .await,
        );
        drop(tx);
        drop(session);
        eventually("the slot is free", async || pool.status().used == 0).await;
        assert_eq!(count_items(&db, "dropped").await, 0);
    }
    assert_whole(&test, &db, 1).await;
}

/// A statement that takes `seconds` on a server.
fn sleep(kind: Kind, seconds: u32) -> Statement {
    let sql = match kind {
        Kind::Postgres => format!("SELECT pg_sleep({seconds})::text"),
        _ => format!("SELECT SLEEP({seconds})"),
    };
    Statement::from_string(kind.backend(), sql)
}

/// Returns whether a session runs [`sleep`] in the observer's database.
async fn is_sleeping(observer: &DatabaseConnection) -> bool {
    let backend = observer.get_database_backend();
    let sql = match backend {
        sea_orm::DbBackend::Postgres => {
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND state = 'active'              AND query LIKE 'SELECT pg_sleep(%'"
        }
        _ => {
            "SELECT 1 FROM information_schema.processlist WHERE db = database() AND info LIKE 'SELECT SLEEP(%'"
        }
    };
    observer
        .query_one_raw(Statement::from_string(backend, sql))
        .await
        .unwrap()
        .is_some()
}

/// Ends the session that runs [`sleep`] in the observer's database.
async fn end_sleeping(observer: &DatabaseConnection) {
    let backend = observer.get_database_backend();
    let end = match backend {
        sea_orm::DbBackend::Postgres => {
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() \
             AND state = 'active' AND query LIKE 'SELECT pg_sleep(%'"
                .to_owned()
        }
        _ => {
            let sleeping = "SELECT CAST(id AS SIGNED) FROM information_schema.processlist \
                            WHERE db = database() AND info LIKE 'SELECT SLEEP(%'";
            let row = observer.query_one_raw(Statement::from_string(backend, sleeping)).await.unwrap();
            let id: i64 = row.expect("it still runs").try_get_by_index(0).unwrap();
            format!("KILL {id}")
        }
    };
    observer.execute_unprepared(&end).await.unwrap();
}

/// G12: a `begin()` that is dropped while it waits for its connection, at the moment at which that arrives.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_begin_dropped_as_its_connection_arrives_opens_nothing() {
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let db = test.connect(1).await;
        let pool = session_pool(db.clone());
        let contenders = (0..6u64).map(|contender| {
            let pool = pool.clone();
            tokio::spawn(async move {
                for round in 0..250u64 {
                    // Spread over the time that the others take.
                    let wait = Duration::from_micros((round * 37 + contender * 411) % 2500);
                    testing::serve(pool.clone(), async |db| {
                        count_items(&db, "none").await;
                        db.release().await.unwrap();
                        let begun = async {
                            let tx = db.begin().await.unwrap();
                            count_items(&tx, "none").await;
                            tx.commit().await.unwrap();
                        };
                        let _ = timeout(wait, begun).await;
                        // Refused if a transaction without a handle is open.
                        count_items(&db, "none").await;
                        http::Response::new(())
                    })
                    .await;
                }
            })
        });
        for contender in join_all(contenders).await {
            contender.unwrap();
        }
        assert_whole(&test, &db, 1).await;
    }
}
