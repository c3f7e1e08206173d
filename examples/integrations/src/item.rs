//! The items that the services sell.

use sea_orm::{
    ActiveValue::Set,
    entity::prelude::*,
    sea_query::{Expr, ExprTrait},
};

/// An item, and how many pieces of it are in stock.
#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel, serde::Serialize)]
#[sea_orm(table_name = "item")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: i32,
    pub name: String,
    pub pieces: i32,
}

impl ActiveModelBehavior for ActiveModel {}

/// Takes pieces of an item out of the stock and returns what is left, which may be less than none: then the
/// caller must see to it that the transaction is rolled back. `None` if there is no such item.
///
/// Counting first and taking afterwards would let two requests take the same last piece. The UPDATE locks the
/// row until the end of the transaction.
pub async fn take<C: ConnectionTrait>(
    db: &C,
    id: i32,
    pieces: i32,
) -> Result<Option<Model>, DbErr> {
    let taken = Entity::update_many()
        .col_expr(Column::Pieces, Expr::col(Column::Pieces).sub(pieces))
        .filter(Column::Id.eq(id))
        .exec(db)
        .await?;
    if taken.rows_affected == 0 {
        return Ok(None);
    }
    Entity::find_by_id(id).one(db).await
}

/// Adds an item of which there are no pieces yet.
pub async fn add<C: ConnectionTrait>(db: &C, id: i32, name: String) -> Result<Model, DbErr> {
    let item = ActiveModel {
        id: Set(id),
        name: Set(name),
        pieces: Set(0),
    };
    item.insert(db).await
}
