//! G6: a handle that outlives its request is dead.

use std::{future::pending, pin::pin, sync::Arc};

use futures_util::future::{join, join_all};
use http::StatusCode;
use sea_orm::{ConnectionTrait, StreamTrait, TransactionTrait};
use tokio::{
    sync::{Notify, mpsc},
    time::timeout,
};
use tower::ServiceExt;
use tower_sea_orm::DbSession;

use crate::support::{
    case::{everywhere, is_closed, rows, run_slow, start},
    requests::request,
    wait::BOUND,
};

#[tokio::test]
async fn g6_a_handle_that_outlives_its_request_is_dead() {
    everywhere(async |case| {
        let (writes, (out, mut tasks)) = (case.writes(), mpsc::unbounded_channel());
        let go = Arc::new(Notify::new());
        let told = go.clone();
        let app = case.app(move |db: DbSession| async move {
            let transaction = writes.write(&db).await;
            let task = tokio::spawn(async move {
                told.notified().await;
                [
                    is_closed(&transaction.execute_unprepared("SELECT 1").await),
                    is_closed(&transaction.begin().await),
                    is_closed(&transaction.commit().await),
                    is_closed(&db.execute_unprepared("SELECT 1").await),
                    is_closed(&db.query_all_raw(rows(db.backend())).await),
                    is_closed(&db.stream_raw(rows(db.backend())).await),
                    is_closed(&db.begin().await),
                    is_closed(&db.ping().await),
                    is_closed(&db.release().await),
                ]
            });
            out.send(task).unwrap();
        });
        let answer = app.oneshot(request()).await.unwrap();
        // Its transaction is not committed: an OK would be untrue.
        assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
        // Others have all the connections there are: the dead handle must not reach theirs.
        let limit = case.layer.pool().status().max;
        let others = join_all((0..limit).map(|_| case.layer.pool().session())).await;
        go.notify_one();
        let task = tasks.recv().await.unwrap();
        let closed = timeout(BOUND, task)
            .await
            .expect("an answer for the dead handle")
            .unwrap();
        assert_eq!(closed, [true; 9]);
        drop(others);
    })
    .await;
}

#[tokio::test]
async fn a_statement_that_outlives_its_request_gets_an_answer() {
    everywhere(async |case| {
        let (writes, (out, mut tasks)) = (case.writes(), mpsc::unbounded_channel());
        let app = case.app(move |db: DbSession| async move {
            let transaction = writes.write(&db).await;
            let started = Arc::new(Notify::new());
            let running = started.clone();
            let task = tokio::spawn(async move {
                let (mut first, mut second) =
                    (pin!(run_slow(&transaction)), pin!(run_slow(&transaction)));
                start(&mut first).await;
                start(&mut second).await;
                started.notify_one();
                join(first, second).await
            });
            out.send(task).unwrap();
            running.notified().await;
        });
        let answer = app.oneshot(request()).await.unwrap();
        // Its transaction is not committed: an OK would be untrue.
        assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let task = tasks.recv().await.unwrap();
        let (first, second) = timeout(BOUND, task)
            .await
            .expect("an answer for the stray statement")
            .unwrap();
        assert!(is_closed(&first), "{first:?}");
        assert!(is_closed(&second), "{second:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_task_on_another_thread_stops_with_its_request() {
    everywhere(async |case| {
        for round in 0..20 {
            let (out, mut tasks) = mpsc::unbounded_channel();
            let app = case.app(move |db: DbSession| async move {
                db.execute_unprepared("SELECT 1").await.unwrap();
                let started = Arc::new(Notify::new());
                let running = started.clone();
                let task = tokio::spawn(async move {
                    loop {
                        let result = db.execute_unprepared("SELECT 1").await;
                        started.notify_one();
                        if result.is_err() {
                            break result;
                        }
                    }
                });
                out.send(task).unwrap();
                running.notified().await;
            });
            let answer = app.oneshot(request()).await.unwrap();
            assert_eq!(answer.status(), StatusCode::OK);
            let task = tasks.recv().await.unwrap();
            let result = timeout(BOUND, task).await.expect("the task stops").unwrap();
            assert!(is_closed(&result), "round {round}: {result:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_transaction_held_by_a_task_is_rolled_back_with_the_request() {
    everywhere(async |case| {
        let (writes, (out, mut held)) = (case.writes(), mpsc::unbounded_channel());
        let app = case.app(move |db: DbSession| async move {
            let transaction = writes.write(&db).await;
            out.send(tokio::spawn(async move {
                let _held = transaction;
                pending::<()>().await
            }))
            .unwrap();
        });
        let answer = app.oneshot(request()).await.unwrap();
        // Its transaction is not committed: an OK would be untrue.
        assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
        case.assert_whole().await;
        held.recv().await.unwrap().abort();
    })
    .await;
}
