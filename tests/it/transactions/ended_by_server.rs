//! G7: transactions that the server ends by itself, unnoticed by the driver (hazards H5b and H8).
//! None of them is committed by a 200, and nothing autocommits in their place.

use futures_util::StreamExt;
use http::StatusCode;
use sea_orm::{ConnectionTrait, Database, Statement, TransactionTrait};
use tower_sea_orm::{DbSession, DbTx};

use crate::support::{
    database::{Kind, TestDb, insert_item},
    servers::OwnServer,
    site::{SIZE, Site, is_mariadb, known, outcome, retry_after, value},
    statements::raw,
};

#[tokio::test]
async fn h8_an_error_of_a_half_read_stream_aborts_the_transaction() {
    for nested in [false, true] {
        let site = Site::new(Kind::Postgres).await;
        let response = site
            .call(async move |tx: DbTx| {
                insert_item(&tx, "before").await;
                let inner = if nested {
                    Some(tx.begin().await.unwrap())
                } else {
                    None
                };
                // It fails long after the reader has lost interest.
                let sql = "SELECT 1 / (5000 - i) FROM generate_series(1, 10000) AS i";
                let statement = Statement::from_string(tx.backend(), sql);
                match &inner {
                    Some(inner) => read_three(inner, statement).await,
                    None => read_three(&*tx, statement).await,
                }
                drop(inner);
            })
            .await;
        // With the savepoint rolled back, all is well.
        assert_eq!(
            response.status(),
            if nested {
                StatusCode::OK
            } else {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        );
        let told = outcome(&response);
        assert_eq!(
            told.error().is_some_and(|error| error.is_aborted()),
            !nested,
            "{told:?}"
        );
        assert_eq!(site.seen(["before"]).await, [nested]);
        site.assert_whole().await;
    }
}

async fn read_three(db: &impl sea_orm::StreamTrait, statement: Statement) {
    let mut rows = Box::pin(db.stream_raw(statement).await.unwrap());
    for _ in 0..3 {
        rows.next().await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn h8_after_a_rollback_in_sql_nothing_autocommits_on_sqlite() {
    for kind in [Kind::SqliteFile, Kind::SqliteMemory] {
        for nested in [false, true] {
            let site = Site::new(kind).await;
            insert_item(&site.db, "taken").await;
            site.run(
                "CREATE TRIGGER strict BEFORE INSERT ON item WHEN NEW.name = 'forbidden' \
                 BEGIN SELECT RAISE(ROLLBACK, 'forbidden'); END",
            )
            .await;
            for sql in [
                "INSERT OR ROLLBACK INTO item (name) VALUES ('taken')",
                "INSERT INTO item (name) VALUES ('forbidden')",
            ] {
                let response = site
                    .call(async move |tx: DbTx| {
                        insert_item(&tx, "lost").await;
                        let inner = if nested {
                            Some(tx.begin().await.unwrap())
                        } else {
                            None
                        };
                        let next = "INSERT INTO item (name) VALUES ('autocommitted')";
                        match &inner {
                            Some(inner) => {
                                inner.execute_unprepared(sql).await.unwrap_err();
                                assert!(known(inner.execute_unprepared(next).await).is_aborted());
                            }
                            None => {
                                tx.execute_unprepared(sql).await.unwrap_err();
                            }
                        }
                        drop(inner);
                        assert!(known(tx.execute_unprepared(next).await).is_aborted());
                    })
                    .await;
                assert_eq!(
                    response.status(),
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "{kind:?} {sql}"
                );
                assert!(outcome(&response).error().unwrap().is_aborted());
                assert_eq!(
                    site.seen(["lost", "autocommitted"]).await,
                    [false, false],
                    "{kind:?} {sql}"
                );
            }
            site.assert_whole().await;
        }
    }
}

#[tokio::test]
async fn h8_after_a_lock_timeout_nothing_autocommits_on_mysql() {
    let server = OwnServer::mysql_with(&[
        "--innodb-rollback-on-timeout",
        "--innodb-lock-wait-timeout=1",
    ]);
    for ends in [true, false] {
        let test = if ends {
            TestDb::on(&server).await
        } else {
            TestDb::new(Kind::MySql).await
        };
        let db = Database::connect(test.options(SIZE)).await.unwrap();
        let site = Site::with(test, db, SIZE).await;
        insert_item(&site.db, "locked").await;
        let holder = site.view().begin().await.unwrap();
        holder
            .execute_unprepared("UPDATE item SET hits = 1 WHERE id = 1")
            .await
            .unwrap();
        let response = site
            .call(async |tx: DbTx| {
                tx.execute_unprepared("SET SESSION innodb_lock_wait_timeout = 1")
                    .await
                    .unwrap();
                insert_item(&tx, "before").await;
                let error = known(
                    tx.execute_unprepared("UPDATE item SET hits = 2 WHERE id = 1")
                        .await,
                );
                assert!(error.is_conflict());
                let _ = tx
                    .execute_unprepared("INSERT INTO item (name) VALUES ('after')")
                    .await;
            })
            .await;
        // By default only the statement fails, and its error is the handler's to judge.
        assert_eq!(response.status().as_u16(), if ends { 503 } else { 200 });
        assert_eq!(
            site.seen(["before", "after"]).await,
            [!ends; 2],
            "ends: {ends}"
        );
        holder.rollback().await.unwrap();
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn h5b_a_failed_savepoint_in_an_aborted_transaction_is_no_new_start() {
    for goes_on in [false, true] {
        let site = Site::new(Kind::Postgres).await;
        let response = site
            .call(async move |tx: DbTx| {
                insert_item(&tx, "lost").await;
                tx.execute_unprepared("SELECT 1 / 0").await.unwrap_err();
                assert!(tx.begin().await.is_err());
                if goes_on {
                    let _ = tx
                        .execute_unprepared("INSERT INTO item (name) VALUES ('later')")
                        .await;
                    assert!(tx.commit().await.is_err());
                }
            })
            .await;
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert!(outcome(&response).error().unwrap().is_aborted());
        assert_eq!(site.seen(["lost", "later"]).await, [false, false]);
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn a_transaction_left_open_by_raw_code_swallows_no_later_write() {
    for kind in Kind::ALL {
        let site = Site::new(kind).await;
        let response = site
            .call(async |db: DbSession| {
                raw(&db, "BEGIN").await;
                insert_item(&db, "acknowledged").await;
            })
            .await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(site.count("acknowledged").await, 1, "{kind:?}");
        site.assert_whole().await;
    }
}

/// With this setting, MariaDB does not let a transaction change what was committed after its snapshot.
#[tokio::test]
async fn h8_after_a_snapshot_conflict_nothing_autocommits_on_mariadb() {
    let site = Site::new(Kind::MySql).await;
    if !is_mariadb(&site.db).await {
        return;
    }
    insert_item(&site.db, "shared").await;
    let other = site.observer.clone().unwrap();
    let response = site
        .call(async move |tx: DbTx| {
            tx.execute_unprepared("SET SESSION innodb_snapshot_isolation = ON")
                .await
                .unwrap();
            insert_item(&tx, "before").await;
            let _: i64 = value(&tx, "SELECT count(*) FROM item").await;
            other
                .execute_unprepared("UPDATE item SET hits = 1 WHERE id = 1")
                .await
                .unwrap();
            let error = known(
                tx.execute_unprepared("UPDATE item SET hits = 2 WHERE id = 1")
                    .await,
            );
            assert!(error.is_conflict());
            assert!(
                known(
                    tx.execute_unprepared("INSERT INTO item (name) VALUES ('after')")
                        .await
                )
                .is_aborted()
            );
        })
        .await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(retry_after(&response), Some("1"));
    assert_eq!(site.seen(["before", "after"]).await, [false, false]);
    site.assert_whole().await;
}

/// On PostgreSQL; sqlx rolls back the surrounding transaction where a SAVEPOINT fails.
#[tokio::test]
async fn h8_a_savepoint_in_an_aborted_transaction_harms_nothing_else() {
    for nested in [false, true] {
        let site = Site::new(Kind::Postgres).await;
        insert_item(&site.db, "taken").await;
        let fails = "INSERT INTO item (name) VALUES ('taken')";
        let response = site
            .call(async move |tx: DbTx| {
                insert_item(&tx, "before").await;
                if nested {
                    let inner = tx.begin().await.unwrap();
                    inner.execute_unprepared(fails).await.unwrap_err();
                    assert!(known(inner.begin().await).is_aborted());
                    assert!(known(inner.commit().await).is_aborted());
                    insert_item(&tx, "after").await;
                } else {
                    tx.execute_unprepared(fails).await.unwrap_err();
                    assert!(known(tx.begin().await).is_aborted());
                    tx.execute_unprepared("INSERT INTO item (name) VALUES ('after')")
                        .await
                        .unwrap_err();
                }
            })
            .await;
        let expected = if nested {
            StatusCode::OK
        } else {
            StatusCode::INTERNAL_SERVER_ERROR
        };
        assert_eq!(response.status(), expected, "nested: {nested}");
        assert_eq!(
            site.seen(["before", "after"]).await,
            [nested, nested],
            "nested: {nested}"
        );
        // Another request on the same connection, with a transaction of its own.
        let response = site
            .call(async |db: DbSession| {
                let tx = db.begin().await.unwrap();
                insert_item(&tx, "next").await;
                tx.commit().await.unwrap();
            })
            .await;
        assert_eq!(response.status(), StatusCode::OK, "nested: {nested}");
        assert_eq!(site.count("next").await, 1, "nested: {nested}");
        site.assert_whole().await;
    }
}
