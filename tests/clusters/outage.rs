//! G10, G17: the server is down for some seconds. Every request is answered, and the service recovers by itself.

use std::time::{Duration, Instant};

use futures_util::future::join_all;

use super::{
    audit::Audit,
    clients::Clients,
    nodes::{self, steer},
    report::{Table, about},
    site::{self, Maker, Site},
};

const TABLE: Table = Table {
    name: "outage",
    head: &[
        "server down for six seconds",
        "requests",
        "acknowledged",
        "503",
        "other 5xx",
        "5xx once it accepts",
        "again after",
        "longest answer",
    ],
};

const DOWN: Duration = Duration::from_secs(6);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_server_is_down_every_request_is_answered() {
    steer(&["remove_nodes"]).await;
    steer(&["start_primary"]).await;
    let url = nodes::url("p").await;
    site::make_table(&nodes::view(&url).await).await;
    let sites = join_all(Maker::BOTH.map(|maker| Site::start(maker, &url))).await;
    let clients: Vec<Clients> = sites.iter().map(Clients::start).collect();
    join_all(clients.iter().map(|clients| clients.acknowledge(200))).await;
    steer(&["kill_node", "p"]).await;
    tokio::time::sleep(DOWN).await;
    steer(&["start_node", "p"]).await;
    nodes::accepts(&url).await;
    let accepted = Instant::now();
    join_all(clients.iter().map(|clients| clients.acknowledge(200))).await;
    let answers = join_all(clients.into_iter().map(Clients::stop)).await;
    let view = nodes::view(&url).await;
    for (site, answers) in sites.iter().zip(answers) {
        judge(&Audit::new(site.maker, answers, &view).await, accepted);
    }
}

fn judge(audit: &Audit, accepted: Instant) {
    TABLE.row(&[
        audit.maker.name().to_owned(),
        audit.requests().to_string(),
        audit.acknowledged().to_string(),
        audit.status(503).to_string(),
        (audit.failed_since(None) - audit.status(503)).to_string(),
        audit.failed_since(Some(accepted)).to_string(),
        audit
            .first_success_after(accepted)
            .map_or("never".to_owned(), about),
        about(audit.longest()),
    ]);
    assert_eq!(audit.unanswered(), 0, "requests without an answer");
    assert!(audit.lost().is_empty(), "acknowledged writes are lost");
    if audit.maker == Maker::Layer {
        assert_eq!(audit.undead(), 0, "503, and committed");
        assert!(audit.status(503) > 0, "no request has met the outage");
    }
}
