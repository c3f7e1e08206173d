//! OpenTelemetry: metrics and traces by OTLP, to a collector or to any back end that takes it.
//!
//! ```text
//! cargo run --bin otlp                                        # SQLite in memory
//! DATABASE_URL=postgres://user:password@localhost/db cargo run --bin otlp
//! ```
//!
//! It sends to `OTEL_EXPORTER_OTLP_ENDPOINT`, `http://localhost:4317` by default, as the service `shop` or
//! `OTEL_SERVICE_NAME`, and listens on 127.0.0.1, port 3000 or `PORT`. Try:
//!
//! ```text
//! curl localhost:3000/items/1
//! curl -X POST localhost:3000/items/1/take
//! ```
//!
//! A trace has the request's span, in it that of its session, and in that one the client span of each statement.

use std::{env, error::Error};

use axum::{
    Json, Router,
    extract::{MatchedPath, Path, Request},
    http::{HeaderMap, StatusCode},
    middleware::{Next, from_fn},
    response::Response,
    routing::{get, post},
};
use integrations::{item, start_with, stopped};
use opentelemetry::{
    metrics::MeterProvider,
    propagation::{Extractor, TextMapPropagator},
    trace::TracerProvider,
};
use opentelemetry_otlp::{MetricExporter, SpanExporter, WithExportConfig};
use opentelemetry_sdk::{
    Resource, metrics::SdkMeterProvider, propagation::TraceContextPropagator,
    trace::SdkTracerProvider,
};
use sea_orm::{DbErr, EntityTrait};
use tower_sea_orm::{DbSession, DbSessionLayer, DbTx, OpenTelemetryObserver, SessionPool};
use tracing::{Instrument, Subscriber, level_filters::LevelFilter};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::{Layer, filter::Targets, layer::SubscriberExt, registry::LookupSpan};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let telemetry = Telemetry::new(env::var("OTEL_EXPORTER_OTLP_ENDPOINT").ok())?;
    let log = tracing_subscriber::fmt::layer().with_filter(LevelFilter::INFO);
    let all = tracing_subscriber::registry()
        .with(log)
        .with(telemetry.spans());
    tracing::subscriber::set_global_default(all)?;
    let (pool, listener) = start_with(|pool| pool.observe(telemetry.observer())).await?;
    axum::serve(listener, app(pool.clone()))
        .with_graceful_shutdown(stopped(pool))
        .await?;
    // Last: what the requests at the end have measured is still to be sent.
    telemetry.shut_down().await
}

/// What is measured, on its way to the collector.
pub(crate) struct Telemetry {
    metrics: SdkMeterProvider,
    traces: SdkTracerProvider,
}

impl Telemetry {
    /// In a tokio runtime, which the exporters' connections live on.
    pub(crate) fn new(endpoint: Option<String>) -> Result<Self, Box<dyn Error>> {
        let endpoint = endpoint.unwrap_or_else(|| "http://localhost:4317".to_owned());
        let name = env::var("OTEL_SERVICE_NAME").unwrap_or_else(|_| "shop".to_owned());
        let resource = Resource::builder().with_service_name(name).build();
        let metrics = MetricExporter::builder().with_tonic();
        let traces = SpanExporter::builder().with_tonic();
        Ok(Self {
            metrics: SdkMeterProvider::builder()
                .with_resource(resource.clone())
                // Once a minute, or `OTEL_METRIC_EXPORT_INTERVAL`.
                .with_periodic_exporter(metrics.with_endpoint(&endpoint).build()?)
                .build(),
            traces: SdkTracerProvider::builder()
                .with_resource(resource)
                .with_batch_exporter(traces.with_endpoint(&endpoint).build()?)
                .build(),
        })
    }

    /// One for each pool.
    pub(crate) fn observer(&self) -> OpenTelemetryObserver {
        OpenTelemetryObserver::new(&self.metrics.meter("shop")).pool_name("shop")
    }

    /// The crate's two spans are at DEBUG; a fmt layer beside this one has its own filter.
    pub(crate) fn spans<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'s> LookupSpan<'s>,
    {
        let wanted = Targets::new()
            .with_default(LevelFilter::INFO)
            .with_target("tower_sea_orm::session", LevelFilter::DEBUG)
            .with_target("tower_sea_orm::statement", LevelFilter::DEBUG);
        tracing_opentelemetry::layer()
            .with_tracer(self.traces.tracer("shop"))
            .with_filter(wanted)
    }

    /// Sends what is left. It blocks, so it gets a thread of its own.
    pub(crate) async fn shut_down(self) -> Result<(), Box<dyn Error>> {
        let shut_down = move || self.traces.shutdown().and(self.metrics.shutdown());
        Ok(tokio::task::spawn_blocking(shut_down).await??)
    }
}

pub(crate) fn app(pool: SessionPool) -> Router {
    // The route's template: a raw path as a label would be a time series for each item.
    let sessions = DbSessionLayer::new(pool)
        .lazy()
        .http_route(|parts| Some(parts.extensions.get::<MatchedPath>()?.as_str().into()));
    Router::new()
        .route("/items/{id}", get(read))
        .route("/items/{id}/take", post(take))
        .layer(sessions)
        // Outside the session layer, so that a session's span is in the request's.
        .layer(from_fn(trace))
}

/// The request's span, which goes on with the trace of its client.
async fn trace(request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>();
    let span = tracing::info_span!(
        "request",
        otel.kind = "server",
        otel.name = route.map(|route| format!("{} {}", request.method(), route.as_str())),
        http.request.method = %request.method(),
        http.route = route.map(MatchedPath::as_str),
        http.response.status_code = tracing::field::Empty,
    );
    let parent = TraceContextPropagator::new().extract(&Headers(request.headers()));
    // An error if no OpenTelemetry layer is there to know it.
    let _ = span.set_parent(parent);
    let response = next.run(request).instrument(span.clone()).await;
    span.record("http.response.status_code", response.status().as_u16());
    response
}

/// A request's headers, for `traceparent` and `tracestate`.
struct Headers<'h>(&'h HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(|name| name.as_str()).collect()
    }
}

async fn read(db: DbSession, Path(id): Path<i32>) -> Result<Json<item::Model>, StatusCode> {
    let found = item::Entity::find_by_id(id).one(&db).await;
    found
        .map_err(failed)?
        .map(Json)
        .ok_or(StatusCode::NOT_FOUND)
}

async fn take(tx: DbTx, Path(id): Path<i32>) -> Result<Json<item::Model>, StatusCode> {
    let left = item::take(&tx, id, 1).await.map_err(failed)?;
    let left = left.ok_or(StatusCode::NOT_FOUND)?;
    if left.pieces < 0 {
        return Err(StatusCode::CONFLICT); // rolls back
    }
    Ok(Json(left))
}

fn failed(error: DbErr) -> StatusCode {
    tracing::error!("{error}");
    StatusCode::INTERNAL_SERVER_ERROR
}
