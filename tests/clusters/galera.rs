//! G7, G10, G18 on three Galera nodes behind HAProxy: conflicts at COMMIT, a node killed, frozen, quorum lost and found.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use sea_orm::{ConnectOptions, Database};
use tower_sea_orm::SessionPool;

use super::{
    audit::Audit,
    clients::Clients,
    conflicts::{self, Counter},
    nodes::{self, steer},
    report::{Table, about},
    site::{self, Maker, Site},
    support::wait::eventually,
};

const CONFLICTS: Table = Table {
    name: "galera",
    head: &[
        "32 clients add to one row, on three nodes",
        "requests",
        "acknowledged",
        "503",
        "other 5xx",
        "acknowledged and lost",
        "503 and there",
        "the row's sum",
    ],
};

const TROUBLE: Table = Table {
    name: "nodes",
    head: &[
        "a node of three",
        "requests",
        "acknowledged",
        "503",
        "other 5xx",
        "acknowledged and lost",
        "503 and there",
        "longest answer",
    ],
};

const SECONDS: Table = Table {
    name: "seconds",
    head: &[
        "200 / 503 / other, by the second of the answer",
        "1",
        "2",
        "3",
        "4",
        "5",
        "6",
        "7",
        "8",
        "9",
        "10",
        "11",
        "12",
    ],
};

/// How long a trouble lasts, and how long it is watched afterwards: a column for each second.
const TROUBLED: Duration = Duration::from_secs(6);
const WATCHED: usize = 12;

/// Returns where HAProxy listens.
pub async fn three_nodes() -> String {
    steer(&["remove_nodes"]).await;
    steer(&["start_galera"]).await;
    steer(&["start_haproxy", "any", "n0", "n1", "n2"]).await;
    let view = nodes::view(&nodes::url("n0").await).await;
    site::make_table(&view).await;
    conflicts::make_table(&view).await;
    nodes::url("haproxy").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g7_what_collides_at_commit_is_refused_and_what_is_acknowledged_is_there() {
    add_on_three_nodes(&three_nodes().await).await;
}

/// One test for all troubles: the nodes take their time to start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g18_a_node_is_killed_and_frozen_and_quorum_is_lost_and_found() {
    let url = three_nodes().await;
    trouble(&url, "killed", async || {
        steer(&["kill_node", "n1"]).await;
    })
    .await;
    steer(&["start_galera_node", "n1"]).await;
    trouble(&url, "frozen", async || {
        steer(&["freeze_node", "n2"]).await;
    })
    .await;
    // It has been voted out meanwhile, and would end itself.
    steer(&["kill_node", "n2"]).await;
    steer(&["start_galera_node", "n2"]).await;
    let mut ping = Ok(());
    trouble(
        &url,
        "left alone: without quorum, then bootstrapped",
        async || {
            steer(&["kill_node", "n2"]).await;
            steer(&["kill_node", "n1"]).await;
            ping = ping_without_quorum().await;
            eprintln!("ping() of a node without quorum: {ping:?}");
            tokio::time::sleep(TROUBLED).await;
            steer(&["bootstrap", "n0"]).await;
        },
    )
    .await;
    assert!(ping.is_err(), "ping() of a node without quorum: {ping:?}");
}

/// Adds on all nodes at once, so that COMMIT is where they collide.
async fn add_on_three_nodes(url: &str) {
    for maker in Maker::BOTH {
        let site = Counter::start(maker, url).await;
        let clients = Clients::start_at(site.address);
        clients.acknowledge(500).await;
        let answers = clients.stop().await;
        let told = answers.iter().filter(|answer| answer.retry_after).count();
        let view = nodes::view(&nodes::url("n0").await).await;
        let counted = site.sum(&view).await;
        let audit = Audit::new(maker, answers, &view).await;
        let refused = audit.status(503);
        CONFLICTS.row(&[
            maker.name().to_owned(),
            audit.requests().to_string(),
            audit.acknowledged().to_string(),
            refused.to_string(),
            (audit.failed_since(None) - refused).to_string(),
            audit.lost().len().to_string(),
            audit.undead().to_string(),
            counted.to_string(),
        ]);
        assert_eq!(audit.lost().len(), 0, "acknowledged rows are lost");
        if maker == Maker::Layer {
            assert!(refused > 0, "nothing has collided");
            assert_eq!(told, refused, "each says when to try again");
            assert_eq!(audit.undead(), 0, "503, and committed");
        }
    }
}

/// What the clients of both services see while `happen` goes on, and for some seconds from its beginning.
async fn trouble(url: &str, what: &str, happen: impl AsyncFnOnce()) {
    let view = nodes::view(&nodes::url("n0").await).await;
    site::empty_table(&view).await;
    let sites = join_all(Maker::BOTH.map(|maker| Site::start(maker, url))).await;
    let clients: Vec<Clients> = sites.iter().map(Clients::start).collect();
    join_all(clients.iter().map(|clients| clients.acknowledge(100))).await;
    let began = Instant::now();
    happen().await;
    tokio::time::sleep_until((began + Duration::from_secs(WATCHED as u64)).into()).await;
    join_all(clients.iter().map(|clients| clients.acknowledge(100))).await;
    let answers = join_all(clients.into_iter().map(Clients::stop)).await;
    let mut audits = Vec::new();
    for (site, answers) in sites.iter().zip(answers) {
        audits.push(Audit::new(site.maker, answers, &view).await);
        judge(what, &audits[audits.len() - 1], began);
    }
    for audit in &audits {
        assert_eq!(audit.unanswered(), 0, "requests without an answer");
        let (maker, lost) = (audit.maker.name(), audit.lost().len());
        assert_eq!(lost, 0, "{what}, {maker}: acknowledged writes are lost");
        assert!(audit.maker == Maker::ByHand || audit.undead() == 0);
    }
}

fn judge(what: &str, audit: &Audit, began: Instant) {
    TROUBLE.row(&[
        format!("{what}, {}", audit.maker.name()),
        audit.requests().to_string(),
        audit.acknowledged().to_string(),
        audit.status(503).to_string(),
        (audit.failed_since(None) - audit.status(503)).to_string(),
        audit.lost().len().to_string(),
        audit.undead().to_string(),
        about(audit.longest()),
    ]);
    let mut cells = vec![format!("{what}, {}", audit.maker.name())];
    let second = Duration::from_secs(1);
    let slots = (0..WATCHED as u32).map(|slot| audit.during(began + second * slot, second));
    cells.extend(slots);
    SECONDS.row(&cells);
}

/// G18: a node without quorum takes log-ins and answers `SELECT 1`.
async fn ping_without_quorum() -> Result<(), tower_sea_orm::Error> {
    let mut options = ConnectOptions::new(nodes::url("n0").await);
    options.max_connections(2).sqlx_logging(false);
    let pool = SessionPool::new(Database::connect(options).await.unwrap());
    eventually("the node knows that it has lost its quorum", async || {
        steer(&["wsrep", "n0", "ready"]).await == "OFF"
    })
    .await;
    pool.ping().await
}
