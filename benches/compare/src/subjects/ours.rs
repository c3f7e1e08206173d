//! This crate: autocommit, a transaction per request, or lazy, as the layer says.

use axum::{
    Json, Router,
    extract::Path,
    routing::{get, post},
};
use tower_sea_orm::{DbSession, DbSessionLayer, DbTx};

use crate::{error::AppError, item, store};

pub fn router(layer: DbSessionLayer) -> Router {
    Router::new()
        .route("/none/{id}", get(none))
        .route("/one/{id}", get(one))
        .route("/five/{id}", get(five))
        .route("/touch/{id}", post(touch))
        .route("/plain/{id}", get(plain))
        .route("/slow/{id}", get(slow))
        .route("/slow-release/{id}", get(slow_release))
        .route_layer(layer)
}

async fn none(Path(id): Path<i32>) -> Json<item::Model> {
    Json(item::constant(id))
}

async fn one(db: DbSession, Path(id): Path<i32>) -> Result<Json<item::Model>, AppError> {
    store::one(&db, id).await.map(Json)
}

async fn five(db: DbSession, Path(id): Path<i32>) -> Result<Json<Vec<item::Model>>, AppError> {
    store::five(&db, id).await.map(Json)
}

/// On the plain `DatabaseConnection` under the sessions.
async fn plain(db: DbSession, Path(id): Path<i32>) -> Result<Json<item::Model>, AppError> {
    store::one(db.pool().database(), id).await.map(Json)
}

async fn touch(tx: DbTx, Path(id): Path<i32>) -> Result<Json<item::Model>, AppError> {
    store::touch(&tx, id).await.map(Json)
}

async fn slow(db: DbSession, Path(id): Path<i32>) -> Result<Json<item::Model>, AppError> {
    store::one(&db, id).await?;
    item::elsewhere().await;
    store::one(&db, id).await.map(Json)
}

async fn slow_release(db: DbSession, Path(id): Path<i32>) -> Result<Json<item::Model>, AppError> {
    store::one(&db, id).await?;
    if db.is_transactional() {
        db.tx().commit().await?;
    }
    db.release().await?;
    item::elsewhere().await;
    store::one(&db, id).await.map(Json)
}
