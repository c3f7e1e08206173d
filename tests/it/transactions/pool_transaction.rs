//! G7, G8: `SessionPool::transaction`, for jobs and command-line code.

use std::sync::Arc;

use sea_orm::{
    AccessMode, ConnectionTrait, DbErr, IsolationLevel, Statement, TransactionError,
    TransactionOptions, TransactionTrait,
};
use tokio::{sync::Notify, time::timeout};
use tower_sea_orm::{DbTx, Error};

use crate::support::{
    database::{Kind, count_items, insert_item},
    pool::session_pool,
    site::{Site, retry_after, value},
    wait::BOUND,
    world::{CHECKS_LATE, Log, ORPHAN, World},
};

fn note(tx: &DbTx, log: &Log) {
    tx.after_commit(log.note("committed")).unwrap();
    tx.after_rollback(log.note("rolled back")).unwrap();
}

/// The database's error, not the job's own.
fn database(error: TransactionError<DbErr>) -> DbErr {
    match error {
        TransactionError::Connection(error) => error,
        TransactionError::Transaction(error) => panic!("the job's own: {error}"),
    }
}

#[tokio::test]
async fn ok_commits_and_an_error_rolls_back() {
    for kind in Kind::ALL {
        let world = World::new(kind, 1).await;
        let pool = session_pool(world.db.clone());
        let log = Log::default();
        let answer = pool
            .transaction(async |tx| {
                note(tx, &log);
                insert_item(tx, "kept").await;
                Ok::<_, DbErr>(count_items(tx, "kept").await)
            })
            .await;
        assert_eq!(
            (answer.unwrap(), world.seen("kept").await),
            (1, 1),
            "{kind:?}: when it returns, it is there"
        );
        log.becomes(&["committed"]).await;

        let answer = pool
            .transaction(async |tx| {
                note(tx, &log);
                insert_item(tx, "lost").await;
                Err::<(), _>("the job's own")
            })
            .await;
        assert!(
            matches!(answer, Err(TransactionError::Transaction("the job's own"))),
            "{answer:?}"
        );
        assert_eq!(world.seen("lost").await, 0, "{kind:?}");
        log.becomes(&["committed", "rolled back"]).await;
        world.assert_whole().await;
    }
}

#[tokio::test]
async fn a_job_that_panics_or_is_dropped_is_rolled_back() {
    for kind in Kind::ALL {
        for panics in [true, false] {
            let world = World::new(kind, 1).await;
            let pool = session_pool(world.db.clone());
            let (log, reached) = (Log::default(), Arc::new(Notify::new()));
            let (notes, at) = (log.clone(), reached.clone());
            let job = tokio::spawn(async move {
                pool.transaction(async |tx| {
                    note(tx, &notes);
                    insert_item(tx, "lost").await;
                    at.notify_one();
                    assert!(!panics, "on purpose");
                    std::future::pending::<Result<(), DbErr>>().await
                })
                .await
            });
            timeout(BOUND, reached.notified())
                .await
                .expect("the job runs");
            if !panics {
                job.abort();
            }
            assert!(job.await.is_err());
            log.becomes(&["rolled back"]).await;
            assert_eq!(world.seen("lost").await, 0, "{kind:?}");
            world.assert_whole().await;
        }
    }
}

#[tokio::test]
async fn a_jobs_transaction_has_its_options() {
    for kind in Kind::ALL {
        let world = World::new(kind, 1).await;
        let pool = session_pool(world.db.clone());
        let read_only = TransactionOptions {
            access_mode: Some(AccessMode::ReadOnly),
            ..Default::default()
        };
        let refused = pool
            .transaction_with(read_only, async |tx| {
                tx.execute_unprepared("INSERT INTO item (name) VALUES ('refused')")
                    .await
                    .map(drop)
            })
            .await;
        assert!(
            matches!(refused, Err(TransactionError::Transaction(_))),
            "{kind:?}: {refused:?}"
        );
        pool.transaction(async |tx| {
            insert_item(tx, "kept").await;
            Ok::<_, DbErr>(())
        })
        .await
        .unwrap();
        assert_eq!(
            (world.seen("refused").await, world.seen("kept").await),
            (0, 1),
            "{kind:?}"
        );
        world.assert_whole().await;
    }
    let world = World::new(Kind::Postgres, 1).await;
    let pool = session_pool(world.db.clone());
    let options = TransactionOptions {
        isolation_level: Some(IsolationLevel::RepeatableRead),
        ..Default::default()
    };
    let level = pool.transaction_with(options, async |tx| {
        Ok::<_, DbErr>(value::<String>(tx, "SHOW transaction_isolation").await)
    });
    assert_eq!(level.await.unwrap(), "repeatable read");
    world.assert_whole().await;
}

#[tokio::test]
async fn a_commit_that_fails_is_an_error_of_the_database() {
    for kind in CHECKS_LATE {
        let world = World::with_late_check(kind, 1).await;
        let pool = session_pool(world.db.clone());
        let log = Log::default();
        let failed = pool
            .transaction(async |tx| {
                note(tx, &log);
                insert_item(tx, "refused").await;
                tx.execute_unprepared(ORPHAN).await.map(drop)
            })
            .await;
        let error = database(failed.unwrap_err());
        assert!(
            error.to_string().to_lowercase().contains("foreign key"),
            "{kind:?}: the server's own words: {error}"
        );
        log.becomes(&["rolled back"]).await;
        assert_eq!(world.seen("refused").await, 0, "{kind:?}");
        world.assert_whole().await;
    }
}

#[tokio::test]
async fn error_of_describes_a_transaction_that_was_not_committed() {
    let world = World::new(Kind::Postgres, 2).await;
    insert_item(&world.db, "taken").await;
    let pool = session_pool(world.db.clone());
    let of = |error| Error::of(&database(error)).expect("an error that is known");

    let aborted = pool
        .transaction(async |tx| {
            tx.execute_unprepared("INSERT INTO item (name) VALUES ('taken')")
                .await
                .unwrap_err();
            Ok::<_, DbErr>(())
        })
        .await;
    assert!(of(aborted.unwrap_err()).is_aborted());

    let kept = std::sync::Mutex::new(None);
    let left_open = pool
        .transaction(async |tx| {
            let nested = tx.begin().await?;
            *kept.lock().unwrap() = Some(nested);
            Ok::<_, DbErr>(())
        })
        .await;
    assert!(of(left_open.unwrap_err()).is_unfinished());
    drop(kept);

    // Each reads what the other one writes: one of them has to go, at its COMMIT.
    let serializable = TransactionOptions {
        isolation_level: Some(IsolationLevel::Serializable),
        ..Default::default()
    };
    let conflict = pool
        .transaction_with(serializable, async |tx| {
            count_items(tx, "second").await;
            let other = pool.session().await.unwrap();
            let other = other.begin_with_options(serializable).await?;
            count_items(&other, "first").await;
            insert_item(&other, "second").await;
            insert_item(tx, "first").await;
            other.commit().await?;
            Ok::<_, DbErr>(())
        })
        .await;
    let conflict = of(conflict.unwrap_err());
    assert!(
        conflict.is_conflict() && conflict.is_retryable(),
        "{conflict}"
    );
    assert_eq!(
        (world.seen("first").await, world.seen("second").await),
        (0, 1)
    );
    world.assert_whole().await;
}

#[tokio::test]
async fn a_pool_sessions_transaction_is_ended_by_its_owner_or_rolled_back() {
    for kind in Kind::ALL {
        let world = World::new(kind, 1).await;
        let pool = session_pool(world.db.clone());
        let log = Log::default();
        let session = pool.session().await.unwrap();
        let tx = session.tx();
        note(&tx, &log);
        insert_item(&tx, "kept").await;
        insert_item(&*session, "kept as well").await;
        session.commit().await.unwrap();
        log.becomes(&["committed"]).await;
        note(&tx, &log);
        insert_item(&tx, "lost").await;
        // Dropping the handle does nothing: its session is not over.
        drop(tx);
        assert_eq!(count_items(&*session, "lost").await, 1, "{kind:?}");
        drop(session);
        log.becomes(&["committed", "rolled back"]).await;
        for (name, seen) in [("kept", 1), ("kept as well", 1), ("lost", 0)] {
            assert_eq!(world.seen(name).await, seen, "{kind:?}: {name}");
        }
        world.assert_whole().await;
    }
}

#[tokio::test]
async fn a_rollback_only_job_that_returns_ok_leaves_nothing() {
    for kind in Kind::ALL {
        let world = World::new(kind, 1).await;
        let pool = session_pool(world.db.clone());
        let counted = pool
            .transaction(async |tx| {
                tx.set_rollback_only()?;
                let sql = Statement::from_string(
                    kind.backend(),
                    "INSERT INTO item (name) VALUES ('dry run')",
                );
                Ok::<_, DbErr>(tx.execute_raw(sql).await?.rows_affected())
            })
            .await;
        assert_eq!(
            (counted.unwrap(), world.seen("dry run").await),
            (1, 0),
            "{kind:?}"
        );
        world.assert_whole().await;
    }
}

#[tokio::test]
async fn a_conflict_beside_a_committed_job_has_no_retry_after() {
    let site = Site::new(Kind::Postgres).await;
    site.run(
        "CREATE FUNCTION conflict() RETURNS trigger LANGUAGE plpgsql \
         AS $$ BEGIN RAISE EXCEPTION 'conflict' USING ERRCODE = '40001'; END $$; \
         CREATE CONSTRAINT TRIGGER late AFTER INSERT ON item DEFERRABLE INITIALLY DEFERRED \
         FOR EACH ROW WHEN (NEW.name = 'late') EXECUTE FUNCTION conflict()",
    )
    .await;
    for (job, expected) in [(false, true), (true, false)] {
        let response = site
            .call(async move |tx: DbTx| {
                insert_item(&tx, "late").await;
                if job {
                    let work = async |tx: &DbTx| {
                        tx.execute_unprepared("INSERT INTO item (name) VALUES ('job')")
                            .await
                    };
                    tx.pool().transaction(work).await.unwrap();
                }
            })
            .await;
        assert_eq!(response.status(), 503, "{job}");
        assert_eq!(retry_after(&response).is_some(), expected, "{job}");
        assert_eq!(site.seen(["late", "job"]).await, [false, job]);
    }
    site.assert_whole().await;
}
