//! Waiting for a connection is bounded in number as well as in time, and asking whether the database
//! is there waits for nobody.

use std::time::Duration;

use axum::{Router, routing::any};
use futures_util::future::join_all;
use http::StatusCode;
use sea_orm::{Database, DatabaseConnection};
use tokio::{task::JoinHandle, time::timeout};
use tower_sea_orm::{DbSession, DbSessionLayer, Error, PoolSession, SessionPool};

use crate::support::pool::{pool_with, session_layer, session_pool};
use crate::support::{
    database::{Kind, TestDb},
    pool::assert_whole,
    servers::OwnServer,
    site::{BOUND, Site, call, port_of, retry_after},
    wait::eventually,
    wire::Proxy,
};

/// So long that only a hang would come to it.
const LONG: Duration = Duration::from_secs(600);

fn pool_of(db: &DatabaseConnection) -> SessionPool {
    pool_with(db, |pool| pool.acquire_timeout(LONG))
}

fn pool_for(db: &DatabaseConnection, waiting: u32) -> SessionPool {
    pool_with(db, |pool| pool.acquire_timeout(LONG).max_pending(waiting))
}

async fn take(pool: &SessionPool) -> PoolSession {
    timeout(BOUND, pool.session())
        .await
        .expect("a connection")
        .unwrap()
}

/// So many who wait.
async fn queue(pool: &SessionPool, count: usize) -> Vec<JoinHandle<Result<(), Error>>> {
    let before = pool.status().pending;
    let waiters = (0..count)
        .map(|_| {
            let pool = pool.clone();
            tokio::spawn(async move { pool.session().await.map(drop) })
        })
        .collect();
    eventually("they wait", async || {
        pool.status().pending == before + count
    })
    .await;
    waiters
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
async fn one_more_than_may_wait_is_answered_at_once() {
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
async fn a_request_too_many_is_a_503_with_retry_after() {
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
async fn those_for_whom_there_is_a_connection_do_not_count() {
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

#[tokio::test]
async fn ping_waits_for_nobody_and_tells_down_from_full() {
    for start in [OwnServer::postgres, OwnServer::mysql] {
        let mut server = start();
        let test = TestDb::on(&server).await;
        let db = test.connect(1).await;
        let pool = pool_of(&db);
        let held = take(&pool).await;
        let waiting = queue(&pool, 2).await;
        timeout(BOUND, pool.ping())
            .await
            .expect("an answer")
            .expect("a full pool is no failure");
        waiting.into_iter().for_each(|waiter| waiter.abort());
        drop(held);

        server.stop();
        // The result is up to a second old; that it is down is true for longer than that.
        eventually("it is seen to be down", async || pool.ping().await.is_err()).await;
        let error = pool.ping().await.unwrap_err();
        assert!(error.is_unreachable(), "{error}");
        assert!(!error.to_string().contains("127.0.0.1"), "{error}");
        server.start();
        eventually("it is seen to be up again", async || {
            pool.ping().await.is_ok()
        })
        .await;
        db.close_by_ref().await.unwrap();
        assert!(pool.ping().await.unwrap_err().is_closing());
    }
}

#[tokio::test]
async fn however_many_ping_the_server_sees_few_log_ins() {
    for kind in [Kind::Postgres, Kind::MySql] {
        let test = TestDb::new(kind).await;
        let proxy = Proxy::start(port_of(test.url())).await;
        let db = Database::connect(test.options_at(&proxy.url(test.url()), 2))
            .await
            .unwrap();
        let pool = session_pool(db.clone());
        let before = proxy.accepted();
        // Those who give up leave their attempt to the others.
        for _ in 0..50 {
            let mut ping = Box::pin(pool.ping());
            let _ = futures_util::poll!(&mut ping);
        }
        for answer in join_all((0..200).map(|_| pool.ping())).await {
            answer.unwrap();
        }
        assert_eq!(proxy.accepted() - before, 1, "{kind:?}");
        db.close().await.unwrap();
    }
}

#[tokio::test]
async fn ping_works_without_a_server() {
    for kind in [Kind::SqliteFile, Kind::SqliteMemory] {
        let test = TestDb::new(kind).await;
        let db = test.connect(1).await;
        let layer = session_layer(db.clone());
        let _held = take(layer.pool()).await;
        timeout(BOUND, layer.pool().ping())
            .await
            .expect("an answer")
            .unwrap();
    }
    let mock = sea_orm::MockDatabase::new(sea_orm::DbBackend::Postgres).into_connection();
    session_pool(mock).ping().await.unwrap();
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
fn those_who_have_given_up_are_dropped_under_no_lock() {
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

#[tokio::test]
async fn those_who_share_a_pool_share_its_settings() {
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
