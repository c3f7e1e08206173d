//! Who serves a connection, in the server's words, and what stops SQLite, which has no server.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

#[cfg(any(feature = "sqlx-postgres", feature = "sqlx-mysql"))]
use sea_orm::sqlx::Row;
use sea_orm::{DbErr, RuntimeErr, sqlx};

use super::{Driver, cancel::Identity};

/// After how many of its instructions SQLite looks whether it is to stop; some hundred microseconds at most.
#[cfg(feature = "sqlx-sqlite")]
const INSTRUCTIONS: i32 = 1000;

#[cfg(feature = "sqlx-postgres")]
const POSTGRES: &str = "SELECT pid, (extract(epoch FROM backend_start) * 1000000)::int8 \
     FROM pg_catalog.pg_stat_activity WHERE pid = pg_catalog.pg_backend_pid()";

#[cfg(feature = "sqlx-mysql")]
const MYSQL: &str = "SELECT CAST(ID AS UNSIGNED), CAST(HOST AS CHAR) FROM information_schema.PROCESSLIST \
     WHERE ID = CONNECTION_ID()";

impl Driver {
    /// The server's process behind the connection.
    pub(super) async fn identity(&mut self) -> Result<Option<Identity>, DbErr> {
        match self {
            #[cfg(feature = "sqlx-postgres")]
            Self::Postgres(connection) => {
                let rows = sqlx::raw_sql(POSTGRES).fetch_all(&mut **connection).await.map_err(query_error)?;
                let Some(row) = rows.first() else { return Ok(None) };
                let started: Option<i64> = row.try_get(1).map_err(query_error)?;
                let pid = row.try_get(0).map_err(query_error)?;
                Ok(started.map(|started| Identity::Postgres { pid, started }))
            }
            #[cfg(feature = "sqlx-mysql")]
            Self::MySql(connection) => {
                let rows = sqlx::raw_sql(MYSQL).fetch_all(&mut **connection).await.map_err(query_error)?;
                let Some(row) = rows.first() else { return Ok(None) };
                let id = row.try_get(0).map_err(query_error)?;
                let client = row.try_get(1).map_err(query_error)?;
                Ok(Some(Identity::MySql { id, client }))
            }
            #[allow(unreachable_patterns)]
            _ => Ok(None),
        }
    }

    /// Has SQLite stop what it does when `interrupt` is set, once.
    pub(super) async fn watch(&mut self, interrupt: Arc<AtomicBool>) -> Result<(), DbErr> {
        match self {
            #[cfg(feature = "sqlx-sqlite")]
            Self::Sqlite(connection) => {
                let mut handle = connection.lock_handle().await.map_err(query_error)?;
                // The rollback that follows is not to be stopped.
                handle.set_progress_handler(INSTRUCTIONS, move || !interrupt.swap(false, Ordering::Relaxed));
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
    pub(super) async fn unwatch(&mut self) -> Result<(), DbErr> {
        match self {
            #[cfg(feature = "sqlx-sqlite")]
            Self::Sqlite(connection) => {
                connection.lock_handle().await.map_err(query_error)?.remove_progress_handler();
                Ok(())
            }
            #[allow(unreachable_patterns)]
            _ => Ok(()),
        }
    }
}

fn query_error(error: sqlx::Error) -> DbErr {
    DbErr::Query(RuntimeErr::SqlxError(Arc::new(error)))
}
