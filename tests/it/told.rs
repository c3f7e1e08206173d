//! What the log is told of transactions: the first cause, and what has no effect without one.

use http::StatusCode;
use sea_orm::{ConnectionTrait, Statement};
use tower_sea_orm::{DbSession, DbTx};

use crate::{
    support::{
        database::{Kind, insert_item},
        site::Site,
    },
    telemetry::Log,
};

#[tokio::test]
async fn the_error_line_of_an_aborted_transaction_names_its_first_failure() {
    let site = Site::new(Kind::Postgres).await;
    insert_item(&site.db, "taken").await;
    let (log, _guard) = Log::start();
    let response = site
        .call(async |tx: DbTx| {
            tx.execute_unprepared("INSERT INTO item (name) VALUES ('taken')").await.unwrap_err();
            tx.execute_unprepared("UPDATE item SET hits = 7").await.unwrap_err();
        })
        .await;
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    let lines: Vec<_> = log.lines().into_iter().filter(|line| line.starts_with("ERROR")).collect();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("INSERT INTO item (name) VALUES (?)"), "{lines:?}");
    assert!(lines[0].contains("item_name"), "the server's own words: {lines:?}");
    assert!(!lines[0].contains("UPDATE"), "{lines:?}");
}

#[tokio::test]
async fn what_has_no_effect_without_a_transaction_is_told_once_for_each_text() {
    for kind in [Kind::Postgres, Kind::MySql] {
        let site = Site::new(kind).await;
        let (log, _guard) = Log::start();
        // Other tests of this process may have told of the usual texts.
        let locking = Box::leak(format!("SELECT id AS {kind:?}_told FROM item FOR UPDATE").into_boxed_str());
        for _ in 0..3 {
            let sql: &'static str = locking;
            site.call(async move |db: DbSession| {
                db.query_all_raw(Statement::from_string(db.backend(), sql)).await.unwrap();
            })
            .await;
            site.call(async move |tx: DbTx| {
                tx.query_all_raw(Statement::from_string(tx.backend(), "SELECT name FROM item FOR UPDATE"))
                    .await
                    .unwrap();
            })
            .await;
        }
        let lines: Vec<_> = log.lines().into_iter().filter(|line| line.starts_with("WARN")).collect();
        assert_eq!(lines.len(), 1, "{kind:?}: {lines:?}");
        assert!(lines[0].contains("DbTx") && lines[0].contains("FOR UPDATE"), "{kind:?}: {lines:?}");
    }
}
