//! [`Connection`]: a connection of either kind.

use sea_orm::{DatabaseConnection, DbBackend, sqlx};

#[cfg(feature = "sqlx-mysql")]
use super::mariadb;
use super::{answer::Answer, postgres};

/// A connection to the server of a pool.
pub(super) enum Connection {
    Postgres(sqlx::PgConnection),
    #[cfg(feature = "sqlx-mysql")]
    MariaDb(sqlx::MySqlConnection),
}

impl Connection {
    pub(super) async fn open(database: &DatabaseConnection) -> Result<Self, String> {
        match database.get_database_backend() {
            DbBackend::Postgres => postgres::connect(database).await.map(Self::Postgres),
            #[cfg(feature = "sqlx-mysql")]
            DbBackend::MySql => mariadb::connect(database).await.map(Self::MariaDb),
            // The layer has refused it.
            other => Err(format!("{other:?} has no replicas")),
        }
    }

    pub(super) async fn ask(&mut self) -> Result<Answer, String> {
        match self {
            Self::Postgres(connection) => postgres::ask(connection).await,
            #[cfg(feature = "sqlx-mysql")]
            Self::MariaDb(connection) => mariadb::ask(connection).await,
        }
    }
}
