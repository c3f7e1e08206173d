//! G7, G18 under Patroni: its leader is killed, frozen, and moved by a switch-over, while clients write through HAProxy.

use std::time::{Duration, Instant};

use axum::{Router, body::Body, extract::Path, routing::post};
use futures_util::future::join_all;
use http::{Request, StatusCode};
use tower::ServiceExt;
use tower_sea_orm::{DbSession, DbSessionLayer, OutOfUse, Replicas, SessionPool};

use super::{
    audit::Audit,
    clients::Clients,
    nodes::{self, steer},
    report::{Table, about},
    site::{self, ACQUIRE_TIMEOUT, Failed, Maker, SIZE, Site},
    support::wait::eventually,
};

const TABLE: Table = Table {
    name: "patroni",
    head: &[
        "under Patroni",
        "requests",
        "acknowledged",
        "503",
        "other 5xx",
        "5xx once it accepts",
        "acknowledged and lost",
        "it accepts after",
        "again after that",
        "longest answer",
    ],
};

const SLOTS: Table = Table {
    name: "slots",
    head: &[
        "200 / 503 / other, by the seconds of the answer",
        "1–4",
        "5–8",
        "9–12",
        "13–16",
        "17–20",
        "21–24",
        "25–28",
        "29–32",
    ],
};

const SLOT: Duration = Duration::from_secs(4);

/// HAProxy's check waits so long for an answer (`timeout check` of `tests/nodes`).
const CHECK: Duration = Duration::from_secs(10);

/// For a machine that has more to do.
const SLACK: Duration = Duration::from_secs(10);

/// Rows that the former leader is asked to write, from this number on.
const FORMER: i64 = 1_000_000_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g18_the_leader_of_patroni_is_killed_and_moved() {
    steer(&["remove_nodes"]).await;
    steer(&["start_patroni"]).await;
    steer(&["start_haproxy", "patroni", "m0", "m1", "m2"]).await;
    let view = nodes::view(&nodes::url("haproxy").await).await;
    site::make_table(&view).await;
    // Without a synchronous standby, it may have acknowledged what no replica has.
    let leader = leader().await;
    watch("leader killed", async || kill(&leader).await).await;
    steer(&["start_patroni_node", &leader]).await;
    steer(&["patroni_synchronous"]).await;
    let leader = self::leader().await;
    let what = "leader killed, one standby synchronous";
    none_lost(&watch(what, async || kill(&leader).await).await);
    steer(&["start_patroni_node", &leader]).await;
    steer(&["patroni_synchronous"]).await;
    let what = "switch-over, one standby synchronous";
    let switch = async || {
        steer(&["patroni_ctl", "switchover", "nodes", "--force"]).await;
    };
    none_lost(&watch(what, switch).await);
}

/// A machine that stands still, or its database alone, goes on where it was: as a primary that is none any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g18_the_leader_of_patroni_freezes_and_goes_on() {
    for (what, all) in [
        ("its PostgreSQL frozen, one standby synchronous", false),
        ("leader frozen, one standby synchronous", true),
    ] {
        steer(&["remove_nodes"]).await;
        steer(&["start_patroni"]).await;
        steer(&["start_haproxy", "patroni", "m0", "m1", "m2"]).await;
        site::make_table(&nodes::view(&nodes::url("haproxy").await).await).await;
        steer(&["patroni_synchronous"]).await;
        let leader = leader().await;
        let audits = watch(what, async || freeze(&leader, all).await).await;
        none_lost(&audits);
        for audit in audits.iter().filter(|audit| audit.maker == Maker::Layer) {
            // In the middle of a statement, until HAProxy cuts it off; or for a connection.
            let most = CHECK + ACQUIRE_TIMEOUT + SLACK;
            let longest = audit.longest();
            assert!(longest < most, "an answer after {longest:?}");
        }
        steer(&["thaw_server", &leader]).await;
        if all {
            // Patroni, which would stop it, stays where it is for the time being.
            refuses_writes(&leader).await;
            steer(&["thaw_node", &leader]).await;
        }
    }
}

/// Ends when another server is the leader.
async fn freeze(leader: &str, all: bool) {
    if all {
        steer(&["freeze_node", leader]).await;
    }
    steer(&["freeze_server", leader]).await;
    let what = "Patroni has another leader";
    steer(&["until_done", what, "patroni_successor", leader]).await;
}

/// The former leader takes writes; a service whose primary's name still leads there sends it none.
async fn refuses_writes(former: &str) {
    let pool = async |node: &str| SessionPool::new(site::connect(&nodes::url(node).await).await);
    let primary = pool(former).await;
    let mut replicas = Replicas::of(primary.clone()).check_every(Duration::from_millis(100));
    for node in ["m0", "m1", "m2"]
        .into_iter()
        .filter(|node| *node != former)
    {
        replicas = replicas.replica(node, pool(node).await);
    }
    let writes = async |db: DbSession, Path(number): Path<i64>| {
        Ok::<_, Failed>(site::write(&db, Maker::Layer, number).await?)
    };
    let layer = DbSessionLayer::new(primary).lazy().transaction();
    let app = Router::new()
        .route("/{number}", post(writes).get(async || ()))
        .layer(layer.replicas(replicas.clone()));
    let send = async |method: &str, number: i64| {
        let request = Request::builder().method(method).uri(format!("/{number}"));
        let request = request.body(Body::empty()).expect("a request");
        let response = app.clone().oneshot(request).await;
        response.expect("an answer").status()
    };
    eventually("the successor is seen", async || {
        send("GET", 0).await;
        let mut status = replicas.status().into_iter();
        status.any(|one| one.out_of_use == Some(OutOfUse::Primary))
    })
    .await;
    // Without a wait for the standby that it has not any more.
    let by_hand = "SET synchronous_commit = local; INSERT INTO ledger VALUES (9, 9)";
    steer(&["sql", former, by_hand]).await;
    for number in 0..20 {
        let status = send("POST", FORMER + number).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    }
    let sql = format!("SELECT count(*) FROM ledger WHERE number >= {FORMER}");
    assert_eq!(steer(&["sql", former, &sql]).await, "0");
}

async fn leader() -> String {
    steer(&["patroni_leader"]).await
}

/// Patroni and its server at once, as when a machine dies; ends when another server is the leader.
async fn kill(leader: &str) {
    steer(&["kill_node", leader]).await;
    steer(&["until_done", "Patroni has a leader", "patroni_leader"]).await;
}

fn none_lost(audits: &[Audit]) {
    for audit in audits {
        assert!(
            audit.lost().is_empty(),
            "{}: {} acknowledged writes are lost",
            audit.maker.name(),
            audit.lost().len()
        );
    }
}

/// What the clients of both services see from the beginning of what happens until both have succeeded often afterwards.
async fn watch(what: &str, happen: impl AsyncFnOnce()) -> Vec<Audit> {
    let url = nodes::url("haproxy").await;
    site::empty_table(&nodes::view(&url).await).await;
    let sites = join_all(Maker::BOTH.map(|maker| Site::start(maker, &url))).await;
    let clients: Vec<Clients> = sites.iter().map(Clients::start).collect();
    join_all(clients.iter().map(|clients| clients.acknowledge(200))).await;
    let began = Instant::now();
    happen().await;
    nodes::accepts(&url).await;
    let accepted = Instant::now();
    join_all(clients.iter().map(|clients| clients.acknowledge(1_000))).await;
    let answers = join_all(clients.into_iter().map(Clients::stop)).await;
    let view = nodes::view(&url).await;
    let mut audits = Vec::new();
    for (site, answers) in sites.iter().zip(answers) {
        let audit = Audit::new(site.maker, answers, &view).await;
        judge(what, &audit, [began, accepted]);
        audits.push(audit);
    }
    audits
}

fn judge(what: &str, audit: &Audit, [began, accepted]: [Instant; 2]) {
    let after = audit.failed_since(Some(accepted));
    let name = format!("{what}, {}", audit.maker.name());
    TABLE.row(&[
        name.clone(),
        audit.requests().to_string(),
        audit.acknowledged().to_string(),
        audit.status(503).to_string(),
        (audit.failed_since(None) - audit.status(503)).to_string(),
        after.to_string(),
        audit.lost().len().to_string(),
        about(accepted - began),
        audit
            .first_success_after(accepted)
            .map_or("never".to_owned(), about),
        about(audit.longest()),
    ]);
    let mut cells = vec![name];
    cells.extend((1..).take(SLOTS.head.len() - 1).map(|slot| {
        let from = began + SLOT * (slot - 1);
        audit.during(from, SLOT)
    }));
    SLOTS.row(&cells);
    assert_eq!(audit.unanswered(), 0, "requests without an answer");
    if audit.maker == Maker::Layer {
        assert_eq!(audit.undead(), 0, "503, and committed");
        assert!(
            after <= SIZE as usize,
            "{after} of 5xx: {:?}",
            audit.errors()
        );
    }
}
