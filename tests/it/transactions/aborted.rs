//! A statement that has failed, and a transaction that the server has given up, are not taken for done.

use futures_util::TryStreamExt;
use http::StatusCode;
use sea_orm::{ConnectionTrait, DbErr, Statement, StreamTrait, TransactionTrait};
use tower_sea_orm::{DbSession, DbTx, Error, SessionTransaction};

use crate::support::pool::session_pool;
use crate::support::{
    database::{Kind, TestDb, count_items, insert_item},
    pool::assert_whole,
    site::{Site, is_mariadb},
};

/// How the result of a statement is read.
#[derive(Clone, Copy, Debug)]
enum Way {
    One,
    All,
    Execute,
    Unprepared,
    Stream,
}

const WAYS: [Way; 5] = [
    Way::One,
    Way::All,
    Way::Execute,
    Way::Unprepared,
    Way::Stream,
];

async fn read(
    db: &(impl ConnectionTrait + StreamTrait),
    kind: Kind,
    way: Way,
    sql: &str,
) -> Result<(), DbErr> {
    let statement = Statement::from_string(kind.backend(), sql);
    match way {
        Way::One => db.query_one_raw(statement).await.map(drop),
        Way::All => db.query_all_raw(statement).await.map(drop),
        Way::Execute => db.execute_raw(statement).await.map(drop),
        Way::Unprepared => db.execute_unprepared(sql).await.map(drop),
        Way::Stream => db
            .stream_raw(statement)
            .await?
            .try_collect::<Vec<_>>()
            .await
            .map(drop),
    }
}

/// Statements that return rows before they fail, and what their errors say. On SQLite it is the COMMIT of the
/// statement itself that fails, so they fail in autocommit only.
fn failing_late(kind: Kind) -> &'static [(&'static str, &'static str)] {
    match kind {
        Kind::Postgres => &[
            (
                "INSERT INTO item (name, hits) SELECT 'late' || i, i FROM generate_series(1, 500) AS t (i) RETURNING 1 / (400 - hits)",
                "division by zero",
            ),
            (
                "SELECT 1 / (400 - i) FROM generate_series(1, 500) AS t (i)",
                "division by zero",
            ),
        ],
        Kind::MySql => &[
            (
                "INSERT INTO item (name) SELECT IF(seq = 400, 'late1', CONCAT('late', seq)) FROM seq_1_to_500 RETURNING id",
                "Duplicate entry",
            ),
            ("CALL selects_and_fails()", "it failed"),
        ],
        _ => &[
            (
                "INSERT INTO later VALUES (-1), (-2), (-3) RETURNING id",
                "FOREIGN KEY",
            ),
            (
                "WITH two (id) AS (VALUES (-1), (-2)) INSERT INTO later SELECT id FROM two RETURNING id",
                "FOREIGN KEY",
            ),
        ],
    }
}

async fn fail_late(site: &Site) {
    if site.kind() == Kind::MySql {
        let procedure = "CREATE PROCEDURE selects_and_fails() BEGIN \
             WITH RECURSIVE numbers AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM numbers WHERE n < 500) \
             SELECT n FROM numbers; \
             SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'it failed'; END";
        site.run(procedure).await;
    } else {
        site.defer().await;
    }
    let kind = site.kind();
    let has_returning = kind != Kind::MySql || is_mariadb(site.view()).await;
    for &(sql, words) in failing_late(kind) {
        if !has_returning && sql.contains("RETURNING") {
            continue;
        }
        for way in WAYS {
            let response = site
                .call(async move |db: DbSession| {
                    let error = read(&db, kind, way, sql).await.expect_err(sql);
                    assert!(
                        error.to_string().contains(words),
                        "{kind:?} {way:?}: {error}"
                    );
                    // The next one is not blamed for it.
                    insert_item(&db, &format!("next {way:?} {words}")).await;
                    db.execute_unprepared("DELETE FROM item WHERE name LIKE 'next%'")
                        .await
                        .unwrap();
                    StatusCode::CONFLICT
                })
                .await;
            assert_eq!(
                response.status(),
                StatusCode::CONFLICT,
                "{kind:?} {way:?} {sql}"
            );
            if kind.backend() != sea_orm::DbBackend::Sqlite {
                fail_late_inside(site, way, sql, words).await;
            }
        }
    }
    let rows = site
        .view()
        .query_all_raw(Statement::from_string(
            kind.backend(),
            "SELECT id FROM item",
        ))
        .await
        .unwrap();
    assert!(rows.is_empty(), "{kind:?}");
    site.assert_whole().await;
}

/// Swallowed in a transaction, it is a success only where the transaction lives on.
async fn fail_late_inside(site: &Site, way: Way, sql: &'static str, words: &'static str) {
    let kind = site.kind();
    for nested in [false, true] {
        let response = site
            .call(async move |tx: DbTx| {
                let failed = if nested {
                    let inner = tx.begin().await.unwrap();
                    read(&inner, kind, way, sql).await
                } else {
                    read(&*tx, kind, way, sql).await
                };
                let error = failed.expect_err(sql);
                assert!(
                    error.to_string().contains(words),
                    "{kind:?} {way:?}: {error}"
                );
            })
            .await;
        let lives_on = nested || kind == Kind::MySql;
        let expected = if lives_on {
            StatusCode::OK
        } else {
            StatusCode::INTERNAL_SERVER_ERROR
        };
        assert_eq!(
            response.status(),
            expected,
            "{kind:?} {way:?} {nested} {sql}"
        );
    }
}

#[tokio::test]
async fn an_error_after_the_first_row_is_the_statements_own_however_it_is_read() {
    for kind in Kind::ALL {
        fail_late(&Site::new(kind).await).await;
    }
}

fn assert_aborted<T>(result: Result<T, DbErr>) {
    let error = result.err().expect("an error");
    assert!(
        Error::of(&error).is_some_and(|error| error.is_aborted()),
        "{error}"
    );
}

/// Fails because the name is taken.
async fn fail(tx: &SessionTransaction) {
    tx.execute_unprepared("INSERT INTO item (name) VALUES ('taken')")
        .await
        .unwrap_err();
}

#[tokio::test]
async fn h8_a_swallowed_error_is_no_commit_on_postgres() {
    let test = TestDb::new(Kind::Postgres).await;
    let db = test.connect(1).await;
    insert_item(&db, "taken").await;
    let session = session_pool(db.clone()).session().await.unwrap();

    let tx = session.begin().await.unwrap();
    insert_item(&tx, "lost").await;
    fail(&tx).await;
    assert_aborted(tx.commit().await);
    assert_eq!(count_items(&*session, "lost").await, 0);

    // The next transaction starts afresh.
    let tx = session.begin().await.unwrap();
    insert_item(&tx, "kept").await;
    tx.commit().await.unwrap();
    assert_eq!(count_items(&*session, "kept").await, 1);
    drop(session);
    assert_whole(&test, &db, 1).await;
}

#[tokio::test]
async fn h8_an_error_rolled_back_to_its_savepoint_does_not_spoil_the_outer_transaction() {
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let db = test.connect(1).await;
        insert_item(&db, "taken").await;
        let session = session_pool(db.clone()).session().await.unwrap();
        let outer = session.begin().await.unwrap();
        insert_item(&outer, "kept").await;

        let inner = outer.begin().await.unwrap();
        fail(&inner).await;
        inner.rollback().await.unwrap();

        let inner = outer.begin().await.unwrap();
        fail(&inner).await;
        drop(inner);

        let inner = outer.begin().await.unwrap();
        fail(&inner).await;
        if kind == Kind::Postgres {
            assert_aborted(inner.commit().await);
        } else {
            inner.commit().await.unwrap();
        }
        outer.commit().await.unwrap();
        assert_eq!(count_items(&*session, "kept").await, 1, "{kind:?}");
        drop(session);
        assert_whole(&test, &db, 1).await;
    }
}

#[tokio::test]
async fn h8_a_deadlocks_victim_on_mysql_neither_autocommits_nor_commits() {
    let test = TestDb::new(Kind::MySql).await;
    let db = test.connect(2).await;
    insert_item(&db, "one").await;
    insert_item(&db, "two").await;
    let pool = session_pool(db.clone());
    let (first, second) = (pool.session().await.unwrap(), pool.session().await.unwrap());
    let lock = |name: &str| format!("UPDATE item SET hits = hits + 1 WHERE name = '{name}'");

    // The victim's inner transaction fails; the outer one is gone with it.
    let other = second.begin().await.unwrap();
    // InnoDB gives up the one that has changed fewer rows.
    for n in 0..20 {
        insert_item(&other, &format!("weight {n}")).await;
    }
    other.execute_unprepared(&lock("two")).await.unwrap();
    let outer = first.begin().await.unwrap();
    let inner = outer.begin().await.unwrap();
    inner.execute_unprepared(&lock("one")).await.unwrap();
    // Whichever comes last closes the circle: the lighter one is the victim.
    let (one, two) = (lock("one"), lock("two"));
    let (heavier, victim) = futures_util::join!(
        other.execute_unprepared(&one),
        inner.execute_unprepared(&two)
    );
    heavier.unwrap();
    let error = Error::of(&victim.unwrap_err()).unwrap();
    assert!(error.is_conflict());

    assert_aborted(
        inner
            .execute_unprepared("INSERT INTO item (name) VALUES ('autocommitted')")
            .await,
    );
    assert_aborted(inner.commit().await);
    assert_aborted(outer.commit().await);
    other.rollback().await.unwrap();
    // The session goes on, on the same connection.
    assert_eq!(count_items(&*first, "autocommitted").await, 0);
    let tx = first.begin().await.unwrap();
    insert_item(&tx, "kept").await;
    tx.commit().await.unwrap();
    assert_eq!(count_items(&*second, "kept").await, 1);
    drop((first, second));
    assert_whole(&test, &db, 2).await;
}

#[tokio::test]
async fn h8_a_full_sqlite_database_ends_the_transaction_for_good() {
    for kind in [Kind::SqliteFile, Kind::SqliteMemory] {
        let test = TestDb::new(kind).await;
        let db = test.connect(1).await;
        let session = session_pool(db.clone()).session().await.unwrap();
        let pages = "SELECT page_count AS n FROM pragma_page_count()";
        let statement = Statement::from_string(sea_orm::DbBackend::Sqlite, pages);
        let row = session.query_one_raw(statement).await.unwrap().unwrap();
        let pages: i32 = row.try_get("", "n").unwrap();
        session
            .execute_unprepared(&format!("PRAGMA max_page_count = {}", pages + 2))
            .await
            .unwrap();

        let tx = session.begin().await.unwrap();
        insert_item(&tx, "lost").await;
        let fill = "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t WHERE n < 9000) \
                    INSERT INTO item (name) SELECT 'filler ' || n FROM t";
        tx.execute_unprepared(fill).await.unwrap_err();
        assert_aborted(
            tx.execute_unprepared("INSERT INTO item (name) VALUES ('autocommitted')")
                .await,
        );
        assert_aborted(tx.commit().await);

        session
            .execute_unprepared("PRAGMA max_page_count = 1000000")
            .await
            .unwrap();
        for name in ["lost", "autocommitted"] {
            assert_eq!(count_items(&*session, name).await, 0, "{kind:?} {name}");
        }
        let tx = session.begin().await.unwrap();
        insert_item(&tx, "kept").await;
        tx.commit().await.unwrap();
        assert_eq!(count_items(&*session, "kept").await, 1, "{kind:?}");
        drop(session);
        assert_whole(&test, &db, 1).await;
    }
}
