//! [`DriverPool`]: the pool underneath, of which the session pool is one user.

mod acquire;
mod memory;

use std::time::Duration;

use futures_util::future::BoxFuture;
#[cfg(feature = "_sqlx")]
use sea_orm::sqlx::{self, pool::PoolConnection};
use sea_orm::{ConnectionTrait, DatabaseConnection, DatabaseConnectionType};

pub(crate) use self::memory::Memory;
use crate::error::{Error, Kind};

/// sqlx's pool, or what takes its place.
#[derive(Clone)]
pub(crate) enum DriverPool {
    #[cfg(feature = "sqlx-postgres")]
    Postgres(sqlx::PgPool),
    #[cfg(feature = "sqlx-mysql")]
    MySql(sqlx::MySqlPool),
    #[cfg(feature = "sqlx-sqlite")]
    Sqlite {
        pool: sqlx::SqlitePool,
        /// `None`: a file.
        memory: Option<Memory>,
    },
    /// Nothing to pin: statements go to the `DatabaseConnection` itself.
    Direct(DatabaseConnection),
}

/// Runs `$body` with `$pool` bound to sqlx's pool.
// A macro, because each arm has a pool of another type.
macro_rules! dispatch {
    ($source:expr, $pool:ident => $body:expr, direct => $direct:expr) => {
        match $source {
            #[cfg(feature = "sqlx-postgres")]
            DriverPool::Postgres($pool) => $body,
            #[cfg(feature = "sqlx-mysql")]
            DriverPool::MySql($pool) => $body,
            #[cfg(feature = "sqlx-sqlite")]
            DriverPool::Sqlite { pool: $pool, .. } => $body,
            DriverPool::Direct(_) => $direct,
        }
    };
}

use dispatch;

impl DriverPool {
    pub(in crate::pool) fn of(database: &DatabaseConnection) -> Result<Self, Error> {
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
                // In memory, a database lives in its connections, which sqlx
                // closes for many reasons
                // (<https://github.com/launchbadge/sqlx/issues/1869>), and
                // which must not be closed while they are in use.
                let memory = Memory::of(&pool.connect_options());
                Ok(Self::Sqlite { pool, memory })
            }
            #[cfg(feature = "mock")]
            DatabaseConnectionType::MockDatabaseConnection(_) => Ok(Self::Direct(database.clone())),
            #[cfg(feature = "proxy")]
            DatabaseConnectionType::ProxyDatabaseConnection(_) => {
                Ok(Self::Direct(database.clone()))
            }
            // SeaORM panics when it is asked for the backend
            // (<https://github.com/SeaQL/sea-orm/issues/2483>).
            DatabaseConnectionType::Disconnected => Err(Kind::Disconnected.into()),
            // SeaORM may be built with drivers that this crate is not.
            #[allow(unreachable_patterns)]
            other => Err(Kind::DriverNotEnabled(remedy_for(&format!("{other:?}"))).into()),
        }
    }

    /// Returns whether statements are passed through to a `DatabaseConnection`
    /// (mock, proxy, plain handles).
    pub(in crate::pool) fn is_direct(&self) -> bool {
        matches!(self, Self::Direct(_))
    }

    /// Returns whether SeaORM's proxy is underneath.
    pub(in crate::pool) fn is_proxy(&self) -> bool {
        matches!(self, Self::Direct(database) if !database.is_mock_connection())
    }

    /// Returns whether both lead to the same database.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            // A plain handle has no identity of its own, so that only the very
            // same one counts.
            (Self::Direct(one), Self::Direct(another)) => {
                std::ptr::eq(self, other) || is_same_stand_in(one, another)
            }
            #[allow(unreachable_patterns)]
            _ => self.options() == other.options(),
        }
    }

    /// A pool's options live with what its clones share.
    fn options(&self) -> *const () {
        dispatch!(self, pool => std::ptr::from_ref(pool.options()).cast(), direct => std::ptr::null())
    }

    /// Returns a `DatabaseConnection` of the same kind on which every statement
    /// fails, as on a closed pool.
    pub(in crate::pool) fn closed_stand_in(&self) -> DatabaseConnection {
        dispatch!(self, pool => closed_twin(pool).into(), direct => DatabaseConnection::default())
    }

    pub(in crate::pool) fn max_connections(&self) -> Option<u32> {
        dispatch!(self, pool => Some(pool.options().get_max_connections()), direct => None)
    }

    pub(in crate::pool) fn acquire_timeout(&self) -> Option<Duration> {
        dispatch!(self, pool => Some(pool.options().get_acquire_timeout()), direct => None)
    }

    pub(in crate::pool) fn is_closed(&self) -> bool {
        dispatch!(self, pool => pool.is_closed(), direct => false)
    }

    pub(in crate::pool) fn max_lifetime(&self) -> Option<Duration> {
        dispatch!(self, pool => pool.options().get_max_lifetime(), direct => None)
    }

    pub(in crate::pool) fn idle_timeout(&self) -> Option<Duration> {
        dispatch!(self, pool => pool.options().get_idle_timeout(), direct => None)
    }

    /// Returns whether the pool could serve a user at once, by an idle
    /// connection or a new one.
    pub(in crate::pool) fn has_idle(&self) -> bool {
        dispatch!(self, pool => pool.num_idle() > 0 || pool.size() < pool.options().get_max_connections(), direct => true)
    }

    /// Resolves when the pool is closed.
    pub(in crate::pool) fn closed(&self) -> BoxFuture<'static, ()> {
        dispatch!(self, pool => Box::pin(pool.close_event()), direct => Box::pin(std::future::pending()))
    }

    /// Returns whether PostgreSQL's statements are not kept prepared
    /// (`statement-cache-capacity=0`), as some proxies demand. sqlx gives them
    /// names all the same, unless it is told
    /// (<https://github.com/launchbadge/sqlx/issues/67>).
    pub(in crate::pool) fn keeps_no_statements(&self) -> bool {
        match self {
            #[cfg(feature = "sqlx-postgres")]
            Self::Postgres(pool) => {
                // Only the parameters matter, and the pool's own user and host
                // might make no URL.
                let options = pool.connect_options().as_ref().clone();
                statement_cache_capacity(&options.username("user").host("localhost")) == Some(0)
            }
            #[allow(unreachable_patterns)]
            _ => false,
        }
    }

    /// Returns how many statements a connection keeps prepared where one more
    /// costs the following statement an acknowledgement that the server delays:
    /// sqlx closes the oldest one by a message without an answer, and does not
    /// set `TCP_NODELAY`.
    pub(in crate::pool) fn cheap_statements(&self) -> Option<usize> {
        match self {
            #[cfg(feature = "sqlx-mysql")]
            Self::MySql(pool) => {
                let options = pool.connect_options().as_ref().clone();
                let capacity =
                    statement_cache_capacity(&options.username("user").host("localhost"));
                // 0 is deliberate: some proxies demand it.
                capacity.filter(|capacity| *capacity > 0)
            }
            #[allow(unreachable_patterns)]
            _ => None,
        }
    }

    /// Returns host and port of the server, or its socket.
    #[cfg(feature = "config")]
    pub(crate) fn address(&self) -> Option<String> {
        match self {
            #[cfg(feature = "sqlx-postgres")]
            Self::Postgres(pool) => {
                let to = pool.connect_options();
                Some(address(to.get_socket(), to.get_host(), to.get_port()))
            }
            #[cfg(feature = "sqlx-mysql")]
            Self::MySql(pool) => {
                let to = pool.connect_options();
                Some(address(to.get_socket(), to.get_host(), to.get_port()))
            }
            #[allow(unreachable_patterns)]
            _ => None,
        }
    }

    /// Returns how many connections the pool has, those included that it is
    /// about to open.
    pub(in crate::pool) fn size(&self) -> u32 {
        dispatch!(self, pool => pool.size(), direct => 0)
    }

    /// Returns whether statements run on a server, which can be told to stop
    /// one.
    pub(in crate::pool) fn has_server(&self) -> bool {
        match self {
            #[cfg(feature = "sqlx-postgres")]
            Self::Postgres(_) => true,
            #[cfg(feature = "sqlx-mysql")]
            Self::MySql(_) => true,
            #[allow(unreachable_patterns)]
            _ => false,
        }
    }

    pub(in crate::pool) fn is_in_memory(&self) -> bool {
        self.memory().is_some()
    }

    pub(in crate::pool) fn memory(&self) -> Option<Memory> {
        match self {
            #[cfg(feature = "sqlx-sqlite")]
            Self::Sqlite { memory, .. } => *memory,
            #[allow(unreachable_patterns)]
            _ => None,
        }
    }

    pub(in crate::pool) fn num_idle(&self) -> usize {
        dispatch!(self, pool => pool.num_idle(), direct => 0)
    }

    /// Returns whether connections of the driver's pool are in use besides
    /// `acquiring` that are being opened.
    pub(in crate::pool) fn is_used(&self, acquiring: u32) -> bool {
        // sqlx does not count its users: they are what is left of all that it
        // has.
        dispatch!(self, pool => pool.size() > pool.num_idle() as u32 + acquiring, direct => { let _ = acquiring; false })
    }

    /// Refuses new users of the driver's pool; does not wait for anything.
    pub(in crate::pool) fn close_without_waiting(&self) {
        // sqlx has marked the pool as closed when `close()` returns; only its
        // future waits for the connections (H26).
        dispatch!(self, pool => drop(pool.close()), direct => ());
    }

    /// Refuses new users of the driver's pool and closes what is idle there,
    /// which sqlx does only when all else is back
    /// (<https://github.com/launchbadge/sqlx/issues/1773>).
    pub(in crate::pool) fn close_now(&self) {
        dispatch!(self, pool => {
            let idle = take_idle(pool);
            // Not before: `min_connections` would have others opened in their
            // place.
            drop(pool.close());
            close_all(idle);
        }, direct => ());
    }

    /// Closes the connections that are idle.
    pub(in crate::pool) fn close_idle(&self) {
        dispatch!(self, pool => close_all(take_idle(pool)), direct => ());
    }
}

/// Returns whether both are the same mock or proxy.
fn is_same_stand_in(one: &DatabaseConnection, other: &DatabaseConnection) -> bool {
    match (&one.inner, &other.inner) {
        #[cfg(feature = "mock")]
        (
            DatabaseConnectionType::MockDatabaseConnection(one),
            DatabaseConnectionType::MockDatabaseConnection(other),
        ) => std::sync::Arc::ptr_eq(one, other),
        #[cfg(feature = "proxy")]
        (
            DatabaseConnectionType::ProxyDatabaseConnection(one),
            DatabaseConnectionType::ProxyDatabaseConnection(other),
        ) => std::sync::Arc::ptr_eq(one, other),
        _ => false,
    }
}

/// Returns how many statements each connection keeps prepared: sqlx tells it in
/// the URL only.
#[cfg(any(feature = "sqlx-postgres", feature = "sqlx-mysql"))]
fn statement_cache_capacity(options: &impl sqlx::ConnectOptions) -> Option<usize> {
    let url = options.to_url_lossy();
    let mut parameters = url.query_pairs();
    let capacity = parameters.find(|(key, _)| key == "statement-cache-capacity")?;
    capacity.1.parse().ok()
}

#[cfg(all(
    feature = "config",
    any(feature = "sqlx-postgres", feature = "sqlx-mysql")
))]
fn address(socket: Option<&std::path::PathBuf>, host: &str, port: u16) -> String {
    match socket {
        Some(path) => path.display().to_string(),
        None if host.contains(':') => format!("[{host}]:{port}"),
        None => format!("{host}:{port}"),
    }
}

#[cfg(feature = "_sqlx")]
fn closed_twin<DB: sqlx::Database>(pool: &sqlx::Pool<DB>) -> sqlx::Pool<DB> {
    let twin = sqlx::Pool::connect_lazy_with(pool.connect_options().as_ref().clone());
    // Closed at the call of `close()`: there is nothing to wait for.
    drop(twin.close());
    twin
}

/// Takes all idle connections. sqlx's count of them may be behind, so every one
/// that it gives out is taken.
#[cfg(feature = "_sqlx")]
fn take_idle<DB: sqlx::Database>(pool: &sqlx::Pool<DB>) -> Vec<PoolConnection<DB>> {
    std::iter::from_fn(|| pool.try_acquire()).collect()
}

#[cfg(feature = "_sqlx")]
fn close_all<DB: sqlx::Database>(connections: Vec<PoolConnection<DB>>) {
    for mut connection in connections {
        // sqlx says goodbye in a task of its own: neither `close()` nor an
        // eviction waits for one server's answer after the other.
        connection.close_on_drop();
    }
}

/// Returns what to do so that the driver of a `DatabaseConnection` is built in,
/// by the name SeaORM prints.
fn remedy_for(variant: &str) -> &'static str {
    match variant {
        "SqlxPostgresPoolConnection" => "enable its feature `sqlx-postgres`",
        "SqlxMySqlPoolConnection" => "enable its feature `sqlx-mysql`",
        "SqlxSqlitePoolConnection" => "enable its feature `sqlx-sqlite`",
        "MockDatabaseConnection" => "enable its feature `mock`",
        "ProxyDatabaseConnection" => "enable its feature `proxy`",
        // SeaORM has only one other: rusqlite.
        _ => "rusqlite is not supported; connect with `sqlx-sqlite`, in SeaORM and here",
    }
}
