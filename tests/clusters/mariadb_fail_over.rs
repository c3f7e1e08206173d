//! G7, G18 on MariaDB: the primary dies under 32 clients that write, a replica is promoted, and the old primary comes back
//! as a replica; with semi-synchronous replication and without.

use std::{collections::HashSet, time::Instant};

use futures_util::future::join_all;

use super::{
    audit::Audit,
    clients::Clients,
    failover::{SOME, all_acknowledge, all_nodes_agree, refused_with_retry_after},
    nodes::{self, steer},
    report::{Table, about},
    site::{self, Maker, SIZE, Site},
    support::{site::port_of, wire::Proxy},
};

const TABLE: Table = Table {
    name: "mariadb_fail_over",
    head: &[
        "primary killed, replica promoted",
        "requests",
        "acknowledged",
        "503",
        "other 5xx",
        "5xx once it accepts",
        "acknowledged and lost",
        "of these only the dead one has",
        "longest time without a success",
        "longest answer",
        "the old primary's data",
    ],
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_semi_synchronous_replicas_no_acknowledged_write_is_lost() {
    let fall = fail_over(true).await;
    fall.report("semi-synchronous");
    for audit in &fall.audits {
        let lost = audit.lost().len();
        assert_eq!(lost, 0, "{} lost writes", audit.maker.name());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_them_only_what_no_mariadb_replica_had_is_lost() {
    let fall = fail_over(false).await;
    fall.report("replicas that lagged");
    for audit in &fall.audits {
        assert!(!audit.lost().is_empty(), "the replicas have not lagged");
    }
}

/// A fail-over, and what the clients of both services saw of it.
struct Fall {
    audits: Vec<Audit>,
    accepted: Instant,
    /// The rows that only the dead primary has.
    beyond: HashSet<(i32, i64)>,
    /// How the old primary came back.
    rejoined: String,
}

async fn fail_over(semi_sync: bool) -> Fall {
    nodes::mariadb_primary_and_replicas().await;
    let primary = nodes::url("p").await;
    site::make_table(&nodes::view(&primary).await).await;
    if semi_sync {
        steer(&["semi_sync"]).await;
    }
    let proxy = Proxy::start(port_of(&primary)).await;
    let url = proxy.url(&primary);
    let sites = join_all(Maker::BOTH.map(|maker| Site::start(maker, &url))).await;
    let clients: Vec<Clients> = sites.iter().map(Clients::start).collect();
    all_acknowledge(&clients, SOME).await;
    if !semi_sync {
        steer(&["mariadb_detach", "r1"]).await;
        steer(&["mariadb_detach", "r2"]).await;
        all_acknowledge(&clients, SOME).await;
    }
    steer(&["kill_node", "p"]).await;
    let new = promote_another(&proxy).await;
    nodes::accepts(&url).await;
    let accepted = Instant::now();
    all_acknowledge(&clients, SOME).await;
    let beyond = match semi_sync {
        // It drops what nobody has acknowledged when it comes back.
        true => HashSet::new(),
        false => only_there("p", new).await,
    };
    let rejoined = steer(&["mariadb_rejoin", "p", new]).await;
    all_acknowledge(&clients, SOME).await;
    let answers = join_all(clients.into_iter().map(Clients::stop)).await;
    let view = nodes::view(&nodes::url(new).await).await;
    let mut audits = Vec::new();
    for (site, answers) in sites.iter().zip(answers) {
        audits.push(Audit::new(site.maker, answers, &view).await);
    }
    all_nodes_agree(new, "SELECT count(*) FROM test.ledger").await;
    Fall {
        audits,
        accepted,
        beyond,
        rejoined,
    }
}

/// Promotes the replica that knows most, and leads new connections there.
async fn promote_another(proxy: &Proxy) -> &'static str {
    let most_advanced = steer(&["mariadb_most_advanced", "r1", "r2"]).await;
    let (new, other) = if most_advanced == "r1" {
        ("r1", "r2")
    } else {
        ("r2", "r1")
    };
    steer(&["mariadb_promote", new]).await;
    steer(&["mariadb_follow", other, new]).await;
    proxy.lead_to(port_of(&nodes::url(new).await));
    new
}

async fn only_there(old: &str, new: &str) -> HashSet<(i32, i64)> {
    let rows = steer(&["mariadb_beyond", old, new]).await;
    let rows = rows.lines().map(|row| {
        let (maker, number) = row.split_once('\t').expect("two columns");
        let maker = maker.parse().expect("a maker");
        (maker, number.parse().expect("a number"))
    });
    rows.collect()
}

impl Fall {
    /// Prints the rows, and asserts what holds in both ways.
    fn report(&self, scenario: &str) {
        for audit in &self.audits {
            let mark = audit.maker.mark();
            let lost: HashSet<i64> = audit.lost().iter().map(|answer| answer.number).collect();
            let beyond = lost
                .iter()
                .filter(|number| self.beyond.contains(&(mark, **number)));
            let (beyond, after) = (beyond.count(), audit.failed_since(Some(self.accepted)));
            TABLE.row(&[
                format!("{scenario}, {}", audit.maker.name()),
                audit.requests().to_string(),
                audit.acknowledged().to_string(),
                audit.status(503).to_string(),
                (audit.failed_since(None) - audit.status(503)).to_string(),
                after.to_string(),
                lost.len().to_string(),
                beyond.to_string(),
                about(audit.longest_gap()),
                about(audit.longest()),
                self.rejoined.clone(),
            ]);
            assert_eq!(lost.len(), beyond, "lost, and not at the dead primary");
            assert_eq!(audit.unanswered(), 0, "requests without an answer");
            if audit.maker == Maker::Layer {
                let errors = audit.errors();
                assert!(after <= SIZE as usize, "{after} of 5xx: {errors:?}");
                assert_eq!(audit.undead(), 0, "503, and committed");
                assert!(refused_with_retry_after(audit.answers()));
            }
        }
    }
}
