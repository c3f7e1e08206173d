//! G19 on MariaDB: clients write and read their own rows while the replicas' SQL threads are stopped at random.

use super::{nodes, pairs::LEVELS, replicas::Rounds, report::Table, site};

const TABLE: Table = Table {
    name: "mariadb",
    head: &[
        "a row written at a MariaDB primary, and then read",
        "pairs",
        "stale",
        "read on a replica",
        "5xx",
    ],
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g19_no_client_of_mariadb_misses_its_own_write() {
    nodes::mariadb_primary_and_replicas().await;
    site::make_table(&nodes::view(&nodes::url("p").await).await).await;
    let mut rounds = Rounds::by(["p", "r1", "r2"], &TABLE).await;
    let what = "this crate, replicas that run";
    rounds.none_is_stale(what, None, false).await;
    for (name, level) in LEVELS {
        let what = format!("this crate, SQL threads stopped at random, {name}");
        rounds.none_is_stale(&what, Some(level), true).await;
    }
    let what = "this crate, the same, clients that drop the position";
    rounds.some_are_stale(what, false).await;
    let what = "by hand, the same: GET on a replica";
    rounds.some_are_stale(what, true).await;
}
