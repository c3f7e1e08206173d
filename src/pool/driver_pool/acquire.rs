//! Taking connections from the driver's pool, and beside it.

use std::any::Any;

use sea_orm::DbErr;
#[cfg(feature = "_sqlx")]
use sea_orm::{ConnAcquireErr, RuntimeErr, sqlx};
use tokio::time::timeout;

#[cfg(feature = "_sqlx")]
use super::take_idle;
use super::{DriverPool, dispatch};
use crate::connection::{Driver, SILENCE};
#[cfg(feature = "sqlx-sqlite")]
use crate::error::missing_file;
#[cfg(feature = "sqlx-mysql")]
use crate::error::server;

impl DriverPool {
    /// Takes a connection of the driver's pool, by its own `acquire()`.
    ///
    /// sqlx's ping of an idle connection has no bound but the pool's whole
    /// time-out (<https://github.com/launchbadge/sqlx/pull/4146>). A server's
    /// connection that is silent for long is given up with its ping, which
    /// closes it, and so are all others that are idle and silent. Nothing is
    /// pinged where the driver's pool is told not to.
    pub(in crate::pool) async fn acquire(&self) -> Result<Driver, DbErr> {
        if self.has_server() && self.pings_idle() && self.num_idle() > 0 {
            // Dropped in its ping, sqlx closes the connection: here that is
            // wanted. Without a bound, each forgotten one costs a request the
            // driver's whole time-out
            // (`forgotten_idle_connections_cost_two_seconds_and_no_request`).
            match timeout(SILENCE, self.driver_acquire()).await {
                Ok(acquired) => return acquired,
                // sqlx would find the others dead one by one, and take as long
                // for each (H31).
                Err(_) => self.weed().await,
            }
        }
        self.driver_acquire().await
    }

    /// Closes the idle connections that do not answer.
    async fn weed(&self) {
        dispatch!(self, pool => {
            let pings = take_idle(pool).into_iter().map(async |mut connection| {
                use sqlx::Connection;
                if !matches!(timeout(SILENCE, connection.ping()).await, Ok(Ok(()))) {
                    tracing::info!(target: "tower_sea_orm::pool", "closed an idle connection that did not answer");
                    // Not `close()`, which would wait to say goodbye on a
                    // connection that answers nothing.
                    connection.close_on_drop();
                }
                // The others go back as they are dropped.
            });
            futures_util::future::join_all(pings).await;
        }, direct => ());
    }

    /// Returns whether the driver's pool pings an idle connection before it
    /// gives it out.
    fn pings_idle(&self) -> bool {
        dispatch!(self, pool => pool.options().get_test_before_acquire(), direct => false)
    }

    async fn driver_acquire(&self) -> Result<Driver, DbErr> {
        match self {
            #[cfg(feature = "sqlx-postgres")]
            Self::Postgres(pool) => acquired(pool.acquire().await, Driver::Postgres),
            #[cfg(feature = "sqlx-mysql")]
            Self::MySql(pool) => acquired(pool.acquire().await, Driver::MySql),
            #[cfg(feature = "sqlx-sqlite")]
            Self::Sqlite { pool, .. } => {
                let connection = pool.acquire().await;
                acquired(
                    connection.map_err(|error| self.explained(error)),
                    Driver::Sqlite,
                )
            }
            Self::Direct(_) => Ok(Driver::Gone),
        }
    }

    /// Opens a connection to an SQLite database beside the pool; `None` if
    /// that fails.
    #[cfg_attr(not(feature = "sqlx-sqlite"), allow(clippy::unused_async))]
    pub(in crate::pool) async fn connect_beside(&self) -> Option<Box<dyn Any + Send>> {
        match self {
            #[cfg(feature = "sqlx-sqlite")]
            Self::Sqlite { pool, .. } => {
                use sqlx::ConnectOptions;
                let connection = pool.connect_options().connect().await.ok()?;
                Some(Box::new(connection))
            }
            #[allow(unreachable_patterns)]
            _ => None,
        }
    }

    /// Opens one connection beside the pool and closes it again.
    pub(in crate::pool) async fn connect_once(&self) -> Result<(), DbErr> {
        #[cfg(feature = "_sqlx")]
        use sqlx::{ConnectOptions, Connection};
        dispatch!(self, pool => {
            let options = pool.connect_options();
            match options.connect().await {
                Ok(connection) => {
                    // It has done its work: a goodbye that fails changes
                    // nothing.
                    let _ = connection.close().await;
                    Ok(())
                }
                Err(error) => Err(DbErr::Conn(RuntimeErr::SqlxError(
                    self.explained(error).into(),
                ))),
            }
        }, direct => Ok(()))
    }

    /// Says what to do about an error of connecting, where that is known.
    #[cfg(feature = "_sqlx")]
    fn explained(&self, error: sqlx::Error) -> sqlx::Error {
        match self {
            #[cfg(feature = "sqlx-sqlite")]
            Self::Sqlite { pool, .. } => missing_file::explained(&pool.connect_options(), error),
            #[allow(unreachable_patterns)]
            _ => error,
        }
    }

    /// [`connect_once`](Self::connect_once), for which a Galera node that takes
    /// no statements has failed.
    pub(in crate::pool) async fn probe_once(&self) -> Result<(), DbErr> {
        #[cfg(feature = "sqlx-mysql")]
        if let Self::MySql(pool) = self {
            return probe_mysql(pool).await;
        }
        self.connect_once().await
    }
}

/// Opens one connection beside the pool, asks whether its server takes
/// statements, and closes it again.
#[cfg(feature = "sqlx-mysql")]
async fn probe_mysql(pool: &sqlx::MySqlPool) -> Result<(), DbErr> {
    use sqlx::{ConnectOptions, Connection};
    let connection = pool.connect_options().connect().await;
    let mut connection =
        connection.map_err(|error| DbErr::Conn(RuntimeErr::SqlxError(error.into())))?;
    let ready = is_ready(&mut connection).await;
    let _ = connection.close().await;
    match ready {
        Ok(true) => Ok(()),
        Ok(false) => Err(DbErr::Custom("the Galera node is not ready".into())),
        Err(error) => {
            let error = DbErr::Query(RuntimeErr::SqlxError(error.into()));
            // A proxy that does not know the question has answered it.
            let is_up = !server::is_fatal(&error) && !server::is_without_quorum(&error);
            is_up.then_some(()).ok_or(error)
        }
    }
}

/// A Galera node without quorum takes log-ins and answers `SELECT 1`, and
/// refuses what is about a table.
#[cfg(feature = "sqlx-mysql")]
async fn is_ready(connection: &mut sqlx::MySqlConnection) -> Result<bool, sqlx::Error> {
    // By `wsrep_ready` alone, MariaDB without Galera would never be ready.
    let wsrep_on = shown(connection, "SHOW GLOBAL VARIABLES LIKE 'wsrep_on'").await?;
    if wsrep_on.is_none_or(|on| on != "ON") {
        return Ok(true);
    }
    let ready = shown(connection, "SHOW GLOBAL STATUS LIKE 'wsrep_ready'").await?;
    Ok(ready.is_none_or(|ready| ready != "OFF"))
}

/// Returns the value of the only row, if there is one.
#[cfg(feature = "sqlx-mysql")]
async fn shown(
    connection: &mut sqlx::MySqlConnection,
    sql: &'static str,
) -> Result<Option<String>, sqlx::Error> {
    use sqlx::{Executor, Row};
    let row = connection.fetch_optional(sql).await?;
    Ok(row.and_then(|row| row.try_get(1).ok()))
}

#[cfg(feature = "_sqlx")]
fn acquired<C>(acquired: Result<C, sqlx::Error>, driver: fn(C) -> Driver) -> Result<Driver, DbErr> {
    // SeaORM's own variants for them: code that looks for these finds them.
    acquired.map(driver).map_err(|error| match error {
        sqlx::Error::PoolTimedOut => DbErr::ConnectionAcquire(ConnAcquireErr::Timeout),
        sqlx::Error::PoolClosed => DbErr::ConnectionAcquire(ConnAcquireErr::ConnectionClosed),
        error => DbErr::Conn(RuntimeErr::SqlxError(error.into())),
    })
}
