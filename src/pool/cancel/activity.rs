//! Asks the server what it is at work for, to find statements whose answers were lost.

#[cfg(any(feature = "sqlx-postgres", feature = "sqlx-mysql"))]
use sea_orm::sqlx::{self, AssertSqlSafe, Row};

#[cfg(any(feature = "sqlx-postgres", feature = "sqlx-mysql"))]
use super::batch::answered;
#[cfg(feature = "sqlx-mysql")]
use super::mysql::MySqlSide;
#[cfg(feature = "sqlx-postgres")]
use super::postgres::PostgresSide;
use super::{batch::Fault, queue::Subject, side_connection::SideConnection};
#[cfg(any(feature = "sqlx-postgres", feature = "sqlx-mysql"))]
use crate::connection::BackendId;
#[cfg(feature = "sqlx-mysql")]
use crate::connection::MYSQL_SERVER;

/// Returns whether the server is at work for `subject`. `None` if it does not say, or another server is asked: it knows
/// fewer connections than there are.
pub(super) async fn is_busy(
    connection: &mut SideConnection,
    subject: &Subject,
) -> Result<Option<bool>, Fault> {
    match subject {
        Subject::One(target) => match connection {
            #[cfg(feature = "sqlx-postgres")]
            SideConnection::Postgres(side) => side.is_busy(target).await,
            #[cfg(feature = "sqlx-mysql")]
            SideConnection::MySql(side) => side.is_busy(target).await,
            #[allow(unreachable_patterns)]
            _ => {
                let _ = target;
                Ok(None)
            }
        },
        Subject::All(count) => {
            let counted: Option<(i64, i64)> = match connection {
                #[cfg(feature = "sqlx-postgres")]
                SideConnection::Postgres(side) => Some(side.count_connections().await?),
                #[cfg(feature = "sqlx-mysql")]
                SideConnection::MySql(side) => Some(side.count_connections().await?),
                #[allow(unreachable_patterns)]
                _ => None,
            };
            let known = counted.filter(|(connections, _)| *connections >= i64::from(*count));
            Ok(known.map(|(_, busy)| busy > 0))
        }
    }
}

#[cfg(feature = "sqlx-postgres")]
impl PostgresSide {
    async fn is_busy(&mut self, target: &BackendId) -> Result<Option<bool>, Fault> {
        let BackendId::Postgres {
            pid,
            started,
            server,
        } = target
        else {
            return Ok(None);
        };
        // Where activities are not tracked, all may be busy.
        let sql = format!(
            "SELECT EXISTS (SELECT FROM pg_catalog.pg_stat_activity WHERE pid = {pid} \
             AND (extract(epoch FROM backend_start) * 1000000)::int8 = {started} \
             AND coalesce(state, '') NOT LIKE 'idle%') \
             WHERE (extract(epoch FROM pg_catalog.pg_postmaster_start_time()) * 1000000)::int8 = {server}"
        );
        let rows = answered(sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(&mut self.0)).await?;
        Ok(rows.first().map(|row| row.try_get(0)).transpose()?)
    }

    /// Returns how many connections the same account has from the same address to the same database, besides this one,
    /// and how many of them are at work. Where activities are not tracked, all may be.
    async fn count_connections(&mut self) -> Result<(i64, i64), Fault> {
        const SQL: &str = "SELECT count(*), count(*) FILTER (WHERE coalesce(it.state, '') NOT LIKE 'idle%') \
             FROM pg_catalog.pg_stat_activity AS own JOIN pg_catalog.pg_stat_activity AS it \
             ON it.usesysid = own.usesysid AND it.datid = own.datid AND it.client_addr IS NOT DISTINCT FROM own.client_addr AND it.pid <> own.pid \
             WHERE own.pid = pg_catalog.pg_backend_pid()";
        let rows = answered(sqlx::raw_sql(SQL).fetch_all(&mut self.0)).await?;
        Ok(pair(&rows)?)
    }
}

#[cfg(feature = "sqlx-mysql")]
impl MySqlSide {
    async fn is_busy(&mut self, target: &BackendId) -> Result<Option<bool>, Fault> {
        let BackendId::MySql { id, client, server } = target else {
            return Ok(None);
        };
        let sql = format!(
            "SELECT {MYSQL_SERVER}, (SELECT CAST(HOST AS CHAR) FROM {} \
             WHERE ID = {id} AND COMMAND <> 'Sleep')",
            self.processes,
        );
        let rows =
            answered(sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(&mut self.connection)).await?;
        let Some(row) = rows
            .first()
            .filter(|row| row.try_get(0).is_ok_and(|asked: String| asked == *server))
        else {
            return Ok(None);
        };
        let busy: Option<String> = row.try_get(1)?;
        Ok(Some(busy.is_some_and(|busy| busy == *client)))
    }

    /// Returns how many connections the same account has from the same address to the same database, besides this one,
    /// and how many of them are at work.
    async fn count_connections(&mut self) -> Result<(i64, i64), Fault> {
        // Without the port.
        let address = |host| {
            format!("LEFT({host}, LENGTH({host}) - LENGTH(SUBSTRING_INDEX({host}, ':', -1)))")
        };
        let sql = format!(
            "SELECT COUNT(*), CAST(COALESCE(SUM(it.COMMAND <> 'Sleep'), 0) AS SIGNED) \
             FROM {processes} AS own JOIN {processes} AS it \
             ON it.USER = own.USER AND it.DB <=> own.DB AND {} = {} AND it.ID <> own.ID \
             WHERE own.ID = CONNECTION_ID()",
            address("it.HOST"),
            address("own.HOST"),
            processes = self.processes,
        );
        let rows =
            answered(sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(&mut self.connection)).await?;
        Ok(pair(&rows)?)
    }
}

/// Returns the two numbers of the only row.
#[cfg(any(feature = "sqlx-postgres", feature = "sqlx-mysql"))]
fn pair<'r, R: Row>(rows: &'r [R]) -> Result<(i64, i64), sqlx::Error>
where
    usize: sqlx::ColumnIndex<R>,
    i64: sqlx::Decode<'r, R::Database> + sqlx::Type<R::Database>,
{
    let row = rows.first().ok_or(sqlx::Error::RowNotFound)?;
    Ok((row.try_get(0)?, row.try_get(1)?))
}
