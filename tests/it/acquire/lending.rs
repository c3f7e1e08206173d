//! G2, G10, G17: a session that has run nothing yet lends its connection to those who wait.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    extract::{FromRequestParts, Path},
    routing::get,
};
use futures_util::future::join_all;
use http::StatusCode;
use sea_orm::{ConnectionTrait, DbErr, Statement, TransactionTrait};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{Notify, Semaphore},
    task::yield_now,
    time::timeout,
};
use tower_sea_orm::{DbSession, DbSessionLayer, DbTx};

use crate::{
    body::server::Server,
    support::{
        database::{Kind, TestDb, count_items, insert_item},
        pool::{assert_whole, layer_with, opened},
        requests::{Failed, send, send_owned},
        wait::{BOUND, eventually},
    },
};

/// What a slow request waits for before its first statement.
#[derive(Clone)]
pub struct Gate {
    permits: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
}

impl Gate {
    pub fn new() -> Self {
        Self {
            permits: Arc::new(Semaphore::new(0)),
            waiting: Arc::default(),
        }
    }

    pub async fn pass(&self) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        self.permits.acquire().await.unwrap().forget();
    }

    /// Waits until so many requests have a connection, and wait.
    pub async fn reached(&self, count: usize) {
        eventually("they wait at the gate", async || {
            self.waiting.load(Ordering::SeqCst) == count
        })
        .await;
    }

    pub fn is_reached(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }

    pub fn open(&self) {
        self.permits.add_permits(1000);
    }
}

pub async fn select(db: &impl ConnectionTrait) {
    let statement = Statement::from_string(db.get_database_backend(), "SELECT 1");
    db.query_one_raw(statement).await.unwrap();
}

/// The ways in which a handler has its session.
const WAYS: [&str; 3] = ["autocommit", "transaction", "db_tx"];

/// A service whose requests to `/slow/…` wait for the gate before their only statement, and those to `/fast/…` do not.
fn app(layer: DbSessionLayer, way: &str, gate: &Gate) -> Router {
    match way {
        "db_tx" => routes::<DbTx>(gate).layer(layer),
        "transaction" => routes::<DbSession>(gate).layer(layer.transaction()),
        _ => routes::<DbSession>(gate).layer(layer),
    }
}

fn routes<Db>(gate: &Gate) -> Router
where
    Db: FromRequestParts<()> + ConnectionTrait + Send + Sync + 'static,
{
    let gate = gate.clone();
    let slow = move |db: Db, Path(name): Path<String>| {
        let gate = gate.clone();
        async move {
            gate.pass().await;
            insert_item(&db, &name).await;
        }
    };
    let fast = |db: Db, Path(name): Path<String>| async move { insert_item(&db, &name).await };
    Router::new()
        .route("/slow/{name}", get(slow))
        .route("/fast/{name}", get(fast))
}

#[tokio::test]
async fn slow_requests_that_have_run_nothing_keep_no_connection_from_others() {
    for kind in Kind::ALL {
        for way in WAYS {
            eprintln!("{kind:?}, {way}");
            let test = TestDb::new(kind).await;
            let db = test.connect(2).await;
            // More than may wait for a single connection.
            let layer = layer_with(&db, |pool| pool.acquire_timeout(BOUND).max_pending(100));
            let pool = layer.pool().clone();
            let gate = Gate::new();
            let app = app(layer, way, &gate);
            let max = pool.status().max;
            let slow: Vec<_> = (0..max as usize)
                .map(|n| tokio::spawn(send_owned(app.clone(), &format!("/slow/slow{n}"))))
                .collect();
            gate.reached(max as usize).await;
            let fast = (0..40).map(|n| send_owned(app.clone(), &format!("/fast/fast{n}")));
            let answers = timeout(BOUND / 2, join_all(fast)).await;
            for answer in answers.expect("the slow requests keep their connections") {
                assert_eq!(answer.status(), StatusCode::OK);
            }
            gate.open();
            for slow in slow {
                let answer = timeout(BOUND, slow).await.unwrap().unwrap();
                assert_eq!(answer.status(), StatusCode::OK);
            }
            for name in ["slow0", "fast0", "fast39"] {
                assert_eq!(count_items(&db, name).await, 1, "{name}");
            }
            assert_whole(&test, &db, max).await;
        }
    }
}

#[tokio::test]
async fn slow_uploads_over_a_real_connection_keep_no_connection_from_others() {
    async fn upload(db: DbSession, body: String) -> Result<String, Failed> {
        insert_item(&db, &body).await;
        Ok(body)
    }
    for (kind, transaction) in [(Kind::Postgres, false), (Kind::MySql, true)] {
        let test = TestDb::new(kind).await;
        let db = test.connect(2).await;
        let mut layer = layer_with(&db, |pool| pool.acquire_timeout(BOUND).max_pending(100));
        if transaction {
            layer = layer.transaction();
        }
        let pool = layer.pool().clone();
        let app = Router::new()
            .route("/upload", axum::routing::post(upload))
            .route("/ping", get(async |db: DbSession| select(&db).await))
            .layer(layer);
        let server = Server::start(app.clone()).await;
        let mut uploads = Vec::new();
        for part in ["on", "tw"] {
            let mut line = server.connect().await;
            let head = "POST /upload HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 4\r\n\r\n";
            line.write_all(format!("{head}{part}").as_bytes())
                .await
                .unwrap();
            uploads.push(line);
        }
        // The second may have borrowed the first one's.
        eventually("they have begun", async || pool.status().used > 0).await;
        let pings = (0..40).map(|_| send(&app, "/ping"));
        let answers = timeout(BOUND / 2, join_all(pings)).await;
        for answer in answers.expect("the uploads keep their connections") {
            assert_eq!(answer.status(), StatusCode::OK);
        }
        for line in &mut uploads {
            line.write_all(b"ow").await.unwrap();
            let mut answer = String::new();
            timeout(BOUND, line.read_to_string(&mut answer))
                .await
                .unwrap()
                .unwrap();
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        }
        for name in ["onow", "twow"] {
            assert_eq!(count_items(&db, name).await, 1, "{name}");
        }
    }
}

/// G2: from its first statement on, a session keeps its connection, however long its handler waits for something else.
#[tokio::test]
async fn g2_a_session_that_has_run_a_statement_does_not_lend() {
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let db = test.connect(1).await;
        let layer = layer_with(&db, |pool| pool.acquire_timeout(Duration::from_millis(200)));
        let pool = layer.pool().clone();
        let gate = Gate::new();
        let passed = gate.clone();
        let used = Arc::new(Notify::new());
        let has_used = used.clone();
        let app = Router::new()
            .route(
                "/used",
                get(async move |db: DbSession| {
                    insert_item(&db, "first").await;
                    has_used.notify_one();
                    passed.pass().await;
                    insert_item(&db, "second").await;
                }),
            )
            .route(
                "/other",
                get(async |db: DbSession| insert_item(&db, "other").await),
            )
            .layer(layer);
        let holder = tokio::spawn(send_owned(app.clone(), "/used"));
        used.notified().await;
        assert_eq!(
            send(&app, "/other").await.status(),
            StatusCode::SERVICE_UNAVAILABLE
        );
        assert_eq!(pool.status().used, 1);
        gate.open();
        let answer = timeout(BOUND, holder).await.unwrap().unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(send(&app, "/other").await.status(), StatusCode::OK);
    }
}

/// G10: a request that was let in and has lent its connection is not turned away by those who came later.
#[tokio::test]
async fn a_session_that_has_lent_its_connection_is_not_turned_away() {
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let db = test.connect(1).await;
        let layer = layer_with(&db, |pool| pool.acquire_timeout(BOUND).max_pending(1));
        let pool = layer.pool().clone();
        let gate = Gate::new();
        let app = app(layer, "autocommit", &gate);
        let slow = tokio::spawn(send_owned(app.clone(), "/slow/slow"));
        gate.reached(1).await;
        // Its connection goes to a session that keeps it, and the queue fills up.
        let holder = opened(&pool).await;
        let waiter = tokio::spawn(send_owned(app.clone(), "/fast/fast"));
        eventually("one waits", async || pool.status().pending == 1).await;
        gate.open();
        eventually("both wait", async || pool.status().pending == 2).await;
        drop(holder);
        for request in [slow, waiter] {
            let answer = timeout(BOUND, request).await.unwrap().unwrap();
            assert_eq!(answer.status(), StatusCode::OK);
        }
        assert_eq!(count_items(&db, "slow").await, 1);
    }
}

/// A connection that another client holds, or that the server does not give, may never come: what waits for it borrows.
#[tokio::test]
async fn g17_a_session_lends_also_while_another_connection_is_being_fetched() {
    for kind in [Kind::Postgres, Kind::MySql] {
        let test = TestDb::new(kind).await;
        let db = test.connect(2).await;
        let plain = db.begin().await.unwrap();
        let layer = layer_with(&db, |pool| pool.acquire_timeout(BOUND));
        let gate = Gate::new();
        let app = app(layer, "autocommit", &gate);
        let slow = tokio::spawn(send_owned(app.clone(), "/slow/slow"));
        gate.reached(1).await;
        for n in 0..5 {
            let answer = timeout(BOUND / 2, send(&app, &format!("/fast/fast{n}"))).await;
            assert_eq!(answer.expect("it borrows").status(), StatusCode::OK);
        }
        gate.open();
        let answer = timeout(BOUND, slow).await.unwrap().unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        plain.rollback().await.unwrap();
    }
}

/// With `max_pending(0)` no request waits for what another one uses; what is lent can be had at once.
#[tokio::test]
async fn g10_a_connection_that_can_be_lent_counts_as_free() {
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let db = test.connect(1).await;
        let layer = layer_with(&db, |pool| pool.acquire_timeout(BOUND).max_pending(0));
        let gate = Gate::new();
        let app = app(layer, "autocommit", &gate);
        let slow = tokio::spawn(send_owned(app.clone(), "/slow/slow"));
        gate.reached(1).await;
        assert_eq!(send(&app, "/fast/fast").await.status(), StatusCode::OK);
        gate.open();
        let answer = timeout(BOUND, slow).await.unwrap().unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
    }
}

#[tokio::test]
async fn a_request_lends_its_unused_connection_to_its_own_second_session() {
    async fn second(db: DbSession) -> Result<(), Failed> {
        let session = db.pool().session().await.map_err(DbErr::from)?;
        select(&session).await;
        drop(session);
        select(&db).await;
        Ok(())
    }
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let db = test.connect(1).await;
        let layer = layer_with(&db, |pool| pool.acquire_timeout(BOUND));
        let app = Router::new().route("/", get(second)).layer(layer);
        for _ in 0..3 {
            let answer = timeout(BOUND, send(&app, "/")).await.unwrap();
            assert_eq!(answer.status(), StatusCode::OK);
        }
    }
}

#[tokio::test]
async fn a_job_that_has_run_nothing_lends_its_connection() {
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let db = test.connect(1).await;
        let layer = layer_with(&db, |pool| pool.acquire_timeout(BOUND));
        let pool = layer.pool().clone();
        let gate = Gate::new();
        let job = tokio::spawn({
            let (pool, gate) = (pool.clone(), gate.clone());
            async move {
                pool.transaction(async |tx| {
                    gate.pass().await;
                    insert_item(tx, "job").await;
                    Ok::<_, DbErr>(())
                })
                .await
            }
        });
        gate.reached(1).await;
        let session = opened(&pool).await;
        insert_item(&session, "other").await;
        drop(session);
        gate.open();
        timeout(BOUND, job).await.unwrap().unwrap().unwrap();
        assert_eq!(count_items(&db, "job").await, 1);
    }
}

#[tokio::test]
async fn a_request_dropped_after_it_has_lent_costs_nothing() {
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let db = test.connect(1).await;
        let layer = layer_with(&db, |pool| pool.acquire_timeout(BOUND));
        let pool = layer.pool().clone();
        let gate = Gate::new();
        let app = app(layer, "autocommit", &gate);
        let slow = tokio::spawn(send_owned(app.clone(), "/slow/slow"));
        gate.reached(1).await;
        let holder = opened(&pool).await;
        slow.abort();
        assert!(slow.await.unwrap_err().is_cancelled());
        insert_item(&holder, "kept").await;
        drop(holder);
        assert_whole(&test, &db, 1).await;
    }
}

/// G7, G8: requests that wait before, between and after their statements, with fewer connections than requests: each one
/// is served, and what it wrote is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_of_requests_that_lend_is_served() {
    async fn write(tx: DbTx, Path(number): Path<usize>) -> Result<(), Failed> {
        for _ in 0..number % 4 {
            yield_now().await;
        }
        if number.is_multiple_of(3) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        insert_item(&tx, &format!("crowd{number}")).await;
        for _ in 0..number % 3 {
            yield_now().await;
        }
        select(&tx).await;
        Ok(())
    }
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let db = test.connect(2).await;
        let layer = layer_with(&db, |pool| pool.acquire_timeout(BOUND).max_pending(1000));
        let max = layer.pool().status().max;
        let app = Router::new().route("/{number}", get(write)).layer(layer);
        let requests = (0..200).map(|n| tokio::spawn(send_owned(app.clone(), &format!("/{n}"))));
        for answer in timeout(BOUND, join_all(requests)).await.unwrap() {
            assert_eq!(answer.unwrap().status(), StatusCode::OK);
        }
        for number in 0..200 {
            assert_eq!(count_items(&db, &format!("crowd{number}")).await, 1);
        }
        assert_whole(&test, &db, max).await;
    }
}
