//! G7: a statement that fails after its first row has failed; its result is read to the end before it is `Ok`.

use futures_util::StreamExt;
use http::StatusCode;
use sea_orm::{ConnectionTrait, DbBackend, Statement, StreamTrait, TransactionTrait};
use tower_sea_orm::{DbSession, DbTx};

use crate::support::{
    database::{Kind, insert_item},
    site::{BOUND, Site, is_mariadb, outcome},
    statements::{WAYS, Way, read},
    wait::eventually,
};

/// A statement that yields rows before it fails, on each database; `late` holds the rows it would leave.
async fn failing_late(kind: Kind) -> (Site, Vec<&'static str>) {
    let site = Site::new(kind).await;
    match kind {
        Kind::MySql => {
            site.run("CREATE TABLE late (id integer PRIMARY KEY AUTO_INCREMENT, n integer CHECK (n <> 10))").await;
            site.run("CREATE PROCEDURE complains() BEGIN SELECT 1; SIGNAL SQLSTATE '45000'; END")
                .await;
            let selects = "CREATE PROCEDURE several() BEGIN SELECT 1 UNION SELECT 2; SELECT 3; INSERT INTO late (n) VALUES (10); END";
            site.run(selects).await;
            let several = "INSERT INTO late (n) SELECT seq FROM seq_1_to_20 RETURNING id";
            (site, vec![several, "CALL complains()", "CALL several()"])
        }
        Kind::Postgres => {
            site.run("CREATE TABLE late (n integer CHECK (n <> 10))")
                .await;
            (
                site,
                vec![
                    "INSERT INTO late SELECT * FROM generate_series(1, 20) RETURNING n",
                    "SELECT 1 / (3 - n) FROM generate_series(1, 9) n",
                ],
            )
        }
        _ => {
            site.run(
                "CREATE TABLE late (n integer REFERENCES item (id) DEFERRABLE INITIALLY DEFERRED)",
            )
            .await;
            (site, vec!["INSERT INTO late VALUES (-1), (-2) RETURNING n"])
        }
    }
}

async fn left(site: &Site) -> i64 {
    crate::support::site::value(site.view(), "SELECT count(*) FROM late").await
}

#[tokio::test]
async fn an_error_after_the_first_row_is_that_statements_error() {
    for kind in Kind::ALL {
        let (site, statements) = failing_late(kind).await;
        for sql in statements {
            for way in WAYS {
                let case = format!("{kind:?} {way:?} {sql}");
                let response = site
                    .call(async move |db: DbSession| match read(&db, way, sql).await {
                        Ok(()) => StatusCode::CREATED,
                        Err(_) => {
                            insert_item(&db, "next").await;
                            StatusCode::CONFLICT
                        }
                    })
                    .await;
                assert_eq!(
                    (response.status(), left(&site).await),
                    (StatusCode::CONFLICT, 0),
                    "{case}"
                );
                assert_eq!(site.count("next").await, 1, "{case}");
                site.run("DELETE FROM item").await;
            }
        }
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn an_error_after_the_first_row_is_noticed_in_a_transaction() {
    for kind in [Kind::Postgres, Kind::MySql] {
        let (site, statements) = failing_late(kind).await;
        for sql in statements {
            for way in WAYS {
                let case = format!("{kind:?} {way:?} {sql}");
                let response = site
                    .call(async move |tx: DbTx| match read(&tx, way, sql).await {
                        Ok(()) => StatusCode::CREATED,
                        Err(_) if kind == Kind::MySql => {
                            // The statement alone is undone there.
                            insert_item(&tx, "next").await;
                            StatusCode::OK
                        }
                        Err(_) => StatusCode::CONFLICT,
                    })
                    .await;
                let expected = if kind == Kind::MySql {
                    StatusCode::OK
                } else {
                    StatusCode::CONFLICT
                };
                assert_eq!(
                    (response.status(), left(&site).await),
                    (expected, 0),
                    "{case}"
                );
                assert_eq!(
                    site.count("next").await,
                    i64::from(kind == Kind::MySql),
                    "{case}"
                );
                site.run("DELETE FROM item").await;
            }
        }
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn a_stream_that_fails_behind_its_readers_back_is_not_committed() {
    for kind in [Kind::Postgres, Kind::MySql] {
        let (site, statements) = failing_late(kind).await;
        let sql = statements[0];
        let response = site
            .call(async move |tx: DbTx| {
                insert_item(&tx, "before").await;
                let mut rows = tx
                    .stream_raw(Statement::from_string(tx.backend(), sql))
                    .await
                    .unwrap();
                let first = rows.next().await;
                drop(rows);
                // PostgreSQL sends the error with the rows or before them.
                if first.is_some_and(|row| row.is_ok()) {
                    StatusCode::CREATED
                } else {
                    StatusCode::CONFLICT
                }
            })
            .await;
        assert!(
            !response.status().is_success(),
            "{kind:?}: {}",
            response.status()
        );
        assert_eq!(
            (site.count("before").await, left(&site).await),
            (0, 0),
            "{kind:?}"
        );
        if response.status() != StatusCode::CONFLICT {
            assert!(outcome(&response).error().is_some(), "{kind:?}");
        }
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn a_write_whose_stream_is_dropped_takes_place_nevertheless() {
    for kind in Kind::ALL {
        let site = Site::new(kind).await;
        let mut sql =
            "INSERT INTO item (name) VALUES ('first'), ('second'), ('third') RETURNING id";
        if kind == Kind::MySql && !is_mariadb(&site.db).await {
            // MySQL has no RETURNING.
            let insert = "INSERT INTO item (name) VALUES ('first'), ('second'), ('third')";
            site.run(&format!(
                "CREATE PROCEDURE writes() BEGIN SELECT 1 UNION ALL SELECT 2; {insert}; END"
            ))
            .await;
            sql = "CALL writes()";
        }
        let response = site
            .call(async move |db: DbSession| {
                let mut rows = db
                    .stream_raw(Statement::from_string(db.backend(), sql))
                    .await
                    .unwrap();
                assert!(rows.next().await.unwrap().is_ok());
                drop(rows);
            })
            .await;
        assert_eq!(response.status(), StatusCode::OK);
        eventually("all rows are there", async || {
            site.seen(["first", "second", "third"]).await == [true; 3]
        })
        .await;
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn one_row_of_an_endless_result_arrives_at_once_on_sqlite() {
    for kind in [Kind::SqliteFile, Kind::SqliteMemory] {
        let site = Site::new(kind).await;
        let asking = site.call(async |db: DbSession| {
            let sql =
                "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t) SELECT n FROM t";
            db.query_one_raw(Statement::from_string(db.backend(), sql))
                .await
                .unwrap()
                .unwrap();
        });
        assert_eq!(
            tokio::time::timeout(BOUND, asking).await.unwrap().status(),
            StatusCode::OK
        );
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn a_later_failure_that_was_read_does_not_hide_an_unread_one() {
    let site = Site::new(Kind::MySql).await;
    site.run(
        "CREATE PROCEDURE late() BEGIN SELECT 1; INSERT INTO item (name) VALUES ('half'); SIGNAL SQLSTATE '45000'; END",
    )
    .await;
    let response = site
        .call(async |tx: DbTx| {
            let call = |sql: &str| Statement::from_string(DbBackend::MySql, sql);
            let mut unheard = tx.stream_raw(call("CALL late()")).await.unwrap();
            let _ = unheard.next().await;
            drop(unheard);
            let mut heard = tx
                .stream_raw(call("SELECT 1 FROM no_such_table"))
                .await
                .unwrap();
            while let Some(row) = heard.next().await {
                row.unwrap_err();
            }
        })
        .await;
    assert_eq!(
        response.status(),
        StatusCode::INTERNAL_SERVER_ERROR,
        "{:?}",
        outcome(&response)
    );
    assert_eq!(site.seen(["half"]).await, [false]);
    site.assert_whole().await;
}

/// Statements that return rows before they fail, and what their errors say. On SQLite it is the COMMIT of the
/// statement itself that fails, so they fail in autocommit only.
fn failing_statements(kind: Kind) -> &'static [(&'static str, &'static str)] {
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
    for &(sql, words) in failing_statements(kind) {
        if !has_returning && sql.contains("RETURNING") {
            continue;
        }
        for way in WAYS {
            let response = site
                .call(async move |db: DbSession| {
                    let error = read(&db, way, sql).await.expect_err(sql);
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
            if kind.backend() != DbBackend::Sqlite {
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
                    read(&inner, way, sql).await
                } else {
                    read(&*tx, way, sql).await
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
async fn an_error_after_many_rows_is_returned_by_every_way_to_read() {
    for kind in Kind::ALL {
        fail_late(&Site::new(kind).await).await;
    }
}
