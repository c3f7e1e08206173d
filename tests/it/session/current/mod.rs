//! G2: a repository in the state finds the session of the request that polls it, and never another one.

mod own;
mod request;
mod scope;

use std::sync::Arc;

use futures_util::future::BoxFuture;
use sea_orm::{ConnectionTrait, DbErr};
use tower_sea_orm::{CurrentSession, DefaultDatabase};

use crate::support::database::{count_items, insert_item, try_insert_item};

/// What a service keeps in its state.
trait Items: Send + Sync {
    fn add(&self, name: String) -> BoxFuture<'_, Result<(), DbErr>>;

    fn count(&self, name: String) -> BoxFuture<'_, i64>;
}

struct SqlItems<Tag>(CurrentSession<Tag>);

impl<Tag: 'static> Items for SqlItems<Tag> {
    fn add(&self, name: String) -> BoxFuture<'_, Result<(), DbErr>> {
        Box::pin(async move { try_insert_item(&self.0, &name).await })
    }

    fn count(&self, name: String) -> BoxFuture<'_, i64> {
        Box::pin(async move { count_items(&self.0, &name).await })
    }
}

fn repository<Tag: 'static>(db: &CurrentSession<Tag>) -> Arc<dyn Items> {
    Arc::new(SqlItems(db.clone()))
}

/// A second database.
enum Other {}

/// Inserts a row through any connection, for handlers beside a repository.
async fn add(db: &impl ConnectionTrait, name: &str) {
    insert_item(db, name).await;
}

fn is_outside(db: &CurrentSession<DefaultDatabase>) -> bool {
    db.session().is_err_and(|error| error.is_missing_layer())
}
