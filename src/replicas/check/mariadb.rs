//! What MariaDB is asked.

use std::sync::Arc;

use sea_orm::{
    DatabaseConnection,
    sqlx::{self, AssertSqlSafe, ConnectOptions, Executor, MySqlConnection, Row},
};

use super::Answer;
use crate::{
    connection::History,
    position::{Reached, gtids},
};

/// Needs no privilege, unlike `SHOW REPLICA STATUS`. A replica is a server that
/// is read-only, whatever it replicates: one that was promoted is not. The
/// fourth column is of a node of a Galera cluster only: its state
/// (<https://galeracluster.com/library/documentation/monitoring-cluster.html>),
/// and what it has committed.
const CHECK: &str = "SELECT CAST(@@global.read_only AS CHAR), \
     CAST(@@global.gtid_slave_pos AS CHAR), CAST(@@global.gtid_binlog_pos AS CHAR), \
     CAST((SELECT CONCAT_WS(' ', \
     MAX(IF(variable_name = 'WSREP_READY', variable_value, NULL)), \
     MAX(IF(variable_name = 'WSREP_LOCAL_STATE_COMMENT', REPLACE(variable_value, ' ', '_'), NULL)), \
     CONCAT(MAX(IF(variable_name = 'WSREP_LOCAL_STATE_UUID', variable_value, NULL)), ':', \
     MAX(IF(variable_name = 'WSREP_LAST_COMMITTED', variable_value, NULL)))) \
     FROM information_schema.global_status WHERE variable_name LIKE 'WSREP%' \
     AND EXISTS (SELECT 1 FROM information_schema.global_variables \
     WHERE variable_name = 'WSREP_ON' AND variable_value <> 'OFF')) AS CHAR)";

const VERSION: &str = "SELECT CAST(VERSION() AS CHAR)";

pub(super) async fn connect(database: &DatabaseConnection) -> Result<MySqlConnection, String> {
    let options = database.get_mysql_connection_pool().connect_options();
    // Or the log of statements would have one of these each second.
    let options = Arc::unwrap_or_clone(options).disable_statement_logging();
    let connected = async {
        let mut connection = options.connect().await?;
        let version: String = connection.fetch_one(VERSION).await?.try_get(0)?;
        Ok::<_, sqlx::Error>((connection, version))
    };
    let (connection, version) = connected.await.map_err(|error| error.to_string())?;
    // MySQL's GTIDs are sets of ranges for each server
    // (<https://dev.mysql.com/doc/refman/8.4/en/replication-gtids-concepts.html>),
    // which no `Position` is.
    if version.contains("MariaDB") {
        Ok(connection)
    } else {
        Err(format!(
            "`replicas` needs MariaDB or PostgreSQL, and this is MySQL {version}"
        ))
    }
}

pub(super) async fn ask(connection: &mut MySqlConnection) -> Result<Answer, String> {
    // One statement for all, since the server may change its role between two.
    // Both texts are this crate's.
    let check = AssertSqlSafe(format!("{CHECK}, {}", History::READ));
    let row = connection.fetch_one(check).await;
    let row = row.map_err(|error| error.to_string())?;
    let text = |column| row.try_get::<String, _>(column);
    // A word from MariaDB 12.0 on, of which there are several.
    let read_only = text(0).map_err(|error| error.to_string())?;
    let takes_writes = matches!(&*read_only, "0" | "OFF");
    let node: Option<String> = row.try_get(3).map_err(|error| error.to_string())?;
    // Each build with Galera has these variables, in a cluster or not: the text
    // asks for `WSREP_ON` as well.
    if let Some(node) = node.filter(|node| !node.is_empty()) {
        return of_galera(&node, takes_writes);
    }
    // A primary's own writes are in its binary log, what a replica has applied
    // in `gtid_slave_pos` (<https://mariadb.com/kb/en/gtid/>).
    let gtid_list = text(if takes_writes { 2 } else { 1 });
    let gtid_list = gtid_list.map_err(|error| error.to_string())?;
    let gtids = gtids(&gtid_list).map_err(|_| format!("no list of GTIDs: {gtid_list}"))?;
    let history = text(4).map_err(|error| error.to_string())?;
    let parsed = History::parse(&history);
    let history = parsed.ok_or_else(|| format!("no list of GTIDs: {history}"))?;
    Ok(Answer {
        is_replica: !takes_writes,
        takes_writes,
        unfit: None,
        reached: Reached::Gtids(gtids),
        history: Some(history),
    })
}

/// Reads what a node of a Galera cluster says of itself. One that does not take
/// part in its cluster is not to serve reads, and neither is one that lags
/// because it is another one's donor: as the primary, that still takes writes.
fn of_galera(node: &str, takes_writes: bool) -> Result<Answer, String> {
    let parts: Vec<&str> = node.split(' ').collect();
    let &[ready, state, committed] = &*parts else {
        return Err(format!("no state of a Galera node: {node}"));
    };
    let committed = committed
        .parse()
        .map_err(|_| format!("no position of a Galera node: {committed}"))?;
    // `SELECT 1` succeeds without a quorum (H33): only the node's own word
    // tells.
    let is_fit = (ready, state) == ("ON", "Synced");
    let unfit = (!is_fit).then(|| {
        let state = state.replace('_', " ");
        format!("the Galera node is not in sync: wsrep_ready is {ready}, its state {state}")
    });
    Ok(Answer {
        is_replica: true,
        unfit,
        // A node without a quorum refuses writes by 1047, whatever its
        // `read_only` is.
        takes_writes: takes_writes && ready == "ON",
        reached: Reached::Galera(committed),
        history: None,
    })
}
