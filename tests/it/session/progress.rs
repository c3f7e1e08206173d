//! G16: whichever of a session's futures are still polled, each of those ends.

use std::{
    future::{Future, pending, poll_fn},
    pin::{Pin, pin},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::Duration,
};

use axum::response::IntoResponse;
use futures_util::{
    FutureExt, StreamExt,
    future::{join_all, ready},
    stream::{self, FuturesUnordered},
};
use http::StatusCode;
use proptest::{
    collection::vec,
    prelude::{Just, Strategy, any, prop_oneof},
    test_runner::{Config, TestRunner},
};
use sea_orm::{ConnectionTrait, DbErr, Statement, StreamTrait, TransactionTrait};
use tokio::{runtime::Runtime, sync::Notify, time::timeout};
use tower_sea_orm::{DbSession, DbSessionLayer, DbTx, SessionPool};

use crate::support::{
    cases,
    database::{Kind, TestDb, unique_name},
    pool::{assert_whole, opened, pool_with, session_pool},
    site::{BOUND, SIZE, Site, known, outcome, retry_after},
    wait::eventually,
};

/// What the session's statements run in.
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

/// A statement that takes about so long.
fn slow(kind: Kind, seconds: f32) -> Statement {
    let sql = match kind {
        Kind::Postgres => format!("SELECT 1 AS n FROM (SELECT pg_sleep({seconds})) AS slept"),
        Kind::MySql => format!("SELECT SLEEP({seconds}) AS n"),
        _ => {
            let rows = (seconds * 4_000_000.0) as u32;
            format!(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows}) SELECT count(*) FROM n"
            )
        }
    };
    Statement::from_string(kind.backend(), sql)
}

fn insert(name: &str) -> String {
    format!("INSERT INTO item (name) VALUES ('{name}')")
}

/// Polls `future` once.
async fn once<F: Future + ?Sized>(mut future: Pin<&mut F>) -> Poll<F::Output> {
    poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await
}

/// A future that its first poll has started and not ended. On a busy machine, the server may have answered before that
/// poll is over: then the next one is taken.
async fn under_way<F: Future + Unpin>(mut start: impl FnMut() -> F) -> F {
    loop {
        let mut future = start();
        if once(Pin::new(&mut future)).await.is_pending() {
            return future;
        }
    }
}

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
        whole(&pool).await;
        assert_whole(&$test, &$db, SIZE).await;
    }};
}

async fn whole(pool: &SessionPool) {
    eventually("no session is out", async || {
        let status = pool.status();
        (status.used, status.acquiring, status.pending) == (0, 0, 0)
    })
    .await;
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
async fn combinators_with_a_statement_for_each_item_come_to_their_end() {
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
async fn futures_that_are_never_polled_again_hold_nobody_up() {
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
async fn a_commit_that_is_not_polled_any_more_holds_nobody_up() {
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
async fn a_first_statement_that_waits_for_its_connection_unpolled_holds_nobody_up() {
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
async fn raw_code_that_is_not_polled_goes_on_and_is_dropped_with_its_future() {
    let site = Site::new(Kind::Postgres).await;
    let response = site
        .call(async |db: DbSession| {
            let sleeps = || {
                Box::pin(db.with_postgres(|connection| {
                    Box::pin(async move {
                        sea_orm::sqlx::query("SELECT pg_sleep(0.02)")
                            .execute(connection)
                            .await
                            .unwrap();
                        7
                    })
                }))
            };
            let code = under_way(sleeps).await;
            db.execute_unprepared("UPDATE item SET hits = 1")
                .await
                .unwrap();
            assert_eq!(code.await.unwrap(), 7);
            // Never done, and its future is dropped while a statement waits for it.
            let mut code = Box::pin(db.with_postgres(|_| Box::pin(pending::<()>())));
            assert!(once(code.as_mut()).await.is_pending());
            let mut next = pin!(db.execute_unprepared("UPDATE item SET hits = 1"));
            assert!(
                timeout(Duration::from_millis(20), next.as_mut())
                    .await
                    .is_err()
            );
            drop(code);
            next.await.unwrap_err();
        })
        .await;
    assert_eq!(response.status(), StatusCode::OK);
    site.assert_whole().await;
}

#[tokio::test]
async fn raw_code_that_uses_its_own_session_is_told_so() {
    let site = Site::new(Kind::Postgres).await;
    let response = site
        .call(async |tx: DbTx| {
            let session = tx.clone();
            let inside = async move {
                let select = known(session.execute_unprepared("SELECT 1").await);
                let begin = known(session.begin().await);
                let commit = known(session.commit().await);
                let release = known(session.release().await);
                [select, begin, commit, release]
            };
            let errors = tx.with_postgres(|_| inside.boxed()).await.unwrap();
            for error in errors {
                assert!(error.is_wrong_handle(), "{error}");
                assert!(error.to_string().contains("raw closure"), "{error}");
            }
            // Beside the code and not inside, it waits for its turn.
            let sleep = "SELECT pg_sleep(0.02)";
            let raw = tx.with_postgres(move |connection| {
                sea_orm::sqlx::query(sleep).execute(connection).boxed()
            });
            let (raw, beside) =
                tokio::join!(raw, tx.execute_unprepared("UPDATE item SET hits = 1"));
            raw.unwrap().unwrap();
            beside.unwrap();
        })
        .await;
    assert_eq!(response.status(), StatusCode::OK);
    site.assert_whole().await;
}

#[tokio::test]
async fn a_transaction_dropped_with_its_running_statement_is_rolled_back_at_its_end() {
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

/// Asks the session something when it is dropped.
struct Asks(DbSession, Arc<AtomicBool>);

impl Drop for Asks {
    fn drop(&mut self) {
        let _ = (
            self.0.is_closed(),
            self.0.is_transactional(),
            self.0.pool().status(),
        );
        let _ = self.0.after_rollback(ready(()));
        self.1.store(true, Ordering::SeqCst);
    }
}

/// How a session comes to drop a hook.
#[derive(Clone, Copy, Debug)]
enum Dropping {
    Commit,
    EarlyCommit,
    RollBack,
    EarlyRollBack,
    Savepoint,
    DroppedSavepoint,
    Autocommit,
}

#[test]
fn captures_of_a_hook_that_will_not_run_may_use_the_session_in_their_drop() {
    use Dropping::*;
    // In a thread: a lock that is taken twice blocks it.
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        Runtime::new().unwrap().block_on(async {
            for kind in [Kind::SqliteFile, Kind::Postgres] {
                for how in [
                    Commit,
                    EarlyCommit,
                    RollBack,
                    EarlyRollBack,
                    Savepoint,
                    DroppedSavepoint,
                    Autocommit,
                ] {
                    drop_hooks(kind, how).await;
                }
            }
        });
        sender.send(()).unwrap();
    });
    receiver
        .recv_timeout(3 * BOUND)
        .expect("no lock is taken twice");
}

async fn drop_hooks(kind: Kind, how: Dropping) {
    let site = Site::new(kind).await;
    let dropped = Arc::new(AtomicBool::new(false));
    let flag = dropped.clone();
    site.call(async move |db: DbSession| {
        let asks = |flag: &Arc<AtomicBool>| Asks(db.clone(), flag.clone());
        if !matches!(how, Dropping::Autocommit) {
            db.tx();
        }
        db.execute_unprepared("UPDATE item SET hits = 1")
            .await
            .unwrap();
        let capture = asks(&flag);
        let hook = async move {
            let _capture = &capture;
            pending::<()>().await;
        };
        match how {
            Dropping::Commit | Dropping::Autocommit => db.after_rollback(hook).unwrap(),
            Dropping::EarlyCommit => {
                db.after_rollback(hook).unwrap();
                db.commit().await.unwrap();
            }
            Dropping::RollBack => db.after_commit(hook).unwrap(),
            Dropping::EarlyRollBack => {
                db.after_commit(hook).unwrap();
                db.rollback().await.unwrap();
            }
            Dropping::Savepoint => {
                let inner = db.begin().await.unwrap();
                inner.after_commit(hook).unwrap();
                inner.rollback().await.unwrap();
            }
            Dropping::DroppedSavepoint => {
                let inner = db.begin().await.unwrap();
                inner.after_commit(hook).unwrap();
                drop(inner);
                db.execute_unprepared("UPDATE item SET hits = 1")
                    .await
                    .unwrap();
            }
        }
        if matches!(how, Dropping::RollBack) {
            StatusCode::CONFLICT
        } else {
            StatusCode::OK
        }
    })
    .await;
    eventually("the capture is dropped", async || {
        dropped.load(Ordering::SeqCst)
    })
    .await;
    site.assert_whole().await;
}

/// A body that asks its session something when it is asked for its own size.
struct AsksBack(DbSession);

impl http_body::Body for AsksBack {
    type Data = bytes::Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<bytes::Bytes>, Self::Error>>> {
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_closed()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::SizeHint::with_exact(u64::from(self.0.is_closed()))
    }
}

#[test]
fn a_body_that_is_held_may_use_the_session_when_it_is_asked_for_its_size() {
    // In a thread: a lock that is taken twice blocks it.
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        Runtime::new().unwrap().block_on(async {
            let site = Site::new(Kind::SqliteMemory).await;
            let ended = Arc::new(Mutex::new(None));
            let kept = ended.clone();
            let response = site
                .call(async move |db: DbSession| {
                    *kept.lock().unwrap() = Some(db.clone());
                    axum::body::Body::new(db.hold_until_body_end(AsksBack(db.clone())))
                })
                .await;
            assert_eq!(response.status(), StatusCode::OK);
            axum::body::to_bytes(response.into_body(), 100)
                .await
                .unwrap();
            let ended = ended.lock().unwrap().take().unwrap();
            eventually("the session has ended", async || ended.is_closed()).await;
            drop(ended.hold_until_body_end(AsksBack(ended.clone())));
            site.assert_whole().await;
        });
        sender.send(()).unwrap();
    });
    receiver
        .recv_timeout(3 * BOUND)
        .expect("no lock is taken twice");
}

#[tokio::test]
async fn ddl_of_a_session_that_passes_through_is_looked_at_again_before_it_is_sent() {
    let set_up = Statement::from_string(sea_orm::DbBackend::MySql, "SET time_zone = '+00:00'");
    let done = sea_orm::MockExecResult {
        last_insert_id: 0,
        rows_affected: 0,
    };
    let mock = sea_orm::MockDatabase::new(sea_orm::DbBackend::MySql)
        .append_exec_results([done.clone(), done]);
    let db = mock.into_connection();
    let layer = DbSessionLayer::new(db.clone()).on_acquire(move |_| vec![set_up.clone()]);
    let app = axum::Router::new().fallback(async |db: DbSession| {
        let mut ddl = pin!(db.execute_unprepared("CREATE TABLE later (id integer)"));
        // The connection is being set up; by the time that is done, the session is in a transaction.
        assert!(once(ddl.as_mut()).await.is_pending());
        db.tx();
        assert!(known(ddl.await).is_forbidden_statement());
        StatusCode::BAD_REQUEST
    });
    assert_eq!(
        crate::support::site::call(app.layer(layer)).await.status(),
        StatusCode::BAD_REQUEST
    );
    let sent = format!("{:?}", db.into_transaction_log());
    assert!(
        sent.contains("time_zone") && !sent.contains("CREATE"),
        "{sent}"
    );
}

#[tokio::test]
async fn ddl_that_waits_for_its_turn_is_looked_at_again_when_that_comes() {
    let site = Site::new(Kind::MySql).await;
    let response = site
        .call(async |db: DbSession| {
            let long = db.query_one_raw(slow(Kind::MySql, 0.1));
            let ddl = db.execute_unprepared("CREATE TABLE later (id integer)");
            let work = async {
                db.tx();
                db.execute_unprepared(&insert("lost")).await.unwrap();
            };
            // In the line: the DDL goes first, in a session that is in a transaction by then.
            let (long, ddl, ()) = tokio::join!(biased; long, ddl, work);
            long.unwrap();
            assert!(known(ddl).is_forbidden_statement());
            StatusCode::BAD_REQUEST
        })
        .await;
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    assert_eq!(site.count("lost").await, 0);
    site.assert_whole().await;
}

/// How a handler deals with a conflict before it answers 502.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cure {
    None,
    RollBackOnly,
    SecondTry,
    Savepoint,
    SavepointByClosure,
    SecondSavepoint,
}

#[tokio::test]
async fn a_conflict_that_was_made_good_leaves_the_handler_its_own_answer() {
    use Cure::*;
    for kind in [Kind::Postgres, Kind::MySql] {
        for cure in [
            None,
            RollBackOnly,
            SecondTry,
            Savepoint,
            SavepointByClosure,
            SecondSavepoint,
        ] {
            let site = Site::new(kind).await;
            site.run(&insert("row")).await;
            let other = site.view().clone();
            let response = site
                .call(async move |db: DbSession| {
                    meet_a_conflict(&db, &other, kind, cure).await;
                    (StatusCode::BAD_GATEWAY, "the handler's own").into_response()
                })
                .await;
            let made_good = matches!(cure, SecondTry | Savepoint | SecondSavepoint);
            let expected = if made_good {
                StatusCode::BAD_GATEWAY
            } else {
                StatusCode::SERVICE_UNAVAILABLE
            };
            assert_eq!(response.status(), expected, "{kind:?} {cure:?}");
            site.assert_whole().await;
        }
    }
}

async fn meet_a_conflict(
    db: &DbSession,
    other: &sea_orm::DatabaseConnection,
    kind: Kind,
    cure: Cure,
) {
    let update = "UPDATE item SET hits = hits + 1 WHERE name = 'row'";
    let locked = other.begin().await.unwrap();
    locked.execute_unprepared(update).await.unwrap();
    let conflict = match kind {
        Kind::Postgres => "DO $$ BEGIN RAISE EXCEPTION 'conflict' USING ERRCODE = '40001'; END $$",
        _ => "SELECT id FROM item WHERE name = 'row' FOR UPDATE NOWAIT",
    };
    let tx = db.tx();
    if cure != Cure::SecondTry {
        tx.query_one_raw(Statement::from_string(kind.backend(), "SELECT 1"))
            .await
            .unwrap();
    }
    match cure {
        Cure::None | Cure::RollBackOnly | Cure::SecondTry => {
            tx.execute_unprepared(conflict).await.unwrap_err();
        }
        Cure::Savepoint | Cure::SecondSavepoint => {
            let inner = tx.begin().await.unwrap();
            inner.execute_unprepared(conflict).await.unwrap_err();
            inner.rollback().await.unwrap();
        }
        Cure::SavepointByClosure => {
            let failed = tx
                .transaction_async(async |inner| inner.execute_unprepared(conflict).await)
                .await;
            failed.unwrap_err();
        }
    }
    locked.rollback().await.unwrap();
    match cure {
        Cure::RollBackOnly => tx.rollback().await.unwrap(),
        Cure::SecondTry => {
            tx.rollback().await.unwrap();
            tx.execute_unprepared(update).await.unwrap();
            tx.commit().await.unwrap();
        }
        Cure::SecondSavepoint => {
            let again = tx.begin().await.unwrap();
            again.execute_unprepared(update).await.unwrap();
            again.commit().await.unwrap();
        }
        Cure::None | Cure::Savepoint | Cure::SavepointByClosure => {}
    }
}

#[tokio::test]
async fn a_transaction_that_never_got_its_connection_is_no_success() {
    for kind in Kind::ALL {
        for begins in [false, true] {
            let test = TestDb::new(kind).await;
            let db = test.connect(1).await;
            let site = Site::with(test, db, 1).await;
            let site = site
                .pooled(|pool| pool.acquire_timeout(Duration::from_secs(1)))
                .layered(DbSessionLayer::lazy);
            let taken = opened(site.layer.pool()).await;
            let response = site
                .call(async move |db: DbSession| {
                    let failed = if begins {
                        known(db.begin().await)
                    } else {
                        known(db.tx().execute_unprepared(&insert("swallowed")).await)
                    };
                    assert!(failed.is_exhausted());
                    if !begins {
                        assert!(known(db.commit().await).is_exhausted());
                    }
                })
                .await;
            assert_eq!(
                response.status(),
                StatusCode::SERVICE_UNAVAILABLE,
                "{kind:?} {begins}"
            );
            assert!(retry_after(&response).is_some());
            assert!(outcome(&response).error().unwrap().is_exhausted());
            drop(taken);
            site.assert_whole().await;
        }
    }
}

#[tokio::test]
async fn a_second_try_that_gets_a_connection_makes_the_first_good() {
    let test = TestDb::new(Kind::SqliteFile).await;
    let db = test.connect(1).await;
    let site = Site::with(test, db, 1).await;
    let site = site
        .pooled(|pool| pool.acquire_timeout(Duration::from_secs(1)))
        .layered(DbSessionLayer::lazy);
    let taken = Arc::new(Mutex::new(Some(opened(site.layer.pool()).await)));
    for (first, answer) in [(true, 200), (false, 502)] {
        let taken = taken.clone();
        let response = site
            .call(async move |tx: DbTx| {
                let name = unique_name();
                if first {
                    tx.execute_unprepared(&insert(&name)).await.unwrap_err();
                    drop(taken.lock().unwrap().take());
                }
                tx.execute_unprepared(&insert(&name)).await.unwrap();
                StatusCode::from_u16(answer).unwrap()
            })
            .await;
        assert_eq!(response.status().as_u16(), answer);
    }
    site.assert_whole().await;
}

#[tokio::test]
async fn a_job_whose_transaction_never_got_its_connection_fails() {
    let test = TestDb::new(Kind::SqliteFile).await;
    let db = test.connect(1).await;
    let pool = pool_with(&db, |pool| pool.acquire_timeout(Duration::from_secs(1)));
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let result = pool
        .transaction(async |tx| {
            tx.execute_unprepared(&insert("stands")).await?;
            tx.commit().await?;
            tx.release().await?;
            let taken = pool.session().await.unwrap();
            assert!(known(tx.execute_unprepared(&insert("swallowed")).await).is_exhausted());
            sender.send(taken).unwrap();
            Ok::<_, DbErr>(())
        })
        .await;
    drop(receiver.await.unwrap());
    let sea_orm::TransactionError::Connection(error) = result.unwrap_err() else {
        panic!("another error")
    };
    assert!(tower_sea_orm::Error::of(&error).unwrap().is_exhausted());
    whole(&pool).await;
    assert_whole(&test, &db, 1).await;
}

#[tokio::test]
async fn a_failed_answer_does_not_wait_for_a_statement_that_its_handler_has_dropped() {
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

/// One step of a handler that treats its futures badly.
#[derive(Clone, Copy, Debug)]
struct Step {
    op: Op,
    fate: Fate,
    /// On the session itself, even if a transaction of the handler's is open.
    outside: bool,
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Insert,
    Slow,
    Fail,
    Begin,
    End { commit: bool },
    DropTransaction,
    Stream,
    Commit,
    RollBack,
    Release,
}

#[derive(Clone, Copy, Debug)]
enum Fate {
    Finish,
    /// Polled so often, and never again.
    Keep(u8),
    /// Polled so often, then dropped.
    Drop(u8),
    /// Polled once, and to its end after the others.
    Later,
}

fn step() -> impl Strategy<Value = Step> {
    let op = prop_oneof![
        4 => Just(Op::Insert),
        3 => Just(Op::Slow),
        1 => Just(Op::Fail),
        2 => Just(Op::Begin),
        1 => any::<bool>().prop_map(|commit| Op::End { commit }),
        1 => Just(Op::DropTransaction),
        1 => Just(Op::Stream),
        1 => Just(Op::Commit),
        1 => Just(Op::RollBack),
        1 => Just(Op::Release),
    ];
    let fate = prop_oneof![
        3 => Just(Fate::Finish),
        3 => (1..3_u8).prop_map(Fate::Keep),
        1 => (0..3_u8).prop_map(Fate::Drop),
        3 => Just(Fate::Later),
    ];
    (op, fate, any::<bool>()).prop_map(|(op, fate, outside)| Step { op, fate, outside })
}

/// What the futures of a session share.
#[derive(Clone)]
struct Shared {
    db: DbSession,
    kind: Kind,
    /// Transactions of the handler's, outermost first.
    open: Arc<Mutex<Vec<Arc<tower_sea_orm::SessionTransaction>>>>,
    /// Inserted rows, in the order in which their statements ended.
    inserted: Arc<Mutex<Vec<String>>>,
}

type Running = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Shared {
    fn start(&self, Step { op, outside, .. }: Step) -> Running {
        let this = self.clone();
        let innermost = this
            .open
            .lock()
            .unwrap()
            .last()
            .cloned()
            .filter(|_| !outside);
        Box::pin(async move {
            // An error may be what a session used out of turn is told; the property is that it ends.
            match op {
                Op::Insert => {
                    let name = unique_name();
                    if run(&this.db, innermost.as_deref(), &insert(&name))
                        .await
                        .is_ok()
                    {
                        this.inserted.lock().unwrap().push(name);
                    }
                }
                Op::Slow => {
                    let _ = match innermost {
                        Some(tx) => tx.query_one_raw(slow(this.kind, 0.003)).await,
                        None => this.db.query_one_raw(slow(this.kind, 0.003)).await,
                    };
                }
                Op::Fail => drop(
                    run(
                        &this.db,
                        innermost.as_deref(),
                        "SELECT nothing FROM nowhere",
                    )
                    .await,
                ),
                Op::Begin => {
                    let begun = match innermost {
                        Some(tx) => tx.begin().await,
                        None => this.db.begin().await,
                    };
                    this.open.lock().unwrap().extend(begun.ok().map(Arc::new));
                }
                Op::End { commit } => {
                    let last = this.open.lock().unwrap().pop();
                    drop(innermost);
                    match last.and_then(Arc::into_inner) {
                        Some(tx) if commit => drop(tx.commit().await),
                        Some(tx) => drop(tx.rollback().await),
                        None => {}
                    }
                }
                Op::DropTransaction => drop(this.open.lock().unwrap().pop()),
                Op::Stream => {
                    let Ok(mut rows) = this.db.rows(slow(this.kind, 0.001)).await else {
                        return;
                    };
                    while rows.next().await.is_some() {}
                }
                Op::Commit => drop(this.db.commit().await),
                Op::RollBack => drop(this.db.rollback().await),
                Op::Release => drop(this.db.release().await),
            }
        })
    }
}

async fn run(
    db: &DbSession,
    tx: Option<&tower_sea_orm::SessionTransaction>,
    sql: &str,
) -> Result<(), DbErr> {
    match tx {
        Some(tx) => tx.execute_unprepared(sql).await.map(drop),
        None => db.execute_unprepared(sql).await.map(drop),
    }
}

/// Runs random handlers whose futures are polled, half-polled, kept and dropped.
fn every_polled_future_ends(kind: Kind) {
    let runtime = Runtime::new().unwrap();
    let test = runtime.block_on(TestDb::new(kind));
    let db = runtime.block_on(test.connect(SIZE));
    let config = Config {
        cases: cases(48),
        failure_persistence: None,
        max_shrink_iters: 60,
        ..Config::default()
    };
    let handlers = (vec(step(), 1..16), any::<bool>(), any::<bool>());
    let result = TestRunner::new(config).run(&handlers, |(steps, transactional, lazy)| {
        let pool = session_pool(db.clone());
        runtime.block_on(async {
            let handled =
                timeout(2 * BOUND, handle(&pool, kind, &steps, transactional, lazy)).await;
            assert!(handled.is_ok(), "{kind:?} hangs");
            whole(&pool).await;
        });
        Ok(())
    });
    result.unwrap();
    runtime.block_on(assert_whole(&test, &db, SIZE));
}

async fn handle(pool: &SessionPool, kind: Kind, steps: &[Step], transactional: bool, lazy: bool) {
    let session = pool.session().await.unwrap();
    if transactional {
        session.tx();
    }
    if lazy {
        session.release().await.unwrap();
    }
    let db = DbSession::clone(&session);
    let shared = Shared {
        db,
        kind,
        open: Arc::default(),
        inserted: Arc::default(),
    };
    let (mut kept, mut later) = (Vec::new(), Vec::new());
    for step in steps {
        let mut future = shared.start(*step);
        match step.fate {
            Fate::Finish => future.await,
            Fate::Later => {
                if once(future.as_mut()).await.is_pending() {
                    later.push(future);
                }
            }
            Fate::Keep(polls) | Fate::Drop(polls) => {
                let mut is_pending = true;
                for _ in 0..polls {
                    is_pending = is_pending && once(future.as_mut()).await.is_pending();
                    tokio::task::yield_now().await;
                }
                if is_pending && matches!(step.fate, Fate::Keep(_)) {
                    kept.push(future);
                }
            }
        }
    }
    // A stream that is kept refuses others; what else is kept holds nobody up.
    later.reverse();
    join_all(later).await;
    drop(kept);
    shared.open.lock().unwrap().clear();
    shared.db.rollback().await.ok();
    shared.db.query_one_raw(slow(kind, 0.0001)).await.unwrap();
}

#[test]
fn every_polled_future_ends_on_postgres() {
    every_polled_future_ends(Kind::Postgres);
}

#[test]
fn every_polled_future_ends_on_mysql() {
    every_polled_future_ends(Kind::MySql);
}

#[test]
fn every_polled_future_ends_on_a_sqlite_file() {
    every_polled_future_ends(Kind::SqliteFile);
}

#[test]
fn every_polled_future_ends_in_memory() {
    every_polled_future_ends(Kind::SqliteMemory);
}
