//! A shop with migrations. How to test such a service is in `tests/shop.rs`: on SQLite in memory, on PostgreSQL beside
//! other tests, on a mock.
//!
//! ```text
//! cargo run --bin shop                                        # SQLite in memory
//! DATABASE_URL=postgres://user:password@localhost/db cargo run --bin shop
//! ```
//!
//! It listens on 127.0.0.1, port 3000 or `PORT`. Try:
//!
//! ```text
//! curl localhost:3000/articles -H 'content-type: application/json' -d '{"name":"lamp","pieces":10}'
//! curl localhost:3000/articles/1/orders -H 'content-type: application/json' -d 3
//! ```

use std::error::Error;

use axum::{
    Json, Router,
    extract::Path,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use integrations::{start_after, stopped};
use sea_orm::{
    ActiveModelTrait, ActiveValue::Set, ConnectionTrait, DatabaseConnection, DbBackend, DbErr,
    EntityTrait, TransactionTrait, sea_query::ExprTrait,
};
use sea_orm_migration::{MigrationName, MigrationTrait, MigratorTrait, SchemaManager, schema};
use tower_sea_orm::{DbSession, DbSessionLayer, DbTx, SessionPool};

pub(crate) mod article {
    use sea_orm::entity::prelude::*;

    #[sea_orm::model]
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel, serde::Serialize)]
    #[sea_orm(table_name = "article")]
    pub struct Model {
        #[sea_orm(primary_key)]
        pub id: i32,
        pub name: String,
        pub pieces: i32,
    }

    impl ActiveModelBehavior for ActiveModel {}
}

pub(crate) struct Migrator;

impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![Box::new(Articles)]
    }
}

struct Articles;

impl MigrationName for Articles {
    fn name(&self) -> &str {
        "m20260101_000001_articles"
    }
}

#[allow(elided_lifetimes_in_paths, reason = "the trait's own signatures")]
#[async_trait::async_trait]
impl MigrationTrait for Articles {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let articles = sea_orm::sea_query::Table::create()
            .table("article")
            .col(schema::pk_auto("id"))
            .col(schema::string("name"))
            .col(schema::integer("pieces"))
            .to_owned();
        manager.create_table(articles).await
    }
}

/// Runs the migrations, all or none. Instances that start at the same time, and tests, wait for each other. Not for MySQL,
/// where each `CREATE TABLE` commits.
pub(crate) async fn migrate(db: &DatabaseConnection) -> Result<(), DbErr> {
    let tx = db.begin().await?;
    if db.get_database_backend() == DbBackend::Postgres {
        let lock = "SELECT pg_advisory_xact_lock(20260101)"; // any number of your own; free at COMMIT
        tx.execute_unprepared(lock).await?;
    }
    Migrator::up(&tx, None).await?;
    tx.commit().await
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (pool, listener) = start_after(async |pool| migrate(pool.database()).await).await?;
    axum::serve(listener, app(pool.clone()))
        .with_graceful_shutdown(stopped(pool))
        .await?;
    Ok(())
}

/// The service. Tests pass in another pool.
pub(crate) fn app(pool: SessionPool) -> Router {
    Router::new()
        .route("/articles", post(add))
        .route("/articles/{id}", get(read))
        .route("/articles/{id}/orders", post(order))
        .route_layer(DbSessionLayer::new(pool).lazy())
}

async fn read(db: DbSession, Path(id): Path<i32>) -> Result<Json<article::Model>, AppError> {
    let article = article::Entity::find_by_id(id).one(&db).await?;
    article.map(Json).ok_or(AppError::NotFound)
}

#[derive(serde::Deserialize)]
struct NewArticle {
    name: String,
    pieces: i32,
}

async fn add(db: DbSession, Json(new): Json<NewArticle>) -> Result<Response, AppError> {
    let article = article::ActiveModel {
        name: Set(new.name),
        pieces: Set(new.pieces),
        ..Default::default()
    };
    Ok((StatusCode::CREATED, Json(article.insert(&db).await?)).into_response())
}

/// Takes the pieces first and looks afterwards: the UPDATE locks the row, and a 409 rolls it back.
async fn order(
    tx: DbTx,
    Path(id): Path<i32>,
    Json(pieces): Json<i32>,
) -> Result<Json<article::Model>, AppError> {
    use sea_orm::{ColumnTrait, QueryFilter, sea_query::Expr};
    article::Entity::update_many()
        .col_expr(
            article::Column::Pieces,
            Expr::col(article::Column::Pieces).sub(pieces),
        )
        .filter(article::Column::Id.eq(id))
        .exec(&tx)
        .await?;
    let article = article::Entity::find_by_id(id).one(&tx).await?;
    let article = article.ok_or(AppError::NotFound)?;
    if article.pieces < 0 {
        return Err(AppError::SoldOut);
    }
    tx.after_commit(send_mail(format!("{pieces} × {}", article.name)))?;
    Ok(Json(article))
}

async fn send_mail(text: String) {
    tracing::info!("to the warehouse: {text}"); // a stand-in
}

enum AppError {
    NotFound,
    SoldOut,
    Database(DbErr),
}

impl From<DbErr> for AppError {
    fn from(error: DbErr) -> Self {
        Self::Database(error)
    }
}

impl IntoResponse for AppError {
    fn into_response(self) -> Response {
        let error = match self {
            Self::NotFound => return StatusCode::NOT_FOUND.into_response(),
            Self::SoldOut => return StatusCode::CONFLICT.into_response(),
            Self::Database(error) => error,
        };
        tracing::error!("{error}");
        let known = tower_sea_orm::Error::of(&error).map(|known| known.status());
        known
            .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
            .into_response()
    }
}
