//! G18 on MariaDB: an old primary that is started again beside the new one, and takes writes as well.

use std::{
    collections::HashSet,
    sync::{
        Mutex,
        atomic::{AtomicI64, Ordering},
    },
};

use axum::{Router, http::StatusCode};
use tower_sea_orm::Replicas;

use super::{
    nodes::{self, steer},
    pairs::{Cluster, run, send},
    primaries::{PAIRS, written},
    report::Table,
    site,
    support::{site::port_of, wait::eventually, wire::Proxy},
};

const TABLE: Table = Table {
    name: "mariadb_former",
    head: &[
        "two MariaDB primaries under one name",
        "acknowledged by the new one",
        "acknowledged by the old one",
        "stale",
        "5xx",
    ],
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_mariadb_primaries_under_one_name() {
    nodes::mariadb_primary_and_replicas().await;
    let url = nodes::url("p").await;
    site::make_table(&nodes::view(&url).await).await;
    let proxy = Proxy::start(port_of(&url)).await;
    let ways = [
        proxy.url(&url),
        nodes::url("r1").await,
        nodes::url("r2").await,
    ];
    let cluster = Cluster::at(ways, ["r1", "r2"]).await;
    let (app, replicas) = cluster.watched(None, 2).await;
    promote(&app, &proxy).await;
    is_noticed(&app, &replicas).await;
    steer(&["start_mariadb", "p"]).await;
    steer(&["start_haproxy", "any", "p", "r1"]).await;
    let both = nodes::url("haproxy").await;
    leads_to_both().await;
    proxy.lead_to(port_of(&both));
    let rounds = [
        ("this crate", app, 10_000_000),
        ("by hand", cluster.by_hand(), 20_000_000),
    ];
    for (name, app, first) in rounds {
        // As connections are in time, by their age.
        cluster.recycle();
        let [_, stale, _, errors] = run(&app, first, PAIRS, true).await.counts();
        let [new, old] = [written("r1", first).await, written("p", first).await];
        TABLE.row(&[
            name.to_owned(),
            new.to_string(),
            old.to_string(),
            stale.to_string(),
            errors.to_string(),
        ]);
        if name == "this crate" {
            assert_eq!((old, stale), (0, 0), "written to the old primary");
            assert!(new > 0, "nothing is written");
            assert!(errors > 0, "no connection led to the old primary");
        } else {
            assert!(old > 0, "the control shows nothing");
            assert_eq!(new + old, PAIRS, "{name}: acknowledged, and nowhere");
        }
    }
}

/// The primary dies, `r1` is promoted, and `r2` follows it; ends when the service writes there.
async fn promote(app: &Router, proxy: &Proxy) {
    send(app, "POST", 1, None).await;
    for replica in ["r1", "r2"] {
        steer(&["mariadb_catch_up", replica, "p"]).await;
    }
    steer(&["sql", "p", "CREATE USER haproxy@'%'"]).await;
    for replica in ["r1", "r2"] {
        steer(&["mariadb_catch_up", replica, "p"]).await;
    }
    steer(&["kill_node", "p"]).await;
    steer(&["mariadb_promote", "r1"]).await;
    steer(&["mariadb_follow", "r2", "r1"]).await;
    proxy.lead_to(port_of(&nodes::url("r1").await));
    let numbers = AtomicI64::new(1_000);
    eventually("the new primary takes writes", async || {
        let number = numbers.fetch_add(1, Ordering::Relaxed);
        let (status, _, cookie) = send(app, "POST", number, None).await;
        let is_new = cookie.is_some_and(|cookie| cookie.contains("=0-2-"));
        status == StatusCode::OK && is_new
    })
    .await;
}

/// Waits for two checks that find writes of the new primary on `r2`: to the second one at the latest, the new primary has told of
/// them as well.
async fn is_noticed(app: &Router, replicas: &Replicas) {
    let (numbers, seen) = (AtomicI64::new(100_000), Mutex::new(HashSet::new()));
    eventually("the checks see the promotion", async || {
        send(app, "POST", numbers.fetch_add(1, Ordering::Relaxed), None).await;
        send(app, "GET", 1, None).await;
        let position = replicas.status()[1].position.map(|at| at.to_string());
        let mut seen = seen.lock().unwrap();
        seen.extend(position.filter(|at| at.starts_with("0-2-")));
        seen.len() >= 2
    })
    .await;
}

async fn leads_to_both() {
    let seen = Mutex::new(HashSet::new());
    eventually("the name leads to both", async || {
        let server = steer(&["sql", "haproxy", "SELECT @@global.server_id"]).await;
        let mut seen = seen.lock().unwrap();
        seen.insert(server);
        seen.len() == 2
    })
    .await;
}
