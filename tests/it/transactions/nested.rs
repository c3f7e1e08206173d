//! G12: nested transactions are a stack, and only the innermost open handle runs statements (H5, H12, H16, H27).

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use http::StatusCode;
use sea_orm::{ConnectionTrait, TransactionTrait, sqlx::Executor};
use tower_sea_orm::DbTx;

use crate::support::{
    database::{Kind, TestDb, count_items, insert_item, unique_name},
    futures::after_polls,
    pool::{assert_whole, session_pool},
    requests::assert_wrong_handle,
    site::{Site, known},
    statements::slow,
};

#[tokio::test]
async fn h5_ending_siblings_out_of_order_is_an_error() {
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let db = test.connect(1).await;
        let pool = session_pool(db.clone());
        let session = pool.session().await.unwrap();

        // Siblings of the session: the second does not even begin.
        let first = session.begin().await.unwrap();
        assert_wrong_handle(session.begin().await);
        assert_wrong_handle(session.execute_unprepared("SELECT 1").await);
        insert_item(&first, "first").await;
        first.commit().await.unwrap();
        assert_eq!(count_items(&*session, "first").await, 1, "{kind:?}");

        // Siblings inside of a transaction.
        let outer = session.begin().await.unwrap();
        let inner = outer.begin().await.unwrap();
        assert_wrong_handle(outer.begin().await);
        assert_wrong_handle(outer.execute_unprepared("SELECT 1").await);
        insert_item(&inner, "inner").await;
        inner.rollback().await.unwrap();
        let sibling = outer.begin().await.unwrap();
        insert_item(&sibling, "sibling").await;
        sibling.commit().await.unwrap();
        outer.commit().await.unwrap();
        assert_eq!(count_items(&*session, "inner").await, 0, "{kind:?}");
        assert_eq!(count_items(&*session, "sibling").await, 1, "{kind:?}");

        // The outer one ends first: neither says Ok.
        for commit in [true, false] {
            let outer = session.begin().await.unwrap();
            insert_item(&outer, "outer").await;
            let inner = outer.begin().await.unwrap();
            insert_item(&inner, "inner").await;
            assert_wrong_handle(if commit {
                outer.commit().await
            } else {
                outer.rollback().await
            });
            assert_wrong_handle(inner.execute_unprepared("SELECT 1").await);
            assert_wrong_handle(inner.commit().await);
            assert_eq!(count_items(&*session, "outer").await, 0, "{kind:?}");
            assert_eq!(count_items(&*session, "inner").await, 0, "{kind:?}");
        }
        insert_item(&*session, "after").await;
        drop(session);
        assert_whole(&test, &db, 1).await;
        assert_eq!(count_items(&db, "after").await, 1, "{kind:?}");
    }
}

#[tokio::test]
async fn h5b_a_dropped_nested_begin_leaves_the_outer_transaction_intact() {
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let db = test.connect(1).await;
        let observer = test.observer().await;
        let pool = session_pool(db.clone());
        for polls in 0..10 {
            let session = pool.session().await.unwrap();
            let (before, after) = (unique_name(), unique_name());
            let outer = session.begin().await.unwrap();
            insert_item(&outer, &before).await;
            drop(after_polls(polls, outer.begin()).await);
            insert_item(&outer, &after).await;
            if let Some(observer) = &observer {
                assert_eq!(
                    count_items(observer, &before).await,
                    0,
                    "{kind:?}: not committed, {polls} polls"
                );
                assert_eq!(
                    count_items(observer, &after).await,
                    0,
                    "{kind:?}: not committed, {polls} polls"
                );
            }
            let expected = if polls % 2 == 0 {
                outer.commit().await.unwrap();
                1
            } else {
                outer.rollback().await.unwrap();
                0
            };
            assert_eq!(
                count_items(&*session, &before).await,
                expected,
                "{kind:?}, {polls} polls"
            );
            assert_eq!(
                count_items(&*session, &after).await,
                expected,
                "{kind:?}, {polls} polls"
            );
        }
        assert_whole(&test, &db, 1).await;
    }
}

#[tokio::test]
async fn h16_transactions_may_be_dropped_in_any_order_while_a_query_runs() {
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let db = test.connect(1).await;
        let pool = session_pool(db.clone());
        for order in 0..4 {
            for unwinding in [false, true] {
                let session = pool.session().await.unwrap();
                let name = unique_name();
                let drops = async {
                    let outer = session.begin().await.unwrap();
                    insert_item(&outer, &name).await;
                    let inner = std::sync::Arc::new(outer.begin().await.unwrap());
                    let queried = inner.clone();
                    let mut query =
                        Box::pin(
                            async move { queried.query_one_raw(slow(kind, 0.1)).await.map(drop) },
                        );
                    assert!(after_polls(1, &mut query).await.is_none(), "the query runs");
                    // Fields drop in their order, on return and in an unwind alike.
                    let held: Box<dyn std::any::Any> = match order {
                        0 => Box::new((Box::new(outer), query, inner)),
                        1 => Box::new((Box::new(outer), inner, query)),
                        2 => Box::new((query, Box::new(outer), inner)),
                        _ => Box::new((inner, query, Box::new(outer))),
                    };
                    assert!(!unwinding, "on purpose");
                    drop(held);
                };
                let ended = AssertUnwindSafe(drops).catch_unwind().await;
                assert_eq!(ended.is_err(), unwinding);
                // The request lives on, and so does its session.
                assert_eq!(
                    count_items(&*session, &name).await,
                    0,
                    "{kind:?}, order {order}"
                );
            }
        }
        assert_whole(&test, &db, 1).await;
    }
}

#[tokio::test]
async fn h27_rolling_nested_transactions_back_does_not_pile_up_savepoints() {
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let db = test.connect(1).await;
        let pool = session_pool(db.clone());
        let session = pool.session().await.unwrap();
        let outer = session.tx();
        for round in 0..1000 {
            let inner = outer.begin().await.unwrap();
            if round % 2 == 0 {
                inner.rollback().await.unwrap()
            } else {
                drop(inner)
            }
        }
        // Each success takes one savepoint of that name away.
        macro_rules! release_all {
            ($with:ident) => {
                outer.$with(|connection| {
                    Box::pin(async move {
                        let mut left = 0;
                        while connection
                            .execute("RELEASE SAVEPOINT _sqlx_savepoint_1")
                            .await
                            .is_ok()
                        {
                            left += 1;
                        }
                        left
                    })
                })
            };
        }
        let left = match kind {
            Kind::Postgres => release_all!(with_postgres).await,
            Kind::MySql => release_all!(with_mysql).await,
            Kind::SqliteFile | Kind::SqliteMemory => release_all!(with_sqlite).await,
        };
        let left = left.unwrap();
        assert!(left <= 1, "{kind:?}: {left} savepoints");
        // One that was there took the savepoint around the raw code along: what that code did is not known.
        assert_eq!(outer.rollback().await.is_err(), left > 0, "{kind:?}");
        drop(session);
        assert_whole(&test, &db, 1).await;
    }
}

#[tokio::test]
async fn g12_a_handle_of_the_session_is_refused_while_a_nested_one_is_open() {
    for kind in Kind::ALL {
        let site = Site::new(kind).await;
        let response = site
            .call(async |tx: DbTx| {
                insert_item(&tx, "outer").await;
                let inner = tx.begin().await.unwrap();
                assert!(
                    known(
                        tx.execute_unprepared("INSERT INTO item (name) VALUES ('no')")
                            .await
                    )
                    .is_wrong_handle()
                );
                assert!(known(tx.commit().await).is_wrong_handle());
                assert!(known(tx.rollback().await).is_wrong_handle());
                insert_item(&inner, "inner").await;
                inner.commit().await.unwrap();
            })
            .await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(
            site.seen(["outer", "inner", "no"]).await,
            [true, true, false],
            "{kind:?}"
        );
        site.assert_whole().await;
    }
}
