//! G2, H29: transactions through PgBouncer in transaction mode, with prepared statements, on fewer server connections than the
//! service has.

use futures_util::future::join_all;

use super::{
    audit::Audit,
    clients::Clients,
    nodes::{self, steer},
    report::{Table, about},
    site::{self, Maker, Site},
    support::wait::eventually,
};

const TABLE: Table = Table {
    name: "pooler",
    head: &[
        "10 connections to PgBouncer, 4 to the server",
        "requests",
        "acknowledged",
        "5xx",
        "acknowledged and lost",
        "longest answer",
    ],
};

/// Of each service.
const REQUESTS: usize = 2000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_behind_a_newer_pgbouncer_never_fail() {
    for audit in through("new", "newer", "").await {
        assert_eq!(audit.failed_since(None), 0, "{:?}", audit.errors());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_behind_an_older_pgbouncer_need_statements_without_names() {
    let audits = through("old", "1.18", "").await;
    let failed = audits.iter().map(|audit| audit.failed_since(None));
    assert!(failed.sum::<usize>() > 0, "PgBouncer keeps their names");
    for audit in audits {
        assert!(audit.maker == Maker::ByHand || audit.undead() == 0);
    }
    let capacity = "?statement-cache-capacity=0";
    let name = "1.18, `statement-cache-capacity=0`";
    for audit in through("old", name, capacity).await {
        let failed = audit.failed_since(None);
        assert!(
            audit.maker == Maker::ByHand || failed == 0,
            "{:?}",
            audit.errors()
        );
    }
}

async fn through(program: &str, name: &str, parameters: &str) -> Vec<Audit> {
    steer(&["remove_nodes"]).await;
    steer(&["start_primary"]).await;
    steer(&["start_bouncer", program, "4"]).await;
    let view = nodes::view(&nodes::url("p").await).await;
    site::make_table(&view).await;
    let url = format!("{}{parameters}", nodes::url("bouncer").await);
    let sites = join_all(Maker::BOTH.map(|maker| Site::start(maker, &url))).await;
    let clients: Vec<Clients> = sites.iter().map(Clients::start).collect();
    eventually("enough requests are answered", async || {
        clients.iter().all(|clients| clients.answered() >= REQUESTS)
    })
    .await;
    let answers = join_all(clients.into_iter().map(Clients::stop)).await;
    let mut audits = Vec::new();
    for (site, answers) in sites.iter().zip(answers) {
        let audit = Audit::new(site.maker, answers, &view).await;
        TABLE.row(&[
            format!("{name}, {}", audit.maker.name()),
            audit.requests().to_string(),
            audit.acknowledged().to_string(),
            audit.failed_since(None).to_string(),
            audit.lost().len().to_string(),
            about(audit.longest()),
        ]);
        assert_eq!(audit.unanswered(), 0, "requests without an answer");
        assert!(audit.lost().is_empty(), "acknowledged writes are lost");
        audits.push(audit);
    }
    audits
}
