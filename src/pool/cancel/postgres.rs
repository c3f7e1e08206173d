//! [`PostgresSide`]: cancels by `pg_cancel_backend`, and ends by `pg_terminate_backend`.

use sea_orm::sqlx::{
    self, AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, Row,
    postgres::PgConnectOptions,
};

use super::batch::{Batch, Fault, Item, Outcome, answered};
use crate::connection::{BackendId, Peer};

/// A start-up setting that arrives at the server only if nothing stands between.
const MARK: &str = "tower_sea_orm.direct";

/// When the server was started, in microseconds: a later one has none of its processes.
pub(super) const POSTGRES_SERVER: &str =
    "((extract(epoch FROM pg_catalog.pg_postmaster_start_time()) * 1000000)::int8)";

pub(super) struct PostgresSide(pub(super) PgConnection);

impl PostgresSide {
    pub(super) async fn open(options: &PgConnectOptions) -> Result<(Self, Peer), Fault> {
        let mark = mark();
        let marked = options.clone().options([(MARK, &mark)]);
        let mut connection = match marked.connect().await {
            Ok(connection) => connection,
            // PostgreSQL itself accepts such settings.
            Err(sqlx::Error::Database(_)) => {
                return Ok((Self(options.connect().await?), Peer::Proxy));
            }
            Err(error) => return Err(error.into()),
        };
        let sql = format!("SELECT pg_catalog.current_setting('{MARK}', true)");
        let rows = sqlx::raw_sql(AssertSqlSafe(sql))
            .fetch_all(&mut connection)
            .await?;
        let arrived = rows
            .first()
            .and_then(|row| row.try_get::<Option<String>, _>(0).ok())
            .flatten();
        let route = if arrived.as_deref() == Some(&*mark) {
            Peer::Server
        } else {
            Peer::Proxy
        };
        Ok((Self(connection), route))
    }

    /// Cancels all in one statement.
    pub(super) async fn cancel(&mut self, batch: &mut Batch<'_>) -> Result<(), Fault> {
        batch.set_all(Outcome::InDoubt);
        let mut ended = self.cancel_backends(&batch.items).await;
        if ended.as_ref().is_err_and(Fault::is_fatal) {
            return ended;
        }
        if ended.is_err() && batch.items.len() > 1 {
            // One that it may not cancel spares the others.
            ended = Ok(());
            for item in &mut batch.items {
                let one = self.cancel_backends(std::slice::from_ref(item)).await;
                if one.as_ref().is_err_and(Fault::is_fatal) {
                    return one;
                }
                item.outcome = Outcome::Answered;
                ended = ended.and(one);
            }
        }
        batch.set_all(Outcome::Answered);
        ended
    }

    /// The number alone may be another backend's by now: the start has to be the same.
    async fn cancel_backends(&mut self, items: &[Item<'_>]) -> Result<(), Fault> {
        let wanted: Vec<String> = items
            .iter()
            .filter_map(|item| match item.target {
                BackendId::Postgres { pid, started, .. } => {
                    Some(format!("({pid}, {started}::int8)"))
                }
                BackendId::MySql { .. } => None,
            })
            .collect();
        let sql = format!(
            "SELECT pg_catalog.pg_cancel_backend(a.pid) FROM pg_catalog.pg_stat_activity AS a \
             JOIN (VALUES {}) AS v (pid, started) \
             ON a.pid = v.pid AND (extract(epoch FROM a.backend_start) * 1000000)::int8 = v.started \
             WHERE coalesce(a.state, '') NOT LIKE 'idle%'",
            wanted.join(", ")
        );
        answered(self.0.execute(AssertSqlSafe(sql))).await?;
        Ok(())
    }

    /// Ends a process, whatever it is at.
    pub(super) async fn end(&mut self, orphan: &BackendId) -> Result<(), Fault> {
        let BackendId::Postgres {
            pid,
            started,
            server,
            ..
        } = orphan
        else {
            return Ok(());
        };
        let sql = format!(
            "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity WHERE pid = {pid} \
             AND (extract(epoch FROM backend_start) * 1000000)::int8 = {started} AND {POSTGRES_SERVER} = {server}"
        );
        answered(self.0.execute(AssertSqlSafe(sql))).await.map(drop)
    }

    pub(super) async fn close(self) {
        drop(self.0.close().await);
    }
}

/// Returns a value that no other client sends.
fn mark() -> String {
    use std::hash::{BuildHasher, RandomState};
    format!("{:016x}", RandomState::new().hash_one(std::process::id()))
}
