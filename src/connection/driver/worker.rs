//! Whether the thread that sqlx runs a connection to SQLite by has died.

use sea_orm::DbErr;
#[cfg(feature = "sqlx-sqlite")]
use sea_orm::sqlx::Connection;

#[cfg(feature = "sqlx-sqlite")]
use super::results::query_error;
use super::{Driver, lost};

impl Driver {
    /// Returns an error if SQLite's thread has died, of which a result without
    /// an end may be the only sign: a text with no statement in it has none
    /// either (`g7_a_driver_thread_that_dies_is_an_error_of_its_statement`).
    #[cfg_attr(not(feature = "sqlx-sqlite"), allow(clippy::unused_async))]
    pub(crate) async fn check_worker(&mut self) -> Result<(), DbErr> {
        match self {
            #[cfg(feature = "sqlx-sqlite")]
            Self::Sqlite(connection) => {
                // First the lock, and then the ping: a dying thread drops the
                // end of its queue before it drops the lock. What is queued in
                // between is never answered, and never refused either.
                let locked = connection.lock_handle().await.map(drop);
                locked.map_err(query_error)?;
                connection.ping().await.map_err(query_error)
            }
            Self::Gone => Err(lost()),
            #[allow(unreachable_patterns)]
            _ => Ok(()),
        }
    }
}
