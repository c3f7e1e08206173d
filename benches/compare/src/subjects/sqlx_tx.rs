//! axum-sqlx-tx: a transaction per request, begun by its extractor, on sqlx without SeaORM.

use axum::{
    Json, Router,
    extract::Path,
    routing::{get, post},
};
use sqlx::{PgPool, Postgres};

use crate::{error::AppError, item, sql};

type Tx = axum_sqlx_tx::Tx<Postgres>;

pub fn router(pool: PgPool) -> Router {
    let (state, layer) = Tx::setup(pool);
    Router::new()
        .route("/none/{id}", get(none))
        .route("/one/{id}", get(one))
        .route("/five/{id}", get(five))
        .route("/touch/{id}", post(touch))
        .route("/slow/{id}", get(slow))
        .layer(layer)
        .with_state(state)
}

async fn none(Path(id): Path<i32>) -> Json<item::Model> {
    Json(item::constant(id))
}

async fn one(mut tx: Tx, Path(id): Path<i32>) -> Result<Json<item::Model>, AppError> {
    sql::one(&mut tx, id).await.map(Json)
}

async fn five(mut tx: Tx, Path(id): Path<i32>) -> Result<Json<Vec<item::Model>>, AppError> {
    sql::five(&mut tx, id).await.map(Json)
}

async fn touch(mut tx: Tx, Path(id): Path<i32>) -> Result<Json<item::Model>, AppError> {
    sql::touch(&mut tx, id).await.map(Json)
}

async fn slow(mut tx: Tx, Path(id): Path<i32>) -> Result<Json<item::Model>, AppError> {
    sql::one(&mut tx, id).await?;
    item::elsewhere().await;
    sql::one(&mut tx, id).await.map(Json)
}
