//! `MetricsObserver`, read as Prometheus reads it.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use metrics::set_default_local_recorder;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusRecorder};
use tower_sea_orm::{MetricsObserver, SessionPool};

use super::{app, conventions::measured, hold, load};
use crate::support::{
    database::{Kind, TestDb},
    pool::{assert_whole, pool_builder, pool_with},
    wait::eventually,
};

fn recorder() -> PrometheusRecorder {
    let seconds = Matcher::Suffix("_seconds".to_owned());
    let builder = PrometheusBuilder::new();
    let builder = builder.set_buckets_for_metric(seconds, &MetricsObserver::BUCKETS);
    builder.unwrap().build_recorder()
}

/// The samples of a metric, a line each.
fn samples<'t>(text: &'t str, name: &str) -> Vec<&'t str> {
    let is_it = |line: &&str| {
        let after = line.strip_prefix(name);
        after.is_some_and(|after| after.starts_with(['{', ' ']))
    };
    text.lines().filter(is_it).collect()
}

/// The names of a sample's labels, without the exporter's own `le`.
fn labels(sample: &str) -> BTreeSet<&str> {
    let inside = sample
        .split_once('{')
        .unwrap()
        .1
        .rsplit_once('}')
        .unwrap()
        .0;
    let names = inside
        .split("\",")
        .map(|label| label.split_once('=').unwrap().0);
    names.filter(|name| *name != "le").collect()
}

#[tokio::test]
async fn prometheus_sees_the_names_labels_and_buckets_of_the_conventions() {
    let recorder = recorder();
    let _local = set_default_local_recorder(&recorder);
    let test = TestDb::new(Kind::Postgres).await;
    let db = test.connect(1).await;
    let observer = Arc::new(MetricsObserver::new());
    let pool = pool_builder(db.clone())
        .acquire_timeout(Duration::from_millis(50))
        .observe(observer.clone())
        .build()
        .unwrap();
    load(&app(&pool)).await;
    let session = pool.session().await.unwrap();
    let held = hold(&session).await;
    assert!(pool.session().await.unwrap_err().is_exhausted());
    drop((held, session));
    observer.update();
    let text = recorder.handle().render();
    for convention in measured() {
        let name = convention.prometheus_name();
        let kind = match convention.instrument {
            "updowncounter" => "gauge",
            other => other,
        };
        assert!(
            text.contains(&format!("# TYPE {name} {kind}\n")),
            "{name}: {text}"
        );
        let suffix = if kind == "histogram" { "_bucket" } else { "" };
        let samples = samples(&text, &format!("{name}{suffix}"));
        assert!(!samples.is_empty(), "{name}: {text}");
        let prometheus = |names: &BTreeSet<&str>| -> BTreeSet<String> {
            names.iter().map(|name| name.replace('.', "_")).collect()
        };
        for sample in samples {
            let labels: BTreeSet<_> = labels(sample).into_iter().map(str::to_owned).collect();
            assert!(
                labels.is_superset(&prometheus(&convention.required)),
                "{sample}"
            );
            assert!(
                labels.is_subset(&prometheus(&convention.allowed)),
                "{sample}"
            );
        }
    }
    for bucket in ["0.001", "0.05", "10", "+Inf"] {
        let le = format!("le=\"{bucket}\"");
        let buckets = samples(&text, "db_client_operation_duration_seconds_bucket");
        assert!(
            buckets.iter().any(|line| line.contains(&le)),
            "{le}: {text}"
        );
    }
    assert!(!text.contains("raw-") && !text.contains("secret"), "{text}");
    assert_whole(&test, &db, 1).await;
}

#[tokio::test]
async fn prometheus_sees_outcomes_failures_and_the_state_of_the_pool() {
    let recorder = recorder();
    let _local = set_default_local_recorder(&recorder);
    let test = TestDb::new(Kind::Postgres).await;
    let db = test.connect(2).await;
    let observer = Arc::new(MetricsObserver::new().pool_name("shop"));
    let pool = pool_with(&db, |pool| pool.observe(observer.clone()));
    load(&app(&pool)).await;
    let session = pool.session().await.unwrap();
    let held = hold(&session).await;
    // Without idle connections of its own, the pool counts one as used until the driver's has it back.
    eventually("the last request's connection is back", async || {
        pool.status().used == 1
    })
    .await;
    observer.update();
    let text = recorder.handle().render();
    let name = "db_client_connection_pool_name=\"shop\"";
    for line in [
        format!("db_client_connection_count{{{name},db_client_connection_state=\"used\"}} 1"),
        format!("db_client_connection_max{{{name}}} 2"),
        format!("db_client_connection_pending_requests{{{name}}} 0"),
        format!(
            "tower_sea_orm_sessions_total{{{name},tower_sea_orm_outcome=\"released\",http_route=\"/items/{{id}}\"}} 5"
        ),
        format!(
            "tower_sea_orm_sessions_total{{{name},tower_sea_orm_outcome=\"committed\",http_route=\"/items\"}} 1"
        ),
    ] {
        assert!(text.lines().any(|it| it == line), "no {line} in {text}");
    }
    let counts = samples(&text, "db_client_operation_duration_seconds_count");
    let failed = counts
        .iter()
        .find(|line| line.contains("error_type=\"42P01\""))
        .unwrap();
    assert!(
        failed.contains("db_response_status_code=\"42P01\""),
        "{failed}"
    );
    assert!(failed.ends_with("} 3"), "{failed}");
    drop((held, session));
    assert_whole(&test, &db, 2).await;
}

#[tokio::test]
async fn an_update_after_the_pools_end_sets_the_gauges_to_zero() {
    let recorder = recorder();
    let _local = set_default_local_recorder(&recorder);
    let observer = Arc::new(MetricsObserver::new().pool_name("shop"));
    // Before there is a pool, there is nothing to do.
    observer.update();
    let test = TestDb::new(Kind::SqliteFile).await;
    let pool = SessionPool::builder(test.connect(2).await)
        .observe(observer.clone())
        .build()
        .unwrap();
    let max = || {
        observer.update();
        let text = recorder.handle().render();
        samples(&text, "db_client_connection_max")[0].to_owned()
    };
    assert!(max().ends_with("} 2"));
    let weak = pool.downgrade();
    drop(pool);
    eventually("the pool is gone", async || weak.upgrade().is_none()).await;
    assert!(max().ends_with("} 0"));
}
