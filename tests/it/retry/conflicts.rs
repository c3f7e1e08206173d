//! G20: a conflict runs the request again, at a statement and at COMMIT, and whatever the handler makes of it.

use axum::response::{IntoResponse, Response};
use http::{Method, Request, StatusCode};
use sea_orm::{ConnectionTrait, IsolationLevel, Statement, TransactionOptions, TransactionTrait};
use tower::ServiceExt;
use tower_sea_orm::{Attempt, DbSession, DbTx};

use super::{
    MEETING, Runs, app, app_in, assert_conflict, attempts, conflict, is_conflict, retrying, site,
};
use crate::{
    log::Log,
    support::{
        database::{Kind, insert_item},
        requests::Failed,
        site::{call, outcome},
        world::Log as Events,
    },
};

#[tokio::test]
async fn g20_a_conflict_runs_the_request_again() {
    for kind in MEETING {
        let (log, _guard) = Log::start();
        let (site, events) = (site(kind).await, Events::default());
        let (other, noted) = (site.view().clone(), events.clone());
        let app = app(
            &site,
            retrying(),
            async move |tx: DbTx, attempt: Attempt| {
                tx.after_commit(noted.note("committed")).unwrap();
                tx.after_rollback(noted.note("rolled back")).unwrap();
                // On SQLite, the other writer would wait for this one.
                if attempt.is_retry() || kind != Kind::SqliteFile {
                    insert_item(&tx, &format!("attempt {}", attempt.number())).await;
                }
                match attempt.number() {
                    1 => conflict(&tx, &other).await,
                    _ => Ok(()),
                }
            },
        );
        let response = call(app).await;
        assert_eq!(
            (response.status(), attempts(&response)),
            (StatusCode::OK, 2),
            "{kind:?}"
        );
        assert!(outcome(&response).is_committed() && !outcome(&response).is_undone());
        assert_eq!(
            site.seen(["attempt 1", "attempt 2"]).await,
            [false, true],
            "{kind:?}"
        );
        events.becomes(&["rolled back", "committed"]).await;
        let lines = log.lines();
        let retries = lines
            .iter()
            .filter(|line| line.starts_with("DEBUG tower_sea_orm::retry"));
        assert_eq!(retries.count(), 1, "{lines:?}");
        // That of the first attempt was not sent.
        assert_eq!(log.count("WARN tower_sea_orm "), 0, "{lines:?}");
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn g20_the_last_failure_is_answered_as_without_the_layer() {
    for kind in MEETING {
        let (log, _guard) = Log::start();
        let (site, runs) = (site(kind).await, Runs::default());
        let (other, counted) = (site.view().clone(), runs.clone());
        let app = app(&site, retrying().attempts(4), async move |tx: DbTx| {
            counted.note();
            conflict(&tx, &other).await
        });
        let response = call(app).await;
        assert_conflict(&response);
        assert!(outcome(&response).is_undone());
        assert_eq!((runs.count(), attempts(&response)), (4, 4), "{kind:?}");
        assert_eq!(log.count("WARN tower_sea_orm "), 1, "{:?}", log.lines());
        site.assert_whole().await;
    }
}

/// Two transactions read all hits and add a row each: whichever commits second is refused.
async fn skew(tx: &impl ConnectionTrait, name: &str) {
    let sum = Statement::from_string(tx.get_database_backend(), "SELECT sum(hits) FROM item");
    tx.query_one_raw(sum).await.unwrap();
    insert_item(tx, name).await;
}

#[tokio::test]
async fn g20_a_conflict_at_commit_runs_the_request_again() {
    let site = site(Kind::Postgres).await;
    let serializable = TransactionOptions {
        isolation_level: Some(IsolationLevel::Serializable),
        ..Default::default()
    };
    let layer = site.layer.clone().transaction_with(serializable);
    let (other, runs) = (site.view().clone(), Runs::default());
    let counted = runs.clone();
    let app = app_in(layer, retrying(), async move |db: DbSession| {
        let run = counted.note();
        skew(&db, &format!("ours {run}")).await;
        if run == 1 {
            let theirs = other.begin_with_options(serializable).await.unwrap();
            skew(&theirs, "theirs").await;
            theirs.commit().await.unwrap();
        }
    });
    let response = call(app).await;
    assert_eq!(
        (response.status(), attempts(&response)),
        (StatusCode::OK, 2)
    );
    assert_eq!(
        site.seen(["ours 1", "ours 2", "theirs"]).await,
        [false, true, true]
    );
    site.assert_whole().await;
}

/// What a handler makes of a conflict, by the path.
async fn answer(path: &str, tx: &DbTx, other: &sea_orm::DatabaseConnection) -> Response {
    let Failed(error) = conflict(tx, other).await.unwrap_err();
    assert!(is_conflict(&error), "{error}");
    match path {
        "/swallowed" => ().into_response(),
        "/rolled-back" => {
            tx.rollback().await.unwrap();
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
        "/500" => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        "/409" => StatusCode::CONFLICT.into_response(),
        _ => Failed(error).into_response(),
    }
}

#[tokio::test]
async fn g20_what_the_handler_makes_of_a_conflict_decides() {
    // Only PostgreSQL aborts a transaction by this conflict, so that swallowing it is no success.
    for (path, runs, status) in [
        ("/swallowed", 2, 200),
        ("/rolled-back", 2, 200),
        ("/500", 2, 200),
        ("/other", 2, 200),
        // An answer of the handler's own, on purpose.
        ("/409", 1, 409),
    ] {
        for keeps in [false, true] {
            let site = site(Kind::Postgres).await;
            let (other, counted) = (site.view().clone(), Runs::default());
            let noted = counted.clone();
            let layer = site.layer.clone();
            let layer = if keeps {
                layer.keep_handler_errors()
            } else {
                layer
            };
            let app = app_in(layer, retrying(), async move |tx: DbTx, uri: http::Uri| {
                if noted.note() == 1 {
                    return answer(uri.path(), &tx, &other).await;
                }
                ().into_response()
            });
            let request = Request::get(path).body(axum::body::Body::empty()).unwrap();
            let response = app.oneshot(request).await.unwrap();
            assert_eq!(response.status(), status, "{path} {keeps}");
            assert_eq!(
                (counted.count(), attempts(&response)),
                (runs, runs),
                "{path} {keeps}"
            );
            site.assert_whole().await;
        }
    }
}

#[tokio::test]
async fn g20_each_attempt_gets_the_same_head() {
    #[derive(Clone, Debug, PartialEq)]
    struct Own(u32);

    let site = site(Kind::SqliteFile).await;
    let other = site.view().clone();
    let app = app(
        &site,
        retrying(),
        async move |tx: DbTx, attempt: Attempt, request: http::request::Parts| {
            assert_eq!(
                (request.method, request.version),
                (Method::PATCH, http::Version::HTTP_10)
            );
            assert_eq!(request.uri, "/path?query");
            let values: Vec<_> = request.headers.get_all("x-own").iter().collect();
            assert_eq!(values, ["a", "b"]);
            assert_eq!(request.extensions.get(), Some(&Own(7)));
            match attempt.number() {
                1 => conflict(&tx, &other).await,
                _ => Ok(()),
            }
        },
    );
    let request = Request::patch("/path?query")
        .version(http::Version::HTTP_10)
        .header("x-own", "a")
        .header("x-own", "b")
        .extension(Own(7))
        .body(axum::body::Body::empty())
        .unwrap();
    let response = app.oneshot(request).await.unwrap();
    assert_eq!(
        (response.status(), attempts(&response)),
        (StatusCode::OK, 2)
    );
    site.assert_whole().await;
}

#[tokio::test]
async fn g20_a_request_without_a_conflict_is_served_once() {
    let (site, runs) = (site(Kind::SqliteFile).await, Runs::default());
    let layer = site.layer.clone().transaction();
    for status in [200, 404, 500, 503] {
        let counted = runs.clone();
        let app = app_in(layer.clone(), retrying(), async move |tx: DbTx| {
            counted.note();
            insert_item(&tx, &format!("name {status}")).await;
            StatusCode::from_u16(status).unwrap()
        });
        let response = call(app).await;
        assert_eq!(
            (response.status().as_u16(), attempts(&response)),
            (status, 1)
        );
    }
    assert_eq!(runs.count(), 4);
    site.assert_whole().await;
}
