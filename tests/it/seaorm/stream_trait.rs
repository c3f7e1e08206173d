//! G7, G16: a stream's end is the end of its rows, and its failure is reported, also in a task that tokio makes yield.
//!
//! A task that has done much in one poll is told by tokio's channels and sockets to come back later,
//! even if something is ready. That must not pass for the end of the rows.

use std::{
    pin::pin,
    task::{Context, Poll},
};

use axum::{Router, body::Body, routing::get};
use futures_util::{Stream, StreamExt, future::poll_fn};
use http::Request;
use http_body_util::BodyExt;
use sea_orm::{ConnectionTrait, DatabaseConnection, DbErr, QueryResult, Statement, StreamTrait};
use tokio::time::timeout;
use tower::ServiceExt;
use tower_sea_orm::DbSession;

use crate::{
    log::Log,
    support::{
        database::{Kind, TestDb},
        pool::{assert_whole, session_layer, session_pool},
        site::is_mariadb,
        wait::{BOUND, eventually},
    },
};

/// The number of operations that tokio lets a task do in one poll.
const BUDGET: usize = 128;

fn numbers(kind: Kind, rows: usize) -> Statement {
    let sql = format!(
        "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t WHERE n < {rows}) SELECT n FROM t"
    );
    Statement::from_string(kind.backend(), sql)
}

/// Spends what this poll may do, except for `left` things.
fn spend(cx: &mut Context<'_>, left: usize) {
    for _ in left..BUDGET {
        assert!(
            pin!(tokio::task::consume_budget()).poll(cx).is_ready(),
            "the task has just begun its poll"
        );
    }
}

/// Reads to the end, with polls that may do `allowance[0]`, `allowance[1]`, .. things, over and over.
async fn read<S>(mut rows: S, allowance: &[usize]) -> Result<usize, DbErr>
where
    S: Stream<Item = Result<QueryResult, DbErr>> + Unpin,
{
    let mut count = 0;
    let mut turns = allowance.iter().cycle();
    // What came before was done in the same poll.
    tokio::task::yield_now().await;
    let read = poll_fn(|cx| {
        spend(cx, *turns.next().unwrap_or(&1));
        match rows.poll_next_unpin(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) => Poll::Ready(Ok(())),
            Poll::Ready(Some(Err(error))) => Poll::Ready(Err(error)),
            Poll::Ready(Some(Ok(_))) => {
                count += 1;
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        }
    });
    timeout(BOUND, read).await.expect("a stream hangs")?;
    Ok(count)
}

/// With all of them the last rows are read when there is nothing left to do in that poll.
const ALLOWANCES: [&[usize]; 6] = [
    &[BUDGET],
    &[0, BUDGET],
    &[BUDGET, 0],
    &[1],
    &[0, 2],
    &[3, 0, 1],
];

#[tokio::test]
async fn every_row_arrives_in_a_task_that_has_to_yield() {
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let db = test.connect(1).await;
        let session = session_pool(db.clone()).session().await.unwrap();
        for allowance in ALLOWANCES {
            for length in [1, 2, 15, 16, 17, 40, 300] {
                let rows = session.rows(numbers(kind, length)).await.unwrap();
                assert_eq!(
                    read(rows, allowance).await,
                    Ok(length),
                    "{kind:?}, {allowance:?}"
                );
                let rows = session.stream_raw(numbers(kind, length)).await.unwrap();
                assert_eq!(
                    read(rows, allowance).await,
                    Ok(length),
                    "{kind:?}, {allowance:?}"
                );
            }
        }
        drop(session);
        assert_whole(&test, &db, 1).await;
    }
}

#[tokio::test]
async fn a_failure_is_reported_once_in_a_task_that_has_to_yield() {
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let db = test.connect(1).await;
        let session = session_pool(db.clone()).session().await.unwrap();
        for allowance in ALLOWANCES {
            let statement = Statement::from_string(kind.backend(), "SELECT n FROM nowhere");
            let mut rows = session.rows(statement).await.unwrap();
            read(&mut rows, allowance).await.unwrap_err();
            assert!(
                timeout(BOUND, rows.next()).await.unwrap().is_none(),
                "{kind:?}, {allowance:?}"
            );
        }
        drop(session);
        assert_whole(&test, &db, 1).await;
    }
}

#[tokio::test]
async fn a_failure_before_the_first_row_is_no_empty_stream() {
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let db = test.connect(1).await;
        for allowance in ALLOWANCES {
            // The transaction cannot be set up.
            let layer = session_layer(db.clone()).on_begin(move |_| {
                vec![Statement::from_string(
                    kind.backend(),
                    "SELECT n FROM nowhere",
                )]
            });
            let handler = async move |db: DbSession| {
                let rows = db.rows(numbers(kind, 3)).await.unwrap();
                read(rows, allowance).await.unwrap_err();
                db.rollback().await.unwrap();
            };
            let app = Router::new().route("/", get(handler)).layer(layer);
            app.oneshot(Request::new(Body::empty())).await.unwrap();
        }
        assert_whole(&test, &db, 1).await;
    }
}

#[tokio::test]
async fn a_stream_whose_session_has_ended_does_not_end_as_if_complete() {
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let db = test.connect(1).await;
        let handler = async move |db: DbSession| {
            // Not held: the session ends with the head.
            let rows = db.rows(numbers(kind, 10_000)).await.unwrap();
            Body::from_stream(rows.map(|row| row.map(|_| "row ")))
        };
        let app = Router::new()
            .route("/", get(handler))
            .layer(session_layer(db.clone()));
        let response = app.oneshot(Request::new(Body::empty())).await.unwrap();
        let body = timeout(BOUND, response.into_body().collect())
            .await
            .unwrap();
        assert!(
            body.is_err_and(|error| format!("{error:?}").contains("session")),
            "{kind:?}"
        );
        assert_whole(&test, &db, 1).await;
    }
}

/// A statement that returns `rows` rows or one more, and then fails; with a table `late` that stays empty.
async fn failing_late(db: &DatabaseConnection, kind: Kind, rows: usize) -> Statement {
    let rule = match kind {
        Kind::Postgres => String::new(),
        Kind::MySql => format!("CHECK (n <= {rows})"),
        // SQLite returns nothing until all is inserted; its COMMIT comes after the rows.
        _ => "REFERENCES item (id) DEFERRABLE INITIALLY DEFERRED".to_owned(),
    };
    db.execute_unprepared(&format!("CREATE TABLE late (n integer {rule})"))
        .await
        .unwrap();
    let numbers = numbers(kind, rows + 1).sql;
    let sql = match kind {
        // PostgreSQL returns nothing of an INSERT that fails.
        Kind::Postgres => numbers.replace(
            "SELECT n FROM",
            &format!("SELECT 1 / ({rows} + 1 - n) FROM"),
        ),
        _ => format!("INSERT INTO late {numbers} RETURNING n"),
    };
    Statement::from_string(kind.backend(), sql)
}

#[tokio::test]
async fn a_failure_after_its_stream_was_dropped_is_logged() {
    for kind in Kind::ALL {
        // Few enough that the statement has ended when the first row is read, and too many for that.
        for rows in [5, 900] {
            let test = TestDb::new(kind).await;
            let db = test.connect(1).await;
            if kind == Kind::MySql && !is_mariadb(&db).await {
                continue;
            }
            let statement = failing_late(&db, kind, rows).await;
            let session = session_pool(db.clone()).session().await.unwrap();
            let (log, _guard) = Log::start();
            let mut stream = session.rows(statement).await.unwrap();
            assert!(
                timeout(BOUND, stream.next())
                    .await
                    .unwrap()
                    .unwrap()
                    .is_ok(),
                "{kind:?} {rows}: a row"
            );
            drop(stream);
            let is_told = || {
                log.lines()
                    .iter()
                    .any(|line| line.starts_with("WARN") && line.contains("failed after"))
            };
            eventually(&format!("{kind:?} {rows}: a line in the log"), async || {
                is_told()
            })
            .await;
            assert_eq!(
                session
                    .execute_unprepared("DELETE FROM late")
                    .await
                    .unwrap()
                    .rows_affected(),
                0
            );
            drop(session);
            assert_whole(&test, &db, 1).await;
        }
    }
}

#[tokio::test]
async fn a_failure_that_was_read_from_a_stream_is_not_logged_again() {
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let db = test.connect(1).await;
        let session = session_pool(db.clone()).session().await.unwrap();
        let (log, _guard) = Log::start();
        let statement = Statement::from_string(kind.backend(), "SELECT n FROM nowhere");
        let mut rows = session.rows(statement).await.unwrap();
        timeout(BOUND, rows.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap_err();
        drop(rows);
        session.execute_unprepared("SELECT 1").await.unwrap();
        assert!(
            log.lines()
                .iter()
                .all(|line| !line.contains("failed after")),
            "{kind:?}: {:?}",
            log.lines()
        );
        drop(session);
        assert_whole(&test, &db, 1).await;
    }
}
