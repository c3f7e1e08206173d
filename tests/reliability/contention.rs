//! Many clients on a few counters, in SERIALIZABLE transactions, without and with a `RetryLayer`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{Router, body::Body, extract::Path, http::Request, routing::post};
use futures_util::future::join_all;
use sea_orm::{ConnectionTrait, DbErr, IsolationLevel, Statement, TransactionOptions};
use tower::ServiceExt;
use tower_sea_orm::{Attempt, DbSessionLayer, DbTx, RetryLayer, SessionPool};

use super::{
    is_long,
    load::Dice,
    report::keep,
    support::{
        database::{Kind, TestDb},
        requests::Failed,
        site::value,
    },
};

const CLIENTS: u64 = 64;
const COUNTERS: u64 = 8;
const CONNECTIONS: u32 = 16;

const HEAD: &str = "| scenario | requests | handler runs | retries | acknowledged | 503 | counted in the database | lost or doubled | seconds |\n\
                    |---|--:|--:|--:|--:|--:|--:|--:|--:|\n";

/// What the clients have seen.
#[derive(Default)]
struct Seen {
    acknowledged: AtomicU64,
    refused: AtomicU64,
    retries: AtomicU64,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counters_on_postgres_are_exact_with_and_without_retries() {
    counters(Kind::Postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counters_on_mariadb_are_exact_with_and_without_retries() {
    counters(Kind::MySql).await;
}

async fn counters(kind: Kind) {
    let without = measure(kind, None).await;
    let retry = RetryLayer::new()
        .attempts(1000)
        .budget(1000.0)
        .total_timeout(Duration::from_secs(600));
    let with = measure(kind, Some(retry)).await;
    assert_eq!(with, 0, "{kind:?}: each is served in the end");
    if is_long() {
        assert!(without > 0, "{kind:?}: nobody was in anybody's way");
    }
}

/// Returns how many requests were answered by 503.
async fn measure(kind: Kind, retry: Option<RetryLayer>) -> u64 {
    let test = TestDb::new(kind).await;
    let db = test.connect(CONNECTIONS).await;
    for counter in 0..COUNTERS {
        let insert = format!("INSERT INTO item (name) VALUES ('{counter}')");
        db.execute_unprepared(&insert).await.unwrap();
    }
    let runs = Arc::new(AtomicU64::new(0));
    let has_retry = retry.is_some();
    let app = service(
        SessionPool::builder(db.clone())
            .acquire_timeout(Duration::from_secs(600))
            .build()
            .unwrap(),
        retry,
        runs.clone(),
    );
    let (seen, rounds) = (Seen::default(), if is_long() { 50 } else { 3 });
    let started = Instant::now();
    join_all((0..CLIENTS).map(|client| send(&app, &seen, client, rounds))).await;
    let seconds = started.elapsed().as_secs_f64();
    let [acknowledged, refused, retries] = [&seen.acknowledged, &seen.refused, &seen.retries]
        .map(|count| count.load(Ordering::Relaxed));
    let (requests, runs) = (CLIENTS * rounds, runs.load(Ordering::Relaxed));
    let sum = "SELECT CAST(sum(hits) AS char(20)) FROM item";
    let counted: u64 = value::<String>(&db, sum).await.trim().parse().unwrap();
    let wrong = counted.abs_diff(2 * acknowledged);
    let layer = if has_retry { "with" } else { "without" };
    let line = format!(
        "| {kind:?}, {layer} the layer | {requests} | {runs} | {retries} | {acknowledged} | {refused} | {counted} | {wrong} | {seconds:.1} |\n"
    );
    eprintln!("{HEAD}{line}");
    keep("contention", HEAD, &line);
    assert_eq!(acknowledged + refused, requests, "{kind:?}");
    assert_eq!(
        runs,
        requests + retries,
        "{kind:?}: a handler ran that no answer tells of"
    );
    assert_eq!(
        wrong, 0,
        "{kind:?}: acknowledged twice {acknowledged}, counted {counted}"
    );
    refused
}

fn service(pool: SessionPool, retry: Option<RetryLayer>, runs: Arc<AtomicU64>) -> Router {
    let handler = async move |tx: DbTx, Path((first, second)): Path<(u64, u64)>| {
        runs.fetch_add(1, Ordering::Relaxed);
        count(&tx, [first, second]).await.map_err(Failed)
    };
    let serializable = TransactionOptions {
        isolation_level: Some(IsolationLevel::Serializable),
        ..Default::default()
    };
    let app = Router::new()
        .route("/{first}/{second}", post(handler))
        .layer(DbSessionLayer::new(pool).transaction_with(serializable));
    match retry {
        Some(retry) => app.layer(retry),
        None => app,
    }
}

/// Reads two counters and writes what it has read, and one.
async fn count(tx: &DbTx, counters: [u64; 2]) -> Result<(), DbErr> {
    let backend = tx.get_database_backend();
    for counter in counters {
        let read = format!("SELECT hits FROM item WHERE name = '{counter}'");
        let row = tx
            .query_one_raw(Statement::from_string(backend, read))
            .await?;
        let hits: i32 = row
            .ok_or(DbErr::Custom("no counter".into()))?
            .try_get_by_index(0)?;
        let write = format!(
            "UPDATE item SET hits = {} WHERE name = '{counter}'",
            hits + 1
        );
        tx.execute_unprepared(&write).await?;
    }
    Ok(())
}

/// One client's requests, each for two counters in any order.
async fn send(app: &Router, seen: &Seen, client: u64, rounds: u64) {
    let mut dice = Dice::new(client);
    for _ in 0..rounds {
        let first = dice.below(COUNTERS);
        let second = (first + 1 + dice.below(COUNTERS - 1)) % COUNTERS;
        let request = Request::post(format!("/{first}/{second}"));
        let response = app
            .clone()
            .oneshot(request.body(Body::empty()).unwrap())
            .await
            .unwrap();
        let attempt = Attempt::of(response.extensions()).number();
        seen.retries
            .fetch_add(u64::from(attempt - 1), Ordering::Relaxed);
        let counter = match response.status().as_u16() {
            200 => &seen.acknowledged,
            503 => &seen.refused,
            other => panic!("{other}"),
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}
