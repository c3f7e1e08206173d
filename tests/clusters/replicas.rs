//! G19: clients write and read their own rows while the replicas' replay is paused at random.

use sea_orm::IsolationLevel;

use super::{
    nodes::{self, steer},
    pairs::{Cluster, LEVELS, Pauses, Seen, run},
    report::Table,
    site,
    support::cases,
};

const TABLE: Table = Table {
    name: "replicas",
    head: &[
        "a row written, and then read",
        "pairs",
        "stale",
        "read on a replica",
        "5xx",
    ],
};

/// Counts the pairs of one service after the other.
pub struct Rounds {
    cluster: Cluster,
    table: &'static Table,
    pairs: usize,
    /// Behind the numbers of the last round.
    first: i64,
}

impl Rounds {
    pub async fn by(ways: [&str; 3], table: &'static Table) -> Self {
        Self {
            cluster: Cluster::by(ways).await,
            table,
            pairs: cases(2_000) as usize,
            first: 1,
        }
    }

    fn numbers(&mut self) -> i64 {
        self.first += 10_000_000;
        self.first
    }

    /// With the position: whatever the pauses, each client reads its own write.
    pub async fn none_is_stale(&mut self, what: &str, level: Option<IsolationLevel>, pauses: bool) {
        let app = self.cluster.by_layer(level, 2).await;
        let pauses = pauses.then(|| Pauses::begin(&self.cluster.beside));
        let seen = run(&app, self.numbers(), self.pairs, true).await;
        if let Some(pauses) = pauses {
            pauses.end().await;
        }
        let [_, stale, on_replica, errors] = report(self.table, &seen, what);
        assert_eq!((stale, errors), (0, 0), "{what}");
        assert!(on_replica > 0, "{what}: nothing was read on a replica");
    }

    /// Without it: the control.
    pub async fn some_are_stale(&mut self, what: &str, is_by_hand: bool) {
        let app = match is_by_hand {
            true => self.cluster.by_hand(),
            false => self.cluster.by_layer(None, 2).await,
        };
        let pauses = Pauses::begin(&self.cluster.beside);
        let seen = run(&app, self.numbers(), self.pairs, false).await;
        pauses.end().await;
        let [_, stale, ..] = report(self.table, &seen, what);
        assert!(stale > 0, "{what}: the pauses show nothing");
    }
}

/// Adds the row of a round to a table of these columns: what it was, pairs, stale ones, those read elsewhere, errors.
pub fn report(table: &Table, seen: &Seen, what: &str) -> [usize; 4] {
    let [pairs, stale, on_replica, errors] = seen.counts();
    let share = 100.0 * on_replica as f64 / pairs.max(1) as f64;
    table.row(&[
        what.to_owned(),
        pairs.to_string(),
        stale.to_string(),
        format!("{share:.1} %"),
        errors.to_string(),
    ]);
    [pairs, stale, on_replica, errors]
}

async fn start() {
    nodes::primary_and_replicas().await;
    site::make_table(&nodes::view(&nodes::url("p").await).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g19_no_client_misses_its_own_write() {
    start().await;
    let mut rounds = Rounds::by(["p", "r1", "r2"], &TABLE).await;
    let what = "this crate, replicas without pauses";
    rounds.none_is_stale(what, None, false).await;
    for (name, level) in LEVELS {
        let what = format!("this crate, replicas paused at random, {name}");
        rounds.none_is_stale(&what, Some(level), true).await;
    }
    let what = "this crate, the same, clients that drop the position";
    rounds.some_are_stale(what, false).await;
    let what = "by hand, the same: GET on a replica";
    rounds.some_are_stale(what, true).await;
}

/// In transaction mode, each server with fewer connections than the pool before it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g19_no_client_misses_its_own_write_behind_poolers() {
    start().await;
    steer(&["start_bouncer", "new", "4"]).await;
    steer(&["start_bouncer", "new", "4", "r1"]).await;
    steer(&["start_bouncer", "new", "4", "r2"]).await;
    let mut rounds = Rounds::by(["bouncer", "bouncer_r1", "bouncer_r2"], &TABLE).await;
    let what = "this crate, a PgBouncer before each server, without pauses";
    rounds.none_is_stale(what, None, false).await;
    for (name, level) in LEVELS {
        let what = format!("this crate, a PgBouncer before each server, paused at random, {name}");
        rounds.none_is_stale(&what, Some(level), true).await;
    }
    let what = "this crate, the same, clients that drop the position";
    rounds.some_are_stale(what, false).await;
}
