//! G4: `with_postgres`, `with_mysql` and `with_sqlite` give the driver's connection and leave no transaction.

use sea_orm::{
    TransactionTrait,
    sqlx::{Connection, Executor},
};
use tower_sea_orm::{DbSession, Error};

use crate::{
    seaorm::entities::everywhere,
    support::{
        database::{Kind, TestDb, count_items, insert_item},
        pool::{assert_whole, session_pool},
    },
};

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
