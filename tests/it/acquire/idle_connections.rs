//! G17: idle connections that a firewall has forgotten cost no request.

use std::time::Duration;

use axum::{Router, routing::any};
use futures_util::{FutureExt, future::join_all};
use sea_orm::{ConnectionTrait, Database, Statement};
use tokio::time::timeout;
use tower_sea_orm::{DbSession, DbSessionLayer, DbTx};

use crate::support::{
    database::{Kind, SERVERS, TestDb, insert_item, unique_name},
    network::{all_idle, patient_site, select},
    pool::pool_with,
    site::{BOUND, SIZE, Site, call, port_of, value},
    statements::{lock, running, unlock},
    wait::{LONG, eventually},
    wire::Proxy,
};

#[tokio::test]
async fn forgotten_idle_connections_cost_two_seconds_and_no_request() {
    for kind in SERVERS {
        let (site, proxy) = patient_site(kind).await;
        all_idle(&site).await;
        proxy.silence();
        let answers = timeout(BOUND, join_all((0..2 * SIZE).map(|_| site.call(select)))).await;
        // Without a bound on sqlx's ping each of them takes the driver's whole time-out.
        let answers = answers.expect("answers long before the time-out");
        assert!(
            answers.iter().all(|answer| answer.status() == 200),
            "{kind:?}"
        );
    }
}

/// They are those that sessions keep, which nothing pings. The firewall has forgotten all that were there.
#[tokio::test]
async fn forgotten_connections_of_the_pools_own_cost_about_two_seconds_and_no_request() {
    for kind in SERVERS {
        let (site, proxy) = patient_site(kind).await;
        let site = site.pooled(|pool| {
            pool.direct_handoff(true)
                .acquire_timeout(LONG)
                .test_before_acquire_if_idle_for(LONG)
        });
        let read = async |db: DbSession| select_items(&db).await;
        let write = async |db: DbSession| insert_item(&db, &unique_name()).await;
        let write_in_transaction = async |tx: DbTx| insert_item(&tx, &unique_name()).await;
        let cases = [
            ("read", site.app(read)),
            ("write", site.app(write)),
            ("transaction", site.app(write_in_transaction)),
        ];
        for (name, app) in cases {
            let pool = site.layer.pool();
            drop(join_all((0..SIZE).map(|_| pool.session())).await);
            tokio::time::sleep(Duration::from_millis(1100)).await;
            assert!(pool.status().idle > 0, "{kind:?}, {name}");
            proxy.silence();
            let answers = join_all((0..2).map(|_| call(app.clone())));
            let answers = timeout(BOUND, answers).await.expect("answers");
            assert!(
                answers.iter().all(|answer| answer.status() == 200),
                "{kind:?}, {name}"
            );
        }
        let count: i64 = value(site.view(), "SELECT count(*) FROM item").await;
        assert_eq!(count, 4, "{kind:?}");
        let site = site.pooled(|pool| pool);
        site.assert_whole().await;
    }
}

async fn select_items(db: &DbSession) {
    let count = Statement::from_string(db.backend(), "SELECT count(*) FROM item");
    assert!(db.query_one_raw(count).await.unwrap().is_some());
}

#[tokio::test]
async fn a_read_that_takes_long_on_a_rested_connection_runs_once() {
    let (log, _guard) = crate::log::Log::start();
    for kind in SERVERS {
        let (site, proxy) = patient_site(kind).await;
        let site = site.pooled(|pool| {
            pool.direct_handoff(true)
                .test_before_acquire_if_idle_for(LONG)
        });
        drop(site.layer.pool().session().await.unwrap());
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let other = site.test.connect(2).await;
        let locked = lock(kind, &other).await;
        let (accepted, waits) = (proxy.accepted(), "count(*) FROM item");
        let read = tokio::spawn(call(
            site.app(async |db: DbSession| select_items(&db).await),
        ));
        // The server is asked more than once meanwhile, by a connection beside the pool.
        tokio::time::sleep(Duration::from_millis(3500)).await;
        eventually("it waits", async || running(&other, waits).await == 1).await;
        unlock(kind, locked).await;
        assert_eq!(read.await.unwrap().status(), 200, "{kind:?}");
        assert!(proxy.accepted() > accepted, "{kind:?}: it was not asked");
        assert_eq!(log.count("did not answer"), 0, "{kind:?}");
        let site = site.pooled(|pool| pool);
        site.assert_whole().await;
    }
}

/// With a place for one session only, each silent connection would be found out after the one before.
#[tokio::test]
async fn forgotten_idle_connections_are_noticed_together() {
    const IDLE: u32 = 8;
    for kind in SERVERS {
        let test = TestDb::new(kind).await;
        let proxy = Proxy::start(port_of(test.url())).await;
        let mut options = test.options_at(&proxy.url(test.url()), IDLE);
        options.acquire_timeout(LONG);
        let site = Site::with(test, Database::connect(options).await.unwrap(), IDLE).await;
        let site = site.pooled(|pool| pool.acquire_timeout(LONG));
        all_idle(&site).await;
        let one = pool_with(&site.db, |pool| {
            pool.acquire_timeout(LONG).reserved_connections(IDLE - 1)
        });
        proxy.silence();
        let app = Router::new()
            .route("/", any(select))
            .layer(DbSessionLayer::new(one));
        assert_eq!(call(app).await.status(), 200, "{kind:?}");
    }
}

#[tokio::test]
async fn idle_connections_are_not_pinged_without_test_before_acquire() {
    use sea_orm::sqlx::postgres::PgPoolOptions;
    let test = TestDb::new(Kind::Postgres).await;
    let proxy = Proxy::start(port_of(test.url())).await;
    let options = PgPoolOptions::new()
        .max_connections(3)
        .acquire_timeout(LONG)
        .test_before_acquire(false);
    // A hook that takes its time, as a ping of a connection would that is half-open.
    let options = options.before_acquire(|_, _| {
        async {
            tokio::time::sleep(Duration::from_millis(1500)).await;
            Ok(true)
        }
        .boxed()
    });
    let driver = options.connect(&proxy.url(test.url())).await.unwrap();
    let db = sea_orm::SqlxPostgresConnector::from_sqlx_postgres_pool(driver.clone());
    let all = join_all((0..3).map(|_| driver.acquire())).await;
    drop(all);
    eventually("all are idle", async || driver.num_idle() == 3).await;
    let (requests, accepted) = (proxy.requests(), proxy.accepted());
    let session = pool_with(&db, |pool| pool.acquire_timeout(LONG))
        .session()
        .await
        .unwrap();
    assert_eq!((proxy.requests(), proxy.accepted()), (requests, accepted));
    drop(session);
}
