//! The example `items`, tested as its users would test their own service: on a real database
//! that keeps nothing of it, and on a mock.

#[allow(
    dead_code,
    clippy::print_stdout,
    reason = "its `main` is for its users"
)]
#[path = "../../../examples/items.rs"]
mod example;

use axum::{Router, body::Body};
use http::{Request, StatusCode, header};
use sea_orm::{DbBackend, DbErr, MockDatabase, MockExecResult, RuntimeErr};
use serde_json::{Value, json};
use tower::ServiceExt;
use tower_sea_orm::testing::TestPool;

use crate::support::{
    database::{Kind, TestDb},
    pool::{assert_whole, session_pool},
};

async fn call(app: &Router, method: &str, path: &str, body: Value) -> (StatusCode, Value) {
    let body = if body.is_null() {
        Body::empty()
    } else {
        Body::from(body.to_string())
    };
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::CONTENT_TYPE, "application/json");
    let response = app
        .clone()
        .oneshot(request.body(body).unwrap())
        .await
        .unwrap();
    let status = response.status();
    let body = axum::body::to_bytes(response.into_body(), 10_000)
        .await
        .unwrap();
    (status, serde_json::from_slice(&body).unwrap_or_default())
}

#[tokio::test]
async fn the_items_example_works_on_every_database_and_leaves_nothing_behind() {
    for kind in Kind::ALL {
        let database = TestDb::new(kind).await;
        let db = database.connect(1).await;
        // The example's own table is made before, because MySQL would commit by that.
        sea_orm::ConnectionTrait::execute_unprepared(&db, "DROP TABLE item")
            .await
            .unwrap();
        example::create_table(&session_pool(db.clone()))
            .await
            .unwrap();
        let test = TestPool::begin(db.clone()).await.unwrap();
        let app = example::app(test.pool());

        let (status, lamp) = call(&app, "POST", "/items", json!({ "name": "lamp" })).await;
        assert_eq!(
            (status, &lamp["name"]),
            (StatusCode::CREATED, &json!("lamp")),
            "{kind:?}"
        );
        let path = format!("/items/{}", lamp["id"]);
        assert_eq!(
            call(&app, "GET", &path, Value::Null).await,
            (StatusCode::OK, lamp.clone())
        );
        let (status, renamed) = call(&app, "PUT", &path, json!({ "name": "desk lamp" })).await;
        assert_eq!(
            (status, &renamed["before"]),
            (StatusCode::OK, &json!("lamp"))
        );
        assert_eq!(
            call(&app, "GET", "/items", Value::Null).await.1,
            json!([renamed["item"]])
        );
        assert_eq!(
            call(&app, "DELETE", &path, Value::Null).await.0,
            StatusCode::NO_CONTENT
        );
        for method in ["GET", "DELETE"] {
            assert_eq!(
                call(&app, method, &path, Value::Null).await.0,
                StatusCode::NOT_FOUND
            );
        }
        assert_eq!(
            call(&app, "PUT", &path, json!({ "name": "late" })).await.0,
            StatusCode::NOT_FOUND
        );

        test.rollback().await.unwrap();
        let app = example::app(session_pool(db.clone()));
        assert_eq!(
            call(&app, "GET", "/items", Value::Null).await,
            (StatusCode::OK, json!([])),
            "{kind:?}"
        );
        // The check expects the tests' own table.
        sea_orm::ConnectionTrait::execute_unprepared(&db, "DROP TABLE item")
            .await
            .unwrap();
        for sql in kind.schema() {
            sea_orm::ConnectionTrait::execute_unprepared(&db, sql)
                .await
                .unwrap();
        }
        assert_whole(&database, &db, 1).await;
    }
}

#[tokio::test]
async fn the_items_example_works_on_a_mock_and_logs_its_transactions() {
    let lamp = example::item::Model {
        id: 1,
        name: "lamp".to_owned(),
    };
    let renamed = example::item::Model {
        id: 1,
        name: "desk lamp".to_owned(),
    };
    let db = MockDatabase::new(DbBackend::Postgres)
        .append_query_results([vec![lamp], vec![renamed], vec![]])
        .into_connection();
    let app = example::app(session_pool(db.clone()));
    let new = json!({ "name": "desk lamp" });
    assert_eq!(
        call(&app, "PUT", "/items/1", new.clone()).await.0,
        StatusCode::OK
    );
    assert_eq!(
        call(&app, "PUT", "/items/1", new).await.0,
        StatusCode::NOT_FOUND
    );
    drop(app);
    let log = format!("{:?}", db.into_transaction_log());
    let (first, second) = (log.find("COMMIT").unwrap(), log.find("ROLLBACK").unwrap());
    assert!(first < second && log.matches("BEGIN").count() == 2, "{log}");

    let failure = DbErr::Exec(RuntimeErr::Internal("secret".to_owned()));
    let db = MockDatabase::new(DbBackend::Postgres)
        .append_exec_errors([failure])
        .append_exec_results([MockExecResult {
            last_insert_id: 0,
            rows_affected: 1,
        }])
        .into_connection();
    let app = example::app(session_pool(db));
    let failed = call(&app, "DELETE", "/items/1", Value::Null).await;
    assert_eq!(
        failed,
        (StatusCode::INTERNAL_SERVER_ERROR, Value::Null),
        "no database text for the client"
    );
    assert_eq!(
        call(&app, "DELETE", "/items/1", Value::Null).await.0,
        StatusCode::NO_CONTENT
    );
}
