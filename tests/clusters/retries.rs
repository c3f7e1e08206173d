//! G20 on Galera: clients at three nodes want the same rows, in one order and in both, without and with a `RetryLayer`.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Body,
    extract::Path,
    http::{Request, request::Parts},
    routing::post,
};
use futures_util::future::join_all;
use sea_orm::{ConnectionTrait, DatabaseConnection, DbErr, Statement};
use tower::ServiceExt;
use tower_sea_orm::{Attempt, DbSessionLayer, DbTx, RetryLayer, SessionPool};

use super::{
    galera::three_nodes,
    nodes,
    report::Table,
    site::{self, Failed, Maker},
};

const TABLE: Table = Table {
    name: "retries",
    head: &[
        "60 clients, ten connections to a node",
        "requests",
        "handler runs",
        "retries",
        "runs refused at COMMIT",
        "acknowledged",
        "503",
        "lost or doubled",
        "seconds",
    ],
};

const CLIENTS: usize = 60;

/// Of each client.
const REQUESTS: u32 = 30;

/// Longer than anything here may take.
const PATIENCE: Duration = Duration::from_secs(600);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Retries {
    None,
    Default,
    /// As many as it takes, with the default back-off.
    Unlimited,
}

impl Retries {
    fn layer(self) -> Option<RetryLayer> {
        match self {
            Self::None => None,
            Self::Default => Some(RetryLayer::new()),
            Self::Unlimited => Some(
                RetryLayer::new()
                    .attempts(1000)
                    .budget(1000.0)
                    .total_timeout(PATIENCE),
            ),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::None => "no layer",
            Self::Default => "`RetryLayer::new()`",
            Self::Unlimited => "1000 attempts, budget 1000",
        }
    }
}

/// Which rows each request adds 1 to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rows {
    One,
    /// Half of the clients in the opposite order.
    Two,
}

impl Rows {
    fn of(self, client: usize) -> &'static [i32] {
        match (self, client % 2) {
            (Self::One, _) => &[1],
            (Self::Two, 0) => &[1, 2],
            (Self::Two, _) => &[2, 1],
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g20_every_conflict_of_three_nodes_is_retried_and_each_sum_is_exact() {
    three_nodes().await;
    let pools = join_all(["n0", "n1", "n2"].map(pool)).await;
    let view = nodes::view(&nodes::url("n0").await).await;
    let extremes = &[Retries::None, Retries::Unlimited][..];
    let all = &[Retries::None, Retries::Default, Retries::Unlimited][..];
    let measured = [
        ("one row, three nodes", Rows::One, 3, all),
        (
            "two rows in both orders, three nodes",
            Rows::Two,
            3,
            extremes,
        ),
        ("two rows in both orders, one node", Rows::Two, 1, extremes),
    ];
    for (name, rows, nodes, kinds) in measured {
        for retries in kinds {
            let round = Round::new(&pools[..nodes], rows, *retries);
            let seen = round.run(&view).await;
            round.report(name, *retries, seen);
        }
    }
}

async fn pool(node: &str) -> SessionPool {
    let database = site::connect(&nodes::url(node).await).await;
    let pool = SessionPool::builder(database).acquire_timeout(PATIENCE);
    pool.build().expect("a pool")
}

/// One service, and what its clients and handlers have counted.
struct Round {
    app: Router,
    rows: Rows,
    /// Handlers that ran, and those that came to their end.
    runs: Arc<[AtomicU64; 2]>,
    retries: AtomicU64,
    refused: AtomicU64,
    acknowledged: Mutex<HashSet<i64>>,
}

/// What there is in the database afterwards, as differences from what was acknowledged; and how long it took.
struct Found {
    wrong: u64,
    took: Duration,
}

impl Round {
    fn new(pools: &[SessionPool], rows: Rows, retries: Retries) -> Self {
        let runs = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
        let counts = runs.clone();
        let handler = async move |tx: DbTx, Path((client, number)): Path<(usize, i64)>| {
            counts[0].fetch_add(1, Ordering::Relaxed);
            add(&tx, rows.of(client), number).await?;
            counts[1].fetch_add(1, Ordering::Relaxed);
            Ok::<_, Failed>(())
        };
        let by_client = pools.to_vec();
        let layer = DbSessionLayer::new(pools[0].clone())
            .by(move |parts: &Parts| {
                let client = parts.uri.path().split('/').nth(1)?.parse::<usize>().ok()?;
                by_client.get(client % by_client.len()).cloned()
            })
            .transaction();
        let app = Router::new()
            .route("/{client}/{number}", post(handler))
            .layer(layer);
        Self {
            app: match retries.layer() {
                Some(retry) => app.layer(retry),
                None => app,
            },
            rows,
            runs,
            retries: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            acknowledged: Mutex::default(),
        }
    }

    async fn run(&self, view: &DatabaseConnection) -> Found {
        for sql in ["DELETE FROM ledger", "UPDATE counter SET hits = 0"] {
            view.execute_unprepared(sql).await.expect("a clean table");
        }
        let began = Instant::now();
        join_all((0..CLIENTS).map(|client| self.send(client))).await;
        let took = began.elapsed();
        let written = numbers(view, "SELECT number FROM ledger").await;
        let written: HashSet<i64> = written.into_iter().collect();
        let sums = numbers(view, "SELECT hits FROM counter ORDER BY maker").await;
        let acknowledged = self.acknowledged();
        let mut wrong = acknowledged.symmetric_difference(&written).count() as u64;
        for (row, sum) in [1, 2].into_iter().zip(sums) {
            let is_in = self.rows.of(0).contains(&row);
            let expected = if is_in { acknowledged.len() } else { 0 };
            wrong += sum.unsigned_abs().abs_diff(expected as u64);
        }
        Found { wrong, took }
    }

    fn acknowledged(&self) -> std::sync::MutexGuard<'_, HashSet<i64>> {
        let acknowledged = self.acknowledged.lock();
        acknowledged.unwrap_or_else(PoisonError::into_inner)
    }

    /// One client's requests.
    async fn send(&self, client: usize) {
        for round in 0..REQUESTS {
            let number = client as i64 * 1_000_000 + i64::from(round);
            let request = Request::post(format!("/{client}/{number}"));
            let request = request.body(Body::empty()).expect("a request");
            let Ok(response) = self.app.clone().oneshot(request).await;
            let attempt = Attempt::of(response.extensions()).number();
            self.retries
                .fetch_add(u64::from(attempt - 1), Ordering::Relaxed);
            match response.status().as_u16() {
                200 => assert!(self.acknowledged().insert(number)),
                503 => drop(self.refused.fetch_add(1, Ordering::Relaxed)),
                other => panic!("{other}: {:?}", response.into_body()),
            }
        }
    }

    fn report(&self, name: &str, retries: Retries, found: Found) {
        let [runs, ended] = [&self.runs[0], &self.runs[1]].map(|runs| runs.load(Ordering::Relaxed));
        let [again, refused] =
            [&self.retries, &self.refused].map(|count| count.load(Ordering::Relaxed));
        let acknowledged = self.acknowledged().len() as u64;
        let requests = CLIENTS as u64 * u64::from(REQUESTS);
        TABLE.row(&[
            format!("{name}, {}", retries.name()),
            requests.to_string(),
            runs.to_string(),
            again.to_string(),
            (ended - acknowledged).to_string(),
            acknowledged.to_string(),
            refused.to_string(),
            found.wrong.to_string(),
            format!("{:.1}", found.took.as_secs_f64()),
        ]);
        assert_eq!(found.wrong, 0, "{name}: what is there is what was said");
        assert_eq!(acknowledged + refused, requests, "{name}");
        assert_eq!(
            runs,
            requests + again,
            "{name}: runs that no answer tells of"
        );
        match retries {
            Retries::None => assert!(refused > 0, "{name}: nothing has collided"),
            Retries::Default => {
                // One for every five, and ten a second, of which those of ten seconds count together.
                let windows = 2 + found.took.as_secs() / 10;
                assert!(again > 0 && again <= requests / 5 + 100 * windows, "{name}");
            }
            Retries::Unlimited => {
                assert_eq!(refused, 0, "{name}: each is served in the end");
                assert_eq!(runs, acknowledged + again, "{name}");
            }
        }
    }
}

/// Writes the request's row, and adds 1 to these; with a pause, in which others take the next one.
async fn add(tx: &DbTx, rows: &[i32], number: i64) -> Result<(), DbErr> {
    site::write(tx, Maker::Layer, number).await?;
    for (place, row) in rows.iter().enumerate() {
        if place > 0 {
            tx.execute_unprepared("DO SLEEP(0.001)").await?;
        }
        let sql = format!("UPDATE counter SET hits = hits + 1 WHERE maker = {row}");
        tx.execute_unprepared(&sql).await?;
    }
    Ok(())
}

async fn numbers(view: &DatabaseConnection, sql: &str) -> Vec<i64> {
    let statement = Statement::from_string(view.get_database_backend(), sql);
    let rows = view.query_all_raw(statement).await.expect("the rows");
    let number = |row: &sea_orm::QueryResult| row.try_get_by_index(0).expect("a number");
    rows.iter().map(number).collect()
}
