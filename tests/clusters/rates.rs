//! Reads grow with each replica, where the servers are what limits them.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use axum::{Router, http::StatusCode, routing::get};
use futures_util::future::join_all;
use sea_orm::{ConnectOptions, ConnectionTrait, Database, DbBackend, Statement};
use tower_sea_orm::{DbSession, DbSessionLayer, Replicas, SessionPool, unsafe_methods};

use super::{nodes, pairs::send, report::Table, site::Failed, support::wait::eventually};

const TABLE: Table = Table {
    name: "rates",
    head: &[
        "32 clients read, each read sleeps for 20 ms in its server",
        "reads per second",
        "lowest",
        "highest",
        "read on a replica",
    ],
};

const CLIENTS: usize = 32;

/// To each server: these are what limits it, and not the machine that all of them share.
const CONNECTIONS: u32 = 4;

/// In each round.
const READS: usize = 300;

/// How often each service is measured, in turn with the others.
const ROUNDS: usize = 5;

/// A service over the primary and some of the replicas.
struct Service {
    name: &'static str,
    app: Router,
    replicas: Option<Replicas>,
    rates: Vec<f64>,
    reads: usize,
    on_replica: usize,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_per_second_grow_with_the_second_replica() {
    nodes::primary_and_replicas().await;
    let pools = join_all(["p", "r1", "r2"].map(pool)).await;
    let mut services = [
        Service::new("no replicas", &pools[..1]),
        Service::new("one replica", &pools[..2]),
        Service::new("two replicas", &pools),
    ];
    for _ in 0..ROUNDS {
        for service in &mut services {
            service.measure().await;
        }
    }
    let [_, one, two] = services.map(|service| service.report());
    assert!(two > 1.3 * one, "{one} and {two} reads per second");
}

async fn pool(node: &str) -> SessionPool {
    let mut options = ConnectOptions::new(nodes::url(node).await);
    options
        .min_connections(CONNECTIONS)
        .max_connections(CONNECTIONS)
        .sqlx_logging(false);
    SessionPool::new(Database::connect(options).await.expect("the node answers"))
}

impl Service {
    /// Over the primary and the replicas behind it.
    fn new(name: &'static str, pools: &[SessionPool]) -> Self {
        let layer = DbSessionLayer::new(pools[0].clone())
            .lazy()
            .transaction_if(unsafe_methods);
        let replicas = (pools.len() > 1).then(|| {
            // None is to leave the queue for the primary.
            let replicas = Replicas::of(pools[0].clone()).acquire_timeout(Duration::from_secs(30));
            let named = pools[1..].iter().zip(["r1", "r2"]);
            named.fold(replicas, |all, (pool, name)| {
                all.replica(name, pool.clone())
            })
        });
        let layer = match &replicas {
            Some(replicas) => layer.replicas(replicas.clone()),
            None => layer,
        };
        Self {
            name,
            app: Router::new().route("/{number}", get(read)).layer(layer),
            replicas,
            rates: Vec::new(),
            reads: 0,
            on_replica: 0,
        }
    }

    async fn measure(&mut self) {
        eventually("the replicas are in use", async || {
            send(&self.app, "GET", 0, None).await;
            let status = self.replicas.as_ref().map(Replicas::status);
            status.is_none_or(|all| all.iter().all(|one| one.out_of_use.is_none()))
        })
        .await;
        let app = &self.app;
        let (next, on_replica) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let client = async || {
            while next.fetch_add(1, Ordering::Relaxed) < READS {
                let (status, text, _) = send(app, "GET", 0, None).await;
                assert_eq!(status, StatusCode::OK, "{text}");
                on_replica.fetch_add(usize::from(text == "replica"), Ordering::Relaxed);
            }
        };
        let began = Instant::now();
        join_all((0..CLIENTS).map(|_| client())).await;
        let rate = READS as f64 / began.elapsed().as_secs_f64();
        self.rates.push(rate);
        self.reads += READS;
        self.on_replica += on_replica.into_inner();
    }

    /// Prints the row; returns the median.
    fn report(mut self) -> f64 {
        self.rates.sort_by(f64::total_cmp);
        let median = self.rates[ROUNDS / 2];
        let share = 100.0 * self.on_replica as f64 / self.reads as f64;
        TABLE.row(&[
            self.name.to_owned(),
            format!("{median:.0}"),
            format!("{:.0}", self.rates[0]),
            format!("{:.0}", self.rates[ROUNDS - 1]),
            format!("{share:.1} %"),
        ]);
        let expected = if self.replicas.is_some() { 95.0 } else { 0.0 };
        assert!(share >= expected, "{}: {share} % on replicas", self.name);
        median
    }
}

async fn read(db: DbSession) -> Result<&'static str, Failed> {
    let sleep = Statement::from_string(DbBackend::Postgres, "SELECT pg_sleep(0.02)");
    db.query_one_raw(sleep).await?;
    Ok(if db.is_replica() {
        "replica"
    } else {
        "primary"
    })
}
