//! G7: a conflict, or a failure to get a connection, from which the handler itself recovers.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::response::IntoResponse;
use http::StatusCode;
use sea_orm::{ConnectionTrait, DbErr, Statement, TransactionTrait};
use tower_sea_orm::{DbSession, DbSessionLayer, DbTx};

use crate::support::{
    database::{Kind, TestDb, unique_name},
    pool::{assert_whole, opened, pool_with, returned},
    site::{Site, known, outcome, retry_after},
    statements::insert,
};

/// How a handler deals with a conflict before it answers 502.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cure {
    None,
    RollBackOnly,
    SecondTry,
    Savepoint,
    SavepointByClosure,
    SecondSavepoint,
}

#[tokio::test]
async fn a_conflict_that_was_retried_keeps_the_handlers_response() {
    use Cure::*;
    for kind in [Kind::Postgres, Kind::MySql] {
        for cure in [
            None,
            RollBackOnly,
            SecondTry,
            Savepoint,
            SavepointByClosure,
            SecondSavepoint,
        ] {
            let site = Site::new(kind).await;
            site.run(&insert("row")).await;
            let other = site.view().clone();
            let response = site
                .call(async move |db: DbSession| {
                    meet_a_conflict(&db, &other, kind, cure).await;
                    (StatusCode::BAD_GATEWAY, "the handler's own").into_response()
                })
                .await;
            let made_good = matches!(cure, SecondTry | Savepoint | SecondSavepoint);
            let expected = if made_good {
                StatusCode::BAD_GATEWAY
            } else {
                StatusCode::SERVICE_UNAVAILABLE
            };
            assert_eq!(response.status(), expected, "{kind:?} {cure:?}");
            site.assert_whole().await;
        }
    }
}

async fn meet_a_conflict(
    db: &DbSession,
    other: &sea_orm::DatabaseConnection,
    kind: Kind,
    cure: Cure,
) {
    let update = "UPDATE item SET hits = hits + 1 WHERE name = 'row'";
    let locked = other.begin().await.unwrap();
    locked.execute_unprepared(update).await.unwrap();
    let conflict = match kind {
        Kind::Postgres => "DO $$ BEGIN RAISE EXCEPTION 'conflict' USING ERRCODE = '40001'; END $$",
        _ => "SELECT id FROM item WHERE name = 'row' FOR UPDATE NOWAIT",
    };
    let tx = db.tx();
    if cure != Cure::SecondTry {
        tx.query_one_raw(Statement::from_string(kind.backend(), "SELECT 1"))
            .await
            .unwrap();
    }
    match cure {
        Cure::None | Cure::RollBackOnly | Cure::SecondTry => {
            tx.execute_unprepared(conflict).await.unwrap_err();
        }
        Cure::Savepoint | Cure::SecondSavepoint => {
            let inner = tx.begin().await.unwrap();
            inner.execute_unprepared(conflict).await.unwrap_err();
            inner.rollback().await.unwrap();
        }
        Cure::SavepointByClosure => {
            let failed = tx
                .transaction_async(async |inner| inner.execute_unprepared(conflict).await)
                .await;
            failed.unwrap_err();
        }
    }
    locked.rollback().await.unwrap();
    match cure {
        Cure::RollBackOnly => tx.rollback().await.unwrap(),
        Cure::SecondTry => {
            tx.rollback().await.unwrap();
            tx.execute_unprepared(update).await.unwrap();
            tx.commit().await.unwrap();
        }
        Cure::SecondSavepoint => {
            let again = tx.begin().await.unwrap();
            again.execute_unprepared(update).await.unwrap();
            again.commit().await.unwrap();
        }
        Cure::None | Cure::Savepoint | Cure::SavepointByClosure => {}
    }
}

#[tokio::test]
async fn a_transaction_that_never_got_its_connection_is_no_success() {
    for kind in Kind::ALL {
        for begins in [false, true] {
            let test = TestDb::new(kind).await;
            let db = test.connect(1).await;
            let site = Site::with(test, db, 1).await;
            let site = site
                .pooled(|pool| pool.acquire_timeout(Duration::from_secs(1)))
                .layered(DbSessionLayer::lazy);
            let taken = opened(site.layer.pool()).await;
            let response = site
                .call(async move |db: DbSession| {
                    let failed = if begins {
                        known(db.begin().await)
                    } else {
                        known(db.tx().execute_unprepared(&insert("swallowed")).await)
                    };
                    assert!(failed.is_exhausted());
                    if !begins {
                        assert!(known(db.commit().await).is_exhausted());
                    }
                })
                .await;
            assert_eq!(
                response.status(),
                StatusCode::SERVICE_UNAVAILABLE,
                "{kind:?} {begins}"
            );
            assert!(retry_after(&response).is_some());
            assert!(outcome(&response).error().unwrap().is_exhausted());
            drop(taken);
            site.assert_whole().await;
        }
    }
}

#[tokio::test]
async fn a_second_try_that_gets_a_connection_is_a_success() {
    let test = TestDb::new(Kind::SqliteFile).await;
    let db = test.connect(1).await;
    let site = Site::with(test, db, 1).await;
    let site = site
        .pooled(|pool| pool.acquire_timeout(Duration::from_secs(1)))
        .layered(DbSessionLayer::lazy);
    let taken = Arc::new(Mutex::new(Some(opened(site.layer.pool()).await)));
    for (first, answer) in [(true, 200), (false, 502)] {
        let taken = taken.clone();
        let response = site
            .call(async move |tx: DbTx| {
                let name = unique_name();
                if first {
                    tx.execute_unprepared(&insert(&name)).await.unwrap_err();
                    drop(taken.lock().unwrap().take());
                }
                tx.execute_unprepared(&insert(&name)).await.unwrap();
                StatusCode::from_u16(answer).unwrap()
            })
            .await;
        assert_eq!(response.status().as_u16(), answer);
    }
    site.assert_whole().await;
}

#[tokio::test]
async fn a_job_whose_transaction_never_got_its_connection_fails() {
    let test = TestDb::new(Kind::SqliteFile).await;
    let db = test.connect(1).await;
    let pool = pool_with(&db, |pool| pool.acquire_timeout(Duration::from_secs(1)));
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let result = pool
        .transaction(async |tx| {
            tx.execute_unprepared(&insert("stands")).await?;
            tx.commit().await?;
            tx.release().await?;
            let taken = pool.session().await.unwrap();
            assert!(known(tx.execute_unprepared(&insert("swallowed")).await).is_exhausted());
            sender.send(taken).unwrap();
            Ok::<_, DbErr>(())
        })
        .await;
    drop(receiver.await.unwrap());
    let sea_orm::TransactionError::Connection(error) = result.unwrap_err() else {
        panic!("another error")
    };
    assert!(tower_sea_orm::Error::of(&error).unwrap().is_exhausted());
    returned(&pool).await;
    assert_whole(&test, &db, 1).await;
}
