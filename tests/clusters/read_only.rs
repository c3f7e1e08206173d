//! G18: connections that work lead to a server that takes no writes, and only new ones lead to the primary. Nothing ends
//! the old ones.

use std::time::Instant;

use futures_util::future::join_all;

use super::{
    audit::Audit,
    clients::Clients,
    nodes::{self, steer},
    report::{Table, about},
    site::{self, Maker, SIZE, Site},
    support::{site::port_of, wait::eventually, wire::Proxy},
};

const TABLE: Table = Table {
    name: "read_only",
    head: &[
        "connections to a read-only server live on",
        "requests",
        "acknowledged",
        "503",
        "other 5xx",
        "5xx once the name leads to the primary",
        "again after",
    ],
};

/// A service that has succeeded so often is not stuck, and the other one had its time as well.
const MANY: usize = 1000;

/// The name leads to the standby `r1` until both services were refused, and then to the primary.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_leaves_a_standby_once_its_name_leads_to_the_primary() {
    let [primary, standby] = primary_and_standby().await;
    let proxy = Proxy::start(port_of(&standby)).await;
    let (sites, clients) = services(&proxy.url(&standby)).await;
    eventually("both services were refused", async || {
        clients.iter().all(|clients| clients.failed() >= 100)
    })
    .await;
    proxy.lead_to(port_of(&primary));
    let led = Instant::now();
    clients[0].acknowledge(MANY).await;
    for audit in audits(&sites, clients, &primary).await {
        let after = judge("a standby for some seconds", &audit, led);
        assert!(audit.maker == Maker::Layer || after > SIZE as usize);
    }
}

/// A switch-over: the primary takes no writes from then on, the replica, which then has all there is, is promoted, and
/// the name leads to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_leaves_a_primary_that_takes_no_writes_any_more() {
    let [old, new] = primary_and_standby().await;
    let proxy = Proxy::start(port_of(&old)).await;
    let (sites, clients) = services(&proxy.url(&old)).await;
    join_all(clients.iter().map(|clients| clients.acknowledge(200))).await;
    steer(&["fence", "p"]).await;
    steer(&["catch_up", "r1", "p"]).await;
    steer(&["promote", "r1"]).await;
    proxy.lead_to(port_of(&new));
    let led = Instant::now();
    clients[0].acknowledge(MANY).await;
    for audit in audits(&sites, clients, &new).await {
        let after = judge("a primary that was demoted", &audit, led);
        assert!(audit.lost().is_empty(), "acknowledged writes are lost");
        assert!(audit.maker == Maker::Layer || after > SIZE as usize);
    }
}

async fn primary_and_standby() -> [String; 2] {
    steer(&["remove_nodes"]).await;
    steer(&["start_primary"]).await;
    let primary = nodes::url("p").await;
    site::make_table(&nodes::view(&primary).await).await;
    steer(&["start_replica", "r1"]).await;
    [primary, nodes::url("r1").await]
}

async fn services(url: &str) -> (Vec<Site>, Vec<Clients>) {
    let sites = join_all(Maker::BOTH.map(|maker| Site::start(maker, url))).await;
    let clients = sites.iter().map(Clients::start).collect();
    (sites, clients)
}

async fn audits(sites: &[Site], clients: Vec<Clients>, url: &str) -> Vec<Audit> {
    let answers = join_all(clients.into_iter().map(Clients::stop)).await;
    let view = nodes::view(url).await;
    let audits = sites.iter().zip(answers);
    join_all(audits.map(|(site, answers)| Audit::new(site.maker, answers, &view))).await
}

/// Prints the row; returns how many server errors there were to requests that were sent since the name leads to the primary.
fn judge(scenario: &str, audit: &Audit, led: Instant) -> usize {
    let after = audit.failed_since(Some(led));
    TABLE.row(&[
        format!("{scenario}, {}", audit.maker.name()),
        audit.requests().to_string(),
        audit.acknowledged().to_string(),
        audit.status(503).to_string(),
        (audit.failed_since(None) - audit.status(503)).to_string(),
        after.to_string(),
        audit
            .first_success_after(led)
            .map_or("never".to_owned(), about),
    ]);
    assert_eq!(audit.unanswered(), 0, "requests without an answer");
    if audit.maker == Maker::Layer {
        assert_eq!(audit.undead(), 0, "503, and committed");
    }
    after
}
