//! G7: SeaORM's `MockDatabase` under the layer.

use std::collections::BTreeMap;

use axum::{Router, routing::get};
use http::StatusCode;
use sea_orm::{
    ConnectionTrait, DbBackend, MockDatabase, MockExecResult, Statement, Transaction,
    TransactionTrait, Value,
};
use tower_sea_orm::DbSession;

use crate::support::{
    pool::session_layer,
    requests::{Failed, send, text},
};

#[tokio::test]
async fn a_mock_database_answers_and_logs_the_transaction() {
    let row = BTreeMap::from([("name", Value::from("from the mock"))]);
    let db = MockDatabase::new(DbBackend::Postgres)
        .append_query_results([[row]])
        .append_exec_results([MockExecResult {
            last_insert_id: 1,
            rows_affected: 1,
        }])
        .into_connection();
    let select = || Statement::from_string(DbBackend::Postgres, "SELECT name FROM item");
    let insert =
        || Statement::from_string(DbBackend::Postgres, "INSERT INTO item (name) VALUES ('x')");
    let app = Router::new()
        .route(
            "/",
            get(async move |db: DbSession| {
                let name = db
                    .query_one_raw(select())
                    .await?
                    .unwrap()
                    .try_get::<String>("", "name")?;
                let tx = db.begin().await?;
                tx.execute_raw(insert()).await?;
                tx.commit().await?;
                Ok::<_, Failed>(name)
            }),
        )
        .layer(session_layer(db.clone()));
    let answer = send(&app, "/").await;
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(text(answer).await, "from the mock");
    let begin = Statement::from_string(DbBackend::Postgres, "BEGIN");
    let commit = Statement::from_string(DbBackend::Postgres, "COMMIT");
    let expected = [
        Transaction::one(select()),
        Transaction::many([begin, insert(), commit]),
    ];
    assert_eq!(db.into_transaction_log(), expected);
}

#[tokio::test]
async fn a_mock_transaction_that_is_dropped_is_rolled_back() {
    let db = MockDatabase::new(DbBackend::Postgres).into_connection();
    let app = Router::new()
        .route(
            "/",
            get(async |db: DbSession| drop(db.begin().await.unwrap())),
        )
        .layer(session_layer(db.clone()));
    assert_eq!(send(&app, "/").await.status(), StatusCode::OK);
    let log = format!("{:?}", db.into_transaction_log());
    assert!(log.contains("ROLLBACK") && !log.contains("COMMIT"), "{log}");
}
