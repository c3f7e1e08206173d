//! G11: anything may be dropped without a runtime, while unwinding, and at shutdown.

use std::{
    future::pending,
    sync::{Mutex, Once, PoisonError},
    thread,
    time::Duration,
};

use axum::{Router, routing::get};
use http::StatusCode;
use sea_orm::{ConnectionTrait, Database, TransactionTrait};
use tokio::{runtime::Runtime, sync::mpsc, time::timeout};
use tower::ServiceExt;
use tower_sea_orm::{DbSession, DbSessionLayer};

use crate::support::{
    case::{Case, Doing, everywhere, half_way, stay},
    database::{Kind, TestDb, count_items, insert_item, unique_name},
    futures::after_polls,
    pool::{assert_whole, layer_with, session_pool},
    requests::{Failed, RELEASE, request, send_owned},
    statements::slow,
    wait::{BOUND, eventually},
};

#[tokio::test]
async fn handles_dropped_on_a_plain_thread_give_the_connection_back() {
    everywhere(async |case| {
        let (writes, (out, mut kept)) = (case.writes(), mpsc::unbounded_channel());
        let app = case.app(move |db: DbSession| async move {
            let transaction = writes.write(&db).await;
            // While the request lives: the transaction is rolled back, the session goes on.
            let handles = (transaction, db.clone());
            thread::spawn(move || drop(handles)).join().unwrap();
            assert_eq!(count_items(&db, &writes.lost).await, 0);
            out.send((db.begin().await.unwrap(), db)).unwrap();
        });
        let answer = app.oneshot(request()).await.unwrap();
        // Its transaction is not committed: an OK would be untrue.
        assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
        // After it: the last handles.
        let kept = kept.recv().await.unwrap();
        thread::spawn(move || drop(kept)).join().unwrap();
        let session = case.layer.pool().session().await.unwrap();
        let transaction = session.begin().await.unwrap();
        thread::spawn(move || drop(session)).join().unwrap();
        thread::spawn(move || drop(transaction)).join().unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_request_dropped_on_a_plain_thread_gives_the_connection_back() {
    for doing in Doing::ALL {
        everywhere(async |case| {
            let answer = half_way(case, doing).await;
            thread::spawn(move || drop(answer)).join().unwrap();
        })
        .await;
    }
}

#[test]
fn g11_a_runtime_dropped_with_sessions_out_panics_nowhere() {
    let outer = Runtime::new().unwrap();
    for (kind, doing) in Kind::ALL
        .into_iter()
        .flat_map(|kind| Doing::ALL.map(|doing| (kind, doing)))
    {
        eprintln!("{kind:?}, {doing:?}");
        let test = outer.block_on(TestDb::new(kind));
        let inner = Runtime::new().unwrap();
        let (case, tasks, handles) = inner.block_on(async {
            let case = Case::new(&test, false).await;
            let (out, mut handles) = mpsc::unbounded_channel();
            let writes = case.writes();
            let app = case.app(move |db: DbSession| async move {
                out.send(db.clone()).unwrap();
                stay(doing, writes, db).await;
            });
            let first = tokio::spawn(app.oneshot(request()));
            case.writes.reached().await;
            let idle = case.app(async |db: DbSession| {
                let _open = db.begin().await.unwrap();
                pending::<()>().await;
            });
            // One of them waits for ever for a connection.
            let others = [0, 1].map(|_| tokio::spawn(idle.clone().oneshot(request())));
            let pool = case.layer.pool();
            eventually("all connections are out", async || {
                pool.status().used == pool.status().max
            })
            .await;
            (
                case,
                Vec::from_iter([first].into_iter().chain(others)),
                handles.recv().await.unwrap(),
            )
        });
        thread::spawn(move || drop(inner))
            .join()
            .expect("the runtime's end panics nowhere");
        thread::spawn(move || drop(handles))
            .join()
            .expect("a handle's end panics nowhere");
        outer.block_on(async {
            for task in tasks {
                match task.await {
                    Err(ended) => assert!(ended.is_cancelled(), "a request's end panics nowhere"),
                    // The one that waited may have been told, before its own turn to be dropped came.
                    Ok(answer) => {
                        assert_eq!(answer.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE)
                    }
                }
            }
            if kind == Kind::SqliteMemory {
                // The connection ended with its runtime, and the database with it.
                let alive = timeout(BOUND, case.db.execute_unprepared("SELECT 1")).await;
                alive.expect("the pool has a connection").unwrap();
            } else {
                case.assert_whole().await;
            }
        });
    }
}

#[tokio::test]
async fn h6_dropping_anything_on_a_plain_thread_frees_the_slot_without_a_panic() {
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let db = test.connect(1).await;
        let layer = layer_with(&db, |pool| pool.release_timeout(RELEASE));
        let pool = layer.pool().clone();
        let app = Router::new()
            .route(
                "/",
                get(async move |db: DbSession| {
                    let tx = db.begin().await?;
                    insert_item(&tx, &unique_name()).await;
                    tx.query_one_raw(slow(kind, 0.1))
                        .await
                        .map(drop)
                        .map_err(Failed)
                }),
            )
            .layer(layer);
        let free = async || pool.status().used == 0;

        let session = pool.session().await.unwrap();
        drop_on_a_plain_thread(session);
        eventually("a pool session's slot is free", free).await;

        let session = pool.session().await.unwrap();
        let tx = session.begin().await.unwrap();
        insert_item(&tx, &unique_name()).await;
        drop_on_a_plain_thread(tx);
        session.ping().await.unwrap();
        let tx = session.begin().await.unwrap();
        insert_item(&tx, &unique_name()).await;
        drop_on_a_plain_thread((session, tx));
        eventually("a transaction's slot is free", free).await;

        for polls in 1..8 {
            let mut request = Box::pin(send_owned(app.clone(), "/"));
            let ended = after_polls(polls, &mut request).await;
            drop_on_a_plain_thread((request, ended));
            eventually("a request's slot is free", free).await;
        }
        let session = pool.session().await.unwrap();
        let handle = (*session).clone();
        drop(session);
        drop_on_a_plain_thread(handle);
        assert_whole(&test, &db, 1).await;
    }
}

#[test]
fn h28_a_pool_with_min_connections_may_be_dropped_without_a_runtime() {
    for kind in Kind::ALL {
        let servers = Runtime::new().unwrap();
        let test = servers.block_on(TestDb::new(kind));
        for shut_down in [false, true] {
            let runtime = Runtime::new().unwrap();
            let (pool, session, tx, request) = runtime.block_on(async {
                let mut options = test.options(3);
                if kind != Kind::SqliteMemory {
                    options.min_connections(1);
                }
                let pool = session_pool(Database::connect(options).await.unwrap());
                let session = pool.session().await.unwrap();
                let (tx, request) = if kind == Kind::SqliteMemory {
                    (None, None)
                } else {
                    let app = Router::new()
                        .route(
                            "/",
                            get(async move |db: DbSession| {
                                db.query_one_raw(slow(kind, 0.1))
                                    .await
                                    .map(drop)
                                    .map_err(Failed)
                            }),
                        )
                        .layer(DbSessionLayer::new(pool.clone()));
                    let mut request = Box::pin(send_owned(app, "/"));
                    let _ = after_polls(4, &mut request).await;
                    let tx = session.begin().await.unwrap();
                    (Some(tx), Some(request))
                };
                (pool, session, tx, request)
            });
            if shut_down {
                runtime.shutdown_timeout(Duration::from_secs(5));
                drop_on_a_plain_thread((request, tx, session));
            } else {
                drop_on_a_plain_thread((request, tx, session));
                runtime.block_on(eventually("the slots are free", async || {
                    pool.status().used == 0
                }));
            }
            drop_on_a_plain_thread(pool);
        }
    }
}

/// Drops `value` on a thread that no runtime knows, and asserts that nothing panicked there: also
/// not where it was caught.
fn drop_on_a_plain_thread<T: Send + 'static>(value: T) {
    static HOOK: Once = Once::new();
    static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());
    const NAME: &str = "without a runtime";
    HOOK.call_once(|| {
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if thread::current().name() == Some(NAME) {
                PANICS
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(info.to_string());
            }
            others(info);
        }));
    });
    let dropped = thread::Builder::new()
        .name(NAME.to_owned())
        .spawn(move || drop(value))
        .unwrap()
        .join();
    let panics = std::mem::take(&mut *PANICS.lock().unwrap_or_else(PoisonError::into_inner));
    assert!(dropped.is_ok() && panics.is_empty(), "{panics:?}");
}
