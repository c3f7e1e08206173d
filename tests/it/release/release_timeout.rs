//! A result that nobody wants keeps neither its thread nor its connection.

use std::time::Duration;

use futures_util::StreamExt;
use sea_orm::{ConnectionTrait, Statement, StreamTrait, TransactionTrait};
use tokio::time::{sleep, timeout};
use tower_sea_orm::{DbSession, SessionPool};

use crate::support::{
    database::{Kind, TestDb},
    pool::{assert_whole, pool_with},
    wait::eventually,
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
async fn a_result_that_nobody_wants_is_given_up_within_the_release_timeout() {
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
