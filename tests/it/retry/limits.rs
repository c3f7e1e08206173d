//! G20: attempts, time and budget bound what is done again, and the client's departure ends it.

use std::time::{Duration, Instant};

use axum::body::Body;
use http::{Request, StatusCode};
use tower::ServiceExt;
use tower_sea_orm::{Attempt, DbTx, RetryPolicy};

use super::{Runs, app, assert_conflict, attempts, conflict, retrying, site};
use crate::{
    log::Log,
    support::{
        database::Kind,
        pool::returned,
        site::{Site, call},
        wait::eventually,
    },
};

/// A service that meets conflicts for ever.
async fn hopeless(retry: tower_sea_orm::RetryLayer) -> (Site, axum::Router, Runs) {
    let (site, runs) = (site(Kind::Postgres).await, Runs::default());
    let (other, counted) = (site.view().clone(), runs.clone());
    let app = app(&site, retry, async move |tx: DbTx| {
        counted.note();
        conflict(&tx, &other).await
    });
    (site, app, runs)
}

#[tokio::test]
async fn g20_a_storm_adds_no_more_than_the_budget() {
    let started = Instant::now();
    let retry = retrying().attempts(u32::MAX).budget(0.0);
    let retry = retry.backoff(Duration::ZERO, Duration::ZERO);
    let (site, app, runs) = hopeless(retry).await;
    let (log, _guard) = Log::start();
    let first = call(app.clone()).await;
    assert_conflict(&first);
    for _ in 0..20 {
        assert_conflict(&call(app.clone()).await);
    }
    // Ten a second over ten seconds, at once if nobody else needs them, and again when these are over.
    let periods = 1 + started.elapsed().as_secs() as u32 / 9;
    let retries = runs.count() - 21;
    assert!(
        (100..=100 * periods).contains(&retries),
        "{retries} in {periods} periods"
    );
    assert!(log.count("the budget is spent") > 0, "{:?}", log.lines());
    site.assert_whole().await;
}

#[tokio::test]
async fn g20_each_request_pays_into_the_budget() {
    let retry = retrying().attempts(2).budget(1.0);
    let (site, app, runs) = hopeless(retry).await;
    for _ in 0..150 {
        assert_eq!(attempts(&call(app.clone()).await), 2);
    }
    assert!(runs.count() == 300, "one retry for each request");
    site.assert_whole().await;
}

#[tokio::test]
async fn g20_no_attempt_begins_without_attempts_or_time() {
    for retry in [
        retrying().attempts(1),
        retrying().attempts(0),
        retrying().total_timeout(Duration::ZERO),
        // A wait that would end too late is not begun.
        retrying()
            .backoff(Duration::from_secs(600), Duration::from_secs(600))
            .total_timeout(Duration::from_secs(599)),
    ] {
        let (site, app, runs) = hopeless(retry).await;
        assert_conflict(&call(app).await);
        assert_eq!(runs.count(), 1);
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn g20_a_grpc_request_is_retried_within_its_own_time() {
    for (timeout, made) in [("1n", 1), ("1H", 3)] {
        let (site, app, runs) = hopeless(retrying()).await;
        let request = Request::post("/")
            .header("content-type", "application/grpc")
            .header("grpc-timeout", timeout);
        let response = app
            .oneshot(request.body(Body::empty()).unwrap())
            .await
            .unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["grpc-status"], "14");
        assert_eq!(
            (runs.count(), attempts(&response)),
            (made, made),
            "{timeout}"
        );
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn g20_a_client_that_leaves_during_the_back_off_ends_the_retrying() {
    let retry = retrying().backoff(Duration::from_secs(300), Duration::from_secs(300));
    let (site, app, runs) = hopeless(retry).await;
    let request = tokio::spawn(call(app));
    eventually("the first attempt is over", async || runs.count() == 1).await;
    // In its back-off, a request holds no connection.
    returned(site.layer.pool()).await;
    request.abort();
    assert!(request.await.unwrap_err().is_cancelled());
    assert_eq!(runs.count(), 1);
    site.assert_whole().await;
}

#[tokio::test]
async fn g20_a_client_that_leaves_in_a_later_attempt_loses_nothing() {
    let (site, runs) = (site(Kind::Postgres).await, Runs::default());
    let (other, counted) = (site.view().clone(), runs.clone());
    let app = app(
        &site,
        retrying(),
        async move |tx: DbTx, attempt: Attempt| {
            counted.note();
            if attempt.is_retry() {
                crate::support::database::insert_item(&tx, "left").await;
                std::future::pending::<()>().await;
            }
            conflict(&tx, &other).await
        },
    );
    let request = tokio::spawn(call(app));
    eventually("the second attempt runs", async || runs.count() == 2).await;
    request.abort();
    assert!(request.await.unwrap_err().is_cancelled());
    site.assert_whole().await;
    assert_eq!(site.count("left").await, 0);
}

#[test]
fn a_policy_that_tower_would_refuse_is_mended() {
    let zero = Duration::ZERO;
    let policy = RetryPolicy::new().backoff(Duration::from_secs(1), zero);
    assert!(format!("{policy:?}").contains("max: 1s"));
    assert!(format!("{:?}", policy.backoff(zero, zero)).contains("max: 1ns"));
}
