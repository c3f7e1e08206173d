//! The service `shop`, tested as its authors would: copy what fits.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[allow(dead_code, reason = "its `main` is for its users")]
#[path = "../src/bin/shop.rs"]
mod shop;

use std::{env, time::Duration};

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{Request, StatusCode},
};
use sea_orm::{
    ActiveModelTrait, ActiveValue::Set, ConnectOptions, ConnectionTrait, Database, DbBackend,
    EntityTrait, MockDatabase, MockExecResult, PaginatorTrait, Statement, TransactionTrait,
};
use serde_json::{Value, json};
use tokio::time::timeout;
use tower::ServiceExt;
use tower_sea_orm::{SessionPool, testing::TestPool};

use self::shop::{app, article, migrate};

/// How long anything may take until it hangs.
const BOUND: Duration = Duration::from_secs(60);

/// One request, without a server.
async fn call(app: &Router, method: &str, path: &str, body: Value) -> (StatusCode, Value) {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", "application/json")
        .body(Body::from(body.to_string()))
        .unwrap();
    let response = app.clone().oneshot(request).await.unwrap();
    let status = response.status();
    let body = to_bytes(response.into_body(), 10_000).await.unwrap();
    (status, serde_json::from_slice(&body).unwrap_or_default())
}

// --- SQLite in memory: a database for each test, gone with its pool ---

#[tokio::test]
async fn an_article_is_sold_until_there_is_none() {
    let db = Database::connect("sqlite::memory:").await.unwrap();
    migrate(&db).await.unwrap();
    let app = app(SessionPool::new(db));

    let (status, lamp) = call(
        &app,
        "POST",
        "/articles",
        json!({ "name": "lamp", "pieces": 3 }),
    )
    .await;
    assert_eq!(status, StatusCode::CREATED);
    let path = format!("/articles/{}", lamp["id"]);
    let orders = format!("{path}/orders");
    assert_eq!(call(&app, "POST", &orders, json!(2)).await.1["pieces"], 1);
    assert_eq!(call(&app, "POST", &orders, json!(2)).await.0, 409);
    // The 409 has rolled back.
    assert_eq!(call(&app, "GET", &path, json!(null)).await.1["pieces"], 1);
}

// --- PostgreSQL: one database for all tests, which run side by side ---

/// A transaction on the tests' database that is rolled back after the test.
async fn test_pool() -> TestPool {
    let url = env::var("TEST_POSTGRES_URL")
        .expect("TEST_POSTGRES_URL: a server for tests, which `run` starts");
    // Each test has a pool of its own, because each has a runtime of its own.
    let mut options = ConnectOptions::new(url);
    options.max_connections(1).sqlx_logging(false);
    let db = Database::connect(options).await.unwrap();
    // Before the test's transaction. The first test to come migrates, the others wait for it.
    migrate(&db).await.unwrap();
    TestPool::begin(db).await.unwrap()
}

/// A row of the test's own: two tests that change the same row would wait for each other.
async fn lamp(test: &TestPool) -> article::Model {
    let session = test.session().await.unwrap();
    let lamp = article::ActiveModel {
        name: Set("lamp".to_owned()),
        pieces: Set(10),
        ..Default::default()
    };
    lamp.insert(&*session).await.unwrap()
}

#[tokio::test]
async fn an_order_is_committed_and_its_mail_sent() {
    let test = test_pool().await;
    let (app, lamp) = (app(test.pool()), lamp(&test).await);
    let orders = format!("/articles/{}/orders", lamp.id);
    let ordering = call(&app, "POST", &orders, json!(3));
    // No statement for each piece.
    let (status, left) = test.assert_statements(2, ordering).await;
    assert_eq!((status, &left["pieces"]), (StatusCode::OK, &json!(7)));
    assert_eq!(test.run_hooks().await, 1);

    let session = test.session().await.unwrap();
    let stored = article::Entity::find_by_id(lamp.id).one(&*session).await;
    assert_eq!(stored.unwrap().unwrap().pieces, 7);
    drop(session);
    test.rollback().await.unwrap();
}

#[tokio::test]
async fn an_order_that_is_refused_changes_nothing_and_sends_nothing() {
    let test = test_pool().await;
    let (app, lamp) = (app(test.pool()), lamp(&test).await);
    let path = format!("/articles/{}", lamp.id);
    let refused = call(&app, "POST", &format!("{path}/orders"), json!(11)).await;
    assert_eq!(refused.0, StatusCode::CONFLICT);
    assert_eq!(call(&app, "GET", &path, json!(null)).await.1["pieces"], 10);
    assert_eq!(test.hooks(), 0);
    test.rollback().await.unwrap();
}

#[tokio::test]
async fn a_test_sees_no_other_tests_articles() {
    let (one, other) = (test_pool().await, test_pool().await);
    for test in [&one, &other] {
        let lamp = lamp(test).await;
        let path = format!("/articles/{}", lamp.id);
        let app = app(test.pool());
        assert_eq!(call(&app, "GET", &path, json!(null)).await.0, 200);
    }
    for test in [one, other] {
        let session = test.session().await.unwrap();
        let count = article::Entity::find().count(&*session).await.unwrap();
        assert_eq!(count, 1, "its own");
        drop(session);
        test.rollback().await.unwrap();
    }
}

// --- A mock: no database, and a log of the statements ---

#[tokio::test]
async fn an_unknown_article_is_rolled_back() {
    let none = MockExecResult {
        last_insert_id: 0,
        rows_affected: 0,
    };
    let db = MockDatabase::new(DbBackend::Postgres)
        .append_exec_results([none])
        .append_query_results([Vec::<article::Model>::new()])
        .into_connection();
    let app = app(SessionPool::new(db.clone()));
    let answer = call(&app, "POST", "/articles/7/orders", json!(1)).await;
    assert_eq!(answer.0, StatusCode::NOT_FOUND);
    drop(app);
    let log = format!("{:?}", db.into_transaction_log());
    let places = ["BEGIN", "UPDATE", "SELECT", "ROLLBACK"].map(|word| log.find(word).unwrap());
    assert!(places.is_sorted(), "{log}");
}

// --- What the tests above rely on ---

#[tokio::test]
async fn nothing_of_a_test_is_left_and_instances_migrate_in_turn() {
    let test = test_pool().await;
    lamp(&test).await;
    let url = env::var("TEST_POSTGRES_URL").unwrap();
    let db = Database::connect(url).await.unwrap();
    // Another instance migrates, and has not committed yet.
    let other = db.begin().await.unwrap();
    let lock = "SELECT pg_advisory_xact_lock(20260101)";
    other.execute_unprepared(lock).await.unwrap();
    let migrating = tokio::spawn({
        let db = db.clone();
        async move { migrate(&db).await }
    });
    let waits = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'advisory'";
    let waits = Statement::from_string(DbBackend::Postgres, waits);
    let waiting = async {
        while db.query_one_raw(waits.clone()).await.unwrap().is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(BOUND, waiting).await.expect("it waits");
    other.commit().await.unwrap();
    timeout(BOUND, migrating).await.unwrap().unwrap().unwrap();

    let left = article::Entity::find().count(&db).await.unwrap();
    assert_eq!(left, 0, "what tests do is not committed");
    // The plain connection of a test's pool is closed: a migration there would stay after the test.
    let within = migrate(test.pool().database()).await.unwrap_err();
    assert!(within.to_string().contains("closed"), "{within}");
    test.rollback().await.unwrap();
}
