//! G7, G13: on MySQL and MariaDB, a transaction that is gone from the server, and modes that were left behind.

use std::sync::Arc;

use axum::response::Response;
use http::StatusCode;
use sea_orm::{
    ConnectionTrait, Database, DbBackend, Statement, TransactionError, TransactionTrait,
    sqlx::Executor,
};
use tokio::sync::Notify;
use tower_sea_orm::{DbSession, DbTx, Error};

use crate::support::{
    database::{Kind, TestDb, count_items, insert_item},
    pool::session_layer,
    servers::OwnServer,
    site::{Site, is_mariadb, outcome, retry_after},
    statements::raw,
};

/// Ends the whole transaction wherever it is, as an error of one statement.
const SQLITE_GONE: &str = "INSERT OR ROLLBACK INTO item (name) VALUES ('taken')";

#[tokio::test]
async fn a_transaction_that_an_error_has_ended_neither_goes_on_nor_commits() {
    for kind in [Kind::SqliteFile, Kind::SqliteMemory] {
        for status in [200, 422] {
            let site = Site::new(kind).await;
            insert_item(&site.db, "taken").await;
            let response = site
                .call(async move |tx: DbTx| {
                    insert_item(&tx, "before").await;
                    tx.execute_unprepared(SQLITE_GONE).await.unwrap_err();
                    tx.execute_unprepared("INSERT INTO item (name) VALUES ('after')")
                        .await
                        .unwrap_err();
                    StatusCode::from_u16(status).unwrap()
                })
                .await;
            let expected = if status == 200 { 500 } else { 422 };
            assert_eq!(response.status().as_u16(), expected, "{kind:?}");
            assert_eq!(
                site.seen(["before", "after"]).await,
                [false; 2],
                "{kind:?} {status}"
            );
            site.assert_whole().await;
        }
    }
}

/// SQL that leaves a connection in another mode.
const LEFT_BEHIND: [&str; 6] = [
    "CALL leaves('SET autocommit = 0')",
    "EXECUTE IMMEDIATE 'SET autocommit = 0'",
    "EXECUTE IMMEDIATE 'SET completion_type = 1'",
    "EXECUTE IMMEDIATE 'SET completion_type = 2'",
    "EXECUTE IMMEDIATE 'SET autocommit = 0, completion_type = 1'",
    "CALL leaves('SET @@session.autocommit = off')",
];

/// Returns the statement that leaves a mode behind on this server: MySQL has no EXECUTE IMMEDIATE.
async fn on_this_server(site: &Site, sql: &'static str) -> String {
    match sql.strip_prefix("EXECUTE IMMEDIATE ") {
        Some(text) if !is_mariadb(&site.db).await => format!("CALL leaves({text})"),
        _ => sql.to_owned(),
    }
}

async fn with_leaving_procedure() -> Site {
    let mut site = Site::new(Kind::MySql).await;
    site.size = 1;
    site.db = site.test.connect(1).await;
    site.layer = session_layer(site.db.clone());
    let body =
        "SET @sql_text = sql_text; PREPARE it FROM @sql_text; EXECUTE it; DEALLOCATE PREPARE it";
    site.run(&format!(
        "CREATE PROCEDURE leaves(sql_text text) BEGIN {body}; END"
    ))
    .await;
    site
}

#[tokio::test]
async fn modes_that_a_request_leaves_behind_are_restored() {
    for sql in LEFT_BEHIND {
        for inside in [false, true] {
            let site = with_leaving_procedure().await;
            let leaving = on_this_server(&site, sql).await;
            let response = site
                .call(async move |db: DbSession| {
                    if inside {
                        let tx = db.begin().await.unwrap();
                        tx.execute_unprepared(&leaving).await.unwrap();
                        insert_item(&tx, "same").await;
                        tx.commit().await.unwrap();
                    } else {
                        db.execute_unprepared(&leaving).await.unwrap();
                        let _ = db
                            .execute_unprepared("INSERT INTO item (name) VALUES ('same')")
                            .await
                            .unwrap();
                    }
                })
                .await;
            assert_eq!(response.status(), StatusCode::OK, "{sql}");
            // Without the connection's end, which commits nothing either.
            assert_eq!(site.count("same").await, 1, "{sql} inside: {inside}");
            for name in ["next", "third"] {
                let response = site
                    .call(async move |db: DbSession| insert_item(&db, name).await)
                    .await;
                assert_eq!(response.status(), StatusCode::OK, "{sql}");
                assert_eq!(site.count(name).await, 1, "{sql} inside: {inside}");
            }
            let response = site
                .call(async |tx: DbTx| {
                    insert_item(&tx, "refused").await;
                    StatusCode::CONFLICT
                })
                .await;
            assert_eq!(
                (response.status(), site.count("refused").await),
                (StatusCode::CONFLICT, 0),
                "{sql}"
            );
            site.assert_whole().await;
        }
    }
}

#[tokio::test]
async fn modes_that_raw_code_leaves_behind_are_restored() {
    for sql in [
        "SET autocommit = 0",
        "SET completion_type = 1",
        "SET SESSION autocommit = 0",
    ] {
        let site = with_leaving_procedure().await;
        let response = site
            .call(async move |db: DbSession| raw(&db, sql).await)
            .await;
        assert_eq!(response.status(), StatusCode::OK);
        let response = site
            .call(async |db: DbSession| insert_item(&db, "next").await)
            .await;
        assert_eq!(
            (response.status(), site.count("next").await),
            (StatusCode::OK, 1),
            "{sql}"
        );
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn an_insert_autocommits_under_any_server_modes() {
    for options in [
        ["--autocommit=0"],
        ["--init-connect=SET autocommit=0, completion_type=1"],
    ] {
        let server = OwnServer::mysql_with(&options);
        let test = TestDb::on(&server).await;
        // `init_connect` spares those with all privileges.
        let admin = test.connect(1).await;
        admin
            .execute_unprepared(
                "CREATE USER plain@'%'; GRANT SELECT, INSERT, DELETE ON *.* TO plain@'%'; COMMIT",
            )
            .await
            .unwrap();
        let url = test.url().replace("root@", "plain@");
        let db = Database::connect(test.options_at(&url, 2)).await.unwrap();
        let site = Site::with(test, db, 2).await;
        for n in 0..4 {
            let name = format!("kept {n}");
            let inserted = name.clone();
            let response = site
                .call(async move |db: DbSession| insert_item(&db, &inserted).await)
                .await;
            // The servers' own modes freeze what an observer sees.
            let observer = site.test.observer().await.unwrap();
            assert_eq!(
                (response.status(), count_items(&observer, &name).await),
                (StatusCode::OK, 1),
                "{options:?}"
            );
            observer.close().await.unwrap();
        }
    }
}

#[tokio::test]
async fn stored_code_that_leaves_a_transaction_open_has_failed() {
    let site = with_leaving_procedure().await;
    site.run("CREATE PROCEDURE opens() BEGIN START TRANSACTION; INSERT INTO item (name) VALUES ('open'); END").await;
    let sql = "CREATE PROCEDURE keeps() BEGIN SET autocommit = 0; INSERT INTO item (name) VALUES ('open'); END";
    site.run(sql).await;
    for sql in ["CALL opens()", "CALL keeps()"] {
        let response = site
            .call(
                async move |db: DbSession| match db.execute_unprepared(sql).await {
                    Ok(_) => StatusCode::CREATED,
                    Err(_) => StatusCode::CONFLICT,
                },
            )
            .await;
        assert_eq!(
            (response.status(), site.count("open").await),
            (StatusCode::CONFLICT, 0),
            "{sql}"
        );
    }
    site.assert_whole().await;
}

fn assert_told(response: &Response, case: &str) {
    assert_eq!(
        response.status(),
        StatusCode::INTERNAL_SERVER_ERROR,
        "{case}"
    );
    let outcome = outcome(response);
    assert!(
        !outcome.is_rolled_back() && !outcome.is_committed(),
        "{case}: {outcome:?}"
    );
    assert!(
        outcome.error().is_some_and(Error::is_aborted),
        "{case}: {outcome:?}"
    );
    assert_eq!(retry_after(response), None, "{case}");
}

#[tokio::test]
async fn a_commit_by_stored_code_is_not_reported_as_rolled_back() {
    for status in [200, 400, 500, 503] {
        for nested in [false, true] {
            let site = Site::new(Kind::MySql).await;
            site.run("CREATE PROCEDURE commits() COMMIT").await;
            let response = site
                .call(async move |tx: DbTx| {
                    insert_item(&tx, "stands").await;
                    if nested {
                        let inner = tx.begin().await.unwrap();
                        let _ = inner.execute_unprepared("CALL commits()").await;
                        inner.rollback().await.unwrap_err();
                    } else {
                        let _ = tx.execute_unprepared("CALL commits()").await;
                    }
                    StatusCode::from_u16(status).unwrap()
                })
                .await;
            assert_told(&response, &format!("{status} nested: {nested}"));
            assert_eq!(site.count("stands").await, 1);
            site.assert_whole().await;
        }
    }
}

#[tokio::test]
async fn a_rollback_that_comes_too_late_is_an_error() {
    let site = Site::new(Kind::MySql).await;
    site.run("CREATE PROCEDURE commits() COMMIT").await;
    let response = site
        .call(async |tx: DbTx| {
            insert_item(&tx, "stands").await;
            let _ = tx.execute_unprepared("CALL commits()").await;
            let error = tx.rollback().await.unwrap_err();
            assert!(Error::of(&error).unwrap().is_aborted());
            StatusCode::BAD_REQUEST
        })
        .await;
    assert_told(&response, "an early rollback");
    let session = site.layer.pool().session().await.unwrap();
    let tx = session.begin().await.unwrap();
    let _ = tx.execute_unprepared("CALL commits()").await;
    assert!(
        Error::of(&tx.rollback().await.unwrap_err())
            .unwrap()
            .is_aborted()
    );
    insert_item(&*session, "goes on").await;
    drop(session);
    assert_eq!(site.count("goes on").await, 1);
    site.assert_whole().await;
}

#[tokio::test]
async fn a_job_committed_by_stored_code_is_not_reported_as_rolled_back() {
    let site = Site::new(Kind::MySql).await;
    site.run("CREATE PROCEDURE commits() COMMIT").await;
    let job = site.layer.pool().transaction(async |tx| {
        insert_item(tx, "stands").await;
        let _ = tx.execute_unprepared("CALL commits()").await;
        Err::<(), _>("no")
    });
    match job.await.unwrap_err() {
        TransactionError::Connection(error) => assert!(Error::of(&error).unwrap().is_aborted()),
        TransactionError::Transaction(error) => panic!("told as rolled back: {error}"),
    }
    assert_eq!(site.count("stands").await, 1);
    site.assert_whole().await;
}

#[tokio::test]
async fn set_up_statements_are_vetted_like_a_handlers() {
    const ENDING: [&str; 4] = [
        "CREATE TABLE made (id integer)",
        "COMMIT",
        "CALL commits()",
        "BEGIN",
    ];
    for sql in ENDING {
        let site = Site::new(Kind::MySql).await;
        site.run("CREATE PROCEDURE commits() COMMIT").await;
        let site = site.layered(|layer| {
            layer.on_begin(move |_| {
                let insert = "INSERT INTO item (name) VALUES ('set up')";
                [insert, sql]
                    .map(|sql| Statement::from_string(DbBackend::MySql, sql))
                    .to_vec()
            })
        });
        let response = site
            .call(async |tx: DbTx| {
                match tx
                    .execute_unprepared("INSERT INTO item (name) VALUES ('worked')")
                    .await
                {
                    Ok(_) => StatusCode::BAD_REQUEST,
                    Err(error) => {
                        let error = Error::of(&error).unwrap();
                        assert!(
                            error.is_forbidden_statement() || error.is_aborted(),
                            "{error}"
                        );
                        StatusCode::CONFLICT
                    }
                }
            })
            .await;
        if sql == "CALL commits()" {
            assert_told(&response, sql);
        } else {
            assert_eq!(response.status(), StatusCode::CONFLICT, "{sql}");
            assert_eq!(site.count("set up").await, 0, "{sql}");
        }
        assert_eq!(site.count("worked").await, 0, "{sql}");
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn control_statements_are_refused_in_set_up_on_every_database() {
    for kind in Kind::ALL {
        for sql in [
            "COMMIT",
            "BEGIN",
            "ROLLBACK",
            "SAVEPOINT mine",
            "SELECT 1; COMMIT",
        ] {
            let site = Site::new(kind).await.layered(|layer| {
                layer.on_begin(move |_| {
                    ["INSERT INTO item (name) VALUES ('set up')", sql]
                        .map(|sql| Statement::from_string(kind.backend(), sql))
                        .to_vec()
                })
            });
            let response = site
                .call(async |tx: DbTx| {
                    let error = tx
                        .execute_unprepared("INSERT INTO item (name) VALUES ('worked')")
                        .await
                        .unwrap_err();
                    assert!(
                        Error::of(&error).is_some_and(|error| error.is_forbidden_statement()),
                        "{error}"
                    );
                    StatusCode::BAD_REQUEST
                })
                .await;
            assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{kind:?} {sql}");
            assert_eq!(
                site.seen(["set up", "worked"]).await,
                [false; 2],
                "{kind:?} {sql}"
            );
            site.assert_whole().await;
        }
    }
    for sql in ["BEGIN", "SET autocommit = 0", "CALL opens()"] {
        let site = Site::new(Kind::MySql).await;
        site.run("CREATE PROCEDURE opens() BEGIN SET autocommit = 0; INSERT INTO item (name) VALUES ('open'); END")
            .await;
        let site = site.layered(|layer| {
            layer.on_acquire(move |_| vec![Statement::from_string(DbBackend::MySql, sql)])
        });
        let response = site
            .call(async |db: DbSession| {
                let inserted = db
                    .execute_unprepared("INSERT INTO item (name) VALUES ('worked')")
                    .await;
                if inserted.is_ok() {
                    StatusCode::OK
                } else {
                    StatusCode::CONFLICT
                }
            })
            .await;
        assert_eq!(
            (response.status(), site.count("worked").await),
            (StatusCode::CONFLICT, 0),
            "{sql}"
        );
        assert_eq!(site.count("open").await, 0, "{sql}");
    }
}

#[tokio::test]
async fn a_connection_lost_in_stored_code_is_not_reported_as_rolled_back() {
    for sql in ["EXECUTE IMMEDIATE 'COMMIT RELEASE'", "CALL leaves()"] {
        for (status, nested) in [(200, false), (400, false), (503, true)] {
            let site = Site::new(Kind::MySql).await;
            if sql.starts_with("EXECUTE IMMEDIATE") && !is_mariadb(&site.db).await {
                continue;
            }
            site.run("CREATE PROCEDURE leaves() COMMIT RELEASE").await;
            let response = site
                .call(async move |tx: DbTx| {
                    insert_item(&tx, "stands").await;
                    if nested {
                        let inner = tx.begin().await.unwrap();
                        let _ = inner.execute_unprepared(sql).await;
                    } else {
                        let _ = tx.execute_unprepared(sql).await;
                    }
                    let _ = tx
                        .execute_unprepared("INSERT INTO item (name) VALUES ('after')")
                        .await;
                    StatusCode::from_u16(status).unwrap()
                })
                .await;
            assert_told(&response, &format!("{sql} {status}"));
            assert_eq!(
                site.seen(["stands", "after"]).await,
                [true, false],
                "{sql} {status}"
            );
            site.assert_whole().await;
        }
    }
}

#[tokio::test]
async fn dropped_raw_code_is_not_reported_as_rolled_back() {
    for kind in [Kind::Postgres, Kind::MySql, Kind::SqliteFile] {
        let site = Site::new(kind).await;
        let response = site
            .call(async move |tx: DbTx| {
                insert_item(&tx, "stands").await;
                let committed = Arc::new(Notify::new());
                let notify = committed.clone();
                macro_rules! commit_and_hang {
                    ($method:ident) => {{
                        let code = tx.$method(move |connection| {
                            Box::pin(async move {
                                connection.execute("COMMIT").await.unwrap();
                                notify.notify_one();
                                std::future::pending::<()>().await
                            })
                        });
                        tokio::select! { _ = code => {} () = committed.notified() => {} }
                    }};
                }
                match kind {
                    Kind::Postgres => commit_and_hang!(with_postgres),
                    Kind::MySql => commit_and_hang!(with_mysql),
                    _ => commit_and_hang!(with_sqlite),
                }
                StatusCode::BAD_REQUEST
            })
            .await;
        assert_told(&response, &format!("{kind:?}"));
        assert_eq!(site.count("stands").await, 1, "{kind:?}");
        site.assert_whole().await;
    }
}
