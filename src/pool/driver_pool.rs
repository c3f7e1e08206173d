//! The driver's pool underneath.

use std::time::Duration;

use futures_util::future::BoxFuture;
#[cfg(feature = "_sqlx")]
use sea_orm::{ConnAcquireErr, RuntimeErr, sqlx};
use sea_orm::{DatabaseConnection, DatabaseConnectionType, DbErr};
use tokio::time::timeout;

use crate::{
    connection::Driver,
    error::{Error, Kind},
};

/// How long a connection may be silent before it is taken for lost.
pub(super) const SILENCE: Duration = Duration::from_millis(900);

/// Where connections come from.
pub(crate) enum DriverPool {
    #[cfg(feature = "sqlx-postgres")]
    Postgres(sqlx::PgPool),
    #[cfg(feature = "sqlx-mysql")]
    MySql(sqlx::MySqlPool),
    #[cfg(feature = "sqlx-sqlite")]
    Sqlite {
        pool: sqlx::SqlitePool,
        in_memory: bool,
    },
    /// Nothing to pin: statements go to the `DatabaseConnection` itself.
    Direct,
}

/// Runs `$body` with `$pool` bound to sqlx's pool.
macro_rules! dispatch {
    ($source:expr, $pool:ident => $body:expr, direct => $direct:expr) => {
        match $source {
            #[cfg(feature = "sqlx-postgres")]
            DriverPool::Postgres($pool) => $body,
            #[cfg(feature = "sqlx-mysql")]
            DriverPool::MySql($pool) => $body,
            #[cfg(feature = "sqlx-sqlite")]
            DriverPool::Sqlite { pool: $pool, .. } => $body,
            DriverPool::Direct => $direct,
        }
    };
}

impl DriverPool {
    pub(super) fn of(database: &DatabaseConnection) -> Result<Self, Error> {
        match &database.inner {
            #[cfg(feature = "sqlx-postgres")]
            DatabaseConnectionType::SqlxPostgresPoolConnection(_) => Ok(Self::Postgres(
                database.get_postgres_connection_pool().clone(),
            )),
            #[cfg(feature = "sqlx-mysql")]
            DatabaseConnectionType::SqlxMySqlPoolConnection(_) => {
                Ok(Self::MySql(database.get_mysql_connection_pool().clone()))
            }
            #[cfg(feature = "sqlx-sqlite")]
            DatabaseConnectionType::SqlxSqlitePoolConnection(_) => {
                let pool = database.get_sqlite_connection_pool().clone();
                let name = pool
                    .connect_options()
                    .get_filename()
                    .to_string_lossy()
                    .into_owned();
                // sqlx gives an in-memory database a name of this form.
                let in_memory = ["sqlx-in-memory", ":memory:", "mode=memory"]
                    .iter()
                    .any(|mark| name.contains(mark));
                Ok(Self::Sqlite { pool, in_memory })
            }
            #[cfg(feature = "mock")]
            DatabaseConnectionType::MockDatabaseConnection(_) => Ok(Self::Direct),
            #[cfg(feature = "proxy")]
            DatabaseConnectionType::ProxyDatabaseConnection(_) => Ok(Self::Direct),
            // SeaORM panics when it is asked for the backend: https://github.com/SeaQL/sea-orm/issues/2483
            DatabaseConnectionType::Disconnected => Err(Kind::Disconnected.into()),
            // SeaORM may be built with drivers that this crate is not.
            #[allow(unreachable_patterns)]
            other => Err(Kind::DriverNotEnabled(feature_of(&format!("{other:?}"))).into()),
        }
    }

    /// Whether both take their connections from the same pool of the driver.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            // A pool's options live with what its clones share.
            #[cfg(feature = "sqlx-postgres")]
            (Self::Postgres(one), Self::Postgres(other)) => {
                std::ptr::eq(one.options(), other.options())
            }
            #[cfg(feature = "sqlx-mysql")]
            (Self::MySql(one), Self::MySql(other)) => std::ptr::eq(one.options(), other.options()),
            #[cfg(feature = "sqlx-sqlite")]
            (Self::Sqlite { pool: one, .. }, Self::Sqlite { pool: other, .. }) => {
                std::ptr::eq(one.options(), other.options())
            }
            _ => false,
        }
    }

    /// A `DatabaseConnection` of the same kind on which every statement fails, as on a closed pool.
    pub(super) fn closed_stand_in(&self) -> DatabaseConnection {
        // Closed at the call of `close()`: there is nothing to wait for.
        match self {
            #[cfg(feature = "sqlx-postgres")]
            Self::Postgres(pool) => {
                let pool = sqlx::PgPool::connect_lazy_with(pool.connect_options().as_ref().clone());
                drop(pool.close());
                sea_orm::SqlxPostgresConnector::from_sqlx_postgres_pool(pool)
            }
            #[cfg(feature = "sqlx-mysql")]
            Self::MySql(pool) => {
                let pool =
                    sqlx::MySqlPool::connect_lazy_with(pool.connect_options().as_ref().clone());
                drop(pool.close());
                sea_orm::SqlxMySqlConnector::from_sqlx_mysql_pool(pool)
            }
            #[cfg(feature = "sqlx-sqlite")]
            Self::Sqlite { pool, .. } => {
                let pool =
                    sqlx::SqlitePool::connect_lazy_with(pool.connect_options().as_ref().clone());
                drop(pool.close());
                sea_orm::SqlxSqliteConnector::from_sqlx_sqlite_pool(pool)
            }
            Self::Direct => DatabaseConnection::default(),
        }
    }

    pub(super) fn max_connections(&self) -> Option<u32> {
        dispatch!(self, pool => Some(pool.options().get_max_connections()), direct => None)
    }

    pub(super) fn acquire_timeout(&self) -> Option<Duration> {
        dispatch!(self, pool => Some(pool.options().get_acquire_timeout()), direct => None)
    }

    pub(super) fn is_closed(&self) -> bool {
        dispatch!(self, pool => pool.is_closed(), direct => false)
    }

    pub(super) fn max_lifetime(&self) -> Option<Duration> {
        dispatch!(self, pool => pool.options().get_max_lifetime(), direct => None)
    }

    /// Whether the pool could serve somebody at once, by an idle connection or a new one.
    pub(super) fn has_idle(&self) -> bool {
        dispatch!(self, pool => pool.num_idle() > 0 || pool.size() < pool.options().get_max_connections(), direct => true)
    }

    /// Resolves when the pool is closed.
    pub(super) fn closed(&self) -> BoxFuture<'static, ()> {
        dispatch!(self, pool => Box::pin(pool.close_event()), direct => Box::pin(std::future::pending()))
    }

    /// Whether PostgreSQL's statements are not kept prepared (`statement-cache-capacity=0`), as some
    /// proxies demand. sqlx gives them names all the same, unless it is told
    /// (<https://github.com/launchbadge/sqlx/issues/67>).
    pub(super) fn keeps_no_statements(&self) -> bool {
        match self {
            #[cfg(feature = "sqlx-postgres")]
            Self::Postgres(pool) => {
                use sqlx::ConnectOptions;
                // The rest of it is of no interest, and might make no URL.
                let options = pool
                    .connect_options()
                    .as_ref()
                    .clone()
                    .username("user")
                    .host("localhost");
                let url = options.to_url_lossy();
                url.query_pairs()
                    .any(|(key, value)| key == "statement-cache-capacity" && value == "0")
            }
            #[allow(unreachable_patterns)]
            _ => false,
        }
    }

    /// How many connections the pool has, those included that it is about to open.
    pub(super) fn size(&self) -> u32 {
        dispatch!(self, pool => pool.size(), direct => 0)
    }

    /// Whether statements run on a server, which can be told to stop one.
    pub(super) fn has_server(&self) -> bool {
        match self {
            #[cfg(feature = "sqlx-postgres")]
            Self::Postgres(_) => true,
            #[cfg(feature = "sqlx-mysql")]
            Self::MySql(_) => true,
            #[allow(unreachable_patterns)]
            _ => false,
        }
    }

    pub(super) fn is_in_memory(&self) -> bool {
        match self {
            #[cfg(feature = "sqlx-sqlite")]
            Self::Sqlite { in_memory, .. } => *in_memory,
            #[allow(unreachable_patterns)]
            _ => false,
        }
    }

    /// A connection of the driver's pool, by its own `acquire()`.
    ///
    /// sqlx's ping of an idle connection has no bound but the pool's whole time-out
    /// (<https://github.com/launchbadge/sqlx/pull/4146>). A server's connection that is silent for long is
    /// given up with its ping, which closes it, and so are all others that are idle and silent. Nothing is pinged
    /// where the driver's pool is told not to.
    pub(super) async fn acquire(&self) -> Result<Driver, DbErr> {
        if self.has_server() && self.pings_idle() && self.num_idle() > 0 {
            match timeout(SILENCE, self.driver_acquire()).await {
                Ok(acquired) => return acquired,
                Err(_) => self.weed().await,
            }
        }
        self.driver_acquire().await
    }

    /// Closes the idle connections that do not answer.
    async fn weed(&self) {
        dispatch!(self, pool => {
            let idle: Vec<_> = std::iter::from_fn(|| pool.try_acquire()).collect();
            let pings = idle.into_iter().map(async |mut connection| {
                use sqlx::Connection;
                if !matches!(timeout(SILENCE, connection.ping()).await, Ok(Ok(()))) {
                    tracing::info!(target: "tower_sea_orm::pool", "closed an idle connection that did not answer");
                    connection.close_on_drop();
                }
            });
            futures_util::future::join_all(pings).await;
        }, direct => ());
    }

    /// Whether the driver's pool pings an idle connection before it gives it out.
    fn pings_idle(&self) -> bool {
        dispatch!(self, pool => pool.options().get_test_before_acquire(), direct => false)
    }

    pub(super) fn num_idle(&self) -> usize {
        dispatch!(self, pool => pool.num_idle(), direct => 0)
    }

    /// Whether connections of the driver's pool are in use besides `acquiring` that are being opened.
    pub(super) fn is_used(&self, acquiring: u32) -> bool {
        dispatch!(self, pool => pool.size() > pool.num_idle() as u32 + acquiring, direct => { let _ = acquiring; false })
    }

    /// Refuses new users of the driver's pool; does not wait for anything.
    pub(super) fn close_without_waiting(&self) {
        dispatch!(self, pool => drop(pool.close()), direct => ());
    }

    /// Refuses new users of the driver's pool and closes what is idle there, which sqlx does only when all else is
    /// back (<https://github.com/launchbadge/sqlx/issues/1773>).
    pub(super) fn close_now(&self) {
        dispatch!(self, pool => {
            let idle: Vec<_> = std::iter::from_fn(|| pool.try_acquire()).collect();
            // Not before: `min_connections` would have others opened in their place.
            drop(pool.close());
            for mut connection in idle {
                connection.close_on_drop();
            }
        }, direct => ());
    }

    async fn driver_acquire(&self) -> Result<Driver, DbErr> {
        match self {
            #[cfg(feature = "sqlx-postgres")]
            Self::Postgres(pool) => pool
                .acquire()
                .await
                .map(Driver::Postgres)
                .map_err(acquire_error),
            #[cfg(feature = "sqlx-mysql")]
            Self::MySql(pool) => pool
                .acquire()
                .await
                .map(Driver::MySql)
                .map_err(acquire_error),
            #[cfg(feature = "sqlx-sqlite")]
            Self::Sqlite { pool, .. } => pool
                .acquire()
                .await
                .map(Driver::Sqlite)
                .map_err(acquire_error),
            Self::Direct => Ok(Driver::Gone),
        }
    }

    /// Closes the connections that are idle. Sqlx's count of them may be behind, so every one that it gives out is taken.
    pub(super) fn close_idle(&self) {
        dispatch!(self, pool => {
            let idle: Vec<_> = std::iter::from_fn(|| pool.try_acquire()).collect();
            for mut connection in idle {
                connection.close_on_drop();
            }
        }, direct => ());
    }

    /// Opens one connection beside the pool and closes it again.
    pub(super) async fn connect_once(&self) -> Result<(), DbErr> {
        #[cfg(feature = "_sqlx")]
        use sqlx::{ConnectOptions, Connection};
        dispatch!(self, pool => {
            let options = pool.connect_options();
            match options.connect().await {
                Ok(connection) => {
                    let _ = connection.close().await;
                    Ok(())
                }
                Err(error) => Err(DbErr::Conn(RuntimeErr::SqlxError(error.into()))),
            }
        }, direct => Ok(()))
    }
}

#[cfg(feature = "_sqlx")]
fn acquire_error(error: sqlx::Error) -> DbErr {
    match error {
        sqlx::Error::PoolTimedOut => DbErr::ConnectionAcquire(ConnAcquireErr::Timeout),
        sqlx::Error::PoolClosed => DbErr::ConnectionAcquire(ConnAcquireErr::ConnectionClosed),
        error => DbErr::Conn(RuntimeErr::SqlxError(error.into())),
    }
}

/// The feature that builds in the driver of a `DatabaseConnection`, by the name SeaORM prints.
fn feature_of(variant: &str) -> &'static str {
    match variant {
        "SqlxPostgresPoolConnection" => "sqlx-postgres",
        "SqlxMySqlPoolConnection" => "sqlx-mysql",
        "SqlxSqlitePoolConnection" => "sqlx-sqlite",
        "MockDatabaseConnection" => "mock",
        "ProxyDatabaseConnection" => "proxy",
        _ => "sqlx-sqlite (rusqlite connections are not supported)",
    }
}
