//! `PoolMode::Transaction`: what would be answered for another session is refused, with and without load alike.

use std::panic::{AssertUnwindSafe, catch_unwind};

use axum::{Router, routing::get};
use http::StatusCode;
use sea_orm::{ConnectionTrait, DbErr, TransactionTrait};
use tokio::task::yield_now;
use tower_sea_orm::{
    DbSession, DbSessionLayer, DbTx, Error, PoolMode, Reset, SessionPool, SessionPoolBuilder,
};

use super::lending::select;
use crate::support::{
    database::{Kind, TestDb, insert_item, unique_name},
    pool::{layer_with, opened, pool_with},
    requests::send,
};

/// Statements that ask about an earlier one, and those that set what they ask for.
fn readers(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Postgres => &["SELECT lastval()"],
        Kind::MySql => &[
            "SELECT LAST_INSERT_ID()",
            "SELECT @@identity",
            "SELECT ROW_COUNT()",
            "SELECT FOUND_ROWS()",
            "SHOW WARNINGS",
            "SHOW ERRORS",
            "SELECT @@warning_count",
        ],
        _ => &[
            "SELECT last_insert_rowid()",
            "SELECT changes()",
            "SELECT total_changes()",
        ],
    }
}

#[track_caller]
fn assert_refused<T: std::fmt::Debug>(result: Result<T, DbErr>) {
    let error = result.unwrap_err();
    let known = Error::of(&error).unwrap_or_else(|| panic!("{error}"));
    assert!(known.is_forbidden_statement(), "{error}");
    assert!(known.to_string().contains("session.pin()"), "{error}");
}

/// Some are about any statement: also about a BEGIN, or a SELECT.
#[track_caller]
fn assert_refused_unless_any<T: std::fmt::Debug>(sql: &str, result: Result<T, DbErr>) {
    if ["ROW", "FOUND", "WARN", "ERRORS", "warning"]
        .iter()
        .any(|any| sql.contains(any))
    {
        result.unwrap();
    } else {
        assert_refused(result);
    }
}

#[tokio::test]
async fn readers_of_an_earlier_statement_are_refused_outside_transactions() {
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let db = test.connect(2).await;
        let pool = pool_with(&db, |pool| pool.pool_mode(PoolMode::Transaction));
        let session = opened(&pool).await;
        insert_item(&session, &unique_name()).await;
        for sql in readers(kind) {
            assert_refused(session.execute_unprepared(sql).await);
            // In a transaction it is the session's own connection.
            let tx = session.begin().await.unwrap();
            insert_item(&tx, &unique_name()).await;
            tx.execute_unprepared(sql).await.unwrap();
            tx.commit().await.unwrap();
            assert_refused(session.execute_unprepared(sql).await);
            // What it asks about has to be in the transaction, or behind the pin, whatever else is.
            let tx = session.begin().await.unwrap();
            assert_refused_unless_any(sql, tx.execute_unprepared(sql).await);
            tx.commit().await.unwrap();
            let pin = session.pin();
            assert_eq!(pool.status().lendable, 0);
            select(&session).await;
            assert_refused_unless_any(sql, session.execute_unprepared(sql).await);
            insert_item(&session, &unique_name()).await;
            session.execute_unprepared(sql).await.unwrap();
            drop(pin);
            assert_refused(session.execute_unprepared(sql).await);
            // The session goes on.
            insert_item(&session, &unique_name()).await;
        }
    }
}

#[tokio::test]
async fn session_state_keeps_what_came_after_it_readable() {
    for (kind, set) in [
        (Kind::Postgres, "SET application_name = 'x'"),
        (Kind::MySql, "SET @x = 1"),
        (Kind::SqliteFile, "CREATE TEMP TABLE x (id integer)"),
        (Kind::SqliteMemory, "CREATE TEMP TABLE x (id integer)"),
    ] {
        let test = TestDb::new(kind).await;
        let db = test.connect(2).await;
        let pool = pool_with(&db, |pool| pool.pool_mode(PoolMode::Transaction));
        let session = opened(&pool).await;
        insert_item(&session, &unique_name()).await;
        session.execute_unprepared(set).await.unwrap();
        let reader = readers(kind)[0];
        // What it asks about may have run elsewhere.
        assert_refused(session.execute_unprepared(reader).await);
        select(&session).await;
        assert_refused(session.execute_unprepared(reader).await);
        insert_item(&session, &unique_name()).await;
        session.execute_unprepared(reader).await.unwrap();
        // Given back, the connection and all that was on it is another one's.
        session.release().await.unwrap();
        assert_refused(session.execute_unprepared(reader).await);
    }
}

#[tokio::test]
async fn a_transaction_and_session_mode_refuse_nothing() {
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let db = test.connect(2).await;
        let layer = layer_with(&db, |pool| pool.pool_mode(PoolMode::Transaction));
        let pool = layer.pool().clone();
        let reader = readers(kind)[0];
        let app = Router::new()
            .route(
                "/tx",
                get(async move |tx: DbTx| {
                    insert_item(&tx, &unique_name()).await;
                    yield_now().await;
                    tx.execute_unprepared(reader).await.unwrap();
                }),
            )
            .layer(layer);
        assert_eq!(send(&app, "/tx").await.status(), StatusCode::OK);
        let app = Router::new()
            .route(
                "/",
                get(async move |db: DbSession| {
                    insert_item(&db, &unique_name()).await;
                    yield_now().await;
                    db.execute_unprepared(reader).await.unwrap();
                }),
            )
            .layer(DbSessionLayer::new(pool).pool_mode(PoolMode::Session));
        assert_eq!(send(&app, "/").await.status(), StatusCode::OK);
    }
}

#[tokio::test]
async fn a_reset_after_every_statement_is_refused() {
    let test = TestDb::new(Kind::SqliteFile).await;
    let db = test.connect(2).await;
    let always = |pool: SessionPoolBuilder| pool.reset(Reset::SessionStateAlways);
    let built = always(SessionPool::builder(db.clone())).pool_mode(PoolMode::Transaction);
    let error = built.build().unwrap_err().to_string();
    assert!(error.contains("SessionStateAlways"), "{error}");
    let layer = layer_with(&db, |pool| always(pool).pool_mode(PoolMode::Session));
    let layer = || layer.clone().pool_mode(PoolMode::Transaction);
    let panic = catch_unwind(AssertUnwindSafe(layer)).unwrap_err();
    let message = panic.downcast_ref::<String>().unwrap();
    assert!(message.contains("SessionStateAlways"), "{message}");
}
