//! The metrics and traces of a service arrive at an OTLP receiver, over the network.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[allow(dead_code, reason = "its `main` is for its users")]
#[path = "../src/bin/otlp.rs"]
mod example;
mod support;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use axum::{body::Body, http::Request as HttpRequest};
use opentelemetry_proto::tonic::{
    collector::{
        metrics::v1::{
            ExportMetricsServiceRequest, ExportMetricsServiceResponse,
            metrics_service_server::{MetricsService, MetricsServiceServer},
        },
        trace::v1::{
            ExportTraceServiceRequest, ExportTraceServiceResponse,
            trace_service_server::{TraceService, TraceServiceServer},
        },
    },
    common::v1::{KeyValue, any_value::Value},
    metrics::v1::{Metric, metric::Data},
    resource::v1::Resource,
    trace::v1::Span,
};
use tokio::net::TcpListener;
use tonic::{
    Request, Response, Status,
    transport::{Server, server::TcpIncoming},
};
use tower::ServiceExt;
use tracing_subscriber::layer::SubscriberExt;

use self::{
    example::Telemetry,
    support::{Kind, Site},
};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// A collector that keeps what it gets.
#[derive(Clone, Default)]
struct Receiver {
    metrics: Arc<Mutex<Vec<ExportMetricsServiceRequest>>>,
    traces: Arc<Mutex<Vec<ExportTraceServiceRequest>>>,
}

#[tonic::async_trait]
impl MetricsService for Receiver {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        self.metrics.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.traces.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Receiver {
    async fn start() -> (Self, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let receiver = Self::default();
        let server = Server::builder()
            .add_service(MetricsServiceServer::new(receiver.clone()))
            .add_service(TraceServiceServer::new(receiver.clone()))
            .serve_with_incoming(TcpIncoming::from(listener));
        tokio::spawn(server);
        (receiver, url)
    }

    fn spans(&self) -> Vec<Span> {
        let requests = self.traces.lock().unwrap();
        let all = requests.iter().flat_map(|request| &request.resource_spans);
        all.inspect(|all| is_the_shop(all.resource.as_ref()))
            .flat_map(|all| &all.scope_spans)
            .flat_map(|scope| scope.spans.clone())
            .collect()
    }

    fn metrics(&self) -> BTreeMap<String, Metric> {
        let requests = self.metrics.lock().unwrap();
        let all = requests
            .iter()
            .flat_map(|request| &request.resource_metrics);
        all.inspect(|all| is_the_shop(all.resource.as_ref()))
            .flat_map(|all| &all.scope_metrics)
            .flat_map(|scope| scope.metrics.clone())
            .map(|metric| (metric.name.clone(), metric))
            .collect()
    }
}

fn is_the_shop(resource: Option<&Resource>) {
    assert_eq!(texts(&resource.unwrap().attributes)["service.name"], "shop");
}

fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &Value| match value {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        other => format!("{other:?}"),
    };
    attributes
        .iter()
        .map(|one| {
            let value = one.value.as_ref().and_then(|value| value.value.as_ref());
            (one.key.clone(), text(value.unwrap()))
        })
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Three requests: two of the client's trace, one of which fails, and one without a trace.
async fn load(site: &Site) {
    let app = example::app(site.pool.clone());
    let traceparent = format!("00-{TRACE}-{PARENT}-01");
    for (method, path, traceparent, status) in [
        ("POST", "/items/1/take", traceparent.as_str(), 200),
        ("GET", "/items/9", traceparent.as_str(), 404),
        ("GET", "/items/2", "00-none", 200),
    ] {
        let request = HttpRequest::builder().method(method).uri(path);
        let request = request.header("traceparent", traceparent);
        let response = app.clone().oneshot(request.body(Body::empty()).unwrap());
        assert_eq!(response.await.unwrap().status(), status, "{path}");
    }
}

// The exporters block the thread that shuts them down until another one has sent what is left.
#[tokio::test(flavor = "multi_thread")]
async fn a_collector_gets_the_spans_and_metrics_of_each_request() {
    let (receiver, url) = Receiver::start().await;
    let telemetry = Telemetry::new(Some(url)).unwrap();
    let subscriber = tracing_subscriber::registry().with(telemetry.spans());
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let site = Site::with(Kind::Postgres, 2, |pool| pool.observe(telemetry.observer())).await;
    load(&site).await;
    site.returned().await;
    telemetry.shut_down().await.unwrap();

    traces(&receiver.spans());
    metrics(&receiver.metrics());
    site.assert_whole().await;
}

fn traces(spans: &[Span]) {
    let named = |name: &str, parent: &[u8]| -> Vec<&Span> {
        let named = spans.iter().filter(|span| span.name == name);
        named.filter(|span| span.parent_span_id == parent).collect()
    };
    let of_the_client: Vec<_> = spans
        .iter()
        .filter(|span| hex(&span.parent_span_id) == PARENT)
        .collect();
    assert_eq!(of_the_client.len(), 2);
    let take = of_the_client
        .iter()
        .find(|span| span.name == "POST /items/{id}/take");
    let take = take.expect("the request's span");
    assert_eq!(
        (hex(&take.trace_id).as_str(), take.kind),
        (TRACE, 2),
        "SERVER"
    );
    assert_eq!(texts(&take.attributes)["http.route"], "/items/{id}/take");

    let session = named("db_session", &take.span_id);
    assert_eq!(session.len(), 1, "{spans:#?}");
    let fields = texts(&session[0].attributes);
    assert_eq!(fields["outcome"], "committed");

    // UPDATE, SELECT and COMMIT, as calls of a client.
    let statements: Vec<_> = spans
        .iter()
        .filter(|span| span.parent_span_id == session[0].span_id)
        .collect();
    let names: Vec<_> = statements.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(names, ["UPDATE", "SELECT", "COMMIT"]);
    let begins = |span: &&&Span| texts(&span.attributes).contains_key("tower_sea_orm.begins");
    let begin: Vec<_> = statements
        .iter()
        .filter(begins)
        .map(|span| &span.name)
        .collect();
    assert_eq!(begin, ["UPDATE"], "BEGIN is sent before it");
    for statement in statements {
        assert_eq!(
            (hex(&statement.trace_id).as_str(), statement.kind),
            (TRACE, 3)
        );
        let fields = texts(&statement.attributes);
        assert_eq!(fields["db.system.name"], "postgresql");
        let text = &fields["db.query.text"];
        assert!(text.starts_with(&statement.name), "{text}");
    }

    // A malformed `traceparent` is none: the trace begins here.
    let own = named("GET /items/{id}", &[]);
    assert_eq!(own.len(), 1);
    assert_ne!(hex(&own[0].trace_id), TRACE);
}

fn metrics(metrics: &BTreeMap<String, Metric>) {
    for (name, unit) in [
        ("db.client.operation.duration", "s"),
        ("db.client.connection.wait_time", "s"),
        ("db.client.connection.use_time", "s"),
        ("db.client.connection.count", "{connection}"),
        ("db.client.connection.max", "{connection}"),
        ("db.client.connection.pending_requests", "{request}"),
        ("tower_sea_orm.sessions", "{session}"),
    ] {
        let metric = metrics.get(name).unwrap_or_else(|| panic!("no {name}"));
        assert_eq!(metric.unit, unit, "{name}");
    }
    let Some(Data::Histogram(durations)) = &metrics["db.client.operation.duration"].data else {
        panic!("a histogram")
    };
    let [point] = &durations.data_points[..] else {
        panic!("one series: {durations:?}")
    };
    assert_eq!(texts(&point.attributes)["db.system.name"], "postgresql");
    // Three statements of one request, one of each of the others.
    assert_eq!(point.count, 5);
    assert_eq!(point.explicit_bounds[..3], [0.001, 0.005, 0.01]);

    let Some(Data::Sum(sessions)) = &metrics["tower_sea_orm.sessions"].data else {
        panic!("a sum")
    };
    let routes = sessions.data_points.iter();
    let routes: Vec<_> = routes.map(|point| texts(&point.attributes)).collect();
    assert!(
        routes
            .iter()
            .any(|all| all["http.route"] == "/items/{id}/take"
                && all["tower_sea_orm.outcome"] == "committed"),
        "{routes:?}"
    );
    assert!(routes.iter().all(|all| !all["http.route"].contains('9')));
}
