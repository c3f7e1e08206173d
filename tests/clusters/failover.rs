//! G7, G18: the primary dies under 32 clients that write through HAProxy, a replica is promoted, and the old primary comes
//! back on its port as a replica.

use std::{collections::HashSet, time::Instant};

use futures_util::future::join_all;

use super::{
    audit::Audit,
    clients::{Answer, Clients},
    nodes::{self, steer},
    report::{Table, about},
    site::{self, Maker, SIZE, Site},
    support::{site::port_of, wait::eventually},
};

const TABLE: Table = Table {
    name: "failover",
    head: &[
        "primary killed, replica promoted",
        "requests",
        "acknowledged",
        "5xx",
        "5xx once it accepts",
        "acknowledged and lost",
        "of these beyond the switch",
        "again after",
        "longest answer",
    ],
};

/// Acknowledged writes of each service before something happens, and after it.
pub const SOME: usize = 200;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_synchronous_standbys_no_acknowledged_write_is_lost() {
    let fall = fail_over(true).await;
    fall.report("with synchronous standbys");
    for audit in &fall.audits {
        assert!(
            audit.lost().is_empty(),
            "{} lost writes",
            audit.maker.name()
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_them_only_the_writes_beyond_the_switch_are_lost() {
    let fall = fail_over(false).await;
    fall.report("with replicas that lagged");
    for audit in &fall.audits {
        assert!(!audit.lost().is_empty(), "the replicas have not lagged");
    }
}

/// A fail-over, and what the clients of both services saw of it.
struct Fall {
    audits: Vec<Audit>,
    accepted: Instant,
    /// The transactions that only the dead primary has committed, as [`site`] names them.
    beyond: HashSet<String>,
}

async fn fail_over(synchronous: bool) -> Fall {
    nodes::primary_and_replicas().await;
    steer(&["start_haproxy", "primary", "p", "r1", "r2"]).await;
    site::make_table(&nodes::view(&nodes::url("p").await).await).await;
    if synchronous {
        steer(&["synchronous", "ANY 1 (p, r1, r2)"]).await;
    }
    let url = nodes::url("haproxy").await;
    let sites = join_all(Maker::BOTH.map(|maker| Site::start(maker, &url))).await;
    let clients: Vec<Clients> = sites.iter().map(Clients::start).collect();
    all_acknowledge(&clients, SOME).await;
    if !synchronous {
        steer(&["detach", "r1"]).await;
        steer(&["detach", "r2"]).await;
        all_acknowledge(&clients, SOME).await;
    }
    let (new, accepted) = promote_another(&url).await;
    let beyond = steer(&["committed_beyond", "p", new]).await;
    all_acknowledge(&clients, SOME).await;
    steer(&["rejoin", "p", new]).await;
    all_acknowledge(&clients, SOME).await;
    // The one that came back takes part: it has what the others have.
    assert_eq!(
        steer(&["sql", "p", "SELECT pg_is_in_recovery()"]).await,
        "t"
    );
    let answers = join_all(clients.into_iter().map(Clients::stop)).await;
    let port = port_of(&nodes::url("p").await);
    let view = nodes::view(&nodes::url(new).await).await;
    let mut audits = Vec::new();
    for (site, answers) in sites.iter().zip(answers) {
        audits.push(Audit::new(site.maker, answers, &view).await);
    }
    all_nodes_agree(new, "SELECT count(*) FROM ledger").await;
    Fall {
        audits,
        accepted,
        beyond: beyond
            .lines()
            .map(|number| format!("{port}/{number}"))
            .collect(),
    }
}

pub async fn all_acknowledge(clients: &[Clients], count: usize) {
    join_all(clients.iter().map(|clients| clients.acknowledge(count))).await;
}

/// Kills the primary and promotes the replica that knows most. Returns it, and when a connection through HAProxy reached it.
async fn promote_another(url: &str) -> (&'static str, Instant) {
    steer(&["kill_node", "p"]).await;
    let most_advanced = steer(&["most_advanced", "r1", "r2"]).await;
    let (new, other) = if most_advanced == "r1" {
        ("r1", "r2")
    } else {
        ("r2", "r1")
    };
    steer(&["promote", new]).await;
    steer(&["follow", other, new]).await;
    nodes::accepts(url).await;
    (new, Instant::now())
}

pub async fn all_nodes_agree(primary: &str, count: &str) {
    let count = ["sql", primary, count];
    for node in ["p", "r1", "r2"] {
        eventually("each node has each row", async || {
            steer(&["sql", node, count[2]]).await == steer(&count).await
        })
        .await;
    }
}

impl Fall {
    /// Prints the rows, and asserts what holds with and without synchronous standbys.
    fn report(&self, scenario: &str) {
        for audit in &self.audits {
            let lost: HashSet<i64> = audit.lost().iter().map(|answer| answer.number).collect();
            let beyond = audit.of_transactions(&self.beyond);
            let after = audit.failed_since(Some(self.accepted));
            TABLE.row(&[
                format!("{scenario}, {}", audit.maker.name()),
                audit.requests().to_string(),
                audit.acknowledged().to_string(),
                audit.failed_since(None).to_string(),
                after.to_string(),
                lost.len().to_string(),
                lost.intersection(&beyond).count().to_string(),
                audit
                    .first_success_after(self.accepted)
                    .map_or("never".to_owned(), about),
                about(audit.longest()),
            ]);
            assert_eq!(lost, beyond, "lost is what is beyond the switch point");
            assert_eq!(audit.unanswered(), 0, "requests without an answer");
            if audit.maker == Maker::Layer {
                assert!(
                    after <= SIZE as usize,
                    "{after} of 5xx: {:?}",
                    audit.errors()
                );
                assert_eq!(audit.undead(), 0, "503, and committed");
                assert!(refused_with_retry_after(audit.answers()));
            }
        }
    }
}

/// Whether each 503 says when to try again.
pub fn refused_with_retry_after(answers: &[Answer]) -> bool {
    let mut refused = answers.iter().filter(|answer| answer.status == Some(503));
    refused.all(|answer| answer.retry_after)
}
