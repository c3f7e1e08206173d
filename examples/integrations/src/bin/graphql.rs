//! GraphQL with async-graphql and axum: one session for each request, and one transaction for each mutation.
//!
//! ```text
//! cargo run --bin graphql                                     # SQLite in memory
//! DATABASE_URL=postgres://user:password@localhost/db cargo run --bin graphql
//! ```
//!
//! It listens on 127.0.0.1, port 3000 or `PORT`. Try:
//!
//! ```text
//! ask() { curl localhost:3000/graphql -H 'content-type: application/json' -d "{\"query\":\"$1\"}"; }
//! ask '{ a: item(id: 1) { name pieces } b: item(id: 2) { name pieces } }'
//! ask 'mutation { a: take(id: 1, pieces: 3) { pieces } b: take(id: 2, pieces: 99) { pieces } }'
//! ```
//!
//! The second one takes nothing at all: `b` fails, so `a` is rolled back as well.

use std::{collections::HashMap, error::Error};

use async_graphql::{
    Context, EmptySubscription, Error as FieldError, ErrorExtensions, Object, Schema, SimpleObject,
    Value,
    dataloader::{DataLoader, Loader},
};
use async_graphql_axum::{GraphQLRequest, GraphQLResponse};
use axum::{Router, extract::State, http::StatusCode, routing::post};
use integrations::{item, start, stopped};
use sea_orm::{ColumnTrait, DbErr, EntityTrait, QueryFilter, QueryOrder};
use tower_sea_orm::{DbSession, DbSessionLayer};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (pool, listener) = start().await?;
    let app = app(DbSessionLayer::new(pool.clone()));
    axum::serve(listener, app)
        .with_graceful_shutdown(stopped(pool))
        .await?;
    Ok(())
}

type Shop = Schema<Query, Mutation, EmptySubscription>;

pub(crate) fn app(sessions: DbSessionLayer) -> Router {
    let schema = Schema::new(Query, Mutation, EmptySubscription);
    Router::new()
        .route("/graphql", post(graphql))
        // Lazy: a request that does not parse, and one about the schema, cost no connection.
        .layer(sessions.lazy())
        .with_state(schema)
}

/// One operation, not a batch: the operations of a batch would share a transaction.
async fn graphql(
    State(schema): State<Shop>,
    db: DbSession,
    request: GraphQLRequest,
) -> Result<GraphQLResponse, StatusCode> {
    let items = DataLoader::new(Items(db.clone()), tokio::spawn);
    let request = request.into_inner().data(db.clone()).data(items);
    let mut response = schema.execute(request).await;
    // The response is a 200 whatever its fields say, so the layer cannot know.
    if response.is_err() && db.is_transactional() {
        db.set_rollback_only()
            .map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
        // The fields that succeeded tell of what is not there any more.
        response.data = Value::Null;
    }
    Ok(response.into())
}

pub(crate) struct Query;

#[Object]
impl Query {
    /// Each statement by itself, all on one connection. For one snapshot, a `tx_with(…)` as below.
    async fn items(&self, ctx: &Context<'_>) -> Result<Vec<Item>, FieldError> {
        let all = item::Entity::find().order_by_asc(item::Column::Id);
        let items = all.all(ctx.data::<DbSession>()?).await.map_err(failed)?;
        Ok(items.into_iter().map(Item::from).collect())
    }

    async fn item(&self, ctx: &Context<'_>, id: i32) -> Result<Option<Item>, FieldError> {
        let items = ctx.data::<DataLoader<Items>>()?;
        let found = items.load_one(id).await.map_err(failed)?;
        Ok(found.map(Item::from))
    }
}

pub(crate) struct Mutation;

#[Object]
impl Mutation {
    /// The fields of a mutation run one after the other, and the first `tx()` makes the request's session a
    /// transaction: all of them are in one.
    async fn take(
        &self,
        ctx: &Context<'_>,
        id: i32,
        #[graphql(validator(minimum = 1))] pieces: i32,
    ) -> Result<Item, FieldError> {
        let tx = ctx.data::<DbSession>()?.tx();
        let left = item::take(&tx, id, pieces).await.map_err(failed)?;
        let left = left.ok_or_else(|| FieldError::new("no such item"))?;
        if left.pieces < 0 {
            return Err(FieldError::new("not in stock"));
        }
        Ok(left.into())
    }

    async fn add(&self, ctx: &Context<'_>, id: i32, name: String) -> Result<Item, FieldError> {
        let tx = ctx.data::<DbSession>()?.tx();
        let added = item::add(&tx, id, name).await.map_err(failed)?;
        Ok(added.into())
    }
}

#[derive(SimpleObject)]
struct Item {
    id: i32,
    name: String,
    pieces: i32,
}

impl From<item::Model> for Item {
    fn from(item: item::Model) -> Self {
        let item::Model { id, name, pieces } = item;
        Self { id, name, pieces }
    }
}

/// Reads the items that several fields ask for in one statement, on the session of the request.
struct Items(DbSession);

impl Loader<i32> for Items {
    type Value = item::Model;
    type Error = DbErr;

    async fn load(&self, ids: &[i32]) -> Result<HashMap<i32, item::Model>, DbErr> {
        let found = item::Entity::find().filter(item::Column::Id.is_in(ids.iter().copied()));
        let items = found.all(&self.0).await?;
        Ok(items.into_iter().map(|item| (item.id, item)).collect())
    }
}

/// The client gets a code, the log gets the cause. async-graphql would send the text of a `DbErr` to the client
/// on `?`; its feature `custom-error-conversion` makes that an error of the compiler.
fn failed(error: DbErr) -> FieldError {
    tracing::error!("{error}");
    let known = tower_sea_orm::Error::of(&error);
    let code = if known.is_some_and(|known| known.is_retryable()) {
        "UNAVAILABLE"
    } else {
        "INTERNAL"
    };
    FieldError::new("the database failed").extend_with(|_, extensions| extensions.set("code", code))
}
