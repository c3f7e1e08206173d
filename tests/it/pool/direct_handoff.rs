//! G17: `direct_handoff`: what a session pays on the wire, and what it must not cost the driver pool's other users.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{Router, routing::get};
use futures_util::future::{join, join_all};
use http::{Request, Response, StatusCode};
use sea_orm::{
    ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DbBackend, DbErr, Statement,
};
use tokio::{runtime::Runtime, time::timeout};
use tower::{Layer, Service, ServiceExt, service_fn, util::BoxCloneService};
use tower_sea_orm::{DbSession, DbSessionLayer};

use crate::support::{
    database::{Kind, TestDb, insert_item},
    pool::{assert_whole, brief_pool},
    requests::send,
    servers::{OwnServer, mysql_url, postgres_url},
    wait::{BOUND, eventually},
    wire::{Proxy, visits},
};

type App = BoxCloneService<Request<()>, Response<String>, Infallible>;

/// A service whose requests run so many SELECTs, and one UPDATE after them.
fn app(layer: DbSessionLayer, selects: usize, update: bool) -> App {
    let handler = service_fn(move |request: Request<()>| async move {
        let db: DbSession = DbSession::from_extensions(request.extensions()).unwrap();
        let mut response = Response::new(String::new());
        if work(&db, selects, update).await.is_err() {
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        }
        Ok(response)
    });
    BoxCloneService::new(layer.layer(handler))
}

async fn work(db: &DbSession, selects: usize, update: bool) -> Result<(), DbErr> {
    for _ in 0..selects {
        db.query_one_raw(Statement::from_string(db.backend(), "SELECT 1"))
            .await?;
    }
    if update {
        db.execute_raw(Statement::from_string(
            db.backend(),
            "UPDATE item SET hits = hits + 1",
        ))
        .await?;
    }
    Ok(())
}

async fn call(app: &mut App) -> StatusCode {
    timeout(BOUND, app.ready().await.unwrap().call(Request::new(())))
        .await
        .expect("an answer")
        .unwrap()
        .status()
}

/// A database on the shared server, reached through a proxy that counts.
async fn proxied(kind: Kind, connections: u32) -> (TestDb, Proxy, DatabaseConnection) {
    let test = TestDb::new(kind).await;
    let url = if kind == Kind::Postgres {
        postgres_url()
    } else {
        mysql_url()
    };
    let port = url
        .rsplit_once(':')
        .unwrap()
        .1
        .split('/')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    let proxy = Proxy::start(port).await;
    let mut options = ConnectOptions::new(proxy.url(test.options(connections).get_url()));
    options.max_connections(connections).sqlx_logging(false);
    (test, proxy, Database::connect(options).await.unwrap())
}

#[tokio::test]
async fn sequential_requests_pay_for_their_own_statements_only() {
    for kind in [Kind::Postgres, Kind::MySql] {
        let (test, proxy, db) = proxied(kind, 4).await;
        insert_item(&db, "one").await;
        let opened = Instant::now();
        // One pool: the warm connection of another would be counted when it goes back to the driver.
        let pool = brief_pool(db.clone());
        let layer = || DbSessionLayer::new(pool.clone());
        let cases = [
            (app(layer(), 1, false), 1),
            (app(layer(), 5, false), 5),
            (app(layer().lazy(), 5, false), 5),
            (app(layer().transaction(), 1, true), 4),
            (app(layer().transaction(), 0, false), 0),
        ];
        for (mut app, statements) in cases {
            // The first one fetches from the driver, and prepares the statements.
            for _ in 0..3 {
                assert_eq!(call(&mut app).await, StatusCode::OK);
            }
            proxy.reset_count();
            for _ in 0..20 {
                assert_eq!(call(&mut app).await, StatusCode::OK);
            }
            let (own, all) = (20 * statements, proxy.requests());
            assert!(
                (own..=own + visits(opened)).contains(&all),
                "{kind:?}: {all} round trips instead of {own}"
            );
        }
        db.close().await.unwrap();
        let db = test.connect(2).await;
        assert_whole(&test, &db, 2).await;
    }
}

#[tokio::test]
async fn a_saturated_pool_pays_for_little_more_than_the_statements() {
    const REQUESTS: u64 = 2_000;
    let (_test, proxy, db) = proxied(Kind::Postgres, 2).await;
    let pool = brief_pool(db.clone());
    let app = app(DbSessionLayer::new(pool), 1, false);
    let clients = |requests: u64| {
        join_all((0..16).map(|_| {
            let mut app = app.clone();
            async move {
                for _ in 0..requests / 16 {
                    assert_eq!(call(&mut app).await, StatusCode::OK);
                }
            }
        }))
    };
    // A few users of the plain pool among them do not spoil it for later.
    let plain = async {
        for _ in 0..5 {
            db.execute_unprepared("SELECT 1").await.unwrap();
        }
    };
    join(clients(640), plain).await;
    proxy.reset_count();
    let started = Instant::now();
    clients(REQUESTS).await;
    let extra = proxy.requests() - REQUESTS;
    assert_visits(extra, REQUESTS, started.elapsed());
}

/// One return in a hundred is a visit of the driver's pool, which pings the connection twice; where so few come back that
/// its users would wait for long, there is one in a fifth of their `acquire_timeout`.
fn assert_visits(extra: u64, returns: u64, time: Duration) {
    let visits = returns / 100 + time.as_secs() / 5 + 2;
    assert!(
        extra <= 2 * visits,
        "{extra} round trips for {visits} visits"
    );
}

#[tokio::test]
async fn however_slow_its_requests_are_a_saturated_pool_pays_in_proportion_to_them() {
    const REQUESTS: u64 = 240;
    let (_test, proxy, db) = proxied(Kind::Postgres, 3).await;
    let slow = async |session: DbSession| {
        let slow = "SELECT pg_sleep(0.02)";
        session.execute_unprepared(slow).await.unwrap();
    };
    let app = Router::new()
        .route("/", get(slow))
        .layer(DbSessionLayer::new(brief_pool(db)));
    let served = &AtomicU64::new(0);
    let clients = |requests: u64| {
        let app = &app;
        join_all((0..16).map(move |_| async move {
            for _ in 0..requests / 16 {
                assert_eq!(send(app, "/").await.status(), StatusCode::OK);
                served.fetch_add(1, Ordering::Relaxed);
            }
        }))
    };
    clients(16).await;
    proxy.reset_count();
    let started = Instant::now();
    clients(REQUESTS).await;
    assert_visits(proxy.requests() - REQUESTS, REQUESTS, started.elapsed());
}

#[tokio::test]
async fn a_user_of_the_plain_pool_waits_for_a_hundred_returns_at_most() {
    let (_test, _proxy, db) = proxied(Kind::Postgres, 2).await;
    let app = app(DbSessionLayer::new(brief_pool(db.clone())), 1, false);
    let served = Arc::new(AtomicU64::new(0));
    let busy: Vec<_> = (0..16)
        .map(|_| {
            let (mut app, served) = (app.clone(), served.clone());
            tokio::spawn(async move {
                loop {
                    assert_eq!(call(&mut app).await, StatusCode::OK);
                    served.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    eventually("they are served", async || {
        served.load(Ordering::Relaxed) > 200
    })
    .await;
    for _ in 0..5 {
        let before = served.load(Ordering::Relaxed);
        timeout(BOUND, db.execute_unprepared("SELECT 1"))
            .await
            .expect("a turn")
            .unwrap();
        let meanwhile = served.load(Ordering::Relaxed) - before;
        // The visit's own round trips take time as well, in which others are served.
        assert!(meanwhile <= 1_000, "{meanwhile} requests went before");
    }
    busy.iter().for_each(|task| task.abort());
}

#[tokio::test]
async fn users_of_the_plain_pool_are_served_beside_idle_and_busy_sessions() {
    for kind in [Kind::Postgres, Kind::MySql, Kind::SqliteFile] {
        let test = TestDb::new(kind).await;
        let db = test.connect(2).await;
        let pool = brief_pool(db.clone());
        let app = app(DbSessionLayer::new(pool.clone()), 3, false);
        let busy: Vec<_> = (0..8)
            .map(|_| {
                let mut app = app.clone();
                tokio::spawn(async move {
                    loop {
                        assert_eq!(call(&mut app).await, StatusCode::OK);
                    }
                })
            })
            .collect();
        eventually("sessions wait", async || pool.status().pending > 0).await;
        for _ in 0..10 {
            timeout(BOUND, db.execute_unprepared("SELECT 1"))
                .await
                .expect("a turn")
                .unwrap();
        }
        for task in busy {
            task.abort();
        }
        eventually("the sessions rest", async || pool.status().used == 0).await;
        timeout(BOUND, db.execute_unprepared("SELECT 1"))
            .await
            .expect("a connection")
            .unwrap();
        assert_whole(&test, &db, 2).await;
    }
}

#[tokio::test]
async fn h26_the_drivers_pool_closes_while_connections_are_warm() {
    for kind in [Kind::Postgres, Kind::MySql, Kind::SqliteFile] {
        let test = TestDb::new(kind).await;
        let db = test.connect(3).await;
        let pool = brief_pool(db.clone());
        let mut app = app(DbSessionLayer::new(pool.clone()), 1, false);
        assert_eq!(call(&mut app).await, StatusCode::OK);
        assert_eq!(pool.status().idle, 1, "{kind:?}");
        timeout(BOUND, db.close_by_ref())
            .await
            .expect("it closes")
            .unwrap();
        assert_eq!((pool.status().idle, pool.status().used), (0, 0), "{kind:?}");
        assert_eq!(call(&mut app).await, StatusCode::SERVICE_UNAVAILABLE);
    }
}

#[tokio::test]
async fn warm_connections_return_to_the_drivers_pool_by_themselves() {
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let db = test.connect(3).await;
        let pool = brief_pool(db.clone());
        drop(pool.session().await.unwrap());
        // The only connection of a pool stays with the driver.
        let warm = usize::from(kind != Kind::SqliteMemory);
        assert_eq!(pool.status().idle, warm, "{kind:?}");
        eventually("none is warm any more", async || pool.status().idle == 0).await;
        assert_whole(&test, &db, 3).await;
    }
}

#[tokio::test]
async fn a_connection_on_its_way_to_the_drivers_pool_is_not_in_use() {
    let server = OwnServer::postgres();
    let test = TestDb::on(&server).await;
    let proxy = Proxy::start(server.port()).await;
    let db = Database::connect(test.options_at(&proxy.url(test.url()), 3))
        .await
        .unwrap();
    let pool = brief_pool(db.clone());
    drop(pool.session().await.unwrap());
    proxy.reset_count();
    server.freeze();
    eventually("the driver pings it", async || proxy.requests() == 1).await;
    assert_eq!((pool.status().idle, pool.status().used), (1, 0));
    server.thaw();
    eventually("none is warm any more", async || pool.status().idle == 0).await;
    assert_whole(&test, &db, 3).await;
}

#[tokio::test]
async fn a_restart_while_the_pool_is_idle_costs_no_request() {
    for start in [OwnServer::postgres, OwnServer::mysql] {
        let mut server = start();
        let test = TestDb::on(&server).await;
        let db = test.connect(4).await;
        let pool = brief_pool(db.clone());
        let mut app = app(DbSessionLayer::new(pool.clone()), 1, false);
        assert_eq!(call(&mut app).await, StatusCode::OK);
        eventually("none is warm any more", async || pool.status().idle == 0).await;
        server.stop();
        server.start();
        for _ in 0..10 {
            assert_eq!(call(&mut app).await, StatusCode::OK);
        }
        assert_whole(&test, &db, 4).await;
    }
}

#[tokio::test]
async fn a_server_that_restarts_under_warm_connections_costs_one_request_at_most() {
    for start in [OwnServer::postgres, OwnServer::mysql] {
        let mut server = start();
        let test = TestDb::on(&server).await;
        let db = test.connect(4).await;
        let pool = brief_pool(db.clone());
        let mut app = app(DbSessionLayer::new(pool.clone()), 1, false);
        drop(join_all((0..3).map(|_| pool.session())).await);
        assert!(pool.status().idle > 0);
        server.stop();
        server.start();
        let mut failed = 0;
        for _ in 0..10 {
            failed += usize::from(call(&mut app).await != StatusCode::OK);
        }
        // The first connection found dead empties the warm ones.
        assert!(failed <= 1, "{failed} requests failed");
        assert_whole(&test, &db, 4).await;
    }
}

#[test]
fn warm_connections_end_with_their_runtime() {
    let outer = Runtime::new().unwrap();
    let test = outer.block_on(TestDb::new(Kind::Postgres));
    let inner = Runtime::new().unwrap();
    let pool = inner.block_on(async {
        let pool = brief_pool(test.connect(3).await);
        drop(pool.session().await.unwrap());
        assert_eq!(pool.status().idle, 1);
        pool
    });
    drop(inner);
    assert_eq!((pool.status().idle, pool.status().used), (0, 0));
    drop(pool);
    outer.block_on(async {
        let observer = test.observer().await.unwrap();
        let others = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";
        eventually("the server has no connection of it", async || {
            let rows = observer.query_all_raw(Statement::from_string(DbBackend::Postgres, others)).await;
            rows.unwrap().is_empty()
        })
        .await;
    });
}
