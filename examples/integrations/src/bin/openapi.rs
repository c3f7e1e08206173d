//! OpenAPI: the same handlers described by aide (at /aide) and by utoipa (at /utoipa).
//!
//! ```text
//! cargo run --bin openapi                                     # SQLite in memory
//! DATABASE_URL=postgres://user:password@localhost/db cargo run --bin openapi
//! ```
//!
//! It listens on 127.0.0.1, port 3000 or `PORT`. Try:
//!
//! ```text
//! curl localhost:3000/utoipa/openapi.json
//! curl -X POST localhost:3000/aide/items/1/take
//! ```
//!
//! A session is no part of a request that a client could see, so it has no place in the description. utoipa describes
//! what its attribute names, and a `DbSession` needs nothing. aide asks every argument of a handler about itself,
//! and `NoApi` answers in its place.

use std::{error::Error, sync::Arc};

use aide::{
    NoApi,
    axum::{
        ApiRouter,
        routing::{get_with, post_with},
    },
    openapi::OpenApi,
};
use axum::{Extension, Json, Router, extract::Path, http::StatusCode, routing::get};
use integrations::{item, start, stopped};
use sea_orm::{DbErr, EntityTrait};
use tower_sea_orm::{DbSession, DbSessionLayer, DbTx, SessionPool};
use utoipa::OpenApi as _;
use utoipa_axum::{router::OpenApiRouter, routes};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (pool, listener) = start().await?;
    axum::serve(listener, app(pool.clone()))
        .with_graceful_shutdown(stopped(pool))
        .await?;
    Ok(())
}

pub(crate) fn app(pool: SessionPool) -> Router {
    Router::new()
        .nest("/aide", by_aide())
        .nest("/utoipa", by_utoipa())
        // Lazy: the descriptions themselves cost no connection.
        .layer(DbSessionLayer::new(pool).lazy())
}

#[derive(serde::Serialize, schemars::JsonSchema, utoipa::ToSchema)]
struct Item {
    id: i32,
    name: String,
    pieces: i32,
}

/// The path's parameter by name, for aide.
#[derive(serde::Deserialize, schemars::JsonSchema)]
struct ItemPath {
    id: i32,
}

fn by_aide() -> Router {
    let mut api = OpenApi::default();
    let router = ApiRouter::new()
        .api_route(
            "/items/{id}",
            get_with(aide_read, |read| {
                read.summary("An item")
                    .response_with::<404, (), _>(|gone| gone.description("No such item"))
            }),
        )
        .api_route(
            "/items/{id}/take",
            post_with(aide_take, |take| {
                take.summary("Takes a piece")
                    .response_with::<409, (), _>(|gone| gone.description("Not in stock"))
            }),
        )
        .finish_api(&mut api);
    router
        .route("/openapi.json", get(aide_api))
        .layer(Extension(Arc::new(api)))
}

async fn aide_api(Extension(api): Extension<Arc<OpenApi>>) -> Json<Arc<OpenApi>> {
    Json(api)
}

async fn aide_read(
    NoApi(db): NoApi<DbSession>,
    Path(ItemPath { id }): Path<ItemPath>,
) -> Result<Json<Item>, StatusCode> {
    read(db, id).await
}

async fn aide_take(
    NoApi(tx): NoApi<DbTx>,
    Path(ItemPath { id }): Path<ItemPath>,
) -> Result<Json<Item>, StatusCode> {
    take(tx, id).await
}

#[derive(utoipa::OpenApi)]
#[openapi(info(title = "Shop", description = ""))]
struct Api;

fn by_utoipa() -> Router {
    let (router, api) = OpenApiRouter::with_openapi(Api::openapi())
        .routes(routes!(utoipa_read))
        .routes(routes!(utoipa_take))
        .split_for_parts();
    router.route("/openapi.json", get(async || Json(api)))
}

/// An item
#[utoipa::path(
    get,
    path = "/items/{id}",
    params(("id" = i32, Path)),
    responses((status = 200, body = Item), (status = 404, description = "No such item")),
)]
async fn utoipa_read(db: DbSession, Path(id): Path<i32>) -> Result<Json<Item>, StatusCode> {
    read(db, id).await
}

/// Takes a piece
#[utoipa::path(
    post,
    path = "/items/{id}/take",
    params(("id" = i32, Path)),
    responses((status = 200, body = Item), (status = 409, description = "Not in stock")),
)]
async fn utoipa_take(tx: DbTx, Path(id): Path<i32>) -> Result<Json<Item>, StatusCode> {
    take(tx, id).await
}

async fn read(db: DbSession, id: i32) -> Result<Json<Item>, StatusCode> {
    let found = item::Entity::find_by_id(id)
        .one(&db)
        .await
        .map_err(failed)?;
    found
        .map(|found| Json(found.into()))
        .ok_or(StatusCode::NOT_FOUND)
}

async fn take(tx: DbTx, id: i32) -> Result<Json<Item>, StatusCode> {
    let left = item::take(&tx, id, 1).await.map_err(failed)?;
    let left = left.ok_or(StatusCode::NOT_FOUND)?;
    if left.pieces < 0 {
        return Err(StatusCode::CONFLICT); // rolls back
    }
    Ok(Json(left.into()))
}

/// The client gets a status, the log gets the cause.
fn failed(error: DbErr) -> StatusCode {
    tracing::error!("{error}");
    let known = tower_sea_orm::Error::of(&error);
    known.map_or(StatusCode::INTERNAL_SERVER_ERROR, |known| known.status())
}

impl From<item::Model> for Item {
    fn from(item: item::Model) -> Self {
        let item::Model { id, name, pieces } = item;
        Self { id, name, pieces }
    }
}
