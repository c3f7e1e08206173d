//! The store of tower-sessions' web sessions: one row each.

use async_trait::async_trait;
use sea_orm::{
    ActiveValue::Set, ConnectionTrait, DbErr, Schema, entity::prelude::*, sea_query::OnConflict,
};
use tower_sea_orm::SessionPool;
use tower_sessions::{
    SessionStore,
    session::{Id, Record},
    session_store::{self, Error},
};

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "web_session")]
pub(crate) struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub(crate) id: String,
    #[sea_orm(column_type = "Text")]
    pub(crate) record: String,
    /// Unix time. Delete the rows that are past it once in a while: with a job, not in a request.
    pub(crate) expires: i64,
}

impl ActiveModelBehavior for ActiveModel {}

/// Each call takes a session from the pool, for one statement.
#[derive(Clone, Debug)]
pub(crate) struct WebSessions(pub(crate) SessionPool);

#[async_trait]
impl SessionStore for WebSessions {
    async fn create(&self, record: &mut Record) -> session_store::Result<()> {
        // 128 random bits: one that is taken is a reason to fail, not to take over another one's session.
        let db = self.0.session().await.map_err(backend)?;
        let inserted = Entity::insert(row(record)?).exec(&*db).await;
        inserted.map(|_| ()).map_err(backend)
    }

    async fn save(&self, record: &Record) -> session_store::Result<()> {
        let db = self.0.session().await.map_err(backend)?;
        let replace = OnConflict::column(Column::Id)
            .update_columns([Column::Record, Column::Expires])
            .to_owned();
        let saved = Entity::insert(row(record)?).on_conflict(replace);
        saved.exec(&*db).await.map(|_| ()).map_err(backend)
    }

    async fn load(&self, id: &Id) -> session_store::Result<Option<Record>> {
        let db = self.0.session().await.map_err(backend)?;
        let now = time::OffsetDateTime::now_utc().unix_timestamp();
        let alive = Entity::find_by_id(id.to_string()).filter(Column::Expires.gt(now));
        let found = alive.one(&*db).await.map_err(backend)?;
        found
            .map(|row| serde_json::from_str(&row.record))
            .transpose()
            .map_err(|error| Error::Decode(error.to_string()))
    }

    async fn delete(&self, id: &Id) -> session_store::Result<()> {
        let db = self.0.session().await.map_err(backend)?;
        let deleted = Entity::delete_by_id(id.to_string()).exec(&*db).await;
        deleted.map(|_| ()).map_err(backend)
    }
}

fn row(record: &Record) -> session_store::Result<ActiveModel> {
    let text = serde_json::to_string(record).map_err(|error| Error::Encode(error.to_string()))?;
    Ok(ActiveModel {
        id: Set(record.id.to_string()),
        record: Set(text),
        expires: Set(record.expiry_date.unix_timestamp()),
    })
}

/// tower-sessions logs it, and answers with a 500 without it.
fn backend(error: impl Into<DbErr>) -> Error {
    Error::Backend(error.into().to_string())
}

pub(crate) async fn create_table(pool: &SessionPool) -> Result<(), DbErr> {
    let db = pool.session().await?;
    let mut table = Schema::new(db.backend()).create_table_from_entity(Entity);
    db.execute(table.if_not_exists()).await?;
    Ok(())
}
