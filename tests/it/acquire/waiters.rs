//! G5, G10: waiters that give up cost no connection, and the others are served in order.

use axum::{Router, routing::get};
use futures_util::{future::join_all, poll};
use http::StatusCode;

use crate::support::{
    database::{Kind, TestDb, count_items, insert_item, unique_name},
    futures::after_polls,
    pool::{assert_whole, layer_with, session_layer, session_pool},
    requests::{send, write},
    statements::mark,
    wait::eventually,
};

#[tokio::test]
async fn h12_fifty_queued_requests_share_one_connection() {
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let db = test.connect(1).await;
        let layer = layer_with(&db, |pool| pool.max_pending(50));
        let app = Router::new()
            .route("/write/{name}", get(write))
            .layer(layer);
        let names: Vec<_> = (0..50)
            .map(|_| format!("/write/{}", unique_name()))
            .collect();
        for answer in join_all(names.iter().map(|uri| send(&app, uri))).await {
            assert_eq!(answer.status(), StatusCode::OK, "{kind:?}");
        }
        // One after the other, without a pause: each finds the connection that the last one left.
        for _ in 0..50 {
            assert_eq!(
                send(&app, &format!("/write/{}", unique_name()))
                    .await
                    .status(),
                StatusCode::OK
            );
        }
        assert_whole(&test, &db, 1).await;
    }
}

#[tokio::test]
async fn h22_ten_thousand_cancelled_waits_cost_no_connection() {
    let test = TestDb::new(Kind::Postgres).await;
    let db = test.connect(1).await;
    let pool = session_pool(db.clone());
    let pid = mark(&db).await;

    // While another session holds the connection.
    let holder = pool.session().await.unwrap();
    for _ in 0..10_000 {
        assert!(after_polls(1, pool.session()).await.is_none());
    }
    assert_eq!(pool.status().pending, 0);
    assert_eq!(mark(&*holder).await, pid);
    drop(holder);
    // While it is being fetched from the driver's pool, ping included.
    for round in 0..500 {
        drop(after_polls(1 + round % 3, pool.session()).await);
        for _ in 0..round % 7 {
            tokio::task::yield_now().await;
        }
    }
    let session = pool.session().await.unwrap();
    assert_eq!(mark(&*session).await, pid);
    drop(session);
    assert_whole(&test, &db, 1).await;
    assert_eq!(mark(&db).await, pid);

    // In memory, a connection is the database.
    let test = TestDb::new(Kind::SqliteMemory).await;
    let db = test.connect(1).await;
    insert_item(&db, "survivor").await;
    let app = Router::new()
        .route("/write/{name}", get(write))
        .layer(session_layer(db.clone()));
    for round in 0..2_000 {
        let uri = format!("/write/{}", unique_name());
        drop(after_polls(round % 12, send(&app, &uri)).await);
    }
    assert_eq!(send(&app, "/write/last").await.status(), StatusCode::OK);
    assert_whole(&test, &db, 1).await;
    assert_eq!(count_items(&db, "survivor").await, 1);
}

#[tokio::test]
async fn the_pool_counts_its_waiters() {
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
