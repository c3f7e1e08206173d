//! G9: `cancel_running` under load. No innocent statement is hit, no connection is lost, requests that stay pay
//! nothing on the wire, and nothing hangs when cancels cannot be sent.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{Router, body::Body, routing::any};
use futures_util::future::{join, join_all};
use http::Request;
use sea_orm::{ConnectionTrait, Database, Statement};
use tokio::time::timeout;
use tower::ServiceExt;
use tower_sea_orm::{DbSession, DbSessionLayer, SessionPool, SessionPoolBuilder};

use crate::{
    cancel::cancel_running::{LONG, all_gone, leave, sleeps_undisturbed},
    log::Log,
    support::{
        database::{Kind, SERVERS, TestDb},
        pool::assert_whole,
        site::{BOUND, SIZE, Site, port_of, value},
        statements::{mark, marks, running, sleep},
        wait::{eventually, in_one_of},
        wire::{Proxy, visits},
    },
};

/// How many requests leave in each stress.
const LEAVING: u32 = 1500;

/// A number that looks random, from 0 up to `below`.
fn scattered(seed: u32, below: u64) -> u64 {
    u64::from(seed.wrapping_mul(2_654_435_761).rotate_left(13)) % below
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g9_no_innocent_statement_is_hit_by_thousands_of_cancels() {
    for kind in SERVERS {
        for transaction in [false, true] {
            let site = Site::new(kind)
                .await
                .pooled(|pool| pool.cancel_running().acquire_timeout(BOUND));
            let layer = if transaction {
                site.layer.clone().transaction()
            } else {
                site.layer.clone()
            };
            let before = marks(layer.pool()).await;
            let (left, innocent) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
            let app = Router::new()
                .route(
                    "/{micros}",
                    any(
                        async move |axum::extract::Path(micros): axum::extract::Path<u64>,
                                    db: DbSession| {
                            assert!(
                                sleeps_undisturbed(
                                    &db,
                                    kind,
                                    Duration::from_micros(micros).as_secs_f64()
                                )
                                .await
                            );
                        },
                    ),
                )
                .layer(layer);
            let request = |micros: u64| {
                Request::get(format!("/{micros}"))
                    .body(Body::empty())
                    .unwrap()
            };
            // Around the statement's own end, so that many cancels come too late.
            let leaving = (0..3_u32).map(|_| {
                let (app, left) = (app.clone(), left.clone());
                tokio::spawn(async move {
                    loop {
                        let seed = left.fetch_add(1, Ordering::SeqCst);
                        if seed >= LEAVING {
                            return;
                        }
                        let wait = Duration::from_micros(500 + scattered(seed, 6000));
                        let _ = timeout(
                            wait,
                            app.clone().oneshot(request(3000 + scattered(seed, 4000))),
                        )
                        .await;
                    }
                })
            });
            let leaving: Vec<_> = leaving.collect();
            let staying = (0..3_u32).map(|_| {
                let (app, left, innocent) = (app.clone(), left.clone(), innocent.clone());
                tokio::spawn(async move {
                    while left.load(Ordering::SeqCst) < LEAVING {
                        let answer = timeout(BOUND, app.clone().oneshot(request(200)))
                            .await
                            .expect("no hang")
                            .unwrap();
                        assert_eq!(answer.status(), 200, "an innocent request failed");
                        innocent.fetch_add(1, Ordering::SeqCst);
                    }
                })
            });
            let staying: Vec<_> = staying.collect();
            for ended in join_all(leaving.into_iter().chain(staying)).await {
                ended.unwrap();
            }
            eventually("no session is out", async || {
                site.layer.pool().status().used == 0
            })
            .await;
            let innocent = innocent.load(Ordering::SeqCst);
            let kept = marks(site.layer.pool()).await.intersection(&before).count();
            eprintln!(
                "{kind:?}, transaction: {transaction}: {LEAVING} left, {innocent} stayed, {kept} connections kept"
            );
            site.assert_whole().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_leaving_clients_costs_no_connection() {
    for kind in SERVERS {
        let (site, proxy) = Site::behind_a_proxy(kind).await;
        let site = site.pooled(|pool| pool.cancel_running().acquire_timeout(BOUND));
        marks(site.layer.pool()).await;
        let (started, before) = (Instant::now(), proxy.accepted());
        for (transaction, lazy) in [(false, true), (true, false)] {
            let layer = if transaction {
                site.layer.clone().transaction()
            } else {
                site.layer.clone()
            };
            let layer = if lazy { layer.lazy() } else { layer };
            let app = Router::new()
                .route(
                    "/",
                    any(async move |db: DbSession| drop(db.query_all_raw(sleep(kind, LONG)).await)),
                )
                .layer(layer);
            for wave in 0..20_u32 {
                let clients = (0..50_u32).map(|client| {
                    let wait = Duration::from_micros(scattered(wave * 50 + client, 30_000));
                    timeout(wait, app.clone().oneshot(Request::new(Body::empty())))
                });
                assert!(
                    join_all(clients).await.iter().all(Result::is_err),
                    "nobody waits for an answer"
                );
            }
        }
        eventually("no session is out", async || {
            site.layer.pool().status().used == 0
        })
        .await;
        // The line for cancels is among them. On a busy machine a cancel may find no answer in time, but each that
        // does not has taken its four seconds before.
        let (reconnects, took) = (proxy.accepted() - before, started.elapsed());
        eprintln!("{kind:?}: 2000 clients left within {took:?}, {reconnects} reconnects");
        let most = 20 + u64::from(SIZE) * took.as_secs() / 4;
        assert!(
            reconnects <= most,
            "{kind:?}: {reconnects} reconnects in {took:?}"
        );
        assert_eq!(running(site.view(), "sleep(").await, 0, "{kind:?}");
        site.assert_whole().await;
    }
}

/// Round trips of the first and of 200 more requests of 3 statements each, on warm connections. `own` are what the 200
/// cost by themselves, without what the driver's pool adds if they take long.
async fn round_trips(kind: Kind, own: u64, cancels: bool, transaction: bool) -> (u64, u64) {
    let opened = Instant::now();
    let test = TestDb::new(kind).await;
    let proxy = Proxy::start(port_of(test.url())).await;
    let db = Database::connect(test.options_at(&proxy.url(test.url()), 4))
        .await
        .unwrap();
    let pool =
        SessionPool::builder(db.clone()).test_before_acquire_if_idle_for(Duration::from_secs(1));
    let pool = if cancels { pool.cancel_running() } else { pool };
    let layer = DbSessionLayer::new(pool.build().unwrap());
    let app = Router::new()
        .route(
            "/",
            any(async |db: DbSession| {
                for _ in 0..3 {
                    value::<i32>(&db, "SELECT 1").await;
                }
            }),
        )
        .layer(if transaction {
            layer.transaction()
        } else {
            layer
        });
    let serve = async |requests| {
        for _ in 0..requests {
            let answer = app
                .clone()
                .oneshot(Request::new(Body::empty()))
                .await
                .unwrap();
            assert_eq!(answer.status(), 200);
        }
    };
    proxy.reset_count();
    serve(1).await;
    let first = proxy.requests();
    proxy.reset_count();
    serve(200).await;
    let warm = proxy.requests();
    let warm = warm.min(own).max(warm.saturating_sub(visits(opened)));
    assert_whole(&test, &db, 4).await;
    (first, warm)
}

#[tokio::test]
async fn a_warm_connection_pays_nothing_and_a_fetched_one_a_round_trip() {
    for kind in SERVERS {
        let (without_first, without) = round_trips(kind, 600, false, false).await;
        let (first, warm) = round_trips(kind, 600, true, false).await;
        eprintln!(
            "{kind:?}: 200 requests of 3 statements: {without} without, {warm} with; the first: {without_first} without, {first} with"
        );
        assert_eq!(warm, without, "{kind:?}");
        assert_eq!(warm, 600, "{kind:?}");
        // Its own, and what the second connection asks when it is opened.
        assert!(
            first <= without_first + 1 + 4,
            "{kind:?}: {first} against {without_first}"
        );
        let (_, warm) = round_trips(kind, 1000, true, true).await;
        assert_eq!(warm, 1000, "{kind:?}: BEGIN and COMMIT");
    }
}

/// Serves 16 clients for so long; how many requests.
async fn serve_for(app: &Router, time: Duration) -> u32 {
    let (served, until) = (Arc::new(AtomicU32::new(0)), Instant::now() + time);
    let clients = (0..16).map(|_| {
        let (app, served) = (app.clone(), served.clone());
        tokio::spawn(async move {
            while Instant::now() < until {
                let answer = app
                    .clone()
                    .oneshot(Request::new(Body::empty()))
                    .await
                    .unwrap();
                assert_eq!(answer.status(), 200);
                served.fetch_add(1, Ordering::SeqCst);
            }
        })
    });
    for ended in join_all(clients.collect::<Vec<_>>()).await {
        ended.unwrap();
    }
    served.load(Ordering::SeqCst)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_load_it_costs_next_to_nothing_on_the_wire() {
    for kind in SERVERS {
        let mut surplus = Vec::new();
        for cancels in [false, true] {
            let test = TestDb::new(kind).await;
            let proxy = Proxy::start(port_of(test.url())).await;
            let db = Database::connect(test.options_at(&proxy.url(test.url()), 4))
                .await
                .unwrap();
            let builder = SessionPool::builder(db.clone())
                .test_before_acquire_if_idle_for(Duration::from_secs(1))
                .acquire_timeout(BOUND);
            let builder = if cancels {
                builder.cancel_running()
            } else {
                builder
            };
            let layer = DbSessionLayer::new(builder.build().unwrap());
            let app = Router::new()
                .route(
                    "/",
                    any(async |db: DbSession| assert_eq!(value::<i32>(&db, "SELECT 1").await, 1)),
                )
                .layer(layer);
            // What is paid once.
            serve_for(&app, Duration::from_millis(500)).await;
            proxy.reset_count();
            let started = Instant::now();
            let requests = serve_for(&app, Duration::from_secs(3)).await;
            let (took, beside) = (
                started.elapsed().as_secs_f64(),
                proxy.requests() as f64 - f64::from(requests),
            );
            eprintln!(
                "{kind:?}, cancels: {cancels}: {:.0} requests a second, {beside} round trips beside {requests}: {:.4} each",
                f64::from(requests) / took,
                beside / f64::from(requests),
            );
            surplus.push(beside / f64::from(requests));
            assert_whole(&test, &db, 4).await;
        }
        // One per fetch from the driver's pool, which one return in a hundred leads to, and what is paid now and then.
        assert!(
            surplus[1] - surplus[0] < 0.01 + 0.01,
            "{kind:?}: {surplus:?} for each request"
        );
    }
}

#[tokio::test]
async fn without_a_side_connection_an_abandoned_statement_is_waited_for() {
    let (log, _guard) = Log::start();
    for kind in SERVERS {
        let (site, proxy) = Site::behind_a_proxy(kind).await;
        let site = site.pooled(SessionPoolBuilder::cancel_running);
        // The pool has its connections, and knows the way; the second connection is gone by now.
        let before = marks(site.layer.pool()).await;
        proxy.refuse(true);
        kill_control(&site, &before).await;
        let told = log.lines().len();
        let asked = Instant::now();
        let left = leave(&site, site.layer.clone(), sleep(kind, 3.0)).await;
        eventually("the slot is free", async || {
            site.layer.pool().status().used == 0
        })
        .await;
        assert!(
            asked.elapsed() >= Duration::from_secs(3),
            "{kind:?}: {:?}",
            asked.elapsed()
        );
        let told = log.lines().split_off(told);
        let warned = told
            .iter()
            .filter(|line| line.contains("WARN") && line.contains("waiting for statements"))
            .count();
        assert_eq!(warned, 1, "{kind:?}: {told:#?}");
        proxy.refuse(false);
        // As soon as there is one, it works again.
        eventually("the log's second has passed", async || {
            left.elapsed() > Duration::from_secs(4)
        })
        .await;
        leave(&site, site.layer.clone(), sleep(kind, LONG)).await;
        all_gone(&site).await;
        site.assert_whole().await;
    }
}

/// Ends all connections of the database but these; the observer's come again.
pub async fn kill_control(site: &Site, but: &std::collections::BTreeSet<i64>) {
    let view = Database::connect(site.test.options(1)).await.unwrap();
    let own = mark(&view).await;
    let but = but
        .iter()
        .chain([&own])
        .map(i64::to_string)
        .collect::<Vec<_>>()
        .join(", ");
    if site.kind() == Kind::Postgres {
        let sql = format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid NOT IN ({but})"
        );
        view.query_all_raw(Statement::from_string(view.get_database_backend(), sql))
            .await
            .unwrap();
        return;
    }
    let sql = format!(
        "SELECT CAST(id AS SIGNED) FROM information_schema.processlist WHERE db = database() AND id NOT IN ({but})"
    );
    let others = view
        .query_all_raw(Statement::from_string(view.get_database_backend(), sql))
        .await
        .unwrap();
    for other in others {
        let id: i64 = other.try_get_by_index(0).unwrap();
        view.execute_unprepared(&format!("KILL {id}"))
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn the_cancel_connection_is_closed_when_idle_and_opened_again() {
    for kind in SERVERS {
        let site = Site::new(kind).await;
        let pool = SessionPool::builder(site.db.clone())
            .cancel_running()
            .build()
            .unwrap();
        // The observer's connections, as many as it can have.
        let (one, other) = join(mark(site.view()), mark(site.view())).await;
        let others = [one, other];
        let before = marks(&pool).await;
        assert_eq!(before.len(), SIZE as usize);
        // Of the pool's connections and others than these.
        let connections = async || {
            let known = before
                .iter()
                .chain(&others)
                .map(i64::to_string)
                .collect::<Vec<_>>()
                .join(", ");
            let (inside, outside) = match kind {
                Kind::Postgres => ("pid", "pg_stat_activity WHERE datname = current_database()"),
                _ => ("id", "information_schema.processlist WHERE db = database()"),
            };
            let count = async |which: String| {
                value::<i64>(
                    site.view(),
                    &format!("SELECT count(*) FROM {outside} AND {inside} {which}"),
                )
                .await
            };
            let of_pool = before
                .iter()
                .map(i64::to_string)
                .collect::<Vec<_>>()
                .join(", ");
            (
                count(format!("IN ({of_pool})")).await,
                count(format!("NOT IN ({known})")).await,
            )
        };
        let size = i64::from(SIZE);
        assert_eq!(connections().await, (size, 1), "a second connection");
        eventually("the second connection is closed", async || {
            connections().await == (size, 0)
        })
        .await;
        leave(&site, DbSessionLayer::new(pool.clone()), sleep(kind, LONG)).await;
        eventually("the slot is free", async || pool.status().used == 0).await;
        eventually("it is opened again, and the query is gone", async || {
            running(site.view(), "sleep(").await == 0
        })
        .await;
    }
}

#[tokio::test]
async fn the_cancel_connection_is_closed_with_the_pool() {
    for kind in SERVERS {
        // Without use it would be closed after five seconds.
        in_one_of(5, "it is closed before it is idle for long", async || {
            let (site, proxy) = Site::behind_a_proxy(kind).await;
            let pool = SessionPool::builder(site.db.clone())
                .cancel_running()
                .build()
                .unwrap();
            leave(&site, DbSessionLayer::new(pool.clone()), sleep(kind, LONG)).await;
            let used = Instant::now();
            eventually("the slot is free", async || pool.status().used == 0).await;
            site.db.close_by_ref().await.unwrap();
            eventually("all are closed", async || proxy.connections() == 0).await;
            used.elapsed() < Duration::from_secs(4)
        })
        .await;
    }
}
