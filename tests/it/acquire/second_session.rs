//! G10: requests that wait for a second session of the same pool while they hold one.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::Request,
    middleware::{Next, from_fn},
    response::IntoResponse,
    routing::any,
};
use futures_util::{
    FutureExt,
    future::{BoxFuture, join_all},
};
use http::StatusCode;
use sea_orm::{ConnectionTrait, DbErr, Statement, TransactionError};
use tokio::{sync::Barrier, time::timeout};
use tower_sea_orm::{DbSession, DbSessionLayer, DbTx, Error};

use crate::{
    log::Log,
    support::{
        database::{Kind, TestDb, insert_item},
        pool::{assert_whole, layer_with, pool_with, session_layer, session_pool},
        site::{BOUND, SIZE, Site, call},
        wait::{LONG, eventually},
    },
};

enum Other {}

/// How a request gets its second session.
type Second = fn(DbSession, Option<DbSession<Other>>) -> BoxFuture<'static, Result<(), Error>>;

fn by_session(db: DbSession, _: Option<DbSession<Other>>) -> BoxFuture<'static, Result<(), Error>> {
    async move {
        let second = db.pool().session().await?;
        second.execute_unprepared("SELECT 1").await.unwrap();
        Ok(())
    }
    .boxed()
}

fn by_transaction(
    db: DbSession,
    _: Option<DbSession<Other>>,
) -> BoxFuture<'static, Result<(), Error>> {
    async move {
        let done = db
            .pool()
            .transaction(async |tx| tx.execute_unprepared("SELECT 1").await.map(drop))
            .await;
        match done {
            Ok(()) => Ok(()),
            Err(TransactionError::Connection(error) | TransactionError::Transaction(error)) => {
                Err(of(&error))
            }
        }
    }
    .boxed()
}

fn by_another_tag(
    _: DbSession,
    other: Option<DbSession<Other>>,
) -> BoxFuture<'static, Result<(), Error>> {
    async move {
        let other = other.expect("its layer is there");
        other
            .execute_unprepared("SELECT 1")
            .await
            .map(drop)
            .map_err(|error| of(&error))
    }
    .boxed()
}

fn of(error: &DbErr) -> Error {
    Error::of(error).unwrap_or_else(|| panic!("another error: {error}"))
}

fn warnings(log: &Log) -> Vec<String> {
    log.lines()
        .into_iter()
        .filter(|line| line.contains("waiting for a second session"))
        .collect()
}

#[tokio::test]
async fn if_all_requests_wait_for_a_second_session_only_one_fails() {
    for kind in Kind::ALL {
        let size = if kind == Kind::SqliteMemory { 1 } else { SIZE };
        for second in [by_session as Second, by_transaction, by_another_tag] {
            let (log, _guard) = Log::start();
            let site = Site::new(kind)
                .await
                .pooled(|pool| pool.acquire_timeout(LONG));
            let barrier = Arc::new(Barrier::new(size as usize));
            let handler = async move |db: DbSession, other: Option<DbSession<Other>>| {
                // One that has run nothing would be lent.
                db.execute_unprepared("SELECT 1").await.unwrap();
                barrier.wait().await;
                match second(db, other).await {
                    Ok(()) => StatusCode::OK,
                    Err(error) => {
                        assert!(error.is_pool_deadlock(), "{error}");
                        assert!(error.to_string().contains("`release()`"), "{error}");
                        error.status()
                    }
                }
            };
            let app = Router::new()
                .route("/two", any(handler))
                .layer(DbSessionLayer::<Other>::tagged(site.layer.pool().clone()).lazy())
                .layer(site.layer.clone());
            let requests = (0..size).map(|_| {
                let request = http::Request::post("/two")
                    .body(axum::body::Body::empty())
                    .unwrap();
                tower::ServiceExt::oneshot(app.clone(), request)
            });
            let answers = timeout(BOUND, join_all(requests))
                .await
                .expect("an error at once");
            let mut statuses: Vec<_> = answers
                .into_iter()
                .map(|answer| answer.unwrap().status().as_u16())
                .collect();
            statuses.sort_unstable();
            let mut expected = vec![200; size as usize - 1];
            expected.push(500);
            assert_eq!(statuses, expected, "{kind:?}");
            let warnings = warnings(&log);
            assert_eq!(warnings.len(), size as usize, "{warnings:?}");
            for part in ["WARN tower_sea_orm::pool", "\"POST\"", "\"/two\""] {
                assert!(warnings[0].contains(part), "no {part} in {}", warnings[0]);
            }
            site.assert_whole().await;
        }
    }
}

/// A job is the future of `transaction()`, which a session that it opens is known to belong to.
#[tokio::test]
async fn if_all_jobs_wait_for_a_second_transaction_only_one_fails() {
    for kind in Kind::ALL {
        let size = if kind == Kind::SqliteMemory { 1 } else { SIZE };
        let site = Site::new(kind)
            .await
            .pooled(|pool| pool.acquire_timeout(LONG));
        let barrier = Barrier::new(size as usize);
        let pool = site.layer.pool();
        let job = async || {
            pool.transaction(async |tx| {
                tx.execute_unprepared("SELECT 1").await?;
                barrier.wait().await;
                let second = pool.transaction(async |tx| tx.execute_unprepared("SELECT 1").await);
                second.await.map(drop).map_err(|error| match error {
                    TransactionError::Connection(error) | TransactionError::Transaction(error) => {
                        error
                    }
                })
            })
            .await
        };
        let done = timeout(BOUND, join_all((0..size).map(|_| job())))
            .await
            .expect("an error at once");
        let failed: Vec<_> = done.into_iter().filter_map(Result::err).collect();
        assert_eq!(failed.len(), 1, "{kind:?}: {failed:?}");
        assert!(
            Error::of_transaction(&failed[0]).is_some_and(|error| error.is_pool_deadlock()),
            "{failed:?}"
        );
        site.assert_whole().await;
    }
}

/// A handler that has opened a job, which opens another one.
#[tokio::test]
async fn a_request_that_holds_every_connection_fails_at_once() {
    for kind in [Kind::Postgres, Kind::MySql, Kind::SqliteFile] {
        let site = Site::new(kind).await;
        let pool = pool_with(&site.db, |pool| {
            pool.acquire_timeout(LONG).reserved_connections(SIZE - 2)
        });
        let handler = async |db: DbSession| {
            let pool = db.pool().clone();
            db.execute_unprepared("SELECT 1").await.unwrap();
            let first = pool.transaction(async |tx| {
                tx.execute_unprepared("SELECT 1").await?;
                let second = pool
                    .transaction(async |_| Ok::<_, DbErr>(()))
                    .await
                    .unwrap_err();
                assert!(
                    Error::of_transaction(&second).is_some_and(|error| error.is_pool_deadlock()),
                    "{second}"
                );
                Ok::<_, DbErr>(())
            });
            first.await.unwrap();
        };
        let app = Router::new()
            .route("/", any(handler))
            .layer(DbSessionLayer::new(pool));
        assert_eq!(call(app).await.status(), 200, "{kind:?}");
        site.assert_whole().await;
    }
}

/// Newcomers do not take what the first ones need.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_holds_a_connection_is_served_before_the_others() {
    let test = TestDb::new(Kind::Postgres).await;
    let db = test.connect(2).await;
    let pool = pool_with(&db, |pool| pool.acquire_timeout(LONG));
    let held = pool.session().await.unwrap();
    let inner_pool = pool.clone();
    let outer = pool.transaction(async |tx| {
        tx.execute_unprepared("SELECT 1").await?;
        // They come first and hold nothing.
        let others: Vec<_> = (0..3)
            .map(|_| {
                let pool = inner_pool.clone();
                tokio::spawn(async move {
                    let session = pool.session().await.unwrap();
                    std::future::pending::<()>().await;
                    drop(session);
                })
            })
            .collect();
        eventually("they wait", async || inner_pool.status().pending == 3).await;
        let second = inner_pool.transaction(async |tx| tx.execute_unprepared("SELECT 1").await);
        let released = async {
            eventually("it waits", async || inner_pool.status().pending == 4).await;
            drop(held);
        };
        let (second, ()) = tokio::join!(timeout(BOUND, second), released);
        assert!(second.expect("its turn").is_ok());
        others.iter().for_each(tokio::task::JoinHandle::abort);
        Ok::<_, DbErr>(())
    });
    outer.await.unwrap();
    assert_whole(&test, &db, 2).await;
}

#[tokio::test]
async fn the_layer_answers_500_where_a_nested_layers_wait_was_ended() {
    for kind in Kind::ALL {
        let site = Site::new(kind).await;
        // All but one connection are for others.
        let reserve = if kind == Kind::SqliteMemory {
            0
        } else {
            SIZE - 1
        };
        let one = pool_with(&site.db, |pool| {
            pool.acquire_timeout(LONG).reserved_connections(reserve)
        });
        // One that has run nothing would be lent.
        let uses = async |db: DbSession, request: Request, next: Next| {
            db.execute_unprepared("SELECT 1").await.unwrap();
            next.run(request).await
        };
        let app = Router::new()
            .route("/", any(async || ()))
            .layer(DbSessionLayer::<Other>::tagged(one.clone()))
            .layer(from_fn(uses))
            .layer(DbSessionLayer::new(one));
        assert_eq!(call(app).await.status(), 500, "{kind:?}");
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn a_holder_that_does_not_wait_means_no_deadlock() {
    for kind in [Kind::Postgres, Kind::MySql, Kind::SqliteFile] {
        let (log, _guard) = Log::start();
        let test = TestDb::new(kind).await;
        let db = test.connect(2).await;
        let pool = session_pool(db.clone());
        let job = pool.session().await.unwrap();
        let app = Router::new()
            .route(
                "/",
                any(async |db: DbSession| {
                    db.execute_unprepared("SELECT 1").await.unwrap();
                    by_session(db, None)
                        .await
                        .map_or_else(|e| e.status(), |()| StatusCode::OK)
                }),
            )
            .layer(DbSessionLayer::new(pool.clone()));
        let request = tokio::spawn(call(app));
        eventually("it waits, and the log says so", async || {
            pool.status().pending == 1 && warnings(&log).len() == 1
        })
        .await;
        job.execute_unprepared("SELECT 1").await.unwrap();
        assert!(!request.is_finished(), "{kind:?}");
        drop(job);
        assert_eq!(request.await.unwrap().status(), 200, "{kind:?}");
        assert_whole(&test, &db, 2).await;
    }
}

#[tokio::test]
async fn the_wait_of_a_spawned_task_is_not_its_requests() {
    let (log, _guard) = Log::start();
    let test = TestDb::new(Kind::Postgres).await;
    let db = test.connect(1).await;
    let handler = async |db: DbSession| {
        db.execute_unprepared("SELECT 1").await.unwrap();
        let task = tokio::spawn(by_session(db, None));
        let error = task.await.unwrap().unwrap_err();
        assert!(error.is_exhausted(), "{error}");
    };
    let layer = layer_with(&db, |pool| pool.acquire_timeout(Duration::from_secs(3)));
    assert_eq!(
        call(Router::new().route("/", any(handler)).layer(layer))
            .await
            .status(),
        200
    );
    assert_eq!(warnings(&log), Vec::<String>::new());
    assert_whole(&test, &db, 1).await;
}

#[tokio::test]
async fn a_statement_that_runs_beside_the_wait_ends_first() {
    for kind in Kind::ALL {
        let site = Site::new(kind).await;
        let reserve = if kind == Kind::SqliteMemory {
            0
        } else {
            SIZE - 1
        };
        let pool = pool_with(&site.db, |pool| {
            pool.acquire_timeout(LONG).reserved_connections(reserve)
        });
        let handler = async |db: DbSession| {
            let slow = match db.backend() {
                sea_orm::DbBackend::Postgres => "SELECT pg_sleep(0.2)",
                sea_orm::DbBackend::MySql => "SELECT SLEEP(0.2)",
                _ => "SELECT 1",
            };
            let (slow, second) =
                tokio::join!(db.execute_unprepared(slow), by_session(db.clone(), None));
            slow.unwrap();
            assert!(second.unwrap_err().is_pool_deadlock());
            // The session is as good as before.
            insert_item(&db, "there").await;
        };
        let app = Router::new()
            .route("/", any(handler))
            .layer(DbSessionLayer::new(pool));
        assert_eq!(call(app).await.status(), 200, "{kind:?}");
        assert_eq!(site.count("there").await, 1);
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn a_second_session_is_fine_while_connections_are_left_or_after_release() {
    for kind in [Kind::Postgres, Kind::SqliteFile] {
        let (log, _guard) = Log::start();
        let test = TestDb::new(kind).await;
        let db = test.connect(1).await;
        let handler = async |db: DbSession| {
            db.execute_unprepared("SELECT 1").await.unwrap();
            db.release().await.unwrap();
            by_session(db.clone(), None).await.unwrap();
            db.execute_unprepared("SELECT 1").await.unwrap();
        };
        let app = Router::new()
            .route("/", any(handler))
            .layer(session_layer(db.clone()));
        for _ in 0..3 {
            assert_eq!(call(app.clone()).await.status(), 200, "{kind:?}");
        }
        assert_eq!(warnings(&log), Vec::<String>::new(), "{kind:?}");
        assert_whole(&test, &db, 1).await;
    }
}

#[tokio::test]
async fn a_connection_that_is_on_its_way_back_is_no_reason_for_an_error() {
    for kind in [Kind::Postgres, Kind::MySql, Kind::SqliteFile] {
        let (log, _guard) = Log::start();
        let test = TestDb::new(kind).await;
        let db = test.connect(1).await;
        // Prepared for its request, it is closed behind it.
        let set_up = move |_: &http::request::Parts| {
            vec![Statement::from_string(kind.backend(), "SELECT 1")]
        };
        let layer = session_layer(db.clone()).on_acquire(set_up);
        let handler = async |db: DbSession| {
            for _ in 0..5 {
                db.execute_unprepared("SELECT 1").await.unwrap();
                db.release().await.unwrap();
            }
        };
        let app = Router::new().route("/", any(handler)).layer(layer);
        assert_eq!(call(app).await.status(), 200, "{kind:?}");
        assert_eq!(warnings(&log), Vec::<String>::new(), "{kind:?}");
        assert_whole(&test, &db, 1).await;
    }
}

#[tokio::test]
async fn two_databases_are_two_pools() {
    let (one, two) = (
        TestDb::new(Kind::Postgres).await,
        TestDb::new(Kind::MySql).await,
    );
    let (one_db, two_db) = (one.connect(1).await, two.connect(1).await);
    let other = session_pool(two_db.clone());
    let busy = other.session().await.unwrap();
    let handler = async |_: DbSession, other: DbSession<Other>| match other
        .execute_unprepared("SELECT 1")
        .await
    {
        Ok(_) => StatusCode::OK.into_response(),
        Err(error) => of(&error).status().into_response(),
    };
    let app = Router::new()
        .route("/", any(handler))
        .layer(DbSessionLayer::<Other>::tagged(other.clone()).lazy())
        .layer(session_layer(one_db.clone()));
    let request = tokio::spawn(call(app));
    eventually("it waits for the other one", async || {
        other.status().pending == 1
    })
    .await;
    drop(busy);
    assert_eq!(request.await.unwrap().status(), 200);
    assert_whole(&one, &one_db, 1).await;
    assert_whole(&two, &two_db, 1).await;
}

/// What it holds of another pool is no second session; what it holds of this one is.
#[tokio::test]
async fn only_a_second_session_of_the_same_pool_is_warned_about() {
    let (log, _guard) = Log::start();
    let (one, two) = (
        TestDb::new(Kind::Postgres).await,
        TestDb::new(Kind::MySql).await,
    );
    let (one_db, two_db) = (one.connect(2).await, two.connect(2).await);
    let other = pool_with(&two_db, |pool| pool.acquire_timeout(LONG));
    let busy = [
        other.session().await.unwrap(),
        other.session().await.unwrap(),
    ];
    let handler = async |db: DbSession, other: DbSession<Other>| {
        db.execute_unprepared("SELECT 1").await.unwrap();
        other.execute_unprepared("SELECT 1").await.unwrap();
        let second = other.pool().session().await.unwrap();
        second.execute_unprepared("SELECT 1").await.unwrap();
    };
    let app = Router::new()
        .route("/", any(handler))
        .layer(DbSessionLayer::<Other>::tagged(other.clone()).lazy())
        .layer(session_layer(one_db.clone()));
    let request = tokio::spawn(call(app));
    eventually("it waits for the other pool", async || {
        other.status().pending == 1
    })
    .await;
    assert_eq!(warnings(&log), Vec::<String>::new());
    let [first, last] = busy;
    drop(first);
    eventually("it waits for its second session there", async || {
        warnings(&log).len() == 1 && other.status().pending == 1
    })
    .await;
    drop(last);
    assert_eq!(request.await.unwrap().status(), 200);
    assert_whole(&one, &one_db, 2).await;
    assert_whole(&two, &two_db, 2).await;
}

/// They take their connections from one.
#[tokio::test]
async fn two_session_pools_over_one_drivers_pool_are_warned_about_as_one() {
    let (log, _guard) = Log::start();
    let test = TestDb::new(Kind::Postgres).await;
    let db = test.connect(2).await;
    let [one, other] = [session_pool(db.clone()), session_pool(db.clone())];
    let busy = one.session().await.unwrap();
    busy.execute_unprepared("SELECT 1").await.unwrap();
    let handler = async |db: DbSession, other: DbSession<Other>| {
        db.execute_unprepared("SELECT 1").await.unwrap();
        other.execute_unprepared("SELECT 1").await.unwrap();
    };
    let app = Router::new()
        .route("/", any(handler))
        .layer(DbSessionLayer::<Other>::tagged(other.clone()).lazy())
        .layer(DbSessionLayer::new(one.clone()));
    let request = tokio::spawn(call(app));
    eventually("it waits, and the log says so", async || {
        other.status().pending == 1 && warnings(&log).len() == 1
    })
    .await;
    drop(busy);
    assert_eq!(request.await.unwrap().status(), 200);
    assert_whole(&test, &db, 2).await;
}

#[tokio::test]
async fn cancelled_waits_leave_no_mark() {
    for kind in [Kind::Postgres, Kind::MySql, Kind::SqliteFile] {
        let test = TestDb::new(kind).await;
        let db = test.connect(2).await;
        let pool = session_pool(db.clone());
        let job = pool.session().await.unwrap();
        // It gives up its wait, and the next ones are not blamed for that.
        let handler = async |db: DbSession| {
            db.execute_unprepared("SELECT 1").await.unwrap();
            for _ in 0..20 {
                assert!(
                    timeout(Duration::from_millis(2), by_session(db.clone(), None))
                        .await
                        .is_err()
                );
            }
        };
        let app = Router::new()
            .route("/", any(handler))
            .layer(DbSessionLayer::new(pool.clone()));
        assert_eq!(call(app).await.status(), 200, "{kind:?}");
        drop(job);
        let app = Router::new()
            .route(
                "/",
                any(async |db: DbSession| {
                    db.execute_unprepared("SELECT 1").await.unwrap();
                    by_session(db, None).await.map_err(|error| error.status())
                }),
            )
            .layer(DbSessionLayer::new(pool.clone()));
        assert_eq!(
            call(app).await.status(),
            200,
            "{kind:?}: nobody else holds one"
        );
        eventually("nobody waits", async || {
            format!("{pool:?}").contains("pending: 0")
        })
        .await;
        assert_whole(&test, &db, 2).await;
    }
}

#[tokio::test]
async fn beginning_on_another_connection_is_no_wait_for_a_second_session() {
    let (site, proxy) = Site::behind_a_proxy(Kind::Postgres).await;
    let site = site.pooled(|pool| pool.direct_handoff(true));
    let (log, _guard) = Log::start();
    drop(site.layer.pool().session().await.unwrap());
    proxy.cut();
    let answer = site
        .call(async |tx: DbTx| insert_item(&tx, "there").await)
        .await;
    assert_eq!(
        (answer.status().as_u16(), site.count("there").await),
        (200, 1)
    );
    let lines = log.lines();
    assert!(
        !lines.iter().any(|line| line.contains("second session")),
        "{lines:?}"
    );
}

#[tokio::test]
async fn g17_the_connection_that_is_kept_for_a_second_session_serves_who_waits_soon() {
    for kind in [Kind::Postgres, Kind::MySql, Kind::SqliteFile] {
        let test = TestDb::new(kind).await;
        let db = test.connect(2).await;
        let pool = session_pool(db.clone());
        let handler = async |tx: DbTx| {
            tx.execute_unprepared("SELECT 1").await.unwrap();
            let second = tx.pool().session().await.unwrap();
            second.execute_unprepared("SELECT 1").await.unwrap();
        };
        let app = Router::new()
            .route("/", any(handler))
            .layer(DbSessionLayer::new(pool.clone()));
        let busy = pool.session().await.unwrap();
        let pin = busy.pin();
        let request = tokio::spawn(async move { call(app).await.status() });
        eventually("the request waits for its second", async || {
            pool.status().pending > 0
        })
        .await;
        drop(pin);
        drop(busy);
        assert_eq!(request.await.unwrap(), StatusCode::OK, "{kind:?}");
        eventually("both are back", async || pool.status().used == 0).await;
        let first = pool.session().await.unwrap();
        let first_pin = first.pin();
        // Nothing comes back meanwhile: only the time gives it the free one.
        let second = timeout(LONG, pool.session()).await.expect("it is served");
        second
            .unwrap()
            .execute_unprepared("SELECT 1")
            .await
            .unwrap();
        drop(first_pin);
        drop(first);
        assert_whole(&test, &db, 2).await;
    }
}
