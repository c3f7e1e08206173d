//! G16: an error may have the code of a lost connection although the connection is there: a user's function can raise
//! any code, and a foreign table passes those of another server on.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use http::StatusCode;
use sea_orm::{ConnectionTrait, DbBackend, DbErr, Statement, TransactionTrait};
use tower_sea_orm::{DbSession, DbTx, Error};

use crate::{
    log::Log,
    support::{
        database::{Kind, SERVERS, insert_item},
        site::{Site, outcome, retry_after, value},
        statements::insert,
        wait::eventually,
    },
};

/// SQLSTATEs that PostgreSQL ends a connection with, or that tell of one.
const POSTGRES: &[&str] = &[
    "08000", "08001", "08003", "08004", "08006", "08007", "08P01", "57P01", "57P02", "57P03",
    "57P04", "57P05", "25P03", "25P04",
];

/// The same for MySQL and MariaDB, by number.
const MYSQL: &[&str] = &[
    "1053", "1152", "1153", "1158", "1159", "1160", "1161", "1184", "1927", "2006", "2013", "3168",
    "3169", "4031",
];

/// Errors that end a transaction on MySQL and MariaDB, if they are the server's own.
const ENDING: &[&str] = &["1020", "1206", "1213"];

/// Has the site's database raise errors at will.
async fn prepare(site: &Site) {
    if site.kind() == Kind::Postgres {
        return;
    }
    site.run("CREATE TABLE raising (n integer)").await;
    site.run(
        "CREATE TRIGGER raises BEFORE INSERT ON raising FOR EACH ROW BEGIN \
         DECLARE n INTEGER DEFAULT NEW.n; SIGNAL SQLSTATE '08S01' SET MYSQL_ERRNO = n; END",
    )
    .await;
    site.run("CREATE PROCEDURE raise(n INTEGER) SIGNAL SQLSTATE '08S01' SET MYSQL_ERRNO = n")
        .await;
}

/// Statements that fail with this code.
fn raising(kind: Kind, code: &str) -> Vec<String> {
    match kind {
        Kind::Postgres => vec![format!(
            "DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '{code}'; END $$"
        )],
        _ => vec![
            format!("INSERT INTO raising VALUES ({code})"),
            format!("CALL raise({code})"),
        ],
    }
}

fn codes(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Postgres => POSTGRES,
        _ => MYSQL,
    }
}

/// The number of the server's process for this session.
async fn process(db: &impl ConnectionTrait) -> i64 {
    let sql = match db.get_database_backend() {
        DbBackend::Postgres => "SELECT pg_backend_pid()::bigint",
        _ => "SELECT CAST(CONNECTION_ID() AS SIGNED)",
    };
    value(db, sql).await
}

#[track_caller]
fn assert_is_the_statements_own(error: &DbErr, case: &str) {
    let known = Error::of(error);
    assert!(known.is_none(), "{case}: {error}: {known:?}");
}

#[tokio::test]
async fn an_imitated_loss_of_the_connection_is_the_statements_own_error() {
    for kind in SERVERS {
        let site = Site::new(kind).await;
        prepare(&site).await;
        for code in codes(kind) {
            for sql in raising(kind, code) {
                let session = site.layer.pool().session().await.unwrap();
                // A session that lends might have another connection afterwards.
                let _pin = session.pin();
                let before = process(&*session).await;
                let error = session.execute_unprepared(&sql).await.unwrap_err();
                assert_is_the_statements_own(&error, &sql);
                assert!(error.to_string().len() > 10, "{sql}: {error}");
                assert_eq!(process(&*session).await, before, "{sql}");
            }
        }
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn an_imitated_loss_is_undone_with_its_savepoint() {
    for kind in SERVERS {
        let site = Site::new(kind).await;
        prepare(&site).await;
        let ends = if kind == Kind::Postgres { &[] } else { ENDING };
        for code in codes(kind).iter().chain(ends) {
            for (number, sql) in raising(kind, code).into_iter().enumerate() {
                let names = ["a", "b", "c"].map(|name| format!("{name}{number} {code}"));
                let [first, lost, last] = names.each_ref().map(String::as_str);
                let pool = site.layer.pool();
                let done = pool.transaction(async |tx| {
                    insert_item(tx, first).await;
                    let nested = tx.begin().await?;
                    insert_item(&nested, lost).await;
                    nested.execute_unprepared(&sql).await.unwrap_err();
                    nested.rollback().await?;
                    insert_item(tx, last).await;
                    Ok::<_, DbErr>(())
                });
                let done = done.await;
                let seen = site.seen([first, lost, last]).await;
                assert!(done.is_ok(), "{kind:?} {sql}: {done:?}, {seen:?}");
                assert_eq!(seen, [true, false, true], "{kind:?} {sql}");
            }
        }
        site.assert_whole().await;
    }
}

/// What the server has not ended goes on: a rollback of all of it undoes it.
#[tokio::test]
async fn an_imitated_deadlock_commits_nothing() {
    let site = Site::new(Kind::MySql).await;
    prepare(&site).await;
    for code in ENDING {
        for (number, sql) in raising(Kind::MySql, code).into_iter().enumerate() {
            let names = ["a", "b"].map(|name| format!("{name}{number} {code}"));
            let [outer, inner] = names.each_ref().map(String::as_str);
            let session = site.layer.pool().session().await.unwrap();
            let tx = session.begin().await.unwrap();
            insert_item(&tx, outer).await;
            let nested = tx.begin().await.unwrap();
            insert_item(&nested, inner).await;
            nested.execute_unprepared(&sql).await.unwrap_err();
            let _ = nested.rollback().await;
            let _ = tx.rollback().await;
            drop(session);
            assert_eq!(site.seen([outer, inner]).await, [false, false], "{sql}");
        }
    }
    site.assert_whole().await;
}

#[tokio::test]
async fn too_few_or_too_many_values_leave_the_connection_in_use() {
    let site = Site::new(Kind::Postgres).await;
    let session = site.layer.pool().session().await.unwrap();
    let before = process(&*session).await;
    let many = (0..70_000).map(Into::into);
    for (sql, values) in [
        ("SELECT $1::int + $2::int", vec![1.into()]),
        ("SELECT 1", many.collect()),
    ] {
        let statement = Statement::from_sql_and_values(DbBackend::Postgres, sql, values);
        let error = session.execute_raw(statement).await.unwrap_err();
        assert_is_the_statements_own(&error, sql);
        assert_eq!(process(&*session).await, before, "{sql}");
    }
    drop(session);
    site.assert_whole().await;
}

#[tokio::test]
async fn a_commit_that_a_trigger_refuses_so_has_failed_and_is_known() {
    let site = Site::new(Kind::Postgres).await;
    for code in POSTGRES {
        site.run(&format!(
            "CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '{code}'; END $$"
        ))
        .await;
        site.run(
            "DROP TRIGGER IF EXISTS late ON item; CREATE CONSTRAINT TRIGGER late AFTER INSERT ON item \
             DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse()",
        )
        .await;
        let (log, _guard) = Log::start();
        let rolled_back = Arc::new(AtomicU32::new(0));
        let ran = rolled_back.clone();
        let response = site
            .call(async move |tx: DbTx| {
                insert_item(&tx, "refused").await;
                tx.after_rollback(async move { _ = ran.fetch_add(1, Ordering::SeqCst) })
                    .unwrap();
            })
            .await;
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(retry_after(&response), None, "{code}");
        let outcome = outcome(&response);
        assert!(!outcome.is_unknown(), "{code}: {outcome:?}");
        assert!(outcome.error().unwrap().is_commit_failed(), "{code}");
        assert_eq!(site.count("refused").await, 0, "{code}");
        eventually("the hook runs", async || {
            rolled_back.load(Ordering::SeqCst) == 1
        })
        .await;
        let lines = log.lines();
        let lost = lines.iter().any(|line| line.contains("COMMIT was lost"));
        assert!(!lost, "{code}: {lines:?}");
    }
    site.run("DROP TRIGGER late ON item").await;
    site.assert_whole().await;
}

#[tokio::test]
async fn a_handler_that_meets_it_answers_for_itself() {
    for kind in SERVERS {
        let site = Site::new(kind).await;
        prepare(&site).await;
        for code in codes(kind) {
            for (number, sql) in raising(kind, code).into_iter().enumerate() {
                let next = insert(&format!("{number} {code}"));
                let response = site
                    .call(async move |db: DbSession| {
                        let failed = db.execute_unprepared(&sql).await.is_err();
                        let went_on = db.execute_unprepared(&next).await.is_ok();
                        assert!(failed && went_on, "{sql}");
                        StatusCode::INTERNAL_SERVER_ERROR
                    })
                    .await;
                assert_eq!(response.status(), 500, "{code}");
                assert_eq!(retry_after(&response), None, "{code}");
            }
        }
        site.assert_whole().await;
    }
}
