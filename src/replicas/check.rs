//! [`Monitor`]: asks a server for its role and its position, on a connection of its own.

use std::{sync::Arc, time::Duration};

use sea_orm::{
    DatabaseConnection,
    sqlx::{self, ConnectOptions, Executor, PgConnection, Row},
};
use tokio::{sync::Mutex, time::timeout};

use crate::position::Lsn;

/// A server's answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer {
    pub(super) is_in_recovery: bool,
    pub(super) timeline: u32,
    /// What it has replayed, or flushed if it is the primary.
    pub(super) lsn: u64,
}

/// Never `SELECT 1`: a promoted replica and a primary that was restored answer that as well. The timeline that a replica
/// receives is shown to members of `pg_monitor` only; others see the one of its last restart point, which is older after a
/// fail-over, and so safe.
const CHECK: &str = "SELECT pg_catalog.pg_is_in_recovery(), \
     CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() \
     ELSE pg_catalog.pg_current_wal_flush_lsn() END::text, \
     CASE WHEN pg_catalog.pg_is_in_recovery() \
     THEN COALESCE((SELECT received_tli FROM pg_catalog.pg_stat_wal_receiver), \
     (SELECT timeline_id FROM pg_catalog.pg_control_checkpoint())) \
     ELSE ('x' || pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_flush_lsn()), 8))::pg_catalog.bit(32)::int END";

/// The connection that a server is asked on. Not one of the pool's: the answer is not to wait behind requests.
#[derive(Default)]
pub(super) struct Monitor(Mutex<Option<PgConnection>>);

impl Monitor {
    /// Asks the server.
    pub(super) async fn ask(
        &self,
        database: &DatabaseConnection,
        within: Duration,
    ) -> Result<Answer, String> {
        let mut place = self.0.lock().await;
        // Taken: one that fails, or whose answer does not come, is not used again.
        let connection = place.take();
        let asking = async {
            let mut connection = match connection {
                Some(connection) => connection,
                None => connect(database).await?,
            };
            let answer = ask(&mut connection).await?;
            Ok::<_, sqlx::Error>((connection, answer))
        };
        let asked = timeout(within, asking).await;
        let (connection, answer) = match asked {
            Ok(asked) => asked.map_err(|error| error.to_string())?,
            Err(_) => return Err(format!("no answer within {within:?}")),
        };
        *place = Some(connection);
        Ok(answer)
    }
}

async fn connect(database: &DatabaseConnection) -> Result<PgConnection, sqlx::Error> {
    let options = database.get_postgres_connection_pool().connect_options();
    Arc::unwrap_or_clone(options)
        .application_name("tower-sea-orm replicas")
        .disable_statement_logging()
        .connect()
        .await
}

async fn ask(connection: &mut PgConnection) -> Result<Answer, sqlx::Error> {
    // Without a prepared statement, as a proxy may stand in between.
    let row = connection.fetch_one(CHECK).await?;
    let lsn: Option<String> = row.try_get(1)?;
    let lsn = lsn.and_then(|lsn| lsn.parse::<Lsn>().ok());
    let timeline: Option<i32> = row.try_get(2)?;
    Ok(Answer {
        is_in_recovery: row.try_get(0)?,
        timeline: timeline.map_or(0, i32::cast_unsigned),
        // A server in recovery that has replayed nothing yet.
        lsn: lsn.map_or(0, |lsn| lsn.0),
    })
}
