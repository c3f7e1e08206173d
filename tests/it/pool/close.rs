//! G10, G11: `SessionPool::close` refuses new sessions, gives open ones some time, and then cuts them off.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    response::Response,
    routing::any,
};
use futures_util::{StreamExt, poll};
use http::StatusCode;
use http_body_util::BodyExt;
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DbBackend, MockDatabase, MockExecResult, TransactionError,
};
use tokio::{sync::Notify, time::timeout};
use tower_sea_orm::{DbSession, DbSessionLayer, DbTx, Error, SessionPool};

use crate::support::{
    database::{Kind, TestDb, count_items, insert_item},
    pool::{assert_nothing_left, pool_with, session_pool},
    site::{BOUND, Site, call, known, retry_after},
    statements::running,
    wait::eventually,
};

/// Closes the pool, which must not hang.
async fn close(pool: &SessionPool, within: Duration) -> usize {
    timeout(BOUND, pool.close(within))
        .await
        .expect("closed, not hung")
}

/// Returns how many items of this name there are, for those who come later.
async fn left(test: &TestDb, name: &str) -> Option<i64> {
    Some(count_items(&test.observer().await?, name).await)
}

fn mock() -> DatabaseConnection {
    let done = MockExecResult {
        last_insert_id: 0,
        rows_affected: 1,
    };
    MockDatabase::new(DbBackend::Postgres)
        .append_exec_results(vec![done; 10])
        .into_connection()
}

async fn assert_closed(pool: &SessionPool) {
    assert!(pool.is_closed());
    assert!(pool.session().await.unwrap_err().is_closing());
    let job = pool.transaction(async |_| Ok::<_, Infallible>(())).await;
    let Err(TransactionError::Connection(error)) = job else {
        panic!("not refused")
    };
    assert!(Error::of(&error).unwrap().is_closing());
    for lazy in [false, true] {
        let called = Arc::new(AtomicUsize::new(0));
        let calls = called.clone();
        let layer = DbSessionLayer::new(pool.clone());
        let layer = if lazy { layer.lazy() } else { layer };
        let app = Router::new().route(
            "/",
            any(async move || calls.fetch_add(1, Ordering::SeqCst).to_string()),
        );
        let response = call(app.layer(layer)).await;
        assert_eq!(response.status(), 503, "lazy {lazy}");
        assert!(retry_after(&response).is_some());
        assert_eq!(called.load(Ordering::SeqCst), 0);
    }
}

#[tokio::test]
async fn a_closed_pool_refuses_sessions_and_requests_at_once() {
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let db = test.connect(3).await;
        let pool = session_pool(db.clone());
        assert!(!pool.is_closed());
        // Connections are warm: the driver's pool would wait for them.
        drop(pool.session().await.unwrap());
        assert_eq!(close(&pool, BOUND).await, 0);
        assert_closed(&pool).await;
        assert!(
            db.ping().await.is_err(),
            "{kind:?}: the driver's pool is closed as well"
        );
        assert_eq!(pool.status().idle, 0);
        assert_eq!(close(&pool, BOUND).await, 0, "{kind:?}: a second time");
        assert_nothing_left(&test).await;
    }
    let pool = session_pool(mock());
    drop(pool.session().await.unwrap());
    assert_eq!(close(&pool, BOUND).await, 0);
    assert_closed(&pool).await;
}

#[tokio::test]
async fn closing_the_drivers_pool_keeps_its_meaning() {
    let test = TestDb::new(Kind::Postgres).await;
    let db = test.connect(3).await;
    let pool = session_pool(db.clone());
    drop(pool.session().await.unwrap());
    db.close_by_ref().await.unwrap();
    assert!(pool.is_closed());
    assert!(pool.session().await.unwrap_err().is_closing());
    assert_eq!(close(&pool, BOUND).await, 0);
}

#[tokio::test]
async fn sessions_that_have_begun_may_go_on() {
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let db = test.connect(1).await;
        let pool = session_pool(db.clone());
        let (gate, inside) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
        let app = |layer: DbSessionLayer, name: &'static str| {
            let (gate, inside) = (gate.clone(), inside.clone());
            let handler = async move |tx: DbTx| {
                // One that has run nothing would lend.
                if name == "holds" {
                    insert_item(&tx, "used").await;
                }
                inside.fetch_add(1, Ordering::SeqCst);
                gate.notified().await;
                insert_item(&tx, name).await;
            };
            Router::new().route("/", any(handler)).layer(layer)
        };
        let layer = DbSessionLayer::new(pool.clone());
        let holds = tokio::spawn(call(app(layer.clone(), "holds")));
        let lazy = tokio::spawn(call(app(layer.clone().lazy(), "lazy")));
        eventually("they are there", async || {
            inside.load(Ordering::SeqCst) == 2
        })
        .await;
        let waits = tokio::spawn(call(app(layer, "waits")));
        eventually("it waits", async || pool.status().pending == 1).await;
        let closing = tokio::spawn({
            let pool = pool.clone();
            async move { close(&pool, Duration::from_secs(60)).await }
        });
        eventually("it is closing", async || pool.is_closed()).await;
        assert!(pool.session().await.unwrap_err().is_closing(), "{kind:?}");
        // One permit is kept for the one that waits.
        gate.notify_waiters();
        gate.notify_one();
        for request in [holds, lazy, waits] {
            assert_eq!(
                timeout(BOUND, request).await.unwrap().unwrap().status(),
                200,
                "{kind:?}"
            );
        }
        assert_eq!(closing.await.unwrap(), 0, "{kind:?}");
        assert_closed(&pool).await;
        for name in ["holds", "lazy", "waits"] {
            assert_ne!(left(&test, name).await, Some(0), "{kind:?}: {name}");
        }
        assert_nothing_left(&test).await;
    }
}

#[tokio::test]
async fn closing_cuts_off_slow_sessions_and_waiters() {
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let db = test.connect(1).await;
        let pool = session_pool(db.clone());
        let (handler_pool, inserted) = (pool.clone(), Arc::new(Notify::new()));
        let handler_inserted = inserted.clone();
        let handler = async move |tx: DbTx| {
            insert_item(&tx, "lost").await;
            handler_inserted.notify_one();
            eventually("it is closed", async || tx.is_closed()).await;
            let error = known(tx.execute_unprepared("SELECT 1").await);
            assert!(error.is_closing() && error.status() == 503);
            eventually("it holds none", async || handler_pool.status().used == 0).await;
        };
        let app = Router::new()
            .route("/", any(handler))
            .layer(DbSessionLayer::new(pool.clone()));
        let holds = tokio::spawn(call(app.clone()));
        timeout(BOUND, inserted.notified())
            .await
            .expect("it holds one");
        let waits = tokio::spawn(call(app));
        eventually("it waits", async || pool.status().pending == 1).await;
        assert_eq!(close(&pool, Duration::from_millis(50)).await, 2, "{kind:?}");
        for request in [holds, waits] {
            let response = timeout(BOUND, request).await.unwrap().unwrap();
            assert_eq!(response.status(), 503, "{kind:?}: nothing was committed");
            assert!(retry_after(&response).is_some(), "{kind:?}");
        }
        assert_ne!(left(&test, "lost").await, Some(1), "{kind:?}");
        assert_eq!(close(&pool, BOUND).await, 0);
        assert_nothing_left(&test).await;
    }
}

#[tokio::test]
async fn closing_ends_running_statements_and_keeps_what_was_committed() {
    for kind in [Kind::Postgres, Kind::MySql] {
        let test = TestDb::new(kind).await;
        let db = test.connect(2).await;
        let pool = pool_with(&db, |pool| pool.release_timeout(Duration::from_millis(300)));
        let handler = async |db: DbSession| {
            insert_item(&db, "kept").await;
            let slow = if db.backend() == DbBackend::Postgres {
                "SELECT pg_sleep(60)"
            } else {
                "SELECT SLEEP(60)"
            };
            assert!(known(db.execute_unprepared(slow).await).is_closing());
            StatusCode::INTERNAL_SERVER_ERROR
        };
        let app = Router::new()
            .route("/", any(handler))
            .layer(DbSessionLayer::new(pool.clone()));
        let request = tokio::spawn(call(app));
        let observer = test.observer().await.unwrap();
        // Not only the INSERT's effect: its answer is still on its way then.
        eventually("it runs", async || running(&observer, "sleep(").await == 1).await;
        assert_eq!(count_items(&observer, "kept").await, 1, "{kind:?}");
        assert_eq!(close(&pool, Duration::ZERO).await, 1, "{kind:?}");
        let response = timeout(BOUND, request).await.unwrap().unwrap();
        assert_eq!(
            (response.status(), retry_after(&response)),
            (StatusCode::SERVICE_UNAVAILABLE, None),
            "{kind:?}"
        );
        assert_eq!(left(&test, "kept").await, Some(1));
        // The server itself is still asleep.
        assert_eq!(pool.status().used, 0);
    }
}

#[tokio::test]
async fn a_commit_that_was_sent_is_seen_through_by_a_closing_pool() {
    for kind in [Kind::Postgres, Kind::MySql] {
        let (site, proxy) = Site::behind_a_proxy(kind).await;
        let (proxy, committing) = (Arc::new(proxy), Arc::new(Notify::new()));
        let pool = site.layer.pool().clone();
        let app = site.app({
            let (proxy, committing) = (proxy.clone(), committing.clone());
            async move |tx: DbTx| {
                insert_item(&tx, "kept").await;
                proxy.delay_replies(Duration::from_secs(1));
                committing.notify_one();
            }
        });
        let request = tokio::spawn(call(app));
        committing.notified().await;
        eventually("the COMMIT took effect", async || {
            site.count("kept").await == 1
        })
        .await;
        assert_eq!(close(&pool, Duration::ZERO).await, 0, "{kind:?}");
        assert_eq!(
            timeout(BOUND, request).await.unwrap().unwrap().status(),
            200,
            "{kind:?}"
        );
        assert_nothing_left(&site.test).await;
    }
}

#[tokio::test]
async fn a_held_body_breaks_when_the_pool_closes() {
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let pool = session_pool(test.connect(2).await);
        let gate = Arc::new(Notify::new());
        let handler_gate = gate.clone();
        let handler = async move |db: DbTx| {
            insert_item(&db, "lost").await;
            let parts = futures_util::stream::iter(0..2).then(move |part| {
                let gate = handler_gate.clone();
                async move {
                    if part == 1 {
                        gate.notified().await;
                    }
                    Ok::<_, Infallible>(Bytes::from_static(b"part"))
                }
            });
            Response::new(Body::new(db.hold_until_body_end(Body::from_stream(parts))))
        };
        let app = Router::new()
            .route("/", any(handler))
            .layer(DbSessionLayer::new(pool.clone()));
        let response = call(app).await;
        assert_eq!(response.status(), 200);
        assert_eq!(close(&pool, Duration::from_millis(20)).await, 1, "{kind:?}");
        gate.notify_one();
        assert!(
            timeout(BOUND, response.into_body().collect())
                .await
                .expect("an end")
                .is_err(),
            "{kind:?}"
        );
        assert_ne!(left(&test, "lost").await, Some(1), "{kind:?}");
        assert_nothing_left(&test).await;
    }
}

#[tokio::test]
async fn a_mocks_sessions_are_cut_off_as_well() {
    let db = mock();
    let pool = session_pool(db.clone());
    let (inside, gate) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (handler_inside, handler_gate) = (inside.clone(), gate.clone());
    let handler = async move |tx: DbTx| {
        tx.execute_unprepared("UPDATE item SET hits = 1")
            .await
            .unwrap();
        handler_inside.notify_one();
        handler_gate.notified().await;
        assert!(known(tx.execute_unprepared("UPDATE item SET hits = 2").await).is_closing());
    };
    let app = Router::new()
        .route("/", any(handler))
        .layer(DbSessionLayer::new(pool.clone()));
    let request = tokio::spawn(call(app));
    inside.notified().await;
    assert_eq!(close(&pool, Duration::from_millis(20)).await, 1);
    gate.notify_one();
    assert_eq!(
        timeout(BOUND, request).await.unwrap().unwrap().status(),
        503
    );
    drop(pool);
    let log = format!("{:?}", db.into_transaction_log());
    assert!(
        log.contains("ROLLBACK") && !log.contains("COMMIT") && !log.contains("hits = 2"),
        "{log}"
    );
}

#[tokio::test]
async fn a_dropped_close_refuses_new_sessions_and_leaves_the_others_alone() {
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let pool = session_pool(test.connect(2).await);
        let session = pool.session().await.unwrap();
        let mut closing = Box::pin(pool.close(Duration::from_secs(60)));
        assert!(poll!(&mut closing).is_pending());
        drop(closing);
        assert!(pool.session().await.unwrap_err().is_closing(), "{kind:?}");
        session.release().await.unwrap();
        session.execute_unprepared("SELECT 1").await.unwrap();
        assert_eq!(close(&pool, Duration::ZERO).await, 1, "{kind:?}");
        assert!(
            known(session.execute_unprepared("SELECT 1").await).is_closing(),
            "{kind:?}"
        );
        assert_nothing_left(&test).await;
    }
}
