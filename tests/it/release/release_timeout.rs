//! G4: a connection that is not clean within the `release_timeout` is closed, and its slot is free.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use http::StatusCode;
use sea_orm::{ConnectionTrait, Statement, StreamTrait, TransactionTrait};
use tokio::time::{sleep, timeout};
use tower_sea_orm::{DbSession, SessionPool};

use crate::support::{
    database::{Kind, TestDb, count_items, insert_item},
    pool::{assert_whole, pool_with},
    requests::RELEASE,
    servers::OwnServer,
    wait::{BOUND, eventually},
};

/// More rows than anybody could read while a test runs, as fast as they are read.
fn endless(kind: Kind) -> &'static str {
    match kind {
        Kind::Postgres => "SELECT generate_series(1, 2000000000), 'much'",
        Kind::MySql => "SELECT a.seq, 'much' FROM seq_1_to_1000000 a, seq_1_to_1000000 b",
        _ => {
            "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t) SELECT n, 'much' FROM t"
        }
    }
}

async fn read(db: &DbSession, way: usize, sql: &str) {
    let statement = Statement::from_string(db.backend(), sql);
    match way {
        0 => drop(db.query_one_raw(statement).await),
        1 => drop(db.query_all_raw(statement).await),
        2 => drop(db.execute_raw(statement).await),
        3 => drop(db.execute_unprepared(sql).await),
        4 => {
            let mut rows = db.stream_raw(statement).await.unwrap();
            while rows.next().await.is_some() {}
        }
        // Dropped after its first row.
        _ => drop(db.stream_raw(statement).await.unwrap().next().await),
    }
}

async fn is_left_alone(pool: &SessionPool, kind: Kind, way: usize, inside: bool) {
    let session = pool.session().await.unwrap();
    let tx = if inside {
        Some(session.begin().await.unwrap())
    } else {
        None
    };
    let sql = endless(kind);
    let reading = async {
        match &tx {
            Some(tx) => drop(
                tx.query_one_raw(Statement::from_string(tx.backend(), sql))
                    .await,
            ),
            None => read(&session, way, sql).await,
        }
        // What was read to its end, or given up, is waited for as well.
        sleep(Duration::from_millis(100)).await;
    };
    // Heard only if the thread is let go.
    let _ = timeout(Duration::from_millis(100), reading).await;
    drop(tx);
    drop(session);
    eventually("the connection is free again", async || {
        pool.status().used == 0
    })
    .await;
}

#[tokio::test]
async fn an_unwanted_result_is_abandoned_within_the_release_timeout() {
    for kind in [Kind::Postgres, Kind::MySql, Kind::SqliteFile] {
        for cancels in [false, true] {
            let test = TestDb::new(kind).await;
            let db = test.connect(2).await;
            let pool = pool_with(&db, |pool| {
                let pool = pool.release_timeout(Duration::from_millis(300));
                if cancels { pool.cancel_running() } else { pool }
            });
            for way in 0..6 {
                is_left_alone(&pool, kind, way, false).await;
            }
            is_left_alone(&pool, kind, 0, true).await;
            assert_whole(&test, &db, 2).await;
        }
    }
}

#[tokio::test]
async fn a_statement_that_goes_on_in_sqlites_thread_keeps_no_slot() {
    let test = TestDb::new(Kind::SqliteFile).await;
    let db = test.connect(1).await;
    let pool = pool_with(&db, |pool| pool.release_timeout(RELEASE));
    let observer = test.observer().await.unwrap();
    for inside in [false, true] {
        let lock = observer.begin().await.unwrap();
        insert_item(&lock, "first").await;
        let session = pool.session().await.unwrap();
        let waiting = async {
            if inside {
                let tx = session.begin().await.unwrap();
                insert_item(&tx, "second").await;
                tx.commit().await.unwrap();
            } else {
                insert_item(&*session, "second").await;
            }
        };
        assert!(timeout(Duration::from_millis(200), waiting).await.is_err());
        drop(session);
        let dropped = Instant::now();
        let next = pool.session().await.unwrap();
        assert_eq!(count_items(&*next, "first").await, 0);
        // sqlx would wait for 5 s.
        assert!(dropped.elapsed() < Duration::from_secs(4), "{inside}");
        lock.rollback().await.unwrap();
        if !inside {
            eventually("the write has run to its end", async || {
                count_items(&*next, "second").await == 1
            })
            .await;
            next.execute_unprepared("DELETE FROM item").await.unwrap();
        }
    }
    drop(observer);
    assert_whole(&test, &db, 1).await;
}

#[tokio::test]
async fn h2_a_hung_server_does_not_keep_a_returning_connections_slot() {
    for server in [OwnServer::postgres(), OwnServer::mysql()] {
        let test = TestDb::on(&server).await;
        let db = test.connect(2).await;
        let pool = pool_with(&db, |pool| {
            pool.release_timeout(RELEASE)
                .acquire_timeout(Duration::from_secs(5))
        });

        let clean = pool.session().await.unwrap();
        clean.ping().await.unwrap();
        let dirty = pool.session().await.unwrap();
        let tx = dirty.begin().await.unwrap();
        insert_item(&tx, "dirty").await;
        server.freeze();
        let frozen = Instant::now();
        drop(clean);
        drop(tx);
        drop(dirty);
        eventually("the slots are free", async || pool.status().used == 0).await;
        assert!(frozen.elapsed() >= RELEASE, "closed before its time");

        let refused = timeout(BOUND, pool.session()).await;
        let error = refused
            .expect("an answer in bounded time")
            .expect_err("the server is frozen");
        assert_eq!(error.status(), StatusCode::SERVICE_UNAVAILABLE);

        server.thaw();
        eventually("sessions work again", async || match pool.session().await {
            Ok(session) => session.ping().await.is_ok(),
            Err(_) => false,
        })
        .await;
        assert_whole(&test, &db, 2).await;
        assert_eq!(count_items(&db, "dirty").await, 0);
    }
}
