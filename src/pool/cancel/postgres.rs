//! [`PostgresSide`]: cancels by `pg_cancel_backend`, and ends by `pg_terminate_backend`.

use std::time::Duration;

use sea_orm::sqlx::{
    self, AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, Row,
    postgres::{PgConnectOptions, PgRow},
};

use super::batch::{Activity, Batch, Fault, Item, Outcome, Pool, RUNNING, answered, counted};
use crate::connection::{BackendId, POSTGRES_PLACE, Peer};

/// A start-up setting that arrives at the server only if nothing stands
/// between.
const MARK: &str = "tower_sea_orm.direct";

/// When the server was started, in microseconds: a later one has none of its
/// processes.
const POSTGRES_SERVER: &str =
    "((extract(epoch FROM pg_catalog.pg_postmaster_start_time()) * 1000000)::int8)";

/// How far two clocks may be apart that run at nearly the same rate.
const MARGIN: Duration = Duration::from_millis(100);

pub(super) struct PostgresSide(PgConnection);

impl PostgresSide {
    pub(super) async fn open(options: &PgConnectOptions) -> Result<(Self, Peer), Fault> {
        let mark = mark();
        let marked = options.clone().options([(MARK, &mark)]);
        // PgBouncer refuses start-up options that it does not know, or leaves
        // them out (`ignore_startup_parameters`,
        // <https://www.pgbouncer.org/config.html>): both show that it is there.
        let mut connection = match marked.connect().await {
            Ok(connection) => connection,
            // PostgreSQL itself accepts such settings.
            Err(sqlx::Error::Database(_)) => {
                return Ok((Self(options.connect().await?), Peer::Proxy));
            }
            Err(error) => return Err(error.into()),
        };
        // With its schema, as everywhere here: a role's `search_path` may lead
        // the bare name to a function of a user's.
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
        // Before it is sent: if this future is dropped or the connection
        // breaks, each may be cancelled at any time.
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
        // Only behind the answer: then none of 12 000 cancels around a
        // statement's end hit the next one; without the wait, 965 of 6000 did.
        batch.set_all(Outcome::Answered);
        ended
    }

    /// The number alone may be another backend's by now: the start has to be
    /// the same.
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
        // Not where it is idle, since a request that is late would hit what
        // comes next there (H21).
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
            // By the server's start as well: the name may lead to another one
            // by now, with a process of the same number.
            "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity WHERE pid = {pid} \
             AND (extract(epoch FROM backend_start) * 1000000)::int8 = {started} AND {POSTGRES_SERVER} = {server}"
        );
        answered(self.0.execute(AssertSqlSafe(sql))).await.map(drop)
    }

    /// Where the same server was restarted since the process was there, it is
    /// gone. A later start alone would not do: the name may lead to another
    /// server, while the first is still at work.
    pub(super) async fn ask_about(
        &mut self,
        target: &BackendId,
    ) -> Result<Option<Activity>, Fault> {
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
                // A span and not a time: this machine's clock and the server's
                // need not agree.
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
        let rows = self.rows(sql).await?;
        let Some(row) = rows.first() else {
            return Ok(None);
        };
        Ok(Some(Activity {
            server: row.try_get(0)?,
            is_busy: row.try_get(1)?,
        }))
    }

    /// Counts the connections from the same address that were in use lately,
    /// and the statements that have run for a while, whatever address they come
    /// from: behind a gateway, that of a statement may be another one.
    pub(super) async fn ask_about_all(&mut self, pool: &Pool) -> Result<Option<Activity>, Fault> {
        // Where activities are not tracked, all may be at work. Of this
        // database alone: what else the account is at work for would keep the
        // answer from saying anything about this pool.
        let sql = format!(
            "SELECT {POSTGRES_SERVER}::text, \
             count(*) FILTER (WHERE it.client_addr IS NOT DISTINCT FROM own.client_addr \
             AND pg_catalog.clock_timestamp() - coalesce(it.state_change, it.backend_start) < {} * interval '1 second'), \
             count(*) FILTER (WHERE coalesce(it.state, '') NOT LIKE 'idle%' \
             AND pg_catalog.clock_timestamp() - coalesce(it.query_start, it.backend_start) >= {} * interval '1 second') \
             FROM pg_catalog.pg_stat_activity AS own JOIN pg_catalog.pg_stat_activity AS it \
             ON it.usesysid = own.usesysid AND it.datid = own.datid AND it.pid <> own.pid \
             WHERE own.pid = pg_catalog.pg_backend_pid()",
            pool.active_within.as_secs(),
            RUNNING.as_secs_f32(),
        );
        Ok(counted(&self.rows(sql).await?, pool.connections)?)
    }

    async fn rows(&mut self, sql: String) -> Result<Vec<PgRow>, Fault> {
        // Unprepared, because the numbers in it make each text another one.
        answered(sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(&mut self.0)).await
    }

    pub(super) async fn close(self) {
        drop(self.0.close().await);
    }
}

/// Returns a value that no other client sends.
fn mark() -> String {
    use std::hash::{BuildHasher, RandomState};
    // Random, so that it cannot be what a proxy has set for another client.
    format!("{:016x}", RandomState::new().hash_one(std::process::id()))
}
