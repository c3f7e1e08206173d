//! G2, G10 in `PoolMode::Transaction`: sessions lend their connection between statements.

use std::time::Duration;

use axum::{Router, body::Body, extract::Path, routing::get};
use futures_util::{StreamExt, future::join_all, stream};
use http::StatusCode;
use sea_orm::{ConnectionTrait, DbBackend, DbErr, Statement, TransactionTrait};
use tokio::{task::yield_now, time::timeout};
use tower_sea_orm::{DbSession, DbTx, Error, PoolMode, SessionPoolBuilder};

use super::lending::{Gate, select};
use crate::support::{
    database::{Kind, TestDb, count_items, insert_item, try_insert_item, unique_name},
    pool::{assert_whole, layer_with, opened, pool_with},
    requests::{Failed, send, send_owned},
    wait::{BOUND, eventually},
};

pub fn transaction_mode(pool: SessionPoolBuilder) -> SessionPoolBuilder {
    pool.acquire_timeout(BOUND)
        .max_pending(1000)
        .pool_mode(PoolMode::Transaction)
}

/// Lends whenever it may, whether something waits or not.
pub fn rotating(pool: SessionPoolBuilder) -> SessionPoolBuilder {
    // Also where the suite runs without: what rotates is kept idle by the pool.
    transaction_mode(pool)
        .direct_handoff(true)
        .rotate_connections()
}

/// The connection that the session's next statement runs on, by the number that the server has given it.
async fn connection(db: &impl ConnectionTrait) -> i64 {
    let sql = match db.get_database_backend() {
        DbBackend::Postgres => "SELECT pg_backend_pid()::int8",
        _ => "SELECT CAST(CONNECTION_ID() AS SIGNED)",
    };
    let statement = Statement::from_string(db.get_database_backend(), sql);
    let row = db.query_one_raw(statement).await.unwrap().unwrap();
    row.try_get_by_index(0).unwrap()
}

/// Handlers that wait for something else between two statements need no connection meanwhile.
#[tokio::test]
async fn requests_that_wait_between_statements_share_connections() {
    for kind in Kind::ALL {
        for lazy in [false, true] {
            let test = TestDb::new(kind).await;
            let db = test.connect(2).await;
            let mut layer = layer_with(&db, transaction_mode);
            if lazy {
                layer = layer.lazy();
            }
            let pool = layer.pool().clone();
            let max = pool.status().max;
            let (gate, passed) = (Gate::new(), Gate::new());
            let inner = (gate.clone(), passed.clone());
            let waits = async move |db: DbSession, Path(name): Path<String>| {
                insert_item(&db, &format!("{name}a")).await;
                inner.0.pass().await;
                insert_item(&db, &format!("{name}b")).await;
            };
            let app = Router::new().route("/{name}", get(waits)).layer(layer);
            let requests: Vec<_> = (0..20)
                .map(|n| tokio::spawn(send_owned(app.clone(), &format!("/{n}"))))
                .collect();
            gate.reached(20).await;
            eventually("what is used may be lent", async || {
                let status = pool.status();
                status.lendable == status.used as usize
            })
            .await;
            gate.open();
            for answer in timeout(BOUND, join_all(requests)).await.unwrap() {
                assert_eq!(answer.unwrap().status(), StatusCode::OK);
            }
            for n in 0..20 {
                for half in ["a", "b"] {
                    assert_eq!(count_items(&db, &format!("{n}{half}")).await, 1);
                }
            }
            assert_whole(&test, &db, max).await;
        }
    }
}

/// G2: a transaction keeps its connection, whichever way it was begun, and whatever waits.
#[tokio::test]
async fn g2_a_transaction_is_not_lent() {
    async fn wait_inside(db: &DbSession, gate: Gate, name: &str) {
        let tx = db.begin().await.unwrap();
        insert_item(&tx, &format!("{name}a")).await;
        gate.pass().await;
        insert_item(&tx, &format!("{name}b")).await;
        tx.commit().await.unwrap();
    }
    for kind in Kind::ALL {
        for way in ["begin", "db_tx"] {
            let test = TestDb::new(kind).await;
            let db = test.connect(1).await;
            let short = Duration::from_millis(200);
            let layer = layer_with(&db, |pool| rotating(pool).acquire_timeout(short));
            let pool = layer.pool().clone();
            let gate = Gate::new();
            let (one, two) = (gate.clone(), gate.clone());
            let app = Router::new()
                .route(
                    "/begin",
                    get(async move |db: DbSession| wait_inside(&db, one, "x").await),
                )
                .route(
                    "/db_tx",
                    get(async move |tx: DbTx| {
                        insert_item(&tx, "xa").await;
                        two.pass().await;
                        insert_item(&tx, "xb").await;
                    }),
                )
                .layer(layer);
            let request = tokio::spawn(send_owned(app, &format!("/{way}")));
            gate.reached(1).await;
            let error = pool.session().await.unwrap_err();
            assert!(error.is_exhausted(), "{error}");
            assert_eq!(pool.status().lendable, 0);
            gate.open();
            let answer = timeout(BOUND, request).await.unwrap().unwrap();
            assert_eq!(answer.status(), StatusCode::OK);
            assert_eq!(count_items(&db, "xa").await, 1);
            assert_whole(&test, &db, 1).await;
        }
    }
}

/// Statements that follow one another directly keep their connection: a request waits in the queue once.
#[tokio::test]
async fn statements_in_a_row_keep_their_connection() {
    for kind in [Kind::Postgres, Kind::MySql] {
        let test = TestDb::new(kind).await;
        let db = test.connect(2).await;
        let layer = layer_with(&db, transaction_mode);
        let row = async |db: DbSession| -> String {
            let first = connection(&db).await;
            for _ in 0..5 {
                assert_eq!(connection(&db).await, first);
            }
            "same".to_owned()
        };
        let app = Router::new().route("/", get(row)).layer(layer);
        let requests = (0..40).map(|_| tokio::spawn(send_owned(app.clone(), "/")));
        for answer in timeout(BOUND, join_all(requests)).await.unwrap() {
            assert_eq!(answer.unwrap().status(), StatusCode::OK);
        }
    }
}

/// What a test of a service needs: without any load, the statements of one request run on different connections.
#[tokio::test]
async fn rotated_connections_differ_from_statement_to_statement() {
    for kind in [Kind::Postgres, Kind::MySql] {
        let test = TestDb::new(kind).await;
        let db = test.connect(3).await;
        let layer = layer_with(&db, rotating);
        let pool = layer.pool().clone();
        let rotates = async |db: DbSession| {
            let first = connection(&db).await;
            yield_now().await;
            assert_ne!(connection(&db).await, first);
            // A transaction and a pin keep theirs.
            let tx = db.begin().await.unwrap();
            let kept = connection(&tx).await;
            yield_now().await;
            assert_eq!(connection(&tx).await, kept);
            tx.commit().await.unwrap();
            let pin = db.pin();
            let kept = connection(&db).await;
            yield_now().await;
            assert_eq!(connection(&db).await, kept);
            drop(pin);
            yield_now().await;
            assert_ne!(connection(&db).await, kept);
        };
        let app = Router::new().route("/", get(rotates)).layer(layer);
        assert_eq!(send(&app, "/").await.status(), StatusCode::OK);
        // A session that user code holds, and one in a task.
        let session = opened(&pool).await;
        let first = connection(&session).await;
        assert_ne!(connection(&session).await, first);
        drop(session);
        assert_whole(&test, &db, 3).await;
    }
}

/// Also in a pool that has opened no connection yet.
#[tokio::test]
async fn a_fresh_pool_of_two_rotates_at_once() {
    for kind in [Kind::Postgres, Kind::MySql] {
        for _ in 0..10 {
            let test = TestDb::new(kind).await;
            let db = test.connect(2).await;
            let pool = pool_with(&db, rotating);
            let session = opened(&pool).await;
            let first = connection(&session).await;
            assert_ne!(connection(&session).await, first);
        }
    }
}

/// Session state keeps the rest of the request on its connection, and is gone before another session gets that.
#[tokio::test]
async fn g13_session_state_pins_and_leaks_nowhere() {
    for (kind, set, show, value) in [
        (
            Kind::Postgres,
            "SELECT set_config('application_name', 'mine', false)",
            "SHOW application_name",
            "mine",
        ),
        (
            Kind::MySql,
            "SET @mine = 'mine'",
            "SELECT CAST(@mine AS CHAR)",
            "mine",
        ),
        (
            Kind::SqliteFile,
            "CREATE TEMP TABLE mine AS SELECT 'mine' AS name",
            "SELECT max(name) FROM temp.mine",
            "mine",
        ),
    ] {
        let test = TestDb::new(kind).await;
        let db = test.connect(2).await;
        let layer = layer_with(&db, rotating);
        let ask = async move |db: &DbSession| -> Result<Option<String>, DbErr> {
            let statement = Statement::from_string(db.backend(), show);
            let row = db.query_one_raw(statement).await?;
            Ok(row.and_then(|row| row.try_get_by_index::<Option<String>>(0).unwrap()))
        };
        let state = async move |db: DbSession| {
            db.execute_unprepared(set).await.unwrap();
            for _ in 0..5 {
                yield_now().await;
                assert_eq!(ask(&db).await.unwrap().as_deref(), Some(value));
            }
        };
        let none = async move |db: DbSession| {
            for _ in 0..5 {
                yield_now().await;
                assert_ne!(ask(&db).await.ok().flatten().as_deref(), Some(value));
            }
        };
        let app = Router::new()
            .route("/state", get(state))
            .route("/none", get(none))
            .layer(layer);
        for round in 0..40 {
            let uri = ["/state", "/none"][round % 2];
            let requests = (0..2).map(|_| tokio::spawn(send_owned(app.clone(), uri)));
            for answer in timeout(BOUND, join_all(requests)).await.unwrap() {
                assert_eq!(answer.unwrap().status(), StatusCode::OK, "{kind:?} {uri}");
            }
        }
    }
}

/// Bodies of events that hold their sessions take turns with requests.
#[tokio::test]
async fn held_bodies_lend_between_their_parts() {
    async fn events(db: DbSession, gate: Gate) -> Body {
        // Before the body, which begins without a statement.
        select(&db).await;
        let parts = stream::unfold((db.clone(), 0), move |(db, number)| {
            let gate = gate.clone();
            async move {
                if number > 0 {
                    gate.pass().await;
                    select(&db).await;
                }
                (number < 3).then_some(())?;
                Some((Ok::<_, std::convert::Infallible>("part"), (db, number + 1)))
            }
        });
        Body::new(db.hold_until_body_end(Body::from_stream(parts)))
    }
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let db = test.connect(2).await;
        // The watch, which has them lend as well, is not what is tried.
        let layer = layer_with(&db, |pool| {
            transaction_mode(pool).hold_slow_threshold(Duration::MAX)
        });
        let max = layer.pool().status().max;
        let gate = Gate::new();
        let inner = gate.clone();
        let app = Router::new()
            .route(
                "/events",
                get(async move |db: DbSession| events(db, inner).await),
            )
            .route("/fast", get(async |db: DbSession| select(&db).await))
            .layer(layer);
        let mut bodies = Vec::new();
        for _ in 0..4 {
            let body = send(&app, "/events").await.into_body();
            let mut body = body.into_data_stream();
            assert_eq!(&*body.next().await.unwrap().unwrap(), b"part");
            bodies.push(tokio::spawn(async move {
                while let Some(part) = body.next().await {
                    part.unwrap();
                }
            }));
        }
        let fast = (0..40).map(|_| send(&app, "/fast"));
        for answer in timeout(BOUND, join_all(fast)).await.unwrap() {
            assert_eq!(answer.status(), StatusCode::OK);
        }
        gate.open();
        for body in bodies {
            timeout(BOUND, body).await.unwrap().unwrap();
        }
        assert_whole(&test, &db, max).await;
    }
}

/// G10: however often a request lends its connection, it waits no longer than the acquire time-out in all.
#[tokio::test]
async fn g10_the_waits_of_a_request_share_one_time_out() {
    const ALL: Duration = Duration::from_secs(2);
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let db = test.connect(1).await;
        let layer = layer_with(&db, |pool| transaction_mode(pool).acquire_timeout(ALL));
        let pool = layer.pool().clone();
        let (gate, inner) = (Gate::new(), Gate::new());
        let passed = (gate.clone(), inner.clone());
        let app = Router::new()
            .route(
                "/",
                get(async move |db: DbSession| -> Result<String, Failed> {
                    select(&db).await;
                    passed.0.pass().await;
                    let statement = Statement::from_string(db.backend(), "SELECT 1");
                    let mut waits = Vec::new();
                    // The connection is held by a transaction all the time.
                    for _ in 0..3 {
                        let begun = std::time::Instant::now();
                        let error = db.query_one_raw(statement.clone()).await.unwrap_err();
                        assert!(Error::of(&error).unwrap().is_exhausted(), "{error}");
                        waits.push(begun.elapsed());
                    }
                    // The first used the time up: what is left for the others is what passed between them.
                    assert!(waits[0] >= ALL / 2, "{waits:?}");
                    assert!(waits[1] + waits[2] <= ALL / 2, "{waits:?}");
                    Ok("done".to_owned())
                }),
            )
            .layer(layer);
        let request = tokio::spawn(send_owned(app, "/"));
        gate.reached(1).await;
        let holder = opened(&pool).await;
        let tx = holder.begin().await.unwrap();
        select(&tx).await;
        gate.open();
        let answer = timeout(BOUND, request).await.unwrap().unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        drop(tx);
        drop(holder);
        drop(inner);
    }
}

/// A session that would lend is not in the way: it is neither warned about nor cut off.
#[tokio::test]
async fn a_session_that_may_lend_exceeds_no_hold_timeout() {
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let db = test.connect(1).await;
        let short = Duration::from_millis(100);
        let layer = layer_with(&db, |pool| {
            transaction_mode(pool)
                .hold_slow_threshold(short)
                .hold_timeout(short)
        });
        let pool = layer.pool().clone();
        let gate = Gate::new();
        let inner = gate.clone();
        let app = Router::new()
            .route(
                "/",
                get(async move |db: DbSession| {
                    insert_item(&db, "before").await;
                    inner.pass().await;
                    insert_item(&db, "after").await;
                }),
            )
            .layer(layer);
        let request = tokio::spawn(send_owned(app, "/"));
        gate.reached(1).await;
        eventually("it is back in the pool", async || pool.status().used == 0).await;
        gate.open();
        let answer = timeout(BOUND, request).await.unwrap().unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(count_items(&db, "after").await, 1);
    }
}

/// Sessions end in every way while their connection is lent, or on its way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g3_requests_dropped_between_their_statements_cost_nothing() {
    async fn steps(db: DbSession, Path(number): Path<usize>) -> Result<(), Failed> {
        for step in 0..4 {
            insert_item(&db, &format!("{}_{number}_{step}", unique_name())).await;
            for _ in 0..number % 3 {
                yield_now().await;
            }
        }
        if number.is_multiple_of(5) {
            let tx = db.begin().await?;
            select(&tx).await;
            yield_now().await;
            tx.rollback().await?;
        }
        Ok(())
    }
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let db = test.connect(2).await;
        for mode in [transaction_mode, rotating] {
            let layer = layer_with(&db, mode);
            let max = layer.pool().status().max;
            let pool = layer.pool().clone();
            let app = Router::new().route("/{number}", get(steps)).layer(layer);
            let requests: Vec<_> = (0..200)
                .map(|number| {
                    let request = send_owned(app.clone(), &format!("/{number}"));
                    let polls: usize = number % 37;
                    tokio::spawn(async move {
                        let mut request = std::pin::pin!(request);
                        let mut left = polls;
                        std::future::poll_fn(|cx| {
                            if polls > 0 && left == 0 {
                                return std::task::Poll::Ready(None);
                            }
                            left = left.saturating_sub(1);
                            request.as_mut().poll(cx).map(Some)
                        })
                        .await
                    })
                })
                .collect();
            for answer in timeout(BOUND, join_all(requests)).await.unwrap() {
                if let Some(answer) = answer.unwrap() {
                    assert_eq!(answer.status(), StatusCode::OK);
                }
            }
            eventually("all are back", async || {
                let status = pool.status();
                (status.used, status.pending, status.lendable) == (0, 0, 0)
            })
            .await;
            drop(pool);
            assert_whole(&test, &db, max).await;
        }
    }
}

/// A session of which nothing is on its connection goes on with another one when that is lost.
#[tokio::test]
async fn a_session_that_could_have_lent_survives_its_connection() {
    for kind in [Kind::Postgres, Kind::MySql] {
        let test = TestDb::new(kind).await;
        let db = test.connect(2).await;
        let pool = pool_with(&db, transaction_mode);
        let observer = test.observer().await.unwrap();
        let end = async |number: i64| {
            let sql = match kind {
                Kind::Postgres => format!("SELECT pg_terminate_backend({number}::int4)"),
                _ => format!("KILL {number}"),
            };
            observer.execute_unprepared(&sql).await.unwrap();
        };
        let session = opened(&pool).await;
        end(connection(&session).await).await;
        let name = unique_name();
        // The statement that finds it out fails or runs elsewhere; the session goes on either way.
        let _ = try_insert_item(&session, &name).await;
        insert_item(&session, &unique_name()).await;
        // In a transaction, and behind a pin, what was there is lost, and the session with it.
        let pin = session.pin();
        end(connection(&session).await).await;
        assert!(try_insert_item(&session, &unique_name()).await.is_err());
        let error = try_insert_item(&session, &unique_name()).await.unwrap_err();
        assert!(Error::of(&error).unwrap().is_connection_lost(), "{error}");
        drop(pin);
        drop(session);
        assert_whole(&test, &db, 2).await;
    }
}
