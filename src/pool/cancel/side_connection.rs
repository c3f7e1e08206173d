//! [`SideConnection`]: the connection beside the driver's pool by which the server is asked.

use super::batch::{Activity, Batch, Fault, Subject};
#[cfg(feature = "sqlx-mysql")]
use super::mysql::MySqlSide;
#[cfg(feature = "sqlx-postgres")]
use super::postgres::PostgresSide;
use crate::{connection::Peer, pool::driver_pool::DriverPool};

pub(super) enum SideConnection {
    #[cfg(feature = "sqlx-postgres")]
    Postgres(PostgresSide),
    #[cfg(feature = "sqlx-mysql")]
    MySql(MySqlSide),
}

/// Runs `$body` with `$side` bound to the server's own kind of connection.
macro_rules! dispatch {
    ($connection:expr, $side:ident => $body:expr, none => $none:expr) => {
        match $connection {
            #[cfg(feature = "sqlx-postgres")]
            SideConnection::Postgres($side) => $body,
            #[cfg(feature = "sqlx-mysql")]
            SideConnection::MySql($side) => $body,
            #[allow(unreachable_patterns)]
            _ => $none,
        }
    };
}

impl SideConnection {
    /// Opens one, and returns as well what it runs through.
    pub(super) async fn open(driver: &DriverPool) -> Result<(Self, Peer), Fault> {
        match driver {
            #[cfg(feature = "sqlx-postgres")]
            // With the pool's own options: PostgreSQL lets a user cancel what runs under its own role
            // (<https://www.postgresql.org/docs/current/functions-admin.html>).
            DriverPool::Postgres(pool) => {
                let (side, route) = PostgresSide::open(&pool.connect_options()).await?;
                Ok((Self::Postgres(side), route))
            }
            #[cfg(feature = "sqlx-mysql")]
            // As the pool's own user, who may kill its own threads without a privilege
            // (<https://mariadb.com/kb/en/kill/>).
            DriverPool::MySql(pool) => {
                let (side, route) = MySqlSide::open(&pool.connect_options()).await?;
                Ok((Self::MySql(side), route))
            }
            #[allow(unreachable_patterns)]
            _ => Err(Fault::Silent),
        }
    }

    /// Has the server cancel what the targets run; one that has gone or is idle is left alone.
    pub(super) async fn cancel(&mut self, batch: &mut Batch<'_>) -> Result<(), Fault> {
        // A batch of no targets only has the connection opened, to find out the route.
        if batch.items.is_empty() {
            return Ok(());
        }
        dispatch!(self, side => side.cancel(batch).await, none => Err(Fault::Silent))
    }

    /// Asks the server whether it is at work for `subject`. `None` if it does not say, or another server is asked: it knows
    /// fewer connections than there are. An orphan is ended.
    pub(super) async fn ask(&mut self, subject: &Subject) -> Result<Option<Activity>, Fault> {
        dispatch!(self, side => match subject {
            Subject::One(target) => side.ask_about(target).await,
            Subject::All(pool) => side.ask_about_all(pool).await,
            Subject::Orphan(target) => side.end(target).await.map(|()| None),
        }, none => {
            let _ = subject;
            Err(Fault::Silent)
        })
    }

    pub(super) async fn close(self) {
        dispatch!(self, side => side.close().await, none => ());
    }
}
