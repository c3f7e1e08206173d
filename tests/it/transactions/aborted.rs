//! G7: a transaction in which a statement has failed is not committed by a 200 (hazard H8).

use sea_orm::{ConnectionTrait, DbErr, Statement, TransactionTrait};
use tower_sea_orm::{Error, SessionTransaction};

use crate::support::{
    database::{Kind, TestDb, count_items, insert_item},
    pool::{assert_whole, session_pool},
};

fn assert_aborted<T>(result: Result<T, DbErr>) {
    let error = result.err().expect("an error");
    assert!(
        Error::of(&error).is_some_and(|error| error.is_aborted()),
        "{error}"
    );
}

/// Fails because the name is taken.
async fn fail(tx: &SessionTransaction) {
    tx.execute_unprepared("INSERT INTO item (name) VALUES ('taken')")
        .await
        .unwrap_err();
}

#[tokio::test]
async fn h8_a_swallowed_error_is_no_commit_on_postgres() {
    let test = TestDb::new(Kind::Postgres).await;
    let db = test.connect(1).await;
    insert_item(&db, "taken").await;
    let session = session_pool(db.clone()).session().await.unwrap();

    let tx = session.begin().await.unwrap();
    insert_item(&tx, "lost").await;
    fail(&tx).await;
    assert_aborted(tx.commit().await);
    assert_eq!(count_items(&*session, "lost").await, 0);

    // The next transaction starts afresh.
    let tx = session.begin().await.unwrap();
    insert_item(&tx, "kept").await;
    tx.commit().await.unwrap();
    assert_eq!(count_items(&*session, "kept").await, 1);
    drop(session);
    assert_whole(&test, &db, 1).await;
}

#[tokio::test]
async fn h8_an_error_rolled_back_to_its_savepoint_spares_the_outer_level() {
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let db = test.connect(1).await;
        insert_item(&db, "taken").await;
        let session = session_pool(db.clone()).session().await.unwrap();
        let outer = session.begin().await.unwrap();
        insert_item(&outer, "kept").await;

        let inner = outer.begin().await.unwrap();
        fail(&inner).await;
        inner.rollback().await.unwrap();

        let inner = outer.begin().await.unwrap();
        fail(&inner).await;
        drop(inner);

        let inner = outer.begin().await.unwrap();
        fail(&inner).await;
        if kind == Kind::Postgres {
            assert_aborted(inner.commit().await);
        } else {
            inner.commit().await.unwrap();
        }
        outer.commit().await.unwrap();
        assert_eq!(count_items(&*session, "kept").await, 1, "{kind:?}");
        drop(session);
        assert_whole(&test, &db, 1).await;
    }
}

#[tokio::test]
async fn h8_a_deadlocks_victim_on_mysql_neither_autocommits_nor_commits() {
    let test = TestDb::new(Kind::MySql).await;
    let db = test.connect(2).await;
    insert_item(&db, "one").await;
    insert_item(&db, "two").await;
    let pool = session_pool(db.clone());
    let (first, second) = (pool.session().await.unwrap(), pool.session().await.unwrap());
    let lock = |name: &str| format!("UPDATE item SET hits = hits + 1 WHERE name = '{name}'");

    // The victim's inner transaction fails; the outer one is gone with it.
    let other = second.begin().await.unwrap();
    // InnoDB gives up the one that has changed fewer rows.
    for n in 0..20 {
        insert_item(&other, &format!("weight {n}")).await;
    }
    other.execute_unprepared(&lock("two")).await.unwrap();
    let outer = first.begin().await.unwrap();
    let inner = outer.begin().await.unwrap();
    inner.execute_unprepared(&lock("one")).await.unwrap();
    // Whichever comes last closes the circle: the lighter one is the victim.
    let (one, two) = (lock("one"), lock("two"));
    let (heavier, victim) = futures_util::join!(
        other.execute_unprepared(&one),
        inner.execute_unprepared(&two)
    );
    heavier.unwrap();
    let error = Error::of(&victim.unwrap_err()).unwrap();
    assert!(error.is_conflict());

    assert_aborted(
        inner
            .execute_unprepared("INSERT INTO item (name) VALUES ('autocommitted')")
            .await,
    );
    assert_aborted(inner.commit().await);
    assert_aborted(outer.commit().await);
    other.rollback().await.unwrap();
    // The session goes on, on the same connection.
    assert_eq!(count_items(&*first, "autocommitted").await, 0);
    let tx = first.begin().await.unwrap();
    insert_item(&tx, "kept").await;
    tx.commit().await.unwrap();
    assert_eq!(count_items(&*second, "kept").await, 1);
    drop((first, second));
    assert_whole(&test, &db, 2).await;
}

#[tokio::test]
async fn h8_a_full_sqlite_database_ends_the_transaction_for_good() {
    for kind in [Kind::SqliteFile, Kind::SqliteMemory] {
        let test = TestDb::new(kind).await;
        let db = test.connect(1).await;
        let session = session_pool(db.clone()).session().await.unwrap();
        let pages = "SELECT page_count AS n FROM pragma_page_count()";
        let statement = Statement::from_string(sea_orm::DbBackend::Sqlite, pages);
        let row = session.query_one_raw(statement).await.unwrap().unwrap();
        let pages: i32 = row.try_get("", "n").unwrap();
        session
            .execute_unprepared(&format!("PRAGMA max_page_count = {}", pages + 2))
            .await
            .unwrap();

        let tx = session.begin().await.unwrap();
        insert_item(&tx, "lost").await;
        let fill = "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t WHERE n < 9000) \
                    INSERT INTO item (name) SELECT 'filler ' || n FROM t";
        tx.execute_unprepared(fill).await.unwrap_err();
        assert_aborted(
            tx.execute_unprepared("INSERT INTO item (name) VALUES ('autocommitted')")
                .await,
        );
        assert_aborted(tx.commit().await);

        session
            .execute_unprepared("PRAGMA max_page_count = 1000000")
            .await
            .unwrap();
        for name in ["lost", "autocommitted"] {
            assert_eq!(count_items(&*session, name).await, 0, "{kind:?} {name}");
        }
        let tx = session.begin().await.unwrap();
        insert_item(&tx, "kept").await;
        tx.commit().await.unwrap();
        assert_eq!(count_items(&*session, "kept").await, 1, "{kind:?}");
        drop(session);
        assert_whole(&test, &db, 1).await;
    }
}
