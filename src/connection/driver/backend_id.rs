//! [`BackendId`]: the process that serves a connection, and SQLite's progress handler, which stops it, since it has no process.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use sea_orm::DbErr;
#[cfg(any(feature = "sqlx-postgres", feature = "sqlx-mysql"))]
use sea_orm::sqlx::{self, AssertSqlSafe, Row};

use super::Driver;
#[cfg(feature = "_sqlx")]
use super::results::query_error;

/// The number of instructions after which SQLite looks whether it is to stop;
/// some hundred microseconds at most
/// (<https://sqlite.org/c3ref/progress_handler.html>).
#[cfg(feature = "sqlx-sqlite")]
const INSTRUCTIONS: i32 = 1000;

/// Where a primary server is to be found, which it keeps when it is restarted;
/// null on a standby. The system identifier is the same on all servers of a
/// cluster, and a role may be forbidden to read it.
#[cfg(feature = "sqlx-postgres")]
pub(crate) const POSTGRES_PLACE: &str = "CASE WHEN NOT pg_catalog.pg_is_in_recovery() THEN \
     pg_catalog.concat(pg_catalog.host(pg_catalog.inet_server_addr()), ':', pg_catalog.current_setting('port'), '/', \
     (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())) END";

/// The table of the server's processes. MySQL has a newer one from 8.0.22 on,
/// and warns of the older, which will be removed; MariaDB reads the other
/// comment. A version that understands neither refuses the text, and a MySQL
/// without its performance schema finds nothing in the newer one: these have
/// the older.
#[cfg(feature = "sqlx-mysql")]
pub(crate) const PROCESSES: [&str; 2] = [
    "/*!80022 performance_schema. */ /*M! information_schema. */ processlist",
    "information_schema.processlist",
];

/// Which server this is, behind a name that may lead to several. Replicas have
/// numbers of their own, whatever their hosts are called; MariaDB, which has no
/// `server_uuid`, does not read that comment.
#[cfg(feature = "sqlx-mysql")]
pub(crate) const MYSQL_SERVER: &str = "CAST(CONCAT(@@hostname, ':', @@port, '/', @@server_id /*!50700 , '/', @@server_uuid */) AS CHAR)";

/// The server's process behind a connection, as distinct from a later one of
/// the same number.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(dead_code)] // each driver has its own
pub(crate) enum BackendId {
    Postgres {
        pid: i32,
        /// Its start in microseconds of the server's clock, and the server's
        /// own.
        started: i64,
        server: i64,
        /// Where the server is, if it is a primary.
        place: Option<String>,
        /// The time by which it was there.
        learnt: Instant,
    },
    /// The client's address and port, as the server sees them, and the server's
    /// own name and port.
    MySql {
        id: u64,
        client: String,
        server: String,
    },
}

impl Driver {
    /// The server's process behind the connection.
    pub(crate) async fn backend_id(&mut self) -> Result<Option<BackendId>, DbErr> {
        match self {
            #[cfg(feature = "sqlx-postgres")]
            Self::Postgres(connection) => postgres_id(connection).await.map_err(query_error),
            #[cfg(feature = "sqlx-mysql")]
            Self::MySql(connection) => mysql_id(connection).await.map_err(query_error),
            #[allow(unreachable_patterns)]
            _ => Ok(None),
        }
    }

    /// Has SQLite stop what it does when `interrupt` is set, once.
    pub(crate) async fn watch(&mut self, interrupt: Arc<AtomicBool>) -> Result<(), DbErr> {
        match self {
            #[cfg(feature = "sqlx-sqlite")]
            Self::Sqlite(connection) => {
                let mut handle = connection.lock_handle().await.map_err(query_error)?;
                // The rollback that follows is not to be stopped.
                handle.set_progress_handler(INSTRUCTIONS, move || {
                    !interrupt.swap(false, Ordering::Relaxed)
                });
                Ok(())
            }
            #[allow(unreachable_patterns)]
            _ => {
                let _ = interrupt.load(Ordering::Relaxed);
                Ok(())
            }
        }
    }

    /// Undoes [`watch`](Self::watch).
    pub(crate) async fn unwatch(&mut self) -> Result<(), DbErr> {
        match self {
            #[cfg(feature = "sqlx-sqlite")]
            Self::Sqlite(connection) => {
                connection
                    .lock_handle()
                    .await
                    .map_err(query_error)?
                    .remove_progress_handler();
                Ok(())
            }
            #[allow(unreachable_patterns)]
            _ => Ok(()),
        }
    }
}

#[cfg(feature = "sqlx-postgres")]
async fn postgres_id(connection: &mut sqlx::PgConnection) -> sqlx::Result<Option<BackendId>> {
    let sql = format!(
        "SELECT pid, (extract(epoch FROM backend_start) * 1000000)::int8, \
         (extract(epoch FROM pg_catalog.pg_postmaster_start_time()) * 1000000)::int8, {POSTGRES_PLACE} \
         FROM pg_catalog.pg_stat_activity WHERE pid = pg_catalog.pg_backend_pid()"
    );
    // Unprepared: one round trip, for a question that is asked once for each
    // connection, or for each transaction behind a proxy.
    let rows = sqlx::raw_sql(AssertSqlSafe(sql))
        .fetch_all(connection)
        .await?;
    let Some(row) = rows.first() else {
        return Ok(None);
    };
    let (pid, server, place) = (row.try_get(0)?, row.try_get(2)?, row.try_get(3)?);
    let started: Option<i64> = row.try_get(1)?;
    // Without the right to see it, the start is NULL, and a process that cannot
    // be distinguished from a later one of its number is never cancelled (G9).
    Ok(started.map(|started| BackendId::Postgres {
        pid,
        started,
        server,
        place,
        learnt: Instant::now(),
    }))
}

#[cfg(feature = "sqlx-mysql")]
async fn mysql_id(connection: &mut sqlx::MySqlConnection) -> sqlx::Result<Option<BackendId>> {
    for (place, processes) in PROCESSES.iter().enumerate() {
        let sql = format!(
            // The number is signed in one of the tables and unsigned in the
            // other, and sqlx decodes no type but the one that is asked for.
            "SELECT CAST(ID AS UNSIGNED), CAST(HOST AS CHAR), {MYSQL_SERVER} FROM {processes} \
             WHERE ID = CONNECTION_ID()"
        );
        // Only the last one's error is the caller's: the first place does not
        // exist on every server.
        let is_last = place + 1 == PROCESSES.len();
        let rows = sqlx::raw_sql(AssertSqlSafe(sql))
            .fetch_all(&mut *connection)
            .await;
        if !is_last && matches!(rows, Err(sqlx::Error::Database(_))) {
            continue;
        }
        if let Some(row) = rows?.first() {
            let (id, client, server) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            return Ok(Some(BackendId::MySql { id, client, server }));
        }
    }
    Ok(None)
}
