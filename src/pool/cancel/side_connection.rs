//! [`SideConnection`]: the connection beside the driver's pool by which the server is asked.

use super::batch::{Batch, Fault};
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

impl SideConnection {
    /// Opens one, and returns as well what it runs through.
    pub(super) async fn open(driver: &DriverPool) -> Result<(Self, Peer), Fault> {
        match driver {
            #[cfg(feature = "sqlx-postgres")]
            DriverPool::Postgres(pool) => {
                let (side, route) = PostgresSide::open(&pool.connect_options()).await?;
                Ok((Self::Postgres(side), route))
            }
            #[cfg(feature = "sqlx-mysql")]
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
        if batch.items.is_empty() {
            return Ok(());
        }
        match self {
            #[cfg(feature = "sqlx-postgres")]
            Self::Postgres(side) => side.cancel(batch).await,
            #[cfg(feature = "sqlx-mysql")]
            Self::MySql(side) => side.cancel(batch).await,
            #[allow(unreachable_patterns)]
            _ => Err(Fault::Silent),
        }
    }

    pub(super) async fn close(self) {
        match self {
            #[cfg(feature = "sqlx-postgres")]
            Self::Postgres(side) => side.close().await,
            #[cfg(feature = "sqlx-mysql")]
            Self::MySql(side) => side.close().await,
        }
    }
}
