//! G7: SQL that controls transactions is refused where it can be read, and noticed where it cannot (H15, M4).

use std::pin::pin;

use axum::response::Response;
use http::StatusCode;
use sea_orm::{ConnectionTrait, Statement, TransactionTrait};
use tower_sea_orm::{DbSession, DbSessionLayer, DbTx};

use crate::support::{
    database::{Kind, insert_item},
    futures::once,
    site::{Site, is_mariadb, known, outcome},
    statements::{insert, raw, slow},
};

/// SQL for a kind, and the method that the refusal names.
fn controls(kind: Kind) -> Vec<(&'static str, &'static str)> {
    let mut controls = vec![
        ("BEGIN", "begin()"),
        ("COMMIT", "commit()"),
        ("commit ;", "commit()"),
        ("/* nothing */ -- at all\n COMMIT", "commit()"),
        ("SELECT 1; COMMIT", "commit()"),
        (
            "INSERT INTO item (name) VALUES ('no'); ROLLBACK; SELECT 1",
            "rollback()",
        ),
        ("ROLLBACK", "rollback()"),
        ("SAVEPOINT mine", "begin()"),
        ("RELEASE SAVEPOINT mine", "begin()"),
        ("ROLLBACK TO SAVEPOINT mine", "begin()"),
    ];
    match kind {
        Kind::Postgres => controls.extend([
            ("START TRANSACTION", "begin()"),
            ("END", "commit()"),
            ("ABORT", "rollback()"),
            ("COMMIT AND CHAIN", "commit()"),
            ("PREPARE TRANSACTION 'x'", "with_postgres()"),
        ]),
        Kind::MySql => controls.extend([
            ("START TRANSACTION", "begin()"),
            ("/*! COMMIT */", "commit()"),
            ("COMMIT AND CHAIN", "commit()"),
            ("SET autocommit = 1", "begin_with_options()"),
            ("XA START 'x'", "with_mysql()"),
        ]),
        _ => controls.extend([
            ("END TRANSACTION", "commit()"),
            ("BEGIN IMMEDIATE", "begin()"),
        ]),
    }
    controls
}

/// Tries it in every way that SeaORM has.
async fn assert_refused(db: &impl ConnectionTrait, sql: &str, method: &str) {
    let statement = || Statement::from_string(db.get_database_backend(), sql);
    let results = [
        db.execute_unprepared(sql).await.map(drop),
        db.execute_raw(statement()).await.map(drop),
        db.query_one_raw(statement()).await.map(drop),
        db.query_all_raw(statement()).await.map(drop),
    ];
    for result in results {
        let error = known(result);
        assert!(error.is_forbidden_statement(), "{sql}: {error}");
        assert!(
            error.to_string().contains(method),
            "{sql}: {error} does not name {method}"
        );
    }
}

#[tokio::test]
async fn h15_transaction_control_in_sql_is_refused_in_a_transaction() {
    for kind in Kind::ALL {
        let site = Site::new(kind).await;
        let response = site
            .call(async move |tx: DbTx, db: DbSession| {
                insert_item(&tx, "before").await;
                for (sql, method) in controls(kind) {
                    assert_refused(&tx, sql, method).await;
                    assert_refused(&db, sql, method).await;
                }
                let inner = tx.begin().await.unwrap();
                insert_item(&inner, "nested").await;
                for (sql, method) in controls(kind) {
                    assert_refused(&inner, sql, method).await;
                }
                inner.commit().await.unwrap();
                insert_item(&tx, "after").await;
            })
            .await;
        assert_eq!(response.status(), StatusCode::OK, "{kind:?}");
        assert_eq!(
            site.seen(["before", "nested", "after", "no"]).await,
            [true, true, true, false],
            "{kind:?}"
        );
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn h15_transaction_control_in_sql_is_refused_in_autocommit_as_well() {
    for kind in Kind::ALL {
        let site = Site::new(kind).await;
        let response = site
            .call(async move |db: DbSession| {
                for (sql, method) in controls(kind) {
                    assert_refused(&db, sql, method).await;
                }
                insert_item(&db, "after").await;
            })
            .await;
        assert_eq!(response.status(), StatusCode::OK, "{kind:?}");
        assert_eq!(site.seen(["after", "no"]).await, [true, false], "{kind:?}");
        site.assert_whole().await;
    }
}

/// The session found out that its transaction is not the one it began.
#[track_caller]
fn assert_found_out(response: &Response, case: &str) {
    assert_eq!(
        response.status(),
        StatusCode::INTERNAL_SERVER_ERROR,
        "{case}"
    );
    let error = outcome(response).error().expect("an error").to_string();
    assert!(
        error.contains("behind the session's back"),
        "{case}: {error}"
    );
}

#[tokio::test]
async fn h15_a_transaction_ended_by_raw_code_is_noticed() {
    for kind in Kind::ALL {
        for sql in ["COMMIT", "ROLLBACK", "ROLLBACK; BEGIN", "COMMIT; BEGIN"] {
            if kind == Kind::MySql && sql.contains(';') {
                continue;
            }
            for goes_on in [false, true] {
                let site = Site::new(kind).await;
                let response = site
                    .call(async move |tx: DbTx| {
                        insert_item(&tx, "before").await;
                        raw(&tx, sql).await;
                        if goes_on {
                            let next = "INSERT INTO item (name) VALUES ('autocommitted')";
                            known(tx.execute_unprepared(next).await);
                            known(tx.execute_unprepared(next).await);
                            known(tx.begin().await);
                            known(tx.commit().await);
                        }
                    })
                    .await;
                let case = format!("{kind:?} {sql} goes on: {goes_on}");
                assert_found_out(&response, &case);
                // What raw code has committed stands.
                let stands = sql.starts_with("COMMIT");
                assert_eq!(
                    site.seen(["before", "autocommitted"]).await,
                    [stands, false],
                    "{case}"
                );
                site.assert_whole().await;
            }
        }
    }
}

#[tokio::test]
async fn harmless_raw_code_is_part_of_the_transaction() {
    for kind in Kind::ALL {
        for status in [200, 404] {
            let site = Site::new(kind).await;
            let response = site
                .call(async move |tx: DbTx| {
                    raw(&tx, "INSERT INTO item (name) VALUES ('first')").await;
                    insert_item(&tx, "second").await;
                    raw(&tx, "INSERT INTO item (name) VALUES ('third')").await;
                    StatusCode::from_u16(status).unwrap()
                })
                .await;
            assert_eq!(response.status().as_u16(), status);
            assert_eq!(
                site.seen(["first", "second", "third"]).await,
                [status == 200; 3],
                "{kind:?} {status}"
            );
            site.assert_whole().await;
        }
    }
}

#[tokio::test]
async fn h8_an_error_that_raw_code_swallows_is_no_commit_on_postgres() {
    use sea_orm::sqlx::Executor;
    let site = Site::new(Kind::Postgres).await;
    insert_item(&site.db, "taken").await;
    let response = site
        .call(async |tx: DbTx| {
            insert_item(&tx, "lost").await;
            let swallowed = tx.with_postgres(|db| {
                Box::pin(async move {
                    db.execute("INSERT INTO item (name) VALUES ('taken')")
                        .await
                        .unwrap_err();
                })
            });
            swallowed.await.unwrap();
        })
        .await;
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert!(outcome(&response).error().unwrap().is_aborted());
    assert_eq!(site.count("lost").await, 0);
    site.assert_whole().await;
}

#[tokio::test]
async fn h15_stored_code_that_commits_is_noticed() {
    for sql in [
        "CALL commits()",
        "EXECUTE IMMEDIATE 'COMMIT'",
        "EXECUTE IMMEDIATE 'TRUNCATE TABLE other'",
    ] {
        let site = Site::new(Kind::MySql).await;
        if sql.starts_with("EXECUTE IMMEDIATE") && !is_mariadb(&site.db).await {
            continue;
        }
        site.run("CREATE PROCEDURE commits() COMMIT").await;
        site.run("CREATE TABLE other (id integer)").await;
        let response = site
            .call(async move |tx: DbTx| {
                insert_item(&tx, "before").await;
                let _ = tx.execute_unprepared(sql).await;
                let next = "INSERT INTO item (name) VALUES ('autocommitted')";
                assert!(tx.execute_unprepared(next).await.is_err(), "{sql}");
            })
            .await;
        assert_found_out(&response, sql);
        assert_eq!(site.count("autocommitted").await, 0, "{sql}");
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn stored_code_that_does_not_commit_is_part_of_the_transaction() {
    for status in [200, 404] {
        let site = Site::new(Kind::MySql).await;
        site.run("CREATE PROCEDURE inserts() INSERT INTO item (name) VALUES ('stored')")
            .await;
        let response = site
            .call(async move |tx: DbTx| {
                tx.execute_unprepared("CALL inserts()").await.unwrap();
                insert_item(&tx, "after").await;
                StatusCode::from_u16(status).unwrap()
            })
            .await;
        assert_eq!(response.status().as_u16(), status);
        assert_eq!(site.seen(["stored", "after"]).await, [status == 200; 2]);
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn m4_sql_that_commits_implicitly_is_refused_in_transactions_only() {
    const COMMITTING: [&str; 5] = [
        "CREATE TABLE made (id integer)",
        "ALTER TABLE item ADD COLUMN note text",
        "TRUNCATE TABLE item",
        "LOCK TABLES item WRITE",
        "SELECT 1; DROP TABLE IF EXISTS made",
    ];
    let site = Site::new(Kind::MySql).await;
    let response = site
        .call(async |tx: DbTx| {
            for sql in COMMITTING {
                let error = known(tx.execute_unprepared(sql).await);
                assert!(error.is_forbidden_statement(), "{sql}: {error}");
            }
            insert_item(&tx, "first").await;
            for sql in COMMITTING {
                assert!(
                    known(tx.execute_unprepared(sql).await).is_forbidden_statement(),
                    "{sql}"
                );
            }
            tx.execute_unprepared("CREATE TEMPORARY TABLE mine (id integer)")
                .await
                .unwrap();
            insert_item(&tx, "second").await;
            StatusCode::NOT_FOUND
        })
        .await;
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
    assert_eq!(
        site.seen(["first", "second"]).await,
        [false, false],
        "all of it was rolled back"
    );
    let response = site
        .call(async |db: DbSession| {
            db.execute_unprepared("CREATE TABLE made (id integer)")
                .await
                .unwrap();
            let tx = db.begin().await.unwrap();
            assert!(known(tx.execute_unprepared("DROP TABLE made").await).is_forbidden_statement());
            insert_item(&tx, "third").await;
            tx.commit().await.unwrap();
            db.execute_unprepared("DROP TABLE made").await.unwrap();
        })
        .await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(site.count("third").await, 1);
    site.assert_whole().await;
}

#[tokio::test]
async fn ddl_of_a_plain_handle_is_checked_again_before_it_is_sent() {
    let set_up = Statement::from_string(sea_orm::DbBackend::MySql, "SET time_zone = '+00:00'");
    let done = sea_orm::MockExecResult {
        last_insert_id: 0,
        rows_affected: 0,
    };
    let mock = sea_orm::MockDatabase::new(sea_orm::DbBackend::MySql)
        .append_exec_results([done.clone(), done]);
    let db = mock.into_connection();
    let layer = DbSessionLayer::new(db.clone()).on_acquire(move |_| vec![set_up.clone()]);
    let app = axum::Router::new().fallback(async |db: DbSession| {
        let mut ddl = pin!(db.execute_unprepared("CREATE TABLE later (id integer)"));
        // The connection is being set up; by the time that is done, the session is in a transaction.
        assert!(once(ddl.as_mut()).await.is_pending());
        db.tx();
        assert!(known(ddl.await).is_forbidden_statement());
        StatusCode::BAD_REQUEST
    });
    assert_eq!(
        crate::support::site::call(app.layer(layer)).await.status(),
        StatusCode::BAD_REQUEST
    );
    let sent = format!("{:?}", db.into_transaction_log());
    assert!(
        sent.contains("time_zone") && !sent.contains("CREATE"),
        "{sent}"
    );
}

#[tokio::test]
async fn ddl_that_queues_is_checked_again_when_its_turn_comes() {
    let site = Site::new(Kind::MySql).await;
    let response = site
        .call(async |db: DbSession| {
            let long = db.query_one_raw(slow(Kind::MySql, 0.1));
            let ddl = db.execute_unprepared("CREATE TABLE later (id integer)");
            let work = async {
                db.tx();
                db.execute_unprepared(&insert("lost")).await.unwrap();
            };
            // In the line: the DDL goes first, in a session that is in a transaction by then.
            let (long, ddl, ()) = tokio::join!(biased; long, ddl, work);
            long.unwrap();
            assert!(known(ddl).is_forbidden_statement());
            StatusCode::BAD_REQUEST
        })
        .await;
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    assert_eq!(site.count("lost").await, 0);
    site.assert_whole().await;
}
