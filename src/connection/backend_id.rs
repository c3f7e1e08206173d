//! [`BackendId`]: the server's process behind a connection.

/// The server's process behind a connection, as distinct from a later one of the same number.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(dead_code)] // each driver has its own
pub(crate) enum BackendId {
    /// Its start in microseconds of the server's clock, and the server's own.
    Postgres { pid: i32, started: i64, server: i64 },
    /// The client's address and port, as the server sees them, and the server's own name and port.
    MySql {
        id: u64,
        client: String,
        server: String,
    },
}
