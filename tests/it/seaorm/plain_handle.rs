//! G7, G12: sessions over a plain connection (`DbSession::from`, mocks) keep the same promises.

use std::{sync::Arc, time::Duration};

use axum::{Router, http::StatusCode, routing::get};
use futures_util::TryStreamExt;
use sea_orm::{
    ConnectionTrait, DbBackend, DbErr, MockDatabase, MockExecResult, RuntimeErr, Statement,
    StreamTrait, TransactionTrait,
};
use tower_sea_orm::{DbSession, DbTx, Error};

use crate::support::{
    database::{Kind, TestDb, count_items, insert_item},
    pool::{assert_whole, session_layer, session_pool},
    site::{BOUND, Site, call, known},
    wait::eventually,
};

/// Of what a failed statement leaves behind, PostgreSQL lets nothing be committed.
fn gives_up(kind: Kind) -> bool {
    kind == Kind::Postgres
}

const SERVERS: [Kind; 3] = [Kind::Postgres, Kind::MySql, Kind::SqliteFile];

#[tokio::test]
async fn a_transaction_that_the_server_aborted_is_not_called_committed() {
    for kind in SERVERS {
        let test = TestDb::new(kind).await;
        let db = test.connect(3).await;
        let tx = DbSession::from(db.clone()).tx();
        insert_item(&tx, "own").await;
        tx.execute_unprepared("INSERT INTO nowhere VALUES (1)")
            .await
            .unwrap_err();
        let committed = tx.commit().await;
        assert_eq!(committed.is_err(), gives_up(kind), "{kind:?}");
        if gives_up(kind) {
            assert!(known(committed).is_aborted());
        }
        assert_eq!(
            count_items(&db, "own").await,
            i64::from(!gives_up(kind)),
            "{kind:?}"
        );

        // The next one is another transaction.
        insert_item(&tx, "next").await;
        tx.commit().await.unwrap();
        assert_eq!(count_items(&db, "next").await, 1, "{kind:?}");

        let begun = DbSession::from(db.clone()).begin().await.unwrap();
        insert_item(&begun, "begun").await;
        begun
            .execute_unprepared("INSERT INTO nowhere VALUES (1)")
            .await
            .unwrap_err();
        assert_eq!(begun.commit().await.is_err(), gives_up(kind), "{kind:?}");
        assert_eq!(
            count_items(&db, "begun").await,
            i64::from(!gives_up(kind)),
            "{kind:?}"
        );
        drop(tx);
        assert_whole(&test, &db, 3).await;
    }
}

#[tokio::test]
async fn a_commit_whose_connection_was_lost_stays_unknown() {
    for kind in [Kind::Postgres, Kind::MySql] {
        let (site, proxy) = Site::behind_a_proxy(kind).await;
        let tx = DbSession::from(site.db.clone()).tx();
        insert_item(&tx, "there").await;
        proxy.delay_replies(BOUND);
        let cut = async {
            eventually("the COMMIT took effect", async || {
                site.count("there").await == 1
            })
            .await;
            proxy.cut();
        };
        let (committed, ()) = tokio::join!(tx.commit(), cut);
        proxy.delay_replies(Duration::ZERO);
        assert!(known(committed).is_outcome_unknown(), "{kind:?}");
        assert!(known(tx.rollback().await).is_outcome_unknown(), "{kind:?}");
        assert!(known(tx.commit().await).is_outcome_unknown(), "{kind:?}");
        drop(tx);
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn a_failure_that_was_rolled_back_to_a_savepoint_spoils_nothing_around_it() {
    for kind in SERVERS {
        for dropped in [false, true] {
            let test = TestDb::new(kind).await;
            let db = test.connect(3).await;
            let tx = DbSession::from(db.clone()).tx();
            insert_item(&tx, "before").await;
            let nested = tx.begin().await.unwrap();
            insert_item(&nested, "nested").await;
            nested
                .execute_unprepared("INSERT INTO nowhere VALUES (1)")
                .await
                .unwrap_err();
            if dropped {
                drop(nested);
            } else {
                nested.rollback().await.unwrap();
            }
            insert_item(&tx, "after").await;
            tx.commit().await.unwrap();
            for (name, count) in [("before", 1), ("nested", 0), ("after", 1)] {
                assert_eq!(
                    count_items(&db, name).await,
                    count,
                    "{kind:?} {dropped} {name}"
                );
            }
            // One that was committed although it had failed takes only itself along.
            let tx = DbSession::from(db.clone()).tx();
            insert_item(&tx, "around").await;
            let nested = tx.begin().await.unwrap();
            nested
                .execute_unprepared("INSERT INTO nowhere VALUES (1)")
                .await
                .unwrap_err();
            assert_eq!(nested.commit().await.is_err(), gives_up(kind));
            tx.commit().await.unwrap();
            assert_eq!(count_items(&db, "around").await, 1, "{kind:?}");
            drop(tx);
            assert_whole(&test, &db, 3).await;
        }
    }
}

#[tokio::test]
async fn nested_transactions_are_a_stack() {
    for kind in SERVERS {
        let test = TestDb::new(kind).await;
        let db = test.connect(3).await;
        let plain = DbSession::from(db.clone());
        let outer = plain.begin().await.unwrap();
        insert_item(&outer, "outer").await;
        let inner = outer.begin().await.unwrap();
        insert_item(&inner, "inner").await;
        assert!(
            known(outer.execute_unprepared("SELECT 1").await).is_wrong_handle(),
            "{kind:?}"
        );
        assert!(
            known(plain.execute_unprepared("SELECT 1").await).is_wrong_handle(),
            "{kind:?}"
        );
        assert!(known(plain.begin().await).is_wrong_handle(), "{kind:?}");
        // Out of order: an error, and everything of it is undone.
        assert!(known(outer.commit().await).is_wrong_handle(), "{kind:?}");
        assert!(
            known(inner.execute_unprepared("SELECT 1").await).is_wrong_handle(),
            "{kind:?}"
        );
        assert!(
            known(plain.execute_unprepared("SELECT 1").await).is_wrong_handle(),
            "{kind:?}: not while it is there"
        );
        assert!(inner.commit().await.is_err(), "{kind:?}");
        plain.execute_unprepared("SELECT 1").await.unwrap();
        eventually("both are rolled back", async || {
            count_items(&db, "outer").await + count_items(&db, "inner").await == 0
        })
        .await;

        // The outer one dropped first.
        let tx = plain.tx();
        insert_item(&tx, "own").await;
        let outer = tx.begin().await.unwrap();
        let inner = outer.begin().await.unwrap();
        insert_item(&inner, "inner").await;
        drop(outer);
        assert!(inner.commit().await.is_err(), "{kind:?}");
        insert_item(&tx, "own again").await;
        tx.commit().await.unwrap();
        for (name, count) in [("own", 1), ("own again", 1), ("inner", 0)] {
            assert_eq!(count_items(&db, name).await, count, "{kind:?} {name}");
        }
        drop((tx, plain));
        assert_whole(&test, &db, 3).await;
    }
}

#[tokio::test]
async fn an_open_stream_refuses_other_statements_at_once() {
    for kind in SERVERS {
        let test = TestDb::new(kind).await;
        let db = test.connect(3).await;
        let plain = DbSession::from(db.clone());
        let begun = plain.begin().await.unwrap();
        insert_item(&begun, "one").await;
        insert_item(&begun, "two").await;
        let select = || Statement::from_string(kind.backend(), "SELECT name FROM item");
        let rows = begun.stream_raw(select()).await.unwrap();
        assert!(
            known(begun.execute_unprepared("SELECT 1").await).is_wrong_handle(),
            "{kind:?}"
        );
        assert_eq!(rows.try_collect::<Vec<_>>().await.unwrap().len(), 2);
        begun.execute_unprepared("SELECT 1").await.unwrap();
        begun.commit().await.unwrap();
        let rows = plain.stream_raw(select()).await.unwrap();
        assert!(
            known(plain.execute_unprepared("SELECT 1").await).is_wrong_handle(),
            "{kind:?}"
        );
        drop(rows);
        plain.execute_unprepared("SELECT 1").await.unwrap();
        drop(plain);
        assert_whole(&test, &db, 3).await;
    }
}

#[tokio::test]
async fn a_hook_that_nothing_would_run_is_refused_and_keeps_nothing_alive() {
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let db = test.connect(1).await;
        let tx = DbSession::from(db.clone()).tx();
        insert_item(&tx, "undone").await;
        let (own, nested_own) = (tx.clone(), tx.clone());
        assert!(tx.after_rollback(async move { drop(own) }).is_err());
        let nested = tx.begin().await.unwrap();
        assert!(
            nested
                .after_commit(async move { drop(nested_own) })
                .is_err()
        );
        nested.commit().await.unwrap();
        drop(tx);
        eventually("it is rolled back", async || {
            count_items(&db, "undone").await == 0
        })
        .await;

        // What commits by itself, or by its own handle, has an end.
        let plain = DbSession::from(db.clone());
        let ran = Arc::new(tokio::sync::Semaphore::new(0));
        let run = || {
            let (ran, own) = (ran.clone(), plain.clone());
            async move {
                drop(own);
                ran.add_permits(1);
            }
        };
        plain.after_commit(run()).unwrap();
        let begun = plain.begin().await.unwrap();
        begun.after_commit(run()).unwrap();
        begun.commit().await.unwrap();
        let begun = plain.begin().await.unwrap();
        begun.after_rollback(run()).unwrap();
        drop(begun);
        let all = tokio::time::timeout(BOUND, ran.acquire_many(3)).await;
        drop(all.expect("all hooks run").unwrap());
        drop(plain);
        assert_whole(&test, &db, 1).await;
    }
}

fn done() -> MockExecResult {
    MockExecResult {
        last_insert_id: 0,
        rows_affected: 1,
    }
}

fn failed() -> DbErr {
    DbErr::Exec(RuntimeErr::Internal("duplicate key".to_owned()))
}

#[tokio::test]
async fn a_mock_of_postgresql_commits_nothing_after_a_failed_statement() {
    let mock = || {
        MockDatabase::new(DbBackend::Postgres)
            .append_exec_results([done()])
            .append_exec_errors([failed()])
            .into_connection()
    };
    async fn swallow(tx: DbTx) -> StatusCode {
        tx.execute_unprepared("INSERT INTO item VALUES (1)")
            .await
            .unwrap();
        tx.execute_unprepared("INSERT INTO item VALUES (1)")
            .await
            .unwrap_err();
        StatusCode::CREATED
    }
    let db = mock();
    let app = Router::new()
        .route("/", get(swallow))
        .layer(session_layer(db.clone()));
    assert_eq!(call(app).await.status(), StatusCode::INTERNAL_SERVER_ERROR);
    let log = format!("{:?}", db.into_transaction_log());
    assert!(log.contains("ROLLBACK") && !log.contains("COMMIT"), "{log}");

    let db = mock();
    let tx = DbSession::from(db.clone()).tx();
    assert_eq!(swallow(tx.clone()).await, StatusCode::CREATED);
    assert!(known(tx.commit().await).is_aborted());
    drop(tx);
    let log = format!("{:?}", db.into_transaction_log());
    assert!(log.contains("ROLLBACK") && !log.contains("COMMIT"), "{log}");
}

#[tokio::test]
async fn a_service_with_set_up_statements_can_be_tested_on_a_mock() {
    let results = vec![done(); 4];
    let db = MockDatabase::new(DbBackend::Postgres)
        .append_exec_results(results)
        .into_connection();
    let set_up = |name: &'static str| {
        move |_: &http::request::Parts| vec![Statement::from_string(DbBackend::Postgres, name)]
    };
    let layer = session_layer(db.clone())
        .on_acquire(set_up("SET one"))
        .on_begin(set_up("SELECT two"));
    let app = Router::new().route(
        "/",
        get(async |tx: DbTx| {
            tx.execute_unprepared("SELECT three").await.unwrap();
            tx.execute_unprepared("SELECT four").await.unwrap();
        }),
    );
    assert_eq!(call(app.layer(layer)).await.status(), StatusCode::OK);
    let log = db.into_transaction_log();
    let sql: Vec<_> = log
        .iter()
        .flat_map(|part| part.statements())
        .map(|one| one.sql.clone())
        .collect();
    assert_eq!(
        sql,
        [
            "SET one",
            "BEGIN",
            "SELECT two",
            "SELECT three",
            "SELECT four",
            "COMMIT"
        ]
    );
}

#[tokio::test]
async fn nothing_runs_on_a_mock_after_a_set_up_that_failed() {
    let results = vec![done(); 2];
    let db = MockDatabase::new(DbBackend::Postgres)
        .append_exec_errors(vec![failed(); 2])
        .append_exec_results(results);
    let db = db.into_connection();
    let layer = session_layer(db.clone())
        .on_acquire(|_| vec![Statement::from_string(DbBackend::Postgres, "SET one")]);
    let app = Router::new().route(
        "/",
        get(async |db: DbSession| {
            assert!(db.execute_unprepared("SELECT 1").await.is_err());
            assert!(db.execute_unprepared("SELECT 1").await.is_err());
        }),
    );
    assert_eq!(call(app.layer(layer)).await.status(), StatusCode::OK);
    let log = db.into_transaction_log();
    let sql: Vec<_> = log
        .iter()
        .flat_map(|part| part.statements())
        .map(|one| one.sql.clone())
        .collect();
    assert_eq!(sql, ["SET one", "SET one"]);
}

#[tokio::test]
async fn sessions_of_every_kind_pass_for_a_connection_under_glob_imports() {
    use sea_orm::*;

    async fn generic<C: ConnectionTrait + TransactionTrait + StreamTrait>(db: &C) -> u64 {
        let begun = db.begin().await.unwrap();
        let one = begun
            .execute_unprepared("DELETE FROM item")
            .await
            .unwrap()
            .rows_affected();
        begun.commit().await.unwrap();
        one
    }
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let db = test.connect(1).await;
        let session = session_pool(db.clone()).session().await.unwrap();
        assert_eq!(generic(&session).await, 0, "{kind:?}");
        let tx: DbTx = session.tx();
        assert_eq!(generic(&tx).await, 0);
        assert_eq!(tx.get_database_backend(), kind.backend());
        assert_eq!(session.get_database_backend(), kind.backend());
        let plain: &DbSession = &session;
        assert_eq!(plain.get_database_backend(), kind.backend());
        drop((tx, session));
        assert_whole(&test, &db, 1).await;
    }
}

#[test]
fn a_retryable_error_is_found_in_both_arms_of_a_transactions_error() {
    use sea_orm::{ConnAcquireErr, TransactionError};

    #[derive(Debug)]
    struct Wrapped(DbErr);
    impl std::fmt::Display for Wrapped {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("the item could not be renamed")
        }
    }
    impl std::error::Error for Wrapped {
        fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
            Some(&self.0)
        }
    }
    let timeout = || DbErr::ConnectionAcquire(ConnAcquireErr::Timeout);
    let is_exhausted = |error: Option<Error>| error.is_some_and(|error| error.is_exhausted());
    assert!(is_exhausted(Error::of_transaction(&TransactionError::<
        DbErr,
    >::Connection(
        timeout()
    ))));
    assert!(is_exhausted(Error::of_transaction(
        &TransactionError::Transaction(timeout())
    )));
    assert!(is_exhausted(Error::of_transaction(
        &TransactionError::Transaction(Wrapped(timeout()))
    )));
    let own = Error::of(&timeout()).unwrap();
    assert!(is_exhausted(Error::of_transaction(
        &TransactionError::Transaction(own)
    )));
    let other = TransactionError::Transaction(DbErr::Custom("no such item".to_owned()));
    assert!(Error::of_transaction(&other).is_none());
}
