//! The same statements through sqlx, for the peers without SeaORM.

use sqlx::PgConnection;

use crate::{error::AppError, item};

pub async fn one(connection: &mut PgConnection, id: i32) -> Result<item::Model, AppError> {
    let query = sqlx::query_as("SELECT id, name, hits FROM item WHERE id = $1").bind(id);
    Ok(query.fetch_one(connection).await?)
}

pub async fn five(connection: &mut PgConnection, id: i32) -> Result<Vec<item::Model>, AppError> {
    let mut items = Vec::with_capacity(5);
    for id in item::five_from(id) {
        items.push(one(connection, id).await?);
    }
    Ok(items)
}

/// A select and an update.
pub async fn touch(connection: &mut PgConnection, id: i32) -> Result<item::Model, AppError> {
    let found = one(connection, id).await?;
    let query = sqlx::query_as("UPDATE item SET hits = $1 WHERE id = $2 RETURNING id, name, hits");
    Ok(query
        .bind(found.hits + 1)
        .bind(id)
        .fetch_one(connection)
        .await?)
}
