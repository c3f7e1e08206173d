//! Stopping without losing a request: requests in progress finish, new ones get a 503, and one that takes
//! too long is cut off.
//!
//! ```text
//! cargo run --example graceful_shutdown                       # SQLite in memory
//! DATABASE_URL=postgres://user:password@localhost/db cargo run --example graceful_shutdown
//! ```
//!
//! It listens on 127.0.0.1, port 3000 or `PORT`, and gives requests in progress `GRACE` seconds (10)
//! when it is asked to stop. Try, in other terminals:
//!
//! ```text
//! curl -i localhost:3000/count/5      # counts for five seconds in one transaction: 200
//! curl -i localhost:3000/count/60     # leave this running, and press ctrl-c here (or send SIGTERM)
//! curl -i localhost:3000/count/1      # meanwhile: 503 with Retry-After, at once
//! ```
//!
//! Ten seconds after ctrl-c the long one is cut off: its transaction is rolled back, it answers 503, and
//! the process ends.

use std::{
    env,
    error::Error,
    io::{self, IsTerminal},
    process::ExitCode,
    time::Duration,
};

use axum::{
    Router,
    extract::Path,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use sea_orm::{ConnectionTrait, DbErr};
use tokio::net::TcpListener;
use tower_sea_orm::{DbSessionLayer, DbTx, PoolConfig, SessionPool};
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter);
    // No colours when the output is a file.
    if io::stdout().is_terminal() {
        log.init()
    } else {
        log.with_ansi(false).init()
    }
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), Box<dyn Error>> {
    let url = env::var("DATABASE_URL").unwrap_or_else(|_| "sqlite::memory:".to_owned());
    let config = PoolConfig::from_vars([("DATABASE_URL", url.as_str()), ("DB_ECHO", "false")])?;
    tracing::info!("connecting to {config}");
    let pool = config
        .connect()
        .await
        .map_err(|error| format!("cannot connect to {config}: {error}"))?;
    let grace = Duration::from_secs(number("GRACE", 10)?.into());

    let listener = TcpListener::bind(("127.0.0.1", number("PORT", 3000)?)).await?;
    tracing::info!("listening on http://{}", listener.local_addr()?);
    serve(listener, pool, told_to_stop(), grace).await?;
    Ok(())
}

/// Serves until `stop`, then gives the requests in progress `grace` to end.
///
/// The pool closes first, while the server still answers, so that a new request gets a 503 and not a refused
/// connection. Only then does the server stop; by then every request has ended or was cut off.
pub(crate) async fn serve(
    listener: TcpListener,
    pool: SessionPool,
    stop: impl Future<Output = ()> + Send + 'static,
    grace: Duration,
) -> io::Result<()> {
    let app = app(pool.clone());
    let closed = async move {
        stop.await;
        tracing::info!("stopping: new requests are refused, those in progress have {grace:?}");
        let cut = pool.close(grace).await;
        tracing::info!("the database connections are closed; {cut} requests were cut off");
    };
    axum::serve(listener, app)
        .with_graceful_shutdown(closed)
        .await
}

pub(crate) fn app(pool: SessionPool) -> Router {
    Router::new()
        .route("/count/{seconds}", get(count))
        .layer(DbSessionLayer::new(pool))
}

/// Counts seconds, in one transaction.
async fn count(tx: DbTx, Path(seconds): Path<u32>) -> Result<String, AppError> {
    for _ in 0..seconds {
        tx.execute_unprepared("SELECT 1").await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    tx.execute_unprepared("SELECT 1").await?;
    Ok(format!("{seconds} seconds\n"))
}

/// Ctrl-c, or SIGTERM where there is one: what `docker stop`, systemd and Kubernetes send.
async fn told_to_stop() {
    let interrupted = async {
        if let Err(error) = tokio::signal::ctrl_c().await {
            tracing::error!("cannot listen for ctrl-c: {error}");
            std::future::pending::<()>().await;
        }
    };
    #[cfg(unix)]
    let terminated = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut signal) => drop(signal.recv().await),
            Err(error) => {
                tracing::error!("cannot listen for SIGTERM: {error}");
                std::future::pending::<()>().await;
            }
        }
    };
    #[cfg(not(unix))]
    let terminated = std::future::pending::<()>();
    tokio::select! {
        () = interrupted => {}
        () = terminated => {}
    }
}

fn number(name: &str, default: u16) -> Result<u16, String> {
    let Some(text) = env::var_os(name).filter(|text| !text.is_empty()) else {
        return Ok(default);
    };
    let text = text.to_string_lossy();
    text.parse()
        .map_err(|_| format!("{name} is \"{text}\": write a number from 0 to 65535"))
}

#[derive(Debug)]
struct AppError(DbErr);

impl IntoResponse for AppError {
    fn into_response(self) -> Response {
        // The client gets a status, the log gets the cause.
        tracing::error!("{}", self.0);
        let Some(known) = tower_sea_orm::Error::of(&self.0) else {
            return StatusCode::INTERNAL_SERVER_ERROR.into_response();
        };
        let mut response = known.status().into_response();
        if let Some(wait) = known.retry_after() {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, wait.as_secs().into());
        }
        response
    }
}

impl From<DbErr> for AppError {
    fn from(error: DbErr) -> Self {
        Self(error)
    }
}
