//! SeaORM with a transaction made by hand in every handler.

use axum::{
    Json, Router,
    extract::{Path, State},
    routing::{get, post},
};
use sea_orm::{DatabaseConnection, TransactionTrait};

use crate::{error::AppError, item, store};

pub fn router(db: DatabaseConnection) -> Router {
    Router::new()
        .route("/none/{id}", get(none))
        .route("/one/{id}", get(one))
        .route("/five/{id}", get(five))
        .route("/touch/{id}", post(touch))
        .route("/slow/{id}", get(slow))
        .with_state(db)
}

async fn none(Path(id): Path<i32>) -> Json<item::Model> {
    Json(item::constant(id))
}

async fn one(
    State(db): State<DatabaseConnection>,
    Path(id): Path<i32>,
) -> Result<Json<item::Model>, AppError> {
    let tx = db.begin().await?;
    let item = store::one(&tx, id).await?;
    tx.commit().await?;
    Ok(Json(item))
}

async fn five(
    State(db): State<DatabaseConnection>,
    Path(id): Path<i32>,
) -> Result<Json<Vec<item::Model>>, AppError> {
    let tx = db.begin().await?;
    let items = store::five(&tx, id).await?;
    tx.commit().await?;
    Ok(Json(items))
}

async fn touch(
    State(db): State<DatabaseConnection>,
    Path(id): Path<i32>,
) -> Result<Json<item::Model>, AppError> {
    let tx = db.begin().await?;
    let item = store::touch(&tx, id).await?;
    tx.commit().await?;
    Ok(Json(item))
}

async fn slow(
    State(db): State<DatabaseConnection>,
    Path(id): Path<i32>,
) -> Result<Json<item::Model>, AppError> {
    let tx = db.begin().await?;
    store::one(&tx, id).await?;
    item::elsewhere().await;
    let item = store::one(&tx, id).await?;
    tx.commit().await?;
    Ok(Json(item))
}
