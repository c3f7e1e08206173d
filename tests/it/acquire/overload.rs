//! G10: many more clients than connections. Waiters are served in order, the rest is refused quickly.

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

use crate::support::{
    database::{Kind, TestDb},
    pool::{assert_whole, pool_with, session_pool},
    site::{BOUND, retry_after},
    wait::{eventually, in_one_of},
};

const CONNECTIONS: u32 = 10;

/// How long each combination of clients sends requests.
const SPAN: Duration = Duration::from_secs(2);

/// The result of a load.
#[derive(Default)]
struct Load {
    served: AtomicU64,
    rejected: AtomicU64,
    /// In microseconds, until a rejection and until an answer.
    slowest_rejection: AtomicU64,
    slowest_answer: AtomicU64,
    /// While all clients were at it.
    served_per_second: AtomicU64,
}

/// A service whose requests take some milliseconds on the server.
fn app(pool: &SessionPool) -> Router {
    let handler = async |db: DbSession| {
        let query = Statement::from_string(DbBackend::Postgres, "SELECT pg_sleep(0.005)");
        db.query_one_raw(query)
            .await
            .map(drop)
            .map_err(|error: DbErr| error.to_string())
    };
    let handler = move |db| async move {
        match handler(db).await {
            Ok(()) => StatusCode::OK,
            Err(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    };
    Router::new()
        .route("/", any(handler))
        .layer(DbSessionLayer::new(pool.clone()))
}

/// `clients` in a closed loop, each a task; one that was rejected comes back after `pause`.
async fn load(app: &Router, clients: usize, pause: Duration) -> Arc<Load> {
    let (load, stop) = (Arc::new(Load::default()), Arc::new(AtomicBool::new(false)));
    let started = Instant::now();
    let tasks: Vec<_> = (0..clients)
        .map(|_| {
            let (app, load, stop) = (app.clone(), load.clone(), stop.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    if load.one(&app).await {
                        continue;
                    }
                    if pause.is_zero() {
                        // A refusal waits for nothing: without this, the task would never let another one run.
                        tokio::task::yield_now().await;
                    } else {
                        tokio::time::sleep(pause).await;
                    }
                }
            })
        })
        .collect();
    tokio::time::sleep(SPAN).await;
    stop.store(true, Ordering::Relaxed);
    let served = load.served.load(Ordering::Relaxed);
    load.served_per_second
        .store(served * 1_000_000 / micros(started), Ordering::Relaxed);
    for task in join_all(tasks).await {
        task.unwrap();
    }
    load
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap()
}

impl Load {
    /// One request; whether it was served.
    async fn one(&self, app: &Router) -> bool {
        let started = Instant::now();
        let answer = timeout(BOUND, app.clone().oneshot(Request::new(Body::empty())))
            .await
            .expect("an answer")
            .unwrap();
        let took = micros(started);
        let served = match answer.status() {
            StatusCode::OK => true,
            StatusCode::SERVICE_UNAVAILABLE => false,
            other => panic!("{other}"),
        };
        assert_eq!(retry_after(&answer).is_some(), !served);
        let (count, slowest) = if served {
            (&self.served, &self.slowest_answer)
        } else {
            (&self.rejected, &self.slowest_rejection)
        };
        count.fetch_add(1, Ordering::Relaxed);
        slowest.fetch_max(took, Ordering::Relaxed);
        served
    }

    fn tell(&self, clients: usize) {
        let get = |value: &AtomicU64| value.load(Ordering::Relaxed);
        eprintln!(
            "{clients} clients: {} served/s, {} rejected; slowest answer {} ms, slowest rejection {} ms",
            get(&self.served_per_second),
            get(&self.rejected),
            get(&self.slowest_answer) / 1000,
            get(&self.slowest_rejection) / 1000,
        );
    }
}

async fn all_are_back(pool: &SessionPool) {
    eventually("all are back", async || {
        let status = pool.status();
        (status.used, status.pending, status.acquiring) == (0, 0, 0)
    })
    .await;
}

/// The target is a goodput within 10 % of the best; `tests/run overload --no-capture` prints it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_clients_on_ten_connections_are_served_or_refused() {
    let test = TestDb::new(Kind::Postgres).await;
    let db = test.connect(CONNECTIONS).await;
    let pool = pool_with(&db, |pool| pool.acquire_timeout(BOUND).max_pending(200));
    let app = app(&pool);
    for pause in [Duration::from_millis(500), Duration::ZERO] {
        eprintln!("a pause of {pause:?} after a rejection");
        for clients in [10, 50, 200, 1000] {
            let load = load(&app, clients, pause).await;
            load.tell(clients);
            let rejected = load.rejected.load(Ordering::Relaxed);
            // 200 may wait, and 10 are served.
            assert_eq!(
                rejected > 0,
                clients > 210,
                "{clients} clients: {rejected} rejected"
            );
            all_are_back(&pool).await;
        }
    }
    assert_whole(&test, &db, CONNECTIONS).await;
}

/// By default it is the time in the queue that counts: where connections come back fast, many may wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_can_expect_a_turn_within_a_second_may_queue() {
    const CLIENTS: usize = 100;
    const CONNECTIONS: u32 = 2;
    let test = TestDb::new(Kind::Postgres).await;
    let db = test.connect(CONNECTIONS).await;
    let pool = session_pool(db.clone());
    // They hold their connection for a moment and ask the server nothing: a turn costs a slow machine little.
    let handler = async |_: DbSession| tokio::time::sleep(Duration::from_millis(1)).await;
    let app = Router::new()
        .route("/", any(handler))
        .layer(DbSessionLayer::new(pool.clone()));
    in_one_of(20, "100 are let in", async || {
        let load = load(&app, CLIENTS, Duration::ZERO).await;
        load.tell(CLIENTS);
        load.rejected.load(Ordering::Relaxed) == 0
    })
    .await;
    // Where none comes back there is room for 20 each, and that is what is left of it.
    let held = join_all((0..CONNECTIONS).map(|_| pool.session())).await;
    let waiting: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let pool = pool.clone();
            tokio::spawn(async move { pool.session().await.map(drop) })
        })
        .collect();
    eventually("they wait", async || pool.status().pending >= 40).await;
    eventually("the last one is not let in", async || {
        let one_more = timeout(Duration::from_secs(5), pool.session());
        matches!(one_more.await, Ok(Err(error)) if error.is_exhausted())
    })
    .await;
    waiting.into_iter().for_each(|waiter| waiter.abort());
    drop(held);
    all_are_back(&pool).await;
    assert_whole(&test, &db, CONNECTIONS).await;
}

/// Others may be waiting for what it holds.
#[tokio::test]
async fn a_holder_is_refused_a_second_connection_at_once() {
    let test = TestDb::new(Kind::SqliteFile).await;
    let db = test.connect(1).await;
    let pool = pool_with(&db, |pool| pool.max_pending(0));
    let handler = async |session: DbSession| {
        tokio::time::pause();
        let started = tokio::time::Instant::now();
        for _ in 0..3000 {
            assert!(
                session
                    .pool()
                    .session()
                    .await
                    .map(drop)
                    .unwrap_err()
                    .is_exhausted()
            );
        }
        let took = started.elapsed().as_millis().to_string();
        tokio::time::resume();
        took
    };
    let app = Router::new()
        .route("/", any(handler))
        .layer(DbSessionLayer::new(pool));
    let answer = app.oneshot(Request::new(Body::empty())).await.unwrap();
    let took = axum::body::to_bytes(answer.into_body(), 100).await.unwrap();
    assert_eq!(took, "0");
    assert_whole(&test, &db, 1).await;
}

#[tokio::test]
async fn waiters_are_served_first_in_first_out_and_the_gone_cost_nothing() {
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let db = test.connect(2).await;
        let pool = pool_with(&db, |pool| pool.acquire_timeout(BOUND).max_pending(1000));
        let held = join_all((0..pool.status().max).map(|_| pool.session())).await;
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut waiters = Vec::new();
        for number in 0..60 {
            let (waiting, order) = (pool.clone(), order.clone());
            waiters.push(tokio::spawn(async move {
                let session = waiting.session().await.unwrap();
                order.lock().unwrap().push(number);
                drop(session);
            }));
            eventually("it waits", async || pool.status().pending == number + 1).await;
        }
        // Every third one gives up.
        for waiter in waiters.iter().step_by(3) {
            waiter.abort();
        }
        eventually("they have gone", async || pool.status().pending == 40).await;
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
            let due = expected
                .iter()
                .position(|expected| expected == number)
                .unwrap();
            assert!(
                place.abs_diff(due) <= 2,
                "{kind:?}: number {number} was served as number {place}: {served:?}"
            );
        }
        assert_eq!(served.len(), expected.len(), "{kind:?}");
        assert_whole(&test, &db, 2).await;
    }
}
