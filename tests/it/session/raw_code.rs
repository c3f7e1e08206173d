//! G2, G4, G15: raw code that leaves its connection out of step: an answer is unread of which sqlx knows nothing, and
//! each later statement would get the answer of the one before it.

use std::{future::pending, sync::Arc};

use axum::{Router, body::Body, http::StatusCode, routing::any};
use futures_util::{FutureExt, StreamExt};
use http::Request;
use sea_orm::{
    ConnectionTrait, DbErr, TransactionTrait,
    sqlx::{self, PgConnection},
};
use tokio::sync::Notify;
use tower::ServiceExt;
use tower_sea_orm::{DbSession, DbTx, Error, Reset};

use crate::{
    log::Log,
    support::{
        database::{Kind, TestDb, insert_item},
        pool::{lends, resets, returned},
        site::{BOUND, Site, outcome, value},
        wait::eventually,
    },
};

/// The ways to leave a connection out of step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// A `PgCopyIn` is dropped.
    Dropped,
    /// The same after the server has refused a row.
    DroppedAfterError,
    /// Its end is dropped before the answer.
    HalfFinished,
    /// It is aborted after the server has refused a row.
    AbortedAfterError,
    /// A COPY TO that the server refuses.
    RefusedOut,
}

const WAYS: [Way; 5] = [
    Way::Dropped,
    Way::DroppedAfterError,
    Way::HalfFinished,
    Way::AbortedAfterError,
    Way::RefusedOut,
];

async fn copy(c: &mut PgConnection, way: Way) -> sqlx::Result<()> {
    if way == Way::RefusedOut {
        return c
            .copy_out_raw("COPY nothing TO STDOUT")
            .await
            .map(|mut rows| drop(rows.next()));
    }
    let mut copy = c.copy_in_raw("COPY item (name) FROM STDIN").await?;
    let is_refused = matches!(way, Way::DroppedAfterError | Way::AbortedAfterError);
    let row: &[u8] = if is_refused { b"a\tb\n" } else { b"copied\n" };
    copy.send(row).await?;
    match way {
        Way::HalfFinished => drop(copy.finish().now_or_never()),
        Way::AbortedAfterError => copy.abort("no more").await?,
        _ => drop(copy),
    }
    Err(sqlx::Error::Io(std::io::Error::other(
        "the upload broke off",
    )))
}

async fn break_off(db: &DbSession, way: Way) -> sqlx::Result<()> {
    db.with_postgres(move |c| Box::pin(copy(c, way)))
        .await
        .unwrap()
}

async fn one_connection(reset: Reset) -> Site {
    let test = TestDb::new(Kind::Postgres).await;
    let db = test.connect(1).await;
    Site::with(test, db, 1)
        .await
        .pooled(|pool| pool.reset(reset))
}

/// Asserts that each statement of the next requests gets its own answer.
async fn assert_in_step(site: &Site) {
    for round in 0..3 {
        let response = site
            .call(async move |db: DbSession| {
                for number in 0..3 {
                    let sql = format!("SELECT {number} + 10 * {round}");
                    let answer: i32 = value(&db, &sql).await;
                    assert_eq!(answer, number + 10 * round);
                }
            })
            .await;
        assert_eq!(response.status(), StatusCode::OK);
    }
}

#[tokio::test]
async fn g8_a_copy_that_breaks_off_in_a_transaction_is_rolled_back() {
    for reset in resets() {
        for way in WAYS {
            for nested in [false, true] {
                let site = one_connection(reset).await;
                let observer = site.view().clone();
                let (log, _guard) = Log::start();
                let response = site
                    .call(async move |tx: DbTx| {
                        insert_item(&tx, "before").await;
                        if nested {
                            let inner = tx.begin().await.unwrap();
                            insert_item(&inner, "inner").await;
                            inner.commit().await.unwrap();
                        }
                        break_off(&tx, way).await.unwrap_err();
                        StatusCode::BAD_REQUEST
                    })
                    .await;
                let case = format!("{reset:?} {way:?} {nested}");
                assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{case}");
                assert!(outcome(&response).is_rolled_back(), "{case}");
                // The locks are free: the rollback came before the response.
                let free = "SELECT count(*) FROM pg_locks JOIN pg_class c ON c.oid = relation \
                     WHERE c.relname = 'item'";
                let locks: i64 = value(&observer, free).await;
                assert_eq!(locks, 0, "{case}");
                returned(site.layer.pool()).await;
                assert_eq!(site.seen(["before", "copied"]).await, [false; 2], "{case}");
                let loud = log.loud();
                assert!(
                    loud.len() == 1
                        && loud[0].contains("out of step")
                        && loud[0].starts_with("WARN"),
                    "{case}: {loud:?}"
                );
                assert_in_step(&site).await;
                site.assert_whole().await;
            }
        }
    }
}

#[tokio::test]
async fn g7_a_copy_that_breaks_off_in_a_transaction_is_no_success() {
    for way in WAYS {
        let site = one_connection(Reset::default()).await;
        let response = site
            .call(async move |tx: DbTx| {
                insert_item(&tx, "before").await;
                break_off(&tx, way).await.unwrap_err();
                let error = tx
                    .execute_unprepared("INSERT INTO item (name) VALUES ('after')")
                    .await
                    .unwrap_err();
                assert!(error.to_string().contains("out of step"), "{error}");
                assert!(!Error::of(&error).unwrap().is_statement_timeout());
            })
            .await;
        assert_eq!(
            response.status(),
            StatusCode::INTERNAL_SERVER_ERROR,
            "{way:?}"
        );
        let outcome = outcome(&response);
        let error = outcome.error().unwrap();
        assert!(
            !error.to_string().contains("ended this transaction") && !error.is_outcome_unknown(),
            "{error}"
        );
        assert!(!error.is_retryable(), "{error}");
        returned(site.layer.pool()).await;
        assert_eq!(site.seen(["before", "after"]).await, [false; 2], "{way:?}");
        assert_in_step(&site).await;
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn a_copy_that_breaks_off_in_autocommit_closes_its_connection() {
    for reset in resets() {
        for way in WAYS {
            for goes_on in [false, true] {
                let site = one_connection(reset).await;
                let (log, _guard) = Log::start();
                let told = Arc::new(std::sync::Mutex::new(None));
                let said = told.clone();
                let response = site
                    .call(async move |db: DbSession| {
                        insert_item(&db, "before").await;
                        break_off(&db, way).await.unwrap_err();
                        if goes_on {
                            *said.lock().unwrap() = db.execute_unprepared("SELECT 1").await.err();
                        }
                        StatusCode::INTERNAL_SERVER_ERROR
                    })
                    .await;
                let case = format!("{reset:?} {way:?} {goes_on}");
                assert_eq!(
                    response.status(),
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "{case}"
                );
                let told = told.lock().unwrap().take();
                assert_eq!(told.is_some(), goes_on, "{case}");
                if let Some(error) = told {
                    assert!(error.to_string().contains("out of step"), "{case}: {error}");
                }
                returned(site.layer.pool()).await;
                // With `None`, nothing is sent that could show it, unless the
                // session would lend the connection.
                let expected = usize::from(goes_on || lends() || reset != Reset::None);
                eventually(&case, async || log.count("out of step") == expected).await;
                assert_eq!(log.count("release timeout"), 0, "{case}: {:?}", log.loud());
                assert_in_step(&site).await;
                assert_eq!(site.count("before").await, 1, "{case}");
                site.assert_whole().await;
            }
        }
    }
}

/// Where connections go from session to session, no ping of the driver's pool comes in between.
#[tokio::test]
async fn g4_a_copy_that_breaks_off_reaches_no_other_request() {
    for reset in resets() {
        for way in WAYS {
            let site = Site::new(Kind::Postgres).await.pooled(|pool| {
                pool.reset(reset)
                    .direct_handoff(true)
                    .test_before_acquire_if_idle_for(BOUND)
            });
            let response = site
                .call(async move |db: DbSession| {
                    break_off(&db, way).await.unwrap_err();
                    StatusCode::BAD_REQUEST
                })
                .await;
            assert_eq!(
                response.status(),
                StatusCode::BAD_REQUEST,
                "{reset:?} {way:?}"
            );
            returned(site.layer.pool()).await;
            assert_in_step(&site).await;
            let site = site.pooled(|pool| pool);
            site.assert_whole().await;
        }
    }
}

#[tokio::test]
async fn g15_raw_code_that_its_request_drops_is_not_said_to_have_committed() {
    let site = one_connection(Reset::default()).await;
    let (log, _guard) = Log::start();
    let running = Arc::new(Notify::new());
    let inside = running.clone();
    let app = Router::new()
        .route(
            "/",
            any(async move |tx: DbTx| {
                insert_item(&tx, "before").await;
                tx.with_postgres(move |_| {
                    Box::pin(async move {
                        inside.notify_one();
                        pending::<()>().await;
                    })
                })
                .await
                .map_err(|error: DbErr| error.to_string())
            }),
        )
        .layer(site.layer.clone());
    tokio::select! {
        _ = app.oneshot(Request::new(Body::empty())) => unreachable!("no answer"),
        () = running.notified() => {}
    }
    returned(site.layer.pool()).await;
    assert_eq!(
        log.count("ended behind its session's back"),
        0,
        "{:?}",
        log.loud()
    );
    assert_eq!(
        log.count("was cut off in a transaction"),
        1,
        "{:?}",
        log.loud()
    );
    assert_eq!(site.count("before").await, 0);
    site.assert_whole().await;
}
