//! [`Monitor`]: asks a server for its role and its position, on a connection of its own.

mod answer;
mod connection;
#[cfg(feature = "sqlx-mysql")]
mod mariadb;
#[cfg(feature = "sqlx-postgres")]
mod postgres;

use std::time::Duration;

use sea_orm::DatabaseConnection;
use tokio::{sync::Mutex, time::timeout};

pub(super) use self::answer::Answer;
use self::connection::Connection;

/// The connection that a server is asked on. Not one of the pool's: the answer is not to wait behind requests.
#[derive(Default)]
pub(super) struct Monitor(Mutex<Option<Connection>>);

impl Monitor {
    /// Asks the server.
    pub(super) async fn ask(
        &self,
        database: &DatabaseConnection,
        within: Duration,
    ) -> Result<Answer, String> {
        let mut place = self.0.lock().await;
        // Taken: one that fails, or whose answer does not come, is not used again.
        let connection = place.take();
        let asking = async {
            let mut connection = match connection {
                Some(connection) => connection,
                None => Connection::open(database).await?,
            };
            let answer = connection.ask().await?;
            Ok::<_, String>((connection, answer))
        };
        let asked = timeout(within, asking).await;
        let asked = asked.unwrap_or_else(|_| Err(format!("no answer within {within:?}")));
        let (connection, answer) = asked?;
        *place = Some(connection);
        Ok(answer)
    }
}
