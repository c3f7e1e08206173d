//! G10: waiting for a connection is bounded in number as well as in time.

use axum::{Router, routing::any};
use futures_util::future::join_all;
use http::StatusCode;
use sea_orm::DatabaseConnection;
use tokio::{task::JoinHandle, time::timeout};
use tower_sea_orm::{DbSession, DbSessionLayer, SessionPool};

use crate::support::{
    database::{Kind, TestDb},
    pool::{assert_whole, pool_with},
    queue::{pool_of, queue, take},
    site::{BOUND, Site, call, retry_after},
    wait::{LONG, eventually},
};

fn pool_for(db: &DatabaseConnection, waiting: u32) -> SessionPool {
    pool_with(db, |pool| pool.acquire_timeout(LONG).max_pending(waiting))
}

/// One more is not let in.
async fn assert_crowded(pool: &SessionPool) {
    let refused = timeout(BOUND, pool.session())
        .await
        .expect("an answer at once")
        .map(drop)
        .unwrap_err();
    assert!(
        refused.is_exhausted() && refused.is_retryable(),
        "{refused}"
    );
    assert_eq!(refused.status(), 503);
    assert!(refused.to_string().contains("max_pending"), "{refused}");
}

#[tokio::test]
async fn g10_one_more_than_may_wait_is_answered_at_once() {
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let db = test.connect(2).await;
        let pool = pool_for(&db, 3);
        let held = join_all((0..pool.status().max).map(|_| take(&pool))).await;
        let waiters = queue(&pool, 3).await;
        assert_crowded(&pool).await;

        // Who gives up makes room for another one.
        let mut waiters = waiters.into_iter();
        waiters.next().unwrap().abort();
        eventually("one has gone", async || pool.status().pending == 2).await;
        let another = queue(&pool, 1).await;
        assert_crowded(&pool).await;

        drop(held);
        for waiter in waiters.chain(another) {
            timeout(BOUND, waiter)
                .await
                .expect("a turn")
                .unwrap()
                .unwrap();
        }
        assert_whole(&test, &db, 2).await;
    }
}

#[tokio::test]
async fn one_request_too_many_is_a_503_with_retry_after() {
    for (kind, lazy) in [(Kind::Postgres, false), (Kind::SqliteFile, true)] {
        let site = Site::new(kind).await;
        let size = site.size;
        let site = site.pooled(|pool| pool.max_pending(0).acquire_timeout(LONG));
        let site = if lazy {
            site.layered(DbSessionLayer::lazy)
        } else {
            site
        };
        let held = join_all((0..size).map(|_| take(site.layer.pool()))).await;
        let answer = site
            .call(async |db: DbSession| match db.ping().await {
                Ok(()) => StatusCode::OK,
                Err(_) => StatusCode::INTERNAL_SERVER_ERROR,
            })
            .await;
        assert_eq!(answer.status(), 503, "{kind:?}");
        assert!(["1", "2", "3"].contains(&retry_after(&answer).unwrap()));
        drop(held);
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn requests_that_get_a_connection_at_once_do_not_count() {
    for kind in [Kind::Postgres, Kind::MySql, Kind::SqliteFile] {
        let test = TestDb::new(kind).await;
        let db = test.connect(4).await;
        let pool = pool_for(&db, 0);
        // All at once, none of them warm: four are fetched for.
        let four = timeout(BOUND, join_all((0..4).map(|_| pool.session())))
            .await
            .expect("connections");
        let four: Vec<_> = four.into_iter().collect::<Result<_, _>>().unwrap();
        assert_crowded(&pool).await;
        drop(four);
        assert_whole(&test, &db, 4).await;
    }
}

#[tokio::test]
async fn by_default_twenty_may_wait_for_each_connection() {
    let test = TestDb::new(Kind::Postgres).await;
    let db = test.connect(2).await;
    let pool = pool_of(&db);
    let held = join_all((0..2).map(|_| take(&pool))).await;
    let waiters = queue(&pool, 40).await;
    assert_crowded(&pool).await;
    drop(held);
    for waiter in waiters {
        timeout(BOUND, waiter)
            .await
            .expect("a turn")
            .unwrap()
            .unwrap();
    }
    assert_whole(&test, &db, 2).await;
}

/// Uses its pool when it is dropped, as what a user's closure has captured may do.
struct UsesPool(SessionPool);

impl Drop for UsesPool {
    fn drop(&mut self) {
        let _ = self.0.status();
    }
}

/// A request that waits for its connection, and with it goes a closure of its layer.
fn waiting_request(pool: &SessionPool) -> JoinHandle<StatusCode> {
    let captured = UsesPool(pool.clone());
    let layer = DbSessionLayer::new(pool.clone())
        .lazy()
        .commit_when(move |_| {
            let _ = &captured;
            true
        });
    let handler = async |db: DbSession| {
        if db.ping().await.is_ok() {
            StatusCode::OK
        } else {
            StatusCode::CONFLICT
        }
    };
    let app = Router::new().route("/", any(handler)).layer(layer);
    tokio::spawn(async { call(app).await.status() })
}

async fn give_up_in_every_place(kind: Kind) {
    let test = TestDb::new(kind).await;
    let db = test.connect(1).await;
    let pool = pool_for(&db, 8);
    // Found by one that gives up as well, by one that comes and finds no place, and by a connection on its way.
    for gone in [5, 2, 1] {
        let held = take(&pool).await;
        let mut requests: Vec<_> = (0..8).map(|_| waiting_request(&pool)).collect();
        eventually("they wait", async || pool.status().pending == 8).await;
        requests.iter().take(gone).for_each(JoinHandle::abort);
        eventually("they have gone", async || pool.status().pending == 8 - gone).await;
        if gone > 1 {
            requests.extend((0..gone).map(|_| waiting_request(&pool)));
            eventually("others wait", async || pool.status().pending == 8).await;
        }
        drop(held);
        for request in requests.split_off(gone) {
            assert_eq!(request.await.unwrap(), 200, "{kind:?}");
        }
    }
    assert_whole(&test, &db, 1).await;
}

#[test]
fn waiters_that_gave_up_are_dropped_under_no_lock() {
    // In a thread of its own, which a deadlock stops for good.
    let (sender, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        for kind in [Kind::SqliteFile, Kind::Postgres] {
            runtime.block_on(give_up_in_every_place(kind));
        }
        let _ = sender.send(());
    });
    ended.recv_timeout(BOUND).expect("no lock is held");
}
