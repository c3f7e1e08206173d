//! [`Monitor`]: asks a server for its role and its position, on a connection of its own.

#[cfg(feature = "sqlx-mysql")]
mod mariadb;
#[cfg(feature = "sqlx-postgres")]
mod postgres;

use std::time::Duration;

use sea_orm::DatabaseConnection;
#[cfg(any(feature = "sqlx-postgres", feature = "sqlx-mysql"))]
use sea_orm::{DbBackend, sqlx};
use tokio::{sync::Mutex, time::timeout};

use crate::{connection::History, position::Reached};

/// The connection that a server is asked on. Not one of the pool's: the answer
/// is not to wait behind requests.
#[derive(Default)]
pub(super) struct Monitor(Mutex<Option<Connection>>);

impl Monitor {
    /// Asks the server.
    pub(super) async fn ask(
        &self,
        database: &DatabaseConnection,
        within: Duration,
    ) -> Result<Answer, String> {
        // tokio's, since it is held while the server is asked. The checks of
        // one `Replicas` never overlap.
        let mut place = self.0.lock().await;
        // Taken: one that fails, or whose answer does not come, is not used
        // again.
        let connection = place.take();
        let asking = async {
            let mut connection = match connection {
                Some(connection) => connection,
                None => Connection::open(database).await?,
            };
            let answer = connection.ask().await?;
            Ok::<_, String>((connection, answer))
        };
        // Around the log-in as well: a host that is switched off does not
        // refuse it, but never answers.
        let asked = timeout(within, asking).await;
        let asked = asked.unwrap_or_else(|_| Err(format!("no answer within {within:?}")));
        let (connection, answer) = asked?;
        *place = Some(connection);
        Ok(answer)
    }

    /// Has the next question asked on a new connection, which goes to the
    /// server that the name leads to then.
    pub(super) async fn reconnect(&self) {
        *self.0.lock().await = None;
    }
}

/// A connection to the server of a pool.
enum Connection {
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
    async fn open(database: &DatabaseConnection) -> Result<Self, String> {
        match database.get_database_backend() {
            #[cfg(feature = "sqlx-postgres")]
            DbBackend::Postgres => postgres::connect(database).await.map(Self::Postgres),
            #[cfg(feature = "sqlx-mysql")]
            DbBackend::MySql => mariadb::connect(database).await.map(Self::MariaDb),
            // The layer has refused it.
            other => Err(format!("{other:?} has no replicas")),
        }
    }

    async fn ask(&mut self) -> Result<Answer, String> {
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

/// A server's answer.
#[derive(Clone, Debug)]
pub(in crate::replicas) struct Answer {
    /// Whether it may serve reads as a replica. All nodes of a Galera cluster
    /// may.
    pub(in crate::replicas) is_replica: bool,
    /// Why it should not serve reads all the same.
    pub(in crate::replicas) unfit: Option<String>,
    /// Whether it takes writes of its own.
    pub(in crate::replicas) takes_writes: bool,
    /// What it has replayed, or committed if it is the primary.
    pub(in crate::replicas) reached: Reached,
    /// What it has of each server's transactions. MariaDB tells, unless it is a
    /// node of a Galera cluster.
    pub(in crate::replicas) history: Option<History>,
}
