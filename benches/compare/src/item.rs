//! The one table, the same for all.

use std::time::Duration;

use sea_orm::entity::prelude::*;
use serde::Serialize;

/// How many rows the table has, with ids from 1.
pub const ROWS: i32 = 10_000;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel, Serialize, sqlx::FromRow)]
#[sea_orm(table_name = "item")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub id: i32,
    pub name: String,
    pub hits: i32,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

/// The answer of the endpoint that needs no database.
pub fn constant(id: i32) -> Model {
    Model {
        id,
        name: format!("item {id}"),
        hits: 0,
    }
}

/// `id` and the four after it.
pub fn five_from(id: i32) -> impl Iterator<Item = i32> {
    (0..5).map(move |step| (id - 1 + step) % ROWS + 1)
}

/// The slow call to somebody else.
pub async fn elsewhere() {
    tokio::time::sleep(Duration::from_millis(50)).await;
}
