//! [`Connection`]: a connection of either kind.

use sea_orm::DatabaseConnection;
#[cfg(any(feature = "sqlx-postgres", feature = "sqlx-mysql"))]
use sea_orm::{DbBackend, sqlx};

use super::answer::Answer;
#[cfg(feature = "sqlx-mysql")]
use super::mariadb;
#[cfg(feature = "sqlx-postgres")]
use super::postgres;

/// A connection to the server of a pool.
pub(super) enum Connection {
    #[cfg(feature = "sqlx-postgres")]
    Postgres(sqlx::PgConnection),
    #[cfg(feature = "sqlx-mysql")]
    MariaDb(sqlx::MySqlConnection),
    /// Without the driver of either, the layer refuses replicas.
    #[cfg(not(any(feature = "sqlx-postgres", feature = "sqlx-mysql")))]
    #[allow(dead_code, reason = "it has no value")]
    None(std::convert::Infallible),
}

impl Connection {
    pub(super) async fn open(database: &DatabaseConnection) -> Result<Self, String> {
        match database.get_database_backend() {
            #[cfg(feature = "sqlx-postgres")]
            DbBackend::Postgres => postgres::connect(database).await.map(Self::Postgres),
            #[cfg(feature = "sqlx-mysql")]
            DbBackend::MySql => mariadb::connect(database).await.map(Self::MariaDb),
            // The layer has refused it.
            other => Err(format!("{other:?} has no replicas")),
        }
    }

    pub(super) async fn ask(&mut self) -> Result<Answer, String> {
        match self {
            #[cfg(feature = "sqlx-postgres")]
            Self::Postgres(connection) => postgres::ask(connection).await,
            #[cfg(feature = "sqlx-mysql")]
            Self::MariaDb(connection) => mariadb::ask(connection).await,
            #[cfg(not(any(feature = "sqlx-postgres", feature = "sqlx-mysql")))]
            Self::None(never) => match *never {},
        }
    }
}
