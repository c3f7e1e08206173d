//! The GraphQL service: what a mutation keeps, what its client reads, hang-ups, exhaustion.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[allow(dead_code, reason = "its `main` is for its users")]
#[path = "../src/bin/graphql.rs"]
mod example;
mod support;

use std::time::Duration;

use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tower_sea_orm::{DbSessionLayer, SessionPool};

use self::support::{Kind, Site};

async fn served(pool: &SessionPool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/graphql", listener.local_addr().unwrap());
    let app = example::app(DbSessionLayer::new(pool.clone()));
    tokio::spawn(axum::serve(listener, app).into_future());
    url
}

async fn ask(url: &str, query: &str) -> (StatusCode, Value) {
    let request = reqwest::Client::new().post(url);
    let response = request.json(&json!({ "query": query })).send().await;
    let response = response.unwrap();
    let status = response.status();
    (status, response.json().await.unwrap_or_default())
}

#[tokio::test]
async fn a_mutation_is_one_transaction() {
    for kind in Kind::ALL {
        let site = Site::new(kind, 2).await;
        let url = served(&site.pool).await;
        let both = "mutation { a: take(id: 1, pieces: 3) { pieces } b: take(id: 2, pieces: 4) { pieces } }";
        let (status, answer) = ask(&url, both).await;
        assert_eq!(status, StatusCode::OK);
        let data = json!({ "a": { "pieces": 7 }, "b": { "pieces": 6 } });
        assert_eq!(answer, json!({ "data": data }), "{kind:?}");
        assert_eq!((site.pieces(1).await, site.pieces(2).await), (7, 6));

        let half = "mutation { a: take(id: 1, pieces: 3) { pieces } b: take(id: 2, pieces: 7) { pieces } }";
        let (status, answer) = ask(&url, half).await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(answer["data"], Value::Null);
        assert_eq!(answer["errors"][0]["message"], "not in stock");
        assert_eq!(answer["errors"][0]["path"], json!(["b"]));
        assert_eq!((site.pieces(1).await, site.pieces(2).await), (7, 6));
        site.assert_whole().await;
    }
}

/// PostgreSQL has aborted the transaction. The layer would replace a 200 then, but for `set_rollback_only()`: this
/// 200 promises nothing.
#[tokio::test]
async fn the_error_of_a_statement_reaches_the_client_as_a_field_error() {
    for kind in Kind::ALL {
        let site = Site::new(kind, 2).await;
        let url = served(&site.pool).await;
        let taken =
            r#"mutation { take(id: 1, pieces: 3) { pieces } add(id: 2, name: "chair") { id } }"#;
        let (status, answer) = ask(&url, taken).await;
        assert_eq!(status, StatusCode::OK, "{kind:?}");
        let error = &answer["errors"][0];
        assert_eq!(error["message"], "the database failed");
        assert_eq!(error["path"], json!(["add"]));
        assert_eq!(error["extensions"]["code"], "INTERNAL");
        assert_eq!(site.pieces(1).await, 10, "{kind:?}");
        let (_, answer) = ask(&url, r#"mutation { add(id: 3, name: "chair") { name } }"#).await;
        assert_eq!(answer, json!({ "data": { "add": { "name": "chair" } } }));
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn a_query_reads_on_one_session_and_its_loader_asks_once() {
    for kind in Kind::ALL {
        let site = Site::new(kind, 1).await;
        let url = served(&site.pool).await;
        let query = "{ a: item(id: 1) { name } b: item(id: 2) { name } c: item(id: 9) { name } items { id } }";
        let (_, answer) = ask(&url, query).await;
        let data = json!({
            "a": { "name": "lamp" }, "b": { "name": "table" }, "c": null,
            "items": [{ "id": 1 }, { "id": 2 }]
        });
        assert_eq!(answer, json!({ "data": data }), "{kind:?}");
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn a_busy_pool_is_a_field_error() {
    let set =
        |pool: tower_sea_orm::SessionPoolBuilder| pool.acquire_timeout(Duration::from_millis(300));
    let site = Site::with(Kind::Postgres, 1, set).await;
    let url = served(&site.pool).await;
    let all = site.session().await;
    // No statement, no connection.
    let (_, answer) = ask(&url, "{ __typename }").await;
    assert_eq!(answer, json!({ "data": { "__typename": "Query" } }));

    let queries = [
        "{ items { id } }",
        "mutation { take(id: 1, pieces: 1) { pieces } }",
    ];
    for query in queries {
        let (status, answer) = ask(&url, query).await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(answer["errors"][0]["extensions"]["code"], "UNAVAILABLE");
    }
    drop(all);
    site.returned().await;
    assert_eq!(site.pieces(1).await, 10);
    site.assert_whole().await;
}

#[tokio::test]
async fn a_mutation_whose_client_hangs_up_is_rolled_back() {
    // The statement ends with its request: by that the test sees that the server has noticed the hang-up.
    let site = Site::with(Kind::Postgres, 2, |pool| pool.cancel_running()).await;
    let url = served(&site.pool).await;
    let lock = site.lock(2).await;
    let query = "mutation { a: take(id: 1, pieces: 3) { id } b: take(id: 2, pieces: 3) { id } }";
    let call = tokio::spawn(async move { ask(&url, query).await });
    site.blocked(1).await;
    call.abort();
    site.returned().await;
    drop(lock);
    assert_eq!((site.pieces(1).await, site.pieces(2).await), (10, 10));
    site.assert_whole().await;
}
