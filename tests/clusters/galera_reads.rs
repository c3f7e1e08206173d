//! G19 on three Galera nodes: one takes the writes, the others serve reads, while large transactions hold their appliers up.

use std::{sync::Mutex, time::Duration};

use axum::Router;
use futures_util::future::join_all;
use http::StatusCode;
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, Statement};
use tokio::{task::JoinHandle, time::sleep};
use tower_sea_orm::RetryLayer;

use super::{
    nodes::{self, steer},
    pairs::{Cluster, LEVELS, Seen, run, send},
    replicas::report,
    report::Table,
    site,
    support::{cases, wait::eventually},
};

const TABLE: Table = Table {
    name: "galera_reads",
    head: &[
        "a row is written at one node, then read",
        "pairs",
        "stale",
        "read at the other nodes",
        "errors",
    ],
};

/// Transactions that take the other nodes longer to apply than to receive, until it is dropped. All that commits behind
/// one waits for it there.
struct Bulk(JoinHandle<()>);

impl Bulk {
    async fn begin(view: &DatabaseConnection) -> Self {
        let sql = "CREATE TABLE IF NOT EXISTS bulk (number int PRIMARY KEY, text varchar(200))";
        view.execute_unprepared(sql).await.expect("a table");
        let view = view.clone();
        Self(tokio::spawn(async move {
            let texts = [
                "INSERT INTO bulk SELECT seq, REPEAT('x', 200) FROM seq_1_to_8000",
                "DELETE FROM bulk",
            ];
            for text in texts.iter().cycle() {
                // Refused in a test that ends the node.
                let _ = view.execute_unprepared(text).await;
                sleep(Duration::from_millis(50)).await;
            }
        }))
    }

    async fn end(self) {
        self.0.abort();
        let _ = self.0.await;
    }
}

struct Rounds {
    cluster: Cluster,
    first: i64,
    view: DatabaseConnection,
}

impl Rounds {
    async fn start() -> Self {
        steer(&["remove_nodes"]).await;
        steer(&["start_galera"]).await;
        let view = nodes::view(&nodes::url("n0").await).await;
        site::make_table(&view).await;
        Self {
            cluster: Cluster::beside(["n0", "n1", "n2"], ["n1", "n2"]).await,
            first: 1,
            view,
        }
    }

    async fn pairs(&mut self, app: &Router, keeps: bool, bulk: bool) -> Seen {
        let pairs = usize::try_from(cases(2000)).expect("a small number");
        let first = self.first;
        self.first += i64::try_from(pairs).expect("a small number");
        let bulk = match bulk {
            true => Some(Bulk::begin(&self.view).await),
            false => None,
        };
        let seen = run(app, first, pairs, keeps).await;
        if let Some(bulk) = bulk {
            bulk.end().await;
        }
        seen
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g19_no_client_of_galera_nodes_misses_its_own_write() {
    let mut rounds = Rounds::start().await;
    let none_is_stale = |seen: &Seen, what: &str| {
        let [_, stale, elsewhere, errors] = report(&TABLE, seen, what);
        assert_eq!((stale, errors), (0, 0), "{what}");
        assert!(elsewhere > 0, "{what}: nothing was read at another node");
    };
    let app = rounds.cluster.by_layer(None, 2).await;
    let seen = rounds.pairs(&app, true, false).await;
    none_is_stale(&seen, "this crate");
    for (name, level) in LEVELS {
        let app = rounds.cluster.by_layer(Some(level), 2).await;
        let seen = rounds.pairs(&app, true, true).await;
        none_is_stale(
            &seen,
            &format!("this crate, beside large transactions, {name}"),
        );
    }
    let controls = [
        (
            "this crate, the same, clients that drop the position",
            rounds.cluster.by_layer(None, 2).await,
        ),
        (
            "by hand, the same: GET at another node",
            rounds.cluster.by_hand(),
        ),
    ];
    for (what, app) in controls {
        let seen = rounds.pairs(&app, false, true).await;
        let [_, stale, ..] = report(&TABLE, &seen, what);
        assert!(stale > 0, "{what}: the other nodes are never behind");
    }
    a_node_that_stands_still_is_left_alone(&mut rounds).await;
    // On the last nodes of the test, since they are ended.
    forged_positions_are_harmless(&rounds.cluster).await;
    a_dead_node_and_a_lost_quorum_are_noticed(&rounds.cluster).await;
}

/// A node that is to be backed up leaves flow control and applies nothing: it falls behind for as long as that takes.
async fn a_node_that_stands_still_is_left_alone(rounds: &mut Rounds) {
    let node = nodes::view(&nodes::url("n2").await).await;
    let run = async |sql: &str| {
        node.execute_unprepared(sql)
            .await
            .expect("the node does so");
    };
    run("SET GLOBAL wsrep_desync = ON").await;
    run("FLUSH TABLES WITH READ LOCK").await;
    let app = rounds.cluster.by_layer(None, 1).await;
    let seen = rounds.pairs(&app, true, false).await;
    let what = "this crate, one of the two stands still";
    let [pairs, stale, elsewhere, errors] = report(&TABLE, &seen, what);
    assert_eq!((stale, errors), (0, 0), "{what}");
    assert!(elsewhere * 2 > pairs, "the other one serves reads");
    let app = rounds.cluster.by_hand();
    let what = "by hand, the same";
    let [_, stale, ..] = report(&TABLE, &rounds.pairs(&app, false, false).await, what);
    assert!(stale > 0, "{what}: it does not stand still");
    run("UNLOCK TABLES").await;
    run("SET GLOBAL wsrep_desync = OFF").await;
    // Both are in use again.
    let _ = rounds.cluster.by_layer(None, 2).await;
}

async fn forged_positions_are_harmless(cluster: &Cluster) {
    let app = cluster.by_layer(None, 2).await;
    let (status, _, cookie) = send(&app, "POST", 1_000_000, None).await;
    assert_eq!(status, StatusCode::OK);
    let cookie = cookie.expect("the position of what was written");
    let (start, sequence) = cookie.rsplit_once(':').expect("a number behind a colon");
    let forged = [
        format!("{start}:9223372036854775807"),
        format!("{start}:18446744073709551615"),
        format!("{start}:1 OR 1 = 1"),
        format!("{start}:"),
        cookie.replacen(|digit: char| digit.is_ascii_hexdigit(), "f", 1),
        cookie.replace(start, &start.replace(['0', '1', '2', '3'], "e")),
    ];
    for forged in forged {
        let (status, text, _) = send(&app, "GET", 1_000_000, Some(&forged)).await;
        assert_eq!(status, StatusCode::OK, "{forged}: {text}");
        assert!(text.starts_with("1 "), "{forged}: {text}");
    }
    // The control: the true one is good for another node.
    assert!(sequence.parse::<u64>().is_ok(), "{cookie}");
    let (_, text, _) = send(&app, "GET", 1_000_000, Some(&cookie)).await;
    assert_eq!(text, "1 replica");
}

async fn a_dead_node_and_a_lost_quorum_are_noticed(cluster: &Cluster) {
    let app = cluster.by_layer(None, 2).await;
    steer(&["kill_node", "n2"]).await;
    for number in 0..100 {
        let (status, text, _) = send(&app, "GET", number, None).await;
        assert_eq!(status, StatusCode::OK, "{text}");
    }
    let app = cluster.by_layer(None, 1).await;
    let (status, _, cookie) = send(&app, "POST", 2_000_000, None).await;
    assert_eq!(status, StatusCode::OK);
    let (_, text, _) = send(&app, "GET", 2_000_000, cookie.as_deref()).await;
    assert!(text.starts_with("1 "), "{text}");
}

/// The node has sent what it commits to the others when it loses them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g7_a_commit_that_galera_gives_up_is_unknown() {
    let rounds = Rounds::start().await;
    let app = rounds.cluster.by_layer(None, 2).await;
    let app = app.layer(RetryLayer::new());
    for node in ["n1", "n2"] {
        steer(&["freeze_node", node]).await;
    }
    let writes = (1..=10).map(|number| send(&app, "POST", number, None));
    let answers = join_all(writes).await;
    for node in ["n1", "n2"] {
        steer(&["thaw_node", node]).await;
    }
    let sql = "SELECT CAST(number AS SIGNED) FROM ledger WHERE number BETWEEN 1 AND 10";
    let sql = Statement::from_string(DbBackend::MySql, sql);
    let rows = Mutex::new(Vec::new());
    eventually("the node takes part in its cluster again", async || {
        let found = rounds.view.query_all_raw(sql.clone()).await;
        let is_up = found.is_ok();
        *rows.lock().expect("not poisoned") = found.unwrap_or_default();
        is_up
    })
    .await;
    let rows = rows.into_inner().expect("not poisoned");
    let stored: Vec<i64> = rows
        .iter()
        .map(|row| row.try_get_by_index(0).expect("a number"))
        .collect();
    eprintln!("stored: {stored:?}, answers: {answers:?}");
    let given_up = StatusCode::INTERNAL_SERVER_ERROR;
    assert!(answers.iter().any(|(status, ..)| *status == given_up));
    for (number, (status, text, _)) in (1..).zip(&answers) {
        let is_told = [StatusCode::OK, given_up].contains(status);
        assert!(
            is_told || !stored.contains(&number),
            "{number} is stored, and was answered with {status}: {text}"
        );
    }
}
