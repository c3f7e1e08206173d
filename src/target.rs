//! [`Target`]: the database that a pool's statements go to, by OpenTelemetry's names.

use sea_orm::DatabaseConnection;
#[cfg(feature = "_sqlx")]
use sea_orm::DatabaseConnectionType;

use crate::{pool::SessionPool, telemetry::system_name};

/// The database that a pool connects to, as its options name it.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Target {
    pub(crate) system: &'static str,
    /// The host, or the path of a Unix socket.
    pub(crate) address: Option<String>,
    /// The port, if it connects over TCP.
    port: Option<u16>,
    default_port: u16,
    pub(crate) namespace: Option<String>,
}

impl Target {
    pub(crate) fn of(pool: &SessionPool) -> Self {
        let database = pool.database();
        Self {
            system: system_name(database.get_database_backend()),
            // From the options, not from the server: asking it would need a
            // connection before there is one.
            ..Self::named_in_options(database)
        }
    }

    fn named_in_options(database: &DatabaseConnection) -> Self {
        match &database.inner {
            #[cfg(feature = "sqlx-postgres")]
            DatabaseConnectionType::SqlxPostgresPoolConnection(_) => {
                let options = database.get_postgres_connection_pool().connect_options();
                // The server's own default, too.
                let name = options.get_database().unwrap_or(options.get_username());
                Self::server(options.get_host(), options.get_port(), 5432)
                    .behind(options.get_socket())
                    .named(name)
            }
            #[cfg(feature = "sqlx-mysql")]
            DatabaseConnectionType::SqlxMySqlPoolConnection(_) => {
                let options = database.get_mysql_connection_pool().connect_options();
                let server = Self::server(options.get_host(), options.get_port(), 3306)
                    .behind(options.get_socket());
                match options.get_database() {
                    Some(name) => server.named(name),
                    None => server,
                }
            }
            #[cfg(feature = "sqlx-sqlite")]
            DatabaseConnectionType::SqlxSqlitePoolConnection(_) => {
                let options = database.get_sqlite_connection_pool().connect_options();
                // Not the path, which says where a machine keeps its files.
                let name = options.get_filename().file_name().unwrap_or_default();
                Self::default().named(match &*name.to_string_lossy() {
                    // sqlx gives each database in memory another name, and a
                    // metric's label must not grow with them.
                    memory if memory.contains("memory") && memory.starts_with("file:") => {
                        ":memory:"
                    }
                    name => name,
                })
            }
            // A mock and a proxy have no address.
            _ => Self::default(),
        }
    }

    #[cfg(any(feature = "sqlx-postgres", feature = "sqlx-mysql"))]
    fn server(host: &str, port: u16, default_port: u16) -> Self {
        Self {
            // As it was configured, not resolved: the name outlives the servers
            // behind it.
            address: Some(host.to_owned()),
            // libpq and sqlx take a host of this form as the directory of a
            // socket.
            port: (!host.starts_with('/')).then_some(port),
            default_port,
            ..Self::default()
        }
    }

    #[cfg(any(feature = "sqlx-postgres", feature = "sqlx-mysql"))]
    fn behind(self, socket: Option<&std::path::PathBuf>) -> Self {
        match socket {
            // A socket goes before the host, as for the driver.
            Some(path) => Self {
                address: Some(path.to_string_lossy().into_owned()),
                port: None,
                ..self
            },
            None => self,
        }
    }

    #[cfg(feature = "_sqlx")]
    fn named(self, namespace: &str) -> Self {
        Self {
            namespace: Some(namespace.to_owned()),
            ..self
        }
    }

    /// Returns the port, if it is not the default one: the conventions want it
    /// only then.
    pub(crate) fn unusual_port(&self) -> Option<u16> {
        self.port.filter(|port| *port != self.default_port)
    }

    /// Returns the name that OpenTelemetry's conventions give to a pool without
    /// a name: `server.address:server.port/db.namespace`.
    pub(crate) fn pool_name(&self) -> String {
        let mut name = self.address.clone().unwrap_or_default();
        if let Some(port) = self.port {
            name += &format!(":{port}");
        }
        match &self.namespace {
            // SQLite has no server to be named after.
            Some(namespace) if name.is_empty() => namespace.clone(),
            Some(namespace) => format!("{name}/{namespace}"),
            None if name.is_empty() => self.system.to_owned(),
            None => name,
        }
    }
}

/// Returns how many open connections no session has: those that the session
/// pool keeps, and those of the driver's pool.
pub(crate) fn idle(pool: &SessionPool) -> usize {
    let database = pool.database();
    // The driver's pool counts none that a session pool keeps: those are out,
    // to it.
    let of_driver = match &database.inner {
        #[cfg(feature = "sqlx-postgres")]
        DatabaseConnectionType::SqlxPostgresPoolConnection(_) => {
            database.get_postgres_connection_pool().num_idle()
        }
        #[cfg(feature = "sqlx-mysql")]
        DatabaseConnectionType::SqlxMySqlPoolConnection(_) => {
            database.get_mysql_connection_pool().num_idle()
        }
        #[cfg(feature = "sqlx-sqlite")]
        DatabaseConnectionType::SqlxSqlitePoolConnection(_) => {
            database.get_sqlite_connection_pool().num_idle()
        }
        _ => 0,
    };
    pool.status().idle + of_driver
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "sqlx-postgres")]
    #[test]
    fn a_pool_without_a_name_is_named_after_its_database() {
        let tcp = Target::server("db.internal", 5433, 5432).named("shop");
        assert_eq!(tcp.pool_name(), "db.internal:5433/shop");
        assert_eq!(tcp.unusual_port(), Some(5433));
        let usual = Target::server("db.internal", 5432, 5432).named("shop");
        assert_eq!(usual.pool_name(), "db.internal:5432/shop");
        assert_eq!(usual.unusual_port(), None);
        let directory = Target::server("/run/postgresql", 5433, 5432).named("shop");
        assert_eq!(directory.pool_name(), "/run/postgresql/shop");
        assert_eq!(directory.unusual_port(), None);
        let socket = Target::server("localhost", 5432, 5432).behind(Some(&"/tmp/my.sock".into()));
        assert_eq!(socket.pool_name(), "/tmp/my.sock");
        assert_eq!(Target::default().named("shop.db").pool_name(), "shop.db");
    }
}
