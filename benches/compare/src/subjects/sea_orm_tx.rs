//! axum-sea-orm-tx: a middleware that begins a transaction for every request.

use axum::{
    Json, Router,
    extract::Path,
    middleware::from_fn_with_state,
    routing::{get, post},
};
use axum_sea_orm_tx::{Tx, transaction};
use sea_orm::DatabaseConnection;

use crate::{error::AppError, item, store};

pub fn router(db: DatabaseConnection) -> Router {
    Router::new()
        .route("/none/{id}", get(none))
        .route("/one/{id}", get(one))
        .route("/five/{id}", get(five))
        .route("/touch/{id}", post(touch))
        .route("/slow/{id}", get(slow))
        .route_layer(from_fn_with_state(db, transaction))
}

async fn none(Path(id): Path<i32>) -> Json<item::Model> {
    Json(item::constant(id))
}

async fn one(tx: Tx, Path(id): Path<i32>) -> Result<Json<item::Model>, AppError> {
    store::one(&*tx, id).await.map(Json)
}

async fn five(tx: Tx, Path(id): Path<i32>) -> Result<Json<Vec<item::Model>>, AppError> {
    store::five(&*tx, id).await.map(Json)
}

async fn touch(tx: Tx, Path(id): Path<i32>) -> Result<Json<item::Model>, AppError> {
    store::touch(&*tx, id).await.map(Json)
}

async fn slow(tx: Tx, Path(id): Path<i32>) -> Result<Json<item::Model>, AppError> {
    store::one(&*tx, id).await?;
    item::elsewhere().await;
    store::one(&*tx, id).await.map(Json)
}
