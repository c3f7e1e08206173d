//! G17: a prepared statement whose plan has become stale (`is_stale_plan`).

use axum::http::StatusCode;
use futures_util::StreamExt;
use sea_orm::{ConnectionTrait, DbErr, Statement, TransactionTrait};
use tower_sea_orm::{DbSession, DbTx};

use crate::support::{
    database::{Kind, TestDb, insert_item},
    requests::status,
    site::{Site, retry_after},
};

async fn one_connection() -> Site {
    let test = TestDb::new(Kind::Postgres).await;
    let db = test.connect(1).await;
    Site::with(test, db, 1).await
}

/// Every way to run a prepared statement, each with a different text.
async fn run_all(db: &DbSession) -> Result<(), DbErr> {
    let statement = |sql: &str| Statement::from_sql_and_values(db.backend(), sql, [1.into()]);
    db.query_one_raw(statement("SELECT *, 1 FROM item WHERE id = $1"))
        .await?;
    db.query_all_raw(statement("SELECT *, 2 FROM item WHERE id = $1"))
        .await?;
    db.execute_raw(statement("SELECT *, 3 FROM item WHERE id = $1"))
        .await?;
    let mut rows = db
        .rows(statement("SELECT *, 4 FROM item WHERE id = $1"))
        .await?;
    while let Some(row) = rows.next().await {
        row?;
    }
    Ok(())
}

/// Makes the prepared statements of the pool's only connection stale.
async fn make_stale(site: &Site, how: &'static str) {
    if how.starts_with("ALTER") {
        site.run(how).await;
    } else {
        let response = site
            .call(async move |db: DbSession| status(db.execute_unprepared(how).await))
            .await;
        assert_eq!(response.status(), StatusCode::OK, "{how}");
    }
}

/// What a session does itself, seen by its text, costs no request.
const SEEN: [&str; 2] = ["DISCARD ALL", "DEALLOCATE ALL"];

const STALE: [&str; 4] = [
    "ALTER TABLE item ADD COLUMN more integer",
    "DISCARD ALL",
    "DEALLOCATE ALL",
    "DO $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$",
];

#[tokio::test]
async fn a_stale_plan_in_autocommit_is_prepared_again() {
    for how in STALE {
        let site = one_connection().await;
        for round in 0..3 {
            let response = site
                .call(async |db: DbSession| status(run_all(&db).await))
                .await;
            assert_eq!(response.status(), StatusCode::OK, "{how}, round {round}");
            if round == 0 {
                make_stale(&site, how).await;
            }
        }
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn a_stale_plan_in_a_transaction_costs_one_request() {
    for how in STALE {
        for nested in [false, true] {
            let site = one_connection().await;
            let request = async || {
                site.call(async move |tx: DbTx| {
                    if !nested {
                        return status(run_all(&tx).await);
                    }
                    let inner = tx.begin().await.unwrap();
                    let statement = Statement::from_string(tx.backend(), "SELECT * FROM item");
                    status(inner.query_all_raw(statement).await)
                })
                .await
            };
            assert_eq!(request().await.status(), StatusCode::OK);
            make_stale(&site, how).await;
            let response = request().await;
            if SEEN.contains(&how) {
                assert_eq!(response.status(), StatusCode::OK, "{how}");
            } else {
                assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE, "{how}");
                assert_eq!(retry_after(&response), Some("1"));
            }
            assert_eq!(request().await.status(), StatusCode::OK, "{how}");
            site.assert_whole().await;
        }
    }
}

/// DDL, prepared or not, between two runs of one statement.
async fn around_ddl(db: &DbSession, ddl: &str, is_prepared: bool) -> Result<(), DbErr> {
    let select = || Statement::from_string(db.backend(), "SELECT * FROM item");
    db.query_all_raw(select()).await?;
    if is_prepared {
        let ddl = Statement::from_string(db.backend(), ddl);
        db.execute_raw(ddl).await?;
    } else {
        db.execute_unprepared(ddl).await?;
    }
    let rows = db.query_all_raw(select()).await?;
    assert_eq!(rows[0].column_names().len(), 4, "{ddl}");
    Ok(())
}

#[tokio::test]
async fn a_request_may_change_the_tables_that_it_reads() {
    for kind in Kind::ALL {
        for (ddl, is_prepared) in [
            ("ALTER TABLE item ADD COLUMN more integer", false),
            ("ALTER TABLE item ADD COLUMN more integer", true),
            ("SELECT 1; ALTER TABLE item ADD COLUMN more integer", false),
        ] {
            for in_transaction in [false, true] {
                if in_transaction && kind == Kind::MySql {
                    continue; // it would commit
                }
                let test = TestDb::new(kind).await;
                let db = test.connect(1).await;
                let site = Site::with(test, db, 1).await;
                insert_item(&site.db, "one").await;
                let response = site
                    .call(async move |db: DbSession| {
                        if in_transaction {
                            db.tx();
                        }
                        status(around_ddl(&db, ddl, is_prepared).await)
                    })
                    .await;
                assert_eq!(
                    response.status(),
                    StatusCode::OK,
                    "{kind:?} {ddl} {is_prepared} {in_transaction}"
                );
                site.assert_whole().await;
            }
        }
    }
}

#[tokio::test]
async fn a_rollback_of_ddl_leaves_no_stale_plan_behind() {
    for nested in [false, true] {
        let site = one_connection().await;
        insert_item(&site.db, "one").await;
        let response = site
            .call(async move |tx: DbTx| {
                let ddl = "ALTER TABLE item ADD COLUMN more integer";
                if nested {
                    let inner = tx.begin().await.unwrap();
                    let select = || Statement::from_string(tx.backend(), "SELECT * FROM item");
                    inner.execute_unprepared(ddl).await.unwrap();
                    inner.query_all_raw(select()).await.unwrap();
                    inner.rollback().await.unwrap();
                    return status(tx.query_all_raw(select()).await);
                }
                around_ddl(&tx, ddl, false).await.unwrap();
                StatusCode::BAD_REQUEST
            })
            .await;
        let expected = if nested {
            StatusCode::OK
        } else {
            StatusCode::BAD_REQUEST
        };
        assert_eq!(response.status(), expected);
        let response = site
            .call(async |tx: DbTx| {
                let select = Statement::from_string(tx.backend(), "SELECT * FROM item");
                status(tx.query_all_raw(select).await)
            })
            .await;
        assert_eq!(response.status(), StatusCode::OK, "{nested}");
        site.assert_whole().await;
    }
}
