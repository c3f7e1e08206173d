//! [`MySqlSide`]: cancels by `KILL QUERY`, and ends by `KILL CONNECTION`, on MySQL and MariaDB.

use sea_orm::sqlx::{
    self, AssertSqlSafe, ConnectOptions, Connection, Executor, MySqlConnection, Row,
    mysql::{MySqlConnectOptions, MySqlRow},
};

use super::batch::{Activity, Batch, Fault, Outcome, Pool, RUNNING, answered, counted};
use crate::{
    connection::{BackendId, MYSQL_SERVER, PROCESSES, Peer},
    error::is_no_such_process,
};

pub(super) struct MySqlSide {
    connection: MySqlConnection,
    /// The table of the server's processes.
    processes: &'static str,
}

impl MySqlSide {
    pub(super) async fn open(options: &MySqlConnectOptions) -> Result<(Self, Peer), Fault> {
        let mut connection = options.connect().await?;
        // A proxy answers the first by a number of its own, and passes the
        // second on. A KILL by the proxy's number would hit another client's
        // thread (H29).
        let told = first_number(&mut connection, "SELECT CONNECTION_ID()").await?;
        let own = first_number(&mut connection, "SELECT CONNECTION_ID() + 0").await?;
        let route = if told.is_some() && told == own {
            Peer::Server
        } else {
            Peer::Proxy
        };
        let processes = find_processes(&mut connection).await?;
        let side = Self {
            connection,
            processes,
        };
        Ok((side, route))
    }

    /// Kills the queries of those that are still the same and at it, one by
    /// one: one that takes its time leaves only itself in doubt.
    pub(super) async fn cancel(&mut self, batch: &mut Batch<'_>) -> Result<(), Fault> {
        // Looked for beforehand, because KILL QUERY takes nothing but a number.
        // None becomes another connection's in between, since the server gives
        // out each number once.
        let busy = self.find_busy(batch).await?;
        let mut ended = Ok(());
        for item in &mut batch.items {
            if let BackendId::MySql { id, client, .. } = item.target
                && busy
                    .iter()
                    // With the client's address: a restarted server counts from
                    // 1 again.
                    .any(|(number, host)| (number, host) == (id, client))
            {
                // Before it is sent: if this future ends meanwhile, the thread
                // may be killed at any time.
                item.outcome = Outcome::InDoubt;
                match self.kill("QUERY", *id).await {
                    Err(fault) if fault.is_fatal() => return Err(fault),
                    killed => ended = ended.and(killed),
                }
            }
            // Also one that was not busy: nothing was sent for it that could
            // come late.
            item.outcome = Outcome::Answered;
        }
        ended
    }

    /// Returns the numbers of those that run something, and their clients'
    /// addresses.
    async fn find_busy(&mut self, batch: &Batch<'_>) -> Result<Vec<(u64, String)>, Fault> {
        // Those at work only: one that is idle has ended its statement, and the
        // next is not to be hit (H21).
        let ids = batch.items.iter().filter_map(|item| match item.target {
            BackendId::MySql { id, .. } => Some(id.to_string()),
            BackendId::Postgres { .. } => None,
        });
        let sql = format!(
            "SELECT CAST(ID AS UNSIGNED), CAST(HOST AS CHAR) FROM {} \
             WHERE ID IN ({}) AND COMMAND <> 'Sleep'",
            self.processes,
            ids.collect::<Vec<_>>().join(", ")
        );
        let busy = self.rows(sql).await?.into_iter();
        busy.map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
            .collect()
    }

    /// Ends a thread, whatever it is at.
    pub(super) async fn end(&mut self, orphan: &BackendId) -> Result<(), Fault> {
        match orphan {
            // Looked for first: KILL takes a number alone, and behind a name
            // with several servers it may be a stranger's.
            BackendId::MySql { id, .. } if self.finds(orphan, "TRUE").await? == Some(true) => {
                self.kill("CONNECTION", *id).await
            }
            _ => Ok(()),
        }
    }

    async fn kill(&mut self, what: &str, id: u64) -> Result<(), Fault> {
        let kill = AssertSqlSafe(format!("KILL {what} {id}"));
        match answered(self.connection.execute(kill)).await {
            // ER_NO_SUCH_THREAD: gone by itself.
            Err(Fault::Driver(sqlx::Error::Database(error))) if is_no_such_process(&*error) => {
                Ok(())
            }
            killed => killed.map(drop),
        }
    }

    /// Returns whether the target's thread is there and fulfils the condition;
    /// `None` where another server is asked.
    async fn finds(&mut self, target: &BackendId, condition: &str) -> Result<Option<bool>, Fault> {
        let BackendId::MySql { id, client, server } = target else {
            return Ok(None);
        };
        let sql = format!(
            "SELECT {MYSQL_SERVER}, (SELECT CAST(HOST AS CHAR) FROM {} WHERE ID = {id} AND {condition})",
            self.processes,
        );
        let rows = self.rows(sql).await?;
        let row = rows.first().ok_or(sqlx::Error::RowNotFound)?;
        let (asked, found): (String, Option<String>) = (row.try_get(0)?, row.try_get(1)?);
        Ok((asked == *server).then(|| found.as_ref() == Some(client)))
    }

    pub(super) async fn ask_about(
        &mut self,
        target: &BackendId,
    ) -> Result<Option<Activity>, Fault> {
        let BackendId::MySql { server, .. } = target else {
            return Ok(None);
        };
        let found = self.finds(target, "COMMAND <> 'Sleep'").await?;
        Ok(found.map(|is_busy| Activity {
            server: server.clone(),
            is_busy,
        }))
    }

    /// Counts the connections from the same address that were in use lately,
    /// and the statements that have run for a while, whatever address they come
    /// from: behind a gateway, that of a statement may be another one. Times
    /// are in whole seconds here, so that each statement counts which is not in
    /// its first.
    pub(super) async fn ask_about_all(&mut self, pool: &Pool) -> Result<Option<Activity>, Fault> {
        // Without the port, which each connection has of its own.
        let address = |host| {
            format!("LEFT({host}, LENGTH({host}) - LENGTH(SUBSTRING_INDEX({host}, ':', -1)))")
        };
        // In any database: `USE` moves a connection, and a statement on it
        // counts (`a_statement_in_another_database_is_not_taken_for_lost`).
        let sql = format!(
            // A SUM is a DECIMAL, which sqlx does not decode as an integer, and
            // NULL where there is no row.
            "SELECT {MYSQL_SERVER}, \
             CAST(COALESCE(SUM(it.DB <=> own.DB AND {} = {} AND it.TIME <= {}), 0) AS SIGNED), \
             CAST(COALESCE(SUM(it.COMMAND <> 'Sleep' AND it.TIME >= {}), 0) AS SIGNED) \
             FROM {processes} AS own JOIN {processes} AS it \
             ON it.USER = own.USER AND it.ID <> own.ID \
             WHERE own.ID = CONNECTION_ID()",
            address("it.HOST"),
            address("own.HOST"),
            pool.active_within.as_secs(),
            RUNNING.as_secs_f32().ceil(),
            processes = self.processes,
        );
        Ok(counted(&self.rows(sql).await?, pool.connections)?)
    }

    async fn rows(&mut self, sql: String) -> Result<Vec<MySqlRow>, Fault> {
        // Unprepared, because the numbers in it make each text another one.
        answered(sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(&mut self.connection)).await
    }

    pub(super) async fn close(self) {
        drop(self.connection.close().await);
    }
}

/// Returns the table of processes that this server has.
async fn find_processes(connection: &mut MySqlConnection) -> Result<&'static str, Fault> {
    let [newer, older] = PROCESSES;
    let sql = format!("SELECT ID FROM {newer} WHERE ID = CONNECTION_ID()");
    match sqlx::raw_sql(AssertSqlSafe(sql))
        .fetch_all(connection)
        .await
    {
        Ok(rows) => Ok(if rows.is_empty() { older } else { newer }),
        // The server has no such table, or does not show it to this user.
        Err(sqlx::Error::Database(_)) => Ok(older),
        Err(error) => Err(error.into()),
    }
}

async fn first_number(
    connection: &mut MySqlConnection,
    sql: &'static str,
) -> Result<Option<u64>, Fault> {
    let rows = sqlx::raw_sql(sql).fetch_all(connection).await?;
    // Signed or not, by what has answered: the server or a proxy.
    let number = rows.first().and_then(|row| {
        row.try_get::<u64, _>(0).ok().or_else(|| {
            row.try_get::<i64, _>(0)
                .ok()
                .and_then(|id| id.try_into().ok())
        })
    });
    Ok(number)
}
