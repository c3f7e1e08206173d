//! G14: entities, paginators and relations work on a session as on a `DatabaseConnection`.

use futures_util::{StreamExt, TryStreamExt};
use sea_orm::{
    ActiveModelTrait,
    ActiveValue::Set,
    ColumnTrait, ConnectionTrait, DatabaseConnection, DbBackend, DbErr, DerivePartialModel,
    EntityTrait, FromQueryResult, IntoActiveModel, LoaderTrait, MockDatabase, ModelTrait,
    PaginatorTrait, QueryFilter, QueryOrder, SqlErr, Statement, StreamTrait, TransactionTrait,
    sea_query::{Expr, ExprTrait},
};
use tower_sea_orm::{DbSession, Error};

use crate::{
    seaorm::entities::{everywhere, item, named, note},
    support::database::{Kind, count_items, insert_item},
};

/// `count` items, `item 0` first.
async fn fill<C: ConnectionTrait>(db: &C, count: i32) {
    let models = (0..count).map(|n| item::ActiveModel {
        name: Set(format!("item {n:03}")),
        hits: Set(n),
        ..Default::default()
    });
    item::Entity::insert_many(models).exec(db).await.unwrap();
}

#[tokio::test]
async fn entities_are_found_inserted_updated_saved_and_deleted() {
    everywhere(async |kind, session| {
        let db: &DbSession = session;
        assert_eq!(db.get_database_backend(), kind.backend());
        let inserted = item::ActiveModel {
            hits: Set(1),
            ..named("a")
        }
        .insert(db)
        .await
        .unwrap();
        assert_eq!((inserted.name.as_str(), inserted.hits), ("a", 1));
        assert_eq!(
            item::Entity::find_by_id(inserted.id).one(db).await.unwrap(),
            Some(inserted.clone())
        );
        assert_eq!(
            item::Entity::find_by_id(inserted.id + 1)
                .one(db)
                .await
                .unwrap(),
            None
        );

        let mut active = inserted.into_active_model();
        active.hits = Set(2);
        let updated = active.update(db).await.unwrap();
        assert_eq!(updated.hits, 2);
        let saved = item::ActiveModel {
            hits: Set(5),
            ..named("b")
        }
        .save(db)
        .await
        .unwrap();
        let mut saved = saved.into_active_model();
        saved.hits = Set(6);
        saved.save(db).await.unwrap();
        let all = item::Entity::find()
            .order_by_asc(item::Column::Id)
            .all(db)
            .await
            .unwrap();
        assert_eq!(
            all.iter()
                .map(|item| (item.name.as_str(), item.hits))
                .collect::<Vec<_>>(),
            [("a", 2), ("b", 6)]
        );

        let changed = item::Entity::update_many()
            .col_expr(item::Column::Hits, Expr::col(item::Column::Hits).add(10))
            .filter(item::Column::Name.eq("a"))
            .exec(db)
            .await
            .unwrap();
        assert_eq!(changed.rows_affected, 1);
        assert_eq!(all[1].clone().delete(db).await.unwrap().rows_affected, 1);
        let deleted = item::Entity::delete_many()
            .filter(item::Column::Hits.eq(12))
            .exec(db)
            .await
            .unwrap();
        assert_eq!(deleted.rows_affected, 1);
        assert_eq!(item::Entity::find().count(db).await.unwrap(), 0);

        let many = item::Entity::insert_many((0..20).map(|n| named(&format!("many {n}"))));
        many.exec(db).await.unwrap();
        assert_eq!(item::Entity::find().count(db).await.unwrap(), 20);
    })
    .await;
}

#[derive(Debug, DerivePartialModel, PartialEq)]
#[sea_orm(entity = "item::Entity")]
struct Named {
    name: String,
}

#[derive(Debug, FromQueryResult)]
struct Sum {
    total: i64,
}

#[tokio::test]
async fn paginators_cursors_partial_models_and_raw_sql_work() {
    everywhere(async |kind, session| {
        let db: &DbSession = session;
        fill(db, 25).await;
        let pages = item::Entity::find()
            .order_by_asc(item::Column::Id)
            .paginate(db, 10);
        assert_eq!(
            pages.num_items_and_pages().await.unwrap().number_of_pages,
            3
        );
        assert_eq!(pages.fetch_page(2).await.unwrap().len(), 5);
        let mut seen = 0;
        let mut stream = item::Entity::find()
            .order_by_asc(item::Column::Id)
            .paginate(db, 7)
            .into_stream();
        while let Some(page) = stream.try_next().await.unwrap() {
            seen += page.len();
        }
        assert_eq!(seen, 25);
        drop(stream);

        let mut cursor = item::Entity::find().cursor_by(item::Column::Hits);
        let page = cursor.after(9).first(5).all(db).await.unwrap();
        assert_eq!(
            page.iter().map(|item| item.hits).collect::<Vec<_>>(),
            [10, 11, 12, 13, 14]
        );

        let first = item::Entity::find()
            .order_by_asc(item::Column::Id)
            .into_partial_model::<Named>();
        assert_eq!(
            first.one(db).await.unwrap(),
            Some(Named {
                name: "item 000".to_owned()
            })
        );

        let total = match kind {
            Kind::MySql => "SELECT CAST(sum(hits) AS SIGNED) AS total FROM item",
            _ => "SELECT sum(hits) AS total FROM item",
        };
        let sum = Sum::find_by_statement(Statement::from_string(kind.backend(), total))
            .one(db)
            .await
            .unwrap();
        assert_eq!(sum.unwrap().total, 300);
        let all = "SELECT * FROM item WHERE hits < 3 ORDER BY hits";
        let models = item::Entity::find()
            .from_raw_sql(Statement::from_string(kind.backend(), all))
            .all(db)
            .await
            .unwrap();
        assert_eq!(models.len(), 3);
        assert_eq!(
            db.execute_unprepared("DELETE FROM item WHERE hits > 19")
                .await
                .unwrap()
                .rows_affected(),
            5
        );
    })
    .await;
}

#[tokio::test]
async fn relations_are_loaded_and_schemas_built() {
    everywhere(async |_, session| {
        let db: &DbSession = session;
        db.get_schema_builder()
            .register(note::Entity)
            .apply(db)
            .await
            .unwrap();
        let mut ids = Vec::new();
        for name in ["a", "b"] {
            let item = named(name).insert(db).await.unwrap();
            for n in 0..=ids.len() {
                let text = Set(format!("{name} {n}"));
                note::ActiveModel {
                    item_id: Set(item.id),
                    text,
                    ..Default::default()
                }
                .insert(db)
                .await
                .unwrap();
            }
            ids.push(item.id);
        }
        let items = item::Entity::find()
            .order_by_asc(item::Column::Id)
            .all(db)
            .await
            .unwrap();
        let notes = items.load_many(note::Entity, db).await.unwrap();
        assert_eq!(notes.iter().map(Vec::len).collect::<Vec<_>>(), [1, 2]);
        let notes = note::Entity::find()
            .order_by_asc(note::Column::Id)
            .all(db)
            .await
            .unwrap();
        let owners = notes.load_one(item::Entity, db).await.unwrap();
        assert_eq!(
            owners
                .iter()
                .flatten()
                .map(|item| item.id)
                .collect::<Vec<_>>(),
            [ids[0], ids[1], ids[1]]
        );
        let joined = item::Entity::find()
            .find_with_related(note::Entity)
            .all(db)
            .await
            .unwrap();
        assert_eq!(joined.len(), 2);
        let related = items[1].find_related(note::Entity).all(db).await.unwrap();
        assert_eq!(related.len(), 2);
    })
    .await;
}

#[tokio::test]
async fn rows_are_streamed_whole_and_half() {
    everywhere(async |kind, session| {
        let db: &DbSession = session;
        fill(db, 200).await;
        let mut stream = item::Entity::find()
            .order_by_asc(item::Column::Id)
            .stream(db)
            .await
            .unwrap();
        let mut hits = 0;
        while let Some(item) = stream.try_next().await.unwrap() {
            assert_eq!(item.hits, hits);
            hits += 1;
        }
        assert_eq!(hits, 200);
        drop(stream);
        for taken in [0, 1, 17, 199] {
            let stream = item::Entity::find().stream(db).await.unwrap();
            assert_eq!(stream.take(taken).count().await, taken);
            assert_eq!(
                item::Entity::find().count(db).await.unwrap(),
                200,
                "{kind:?}: after {taken} rows"
            );
        }
        let bad = db
            .stream_raw(Statement::from_string(
                kind.backend(),
                "SELECT nothing FROM nowhere",
            ))
            .await;
        let failed = match bad {
            Ok(mut stream) => stream.try_next().await.is_err(),
            Err(_) => true,
        };
        assert!(failed);
        let tx = db.begin().await.unwrap();
        let rows: Vec<_> = item::Entity::find()
            .stream(&tx)
            .await
            .unwrap()
            .try_collect()
            .await
            .unwrap();
        assert_eq!(rows.len(), 200);
        tx.commit().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn errors_are_seaorms_own_variants() {
    everywhere(async |kind, session| {
        let db: &DbSession = session;
        named("twice").insert(db).await.unwrap();
        let error = named("twice").insert(db).await.unwrap_err();
        assert!(
            matches!(error.sql_err(), Some(SqlErr::UniqueConstraintViolation(_))),
            "{kind:?}: {error:?}"
        );
        assert!(Error::of(&error).is_none());
        let missing = item::ActiveModel {
            id: Set(4711),
            hits: Set(1),
            ..Default::default()
        };
        assert!(matches!(
            missing.update(db).await,
            Err(DbErr::RecordNotUpdated | DbErr::RecordNotFound(_))
        ));
        let failed = item::Entity::delete_by_id(4711).exec(db).await.unwrap();
        assert_eq!(failed.rows_affected, 0);
        let found = item::Entity::find_by_id(4711).one(db).await.unwrap();
        let found = found.ok_or_else(|| DbErr::RecordNotFound("item".to_owned()));
        assert!(Error::of(&found.unwrap_err()).is_none());

        // The session goes on after an error, and so does a transaction around a savepoint.
        assert_eq!(count_items(db, "twice").await, 1);
        let tx = db.begin().await.unwrap();
        insert_item(&tx, "kept").await;
        let inner = tx.begin().await.unwrap();
        assert!(named("twice").insert(&inner).await.is_err());
        inner.rollback().await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(count_items(db, "kept").await, 1);
    })
    .await;
}

#[tokio::test]
async fn a_mock_stands_behind_a_plain_handle() {
    let row = item::Model {
        id: 1,
        name: "mock".to_owned(),
        hits: 0,
    };
    let db: DatabaseConnection = MockDatabase::new(DbBackend::MySql)
        .append_query_results([[row.clone()]])
        .into_connection();
    let session = DbSession::from(db);
    assert!(session.is_mock_connection());
    assert_eq!(item::Entity::find().one(&session).await.unwrap(), Some(row));
}
