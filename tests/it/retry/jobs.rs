//! G20: a job runs again by the same rules.

use sea_orm::{DbErr, TransactionError};
use tower_sea_orm::RetryPolicy;

use super::{MEETING, Runs, conflict, site};
use crate::support::{
    database::{Kind, insert_item},
    requests::Failed,
};

async fn conflicted(
    tx: &tower_sea_orm::DbTx,
    other: &sea_orm::DatabaseConnection,
) -> Result<(), DbErr> {
    conflict(tx, other).await.map_err(|Failed(error)| error)
}

#[tokio::test]
async fn g20_a_job_runs_again_after_a_conflict() {
    for kind in MEETING {
        let (site, runs) = (site(kind).await, Runs::default());
        let (other, counted, pool) = (site.view().clone(), runs.clone(), site.layer.pool().clone());
        // In a task of its own, so that its future has to be `Send`.
        let job = tokio::spawn(async move {
            let policy = RetryPolicy::new().attempts(3);
            let work = async move |tx: &tower_sea_orm::DbTx| {
                let run = counted.note();
                // On SQLite, the other writer would wait for this one.
                if run == 3 || kind != Kind::SqliteFile {
                    insert_item(tx, &format!("run {run}")).await;
                }
                if run < 3 {
                    conflicted(tx, &other).await?;
                }
                Ok::<_, DbErr>(run)
            };
            pool.retry_transaction(&policy, work).await
        });
        assert_eq!(job.await.unwrap().unwrap(), 3, "{kind:?}");
        assert_eq!(
            site.seen(["run 1", "run 2", "run 3"]).await,
            [false, false, true]
        );
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn g20_a_job_that_cannot_succeed_ends_with_its_last_error() {
    let (site, runs) = (site(Kind::Postgres).await, Runs::default());
    let other = site.view().clone();
    let policy = RetryPolicy::new().attempts(2);
    let failed = site.layer.pool().retry_transaction(&policy, async |tx| {
        runs.note();
        conflicted(tx, &other).await
    });
    let TransactionError::Transaction(error) = failed.await.unwrap_err() else {
        panic!("not the job's own error")
    };
    assert!(super::is_conflict(&error));
    assert_eq!(runs.count(), 2);
    site.assert_whole().await;
}

#[tokio::test]
async fn g20_a_job_of_which_something_stands_runs_once() {
    for kind in MEETING {
        let (site, runs) = (site(kind).await, Runs::default());
        let other = site.view().clone();
        let policy = RetryPolicy::new();
        let failed = site.layer.pool().retry_transaction(&policy, async |tx| {
            runs.note();
            insert_item(tx, "early").await;
            tx.commit().await?;
            conflicted(tx, &other).await
        });
        failed.await.unwrap_err();
        assert_eq!(
            (runs.count(), site.count("early").await),
            (1, 1),
            "{kind:?}"
        );
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn g20_a_jobs_own_error_is_not_retried() {
    let (site, runs) = (site(Kind::Postgres).await, Runs::default());
    let policy = RetryPolicy::new();
    let failed = site.layer.pool().retry_transaction(&policy, async |tx| {
        runs.note();
        insert_item(tx, "undone").await;
        Err::<(), _>(DbErr::Custom("no such item".into()))
    });
    failed.await.unwrap_err();
    assert_eq!((runs.count(), site.count("undone").await), (1, 0));
    site.assert_whole().await;
}
