//! What one writes first: a middleware takes a connection from sqlx's pool and leaves it in the request's
//! extensions. It loses the connection's state in more ways than the crate's tests can count.

use std::sync::Arc;

use axum::{
    Extension, Json, Router,
    extract::{Path, Request, State},
    middleware::{Next, from_fn_with_state},
    response::Response,
    routing::{get, post},
};
use sqlx::{Connection, PgPool, Postgres, pool::PoolConnection};
use tokio::sync::Mutex;

use crate::{error::AppError, item, sql};

type Pinned = Extension<Arc<Mutex<PoolConnection<Postgres>>>>;

pub fn router(pool: PgPool) -> Router {
    Router::new()
        .route("/none/{id}", get(none))
        .route("/one/{id}", get(one))
        .route("/five/{id}", get(five))
        .route("/touch/{id}", post(touch))
        .route("/slow/{id}", get(slow))
        .route_layer(from_fn_with_state(pool, pin))
}

async fn pin(
    State(pool): State<PgPool>,
    mut request: Request,
    next: Next,
) -> Result<Response, AppError> {
    let connection = pool.acquire().await?;
    request
        .extensions_mut()
        .insert(Arc::new(Mutex::new(connection)));
    Ok(next.run(request).await)
}

async fn none(Path(id): Path<i32>) -> Json<item::Model> {
    Json(item::constant(id))
}

async fn one(Extension(db): Pinned, Path(id): Path<i32>) -> Result<Json<item::Model>, AppError> {
    sql::one(&mut *db.lock().await, id).await.map(Json)
}

async fn five(
    Extension(db): Pinned,
    Path(id): Path<i32>,
) -> Result<Json<Vec<item::Model>>, AppError> {
    sql::five(&mut *db.lock().await, id).await.map(Json)
}

async fn touch(Extension(db): Pinned, Path(id): Path<i32>) -> Result<Json<item::Model>, AppError> {
    let mut db = db.lock().await;
    let mut tx = db.begin().await?;
    let item = sql::touch(&mut tx, id).await?;
    tx.commit().await?;
    Ok(Json(item))
}

async fn slow(Extension(db): Pinned, Path(id): Path<i32>) -> Result<Json<item::Model>, AppError> {
    let mut db = db.lock().await;
    sql::one(&mut db, id).await?;
    item::elsewhere().await;
    sql::one(&mut db, id).await.map(Json)
}
