//! The users, and how axum-login finds them.

use axum_login::{AuthUser, AuthnBackend, UserId};
use sea_orm::{
    ActiveValue::{NotSet, Set},
    ConnectionTrait, DbErr, Schema,
    entity::prelude::*,
};
use tower_sea_orm::SessionPool;

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "shop_user")]
pub(crate) struct Model {
    #[sea_orm(primary_key)]
    pub(crate) id: i32,
    #[sea_orm(unique)]
    pub(crate) name: String,
    pub(crate) password_hash: String,
}

impl ActiveModelBehavior for ActiveModel {}

impl AuthUser for Model {
    type Id = i32;

    fn id(&self) -> i32 {
        self.id
    }

    /// A new password ends all web sessions that were begun with the old one.
    fn session_auth_hash(&self) -> &[u8] {
        self.password_hash.as_bytes()
    }
}

#[derive(Clone, serde::Deserialize)]
pub(crate) struct Credentials {
    name: String,
    password: String,
}

/// axum-login asks it outside the request's `DbSession`, so it takes sessions of its own from the pool.
#[derive(Clone, Debug)]
pub(crate) struct Users(pub(crate) SessionPool);

impl AuthnBackend for Users {
    type User = Model;
    type Credentials = Credentials;
    type Error = DbErr;

    async fn authenticate(&self, given: Credentials) -> Result<Option<Model>, DbErr> {
        // One statement on a session that ends with it: no connection is held for the time that hashing takes.
        let db = self.0.session().await?;
        let named = Entity::find().filter(Column::Name.eq(given.name));
        let found = named.one(&*db).await?;
        drop(db);
        let verify = move || {
            // The same time for a name that nobody has.
            let hash = found.as_ref().map_or(NOBODY, |user| &user.password_hash);
            let verified = password_auth::verify_password(given.password, hash).is_ok();
            found.filter(|_| verified)
        };
        let verified = tokio::task::spawn_blocking(verify).await;
        verified.map_err(|error| DbErr::Custom(error.to_string()))
    }

    async fn get_user(&self, id: &UserId<Self>) -> Result<Option<Model>, DbErr> {
        let db = self.0.session().await?;
        Entity::find_by_id(*id).one(&*db).await
    }
}

/// The hash of no password.
const NOBODY: &str = "$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHRzb21lc2FsdA$\
    AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

pub(crate) async fn add_user(pool: &SessionPool, name: &str, password: &str) -> Result<(), DbErr> {
    let user = ActiveModel {
        id: NotSet,
        name: Set(name.to_owned()),
        password_hash: Set(password_auth::generate_hash(password)),
    };
    let db = pool.session().await?;
    Entity::insert(user)
        .on_conflict_do_nothing_on([Column::Name])
        .exec(&*db)
        .await?;
    Ok(())
}

pub(crate) async fn create_table(pool: &SessionPool) -> Result<(), DbErr> {
    let db = pool.session().await?;
    let mut table = Schema::new(db.backend()).create_table_from_entity(Entity);
    db.execute(table.if_not_exists()).await?;
    Ok(())
}
