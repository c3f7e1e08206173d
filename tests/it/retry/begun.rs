//! G20: a conflict in a transaction that the handler itself has begun, in a session that commits each statement.

use http::StatusCode;
use sea_orm::{
    ConnectionTrait, IsolationLevel, Statement, TransactionError, TransactionOptions,
    TransactionTrait,
};
use tower_sea_orm::DbSession;

use super::{MEETING, Runs, app, assert_conflict, attempts, conflict, is_conflict, retrying, site};
use crate::support::{
    database::{Kind, insert_item},
    requests::Failed,
    site::{call, outcome},
};

#[tokio::test]
async fn g20_a_conflict_in_the_handlers_own_transaction_is_one() {
    for kind in MEETING {
        let site = site(kind).await;
        let other = site.view().clone();
        let handler = async move |db: DbSession| {
            let begun = db.begin().await?;
            conflict(&begun, &other).await
        };
        let response = site.call(handler).await;
        assert_conflict(&response);
        assert!(outcome(&response).is_undone(), "{kind:?}");
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn g20_a_conflict_in_the_handlers_own_transaction_is_retried() {
    for kind in MEETING {
        for closure in [false, true] {
            let (site, runs) = (site(kind).await, Runs::default());
            let (other, counted) = (site.view().clone(), runs.clone());
            let app = app(&site, retrying(), async move |db: DbSession| {
                let (run, other) = (counted.note(), other.clone());
                let name = format!("run {run}");
                let work = async move |tx: &tower_sea_orm::SessionTransaction| {
                    if run == 1 {
                        conflict(tx, &other).await.map_err(|Failed(error)| error)?;
                    }
                    insert_item(tx, &name).await;
                    Ok::<_, sea_orm::DbErr>(())
                };
                if closure {
                    let done = db.transaction_async(work).await;
                    return done.map_err(|error| match error {
                        TransactionError::Connection(error)
                        | TransactionError::Transaction(error) => Failed(error),
                    });
                }
                let begun = db.begin().await?;
                work(&begun).await?;
                Ok(begun.commit().await?)
            });
            let response = call(app).await;
            let served = (response.status(), runs.count(), attempts(&response));
            assert_eq!(served, (StatusCode::OK, 2, 2), "{kind:?} {closure}");
            assert_eq!(site.seen(["run 1", "run 2"]).await, [false, true]);
            site.assert_whole().await;
        }
    }
}

#[tokio::test]
async fn g20_a_conflict_at_the_commit_of_the_handlers_own_transaction_is_retried() {
    let (site, runs) = (site(Kind::Postgres).await, Runs::default());
    let (other, counted) = (site.view().clone(), runs.clone());
    let serializable = TransactionOptions {
        isolation_level: Some(IsolationLevel::Serializable),
        ..Default::default()
    };
    async fn skew(tx: &impl ConnectionTrait, name: &str) {
        let sum = Statement::from_string(tx.get_database_backend(), "SELECT sum(hits) FROM item");
        tx.query_one_raw(sum).await.unwrap();
        insert_item(tx, name).await;
    }
    let app = app(&site, retrying(), async move |db: DbSession| {
        let run = counted.note();
        let begun = db.begin_with_options(serializable).await?;
        skew(&begun, &format!("ours {run}")).await;
        if run == 1 {
            let theirs = other.begin_with_options(serializable).await?;
            skew(&theirs, "theirs").await;
            theirs.commit().await?;
        }
        Ok::<_, Failed>(begun.commit().await?)
    });
    let response = call(app).await;
    assert_eq!(
        (response.status(), attempts(&response)),
        (StatusCode::OK, 2)
    );
    let seen = site.seen(["ours 1", "ours 2", "theirs"]).await;
    assert_eq!(seen, [false, true, true]);
    site.assert_whole().await;
}

#[tokio::test]
async fn g20_what_was_committed_before_or_after_the_handlers_own_transaction_forbids_a_retry() {
    for kind in MEETING {
        for when in ["statement before", "transaction before", "statement after"] {
            let (site, runs) = (site(kind).await, Runs::default());
            let (other, counted) = (site.view().clone(), runs.clone());
            let app = app(&site, retrying(), async move |db: DbSession| {
                counted.note();
                match when {
                    "statement before" => insert_item(&db, "stored").await,
                    "transaction before" => {
                        let before = db.begin().await?;
                        insert_item(&before, "stored").await;
                        before.commit().await?;
                    }
                    _ => {}
                }
                let begun = db.begin().await?;
                let failed = conflict(&begun, &other).await;
                begun.rollback().await?;
                if when == "statement after" {
                    insert_item(&db, "stored").await;
                }
                failed
            });
            let response = call(app).await;
            // A statement after it shows that the handler has gone on: then its response is its own.
            assert_eq!(
                response.status(),
                StatusCode::SERVICE_UNAVAILABLE,
                "{kind:?} {when}"
            );
            assert_eq!(
                (runs.count(), attempts(&response)),
                (1, 1),
                "{kind:?} {when}"
            );
            assert!(
                !response.headers().contains_key("retry-after"),
                "{kind:?} {when}"
            );
            assert_eq!(site.count("stored").await, 1);
            site.assert_whole().await;
        }
    }
}

#[tokio::test]
async fn g20_what_the_handler_makes_of_a_conflict_in_its_own_transaction_stands() {
    for kind in MEETING {
        for (path, status) in [("/200", 200), ("/409", 409), ("/again", 500)] {
            let (site, runs) = (site(kind).await, Runs::default());
            let (other, counted) = (site.view().clone(), runs.clone());
            let app = app(
                &site,
                retrying(),
                async move |db: DbSession, uri: http::Uri| {
                    counted.note();
                    let begun = db.begin().await.unwrap();
                    let Failed(error) = conflict(&begun, &other).await.unwrap_err();
                    assert!(is_conflict(&error), "{error}");
                    begun.rollback().await.unwrap();
                    if uri.path() == "/again" {
                        // It repeats its work, and fails for a reason of its own.
                        let again = db.begin().await.unwrap();
                        insert_item(&again, "again").await;
                        again.commit().await.unwrap();
                    }
                    StatusCode::from_u16(status).unwrap()
                },
            );
            let request = http::Request::get(path).body(axum::body::Body::empty());
            let response = tower::ServiceExt::oneshot(app, request.unwrap())
                .await
                .unwrap();
            assert_eq!(response.status(), status, "{kind:?}");
            assert_eq!((runs.count(), attempts(&response)), (1, 1), "{kind:?}");
            assert_eq!(site.count("again").await, i64::from(path == "/again"));
            site.assert_whole().await;
        }
    }
}
