//! What MariaDB is asked.

use std::sync::Arc;

use sea_orm::{
    DatabaseConnection,
    sqlx::{self, ConnectOptions, Executor, MySqlConnection, Row},
};

use super::answer::Answer;
use crate::position::{Reached, gtids};

/// Needs no privilege, unlike `SHOW REPLICA STATUS`. A replica is a server that is read-only, whatever it replicates: one that
/// was promoted is not.
const CHECK: &str = "SELECT CAST(@@global.read_only AS CHAR), \
     CAST(@@global.gtid_slave_pos AS CHAR), CAST(@@global.gtid_binlog_pos AS CHAR)";

const VERSION: &str = "SELECT CAST(VERSION() AS CHAR)";

pub(super) async fn connect(database: &DatabaseConnection) -> Result<MySqlConnection, String> {
    let options = database.get_mysql_connection_pool().connect_options();
    let options = Arc::unwrap_or_clone(options).disable_statement_logging();
    let connected = async {
        let mut connection = options.connect().await?;
        let version: String = connection.fetch_one(VERSION).await?.try_get(0)?;
        Ok::<_, sqlx::Error>((connection, version))
    };
    let (connection, version) = connected.await.map_err(|error| error.to_string())?;
    if version.contains("MariaDB") {
        Ok(connection)
    } else {
        Err(format!(
            "`replicas` needs MariaDB or PostgreSQL, and this is MySQL {version}"
        ))
    }
}

pub(super) async fn ask(connection: &mut MySqlConnection) -> Result<Answer, String> {
    let row = connection.fetch_one(CHECK).await;
    let row = row.map_err(|error| error.to_string())?;
    let text = |column| row.try_get::<String, _>(column);
    // A word from MariaDB 12.0 on, of which there are several.
    let read_only = text(0).map_err(|error| error.to_string())?;
    let is_replica = !matches!(&*read_only, "0" | "OFF");
    let gtid_list = text(if is_replica { 1 } else { 2 });
    let gtid_list = gtid_list.map_err(|error| error.to_string())?;
    let gtids = gtids(&gtid_list).map_err(|_| format!("no list of GTIDs: {gtid_list}"))?;
    Ok(Answer {
        is_replica,
        reached: Reached::Gtids(gtids),
    })
}
