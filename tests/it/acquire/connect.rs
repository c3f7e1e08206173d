//! G17: connects that fail or hang do not hold up requests that working connections can serve.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, routing::any};
use futures_util::{FutureExt, future::join_all};
use sea_orm::{ConnectOptions, ConnectionTrait, Database, TransactionTrait};
use tokio::time::timeout;
use tower_sea_orm::DbSessionLayer;

use crate::{
    log::Log,
    support::{
        database::{Kind, SERVERS, TestDb},
        network::{patient_site, select},
        pool::{pool_with, session_pool},
        site::{BOUND, SIZE, Site, call},
        wait::{LONG, eventually, in_one_of},
        wire::Proxy,
    },
};

/// A connect that the server accepts and does not answer.
async fn silent_connects(
    site: &Site,
    proxy: &Proxy,
    count: u64,
) -> Vec<tokio::task::JoinHandle<u16>> {
    let before = proxy.accepted();
    proxy.mute(true);
    let requests = (0..count)
        .map(|_| tokio::spawn(call(site.app(select)).map(|answer| answer.status().as_u16())));
    let requests = requests.collect();
    eventually("they are being opened", async || {
        proxy.accepted() >= before + count
    })
    .await;
    requests
}

#[tokio::test]
async fn silent_connects_delay_requests_only_briefly() {
    for kind in SERVERS {
        let (site, proxy) = patient_site(kind).await;
        let pool = site.layer.pool();
        // The first connection, which is there from the start, is not theirs.
        let held = pool.session().await.unwrap();
        // All the places that are left: they have to be given up.
        for request in silent_connects(&site, &proxy, u64::from(SIZE) - 1).await {
            proxy.mute(false);
            let status = timeout(BOUND, request)
                .await
                .expect("an answer long before the time-out")
                .unwrap();
            assert_eq!(status, 200, "{kind:?}");
        }
        drop(held);
        eventually("no place is kept", async || pool.status().acquiring == 0).await;
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn while_a_connect_is_silent_its_waiters_get_another_one() {
    for kind in SERVERS {
        in_one_of(
            5,
            "an answer before the silent one was given up",
            async || {
                let (site, proxy) = patient_site(kind).await;
                let held = site.layer.pool().session().await.unwrap();
                let requests = silent_connects(&site, &proxy, 1).await;
                proxy.mute(false);
                for request in requests {
                    assert_eq!(
                        timeout(BOUND, request).await.expect("an answer").unwrap(),
                        200,
                        "{kind:?}"
                    );
                }
                drop(held);
                site.layer.pool().status().acquiring == 1
            },
        )
        .await;
    }
}

#[tokio::test]
async fn closing_abandons_hung_connects_and_closes_idle_connections() {
    for kind in SERVERS {
        let (site, proxy) = patient_site(kind).await;
        let site = site.pooled(|pool| pool.release_timeout(LONG).acquire_timeout(LONG));
        let pool = site.layer.pool().clone();
        let held = join_all((0..SIZE - 1).map(|_| pool.session())).await;
        let requests = silent_connects(&site, &proxy, 1).await;
        drop(held);
        for request in requests {
            assert_eq!(
                request.await.unwrap(),
                200,
                "{kind:?}: by another connection"
            );
        }
        eventually("two are idle", async || {
            pool.status().used + pool.status().idle as u32 == 0
        })
        .await;
        assert_eq!(pool.status().acquiring, 1);
        // What another user holds keeps the driver's pool from closing, and nothing else open.
        let plain = site.db.begin().await.unwrap();
        let closing = tokio::spawn(async move { pool.close(Duration::ZERO).await });
        eventually("all but the one in use are closed", async || {
            proxy.connections() == 1
        })
        .await;
        assert!(!closing.is_finished(), "{kind:?}");
        plain.rollback().await.unwrap();
        timeout(BOUND, closing)
            .await
            .expect("closed, not hung")
            .unwrap();
        eventually("all are closed", async || proxy.connections() == 0).await;
    }
}

#[tokio::test]
async fn g17_connects_that_fail_refuse_no_request_while_connections_work() {
    for kind in SERVERS {
        let (site, proxy) = Site::behind_a_proxy(kind).await;
        let (log, _guard) = Log::start();
        let held = site.layer.pool().session().await.unwrap();
        held.execute_unprepared("SELECT 1").await.unwrap();
        proxy.refuse(true);
        let answers = async { join_all((0..30).map(|_| site.call(select))).await };
        let (answers, ()) = tokio::join!(answers, async {
            eventually("the log says so", async || {
                log.lines()
                    .iter()
                    .any(|line| line.contains("no further connection can be opened"))
            })
            .await;
            drop(held);
        });
        assert!(
            answers.iter().all(|answer| answer.status() == 200),
            "{kind:?}"
        );
        proxy.refuse(false);
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn if_nothing_is_in_use_a_failed_connect_is_down_for_all_waiters() {
    let (site, proxy) = patient_site(Kind::MySql).await;
    site.db.execute_unprepared("SELECT 1").await.unwrap();
    proxy.cut();
    proxy.refuse(true);
    let sessions = join_all((0..9).map(|_| timeout(BOUND, site.layer.pool().session()))).await;
    for session in sessions {
        let error = session.expect("an answer").map(drop).unwrap_err();
        assert!(error.is_unreachable(), "{error}");
    }
}

#[tokio::test]
async fn a_full_server_is_exhausted_and_waiters_get_returned_connections() {
    let test = TestDb::new(Kind::MySql).await;
    let observer = test.observer().await.unwrap();
    let user = format!("u{}", std::process::id());
    observer
        .execute_unprepared(&format!("CREATE USER {user} WITH MAX_USER_CONNECTIONS 3"))
        .await
        .unwrap();
    observer
        .execute_unprepared(&format!("GRANT ALL ON *.* TO {user}"))
        .await
        .unwrap();
    let mut options = test.options_at(&test.url().replace("root@", &format!("{user}@")), 8);
    options.connect_lazy(true);
    let db = Database::connect(options).await.unwrap();
    let app = Router::new()
        .route("/", any(select))
        .layer(DbSessionLayer::new(session_pool(db.clone())));
    for _ in 0..3 {
        let answers = join_all((0..20).map(|_| call(app.clone()))).await;
        assert!(answers.iter().all(|answer| answer.status() == 200));
    }
    let pool = pool_with(&db, |pool| pool.acquire_timeout(Duration::from_secs(5)));
    let held = join_all((0..3).map(|_| pool.session())).await;
    assert!(held.iter().all(Result::is_ok));
    let refused = timeout(BOUND, pool.session())
        .await
        .expect("an answer")
        .map(drop)
        .unwrap_err();
    assert!(
        refused.is_exhausted() && !refused.is_unreachable(),
        "{refused}"
    );
    drop((held, pool, app));
    let _ = observer
        .execute_unprepared(&format!("DROP USER {user}"))
        .await;
}

/// On a clock that stands still unless all wait.
#[tokio::test]
async fn the_reason_of_a_failed_wait_is_known_when_the_wait_is_over() {
    for (wait, is_unreachable) in [(5000, true), (600, false)] {
        let (site, proxy) = patient_site(Kind::Postgres).await;
        let pool = pool_with(&site.db, |pool| {
            pool.acquire_timeout(Duration::from_millis(wait))
        });
        proxy.cut();
        eventually("nothing is open", async || proxy.connections() == 0).await;
        proxy.mute(true);
        tokio::time::pause();
        let started = tokio::time::Instant::now();
        let error = pool.session().await.map(drop).unwrap_err();
        let took = started.elapsed().as_millis() as u64;
        tokio::time::resume();
        assert!((wait..wait + 100).contains(&took), "{took} ms");
        assert_eq!(
            (error.is_unreachable(), error.is_exhausted()),
            (is_unreachable, !is_unreachable),
            "{error}"
        );
        assert!(
            is_unreachable || error.to_string().contains("log-ins"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn connects_that_the_driver_repeats_do_not_hide_idle_connections() {
    let test = TestDb::new(Kind::Postgres).await;
    let observer = test.observer().await.unwrap();
    let role = crate::support::database::unique_name();
    observer
        .execute_unprepared(&format!("CREATE ROLE {role} LOGIN CONNECTION LIMIT 2"))
        .await
        .unwrap();
    let mut options = test.options_at(&test.url().replace("postgres@", &format!("{role}@")), 5);
    // sqlx goes on trying for so long where the server has no place left.
    options
        .acquire_timeout(Duration::from_secs(600))
        .min_connections(0)
        .connect_lazy(true);
    let db = Database::connect(options).await.unwrap();
    let pool = pool_with(&db, |pool| pool.acquire_timeout(Duration::from_secs(600)));
    let app = Router::new()
        .route("/", any(select))
        .layer(DbSessionLayer::new(pool.clone()));
    let burst = join_all((0..6).map(|_| call(app.clone()))).await;
    assert!(burst.iter().all(|answer| answer.status() == 200));
    // What is warm is over: the connections lie in the driver's pool.
    eventually("nothing is warm", async || {
        pool.status().idle == 0 && db.get_postgres_connection_pool().num_idle() == 2
    })
    .await;
    assert!(
        pool.status().acquiring > 0,
        "some are still being opened: {:?}",
        pool.status()
    );
    for _ in 0..5 {
        assert_eq!(call(app.clone()).await.status(), 200);
    }
    drop((app, pool));
    let _ = timeout(BOUND, db.close()).await;
}

#[tokio::test]
async fn a_server_that_ends_every_connect_gets_few_of_them() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!(
        "postgres://nobody@{}/none?sslmode=disable",
        listener.local_addr().unwrap()
    );
    let connects = Arc::new(AtomicUsize::new(0));
    let counted = connects.clone();
    let server = tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            drop(connection);
        }
    });
    let mut options = ConnectOptions::new(url);
    options
        .max_connections(10)
        .min_connections(0)
        .connect_lazy(true)
        .sqlx_logging(false);
    let pool = session_pool(Database::connect(options).await.unwrap());
    let asked = AtomicUsize::new(0);
    join_all((0..20).map(|_| async {
        for _ in 0..20 {
            asked.fetch_add(1, Ordering::SeqCst);
            assert!(pool.session().await.is_err());
        }
    }))
    .await;
    server.abort();
    let (connects, asked) = (
        connects.load(Ordering::SeqCst),
        asked.load(Ordering::SeqCst),
    );
    assert!(
        connects <= 2 * asked,
        "{connects} connects for {asked} sessions"
    );
}
