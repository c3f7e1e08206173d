//! Two entities, and a session of each kind of database.

use sea_orm::ActiveValue::Set;
use tower_sea_orm::PoolSession;

use crate::support::{
    database::{Kind, TestDb},
    pool::{assert_whole, session_pool},
};

pub mod item {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "item")]
    pub struct Model {
        #[sea_orm(primary_key)]
        pub id: i32,
        #[sea_orm(unique)]
        pub name: String,
        pub hits: i32,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {
        #[sea_orm(has_many = "super::note::Entity")]
        Note,
    }

    impl Related<super::note::Entity> for Entity {
        fn to() -> RelationDef {
            Relation::Note.def()
        }
    }

    impl ActiveModelBehavior for ActiveModel {}
}

pub mod note {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "note")]
    pub struct Model {
        #[sea_orm(primary_key)]
        pub id: i32,
        pub item_id: i32,
        pub text: String,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {
        #[sea_orm(
            belongs_to = "super::item::Entity",
            from = "Column::ItemId",
            to = "super::item::Column::Id"
        )]
        Item,
    }

    impl Related<super::item::Entity> for Entity {
        fn to() -> RelationDef {
            Relation::Item.def()
        }
    }

    impl ActiveModelBehavior for ActiveModel {}
}

/// Runs `test` with a session on every kind of database, over a pool of one.
pub async fn everywhere(test: impl AsyncFn(Kind, &PoolSession)) {
    for kind in Kind::ALL {
        let database = TestDb::new(kind).await;
        let db = database.connect(1).await;
        let pool = session_pool(db.clone());
        let session = pool.session().await.unwrap();
        test(kind, &session).await;
        drop(session);
        assert_whole(&database, &db, 1).await;
    }
}

pub fn named(name: &str) -> item::ActiveModel {
    item::ActiveModel {
        name: Set(name.to_owned()),
        ..Default::default()
    }
}
