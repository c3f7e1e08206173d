//! [`steer`]: tells the nodes what to do, through the functions of `tests/nodes`.

use std::env;

use sea_orm::{ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DbBackend};
use tokio::process::Command;

use super::support::wait::eventually;

/// Calls a function of `tests/nodes` and returns what it prints.
///
/// # Panics
///
/// If it fails, or if this is not run by `tests/cluster`, which ends the nodes.
pub async fn steer(words: &[&str]) -> String {
    assert!(
        env::var_os("NODES").is_some(),
        "there is no place for nodes: run tests/cluster"
    );
    let done = Command::new("tests/nodes").args(words).output().await;
    let done = done.expect("tests/nodes starts");
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{words:?}: {said}");
    String::from_utf8_lossy(&done.stdout).trim().to_owned()
}

pub async fn url(node: &str) -> String {
    steer(&["node_url", node]).await
}

/// A primary `p`, with the replicas `r1` and `r2`; what another test has left is removed.
pub async fn primary_and_replicas() {
    steer(&["remove_nodes"]).await;
    steer(&["start_primary"]).await;
    steer(&["start_replica", "r1"]).await;
    steer(&["start_replica", "r2"]).await;
}

/// The same on MariaDB.
pub async fn mariadb_primary_and_replicas() {
    steer(&["remove_nodes"]).await;
    steer(&["start_mariadb_primary"]).await;
    steer(&["start_mariadb_replica", "r1"]).await;
    steer(&["start_mariadb_replica", "r2"]).await;
}

/// One connection for whoever looks from beside. At a Galera node, it sees what the others have committed by then.
pub async fn view(url: &str) -> DatabaseConnection {
    let mut options = ConnectOptions::new(url);
    options.max_connections(1).sqlx_logging(false);
    let view = Database::connect(options).await;
    let view = view.expect("the node answers");
    if view.get_database_backend() == DbBackend::MySql {
        let sql = "SET SESSION wsrep_sync_wait = 1";
        let set = view.execute_unprepared(sql).await;
        set.expect("it is MariaDB");
    }
    view
}

/// Waits until a new connection to `url` is led to a server that takes writes, six times in a row.
pub async fn accepts(url: &str) {
    eventually("the name leads to a server that takes writes", async || {
        for _ in 0..6 {
            let mut options = ConnectOptions::new(url);
            options
                .max_connections(1)
                .acquire_timeout(std::time::Duration::from_secs(1))
                .sqlx_logging(false);
            let Ok(db) = Database::connect(options).await else {
                return false;
            };
            let writes = super::site::takes_writes(&db).await;
            let _ = db.close().await;
            if !writes {
                return false;
            }
        }
        true
    })
    .await;
}
