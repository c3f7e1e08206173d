//! G2, G4: the statements of a session queue on one connection, and each gets its own result (H10, H23).

use std::{pin::pin, sync::Arc, time::Duration};

use axum::{Router, extract::Path, routing::get};
use futures_util::{StreamExt, future::join_all};
use http::StatusCode;
use sea_orm::{ConnectionTrait, DbErr, Statement, StreamTrait, TransactionTrait};
use tokio::time::timeout;
use tower::ServiceExt;
use tower_sea_orm::{DbSession, Error};

use crate::support::{
    case::{everywhere, rows, run_slow, start},
    database::{Kind, TestDb, count_items, insert_item, unique_name},
    pool::{assert_whole, session_layer, session_pool},
    requests::{Failed, assert_wrong_handle, request, send, text},
    statements::slow,
    wait::BOUND,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_tasks_of_one_request_take_turns() {
    everywhere(async |case| {
        let names: Arc<[String]> = (0..20).map(|_| unique_name()).collect();
        let (writes, all) = (case.writes(), names.clone());
        let app = case.app(move |db: DbSession| async move {
            let transaction = writes.write(&db).await;
            drop(transaction);
            let tasks = (0..2).map(|half| {
                let (db, names) = (db.clone(), all.clone());
                tokio::spawn(async move {
                    for name in names.iter().skip(half).step_by(2) {
                        insert_item(&db, name).await;
                        assert_eq!(count_items(&db, name).await, 1);
                    }
                })
            });
            for task in join_all(tasks).await {
                task.unwrap();
            }
        });
        let answer = timeout(BOUND, app.oneshot(request()))
            .await
            .expect("no task waits for ever")
            .unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        let observer = case.test.observer().await;
        let view = observer.as_ref().unwrap_or(&case.db);
        for name in names.iter() {
            assert_eq!(count_items(view, name).await, 1);
        }
    })
    .await;
}

#[tokio::test]
async fn a_dropped_statement_does_not_disturb_the_next_one() {
    everywhere(async |case| {
        let names = [unique_name(), unique_name(), unique_name()];
        let (writes, [outside, before, after]) = (case.writes(), names.clone());
        let app = case.app(move |db: DbSession| async move {
            drop(writes.write(&db).await);
            start(&mut pin!(run_slow(&db))).await;
            insert_item(&db, &outside).await;
            let transaction = db.begin().await.unwrap();
            insert_item(&transaction, &before).await;
            tokio::select! {
                biased;
                _ = run_slow(&transaction) => panic!("slower than that"),
                () = std::future::ready(()) => {}
            }
            assert!(
                timeout(Duration::from_millis(1), run_slow(&transaction))
                    .await
                    .is_err()
            );
            insert_item(&transaction, &after).await;
            transaction.commit().await.unwrap();
        });
        let answer = app.oneshot(request()).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        let observer = case.test.observer().await;
        let view = observer.as_ref().unwrap_or(&case.db);
        for name in &names {
            assert_eq!(count_items(view, name).await, 1);
        }
    })
    .await;
}

#[tokio::test]
async fn a_stream_dropped_half_read_does_not_disturb_the_next_statement() {
    everywhere(async |case| {
        let writes = case.writes();
        let app = case.app(move |db: DbSession| async move {
            for read in [0, 1, 100, 499] {
                let mut stream = db.stream_raw(rows(db.backend())).await.unwrap();
                for _ in 0..read {
                    stream.next().await.unwrap().unwrap();
                }
                drop(stream);
                assert_eq!(
                    db.query_all_raw(rows(db.backend())).await.unwrap().len(),
                    500
                );
            }
            let transaction = writes.write(&db).await;
            let mut stream = transaction.stream_raw(rows(db.backend())).await.unwrap();
            stream.next().await.unwrap().unwrap();
            drop(stream);
            assert_eq!(
                count_items(&transaction, &writes.lost).await,
                1,
                "the transaction goes on"
            );
        });
        let answer = app.oneshot(request()).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
    })
    .await;
}

#[tokio::test]
async fn a_stream_read_to_its_end_or_kept_gives_the_connection_back() {
    everywhere(async |case| {
        let writes = case.writes();
        let app = case.app(move |db: DbSession| async move {
            let transaction = writes.write(&db).await;
            let mut stream = transaction.stream_raw(rows(db.backend())).await.unwrap();
            let mut read = 0;
            while let Some(row) = stream.next().await {
                row.unwrap();
                read += 1;
            }
            assert_eq!(read, 500);
            drop(stream);
            // Kept open until the handler is over.
            let mut stream = transaction.stream_raw(rows(db.backend())).await.unwrap();
            stream.next().await.unwrap().unwrap();
            let refused = transaction
                .execute_unprepared("SELECT 1")
                .await
                .unwrap_err();
            assert!(Error::of(&refused).unwrap().is_wrong_handle());
            StatusCode::OK
        });
        let answer = app.oneshot(request()).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
    })
    .await;
}

#[tokio::test]
async fn h10_a_statement_beside_an_open_stream_is_refused_at_once() {
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let db = test.connect(1).await;
        insert_item(&db, "a").await;
        let pool = session_pool(db.clone());
        let session = pool.session().await.unwrap();
        // More rows than are buffered anywhere.
        let all = || {
            let sql = "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t WHERE n < 900) SELECT n FROM t";
            Statement::from_string(kind.backend(), sql)
        };

        let mut stream = session.stream_raw(all()).await.unwrap();
        stream.next().await.unwrap().unwrap();
        let refused = timeout(BOUND, session.execute_unprepared("SELECT 1")).await;
        assert_wrong_handle(refused.expect("at once"));
        assert_wrong_handle(timeout(BOUND, session.begin()).await.expect("at once"));
        assert_wrong_handle(timeout(BOUND, session.release()).await.expect("at once"));
        // It is not harmed, and half-read it is in nobody's way once it is dropped.
        stream.next().await.unwrap().unwrap();
        drop(stream);
        session.execute_unprepared("SELECT 1").await.unwrap();

        let tx = session.begin().await.unwrap();
        let mut stream = tx.stream_raw(all()).await.unwrap();
        stream.next().await.unwrap().unwrap();
        assert_wrong_handle(
            timeout(BOUND, tx.execute_unprepared("SELECT 1"))
                .await
                .expect("at once"),
        );
        let mut rest = 0;
        while let Some(row) = stream.next().await {
            row.unwrap();
            rest += 1;
        }
        assert_eq!(rest, 899);
        drop(stream);
        tx.commit().await.unwrap();

        // The size of the result makes no difference: three rows have all arrived, and still the stream is open.
        let few = "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t WHERE n < 3) SELECT n FROM t";
        let mut stream = session
            .stream_raw(Statement::from_string(kind.backend(), few))
            .await
            .unwrap();
        for _ in 0..3 {
            stream.next().await.unwrap().unwrap();
            assert_wrong_handle(
                timeout(BOUND, session.execute_unprepared("SELECT 1"))
                    .await
                    .expect("at once"),
            );
        }
        assert!(stream.next().await.is_none());
        session.execute_unprepared("SELECT 1").await.unwrap();
        drop(stream);

        // One that already queues when a stream opens does not wait for it either.
        let queued = async {
            let statement = session.query_one_raw(slow(kind, 0.1));
            let (first, stream, third) = futures_util::join!(
                statement,
                session.stream_raw(all()),
                session.execute_unprepared("SELECT 1")
            );
            first.unwrap();
            drop(stream.unwrap());
            let _ = third;
        };
        timeout(BOUND, queued).await.expect("nobody waits for ever");

        // Plain concurrent statements queue.
        let counts = join_all((0..10).map(|_| count_items(&*session, "a"))).await;
        assert_eq!(counts, [1; 10]);
        drop(session);
        assert_whole(&test, &db, 1).await;
    }
}

#[tokio::test]
async fn h23_every_request_gets_its_own_result() {
    /// The first row of many: the rest is unread when the answer is complete.
    async fn first(session: DbSession, Path(n): Path<i32>) -> Result<String, Failed> {
        one(&session, n, "n").await
    }
    /// The same, but the rest is an error, except on SQLite: two rows where one may stand.
    async fn breaks(session: DbSession, Path(n): Path<i32>) -> Result<String, Failed> {
        one(
            &session,
            n,
            "(SELECT earlier.n FROM t AS earlier WHERE earlier.n <= t.n)",
        )
        .await
    }
    async fn one(session: &DbSession, n: i32, column: &str) -> Result<String, Failed> {
        let sql = format!(
            "WITH RECURSIVE t(n) AS (SELECT {n} UNION ALL SELECT n + 1 FROM t WHERE n < {n} + 100) SELECT {column} FROM t"
        );
        let row = session
            .query_one_raw(Statement::from_string(session.backend(), sql))
            .await?;
        let row = row.ok_or_else(|| DbErr::Custom("no row".to_owned()))?;
        let n = row
            .try_get_by_index::<i64>(0)
            .or_else(|_| row.try_get_by_index::<i32>(0).map(i64::from))?;
        Ok(n.to_string())
    }
    async fn fail(session: DbSession) -> Result<(), Failed> {
        session
            .query_all_raw(Statement::from_string(
                session.backend(),
                "SELECT no_such_column FROM item",
            ))
            .await?;
        Ok(())
    }
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let db = test.connect(1).await;
        let app = Router::new()
            .route("/first/{n}", get(first))
            .route("/breaks/{n}", get(breaks))
            .route("/fail", get(fail))
            .layer(session_layer(db.clone()));
        // Ten at a time, so that one hands the connection over to the next.
        for batch in 0..50 {
            let requests = (0..10).map(|n| {
                let (app, n) = (&app, 10 * batch + n);
                async move {
                    let (uri, failure) = match n % 4 {
                        0 => ("/fail".to_owned(), Some("no_such_column")),
                        // A result is read to its end, and so its error is its own.
                        1 if kind == Kind::Postgres => {
                            (format!("/breaks/{n}"), Some("more than one row"))
                        }
                        1 if kind == Kind::MySql => {
                            (format!("/breaks/{n}"), Some("more than 1 row"))
                        }
                        1 => (format!("/breaks/{n}"), None),
                        _ => (format!("/first/{n}"), None),
                    };
                    let answer = send(app, &uri).await;
                    let (status, body) = (answer.status(), text(answer).await);
                    match failure {
                        None => assert_eq!(
                            (status, body),
                            (StatusCode::OK, n.to_string()),
                            "{kind:?}: {uri}"
                        ),
                        Some(own) => {
                            assert_eq!(status, StatusCode::IM_A_TEAPOT, "{kind:?}: {uri}: {body}");
                            assert!(body.contains(own), "{kind:?}: {uri}: {body}");
                        }
                    }
                }
            });
            join_all(requests).await;
        }
        assert_whole(&test, &db, 1).await;
    }
}
