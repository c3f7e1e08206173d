//! What PostgreSQL is asked.

use std::sync::Arc;

use sea_orm::{
    DatabaseConnection,
    sqlx::{self, ConnectOptions, Executor, PgConnection, Row},
};

use super::Answer;
use crate::position::{Lsn, Reached};

/// Never `SELECT 1`: a promoted replica and a primary that was restored answer
/// that as well. The timeline that a replica receives is shown to members of
/// `pg_monitor` only; others see the one of its last restart point, which is
/// older after a fail-over, and so safe.
// Each name with its schema: a role's `search_path` may lead to other
// functions. The position is what is flushed, since replicas get no more than
// that, and one beyond would be waited for in vain (H34).
const CHECK: &str = "SELECT pg_catalog.pg_is_in_recovery(), \
     CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() \
     ELSE pg_catalog.pg_current_wal_flush_lsn() END::text, \
     CASE WHEN pg_catalog.pg_is_in_recovery() \
     THEN COALESCE((SELECT received_tli FROM pg_catalog.pg_stat_wal_receiver), \
     (SELECT timeline_id FROM pg_catalog.pg_control_checkpoint())) \
     ELSE ('x' || pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_flush_lsn()), 8))::pg_catalog.bit(32)::int END";

pub(super) async fn connect(database: &DatabaseConnection) -> Result<PgConnection, String> {
    let options = database.get_postgres_connection_pool().connect_options();
    // To be told in `pg_stat_activity` from the pools' connections.
    let options = Arc::unwrap_or_clone(options).application_name("tower-sea-orm replicas");
    let connected = options.disable_statement_logging().connect().await;
    connected.map_err(|error| error.to_string())
}

pub(super) async fn ask(connection: &mut PgConnection) -> Result<Answer, String> {
    read(connection).await.map_err(|error| error.to_string())
}

async fn read(connection: &mut PgConnection) -> Result<Answer, sqlx::Error> {
    // Without a prepared statement, as a proxy may stand in between.
    let row = connection.fetch_one(CHECK).await?;
    let lsn: Option<String> = row.try_get(1)?;
    let lsn = lsn.and_then(|lsn| lsn.parse::<Lsn>().ok());
    let timeline: Option<i32> = row.try_get(2)?;
    let is_replica: bool = row.try_get(0)?;
    Ok(Answer {
        is_replica,
        takes_writes: !is_replica,
        unfit: None,
        reached: Reached::Log {
            // `bit(32)` becomes a signed number. Without one, the server is
            // taken for the earliest, and serves no client that has a position.
            timeline: timeline.map_or(0, i32::cast_unsigned),
            // A server in recovery that has replayed nothing yet.
            lsn: lsn.map_or(0, |lsn| lsn.0),
        },
        history: None,
    })
}
