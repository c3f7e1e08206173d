//! Asks the server what it is at work for, to find statements whose answers were lost; their processes are ended.

#[cfg(any(feature = "sqlx-postgres", feature = "sqlx-mysql"))]
use std::time::Duration;

#[cfg(any(feature = "sqlx-postgres", feature = "sqlx-mysql"))]
use sea_orm::sqlx::{self, AssertSqlSafe, Row};

#[cfg(any(feature = "sqlx-postgres", feature = "sqlx-mysql"))]
use super::batch::answered;
#[cfg(feature = "sqlx-mysql")]
use super::mysql::MySqlSide;
#[cfg(feature = "sqlx-postgres")]
use super::postgres::{POSTGRES_SERVER, PostgresSide};
use super::{
    batch::Fault,
    side_connection::SideConnection,
    subject::{Activity, Subject},
};
#[cfg(any(feature = "sqlx-postgres", feature = "sqlx-mysql"))]
use crate::connection::BackendId;
#[cfg(feature = "sqlx-mysql")]
use crate::connection::MYSQL_SERVER;
#[cfg(feature = "sqlx-postgres")]
use crate::connection::POSTGRES_PLACE;

/// A statement in question has run for at least this long. A shorter one belongs to another request or process.
#[cfg(any(feature = "sqlx-postgres", feature = "sqlx-mysql"))]
const RUNNING: Duration = Duration::from_millis(500);

/// How far two clocks may be apart that run at nearly the same rate.
#[cfg(feature = "sqlx-postgres")]
const MARGIN: Duration = Duration::from_millis(100);

/// Asks the server whether it is at work for `subject`. `None` if it does not say, or another server is asked: it knows
/// fewer connections than there are. An orphan is ended.
pub(super) async fn ask(
    connection: &mut SideConnection,
    subject: &Subject,
) -> Result<Option<Activity>, Fault> {
    match connection {
        #[cfg(feature = "sqlx-postgres")]
        SideConnection::Postgres(side) => match subject {
            Subject::One(target) => side.ask_about(target).await,
            Subject::All {
                connections,
                active_within,
            } => side.ask_about_all(*connections, *active_within).await,
            Subject::Orphan(target) => side.end(target).await.map(|()| None),
        },
        #[cfg(feature = "sqlx-mysql")]
        SideConnection::MySql(side) => match subject {
            Subject::One(target) => side.ask_about(target).await,
            Subject::All {
                connections,
                active_within,
            } => side.ask_about_all(*connections, *active_within).await,
            Subject::Orphan(target) => side.end(target).await.map(|()| None),
        },
        #[allow(unreachable_patterns)]
        _ => {
            let _ = subject;
            Ok(None)
        }
    }
}

#[cfg(feature = "sqlx-postgres")]
impl PostgresSide {
    /// Where the same server was restarted since the process was there, it is gone. A later start alone would not do:
    /// the name may lead to another server, while the first is still at work.
    async fn ask_about(&mut self, target: &BackendId) -> Result<Option<Activity>, Fault> {
        let BackendId::Postgres {
            pid,
            started,
            server,
            place,
            learnt,
        } = target
        else {
            return Ok(None);
        };
        let restarted = place.as_ref().map(|place| {
            format!(
                "OR {POSTGRES_SERVER} > {server} AND {POSTGRES_PLACE} = '{place}' \
                 AND pg_catalog.clock_timestamp() - pg_catalog.pg_postmaster_start_time() < {} * interval '1 second'",
                learnt.elapsed().saturating_sub(MARGIN).as_secs_f64(),
            )
        });
        // Where activities are not tracked, all may be busy.
        let sql = format!(
            "SELECT {POSTGRES_SERVER}::text, EXISTS (SELECT FROM pg_catalog.pg_stat_activity WHERE pid = {pid} \
             AND (extract(epoch FROM backend_start) * 1000000)::int8 = {started} \
             AND coalesce(state, '') NOT LIKE 'idle%') \
             WHERE {POSTGRES_SERVER} = {server} {}",
            restarted.unwrap_or_default(),
        );
        let rows = answered(sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(&mut self.0)).await?;
        let Some(row) = rows.first() else {
            return Ok(None);
        };
        Ok(Some(Activity {
            server: row.try_get(0)?,
            is_busy: row.try_get(1)?,
        }))
    }

    /// Counts the connections from the same address that were in use lately, and the statements that have run for a
    /// while, whatever address they come from: behind a gateway, that of a statement may be another one.
    async fn ask_about_all(
        &mut self,
        connections: u32,
        active_within: Duration,
    ) -> Result<Option<Activity>, Fault> {
        // Where activities are not tracked, all may be at work.
        let sql = format!(
            "SELECT {POSTGRES_SERVER}::text, \
             count(*) FILTER (WHERE it.client_addr IS NOT DISTINCT FROM own.client_addr \
             AND pg_catalog.clock_timestamp() - coalesce(it.state_change, it.backend_start) < {} * interval '1 second'), \
             count(*) FILTER (WHERE coalesce(it.state, '') NOT LIKE 'idle%' \
             AND pg_catalog.clock_timestamp() - coalesce(it.query_start, it.backend_start) >= {} * interval '1 second') \
             FROM pg_catalog.pg_stat_activity AS own JOIN pg_catalog.pg_stat_activity AS it \
             ON it.usesysid = own.usesysid AND it.datid = own.datid AND it.pid <> own.pid \
             WHERE own.pid = pg_catalog.pg_backend_pid()",
            active_within.as_secs(),
            RUNNING.as_secs_f32(),
        );
        let rows = answered(sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(&mut self.0)).await?;
        Ok(counted(&rows, connections)?)
    }
}

#[cfg(feature = "sqlx-mysql")]
impl MySqlSide {
    async fn ask_about(&mut self, target: &BackendId) -> Result<Option<Activity>, Fault> {
        let BackendId::MySql { server, .. } = target else {
            return Ok(None);
        };
        let found = self.finds(target, "COMMAND <> 'Sleep'").await?;
        Ok(found.map(|is_busy| Activity {
            server: server.clone(),
            is_busy,
        }))
    }

    /// Counts the connections from the same address that were in use lately, and the statements that have run for a
    /// while, whatever address they come from: behind a gateway, that of a statement may be another one. Times are in
    /// whole seconds here, so that each statement counts which is not in its first.
    async fn ask_about_all(
        &mut self,
        connections: u32,
        active_within: Duration,
    ) -> Result<Option<Activity>, Fault> {
        // Without the port.
        let address = |host| {
            format!("LEFT({host}, LENGTH({host}) - LENGTH(SUBSTRING_INDEX({host}, ':', -1)))")
        };
        let sql = format!(
            "SELECT {MYSQL_SERVER}, \
             CAST(COALESCE(SUM(it.DB <=> own.DB AND {} = {} AND it.TIME <= {}), 0) AS SIGNED), \
             CAST(COALESCE(SUM(it.COMMAND <> 'Sleep' AND it.TIME >= {}), 0) AS SIGNED) \
             FROM {processes} AS own JOIN {processes} AS it \
             ON it.USER = own.USER AND it.ID <> own.ID \
             WHERE own.ID = CONNECTION_ID()",
            address("it.HOST"),
            address("own.HOST"),
            active_within.as_secs(),
            RUNNING.as_secs_f32().ceil(),
            processes = self.processes,
        );
        let rows =
            answered(sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(&mut self.connection)).await?;
        Ok(counted(&rows, connections)?)
    }
}

/// Reads the only row: the server, the connections that it knows, and the statements that it is at.
#[cfg(any(feature = "sqlx-postgres", feature = "sqlx-mysql"))]
fn counted<'r, R: Row>(rows: &'r [R], connections: u32) -> Result<Option<Activity>, sqlx::Error>
where
    usize: sqlx::ColumnIndex<R>,
    i64: sqlx::Decode<'r, R::Database> + sqlx::Type<R::Database>,
    String: sqlx::Decode<'r, R::Database> + sqlx::Type<R::Database>,
{
    let row = rows.first().ok_or(sqlx::Error::RowNotFound)?;
    let (known, busy): (i64, i64) = (row.try_get(1)?, row.try_get(2)?);
    let activity = Activity {
        server: row.try_get(0)?,
        is_busy: busy > 0,
    };
    Ok((known >= i64::from(connections)).then_some(activity))
}
