//! The least that a statement of SeaORM's costs: bare connections in a list, SeaORM's statement and model, and no
//! guarantee of any kind. Nothing can be done with a connection in less; nothing else is done here.

use std::sync::{Arc, Mutex, PoisonError};

use axum::{
    Json, Router,
    extract::{Path, State},
    routing::{get, post},
};
use sea_orm::{
    ActiveModelTrait, ActiveValue::Set, DbBackend, EntityTrait, FromQueryResult, IntoActiveModel,
    QueryResult, QuerySelect, QueryTrait, Statement,
};
use sea_query_sqlx::SqlxValues;
use sqlx::{Connection, PgConnection, PgPool};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::{error::AppError, item, subjects::POOL};

/// As many connections as the others' pools have, opened with the first requests.
pub struct Connections {
    idle: Mutex<Vec<PgConnection>>,
    free: Semaphore,
    pool: PgPool,
}

struct Borrowed<'c> {
    connection: Option<PgConnection>,
    connections: &'c Connections,
    _permit: SemaphorePermit<'c>,
}

impl Connections {
    async fn borrow(&self) -> Result<Borrowed<'_>, AppError> {
        let permit = self.free.acquire().await.expect("it is never closed");
        let idle = self
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        let connection = match idle {
            Some(connection) => connection,
            None => self.pool.acquire().await?.detach(),
        };
        Ok(Borrowed {
            connection: Some(connection),
            connections: self,
            _permit: permit,
        })
    }
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        let mut idle = self
            .connections
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        idle.extend(self.connection.take());
    }
}

impl Borrowed<'_> {
    fn connection(&mut self) -> &mut PgConnection {
        self.connection.as_mut().expect("taken when it is dropped")
    }
}

type Shared = State<Arc<Connections>>;

pub fn router(pool: PgPool) -> Router {
    Router::new()
        .route("/none/{id}", get(none))
        .route("/one/{id}", get(one))
        .route("/five/{id}", get(five))
        .route("/touch/{id}", post(touch))
        .route("/slow/{id}", get(slow))
        .with_state(Arc::new(Connections {
            idle: Mutex::default(),
            free: Semaphore::new(POOL as usize),
            pool,
        }))
}

async fn query(
    connection: &mut PgConnection,
    statement: Statement,
) -> Result<item::Model, AppError> {
    let values = statement.values.unwrap_or(sea_orm::Values(Vec::new()));
    let query = sqlx::query_with(sqlx::AssertSqlSafe(statement.sql), SqlxValues(values));
    let row = query.fetch_optional(connection).await?;
    let row = QueryResult::from(row.ok_or(AppError::NOT_FOUND)?);
    Ok(item::Model::from_query_result(&row, "")?)
}

async fn select(connection: &mut PgConnection, id: i32) -> Result<item::Model, AppError> {
    // With the limit that `one` adds for the others.
    let statement = item::Entity::find_by_id(id)
        .limit(1)
        .build(DbBackend::Postgres);
    query(connection, statement).await
}

async fn none(Path(id): Path<i32>) -> Json<item::Model> {
    Json(item::constant(id))
}

async fn one(State(db): Shared, Path(id): Path<i32>) -> Result<Json<item::Model>, AppError> {
    let mut db = db.borrow().await?;
    select(db.connection(), id).await.map(Json)
}

async fn five(State(db): Shared, Path(id): Path<i32>) -> Result<Json<Vec<item::Model>>, AppError> {
    let mut db = db.borrow().await?;
    let mut items = Vec::with_capacity(5);
    for id in item::five_from(id) {
        items.push(select(db.connection(), id).await?);
    }
    Ok(Json(items))
}

async fn touch(State(db): Shared, Path(id): Path<i32>) -> Result<Json<item::Model>, AppError> {
    let mut db = db.borrow().await?;
    let mut tx = db.connection().begin().await?;
    let found = select(&mut tx, id).await?;
    let hits = found.hits + 1;
    let mut item = found.into_active_model();
    item.hits = Set(hits);
    debug_assert!(item.is_changed());
    let update = item::Entity::update(item)
        .validate()?
        .query()
        .returning_all()
        .to_owned();
    let (sql, values) = update.build(sea_orm::sea_query::PostgresQueryBuilder);
    let statement = Statement::from_sql_and_values(DbBackend::Postgres, sql, values);
    let item = query(&mut tx, statement).await?;
    tx.commit().await?;
    Ok(Json(item))
}

async fn slow(State(db): Shared, Path(id): Path<i32>) -> Result<Json<item::Model>, AppError> {
    let mut db = db.borrow().await?;
    select(db.connection(), id).await?;
    item::elsewhere().await;
    select(db.connection(), id).await.map(Json)
}
