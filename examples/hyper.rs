//! The same layer on plain hyper, without a framework: the session is in the request's extensions.
//!
//! ```text
//! cargo run --example hyper
//! curl http://127.0.0.1:3000/
//! ```

use std::{
    convert::Infallible,
    env,
    error::Error,
    io::{self, IsTerminal},
    process::ExitCode,
    time::Duration,
};

use http_body_util::Full;
use hyper::{Request, Response, StatusCode, body::Bytes};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use sea_orm::{ConnectionTrait, Database, DbErr, Statement};
use tokio::net::TcpListener;
use tower::{Layer, service_fn};
use tower_sea_orm::{DbSession, DbSessionLayer, SessionPool};

#[tokio::main]
async fn main() -> ExitCode {
    let log = tracing_subscriber::fmt();
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
    let pool = SessionPool::new(Database::connect("sqlite::memory:").await?);
    let service = DbSessionLayer::new(pool.clone()).layer(service_fn(handle));

    let listener = TcpListener::bind(("127.0.0.1", port()?)).await?;
    tracing::info!("listening on http://{}", listener.local_addr()?);
    let server = auto::Builder::new(TokioExecutor::new());
    let graceful = GracefulShutdown::new();
    loop {
        let (stream, _) = tokio::select! {
            accepted = listener.accept() => accepted?,
            interrupted = tokio::signal::ctrl_c() => break interrupted?,
        };
        let service = TowerToHyperService::new(service.clone());
        let connection = server
            .serve_connection(TokioIo::new(stream), service)
            .into_owned();
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::warn!("{error}");
            }
        });
    }
    // The pool closes first, while the server still answers; requests that take longer than this are cut off.
    pool.close(Duration::from_secs(10)).await;
    graceful.shutdown().await;
    Ok(())
}

/// `PORT`, or 3000.
fn port() -> Result<u16, String> {
    let Some(port) = env::var_os("PORT").filter(|port| !port.is_empty()) else {
        return Ok(3000);
    };
    let port = port.to_string_lossy();
    port.parse()
        .map_err(|_| format!("PORT is \"{port}\": write a number from 0 to 65535"))
}

async fn handle<B>(request: Request<B>) -> Result<Response<Full<Bytes>>, Infallible> {
    let mut response = Response::default();
    match answer(&request).await {
        Ok(text) => *response.body_mut() = Full::from(text),
        Err(error) => {
            tracing::error!("{error}");
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        }
    }
    Ok(response)
}

async fn answer<B>(request: &Request<B>) -> Result<String, Box<dyn Error + Send + Sync>> {
    let session: DbSession = DbSession::from_extensions(request.extensions())?;
    let question = Statement::from_string(session.backend(), "SELECT 6 * 7");
    let row = session
        .query_one_raw(question)
        .await?
        .ok_or(DbErr::RecordNotFound("no row".to_owned()))?;
    Ok(format!("{}\n", row.try_get_by_index::<i32>(0)?))
}
