//! G12: `TransactionTrait` on a session: commits, rollbacks, options, and generic code.

use futures_util::TryStreamExt;
use sea_orm::{
    AccessMode, ActiveModelTrait, ColumnTrait, ConnectionTrait, DbBackend, DbErr, EntityTrait,
    IsolationLevel, QueryFilter, SqliteTransactionMode, Statement, StreamTrait, TransactionError,
    TransactionOptions, TransactionTrait, sea_query::Expr,
};
use tower_sea_orm::{DbSession, SessionTransaction};

use crate::{
    seaorm::entities::{everywhere, item, named},
    support::{
        database::{Kind, TestDb, count_items, insert_item},
        pool::{assert_whole, session_pool},
    },
};

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
