//! One test per known hazard of the libraries underneath; the number is the hazard's.

use std::{
    future::poll_fn,
    panic::AssertUnwindSafe,
    pin::pin,
    sync::{Mutex, Once, PoisonError},
    task::Poll,
    thread,
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Body,
    extract::{Path, State},
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::{
    FutureExt, StreamExt,
    future::{Either, join_all, select},
};
use http::{Request, StatusCode, header};
use sea_orm::{
    ConnectionTrait, Database, DatabaseConnection, DbErr, Statement, StreamTrait, TransactionTrait,
    sqlx::Executor,
};
use tokio::{runtime::Runtime, time::timeout};
use tower::ServiceExt;
use tower_http::catch_panic::CatchPanicLayer;
use tower_sea_orm::{DbSession, DbSessionLayer, Error};

use crate::support::pool::{layer_with, pool_with, session_layer, session_pool};
use crate::support::{
    database::{Kind, TestDb, count_items, insert_item, unique_name},
    pool::{assert_whole, open_transactions},
    servers::OwnServer,
    wait::{BOUND, eventually},
    wire::Proxy,
};

/// A `release_timeout` that a test can wait for.
const RELEASE: Duration = Duration::from_millis(500);

#[tokio::test]
async fn h1_a_request_cancelled_around_begin_never_poisons_the_pool() {
    for kind in [Kind::Postgres, Kind::MySql] {
        let test = TestDb::new(kind).await;
        let proxy = Proxy::start(port_of(test.url())).await;
        let db = Database::connect(test.options_at(&proxy.url(test.url()), 1))
            .await
            .unwrap();
        let observer = test.observer().await.unwrap();
        let app = Router::new()
            .route(
                "/begin",
                get(async |db: DbSession| {
                    let tx = db.begin().await?;
                    insert_item(&tx, &unique_name()).await;
                    tx.rollback().await.map_err(Failed)
                }),
            )
            .route("/write/{name}", get(write))
            .layer(session_layer(db.clone()));

        proxy.delay_replies(Duration::from_millis(2));
        for round in 0..80 {
            // From before BEGIN is sent until after ROLLBACK is acknowledged.
            let cancelled = Duration::from_micros(150 * round);
            let _ = timeout(cancelled, send(&app, "/begin")).await;
            let name = unique_name();
            assert_eq!(
                send(&app, &format!("/write/{name}")).await.status(),
                StatusCode::OK
            );
            assert_eq!(
                count_items(&observer, &name).await,
                1,
                "{kind:?}: acknowledged, cancelled at {cancelled:?}"
            );
        }
        for polls in 0..20 {
            let _ = after_polls(polls, send(&app, "/begin")).await;
            let name = unique_name();
            assert_eq!(
                send(&app, &format!("/write/{name}")).await.status(),
                StatusCode::OK
            );
            assert_eq!(
                count_items(&observer, &name).await,
                1,
                "{kind:?}: acknowledged, cancelled at poll {polls}"
            );
        }
        assert_eq!(open_transactions(&observer).await, 0);
        proxy.delay_replies(Duration::ZERO);
        assert_whole(&test, &db, 1).await;
    }
}

#[tokio::test]
async fn h2_a_hung_server_does_not_keep_the_slot_of_a_returning_connection() {
    for server in [OwnServer::postgres(), OwnServer::mysql()] {
        let test = TestDb::on(&server).await;
        let db = test.connect(2).await;
        let pool = pool_with(&db, |pool| {
            pool.release_timeout(RELEASE)
                .acquire_timeout(Duration::from_secs(5))
        });

        let clean = pool.session().await.unwrap();
        clean.ping().await.unwrap();
        let dirty = pool.session().await.unwrap();
        let tx = dirty.begin().await.unwrap();
        insert_item(&tx, "dirty").await;
        server.freeze();
        let frozen = Instant::now();
        drop(clean);
        drop(tx);
        drop(dirty);
        eventually("the slots are free", async || pool.status().used == 0).await;
        assert!(frozen.elapsed() >= RELEASE, "closed before its time");

        let refused = timeout(BOUND, pool.session()).await;
        let error = refused
            .expect("an answer in bounded time")
            .expect_err("the server is frozen");
        assert_eq!(error.status(), StatusCode::SERVICE_UNAVAILABLE);

        server.thaw();
        eventually("sessions work again", async || match pool.session().await {
            Ok(session) => session.ping().await.is_ok(),
            Err(_) => false,
        })
        .await;
        assert_whole(&test, &db, 2).await;
        assert_eq!(count_items(&db, "dirty").await, 0);
    }
}

#[tokio::test]
async fn h3_a_transaction_dropped_in_a_long_statement_frees_its_slot_in_time() {
    for kind in [Kind::Postgres, Kind::MySql] {
        let test = TestDb::new(kind).await;
        let db = test.connect(1).await;
        let observer = test.observer().await.unwrap();
        let layer = layer_with(&db, |pool| pool.release_timeout(RELEASE));
        let pool = layer.pool().clone();
        let app = Router::new()
            .route(
                "/sleep",
                get(async move |db: DbSession| {
                    let tx = db.begin().await?;
                    insert_item(&tx, "dropped").await;
                    let slept = tx.query_one_raw(sleep(kind, 600)).await;
                    slept.map(drop).map_err(Failed)
                }),
            )
            .route("/write/{name}", get(write))
            .layer(layer);

        let request = Box::pin(send(&app, "/sleep"));
        let running = pin!(eventually("the statement runs", async || is_sleeping(
            &observer
        )
        .await));
        let Either::Right(((), request)) = select(request, running).await else {
            panic!("the request ended")
        };
        drop(request);
        eventually("the slot is free", async || pool.status().used == 0).await;
        assert_eq!(send(&app, "/write/next").await.status(), StatusCode::OK);
        // The server has not noticed yet that nobody waits for the statement.
        end_sleeping(&observer).await;
        assert_whole(&test, &db, 1).await;
        assert_eq!(count_items(&observer, "dropped").await, 0);
    }
}

#[tokio::test]
async fn h3m_a_statement_dropped_after_any_number_of_polls_loses_no_permit() {
    let test = TestDb::new(Kind::MySql).await;
    let db = test.connect(1).await;
    let pool = session_pool(db.clone());
    for polls in 1..=18 {
        let session = pool.session().await.unwrap();
        let tx = session.begin().await.unwrap();
        insert_item(&tx, "dropped").await;
        // A text of its own each time: the driver has not prepared it yet.
        let sql = format!("SELECT SLEEP(0.02) AS {}", unique_name());
        drop(
            after_polls(
                polls % 6,
                tx.query_one_raw(Statement::from_string(tx.backend(), sql)),
            )
            .await,
        );
        drop(tx);
        drop(session);
        eventually("the slot is free", async || pool.status().used == 0).await;
        assert_eq!(count_items(&db, "dropped").await, 0);
    }
    assert_whole(&test, &db, 1).await;
}

#[tokio::test]
async fn h5_ending_siblings_out_of_order_is_an_error_and_loses_nothing_silently() {
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let db = test.connect(1).await;
        let pool = session_pool(db.clone());
        let session = pool.session().await.unwrap();

        // Siblings of the session: the second does not even begin.
        let first = session.begin().await.unwrap();
        assert_out_of_turn(session.begin().await);
        assert_out_of_turn(session.execute_unprepared("SELECT 1").await);
        insert_item(&first, "first").await;
        first.commit().await.unwrap();
        assert_eq!(count_items(&*session, "first").await, 1, "{kind:?}");

        // Siblings inside of a transaction.
        let outer = session.begin().await.unwrap();
        let inner = outer.begin().await.unwrap();
        assert_out_of_turn(outer.begin().await);
        assert_out_of_turn(outer.execute_unprepared("SELECT 1").await);
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
            assert_out_of_turn(if commit {
                outer.commit().await
            } else {
                outer.rollback().await
            });
            assert_out_of_turn(inner.execute_unprepared("SELECT 1").await);
            assert_out_of_turn(inner.commit().await);
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
async fn h5b_a_nested_begin_dropped_half_way_leaves_the_outer_transaction_intact() {
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
                    tx.query_one_raw(slow(kind)).await.map(drop).map_err(Failed)
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
        assert_out_of_turn(refused.expect("at once"));
        assert_out_of_turn(timeout(BOUND, session.begin()).await.expect("at once"));
        assert_out_of_turn(timeout(BOUND, session.release()).await.expect("at once"));
        // It is not harmed, and half-read it is in nobody's way once it is dropped.
        stream.next().await.unwrap().unwrap();
        drop(stream);
        session.execute_unprepared("SELECT 1").await.unwrap();

        let tx = session.begin().await.unwrap();
        let mut stream = tx.stream_raw(all()).await.unwrap();
        stream.next().await.unwrap().unwrap();
        assert_out_of_turn(
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
            assert_out_of_turn(
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
            let statement = session.query_one_raw(slow(kind));
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
async fn h11_using_the_plain_connection_beside_a_session_ends_in_an_error_and_has_ways_out() {
    async fn mixed(
        session: DbSession,
        State(plain): State<DatabaseConnection>,
    ) -> Result<(), Failed> {
        plain.execute_unprepared("SELECT 1").await?;
        session.execute_unprepared("SELECT 1").await?;
        Ok(())
    }
    async fn plain_while_released(
        session: DbSession,
        State(plain): State<DatabaseConnection>,
    ) -> Result<(), Failed> {
        session.execute_unprepared("SELECT 1").await?;
        session.release().await?;
        plain.execute_unprepared("SELECT 1").await?;
        session.execute_unprepared("SELECT 1").await?;
        Ok(())
    }
    for kind in [Kind::Postgres, Kind::MySql, Kind::SqliteFile] {
        let test = TestDb::new(kind).await;
        let connect = async |size, acquire_timeout| {
            let mut options = test.options(size);
            options.acquire_timeout(acquire_timeout);
            Database::connect(options).await.unwrap()
        };
        let db = connect(1, Duration::from_secs(3)).await;
        let app = |layer| {
            Router::new()
                .route("/", get(mixed))
                .route("/released", get(plain_while_released))
                .layer(layer)
                .with_state(db.clone())
        };

        let eager = app(session_layer(db.clone()));
        let answer = timeout(BOUND, send(&eager, "/")).await;
        assert_eq!(
            answer.expect("not a hang").status(),
            StatusCode::SERVICE_UNAVAILABLE,
            "{kind:?}"
        );
        assert_eq!(
            send(&eager, "/released").await.status(),
            StatusCode::OK,
            "{kind:?}"
        );

        let lazy = app(session_layer(db.clone()).lazy());
        assert_eq!(send(&lazy, "/").await.status(), StatusCode::OK, "{kind:?}");
        assert_whole(&test, &db, 1).await;

        let two = connect(2, BOUND).await;
        let reserved = Router::new()
            .route("/", get(mixed))
            .layer(layer_with(&two, |pool| pool.reserved_connections(1)))
            .with_state(two.clone());
        for answer in join_all((0..10).map(|_| send(&reserved, "/"))).await {
            assert_eq!(answer.status(), StatusCode::OK, "{kind:?}");
        }
        assert_whole(&test, &two, 2).await;
    }
}

#[tokio::test]
async fn h12_fifty_queued_requests_share_one_connection() {
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let db = test.connect(1).await;
        let layer = layer_with(&db, |pool| pool.max_pending(50));
        let app = Router::new()
            .route("/write/{name}", get(write))
            .layer(layer);
        let names: Vec<_> = (0..50)
            .map(|_| format!("/write/{}", unique_name()))
            .collect();
        for answer in join_all(names.iter().map(|uri| send(&app, uri))).await {
            assert_eq!(answer.status(), StatusCode::OK, "{kind:?}");
        }
        // One after the other, without a pause: each finds the connection that the last one left.
        for _ in 0..50 {
            assert_eq!(
                send(&app, &format!("/write/{}", unique_name()))
                    .await
                    .status(),
                StatusCode::OK
            );
        }
        assert_whole(&test, &db, 1).await;
    }
}

#[tokio::test]
async fn h13_a_panic_rolls_back_and_frees_the_slot() {
    async fn panics(session: DbSession) {
        let tx = session.begin().await.unwrap();
        insert_item(&tx, "panic").await;
        let inner = tx.begin().await.unwrap();
        insert_item(&inner, "inner").await;
        panic!("on purpose");
    }
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let db = test.connect(1).await;
        let layer = session_layer(db.clone());
        let pool = layer.pool().clone();
        let routes = Router::new().route("/", get(panics));
        let outside = routes
            .clone()
            .layer(layer.clone())
            .layer(CatchPanicLayer::new());
        let inside = routes.layer(CatchPanicLayer::new()).layer(layer);
        for app in [outside, inside] {
            assert_eq!(
                send(&app, "/").await.status(),
                StatusCode::INTERNAL_SERVER_ERROR
            );
            eventually("the slot is free", async || pool.status().used == 0).await;
            assert_eq!(count_items(&db, "panic").await, 0, "{kind:?}");
            assert_eq!(count_items(&db, "inner").await, 0, "{kind:?}");
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
                        Box::pin(async move { queried.query_one_raw(slow(kind)).await.map(drop) });
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
async fn h22_ten_thousand_cancelled_waits_cost_no_connection() {
    let test = TestDb::new(Kind::Postgres).await;
    let db = test.connect(1).await;
    let pool = session_pool(db.clone());
    let pid = backend_pid(&db).await;

    // While another session holds the connection.
    let holder = pool.session().await.unwrap();
    for _ in 0..10_000 {
        assert!(after_polls(1, pool.session()).await.is_none());
    }
    assert_eq!(pool.status().pending, 0);
    assert_eq!(backend_pid(&*holder).await, pid);
    drop(holder);
    // While it is being fetched from the driver's pool, ping included.
    for round in 0..500 {
        drop(after_polls(1 + round % 3, pool.session()).await);
        for _ in 0..round % 7 {
            tokio::task::yield_now().await;
        }
    }
    let session = pool.session().await.unwrap();
    assert_eq!(backend_pid(&*session).await, pid);
    drop(session);
    assert_whole(&test, &db, 1).await;
    assert_eq!(backend_pid(&db).await, pid);

    // In memory, a connection is the database.
    let test = TestDb::new(Kind::SqliteMemory).await;
    let db = test.connect(1).await;
    insert_item(&db, "survivor").await;
    let app = Router::new()
        .route("/write/{name}", get(write))
        .layer(session_layer(db.clone()));
    for round in 0..2_000 {
        let uri = format!("/write/{}", unique_name());
        drop(after_polls(round % 12, send(&app, &uri)).await);
    }
    assert_eq!(send(&app, "/write/last").await.status(), StatusCode::OK);
    assert_whole(&test, &db, 1).await;
    assert_eq!(count_items(&db, "survivor").await, 1);
}

#[tokio::test]
async fn h23_every_request_gets_its_own_answer() {
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

#[tokio::test]
async fn h25_a_database_that_is_down_is_told_apart_from_a_full_pool() {
    async fn statement(session: DbSession) -> Result<(), (StatusCode, String)> {
        let result = session.execute_unprepared("SELECT 1").await;
        result.map(drop).map_err(|error| {
            (
                StatusCode::INTERNAL_SERVER_ERROR,
                describe(Error::of(&error).as_ref()),
            )
        })
    }
    for mut server in [OwnServer::postgres(), OwnServer::mysql()] {
        let test = TestDb::on(&server).await;
        let mut options = test.options(1);
        options.acquire_timeout(Duration::from_secs(3));
        let db = Database::connect(options).await.unwrap();
        let layer = layer_with(&db, |pool| pool.acquire_timeout(Duration::from_secs(3)));
        let pool = layer.pool().clone();
        let routes = Router::new().route("/", get(statement));
        let respond = |error: &Error, parts: &http::request::Parts| {
            tower_sea_orm::error_response(error, parts, Body::from(describe(Some(error))))
        };
        let eager = routes
            .clone()
            .layer(layer.clone().response_for_error(respond));
        let lazy = routes
            .clone()
            .layer(layer.clone().lazy().response_for_error(respond));
        let handler = routes.layer(layer.lazy().keep_handler_errors());

        let expect = async |what: &str| {
            for app in [&eager, &lazy] {
                let answer = timeout(BOUND, send(app, "/"))
                    .await
                    .expect("in bounded time");
                assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
                let wait = answer.headers()[header::RETRY_AFTER]
                    .to_str()
                    .unwrap()
                    .to_owned();
                assert!(
                    (1..=3).contains(&wait.parse().unwrap()),
                    "Retry-After: {wait}"
                );
                assert_eq!(text(answer).await, what);
            }
            let answer = send(&handler, "/").await;
            assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
            assert_eq!(text(answer).await, what, "what the handler learns");
        };
        let holder = pool.session().await.unwrap();
        expect("exhausted").await;
        drop(holder);
        assert_eq!(send(&eager, "/").await.status(), StatusCode::OK);

        server.stop();
        expect("down").await;
        server.start();
        eventually("it works again", async || {
            send(&lazy, "/").await.status() == StatusCode::OK
        })
        .await;
        assert_eq!(send(&eager, "/").await.status(), StatusCode::OK);
        assert_whole(&test, &db, 1).await;

        db.clone().close().await.unwrap();
        expect("closing").await;
        drop(server);
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
                                db.query_one_raw(slow(kind)).await.map(drop).map_err(Failed)
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

/// A handler's failure: a driver's own error is 418, to be told from the layer's answers.
#[derive(Debug)]
pub struct Failed(pub DbErr);

impl From<DbErr> for Failed {
    fn from(error: DbErr) -> Self {
        Self(error)
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        let status = Error::of(&self.0).map_or(StatusCode::IM_A_TEAPOT, |error| error.status());
        (status, self.0.to_string()).into_response()
    }
}

/// A handler that writes one row, outside of a transaction.
async fn write(session: DbSession, Path(name): Path<String>) -> Result<(), Failed> {
    let sql = format!("INSERT INTO item (name) VALUES ('{name}')");
    session.execute_unprepared(&sql).await?;
    Ok(())
}

/// Polls `future` at most `polls` times; its output if it has ended by then.
pub async fn after_polls<F: Future>(polls: u32, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// The answer of `app` to a GET of `uri`.
pub async fn send(app: &Router, uri: &str) -> Response {
    send_owned(app.clone(), uri).await
}

fn send_owned(app: Router, uri: &str) -> impl Future<Output = Response> + Send + 'static {
    let request = Request::get(uri).body(Body::empty()).unwrap();
    async move {
        match app.oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}

/// The text of a response's body.
pub async fn text(response: Response) -> String {
    let body = axum::body::to_bytes(response.into_body(), usize::MAX)
        .await
        .unwrap();
    String::from_utf8(body.to_vec()).unwrap()
}

/// Asserts that the crate refused, and why.
#[track_caller]
fn assert_out_of_turn<T>(result: Result<T, DbErr>) {
    let Err(error) = result else {
        panic!("not refused")
    };
    let known = Error::of(&error).unwrap_or_else(|| panic!("another error: {error}"));
    assert!(known.is_wrong_handle(), "another error: {known}");
}

/// Drops `value` on a thread that no runtime knows, and asserts that nothing panicked there: also
/// not where somebody caught it.
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

/// A statement that takes `seconds` on a server.
fn sleep(kind: Kind, seconds: u32) -> Statement {
    let sql = match kind {
        Kind::Postgres => format!("SELECT pg_sleep({seconds})::text"),
        _ => format!("SELECT SLEEP({seconds})"),
    };
    Statement::from_string(kind.backend(), sql)
}

/// A statement that takes some 100 milliseconds.
fn slow(kind: Kind) -> Statement {
    let sql = match kind {
        Kind::Postgres => "SELECT pg_sleep(0.1)::text",
        Kind::MySql => "SELECT SLEEP(0.1)",
        Kind::SqliteFile | Kind::SqliteMemory => {
            "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t WHERE n < 300000) SELECT count(*) FROM t"
        }
    };
    Statement::from_string(kind.backend(), sql)
}

/// Whether somebody runs [`sleep`] in the observer's database.
async fn is_sleeping(observer: &DatabaseConnection) -> bool {
    let backend = observer.get_database_backend();
    let sql = match backend {
        sea_orm::DbBackend::Postgres => {
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND state = 'active'              AND query LIKE 'SELECT pg_sleep(%'"
        }
        _ => {
            "SELECT 1 FROM information_schema.processlist WHERE db = database() AND info LIKE 'SELECT SLEEP(%'"
        }
    };
    observer
        .query_one_raw(Statement::from_string(backend, sql))
        .await
        .unwrap()
        .is_some()
}

/// Ends whoever runs [`sleep`] in the observer's database.
async fn end_sleeping(observer: &DatabaseConnection) {
    let backend = observer.get_database_backend();
    let end = match backend {
        sea_orm::DbBackend::Postgres => {
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() \
             AND state = 'active' AND query LIKE 'SELECT pg_sleep(%'"
                .to_owned()
        }
        _ => {
            let sleeping = "SELECT CAST(id AS SIGNED) FROM information_schema.processlist \
                            WHERE db = database() AND info LIKE 'SELECT SLEEP(%'";
            let row = observer.query_one_raw(Statement::from_string(backend, sleeping)).await.unwrap();
            let id: i64 = row.expect("it still runs").try_get_by_index(0).unwrap();
            format!("KILL {id}")
        }
    };
    observer.execute_unprepared(&end).await.unwrap();
}

/// The server's own name for a connection.
pub async fn backend_pid<C: ConnectionTrait>(db: &C) -> i64 {
    let (backend, sql) = match db.get_database_backend() {
        backend @ sea_orm::DbBackend::Postgres => (backend, "SELECT pg_backend_pid()::bigint"),
        backend => (backend, "SELECT CAST(connection_id() AS SIGNED)"),
    };
    let row = db
        .query_one_raw(Statement::from_string(backend, sql))
        .await
        .unwrap();
    row.unwrap().try_get_by_index(0).unwrap()
}

/// Which failure to acquire it is.
fn describe(error: Option<&Error>) -> String {
    let what = match error {
        Some(error) if error.is_exhausted() => "exhausted",
        Some(error) if error.is_unreachable() => "down",
        Some(error) if error.is_closing() => "closing",
        _ => "something else",
    };
    what.to_owned()
}

/// The port in a database URL.
fn port_of(url: &str) -> u16 {
    let after = url.rsplit_once(':').expect("a URL with a port").1;
    after
        .split(['/', '?'])
        .next()
        .expect("a port")
        .parse()
        .expect("a port")
}
