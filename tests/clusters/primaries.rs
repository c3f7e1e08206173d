//! G18, G19: clients that bring positions of before a promotion, and an old primary that is started again beside the new one.

use std::{
    collections::HashSet,
    sync::{
        Mutex,
        atomic::{AtomicI64, Ordering},
    },
};

use axum::{Router, http::StatusCode};

use super::{
    nodes::{self, steer},
    pairs::{Cluster, run, send},
    report::Table,
    site,
    support::wait::eventually,
};

const POSITIONS: Table = Table {
    name: "positions",
    head: &[
        "after a promotion, a client brings",
        "GET",
        "read on",
        "POST",
        "then reads its own write",
    ],
};

const PRIMARIES: Table = Table {
    name: "primaries",
    head: &[
        "two primaries behind a role check",
        "acknowledged by the new one",
        "acknowledged by the old one",
        "stale",
        "5xx",
    ],
};

/// Of each service, with two primaries.
pub const PAIRS: usize = 2_000;

/// A primary and its replicas, with HAProxy for the primary's name, and services that live through what happens.
async fn start() -> (Cluster, Router) {
    nodes::primary_and_replicas().await;
    steer(&["start_haproxy", "primary", "p", "r1", "r2"]).await;
    site::make_table(&nodes::view(&nodes::url("p").await).await).await;
    let cluster = Cluster::by(["haproxy", "r1", "r2"]).await;
    let app = cluster.by_layer(None, 2).await;
    (cluster, app)
}

/// The primary dies, `r1` is promoted, and `r2` follows it; ends when the service writes there and reads on `r2`.
async fn promote(app: &Router) {
    steer(&["kill_node", "p"]).await;
    steer(&["promote", "r1"]).await;
    steer(&["follow", "r2", "r1"]).await;
    nodes::accepts(&nodes::url("haproxy").await).await;
    let numbers = AtomicI64::new(1_000);
    eventually("the new primary takes writes", async || {
        let number = numbers.fetch_add(1, Ordering::Relaxed);
        let (status, _, cookie) = send(app, "POST", number, None).await;
        let is_new = cookie.is_some_and(|cookie| cookie.contains("=2-"));
        status == StatusCode::OK && is_new
    })
    .await;
    eventually("reads are on the other replica", async || {
        send(app, "GET", numbers.load(Ordering::Relaxed) - 1, None)
            .await
            .1
            == "1 replica"
    })
    .await;
}

/// Acknowledged, with the position as a cookie.
async fn write(app: &Router, number: i64, cookie: Option<&str>) -> String {
    let (status, text, cookie) = send(app, "POST", number, cookie).await;
    assert_eq!(status, StatusCode::OK, "{text}");
    cookie.expect("a position")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g19_positions_of_before_a_promotion_are_harmless() {
    let (_cluster, app) = start().await;
    let kept = write(&app, 1, None).await;
    for replica in ["r1", "r2"] {
        steer(&["catch_up", replica, "p"]).await;
        steer(&["detach", replica]).await;
    }
    let lost = write(&app, 2, None).await;
    promote(&app).await;
    // The primary, where no replica can be known to have it.
    let brought = [
        (
            "the position of a write that the replicas had",
            &*kept,
            "1 ",
        ),
        ("that of a write which was lost", &lost, "0 "),
        (
            "one of the old timeline, far ahead",
            "db-position=1-FFFFFFFF/FFFFFFFF",
            "0 primary",
        ),
        (
            "one of the new timeline, far ahead",
            "db-position=2-FFFFFFFF/FFFFFFFF",
            "0 primary",
        ),
        (
            "one of a timeline to come",
            "db-position=9-0/1",
            "0 primary",
        ),
        (
            "none that can be read",
            "db-position=1-0/1'; DROP TABLE ledger",
            "0 primary",
        ),
    ];
    for (number, (name, cookie, finds)) in (1..).zip(brought) {
        let (read, text, _) = send(&app, "GET", number, Some(cookie)).await;
        let place = text.split_once(' ').map(|(_, place)| place.to_owned());
        let number = number + 100;
        let (written, _, new) = send(&app, "POST", number, Some(cookie)).await;
        let own = send(&app, "GET", number, new.as_deref()).await.1;
        POSITIONS.row(&[
            name.to_owned(),
            read.as_u16().to_string(),
            format!("the {}", place.unwrap_or_default()),
            written.as_u16().to_string(),
            if own.starts_with("1 ") { "yes" } else { "no" }.to_owned(),
        ]);
        assert!(text.starts_with(finds), "{name}: {text}");
        assert_eq!([read, written], [StatusCode::OK; 2], "{name}");
        assert!(new.is_some_and(|new| new.contains("=2-")), "{name}");
        assert!(own.starts_with("1 "), "{name}: {own}");
    }
}

/// Nobody fences the old primary, and to a check of the role it is as good as the new one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_primaries_behind_a_role_check() {
    let (cluster, app) = start().await;
    write(&app, 1, None).await;
    promote(&app).await;
    steer(&["start_node", "p"]).await;
    let seen = Mutex::new(HashSet::new());
    eventually("the name leads to both", async || {
        let port = steer(&["sql", "haproxy", "SELECT inet_server_port()"]).await;
        let mut seen = seen.lock().unwrap();
        seen.insert(port);
        seen.len() == 2
    })
    .await;
    let rounds = [
        ("this crate", app, 10_000_000),
        ("by hand", cluster.by_hand(), 20_000_000),
    ];
    for (name, app, first) in rounds {
        // As connections are in time, by their age. Both share the driver's pool, and this crate leaves no connection to the
        // old primary there.
        cluster.recycle();
        let [_, stale, _, errors] = run(&app, first, PAIRS, true).await.counts();
        let [new, old] = [written("r1", first).await, written("p", first).await];
        PRIMARIES.row(&[
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

/// How many rows the node has from this number on.
pub async fn written(node: &str, first: i64) -> usize {
    let last = first + 9_999_999;
    let table = match &*steer(&["engine", node]).await {
        "mysql" => "test.ledger",
        _ => "ledger",
    };
    let sql = format!("SELECT count(*) FROM {table} WHERE number BETWEEN {first} AND {last}");
    let count = steer(&["sql", node, &sql]).await;
    count.parse().expect("a number")
}
