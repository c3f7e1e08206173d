//! The items service with metrics for Prometheus, and a page that shows its sessions live.
//!
//! ```text
//! cd examples/dashboard
//! DATABASE_URL=postgres://user:password@localhost/db cargo run
//! ```
//!
//! It listens on 127.0.0.1, port 3000 or `PORT`: `/items` is the service, `/slow` holds a connection for a while,
//! `/metrics` is for Prometheus, `/dashboard` is the page. `grafana.json` is a dashboard for Grafana.
//!
//! Keep `/metrics` and `/dashboard` from the public: they tell how the service works.

mod board;
// The service is that of the example `items`, whose own `main` is not called here.
#[allow(dead_code)]
#[path = "../../items.rs"]
mod items;

use std::{env, error::Error, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{MatchedPath, State},
    http::StatusCode,
    response::Html,
    routing::get,
};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use sea_orm::{ConnectOptions, ConnectionTrait, Database};
use tokio::net::TcpListener;
use tower_sea_orm::{DbSession, DbSessionLayer, MetricsObserver, SessionPool};

use self::board::{Board, Snapshot};

/// The same for both: a page and a scrape must not wait for a connection, so that neither has a session.
#[derive(Clone)]
struct Telemetry {
    pool: SessionPool,
    board: Arc<Board>,
    metrics: Arc<MetricsObserver>,
    scrape: PrometheusHandle,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt()
        .with_env_filter("info,tower_sea_orm=info,tower_http=warn")
        .init();
    let telemetry = connect(env::var("DATABASE_URL")?).await?;
    items::create_table(&telemetry.pool).await?;

    let port = env::var("PORT").map_or(Ok(3000), |port| port.parse())?;
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    tracing::info!("the page: http://{}/dashboard", listener.local_addr()?);
    axum::serve(listener, app(telemetry)).await?;
    Ok(())
}

/// The recorder is installed before the pool is built, which is when the observer looks for one.
async fn connect(url: String) -> Result<Telemetry, Box<dyn Error>> {
    let seconds = Matcher::Suffix("_seconds".to_owned());
    let scrape = PrometheusBuilder::new()
        .set_buckets_for_metric(seconds, &MetricsObserver::BUCKETS)?
        .install_recorder()?;
    let mut options = ConnectOptions::new(url);
    options.max_connections(5).sqlx_logging(false);
    let board = Arc::new(Board::default());
    let metrics = Arc::new(MetricsObserver::new().pool_name("items"));
    let pool = SessionPool::builder(Database::connect(options).await?)
        .acquire_timeout(Duration::from_secs(1))
        .observe(metrics.clone())
        .observe(board.clone())
        .build()?;
    Ok(Telemetry {
        pool,
        board,
        metrics,
        scrape,
    })
}

fn app(telemetry: Telemetry) -> Router {
    // Templates, not paths: a label must have few values.
    let layer = DbSessionLayer::new(telemetry.pool.clone())
        .lazy()
        .http_route(|parts| Some(parts.extensions.get::<MatchedPath>()?.as_str().into()));
    let slow = Router::new().route("/slow", get(slow)).route_layer(layer);
    let pages = Router::new()
        .route("/metrics", get(scrape))
        .route("/dashboard", get(Html(include_str!("dashboard.html"))))
        .route("/dashboard/data", get(data))
        .with_state(telemetry.clone());
    items::app(telemetry.pool).merge(slow).merge(pages)
}

/// Holds its connection for half a second.
async fn slow(db: DbSession) -> Result<(), StatusCode> {
    let slept = db.execute_unprepared("SELECT pg_sleep(0.5)").await;
    slept.map(|_| ()).map_err(|error| {
        let known = tower_sea_orm::Error::of(&error);
        known.map_or(StatusCode::INTERNAL_SERVER_ERROR, |known| known.status())
    })
}

async fn scrape(State(telemetry): State<Telemetry>) -> String {
    telemetry.metrics.update();
    telemetry.scrape.run_upkeep();
    telemetry.scrape.render()
}

async fn data(State(telemetry): State<Telemetry>) -> Json<Snapshot> {
    Json(telemetry.board.snapshot(&telemetry.pool))
}
