//! The ready observers: what they measure, and under which names.

mod conventions;
mod metrics;
mod opentelemetry;

use axum::{
    Router,
    body::Body,
    extract::MatchedPath,
    routing::{get, post},
};
use http::{Request, StatusCode};
use sea_orm::{ConnectionTrait, TransactionTrait};
use tower::ServiceExt;
use tower_sea_orm::{DbSession, DbSessionLayer, DbTx, SessionPool, SessionTransaction};

use crate::support::database::{insert_item, unique_name};

/// A service with a transaction, a failure and a reader.
fn app(pool: &SessionPool) -> Router {
    let layer = DbSessionLayer::new(pool.clone())
        .lazy()
        .http_route(|parts| Some(parts.extensions.get::<MatchedPath>()?.as_str().into()));
    let write = post(async |tx: DbTx| insert_item(&tx, &unique_name()).await);
    let fail = get(async |db: DbSession| {
        let sql = "SELECT 'secret' FROM nowhere";
        db.execute_unprepared(sql).await.unwrap_err();
        StatusCode::CONFLICT
    });
    let read = get(async |db: DbSession| {
        db.execute_unprepared("SELECT 'secret'").await.unwrap();
    });
    Router::new()
        .route("/items/{id}", read)
        .route("/items", write)
        .route("/fail/{id}", fail)
        .route_layer(layer)
}

async fn call(app: &Router, method: &str, path: &str) -> StatusCode {
    let request = Request::builder().method(method).uri(path);
    let request = request.body(Body::empty()).unwrap();
    app.clone().oneshot(request).await.unwrap().status()
}

/// Holds the session's connection, also where sessions lend theirs between statements.
async fn hold(session: &DbSession) -> SessionTransaction {
    let transaction = session.begin().await.unwrap();
    insert_item(&transaction, &unique_name()).await;
    transaction
}

/// Each kind of request, some of them with identifiers in their paths.
async fn load(app: &Router) {
    for id in 0..5 {
        let path = format!("/items/raw-{id}");
        assert_eq!(call(app, "GET", &path).await, StatusCode::OK);
    }
    assert_eq!(call(app, "POST", "/items").await, StatusCode::OK);
    for id in 0..3 {
        let path = format!("/fail/raw-{id}");
        assert_eq!(call(app, "GET", &path).await, StatusCode::CONFLICT);
    }
}
