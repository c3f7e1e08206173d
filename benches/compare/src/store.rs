//! The statements through SeaORM's entities.

use sea_orm::{ActiveModelTrait, ActiveValue::Set, ConnectionTrait, EntityTrait, IntoActiveModel};

use crate::{error::AppError, item};

pub async fn one(db: &impl ConnectionTrait, id: i32) -> Result<item::Model, AppError> {
    item::Entity::find_by_id(id)
        .one(db)
        .await?
        .ok_or(AppError::NOT_FOUND)
}

pub async fn five(db: &impl ConnectionTrait, id: i32) -> Result<Vec<item::Model>, AppError> {
    let mut items = Vec::with_capacity(5);
    for id in item::five_from(id) {
        items.push(one(db, id).await?);
    }
    Ok(items)
}

/// A select and an update.
pub async fn touch(db: &impl ConnectionTrait, id: i32) -> Result<item::Model, AppError> {
    let found = one(db, id).await?;
    let hits = found.hits + 1;
    let mut item = found.into_active_model();
    item.hits = Set(hits);
    Ok(item.update(db).await?)
}
