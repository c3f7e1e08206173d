//! What SeaORM can do with a `DatabaseConnection`, it can do with a session, on every database.

use futures_util::{StreamExt, TryStreamExt};
use sea_orm::{
    AccessMode, ActiveModelTrait,
    ActiveValue::Set,
    ColumnTrait, ConnectionTrait, DatabaseConnection, DbBackend, DbErr, DerivePartialModel,
    EntityTrait, FromQueryResult, IntoActiveModel, IsolationLevel, LoaderTrait, MockDatabase,
    ModelTrait, PaginatorTrait, QueryFilter, QueryOrder, SqlErr, SqliteTransactionMode, Statement,
    StreamTrait, TransactionError, TransactionOptions, TransactionTrait,
    sea_query::{Expr, ExprTrait},
    sqlx::{Connection, Executor},
};
use tower_sea_orm::{DbSession, Error, PoolSession, SessionTransaction};

use crate::support::pool::session_pool;
use crate::support::{
    database::{Kind, TestDb, count_items, insert_item},
    pool::assert_whole,
};

mod item {
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

mod note {
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
async fn everywhere(test: impl AsyncFn(Kind, &PoolSession)) {
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

fn named(name: &str) -> item::ActiveModel {
    item::ActiveModel {
        name: Set(name.to_owned()),
        ..Default::default()
    }
}

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
async fn transactions_commit_what_succeeds_and_roll_back_what_fails() {
    async fn present(db: &DbSession, name: &str) -> bool {
        count_items(db, name).await == 1
    }
    everywhere(async |kind, session| {
        let db: &DbSession = session;
        let closed = db
            .transaction::<_, _, DbErr>(|tx| {
                Box::pin(async move {
                    insert_item(tx, "closure").await;
                    Ok(5)
                })
            })
            .await;
        assert_eq!(closed.unwrap(), 5);
        assert!(present(db, "closure").await);

        let failed = db
            .transaction::<_, (), DbErr>(|tx| {
                Box::pin(async move {
                    insert_item(tx, "failed").await;
                    Err(DbErr::Custom("own".to_owned()))
                })
            })
            .await;
        assert!(
            matches!(failed, Err(TransactionError::Transaction(DbErr::Custom(own))) if own == "own")
        );
        assert!(!present(db, "failed").await);

        let (level, mode) = (
            Some(IsolationLevel::Serializable),
            Some(AccessMode::ReadWrite),
        );
        let insert = |tx: &SessionTransaction| {
            let name = "configured";
            let statement = Statement::from_string(
                tx.backend(),
                format!("INSERT INTO item (name) VALUES ('{name}')"),
            );
            (name, statement)
        };
        let configured = db.transaction_with_config::<_, _, DbErr>(
            |tx| {
                Box::pin(async move {
                    let (name, statement) = insert(tx);
                    tx.execute_raw(statement).await?;
                    Ok(name)
                })
            },
            level,
            mode,
        );
        let name = configured.await.unwrap();
        assert!(present(db, name).await);

        let outside = "borrowed".to_owned();
        db.transaction_async(async |tx| {
            insert_item(tx, &outside).await;
            let nested = tx
                .transaction_async(async |tx| {
                    insert_item(tx, "nested, failed").await;
                    Err::<(), _>(DbErr::Custom("own".to_owned()))
                })
                .await;
            assert!(nested.is_err());
            tx.transaction_async(async |tx| {
                insert_item(tx, "nested").await;
                Ok::<_, DbErr>(())
            })
            .await
            .unwrap();
            Ok::<_, DbErr>(())
        })
        .await
        .unwrap();
        assert!(present(db, "borrowed").await && present(db, "nested").await);
        assert!(!present(db, "nested, failed").await);

        let fails = db.transaction_with_config_async(
            async |tx| {
                insert_item(tx, "async, failed").await;
                Err::<(), _>(DbErr::Custom("own".to_owned()))
            },
            level,
            None,
        );
        assert!(fails.await.is_err());
        assert!(!present(db, "async, failed").await);

        let options = TransactionOptions {
            sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
            ..Default::default()
        };
        let tx = db.begin_with_options(options).await.unwrap();
        let inner = tx.begin().await.unwrap();
        let innermost = inner.begin().await.unwrap();
        insert_item(&innermost, "three deep").await;
        innermost.commit().await.unwrap();
        inner.commit().await.unwrap();
        let inner = tx.begin().await.unwrap();
        insert_item(&inner, "dropped").await;
        drop(inner);
        tx.commit().await.unwrap();
        assert!(present(db, "three deep").await && !present(db, "dropped").await);

        let tx = db.begin().await.unwrap();
        let inner = tx.begin().await.unwrap();
        insert_item(&inner, "inner").await;
        inner.commit().await.unwrap();
        tx.rollback().await.unwrap();
        assert!(!present(db, "inner").await, "{kind:?}");
    })
    .await;
}

#[tokio::test]
async fn transaction_options_reach_the_server() {
    everywhere(async |kind, session| {
        let db: &DbSession = session;
        if kind.backend() == DbBackend::Sqlite {
            // No such thing there: ignored, as SeaORM ignores it.
            let tx = db
                .begin_with_config(Some(IsolationLevel::Serializable), None)
                .await
                .unwrap();
            insert_item(&tx, "x").await;
            return tx.commit().await.unwrap();
        }
        let tx = db
            .begin_with_config(None, Some(AccessMode::ReadOnly))
            .await
            .unwrap();
        assert!(
            tx.execute_unprepared("INSERT INTO item (name) VALUES ('x')")
                .await
                .is_err(),
            "read only"
        );
        tx.rollback().await.unwrap();
        insert_item(db, "the next one is not").await;

        let level = Some(IsolationLevel::Serializable);
        let tx = db
            .begin_with_config(level, Some(AccessMode::ReadWrite))
            .await
            .unwrap();
        if kind == Kind::Postgres {
            let shown = tx
                .query_one_raw(Statement::from_string(
                    kind.backend(),
                    "SHOW transaction_isolation",
                ))
                .await;
            assert_eq!(
                shown
                    .unwrap()
                    .unwrap()
                    .try_get_by_index::<String>(0)
                    .unwrap(),
                "serializable"
            );
        }
        assert!(
            tx.begin_with_config(level, None).await.is_err(),
            "a savepoint has no options"
        );
        insert_item(&tx, "still in order").await;
        tx.commit().await.unwrap();
        assert_eq!(count_items(db, "still in order").await, 1);
    })
    .await;
}

#[tokio::test]
async fn errors_are_those_that_seaorm_users_know() {
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

/// Code that knows nothing of this crate.
async fn generic<C>(db: &C, name: &str) -> Result<usize, DbErr>
where
    C: ConnectionTrait + StreamTrait + TransactionTrait,
{
    named(name).insert(db).await?;
    let tx = db.begin().await?;
    item::Entity::update_many()
        .col_expr(item::Column::Hits, Expr::value(7))
        .exec(&tx)
        .await?;
    sea_orm::TransactionSession::commit(tx).await?;
    let mut rows = item::Entity::find()
        .filter(item::Column::Hits.eq(7))
        .stream(db)
        .await?;
    let mut seen = 0;
    while rows.try_next().await?.is_some() {
        seen += 1;
    }
    Ok(seen)
}

#[tokio::test]
async fn generic_code_takes_a_connection_a_session_and_a_transaction() {
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let db = test.connect(2).await;
        assert_eq!(generic(&db, "connection").await.unwrap(), 1);
        let session = session_pool(db.clone()).session().await.unwrap();
        assert_eq!(generic(&*session, "session").await.unwrap(), 2);
        let tx = session.begin().await.unwrap();
        assert_eq!(generic(&tx, "transaction").await.unwrap(), 3);
        let inner = tx.begin().await.unwrap();
        assert_eq!(generic(&inner, "savepoint").await.unwrap(), 4);
        inner.commit().await.unwrap();
        tx.commit().await.unwrap();
        drop(session);

        // A pass-through handle: no pinning, the same code.
        let plain = DbSession::from(db.clone());
        assert_eq!(generic(&plain, "plain").await.unwrap(), 5);
        let tx = plain.begin().await.unwrap();
        assert_eq!(generic(&tx, "plain transaction").await.unwrap(), 6);
        tx.rollback().await.unwrap();
        plain.ping().await.unwrap();
        plain.release().await.unwrap();
        assert!(!plain.is_closed());
        assert_eq!(plain.get_database_backend(), kind.backend());
        assert_whole(&test, &db, 2).await;
        assert_eq!(count_items(&db, "plain transaction").await, 0);
    }
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

#[tokio::test]
async fn a_released_session_checks_out_again_and_leaves_the_connection_to_others() {
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let db = test.connect(1).await;
        let pool = session_pool(db.clone());
        let session = pool.session().await.unwrap();
        insert_item(&*session, "before").await;
        session.release().await.unwrap();
        insert_item(&db, "meanwhile").await;
        insert_item(&*session, "after").await;
        let tx = session.begin().await.unwrap();
        let refused = session.release().await.unwrap_err();
        assert!(Error::of(&refused).unwrap().is_wrong_handle());
        insert_item(&tx, "in a transaction").await;
        tx.commit().await.unwrap();
        session.release().await.unwrap();
        session.release().await.unwrap();
        drop(session);
        assert_whole(&test, &db, 1).await;
        for name in ["before", "meanwhile", "after", "in a transaction"] {
            assert_eq!(count_items(&db, name).await, 1, "{kind:?}: {name}");
        }
    }
}

#[tokio::test]
async fn raw_access_gives_the_drivers_connection_and_leaves_no_transaction() {
    everywhere(async |kind, session| {
        let db: &DbSession = session;
        // What the code leaves open, the end of the session rolls back.
        let left_open = "INSERT INTO item (name) VALUES ('left open')";
        match kind {
            Kind::Postgres => {
                let pinged = db
                    .with_postgres(|c| Box::pin(async move { c.ping().await.is_ok() }))
                    .await;
                assert!(pinged.unwrap());
                assert!(
                    db.with_mysql(|c| Box::pin(c.ping())).await.is_err(),
                    "another driver"
                );
                db.with_postgres(move |c| {
                    Box::pin(async move {
                        c.execute("BEGIN").await.unwrap();
                        c.execute(left_open).await.unwrap();
                    })
                })
                .await
                .unwrap();
            }
            Kind::MySql => {
                db.with_mysql(|c| Box::pin(c.ping()))
                    .await
                    .unwrap()
                    .unwrap();
                assert!(
                    db.with_sqlite(|c| Box::pin(c.ping())).await.is_err(),
                    "another driver"
                );
                db.with_mysql(move |c| {
                    Box::pin(async move {
                        c.execute("START TRANSACTION").await.unwrap();
                        c.execute(left_open).await.unwrap();
                    })
                })
                .await
                .unwrap();
            }
            Kind::SqliteFile | Kind::SqliteMemory => {
                db.with_sqlite(|c| Box::pin(c.ping()))
                    .await
                    .unwrap()
                    .unwrap();
                assert!(
                    db.with_postgres(|c| Box::pin(c.ping())).await.is_err(),
                    "another driver"
                );
                db.with_sqlite(move |c| {
                    Box::pin(async move {
                        c.execute("BEGIN").await.unwrap();
                        c.execute(left_open).await.unwrap();
                    })
                })
                .await
                .unwrap();
            }
        }
        db.release().await.unwrap();
        assert_eq!(count_items(db, "left open").await, 0, "{kind:?}");
        // A plain handle has no connection of its own to lend.
        let plain = DbSession::from(db.pool().database().clone());
        assert!(plain.with_postgres(|c| Box::pin(c.ping())).await.is_err());
    })
    .await;
}

#[tokio::test]
async fn sessions_ping_and_show_nothing_secret() {
    everywhere(async |_, session| {
        session.ping().await.unwrap();
        let tx = session.begin().await.unwrap();
        for shown in [
            format!("{session:?}"),
            format!("{:?}", **session),
            format!("{tx:?}"),
        ] {
            assert!(shown.contains("Session"), "{shown}");
            assert!(
                !shown.contains("://") && !shown.contains("127.0.0.1"),
                "{shown}"
            );
        }
        tx.rollback().await.unwrap();
    })
    .await;
}
