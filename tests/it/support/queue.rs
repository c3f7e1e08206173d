//! Requests that wait for a connection.

use sea_orm::DatabaseConnection;
use tokio::{task::JoinHandle, time::timeout};
use tower_sea_orm::{Error, PoolSession, SessionPool};

use super::{
    pool::pool_with,
    wait::{BOUND, LONG, eventually},
};

pub fn pool_of(db: &DatabaseConnection) -> SessionPool {
    pool_with(db, |pool| pool.acquire_timeout(LONG))
}

pub async fn take(pool: &SessionPool) -> PoolSession {
    timeout(BOUND, pool.session())
        .await
        .expect("a connection")
        .unwrap()
}

/// So many who wait.
pub async fn queue(pool: &SessionPool, count: usize) -> Vec<JoinHandle<Result<(), Error>>> {
    let before = pool.status().pending;
    let waiters = (0..count)
        .map(|_| {
            let pool = pool.clone();
            tokio::spawn(async move { pool.session().await.map(drop) })
        })
        .collect();
    eventually("they wait", async || {
        pool.status().pending == before + count
    })
    .await;
    waiters
}
