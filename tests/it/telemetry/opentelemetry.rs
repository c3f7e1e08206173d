//! `OpenTelemetryObserver`, read through the SDK's in-memory exporter.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use opentelemetry::{KeyValue, metrics::MeterProvider as _};
use opentelemetry_sdk::metrics::{
    InMemoryMetricExporter, SdkMeterProvider,
    data::{AggregatedMetrics, Metric, MetricData},
};
use tower_sea_orm::{OpenTelemetryObserver, SessionPool};

use super::{app, conventions::measured, hold, load};
use crate::support::{
    database::{Kind, TestDb},
    pool::{assert_whole, pool_builder, pool_with},
};

type Attributes = BTreeMap<String, String>;

/// A metric as it was exported.
#[derive(Debug)]
struct Exported {
    instrument: &'static str,
    unit: String,
    /// A histogram's count is its value.
    points: Vec<(Attributes, f64)>,
    boundaries: Vec<f64>,
}

struct Sdk {
    provider: SdkMeterProvider,
    exporter: InMemoryMetricExporter,
}

impl Sdk {
    fn new() -> Self {
        let exporter = InMemoryMetricExporter::default();
        let provider = SdkMeterProvider::builder().with_periodic_exporter(exporter.clone());
        Self {
            provider: provider.build(),
            exporter,
        }
    }

    fn observer(&self) -> OpenTelemetryObserver {
        OpenTelemetryObserver::new(&self.provider.meter("test"))
    }

    fn collect(&self) -> BTreeMap<String, Exported> {
        self.exporter.reset();
        self.provider.force_flush().unwrap();
        let finished = self.exporter.get_finished_metrics().unwrap();
        let scopes = finished.iter().flat_map(|all| all.scope_metrics());
        let metrics = scopes.flat_map(|scope| scope.metrics());
        metrics
            .map(|metric| (metric.name().to_owned(), read(metric)))
            .collect()
    }
}

fn texts(attributes: Vec<&KeyValue>) -> Attributes {
    attributes
        .into_iter()
        .map(|one| (one.key.to_string(), one.value.to_string()))
        .collect()
}

fn read(metric: &Metric) -> Exported {
    let (mut boundaries, mut points) = (Vec::new(), Vec::new());
    let instrument = match metric.data() {
        AggregatedMetrics::F64(MetricData::Histogram(data)) => {
            for point in data.data_points() {
                boundaries = point.bounds().collect();
                points.push((texts(point.attributes().collect()), point.count() as f64));
            }
            "histogram"
        }
        AggregatedMetrics::U64(MetricData::Sum(data)) => {
            assert!(data.is_monotonic());
            let all = data.data_points();
            points.extend(
                all.map(|point| (texts(point.attributes().collect()), point.value() as f64)),
            );
            "counter"
        }
        AggregatedMetrics::I64(MetricData::Sum(data)) => {
            assert!(!data.is_monotonic());
            let all = data.data_points();
            points.extend(
                all.map(|point| (texts(point.attributes().collect()), point.value() as f64)),
            );
            "updowncounter"
        }
        other => panic!("{other:?}"),
    };
    Exported {
        instrument,
        unit: metric.unit().to_owned(),
        points,
        boundaries,
    }
}

/// The value of the only point of which all `attributes` are true.
fn value(metric: &Exported, attributes: &[(&str, &str)]) -> f64 {
    let is_it = |point: &&(Attributes, f64)| {
        attributes
            .iter()
            .all(|(key, value)| point.0.get(*key).is_some_and(|it| it == value))
    };
    let found: Vec<_> = metric.points.iter().filter(is_it).collect();
    assert_eq!(found.len(), 1, "{attributes:?} in {metric:?}");
    found[0].1
}

/// Gives up a wait for the only connection.
async fn time_out(pool: &SessionPool) {
    let session = pool.session().await.unwrap();
    let _held = hold(&session).await;
    assert!(pool.session().await.unwrap_err().is_exhausted());
}

#[tokio::test]
async fn names_units_kinds_attributes_and_boundaries_are_the_conventions() {
    let (sdk, test) = (Sdk::new(), TestDb::new(Kind::Postgres).await);
    let db = test.connect(1).await;
    let pool = pool_builder(db.clone())
        .acquire_timeout(Duration::from_millis(50))
        .observe(sdk.observer())
        .build()
        .unwrap();
    load(&app(&pool)).await;
    time_out(&pool).await;
    let mut exported = sdk.collect();
    for convention in measured() {
        let name = convention.name;
        let metric = exported.remove(name).unwrap_or_else(|| panic!("no {name}"));
        assert_eq!(metric.instrument, convention.instrument, "{name}");
        assert_eq!(metric.unit, convention.unit, "{name}");
        if !convention.boundaries.is_empty() {
            assert_eq!(metric.boundaries, convention.boundaries, "{name}");
        }
        assert!(!metric.points.is_empty(), "{name}");
        for (attributes, _) in &metric.points {
            let keys: BTreeSet<_> = attributes.keys().map(String::as_str).collect();
            assert!(keys.is_superset(&convention.required), "{name}: {keys:?}");
            assert!(keys.is_subset(&convention.allowed), "{name}: {keys:?}");
        }
    }
    assert_eq!(
        exported.keys().collect::<Vec<_>>(),
        ["tower_sea_orm.sessions"]
    );
    assert_whole(&test, &db, 1).await;
}

#[tokio::test]
async fn each_statement_and_each_failure_is_measured_with_its_database() {
    let (sdk, test) = (Sdk::new(), TestDb::new(Kind::Postgres).await);
    let db = test.connect(2).await;
    let pool = pool_with(&db, |pool| pool.observe(sdk.observer()));
    load(&app(&pool)).await;
    let exported = sdk.collect();
    let durations = &exported["db.client.operation.duration"];
    let options = db.get_postgres_connection_pool().connect_options();
    let (port, database) = (
        options.get_port().to_string(),
        options.get_database().unwrap(),
    );
    let target = [
        ("db.system.name", "postgresql"),
        ("server.address", "127.0.0.1"),
        ("server.port", &*port),
        ("db.namespace", database),
    ];
    let undefined_table = [
        ("error.type", "42P01"),
        ("db.response.status_code", "42P01"),
    ];
    let failed = [&target[..], &undefined_table].concat();
    assert_eq!(value(durations, &failed), 3.0);
    let succeeded: Vec<_> = durations
        .points
        .iter()
        .filter(|(attributes, _)| !attributes.contains_key("error.type"))
        .collect();
    // Five reads, one INSERT and its COMMIT.
    assert_eq!(succeeded.len(), 1, "{durations:?}");
    assert_eq!(succeeded[0].1, 7.0, "{durations:?}");
    let name = format!("127.0.0.1:{port}/{database}");
    let pool_name = [("db.client.connection.pool.name", &*name)];
    assert_eq!(
        value(&exported["db.client.connection.use_time"], &pool_name),
        9.0
    );
    assert_eq!(
        value(&exported["db.client.connection.wait_time"], &pool_name),
        9.0
    );
    assert_whole(&test, &db, 2).await;
}

#[tokio::test]
async fn sessions_are_counted_by_outcome_and_by_template_of_their_route() {
    let (sdk, test) = (Sdk::new(), TestDb::new(Kind::Postgres).await);
    let db = test.connect(2).await;
    let pool = pool_with(&db, |pool| pool.observe(sdk.observer().pool_name("shop")));
    load(&app(&pool)).await;
    drop(pool.session().await.unwrap());
    let exported = sdk.collect();
    let sessions = &exported["tower_sea_orm.sessions"];
    for (outcome, route, count) in [
        ("released", "/items/{id}", 5.0),
        ("committed", "/items", 1.0),
        ("released", "/fail/{id}", 3.0),
    ] {
        let attributes = [
            ("db.client.connection.pool.name", "shop"),
            ("tower_sea_orm.outcome", outcome),
            ("http.route", route),
        ];
        assert_eq!(value(sessions, &attributes), count, "{route}");
    }
    let job = sessions
        .points
        .iter()
        .find(|(all, _)| !all.contains_key("http.route"));
    assert_eq!(job.unwrap().1, 1.0, "{sessions:?}");
    let text = format!("{exported:?}");
    assert!(!text.contains("raw-") && !text.contains("secret"), "{text}");
    assert_whole(&test, &db, 2).await;
}

#[tokio::test]
async fn connections_are_counted_by_state_as_long_as_there_is_a_pool() {
    let (sdk, test) = (Sdk::new(), TestDb::new(Kind::Postgres).await);
    let db = test.connect(2).await;
    // Two pools on one meter, each with its own name.
    let [shop, archive] = ["shop", "archive"]
        .map(|name| pool_with(&db, |pool| pool.observe(sdk.observer().pool_name(name))));
    let session = shop.session().await.unwrap();
    let held = hold(&session).await;
    let name = |name| ("db.client.connection.pool.name", name);
    let state = |state| ("db.client.connection.state", state);
    let exported = sdk.collect();
    let count = &exported["db.client.connection.count"];
    assert_eq!(value(count, &[name("shop"), state("used")]), 1.0);
    assert_eq!(value(count, &[name("archive"), state("used")]), 0.0);
    for pool in ["shop", "archive"] {
        assert_eq!(
            value(&exported["db.client.connection.max"], &[name(pool)]),
            2.0
        );
        let pending = &exported["db.client.connection.pending_requests"];
        assert_eq!(value(pending, &[name(pool)]), 0.0);
    }
    drop((held, session));
    crate::support::wait::eventually("the connection is idle", async || {
        let exported = sdk.collect();
        let count = &exported["db.client.connection.count"];
        // Where sessions lend, their connections rotate, and there may be two.
        value(count, &[name("shop"), state("idle")]) >= 1.0
            && value(count, &[name("shop"), state("used")]) == 0.0
    })
    .await;
    let weak = shop.downgrade();
    drop(shop);
    crate::support::wait::eventually("the pool is gone", async || weak.upgrade().is_none()).await;
    let exported = sdk.collect();
    let names = exported["db.client.connection.max"].points.iter();
    let names: Vec<_> = names.flat_map(|(all, _)| all.values().cloned()).collect();
    assert_eq!(names, ["archive"]);
    drop(archive);
    assert_whole(&test, &db, 2).await;
}

#[tokio::test]
async fn a_wait_that_ends_without_a_connection_is_a_timeout() {
    let (sdk, test) = (Sdk::new(), TestDb::new(Kind::SqliteFile).await);
    let db = test.connect(1).await;
    let pool = SessionPool::builder(db)
        .acquire_timeout(Duration::from_millis(50))
        .observe(sdk.observer())
        .build()
        .unwrap();
    time_out(&pool).await;
    let exported = sdk.collect();
    // The file's name.
    let pool_name = [("db.client.connection.pool.name", "test.db")];
    assert_eq!(
        value(&exported["db.client.connection.timeouts"], &pool_name),
        1.0
    );
    assert_eq!(
        value(&exported["db.client.connection.wait_time"], &pool_name),
        1.0
    );
    let durations = &exported["db.client.operation.duration"];
    let target = [("db.system.name", "sqlite"), ("db.namespace", "test.db")];
    assert!(value(durations, &target) >= 1.0);
}
