//! G16: whichever of a session's futures are still polled, each of those ends.

use std::{
    future::pending,
    pin::pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::{
    StreamExt,
    future::join_all,
    stream::{self, FuturesUnordered},
};
use http::StatusCode;
use sea_orm::{ConnectionTrait, Statement, StreamTrait, TransactionTrait};
use tokio::{sync::Notify, time::timeout};
use tower_sea_orm::{DbSession, DbSessionLayer, DbTx};

use crate::support::{
    database::{Kind, TestDb, unique_name},
    futures::{once, under_way},
    pool::{assert_whole, opened, returned, session_pool},
    site::{BOUND, SIZE, Site, outcome},
    statements::{insert, slow},
    wait::eventually,
};

/// The mode in which the session's statements run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Autocommit,
    Own,
    Nested,
    Savepoint,
    /// A handle over a plain `DatabaseConnection`.
    PassThrough,
}

const MODES: [Mode; 5] = [
    Mode::Autocommit,
    Mode::Own,
    Mode::Nested,
    Mode::Savepoint,
    Mode::PassThrough,
];

/// The session's own connection in `mode`, to `work`, which must not hang.
macro_rules! in_mode {
    ($test:expr, $db:expr, $mode:expr, $work:ident) => {{
        let pool = session_pool($db.clone());
        let session = pool.session().await.unwrap();
        let done = async {
            match $mode {
                Mode::Autocommit => $work(&*session, $test.kind).await,
                Mode::Own => {
                    let tx = session.tx();
                    $work(&tx, $test.kind).await;
                    tx.commit().await.unwrap();
                }
                Mode::Nested => {
                    let tx = session.begin().await.unwrap();
                    $work(&tx, $test.kind).await;
                    tx.commit().await.unwrap();
                }
                Mode::Savepoint => {
                    let tx = session.tx();
                    let inner = tx.begin().await.unwrap();
                    $work(&inner, $test.kind).await;
                    inner.commit().await.unwrap();
                    tx.commit().await.unwrap();
                }
                Mode::PassThrough => $work(&DbSession::from($db.clone()), $test.kind).await,
            }
        };
        timeout(BOUND, done)
            .await
            .unwrap_or_else(|_| panic!("{:?} {:?} hangs", $test.kind, $mode));
        drop(session);
        returned(&pool).await;
        assert_whole(&$test, &$db, SIZE).await;
    }};
}

/// In-memory databases have one connection, so what passes through would wait for the session's.
fn is_possible(kind: Kind, mode: Mode) -> bool {
    (kind, mode) != (Kind::SqliteMemory, Mode::PassThrough)
}

#[tokio::test]
async fn a_heartbeat_runs_while_a_statement_is_selected_by_reference() {
    for kind in Kind::ALL {
        for mode in MODES.into_iter().filter(|mode| is_possible(kind, *mode)) {
            let test = TestDb::new(kind).await;
            let db = test.connect(SIZE).await;
            in_mode!(test, db, mode, beat);
        }
    }
}

async fn beat(db: &impl ConnectionTrait, kind: Kind) {
    let mut long = pin!(db.query_one_raw(slow(kind, 0.1)));
    let mut beats = 0;
    loop {
        tokio::select! {
            biased;
            () = tokio::time::sleep(Duration::from_millis(5)), if beats < 3 => {
                db.execute_unprepared("UPDATE item SET hits = hits + 1").await.unwrap();
                beats += 1;
            }
            row = &mut long => {
                assert!(row.unwrap().is_some());
                break;
            }
        }
    }
    assert!(beats > 0 || kind.backend() == sea_orm::DbBackend::Sqlite);
}

#[tokio::test]
async fn combinators_with_a_statement_per_item_complete() {
    for kind in Kind::ALL {
        for mode in [Mode::Autocommit, Mode::Own, Mode::Nested, Mode::Savepoint] {
            let test = TestDb::new(kind).await;
            let db = test.connect(SIZE).await;
            in_mode!(test, db, mode, combine);
        }
    }
}

async fn combine(db: &impl ConnectionTrait, kind: Kind) {
    let select = || db.query_one_raw(slow(kind, 0.002));
    let mut rows = stream::iter(0..8).map(|_| select()).buffered(3);
    while let Some(row) = rows.next().await {
        row.unwrap();
        db.execute_unprepared("UPDATE item SET hits = hits + 1")
            .await
            .unwrap();
    }
    let mut rows = stream::iter(0..8).map(|_| select()).buffer_unordered(3);
    while let Some(row) = rows.next().await {
        row.unwrap();
        db.execute_unprepared("UPDATE item SET hits = hits + 1")
            .await
            .unwrap();
    }
    let mut rows: FuturesUnordered<_> = (0..5).map(|_| select()).collect();
    while let Some(row) = rows.next().await {
        row.unwrap();
        db.execute_unprepared("UPDATE item SET hits = hits + 1")
            .await
            .unwrap();
    }
    let mut kept: FuturesUnordered<_> = (0..5).map(|_| select()).collect();
    kept.next().await.unwrap().unwrap();
    db.execute_unprepared("UPDATE item SET hits = hits + 1")
        .await
        .unwrap();
    drop(kept);
    select().await.unwrap();
}

#[tokio::test]
async fn futures_that_are_never_polled_again_do_not_block_the_session() {
    for kind in Kind::ALL {
        for mode in [Mode::Autocommit, Mode::Own, Mode::Nested, Mode::Savepoint] {
            let test = TestDb::new(kind).await;
            let db = test.connect(SIZE).await;
            in_mode!(test, db, mode, half_polled);
        }
    }
}

async fn half_polled(db: &impl ConnectionTrait, kind: Kind) {
    let first = under_way(|| Box::pin(db.query_one_raw(slow(kind, 0.02)))).await;
    let mut second = Box::pin(db.execute_unprepared("UPDATE item SET hits = hits + 1"));
    let mut third = Box::pin(db.query_all_raw(slow(kind, 0.001)));
    assert!(once(second.as_mut()).await.is_pending());
    assert!(once(third.as_mut()).await.is_pending());
    db.execute_unprepared("UPDATE item SET hits = hits + 2")
        .await
        .unwrap();
    // What was kept is not lost.
    drop(second);
    assert!(first.await.unwrap().is_some());
    assert_eq!(third.await.unwrap().len(), 1);
}

#[tokio::test]
async fn an_unpolled_commit_does_not_block_the_session() {
    for kind in Kind::ALL {
        let site = Site::new(kind).await;
        let response = site
            .call(async move |db: DbSession| {
                let (first, second) = (unique_name(), unique_name());
                let tx = db.begin().await.unwrap();
                tx.execute_unprepared(&insert(&first)).await.unwrap();
                let mut commit = Box::pin(tx.commit());
                let _ = once(commit.as_mut()).await;
                db.execute_unprepared(&insert(&second)).await.unwrap();
                db.tx();
                db.execute_unprepared("UPDATE item SET hits = hits + 1")
                    .await
                    .unwrap();
                let mut commit = Box::pin(db.commit());
                let _ = once(commit.as_mut()).await;
                db.execute_unprepared("UPDATE item SET hits = hits + 1")
                    .await
                    .unwrap();
                let mut roll_back = Box::pin(db.rollback());
                let _ = once(roll_back.as_mut()).await;
                let rows = db
                    .query_all_raw(Statement::from_string(
                        kind.backend(),
                        "SELECT hits FROM item",
                    ))
                    .await;
                let rows = rows.unwrap();
                assert!(
                    rows.iter()
                        .all(|row| row.try_get_by_index::<i32>(0).unwrap() == 1),
                    "{kind:?}"
                );
                assert_eq!(rows.len(), 2);
            })
            .await;
        assert_eq!(response.status(), StatusCode::OK, "{kind:?}");
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn an_unpolled_first_statement_does_not_block_the_session() {
    for kind in Kind::ALL {
        for transactional in [false, true] {
            let test = TestDb::new(kind).await;
            let db = test.connect(1).await;
            let site = Site::with(test, db, 1).await.layered(DbSessionLayer::lazy);
            let taken = opened(site.layer.pool()).await;
            let taken = Arc::new(Mutex::new(Some(taken)));
            let response = site
                .call(async move |db: DbSession| {
                    if transactional {
                        db.tx();
                    }
                    let mut first = Box::pin(db.execute_unprepared("UPDATE item SET hits = 1"));
                    assert!(once(first.as_mut()).await.is_pending());
                    let mut second = pin!(db.execute_unprepared("UPDATE item SET hits = 2"));
                    assert!(once(second.as_mut()).await.is_pending());
                    drop(taken.lock().unwrap().take());
                    second.await.unwrap();
                    first.await.unwrap();
                })
                .await;
            assert_eq!(response.status(), StatusCode::OK, "{kind:?}");
            site.assert_whole().await;
        }
    }
}

#[tokio::test]
async fn statements_of_a_session_run_in_the_order_of_their_first_polls() {
    for kind in Kind::ALL {
        let site = Site::new(kind).await;
        site.call(async move |tx: DbTx| {
            let _long = under_way(|| Box::pin(tx.query_one_raw(slow(kind, 0.02)))).await;
            let names: Vec<_> = (0..20).map(|n| format!("n{n:02}")).collect();
            let mut inserts: Vec<_> = names
                .iter()
                .map(|name| {
                    let tx = tx.clone();
                    Box::pin(async move { tx.execute_unprepared(&insert(name)).await.map(drop) })
                })
                .collect();
            for insert in &mut inserts {
                assert!(once(insert.as_mut()).await.is_pending());
            }
            // Every other one is polled, from the last to the first.
            let (mut polled, mut kept) = (Vec::new(), Vec::new());
            for (n, insert) in inserts.into_iter().enumerate().rev() {
                if n % 2 == 0 {
                    polled.push(insert)
                } else {
                    kept.push(insert)
                }
            }
            for result in join_all(polled).await {
                result.unwrap();
            }
            let sql = "SELECT name FROM item ORDER BY id";
            let rows = tx
                .query_all_raw(Statement::from_string(kind.backend(), sql))
                .await
                .unwrap();
            let seen: Vec<String> = rows
                .iter()
                .map(|row| row.try_get_by_index(0).unwrap())
                .collect();
            assert_eq!(seen, names[..seen.len()], "{kind:?}");
            assert!(seen.len() >= 19, "{kind:?}: {seen:?}");
            drop(kept);
        })
        .await;
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn a_statement_dropped_before_its_turn_is_not_sent() {
    for kind in Kind::ALL {
        let site = Site::new(kind).await;
        let response = site
            .call(async move |db: DbSession| {
                let long = under_way(|| Box::pin(db.query_one_raw(slow(kind, 0.02)))).await;
                let sql = insert("dropped");
                let mut dropped = Box::pin(db.execute_unprepared(&sql));
                assert!(once(dropped.as_mut()).await.is_pending());
                drop(dropped);
                long.await.unwrap();
            })
            .await;
        assert_eq!(response.status(), StatusCode::OK);
        site.assert_whole().await;
        assert_eq!(site.count("dropped").await, 0, "{kind:?}");
    }
}

#[tokio::test]
async fn a_transaction_dropped_with_its_statement_is_rolled_back_after_it() {
    for kind in [Kind::Postgres, Kind::MySql, Kind::SqliteFile] {
        for (own, streams) in [(false, false), (true, false), (false, true), (true, true)] {
            let site = Site::new(kind)
                .await
                .pooled(|pool| pool.release_timeout(Duration::from_secs(120)));
            site.run(&insert("locked")).await;
            let view = site.view().clone();
            let response = site
                .call(async move |db: DbSession| {
                    if own {
                        db.tx();
                        // Not on SQLite, where a lock is the whole file's.
                        db.query_all_raw(Statement::from_string(kind.backend(), "SELECT 1"))
                            .await
                            .unwrap();
                    }
                    let updated = Notify::new();
                    let work = async {
                        let tx = db.begin().await.unwrap();
                        tx.execute_unprepared("UPDATE item SET hits = 5")
                            .await
                            .unwrap();
                        updated.notify_one();
                        if streams {
                            let mut rows = tx.stream_raw(slow(kind, 0.4)).await.unwrap();
                            while rows.next().await.is_some() {}
                        } else {
                            tx.query_one_raw(slow(kind, 0.4)).await.unwrap();
                        }
                        pending::<()>().await;
                    };
                    // An UPDATE that SQLite is interrupted in takes the whole transaction with it.
                    let into_the_slow_one = async {
                        updated.notified().await;
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    };
                    tokio::select! {
                        () = work => unreachable!(),
                        () = into_the_slow_one => {}
                    }
                    // The handler does something else, and another one needs what was locked.
                    if kind != Kind::SqliteFile || !own {
                        let sql = "UPDATE item SET hits = 1";
                        eventually("the lock is free", async || {
                            view.execute_unprepared(sql).await.is_ok()
                        })
                        .await;
                    }
                    // However slow the machine is, nothing of it runs any more when the handler answers.
                    db.query_all_raw(Statement::from_string(kind.backend(), "SELECT 1"))
                        .await
                        .unwrap();
                })
                .await;
            assert_eq!(
                response.status(),
                StatusCode::OK,
                "{kind:?} {own} {streams} {:?}",
                outcome(&response)
            );
            site.assert_whole().await;
        }
    }
}

#[tokio::test]
async fn a_failed_response_does_not_wait_for_a_dropped_statement() {
    for kind in [Kind::Postgres, Kind::MySql] {
        for nested in [false, true] {
            let site = Site::new(kind)
                .await
                .pooled(|pool| pool.release_timeout(Duration::from_secs(120)));
            let started = std::time::Instant::now();
            let response = site
                .call(async move |db: DbSession| {
                    let work = async {
                        if nested {
                            let tx = db.begin().await.unwrap();
                            tx.query_one_raw(slow(kind, 60.0)).await.unwrap();
                        } else {
                            db.tx().query_one_raw(slow(kind, 60.0)).await.unwrap();
                        }
                    };
                    // What an inner time-out layer does.
                    assert!(timeout(Duration::from_millis(50), work).await.is_err());
                    StatusCode::GATEWAY_TIMEOUT
                })
                .await;
            assert_eq!(
                response.status(),
                StatusCode::GATEWAY_TIMEOUT,
                "{kind:?} {nested}"
            );
            assert!(started.elapsed() < BOUND);
        }
    }
}
