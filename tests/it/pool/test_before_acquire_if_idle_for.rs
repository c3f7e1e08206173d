//! G17: `test_before_acquire_if_idle_for`: what a request costs that comes seldom, and what that must not cost others.

use std::time::Duration;

use axum::{
    Router,
    routing::{MethodRouter, any},
};
use futures_util::future::join_all;
use sea_orm::{ConnectionTrait, Database};
use tokio::time::timeout;
use tower_sea_orm::{DbSession, DbSessionLayer, DbTx, SessionPool};

use crate::support::{
    database::{Kind, SERVERS, TestDb},
    pool::{assert_whole, pool_with, returned},
    site::{BOUND, Site, call},
    wait::eventually,
};

/// Longer than a connection is trusted with what cannot be run again.
const PAUSE: Duration = Duration::from_millis(1100);

const PAUSES: [Duration; 4] = [
    Duration::from_millis(50),
    Duration::from_millis(500),
    Duration::from_millis(1500),
    Duration::from_secs(3),
];

const MINUTE: Duration = Duration::from_secs(60);

const ROUNDS: u64 = 3;

async fn read(db: DbSession) {
    db.execute_unprepared("SELECT count(*) FROM item")
        .await
        .unwrap();
}

async fn write(db: DbSession) {
    db.execute_unprepared("UPDATE item SET hits = hits + 1")
        .await
        .unwrap();
}

async fn write_in_transaction(tx: DbTx) {
    tx.execute_unprepared("UPDATE item SET hits = hits + 1")
        .await
        .unwrap();
}

/// Returns how many round trips `ROUNDS` requests cause before their answers, if there is a pause before each.
async fn seldom(kind: Kind, pause: Duration, fresh: Duration, route: MethodRouter) -> u64 {
    let (site, proxy) = Site::behind_a_proxy(kind).await;
    let site = site.pooled(|pool| {
        pool.direct_handoff(true)
            .test_before_acquire_if_idle_for(fresh)
    });
    let pool = site.layer.pool().clone();
    let app = Router::new().route("/", route).layer(site.layer.clone());
    assert_eq!(call(app.clone()).await.status(), 200);
    let mut counts = Vec::new();
    // More than once: on a busy machine, the server is asked about a read that takes long.
    for _ in 0..3 {
        let mut before = 0;
        for _ in 0..ROUNDS {
            returned(&pool).await;
            let is_settled = async || fresh > pause || pool.status().idle == 0;
            eventually("it is where it stays", is_settled).await;
            tokio::time::sleep(pause).await;
            proxy.reset_count();
            assert_eq!(call(app.clone()).await.status(), 200);
            before += proxy.requests();
        }
        counts.push(before);
    }
    counts.into_iter().min().unwrap_or_default()
}

/// `tests/run comes_seldom --no-capture` prints the figures.
#[tokio::test]
#[allow(clippy::print_stdout)]
async fn a_request_that_comes_seldom_pays_for_its_own_statements_only() {
    for kind in SERVERS {
        let reads = PAUSES.map(|pause| async move {
            let before = seldom(kind, pause, MINUTE, any(read)).await;
            println!(
                "{kind:?}, a read every {pause:?}: {before} round trips before {ROUNDS} answers"
            );
            assert_eq!(before, ROUNDS, "{kind:?}");
        });
        join_all(reads).await;
        let (transactions, writes, tested) = tokio::join!(
            seldom(kind, PAUSE, MINUTE, any(write_in_transaction)),
            // It might happen twice, so it is not risked on a connection that may be dead.
            seldom(kind, PAUSE, MINUTE, any(write)),
            seldom(kind, PAUSE, Duration::ZERO, any(read)),
        );
        let expected = (3 * ROUNDS, 2 * ROUNDS, 2 * ROUNDS);
        assert_eq!((transactions, writes, tested), expected, "{kind:?}");
    }
}

/// Whose connections are known to sqlx alone.
#[tokio::test]
async fn users_of_the_plain_pool_get_a_connection_that_sessions_keep() {
    for kind in [Kind::Postgres, Kind::MySql, Kind::SqliteFile] {
        let test = TestDb::new(kind).await;
        let db = test.connect(2).await;
        let pool = pool_with(&db, |pool| {
            pool.direct_handoff(true)
                .test_before_acquire_if_idle_for(Duration::from_secs(60))
        });
        let plain = hold(&db).await;
        drop(pool.session().await.unwrap());
        timeout(BOUND / 2, db.execute_unprepared("SELECT 1"))
            .await
            .expect("a connection")
            .unwrap();
        drop((plain, pool));
        assert_whole(&test, &db, 2).await;
    }
}

/// Keeps one of the pool's connections.
async fn hold(db: &sea_orm::DatabaseConnection) -> sea_orm::DatabaseTransaction {
    use sea_orm::TransactionTrait;
    db.begin().await.unwrap()
}

#[tokio::test]
async fn idle_connections_stay_for_a_tenth_of_the_idle_timeout_at_most() {
    for kind in SERVERS {
        let test = TestDb::new(kind).await;
        let mut options = test.options(4);
        options
            .idle_timeout(Duration::from_secs(2))
            .max_lifetime(Duration::from_secs(3600));
        let db = Database::connect(options).await.unwrap();
        let pool = SessionPool::new(db.clone());
        drop(join_all((0..3).map(|_| pool.session())).await);
        // By default it would be half a minute.
        let soon = async || pool.status().idle == 0;
        timeout(Duration::from_secs(20), eventually("they are back", soon))
            .await
            .expect("long before the default");
        assert_whole(&test, &db, 4).await;
        let layer = DbSessionLayer::new(pool);
        assert_eq!(
            call(Router::new().route("/", any(read)).layer(layer))
                .await
                .status(),
            200
        );
    }
}

#[tokio::test]
async fn a_closing_pool_gives_back_what_it_keeps() {
    for kind in SERVERS {
        let test = TestDb::new(kind).await;
        let db = test.connect(3).await;
        let pool = SessionPool::new(db.clone());
        drop(join_all((0..2).map(|_| pool.session())).await);
        assert_eq!(pool.status().idle, 2, "{kind:?}");
        assert_eq!(pool.close(BOUND).await, 0);
        assert_eq!(pool.status().idle, 0, "{kind:?}");
        let other = test.connect(3).await;
        let pool = SessionPool::new(other.clone());
        drop(pool.session().await.unwrap());
        drop(pool);
        // Without its pool, it is the driver's again at once.
        assert_whole(&test, &other, 3).await;
    }
}
