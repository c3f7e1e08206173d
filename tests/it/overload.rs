//! Many more clients than connections: what can be served is served in order, the rest is told at once.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{Router, body::Body, http::StatusCode, routing::any};
use futures_util::future::join_all;
use http::Request;
use sea_orm::{ConnectionTrait, DbBackend, DbErr, Statement};
use tokio::time::timeout;
use tower::ServiceExt;
use tower_sea_orm::{DbSession, DbSessionLayer, SessionPool};

use crate::support::pool::session_pool;
use crate::support::{
    database::{Kind, TestDb},
    pool::assert_whole,
    site::{BOUND, retry_after},
    wait::eventually,
};

const CONNECTIONS: u32 = 10;

/// How long each combination is measured.
const SPAN: Duration = Duration::from_secs(2);

/// What came of a load.
#[derive(Default)]
struct Load {
    served: AtomicU64,
    rejected: AtomicU64,
    /// In microseconds, until a rejection and until an answer.
    slowest_rejection: AtomicU64,
    slowest_answer: AtomicU64,
}

async fn app(db: &sea_orm::DatabaseConnection) -> (SessionPool, Router) {
    let pool = session_pool(db.clone()).acquire_timeout(Duration::from_secs(5));
    let handler = async |db: DbSession| {
        let query = Statement::from_string(DbBackend::Postgres, "SELECT pg_sleep(0.005)");
        db.query_one_raw(query).await.map(drop).map_err(|error: DbErr| error.to_string())
    };
    let handler = move |db| async move {
        match handler(db).await {
            Ok(()) => StatusCode::OK,
            Err(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    };
    (pool.clone(), Router::new().route("/", any(handler)).layer(DbSessionLayer::with_pool(pool)))
}

/// `clients` in a closed loop, each a task; one that was rejected comes back after `pause`.
async fn load(app: &Router, clients: usize, pause: Duration) -> Arc<Load> {
    let (load, stop) = (Arc::new(Load::default()), Arc::new(AtomicBool::new(false)));
    let tasks: Vec<_> = (0..clients)
        .map(|_| {
            let (app, load, stop) = (app.clone(), load.clone(), stop.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    if !load.one(&app).await {
                        tokio::time::sleep(pause).await;
                    }
                }
            })
        })
        .collect();
    tokio::time::sleep(SPAN).await;
    stop.store(true, Ordering::Relaxed);
    for task in join_all(tasks).await {
        task.unwrap();
    }
    load
}

impl Load {
    /// One request; whether it was served.
    async fn one(&self, app: &Router) -> bool {
        let started = Instant::now();
        let answer =
            timeout(BOUND, app.clone().oneshot(Request::new(Body::empty()))).await.expect("an answer").unwrap();
        let took = u64::try_from(started.elapsed().as_micros()).unwrap();
        let served = match answer.status() {
            StatusCode::OK => true,
            StatusCode::SERVICE_UNAVAILABLE => false,
            other => panic!("{other}"),
        };
        assert_eq!(retry_after(&answer).is_some(), !served);
        let (count, slowest) =
            if served { (&self.served, &self.slowest_answer) } else { (&self.rejected, &self.slowest_rejection) };
        count.fetch_add(1, Ordering::Relaxed);
        slowest.fetch_max(took, Ordering::Relaxed);
        served
    }
}

/// The target is a goodput within 10 % of the best; `tests/run overload --no-capture` prints it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_clients_on_ten_connections_are_served_or_told_so() {
    let test = TestDb::new(Kind::Postgres).await;
    let db = test.connect(CONNECTIONS).await;
    let (pool, app) = app(&db).await;
    for clients in [10, 50, 200, 1000] {
        let load = load(&app, clients, Duration::from_millis(500)).await;
        let rejected = load.rejected.load(Ordering::Relaxed);
        eprintln!(
            "{clients} clients: {} served, {rejected} rejected; slowest answer {} ms, slowest rejection {} ms",
            load.served.load(Ordering::Relaxed),
            load.slowest_answer.load(Ordering::Relaxed) / 1000,
            load.slowest_rejection.load(Ordering::Relaxed) / 1000,
        );
        // 200 may wait, and 10 are served.
        assert_eq!(rejected > 0, clients > 210, "{clients} clients: {rejected} rejected");
        eventually("all are back", async || {
            let status = pool.status();
            (status.in_use, status.waiting, status.acquiring) == (0, 0, 0)
        })
        .await;
    }
    assert_whole(&test, &db, CONNECTIONS).await;
}

#[tokio::test]
async fn whoever_waits_is_served_in_the_order_of_coming_and_the_gone_cost_nothing() {
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let db = test.connect(2).await;
        let pool = session_pool(db.clone()).acquire_timeout(BOUND).max_waiting(1000);
        let held = join_all((0..pool.status().limit).map(|_| pool.session())).await;
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut waiters = Vec::new();
        for number in 0..60 {
            let (waiting, order) = (pool.clone(), order.clone());
            waiters.push(tokio::spawn(async move {
                let session = waiting.session().await.unwrap();
                order.lock().unwrap().push(number);
                drop(session);
            }));
            eventually("it waits", async || pool.status().waiting == number + 1).await;
        }
        // Every third one gives up.
        for waiter in waiters.iter().step_by(3) {
            waiter.abort();
        }
        eventually("they have gone", async || pool.status().waiting == 40).await;
        drop(held);
        for waiter in waiters {
            match timeout(BOUND, waiter).await.expect("a turn") {
                Ok(()) => {}
                Err(error) => assert!(error.is_cancelled()),
            }
        }
        let served = order.lock().unwrap().clone();
        let expected: Vec<usize> = (0..60).filter(|number| number % 3 != 0).collect();
        // Two may be served at the same time, and tell in any order.
        for (place, number) in served.iter().enumerate() {
            let due = expected.iter().position(|expected| expected == number).unwrap();
            assert!(place.abs_diff(due) <= 2, "{kind:?}: number {number} was served as number {place}: {served:?}");
        }
        assert_eq!(served.len(), expected.len(), "{kind:?}");
        assert_whole(&test, &db, 2).await;
    }
}
