//! What the services of this package share: a table, the pool from `DATABASE_URL`, and a clean stop.

pub mod item;

use std::{env, error::Error, io, time::Duration};

use sea_orm::{ActiveModelTrait, ActiveValue::Set, ConnectionTrait, DbErr, EntityTrait};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tower_sea_orm::{PoolConfig, SessionPool, SessionPoolBuilder};

/// Starts the log, connects, makes the table and listens on 127.0.0.1, port 3000 or `PORT`.
pub async fn start() -> Result<(SessionPool, TcpListener), Box<dyn Error>> {
    start_after(async |pool| create_table(pool).await).await
}

/// [`start`] with other work before it listens.
pub async fn start_after(
    prepare: impl AsyncFnOnce(&SessionPool) -> Result<(), DbErr>,
) -> Result<(SessionPool, TcpListener), Box<dyn Error>> {
    tracing_subscriber::fmt().init();
    listen(|pool| pool, prepare).await
}

/// [`start`] with settings for the pool, and with the service's own log.
pub async fn start_with(
    set: impl FnOnce(SessionPoolBuilder) -> SessionPoolBuilder,
) -> Result<(SessionPool, TcpListener), Box<dyn Error>> {
    listen(set, async |pool| create_table(pool).await).await
}

async fn listen(
    set: impl FnOnce(SessionPoolBuilder) -> SessionPoolBuilder,
    prepare: impl AsyncFnOnce(&SessionPool) -> Result<(), DbErr>,
) -> Result<(SessionPool, TcpListener), Box<dyn Error>> {
    let config = match env::var_os("DATABASE_URL") {
        Some(_) => PoolConfig::from_env()?, // with `DB_POOL_SIZE` and the like
        None => PoolConfig::from_vars([("DATABASE_URL", "sqlite::memory:"), ("DB_ECHO", "false")])?,
    };
    let pool = config.connect_with(set).await?;
    prepare(&pool).await?;
    let port = env::var("PORT").unwrap_or_else(|_| "3000".to_owned());
    let listener = TcpListener::bind(("127.0.0.1", port.parse()?)).await?;
    tracing::info!("listening on {}", listener.local_addr()?);
    Ok((pool, listener))
}

/// Ends when the service is told to stop and the requests in progress have ended.
///
/// The pool closes first, while the server still answers: new requests get an answer that says so, not a
/// refused connection.
pub async fn stopped(pool: SessionPool) {
    if let Err(error) = told_to_stop().await {
        tracing::error!("cannot listen for signals: {error}");
        std::future::pending::<()>().await;
    }
    pool.close(Duration::from_secs(10)).await;
}

/// Ctrl-c, or SIGTERM: what `docker stop`, systemd and Kubernetes send.
async fn told_to_stop() -> io::Result<()> {
    let mut terminated = signal(SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted,
        _ = terminated.recv() => Ok(()),
    }
}

/// Makes the table, with two items, unless it is there.
pub async fn create_table(pool: &SessionPool) -> Result<(), DbErr> {
    let db = pool.session().await?;
    let sql = "CREATE TABLE IF NOT EXISTS item \
        (id integer PRIMARY KEY, name text NOT NULL, pieces integer NOT NULL)";
    db.execute_unprepared(sql).await?;
    for (id, name) in [(1, "lamp"), (2, "table")] {
        if item::Entity::find_by_id(id).one(&*db).await?.is_none() {
            let item = item::ActiveModel {
                id: Set(id),
                name: Set(name.to_owned()),
                pieces: Set(10),
            };
            item.insert(&*db).await?;
        }
    }
    Ok(())
}
