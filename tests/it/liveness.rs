//! While the database answers, requests are answered (G17), and every setting takes every `Duration`.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use axum::{
    Router,
    extract::{Request, State},
    middleware::{Next, from_fn_with_state},
    response::Response,
    routing::any,
};
use futures_util::{FutureExt, StreamExt, future::join_all, stream};
use sea_orm::{ConnectionTrait, Database};
use tokio::time::timeout;
use tower_sea_orm::{DbSession, DbSessionLayer, DbTx, SessionPool, testing::TestPool};

use crate::{
    support::{
        database::{Kind, TestDb, insert_item},
        pool::{pool_with, session_pool},
        site::{BOUND, SIZE, Site, call, port_of},
        wait::eventually,
        wire::Proxy,
    },
    telemetry::Log,
};

const SERVERS: [Kind; 2] = [Kind::Postgres, Kind::MySql];

/// Opens all connections of the site and waits until they are idle in the driver's pool.
async fn all_idle(site: &Site) {
    let pool = site.layer.pool();
    let sessions = join_all((0..site.size).map(|_| pool.session())).await;
    assert!(sessions.iter().all(Result::is_ok));
    drop(sessions);
    eventually("all are with the driver", async || pool.status().warm == 0 && pool.status().in_use == 0).await;
}

/// A site behind a proxy whose time-outs are far longer than any test.
async fn patient_site(kind: Kind) -> (Site, Proxy) {
    const LONG: Duration = Duration::from_secs(600);
    let test = TestDb::new(kind).await;
    let proxy = Proxy::start(port_of(test.url())).await;
    let mut options = test.options_at(&proxy.url(test.url()), SIZE);
    options.acquire_timeout(LONG);
    let db = Database::connect(options).await.unwrap();
    let layer = DbSessionLayer::new(pool_with(&db, |pool| pool.acquire_timeout(LONG)));
    (Site::with(test, db, SIZE).await.layered(|_| layer), proxy)
}

async fn select(db: DbSession) {
    db.execute_unprepared("SELECT 1").await.unwrap();
}

#[tokio::test]
async fn idle_connections_that_a_firewall_has_forgotten_cost_two_seconds_and_no_request() {
    for kind in SERVERS {
        let (site, proxy) = patient_site(kind).await;
        all_idle(&site).await;
        proxy.silence();
        let answers = timeout(BOUND, join_all((0..2 * SIZE).map(|_| site.call(select)))).await;
        // Without a bound on sqlx's ping each of them takes the driver's whole time-out.
        let answers = answers.expect("answers long before the time-out");
        assert!(answers.iter().all(|answer| answer.status() == 200), "{kind:?}");
    }
}

#[tokio::test]
async fn connects_that_fail_refuse_no_request_while_connections_work() {
    for kind in SERVERS {
        let (site, proxy) = Site::behind_a_proxy(kind).await;
        let (log, _guard) = Log::start();
        let held = site.layer.pool().session().await.unwrap();
        held.execute_unprepared("SELECT 1").await.unwrap();
        proxy.refuse(true);
        let answers = async { join_all((0..30).map(|_| site.call(select))).await };
        let (answers, ()) = tokio::join!(answers, async {
            eventually("the log says so", async || {
                log.lines().iter().any(|line| line.contains("no further connection can be opened"))
            })
            .await;
            drop(held);
        });
        assert!(answers.iter().all(|answer| answer.status() == 200), "{kind:?}");
        proxy.refuse(false);
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn with_nothing_in_use_a_failed_connect_is_down_for_all_who_wait() {
    let (site, proxy) = Site::behind_a_proxy(Kind::MySql).await;
    site.db.execute_unprepared("SELECT 1").await.unwrap();
    proxy.cut();
    proxy.refuse(true);
    let sessions = join_all((0..9).map(|_| timeout(BOUND, site.layer.pool().session()))).await;
    for session in sessions {
        let error = session.expect("an answer").map(drop).unwrap_err();
        assert!(error.is_down(), "{error}");
    }
}

#[tokio::test]
async fn a_server_with_no_place_left_is_exhausted_and_those_who_wait_get_what_comes_back() {
    let test = TestDb::new(Kind::MySql).await;
    let observer = test.observer().await.unwrap();
    let user = format!("u{}", std::process::id());
    observer.execute_unprepared(&format!("CREATE USER {user} WITH MAX_USER_CONNECTIONS 3")).await.unwrap();
    observer.execute_unprepared(&format!("GRANT ALL ON *.* TO {user}")).await.unwrap();
    let mut options = test.options_at(&test.url().replace("root@", &format!("{user}@")), 8);
    options.connect_lazy(true);
    let db = Database::connect(options).await.unwrap();
    let app = Router::new().route("/", any(select)).layer(DbSessionLayer::new(session_pool(db.clone())));
    for _ in 0..3 {
        let answers = join_all((0..20).map(|_| call(app.clone()))).await;
        assert!(answers.iter().all(|answer| answer.status() == 200));
    }
    let pool = pool_with(&db, |pool| pool.acquire_timeout(Duration::from_secs(5)));
    let held = join_all((0..3).map(|_| pool.session())).await;
    assert!(held.iter().all(Result::is_ok));
    let refused = timeout(BOUND, pool.session()).await.expect("an answer").map(drop).unwrap_err();
    assert!(refused.is_exhausted() && !refused.is_down(), "{refused}");
    drop((held, pool, app));
    let _ = observer.execute_unprepared(&format!("DROP USER {user}")).await;
}

/// A session store that uses the pool of the service: it loads a record before the handler and saves it after.
async fn store(State(pool): State<SessionPool>, request: Request, next: Next) -> Response {
    let load = async || {
        let session = pool.session().await.unwrap();
        session.execute_unprepared("SELECT 1").await.unwrap();
    };
    load().await;
    let response = next.run(request).await;
    load().await;
    response
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_store_on_the_same_pool_costs_no_request() {
    for kind in SERVERS {
        let test = TestDb::new(kind).await;
        let db = test.connect(5).await;
        let pool = pool_with(&db, |pool| pool.acquire_timeout(BOUND));
        let handler = async |tx: DbTx| insert_item(&tx, &crate::support::database::unique_name()).await;
        for inside in [true, false] {
            let router = Router::new().route("/", any(handler));
            let store = from_fn_with_state(pool.clone(), store);
            let layer = DbSessionLayer::new(pool.clone());
            let app = if inside { router.layer(store).layer(layer) } else { router.layer(layer).layer(store) };
            let ok = AtomicUsize::new(0);
            stream::iter(0..100)
                .for_each_concurrent(20, async |_| {
                    let status = call(app.clone()).await.status();
                    ok.fetch_add(usize::from(status == 200), Ordering::Relaxed);
                })
                .await;
            assert_eq!(ok.into_inner(), 100, "{kind:?}, inside: {inside}");
        }
    }
}

#[tokio::test]
async fn every_duration_is_fine_for_every_setting_and_for_close() {
    for time in [Duration::MAX, Duration::MAX - Duration::from_secs(1), Duration::ZERO] {
        for kind in Kind::ALL {
            let test = TestDb::new(kind).await;
            let db = test.connect(2).await;
            let hold = time.max(Duration::from_secs(3600));
            let pool = pool_with(&db, |pool| {
                let pool = pool.release_timeout(time).commit_timeout(time).warn_hold(hold).max_hold(hold);
                if time.is_zero() { pool } else { pool.acquire_timeout(time) }
            });
            let held = pool.session().await.unwrap();
            held.execute_unprepared("SELECT 1").await.unwrap();
            let closing = tokio::spawn({
                let pool = pool.clone();
                async move { pool.close(Duration::ZERO).await }
            });
            eventually("it is cut off", async || held.execute_unprepared("SELECT 1").await.is_err()).await;
            drop(held);
            timeout(BOUND, closing).await.expect("it closes").expect("no panic");
            assert_eq!(timeout(BOUND, pool.close(time)).await.expect("it is closed"), 0);
        }
    }
}

#[test]
fn outside_of_a_runtime_nothing_panics() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for kind in SERVERS {
        let (test, pool) = runtime.block_on(async {
            let test = TestDb::new(kind).await;
            let pool = session_pool(test.connect(2).await);
            (test, pool)
        });
        let error = pool.ping().now_or_never().expect("an answer at once").unwrap_err();
        assert!(error.to_string().contains("runtime"), "{error}");
        assert!(pool.session().now_or_never().expect("an answer at once").is_err());
        assert_eq!(pool.close(Duration::from_secs(1)).now_or_never(), Some(0));
        assert!(pool.is_closed());
        runtime.block_on(async { drop(test) });
    }
}

#[tokio::test]
async fn a_transaction_that_begins_on_another_connection_waits_for_no_second_session() {
    let (site, proxy) = Site::behind_a_proxy(Kind::Postgres).await;
    let site = site.pooled(|pool| pool.warm(true));
    let (log, _guard) = Log::start();
    drop(site.layer.pool().session().await.unwrap());
    proxy.cut();
    let answer = site.call(async |tx: DbTx| insert_item(&tx, "there").await).await;
    assert_eq!((answer.status().as_u16(), site.count("there").await), (200, 1));
    let lines = log.lines();
    assert!(!lines.iter().any(|line| line.contains("second session")), "{lines:?}");
}

#[tokio::test]
async fn a_test_that_keeps_its_session_is_told_so() {
    let database = TestDb::new(Kind::SqliteMemory).await;
    let db = database.connect(1).await;
    let builder = SessionPool::builder(db).acquire_timeout(Duration::from_secs(1));
    let test = TestPool::begin(builder).await.unwrap();
    let own = test.session().await.unwrap();
    let error = test.pool().session().await.map(drop).unwrap_err();
    assert!(error.is_exhausted() && error.to_string().contains("TestPool"), "{error}");
    drop(own);
    assert!(test.pool().session().await.is_ok());
}

#[tokio::test]
async fn connects_that_the_driver_repeats_keep_nobody_from_what_is_idle() {
    let test = TestDb::new(Kind::Postgres).await;
    let observer = test.observer().await.unwrap();
    let role = crate::support::database::unique_name();
    observer.execute_unprepared(&format!("CREATE ROLE {role} LOGIN CONNECTION LIMIT 2")).await.unwrap();
    let mut options = test.options_at(&test.url().replace("postgres@", &format!("{role}@")), 5);
    // sqlx goes on trying for so long where the server has no place left.
    options.acquire_timeout(Duration::from_secs(600)).min_connections(0).connect_lazy(true);
    let db = Database::connect(options).await.unwrap();
    let pool = pool_with(&db, |pool| pool.acquire_timeout(Duration::from_secs(600)));
    let app = Router::new().route("/", any(select)).layer(DbSessionLayer::new(pool.clone()));
    let burst = join_all((0..6).map(|_| call(app.clone()))).await;
    assert!(burst.iter().all(|answer| answer.status() == 200));
    // What is warm is over: the connections lie in the driver's pool.
    eventually("nothing is warm", async || {
        pool.status().warm == 0 && db.get_postgres_connection_pool().num_idle() == 2
    })
    .await;
    assert!(pool.status().acquiring > 0, "some are still being opened: {:?}", pool.status());
    for _ in 0..5 {
        assert_eq!(call(app.clone()).await.status(), 200);
    }
    drop((app, pool));
    let _ = timeout(BOUND, db.close()).await;
}
