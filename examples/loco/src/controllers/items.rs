//! Items: one session per request, one transaction where a handler writes.

use loco_rs::{
    mailer::{Email, Mailer},
    prelude::*,
};
use serde::Deserialize;
use tower_sea_orm::{DbSession, DbTx};

use crate::{announce::Announce, current_user::CurrentUser, item};

/// Tells the stock-keepers.
struct StockMail;

impl Mailer for StockMail {}

#[derive(Deserialize)]
pub struct NewItem {
    name: String,
}

/// `fetch_page` takes any connection; `paginate` takes a `&DatabaseConnection` only.
#[debug_handler]
async fn list(db: DbSession, Query(page): Query<query::PaginationQuery>) -> Result<Response> {
    let items = item::Entity::find().order_by_asc(item::Column::Id);
    format::json(query::fetch_page(&db, items, &page).await?)
}

#[debug_handler]
async fn read(db: DbSession, Path(id): Path<i32>) -> Result<Response> {
    format::json(find(&db, id).await?)
}

/// All of them or none: a 4xx rolls back, and no job is started for what is not stored.
#[debug_handler]
async fn create(
    tx: DbTx,
    State(ctx): State<AppContext>,
    Json(items): Json<Vec<NewItem>>,
) -> Result<Response> {
    let mut created = Vec::new();
    for item in items {
        if item.name.is_empty() {
            return bad_request("an item needs a name");
        }
        let name = item.name.clone();
        let item = item::ActiveModel {
            name: Set(item.name),
            ..Default::default()
        };
        created.push(item.insert(&tx).await?);
        let ctx = ctx.clone();
        tx.after_commit(async move {
            if let Err(error) = Announce::perform_later(&ctx, name).await {
                tracing::error!("an item is not announced: {error}");
            }
        })?;
    }
    format::json(created)
}

/// The user comes from the same session, and the same transaction, as the item.
#[debug_handler(state = AppContext)]
async fn rename(
    tx: DbTx,
    CurrentUser(user): CurrentUser,
    Path(id): Path<i32>,
    Json(new): Json<NewItem>,
) -> Result<Response> {
    let mut item = find(&tx, id).await?.into_active_model();
    item.name = Set(format!("{} by {}", new.name, user.name));
    format::json(item.update(&tx).await?)
}

#[debug_handler]
async fn delete_one(
    tx: DbTx,
    State(ctx): State<AppContext>,
    Path(id): Path<i32>,
) -> Result<Response> {
    let item = find(&tx, id).await?;
    let mail = Email {
        to: "stock@example.com".to_owned(),
        subject: format!("{} is gone", item.name),
        ..Default::default()
    };
    item.delete(&tx).await?;
    tx.after_commit(async move {
        if let Err(error) = StockMail::mail(&ctx, &mail).await {
            tracing::error!("no mail is sent: {error}");
        }
    })?;
    format::empty()
}

/// Any connection will do: a session, a transaction, `ctx.db` in a task.
async fn find(db: &impl ConnectionTrait, id: i32) -> Result<item::Model> {
    let item = item::Entity::find_by_id(id).one(db).await?;
    item.ok_or(Error::NotFound)
}

pub fn routes() -> Routes {
    Routes::new()
        .prefix("api/items")
        .add("/", get(list).post(create))
        .add("/{id}", get(read).put(rename).delete(delete_one))
}
