//! G7, G8: `TestPool`: tests on a real database that leave nothing behind.

use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::Path,
    routing::{any, post},
};
use futures_util::{FutureExt, future::join};
use http::{Request, StatusCode};
use sea_orm::{
    ConnectionTrait, DbErr, IsolationLevel, TransactionOptions, TransactionTrait, sqlx::Executor,
};
use tokio::time::timeout;
use tower::ServiceExt;
use tower_sea_orm::{
    DbSession, DbSessionLayer, DbTx, Error, Outcome, SessionPool, testing::TestPool,
};

use crate::support::{
    database::{Kind, TestDb, count_items, insert_item, unique_name},
    pool::assert_whole,
    site::{BOUND, call, known},
    wait::{LONG, eventually},
};

/// Inserts an item of this name in a transaction, then answers with this status.
fn app(pool: SessionPool) -> Router {
    let options = TransactionOptions {
        isolation_level: Some(IsolationLevel::Serializable),
        ..TransactionOptions::default()
    };
    let create = async |tx: DbTx, Path((name, status)): Path<(String, u16)>| {
        insert_item(&tx, &name).await;
        StatusCode::from_u16(status).unwrap()
    };
    Router::new()
        .route("/{name}/{status}", post(create))
        .layer(DbSessionLayer::new(pool).transaction_with(options))
}

async fn outcome_of(app: &Router, name: &str, status: u16) -> Outcome {
    let request = Request::post(format!("/{name}/{status}"))
        .body(Body::empty())
        .unwrap();
    let response = app.clone().oneshot(request).await.unwrap();
    assert_eq!(response.status().as_u16(), status);
    response.extensions().get::<Outcome>().unwrap().clone()
}

#[tokio::test]
async fn commits_and_rollbacks_are_distinguished_and_nothing_is_left() {
    for kind in Kind::ALL {
        let database = TestDb::new(kind).await;
        let db = database.connect(2).await;
        let (kept, lost) = (unique_name(), unique_name());
        let test = TestPool::begin(db.clone()).await.unwrap();
        let app = app(test.pool());
        assert!(outcome_of(&app, &kept, 201).await.is_committed());
        assert!(outcome_of(&app, &lost, 404).await.is_rolled_back());
        let session = test.session().await.unwrap();
        assert_eq!(count_items(&*session, &kept).await, 1, "{kind:?}");
        assert_eq!(count_items(&*session, &lost).await, 0, "{kind:?}");
        if let Some(observer) = database
            .observer()
            .await
            .filter(|_| kind != Kind::SqliteFile)
        {
            assert_eq!(
                count_items(&observer, &kept).await,
                0,
                "{kind:?}: not committed"
            );
        }
        drop(session);
        test.rollback().await.unwrap();
        assert_eq!(
            count_items(&db, &kept).await,
            0,
            "{kind:?}: nothing is left"
        );
        assert_whole(&database, &db, 2).await;
    }
}

#[tokio::test]
async fn a_failed_statement_spoils_neither_the_session_nor_the_test() {
    for kind in Kind::ALL {
        let database = TestDb::new(kind).await;
        let db = database.connect(1).await;
        let test = TestPool::begin(db.clone()).await.unwrap();
        let session = test.session().await.unwrap();
        insert_item(&*session, "first").await;
        session
            .execute_unprepared("INSERT INTO item (name) VALUES ('first')")
            .await
            .unwrap_err();
        session
            .execute_unprepared("INSERT INTO nowhere VALUES (1)")
            .await
            .unwrap_err();
        insert_item(&*session, "second").await;
        // In a transaction of its own it does, as in production.
        let tx = session.begin().await.unwrap();
        tx.execute_unprepared("INSERT INTO item (name) VALUES ('first')")
            .await
            .unwrap_err();
        assert_eq!(
            tx.commit().await.is_err(),
            kind == Kind::Postgres,
            "{kind:?}"
        );
        assert_eq!(
            count_items(&*session, "first").await + count_items(&*session, "second").await,
            2,
            "{kind:?}"
        );
        drop(session);
        test.rollback().await.unwrap();
        assert_whole(&database, &db, 1).await;
    }
}

#[tokio::test]
async fn a_deferred_constraint_is_checked_at_commit_on_postgres() {
    let database = TestDb::new(Kind::Postgres).await;
    let db = database.connect(1).await;
    db.execute_unprepared("CREATE TABLE part (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
        .await
        .unwrap();
    let test = TestPool::begin(db.clone()).await.unwrap();
    let pool = test.pool();
    let twice = async |tx: &DbTx| {
        tx.execute_unprepared("INSERT INTO part VALUES (1), (1)")
            .await
            .map(drop)
    };
    pool.transaction(twice).await.unwrap_err();
    // Deferred still: the duplicate may be made good before COMMIT.
    let made_good = async |tx: &DbTx| -> Result<(), DbErr> {
        tx.execute_unprepared("INSERT INTO part VALUES (2), (2)")
            .await?;
        tx.execute_unprepared("DELETE FROM part WHERE ctid = (SELECT min(ctid) FROM part)")
            .await?;
        Ok(())
    };
    pool.transaction(made_good).await.unwrap();
    test.rollback().await.unwrap();
    assert_whole(&database, &db, 1).await;
}

#[tokio::test]
async fn tests_side_by_side_on_one_postgres_do_not_see_each_other() {
    let database = TestDb::new(Kind::Postgres).await;
    let db = database.connect(2).await;
    let one = async |name: &'static str, other: &'static str| {
        let test = TestPool::begin(db.clone()).await.unwrap();
        let app = app(test.pool());
        // Requests of one test take turns.
        let names = [format!("{name}1"), format!("{name}2")];
        join(
            outcome_of(&app, &names[0], 200),
            outcome_of(&app, &names[1], 200),
        )
        .await;
        let session = test.session().await.unwrap();
        assert_eq!(count_items(&*session, &names[0]).await, 1);
        assert_eq!(count_items(&*session, &format!("{other}1")).await, 0);
        drop(session);
        test.rollback().await.unwrap();
    };
    join(one("a", "b"), one("b", "a")).await;
    assert_whole(&database, &db, 2).await;
}

#[tokio::test]
async fn hooks_are_kept_for_the_test() {
    for kind in Kind::ALL {
        let database = TestDb::new(kind).await;
        let db = database.connect(1).await;
        let test = TestPool::begin(db.clone()).await.unwrap();
        let ran = Arc::new(AtomicU32::new(0));
        let hook = |ran: &Arc<AtomicU32>| {
            let ran = ran.clone();
            async move {
                ran.fetch_add(1, Ordering::SeqCst);
            }
        };
        let work = async |tx: &DbTx| {
            tx.execute_unprepared("INSERT INTO item (name) VALUES ('one')")
                .await?;
            tx.after_rollback(hook(&ran))?;
            tx.after_commit(hook(&ran))
        };
        test.pool().transaction(work).await.unwrap();
        assert_eq!((test.hooks(), ran.load(Ordering::SeqCst)), (1, 0));
        assert_eq!(
            (
                test.run_hooks().await,
                ran.load(Ordering::SeqCst),
                test.hooks()
            ),
            (1, 1, 0)
        );
        test.rollback().await.unwrap();
        assert_whole(&database, &db, 1).await;
    }
}

#[tokio::test]
async fn a_test_pool_that_is_dropped_rolls_back() {
    for kind in Kind::ALL {
        let database = TestDb::new(kind).await;
        let db = database.connect(1).await;
        for session_outlives in [false, true] {
            let name = unique_name();
            let test = TestPool::begin(db.clone()).await.unwrap();
            let session = test.session().await.unwrap();
            insert_item(&*session, &name).await;
            let session = session_outlives.then_some(session);
            drop(test);
            drop(session);
            eventually("the connection is back", async || {
                timeout(Duration::from_secs(5), db.ping()).await.is_ok()
            })
            .await;
            assert_eq!(count_items(&db, &name).await, 0, "{kind:?}");
        }
        assert_whole(&database, &db, 1).await;
    }
}

#[tokio::test]
async fn implicit_commits_of_mysql_are_refused_in_a_test() {
    let database = TestDb::new(Kind::MySql).await;
    let db = database.connect(1).await;
    let test = TestPool::begin(db.clone()).await.unwrap();
    let session = test.session().await.unwrap();
    let refused = session
        .execute_unprepared("CREATE TABLE other (id int)")
        .await
        .unwrap_err();
    assert!(Error::of(&refused).unwrap().is_forbidden_statement());
    drop(session);
    test.rollback().await.unwrap();
    assert_whole(&database, &db, 1).await;
}

#[tokio::test]
async fn a_mock_has_nothing_to_roll_back() {
    let db = sea_orm::MockDatabase::new(sea_orm::DbBackend::Postgres).into_connection();
    assert!(
        TestPool::begin(db.clone())
            .await
            .unwrap_err()
            .to_string()
            .contains("mock")
    );
    assert!(!DbSession::from(db).is_closed());
}

#[tokio::test]
async fn a_second_session_in_a_test_is_refused_at_once() {
    let test = TestDb::new(Kind::SqliteFile).await;
    let db = test.connect(1).await;
    let pool = crate::support::pool::session_pool(db.clone());
    let response = tower_sea_orm::testing::serve(pool, async |session| {
        session.execute_unprepared("SELECT 1").await.unwrap();
        let second = session.pool().session().await.map(drop);
        http::Response::new(second.unwrap_err().is_pool_deadlock().to_string())
    });
    assert_eq!(response.await.into_body(), "true");
    assert_whole(&test, &db, 1).await;
}

/// Runs SQL past the session, on the driver's own connection. Says whether it worked there.
async fn raw(db: &DbSession, kind: Kind, sql: &'static str) -> Result<bool, DbErr> {
    match kind {
        Kind::Postgres => {
            db.with_postgres(move |c| async move { c.execute(sql).await.is_ok() }.boxed())
                .await
        }
        Kind::MySql => {
            db.with_mysql(move |c| async move { c.execute(sql).await.is_ok() }.boxed())
                .await
        }
        _ => {
            db.with_sqlite(move |c| async move { c.execute(sql).await.is_ok() }.boxed())
                .await
        }
    }
}

#[tokio::test]
async fn raw_code_that_ends_a_tests_transaction_ends_the_test() {
    for kind in Kind::ALL {
        for sql in ["ROLLBACK", "COMMIT"] {
            for in_a_transaction in [false, true] {
                let case = format!("{kind:?} {sql} {in_a_transaction}");
                let database = TestDb::new(kind).await;
                let db = database.connect(1).await;
                let test = TestPool::begin(db.clone()).await.unwrap();
                let session = test.session().await.unwrap();
                if in_a_transaction {
                    let tx = session.tx();
                    tx.execute_unprepared("DELETE FROM item").await.unwrap();
                    assert!(raw(&tx, kind, sql).await.unwrap(), "{case}");
                    assert!(known(tx.commit().await).is_aborted(), "{case}");
                } else {
                    let error = raw(&session, kind, sql).await.map(drop);
                    let text = error.as_ref().unwrap_err().to_string();
                    assert!(
                        text.contains("`TestPool`") && known(error).is_aborted(),
                        "{case}: {text}"
                    );
                    assert!(
                        known(session.execute_unprepared("DELETE FROM item").await).is_aborted(),
                        "{case}"
                    );
                    assert!(known(session.begin().await).is_aborted(), "{case}");
                }
                drop(session);
                let next = test.session().await.unwrap();
                assert!(
                    known(next.execute_unprepared("DELETE FROM item").await).is_aborted(),
                    "{case}"
                );
                assert!(
                    known(next.tx().execute_unprepared("DELETE FROM item").await).is_aborted(),
                    "{case}"
                );
                drop(next);
                assert!(test.rollback().await.unwrap_err().is_aborted(), "{case}");
                // Not closed: an in-memory database is still there, with its table.
                assert_whole(&database, &db, 1).await;
            }
        }
    }
}

#[tokio::test]
async fn a_statement_that_fails_within_raw_code_spoils_nothing_of_a_test() {
    for kind in Kind::ALL {
        let database = TestDb::new(kind).await;
        let db = database.connect(1).await;
        let test = TestPool::begin(db.clone()).await.unwrap();
        let session = test.session().await.unwrap();
        insert_item(&session, "before").await;
        assert!(
            !raw(&session, kind, "INSERT INTO nowhere VALUES (1)")
                .await
                .unwrap(),
            "{kind:?}"
        );
        insert_item(&session, "after").await;
        assert_eq!(count_items(&session, "before").await, 1, "{kind:?}");
        drop(session);
        test.rollback().await.unwrap();
        assert_whole(&database, &db, 1).await;
    }
}

#[tokio::test]
async fn an_error_names_the_session_that_a_test_keeps() {
    let database = TestDb::new(Kind::SqliteMemory).await;
    let db = database.connect(1).await;
    let builder = SessionPool::builder(db).acquire_timeout(Duration::from_secs(1));
    let test = TestPool::begin(builder).await.unwrap();
    let own = test.session().await.unwrap();
    let error = test.pool().session().await.map(drop).unwrap_err();
    assert!(
        error.is_exhausted() && error.to_string().contains("TestPool"),
        "{error}"
    );
    drop(own);
    assert!(test.pool().session().await.is_ok());
}

/// Only the end of the test's own session could end its wait.
#[tokio::test]
async fn a_second_session_beside_the_tests_own_is_refused_at_once() {
    for kind in Kind::ALL {
        let database = TestDb::new(kind).await;
        let builder = SessionPool::builder(database.connect(2).await).acquire_timeout(LONG);
        let test = TestPool::begin(builder).await.unwrap();
        let own = test.session().await.unwrap();
        own.execute_unprepared("SELECT 1").await.unwrap();
        let told = |error: Error| error.is_exhausted() && error.to_string().contains("TestPool");
        let second = timeout(BOUND, test.pool().session())
            .await
            .expect("at once")
            .map(drop);
        assert!(told(second.unwrap_err()), "{kind:?}");
        let again = timeout(BOUND, test.session())
            .await
            .expect("at once")
            .map(drop);
        assert!(told(again.unwrap_err()), "{kind:?}");
        let pool = test.pool();
        let work = pool.transaction(async |tx| tx.execute_unprepared("SELECT 1").await);
        assert!(
            timeout(BOUND, work).await.expect("at once").is_err(),
            "{kind:?}"
        );
        for lazy in [false, true] {
            let layer = DbSessionLayer::new(test.pool());
            let layer = if lazy { layer.lazy() } else { layer };
            let handler = async |db: DbSession| match db.execute_unprepared("SELECT 1").await {
                Ok(_) => StatusCode::OK,
                Err(_) => StatusCode::INTERNAL_SERVER_ERROR,
            };
            let app = Router::new().route("/", any(handler)).layer(layer);
            assert_eq!(call(app.clone()).await.status(), 503, "{kind:?}");
            // As a server does it.
            assert_eq!(
                tokio::spawn(call(app)).await.unwrap().status(),
                503,
                "{kind:?}"
            );
        }
        // A job of the service may wait until the test is ready.
        let pool = test.pool();
        let job = tokio::spawn(async move { pool.session().await.map(drop) });
        eventually("it waits", async || test.pool().status().pending == 1).await;
        drop(own);
        timeout(BOUND, job)
            .await
            .expect("its turn")
            .unwrap()
            .unwrap();
        assert!(test.session().await.is_ok());
        let _own = test.session().await.unwrap();
        assert!(
            timeout(BOUND, test.rollback())
                .await
                .expect("at once")
                .is_err(),
            "{kind:?}"
        );
    }
}

/// A transaction of the test's own that was dropped is being rolled back: nothing of the test holds the connection.
#[tokio::test]
async fn a_dropped_transaction_of_the_tests_own_is_waited_for() {
    for kind in Kind::ALL {
        let test_db = TestDb::new(kind).await;
        let db = test_db.connect(1).await;
        for _ in 0..10 {
            let test = TestPool::begin(db.clone()).await.unwrap();
            let session = test.session().await.unwrap();
            let tx = session.begin().await.unwrap();
            insert_item(&tx, &unique_name()).await;
            drop(tx);
            drop(session);
            assert!(
                outcome_of(&app(test.pool()), &unique_name(), 201)
                    .await
                    .is_committed()
            );
            let session = test.session().await.unwrap();
            let tx = session.begin().await.unwrap();
            insert_item(&tx, &unique_name()).await;
            drop(tx);
            drop(session);
            test.rollback().await.unwrap();
        }
        assert_whole(&test_db, &db, 1).await;
    }
}

#[tokio::test]
async fn the_statements_of_a_test_can_be_counted() {
    for kind in Kind::ALL {
        let database = TestDb::new(kind).await;
        let test = TestPool::begin(database.connect(1).await).await.unwrap();
        let pool = test.pool();
        let work = async |times: usize| {
            let done = pool.transaction(async |tx| {
                for _ in 0..times {
                    insert_item(tx, &unique_name()).await;
                }
                Ok::<_, DbErr>(())
            });
            done.await.unwrap();
        };
        test.assert_statements(0, async {}).await;
        test.assert_statements(1, work(1)).await;
        test.assert_statements(3, work(3)).await;
        let wrong = AssertUnwindSafe(test.assert_statements(2, work(3))).catch_unwind();
        let message = *wrong.await.unwrap_err().downcast::<String>().unwrap();
        assert!(
            message.starts_with("3 statements instead of 2:\nINSERT"),
            "{message}"
        );
        test.rollback().await.unwrap();
    }
}
