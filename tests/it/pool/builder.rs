//! G11: `SessionPoolBuilder`: every setting takes every `Duration`, and the settings are shared by all clones.

use std::time::Duration;

use futures_util::FutureExt;
use sea_orm::ConnectionTrait;
use tokio::time::timeout;
use tower_sea_orm::DbSessionLayer;

use crate::support::{
    database::{Kind, SERVERS, TestDb},
    pool::{assert_whole, pool_with, session_pool},
    queue::{queue, take},
    site::BOUND,
    wait::{LONG, eventually},
};

#[tokio::test]
async fn every_duration_is_fine_for_every_setting_and_for_close() {
    for time in [
        Duration::MAX,
        Duration::MAX - Duration::from_secs(1),
        Duration::ZERO,
    ] {
        for kind in Kind::ALL {
            let test = TestDb::new(kind).await;
            let db = test.connect(2).await;
            let hold = time.max(Duration::from_secs(3600));
            let pool = pool_with(&db, |pool| {
                let pool = pool
                    .release_timeout(time)
                    .commit_timeout(time)
                    .hold_slow_threshold(hold)
                    .hold_timeout(hold);
                if time.is_zero() {
                    pool
                } else {
                    pool.acquire_timeout(time)
                }
            });
            let held = pool.session().await.unwrap();
            held.execute_unprepared("SELECT 1").await.unwrap();
            let closing = tokio::spawn({
                let pool = pool.clone();
                async move { pool.close(Duration::ZERO).await }
            });
            eventually("it is cut off", async || {
                held.execute_unprepared("SELECT 1").await.is_err()
            })
            .await;
            drop(held);
            timeout(BOUND, closing)
                .await
                .expect("it closes")
                .expect("no panic");
            assert_eq!(
                timeout(BOUND, pool.close(time))
                    .await
                    .expect("it is closed"),
                0
            );
        }
    }
}

#[test]
fn nothing_panics_without_a_runtime() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for kind in SERVERS {
        let (test, pool) = runtime.block_on(async {
            let test = TestDb::new(kind).await;
            let pool = session_pool(test.connect(2).await);
            (test, pool)
        });
        let error = pool
            .ping()
            .now_or_never()
            .expect("an answer at once")
            .unwrap_err();
        assert!(error.to_string().contains("runtime"), "{error}");
        assert!(
            pool.session()
                .now_or_never()
                .expect("an answer at once")
                .is_err()
        );
        assert_eq!(pool.close(Duration::from_secs(1)).now_or_never(), Some(0));
        assert!(pool.is_closed());
        runtime.block_on(async { drop(test) });
    }
}

#[tokio::test]
async fn clones_of_a_pool_share_its_settings() {
    let test = TestDb::new(Kind::Postgres).await;
    let db = test.connect(4).await;
    let pool = pool_with(&db, |pool| {
        pool.reserved_connections(3).acquire_timeout(LONG)
    });
    let layer = DbSessionLayer::new(pool.clone());
    assert_eq!((pool.status().max, layer.pool().status().max), (1, 1));
    let job = take(&pool).await;
    // A job that waits is no obstacle for the layer's requests behind it, nor they for it.
    let waiters = queue(&pool, 1)
        .await
        .into_iter()
        .chain(queue(layer.pool(), 1).await);
    let waiters: Vec<_> = waiters.collect();
    assert_eq!(pool.status().used, 1);
    drop(job);
    for waiter in waiters {
        timeout(BOUND, waiter)
            .await
            .expect("a turn")
            .unwrap()
            .unwrap();
    }
    assert_whole(&test, &db, 4).await;
}
