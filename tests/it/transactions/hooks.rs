//! G7, G8: `after_commit` and `after_rollback`: when they run, in which order, and when not.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body, extract::Path, routing::any};
use futures_util::future::{Either, select};
use http::{Request, StatusCode};
use sea_orm::{ConnectionTrait, Database, TransactionTrait};
use tokio::{
    sync::{Notify, oneshot},
    time::timeout,
};
use tower::ServiceExt;
use tower_sea_orm::{DbSession, DbTx, Error, SessionTransaction};

use crate::support::{
    database::{Kind, TestDb, count_items, insert_item},
    pool::{assert_whole, session_layer},
    site::port_of,
    wait::{BOUND, eventually},
    wire::Proxy,
    world::{CHECKS_LATE, Log, ORPHAN, World, post, serve},
};

/// Asks for a note after either end.
fn note(db: &DbSession, log: &Log, committed: &'static str, rolled_back: &'static str) {
    db.after_commit(log.note(committed)).unwrap();
    db.after_rollback(log.note(rolled_back)).unwrap();
}

fn note_nested(
    tx: &SessionTransaction,
    log: &Log,
    committed: &'static str,
    rolled_back: &'static str,
) {
    tx.after_commit(log.note(committed)).unwrap();
    tx.after_rollback(log.note(rolled_back)).unwrap();
}

#[tokio::test]
async fn hooks_run_in_order_and_only_those_of_the_actual_end() {
    for kind in Kind::ALL {
        for (status, expected) in [
            (200, ["c1", "c2", "c3", "c4", "c5"]),
            (400, ["r1", "r2", "r3", "r4", "r5"]),
        ] {
            let world = World::new(kind, 1).await;
            let log = Log::default();
            let notes = log.clone();
            let app = serve(async move |db: DbSession, tx: DbTx| {
                // Before BEGIN, in the transaction, inside of savepoints, and from a clone.
                note(&db, &notes, "c1", "r1");
                insert_item(&tx, "row").await;
                note(&tx, &notes, "c2", "r2");
                let outer = tx.begin().await.unwrap();
                let inner = outer.begin().await.unwrap();
                note_nested(&inner, &notes, "c3", "r3");
                inner.commit().await.unwrap();
                note_nested(&outer, &notes, "c4", "r4");
                outer.commit().await.unwrap();
                note(&tx.clone(), &notes, "c5", "r5");
                assert_eq!(notes.read(), [""; 0], "not before the end");
                StatusCode::from_u16(status).unwrap()
            });
            assert_eq!(post(&app.layer(world.layer()), "/").await.status(), status);
            log.becomes(&expected).await;
            world.assert_whole().await;
            assert_eq!(log.read(), expected, "{kind:?}: once only");
        }
    }
}

#[tokio::test]
async fn the_hooks_of_a_nested_transaction_are_dropped_with_it() {
    for kind in Kind::ALL {
        for (status, expected) in [(200, ["c-first", "c-last"]), (500, ["r-first", "r-last"])] {
            let world = World::new(kind, 1).await;
            let log = Log::default();
            let notes = log.clone();
            let app = serve(async move |tx: DbTx| {
                note(&tx, &notes, "c-first", "r-first");
                let nested = tx.begin().await.unwrap();
                note_nested(&nested, &notes, "rolled back", "rolled back");
                nested.rollback().await.unwrap();
                let nested = tx.begin().await.unwrap();
                note_nested(&nested, &notes, "dropped", "dropped");
                drop(nested);
                // Committed inside of one that is not.
                let outer = tx.begin().await.unwrap();
                let inner = outer.begin().await.unwrap();
                note_nested(&inner, &notes, "inside", "inside");
                inner.commit().await.unwrap();
                outer.rollback().await.unwrap();
                insert_item(&tx, "row").await;
                note(&tx, &notes, "c-last", "r-last");
                StatusCode::from_u16(status).unwrap()
            });
            assert_eq!(post(&app.layer(world.layer()), "/").await.status(), status);
            log.becomes(&expected).await;
            world.assert_whole().await;
            assert_eq!(log.read(), expected, "{kind:?}");
        }
    }
}

#[tokio::test]
async fn a_transaction_begun_by_the_handler_has_hooks_as_well() {
    for kind in Kind::ALL {
        for (commit, expected) in [(true, ["c1", "c2"]), (false, ["r1", "r2"])] {
            let world = World::new(kind, 1).await;
            let log = Log::default();
            let notes = log.clone();
            let app = serve(async move |db: DbSession| {
                let tx = db.begin().await.unwrap();
                insert_item(&tx, "row").await;
                note_nested(&tx, &notes, "c1", "r1");
                note(&db, &notes, "c2", "r2");
                if commit {
                    tx.commit().await.unwrap()
                } else {
                    tx.rollback().await.unwrap()
                }
                // Its time has come: the answer has nothing to do with it.
                notes.becomes(&expected).await;
                StatusCode::from_u16(if commit { 500 } else { 200 }).unwrap()
            });
            post(&app.layer(world.layer()), "/").await;
            world.assert_whole().await;
            assert_eq!(
                (log.read(), world.seen("row").await),
                (expected.to_vec(), i64::from(commit)),
                "{kind:?}"
            );
        }
    }
}

#[tokio::test]
async fn after_an_early_end_hooks_run_at_once_and_once() {
    for kind in Kind::ALL {
        let world = World::new(kind, 1).await;
        let log = Log::default();
        let notes = log.clone();
        let app = serve(async move |tx: DbTx| {
            note(&tx, &notes, "c1", "r1");
            insert_item(&tx, "kept").await;
            tx.commit().await.unwrap();
            notes.becomes(&["c1"]).await;
            note(&tx, &notes, "c2", "r2");
            insert_item(&tx, "lost").await;
            tx.rollback().await.unwrap();
            notes.becomes(&["c1", "r2"]).await;
            note(&tx, &notes, "c3", "r3");
        });
        assert_eq!(
            post(&app.layer(world.layer()), "/").await.status(),
            StatusCode::OK
        );
        log.becomes(&["c1", "r2", "c3"]).await;
        world.assert_whole().await;
        assert_eq!(log.read(), ["c1", "r2", "c3"], "{kind:?}");
    }
}

#[tokio::test]
async fn every_rollback_runs_its_after_rollback_hooks() {
    for kind in CHECKS_LATE {
        let world = World::with_late_check(kind, 1).await;
        let log = Log::default();
        let notes = log.clone();
        let handler = async move |tx: DbTx, Path(why): Path<String>| {
            note(&tx, &notes, "committed", "rolled back");
            insert_item(&tx, "row").await;
            match &*why {
                "late" => drop(tx.execute_unprepared(ORPHAN).await.unwrap()),
                "early" => {
                    tx.execute_unprepared(ORPHAN).await.unwrap();
                    tx.commit().await.unwrap_err();
                }
                "only" => tx.set_rollback_only().unwrap(),
                _ => {
                    let left_open = tx.begin().await.unwrap();
                    tokio::spawn(async move {
                        let _left_open = left_open;
                        std::future::pending::<()>().await;
                    });
                }
            }
        };
        let app = Router::new()
            .route("/{why}", any(handler))
            .layer(world.layer());
        let mut expected = Vec::new();
        for why in ["late", "early", "only", "open"] {
            post(&app, &format!("/{why}")).await;
            expected.push("rolled back");
            log.becomes(&expected).await;
            assert_eq!(world.seen("row").await, 0, "{kind:?} {why}");
        }
        world.assert_whole().await;
        assert_eq!(log.read(), expected, "{kind:?}");
    }
}

#[tokio::test]
async fn a_hook_does_not_delay_the_answer() {
    for kind in Kind::ALL {
        let world = World::new(kind, 1).await;
        let (answered, log) = (Arc::new(Notify::new()), Log::default());
        let (waits, notes) = (answered.clone(), log.clone());
        let app = serve(async move |tx: DbTx| {
            insert_item(&tx, "row").await;
            let done = notes.note("after the answer");
            tx.after_commit(async move {
                waits.notified().await;
                done.await;
            })
            .unwrap();
        });
        let response = timeout(BOUND, post(&app.layer(world.layer()), "/"))
            .await
            .expect("it waits for nobody");
        assert_eq!(
            (response.status(), world.seen("row").await),
            (StatusCode::OK, 1)
        );
        assert_eq!(log.read(), [""; 0]);
        answered.notify_one();
        log.becomes(&["after the answer"]).await;
        world.assert_whole().await;
    }
}

#[tokio::test]
async fn a_hook_finds_the_connection_back_and_its_work_done() {
    for kind in Kind::ALL {
        for (status, rows) in [(200, 1), (404, 0)] {
            let world = World::new(kind, 1).await;
            let (sender, done) = oneshot::channel();
            let sender = Arc::new(std::sync::Mutex::new(Some(sender)));
            let app = serve(async move |tx: DbTx| {
                insert_item(&tx, "row").await;
                let pool = tx.pool().clone();
                let look = async move |sender: oneshot::Sender<i64>| {
                    let session = pool.session().await.unwrap();
                    sender.send(count_items(&*session, "row").await).unwrap();
                };
                let sender = sender.lock().unwrap().take().unwrap();
                let hook = async move { look(sender).await };
                if status == 200 {
                    tx.after_commit(hook).unwrap()
                } else {
                    tx.after_rollback(hook).unwrap()
                }
                StatusCode::from_u16(status).unwrap()
            });
            post(&app.layer(world.layer()), "/").await;
            let seen = timeout(BOUND, done)
                .await
                .expect("in time")
                .expect("the hook works");
            assert_eq!(seen, rows, "{kind:?}");
            world.assert_whole().await;
        }
    }
}

#[tokio::test]
async fn a_hook_that_panics_does_not_stop_the_next() {
    let world = World::new(Kind::SqliteFile, 1).await;
    let log = Log::default();
    let notes = log.clone();
    let app = serve(async move |tx: DbTx| {
        tx.after_commit(notes.note("first")).unwrap();
        tx.after_commit(async { panic!("a hook's own") }).unwrap();
        tx.after_commit(notes.note("last")).unwrap();
        insert_item(&tx, "row").await;
    });
    assert_eq!(
        post(&app.layer(world.layer()), "/").await.status(),
        StatusCode::OK
    );
    log.becomes(&["first", "last"]).await;
    world.assert_whole().await;
}

#[tokio::test]
async fn without_a_transaction_hooks_run_at_once() {
    for kind in Kind::ALL {
        let world = World::new(kind, 1).await;
        let log = Log::default();
        let notes = log.clone();
        let app = serve(async move |db: DbSession| {
            insert_item(&db, "row").await;
            db.after_rollback(notes.note("never")).unwrap();
            db.after_commit(notes.note("at once")).unwrap();
            notes.becomes(&["at once"]).await;
            StatusCode::INTERNAL_SERVER_ERROR
        });
        post(&app.layer(world.layer()), "/").await;
        world.assert_whole().await;
        assert_eq!(log.read(), ["at once"], "{kind:?}");
    }
}

#[tokio::test]
async fn a_request_that_ran_no_statement_has_committed_nothing_and_that_is_fine() {
    for (status, expected) in [(200, "committed"), (500, "rolled back")] {
        let world = World::new(Kind::Postgres, 1).await;
        let log = Log::default();
        let notes = log.clone();
        let app = serve(async move |tx: DbTx| {
            note(&tx, &notes, "committed", "rolled back");
            StatusCode::from_u16(status).unwrap()
        });
        post(&app.layer(world.layer().lazy()), "/").await;
        log.becomes(&[expected]).await;
        world.assert_whole().await;
    }
}

#[tokio::test]
async fn after_the_request_hooks_are_refused() {
    for kind in Kind::ALL {
        let world = World::new(kind, 1).await;
        let (sender, mut kept) = tokio::sync::mpsc::channel(1);
        let app = serve(async move |tx: DbTx| {
            insert_item(&tx, "row").await;
            let nested = tx.begin().await.unwrap();
            sender.send((tx, nested)).await.unwrap();
            StatusCode::BAD_REQUEST
        });
        post(&app.layer(world.layer()), "/").await;
        let (tx, nested) = kept.recv().await.unwrap();
        let log = Log::default();
        for refused in [
            tx.after_commit(log.note("commit")),
            tx.after_rollback(log.note("rollback")),
            nested.after_commit(log.note("commit")),
            nested.after_rollback(log.note("rollback")),
        ] {
            assert!(
                Error::of(&refused.unwrap_err())
                    .unwrap()
                    .is_session_closed()
            );
        }
        drop(nested);
        world.assert_whole().await;
        assert_eq!(log.read(), [""; 0], "{kind:?}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_before_the_commit_causes_a_rollback_and_its_hooks() {
    for kind in Kind::ALL {
        let world = World::new(kind, 1).await;
        let log = Log::default();
        let (reached, notes) = (Arc::new(Notify::new()), log.clone());
        let at = reached.clone();
        let app = serve(async move |tx: DbTx| {
            note(&tx, &notes, "committed", "rolled back");
            insert_item(&tx, "lost").await;
            at.notify_one();
            std::future::pending::<()>().await;
        });
        let request = tokio::spawn(
            app.layer(world.layer())
                .oneshot(Request::new(Body::empty())),
        );
        timeout(BOUND, reached.notified())
            .await
            .expect("the handler is called");
        request.abort();
        let _ = request.await;
        log.becomes(&["rolled back"]).await;
        assert_eq!(world.seen("lost").await, 0, "{kind:?}");
        world.assert_whole().await;
        assert_eq!(log.read(), ["rolled back"], "{kind:?}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_after_the_commit_was_sent_does_not_stop_the_hooks() {
    for kind in [Kind::Postgres, Kind::MySql] {
        let test = TestDb::new(kind).await;
        let proxy = Arc::new(Proxy::start(port_of(test.url())).await);
        let db = Database::connect(test.options_at(&proxy.url(test.url()), 1))
            .await
            .unwrap();
        let (log, sent) = (Log::default(), Arc::new(AtomicU64::new(u64::MAX)));
        let (notes, before, wire) = (log.clone(), sent.clone(), proxy.clone());
        let app = serve(async move |tx: DbTx| {
            note(&tx, &notes, "committed", "rolled back");
            insert_item(&tx, "kept").await;
            // COMMIT goes out; its answer takes its time.
            wire.delay_replies(Duration::from_secs(1));
            before.store(wire.requests(), Ordering::SeqCst);
        });
        let app = app.layer(session_layer(db.clone()));
        let request = Box::pin(app.oneshot(Request::new(Body::empty())));
        let commit = eventually("COMMIT was sent", async || {
            proxy.requests() > sent.load(Ordering::SeqCst)
        });
        let Either::Right(((), request)) = select(request, Box::pin(commit)).await else {
            panic!("it was answered")
        };
        drop(request);
        proxy.delay_replies(Duration::ZERO);
        log.becomes(&["committed"]).await;
        assert_whole(&test, &db, 1).await;
        assert_eq!(count_items(&db, "kept").await, 1, "{kind:?}");
        assert_eq!(log.read(), ["committed"]);
    }
}

#[tokio::test]
async fn a_mocks_nested_transaction_takes_its_hooks_along() {
    for transactional in [false, true] {
        let db = sea_orm::MockDatabase::new(sea_orm::DbBackend::Postgres).into_connection();
        let log = Log::default();
        let notes = log.clone();
        let app = serve(async move |db: DbSession| {
            if transactional {
                db.tx();
            }
            let nested = db.begin().await.unwrap();
            note_nested(&nested, &notes, "wrong", "undone");
            nested.rollback().await.unwrap();
            // Registered last, so it comes last.
            db.after_commit(notes.note("right")).unwrap();
        });
        post(&app.layer(session_layer(db)), "/").await;
        // Rolled back to a savepoint, both are dropped; the outermost one was a transaction of its own.
        log.becomes(if transactional {
            &["right"]
        } else {
            &["undone", "right"]
        })
        .await;
    }
}

#[tokio::test]
async fn without_a_transaction_hooks_run_in_order_as_well() {
    let world = World::new(Kind::SqliteFile, 1).await;
    let (log, go) = (Log::default(), Arc::new(Notify::new()));
    let (notes, wait) = (log.clone(), go.clone());
    let app = serve(async move |db: DbSession| {
        let first = notes.note("first");
        db.after_commit(async move {
            wait.notified().await;
            first.await;
        })
        .unwrap();
        db.after_commit(notes.note("second")).unwrap();
    });
    post(&app.layer(world.layer()), "/").await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    go.notify_one();
    log.becomes(&["first", "second"]).await;
    world.assert_whole().await;
}
