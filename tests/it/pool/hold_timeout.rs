//! G15, G17: `hold_slow_threshold` logs a slow session, `hold_timeout` takes its connection away.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    response::{IntoResponse, Response},
    routing::any,
};
use futures_util::{StreamExt, future::join_all};
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DbBackend, DbErr, Statement, TransactionError,
    TransactionTrait,
};
use tokio::{runtime::Builder, time::timeout};
use tower::ServiceExt;
use tower_sea_orm::{DbSession, DbSessionLayer, DbTx, Error, SessionPool, SessionPoolBuilder};

use crate::{
    log::Log,
    support::{
        database::{Kind, SERVERS, TestDb, insert_item, unique_name},
        pool::{pool_builder, pool_with},
        site::{BOUND, Site, call, known, outcome, retry_after},
        wait::{eventually, eventually_within},
    },
};

/// Long enough to begin something, also on a busy machine.
const HOLD: Duration = Duration::from_secs(2);

fn held_long(log: &Log) -> Vec<String> {
    log.lines()
        .into_iter()
        .filter(|line| line.contains("has held its connection for a long time"))
        .collect()
}

fn count(log: &Log, part: &str) -> usize {
    log.lines()
        .iter()
        .filter(|line| line.contains(part))
        .count()
}

/// Waits until the session's connection was taken away.
async fn taken(pool: &SessionPool) {
    eventually("the connection is back", async || pool.status().used == 0).await;
}

fn select_one(db: &impl ConnectionTrait) -> Statement {
    Statement::from_string(db.get_database_backend(), "SELECT 1")
}

/// A statement that takes longer than [`HOLD`] and the release time-out, but not for ever: the server goes
/// on with it when its client has gone.
fn slow(backend: DbBackend) -> &'static str {
    match backend {
        DbBackend::Postgres => "SELECT pg_sleep(10)",
        DbBackend::MySql => "SELECT SLEEP(10)",
        // Its worker goes on to the end, so that is not too far.
        _ => {
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 6000000) SELECT count(*) FROM n"
        }
    }
}

#[tokio::test]
async fn a_slow_session_is_logged_once_and_once_more_when_it_is_back() {
    for kind in Kind::ALL {
        let (log, _guard) = Log::start();
        let site = Site::new(kind)
            .await
            .pooled(|pool| pool.hold_slow_threshold(HOLD));
        let secret = unique_name();
        let (handler_log, handler_secret) = (log.clone(), secret.clone());
        let app = Router::new()
            .route(
                "/items/{id}",
                any(async move |db: DbSession| {
                    let before = held_long(&handler_log).len();
                    insert_item(&db, &unique_name()).await;
                    let sql = format!(
                        "UPDATE item SET name = '{handler_secret}', hits = 12345 WHERE id = -1"
                    );
                    db.execute_unprepared(&sql).await.unwrap();
                    eventually("it is named", async || {
                        held_long(&handler_log).len() > before
                    })
                    .await;
                }),
            )
            .layer(site.layer.clone());
        for round in 1..=2 {
            let request = Request::put("/items/7?token=secret")
                .body(Body::empty())
                .unwrap();
            assert_eq!(app.clone().oneshot(request).await.unwrap().status(), 200);
            eventually("it is back", async || {
                count(&log, "held for a long time was returned") == round
            })
            .await;
            let named = held_long(&log);
            assert_eq!(named.len(), round, "{kind:?}: once per checkout: {named:?}");
            let line = &named[round - 1];
            for part in [
                "WARN tower_sea_orm::pool",
                "\"PUT\"",
                "\"/items/7\"",
                "held_ms=",
                "UPDATE item SET name = ?",
            ] {
                assert!(line.contains(part), "{kind:?}: no {part} in {line}");
            }
            for value in [&*secret, "token", "12345"] {
                assert!(!line.contains(value), "{kind:?}: {value} in {line}");
            }
        }
        let back = log
            .lines()
            .into_iter()
            .find(|line| line.contains("held for a long time was returned"))
            .unwrap();
        assert!(
            back.starts_with("INFO tower_sea_orm::pool") && back.contains("/items/7"),
            "{back}"
        );
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn a_slow_session_without_a_request_is_logged_and_a_quick_one_is_not() {
    let (log, _guard) = Log::start();
    let test = TestDb::new(Kind::Postgres).await;
    let db = test.connect(2).await;
    let quiet = pool_with(&db, |pool| pool.hold_slow_threshold(Duration::MAX))
        .session()
        .await
        .unwrap();
    let pool = pool_with(&db, |pool| pool.hold_slow_threshold(HOLD));
    let long = pool.session().await.unwrap();
    let slow = long.execute_unprepared("SELECT pg_sleep(4)");
    let (slow, ()) = tokio::join!(
        slow,
        eventually("it is named", async || held_long(&log).len() == 1)
    );
    slow.unwrap();
    assert!(
        held_long(&log)[0].contains("SELECT pg_sleep(?)"),
        "{:?}",
        held_long(&log)
    );
    drop((long, quiet));
    for _ in 0..20 {
        drop(pool.session().await.unwrap());
    }
    assert_eq!(held_long(&log).len(), 1);
    assert!(format!("{pool:?}").contains("holders: 0"), "{pool:?}");
}

#[test]
fn another_watcher_begins_where_the_last_one_ended_with_its_runtime() {
    let (log, _guard) = Log::start();
    let runtime = || Builder::new_current_thread().enable_all().build().unwrap();
    let first = runtime();
    let (test, pool) = first.block_on(async {
        let test = TestDb::new(Kind::SqliteFile).await;
        let pool = pool_with(&test.connect(2).await, |pool| {
            pool.hold_slow_threshold(Duration::from_secs(1))
        });
        drop(pool.session().await.unwrap());
        (test, pool)
    });
    assert!(first.metrics().num_alive_tasks() > 0, "it watches");
    drop(first);
    let second = runtime();
    second.block_on(async {
        let _held = pool.session().await.unwrap();
        eventually("it is named", async || held_long(&log).len() == 1).await;
    });
    second.block_on(async {
        let alive = || {
            tokio::runtime::Handle::current()
                .metrics()
                .num_alive_tasks()
        };
        eventually(
            "nobody watches when there is nothing to watch",
            async || alive() == 0,
        )
        .await;
    });
    drop((pool, second, test));
}

/// A layer that takes connections away.
async fn hasty(kind: Kind) -> Site {
    Site::new(kind).await.pooled(|pool| pool.hold_timeout(HOLD))
}

#[tokio::test]
async fn a_lost_transaction_is_never_answered_below_400() {
    let (log, _guard) = Log::start();
    let all = Kind::ALL.map(|kind| (kind, false));
    join_all(
        all.into_iter()
            .chain([(Kind::Postgres, true)])
            .map(async |(kind, lazy)| {
                let site = hasty(kind)
                    .await
                    .layered(|layer| if lazy { layer.lazy() } else { layer });
                let pool = site.layer.pool().clone();
                for (wanted, got) in [
                    (200, 504),
                    (201, 504),
                    (302, 504),
                    (404, 404),
                    (500, 504),
                    (502, 504),
                ] {
                    for asks in [true, false] {
                        let pool = pool.clone();
                        let response = site
                            .call(async move |tx: DbTx| {
                                insert_item(&tx, "lost").await;
                                taken(&pool).await;
                                if asks {
                                    let error = known(tx.execute_unprepared("SELECT 1").await);
                                    assert!(
                                        error.is_hold_timeout() && error.status() == 504,
                                        "{error}"
                                    );
                                    assert!(known(tx.commit().await).is_hold_timeout());
                                    assert!(known(tx.begin().await.map(drop)).is_hold_timeout());
                                    assert!(tx.is_closed());
                                }
                                // Meanwhile the connection serves others.
                                let other = pool.session().await.unwrap();
                                other.execute_unprepared("SELECT 1").await.unwrap();
                                StatusCode::from_u16(wanted).unwrap()
                            })
                            .await;
                        // A 5xx that does not come from a statement stays.
                        let got = if asks || wanted < 500 { got } else { wanted };
                        assert_eq!(
                            response.status().as_u16(),
                            got,
                            "{kind:?}, lazy {lazy}: {wanted}, asks {asks}"
                        );
                        let was_failed = outcome(&response)
                            .error()
                            .is_some_and(Error::is_hold_timeout);
                        assert_eq!(was_failed, wanted < 400, "{kind:?}: {wanted}");
                        assert_eq!(retry_after(&response), None);
                        assert_eq!(site.count("lost").await, 0, "{kind:?}");
                    }
                }
                site.assert_whole().await;
            }),
    )
    .await;
    assert_eq!(
        count(&log, "connection was taken away"),
        5 * 12,
        "one line each"
    );
    assert_eq!(count(&log, "ERROR"), 0, "{:?}", log.lines());
}

#[tokio::test]
async fn neither_commit_when_nor_rollback_only_hides_a_lost_transaction() {
    join_all(SERVERS.map(async |kind| {
        let site = hasty(kind)
            .await
            .layered(|layer| layer.commit_when(|head| head.status == 201));
        let pool = site.layer.pool().clone();
        for (wanted, dry) in [(200, false), (201, true)] {
            let pool = pool.clone();
            let response = site
                .call(async move |tx: DbTx| {
                    if dry {
                        tx.set_rollback_only().unwrap();
                    }
                    insert_item(&tx, "lost").await;
                    taken(&pool).await;
                    StatusCode::from_u16(wanted).unwrap()
                })
                .await;
            assert_eq!(response.status(), 504, "{kind:?}");
        }
        site.assert_whole().await;
    }))
    .await;
}

#[tokio::test]
async fn autocommitted_writes_stand_and_so_does_a_response_below_500() {
    join_all(Kind::ALL.map(async |kind| {
        let site = hasty(kind).await;
        let pool = site.layer.pool().clone();
        for (wanted, keep, got) in [
            (200, false, 200),
            (404, false, 404),
            (500, false, 504),
            (503, false, 504),
            (500, true, 500),
        ] {
            let name = unique_name();
            let (pool, handler_name) = (pool.clone(), name.clone());
            let layer = if keep {
                site.layer.clone().keep_handler_errors()
            } else {
                site.layer.clone()
            };
            let handler = async move |db: DbSession| {
                insert_item(&db, &handler_name).await;
                taken(&pool).await;
                assert!(known(db.query_one_raw(select_one(&db)).await).is_hold_timeout());
                StatusCode::from_u16(wanted).unwrap()
            };
            let response = call(Router::new().route("/", any(handler)).layer(layer)).await;
            assert_eq!(response.status().as_u16(), got, "{kind:?}: {wanted}");
            assert_eq!(site.count(&name).await, 1, "{kind:?}");
        }
        site.assert_whole().await;
    }))
    .await;
}

#[tokio::test]
async fn a_handlers_transaction_is_lost_too_unless_it_is_untouched() {
    join_all(Kind::ALL.map(async |kind| {
        let site = hasty(kind).await;
        let pool = site.layer.pool().clone();
        let nested = {
            let pool = pool.clone();
            async move |db: DbSession| {
                let tx = db.begin().await.unwrap();
                insert_item(&tx, "lost").await;
                taken(&pool).await;
                assert!(known(tx.commit().await).is_hold_timeout());
            }
        };
        assert_eq!(site.call(nested).await.status(), 504, "{kind:?}");
        assert_eq!(site.count("lost").await, 0, "{kind:?}");
        let untouched = async move |_: DbTx| taken(&pool).await;
        let response = site.call(untouched).await;
        assert_eq!(response.status(), 200, "{kind:?}");
        assert!(outcome(&response).is_untouched(), "{kind:?}");
        site.assert_whole().await;
    }))
    .await;
}

#[tokio::test]
async fn a_running_statement_fails_at_once_when_the_hold_timeout_is_up() {
    join_all(Kind::ALL.map(async |kind| {
        // What takes SQLite long is work, which there cannot be too much of; a busy machine takes long for that.
        const BOUND: Duration = Duration::from_secs(600);
        let is_work = matches!(kind, Kind::SqliteFile | Kind::SqliteMemory);
        let hold = if is_work {
            Duration::from_secs(1)
        } else {
            HOLD
        };
        let site = Site::new(kind).await.pooled(|pool| {
            pool.hold_timeout(hold)
                .release_timeout(Duration::from_millis(300))
        });
        let pool = site.layer.pool().clone();
        let app = site.app(async move |tx: DbTx| {
            insert_item(&tx, "lost").await;
            let error = known(tx.execute_unprepared(slow(tx.backend())).await);
            assert!(error.is_hold_timeout(), "{error}");
            eventually_within(BOUND, "the connection is back", async || {
                pool.status().used == 0
            })
            .await;
            StatusCode::INTERNAL_SERVER_ERROR
        });
        let response = timeout(BOUND, app.oneshot(Request::new(Body::empty())))
            .await
            .expect("an answer")
            .unwrap();
        assert_eq!(response.status(), 504, "{kind:?}");
        assert_eq!(site.count("lost").await, 0, "{kind:?}");
        site.assert_whole().await;
    }))
    .await;
}

#[tokio::test]
async fn queued_statements_raw_code_and_streams_fail_as_well() {
    let site = Site::new(Kind::Postgres).await;
    let site = site.pooled(|pool| {
        pool.hold_timeout(HOLD)
            .release_timeout(Duration::from_millis(300))
            .direct_handoff(true)
    });
    let response = site
        .call(async |db: DbSession| {
            let sql = slow(db.backend());
            let all = join_all((0..3).map(|_| db.execute_unprepared(sql))).await;
            assert!(all.into_iter().all(|one| known(one).is_hold_timeout()));
        })
        .await;
    assert_eq!(response.status(), 200);
    site.call(async |db: DbSession| {
        let never = db
            .with_postgres(|_| Box::pin(std::future::pending::<()>()))
            .await;
        assert!(known(never).is_hold_timeout());
    })
    .await;
    // More rows than fit anywhere, and a reader that does not read: its connection goes back in order.
    let site = site.pooled(|pool| {
        pool.hold_timeout(HOLD)
            .release_timeout(BOUND)
            .direct_handoff(true)
    });
    let pool = site.layer.pool().clone();
    site.call(async move |db: DbSession| {
        let many = "SELECT i FROM generate_series(1, 100000) AS n(i)";
        let mut rows = db
            .rows(Statement::from_string(db.backend(), many))
            .await
            .unwrap();
        rows.next().await.unwrap().unwrap();
        taken(&pool).await;
        assert_eq!(pool.status().idle, 1, "not closed");
        let last = rows.collect::<Vec<_>>().await.pop().unwrap();
        assert!(known(last).is_hold_timeout(), "no silent end");
    })
    .await;
    site.assert_whole().await;
}

#[tokio::test]
async fn a_commit_that_was_sent_is_seen_through() {
    join_all(SERVERS.map(async |kind| {
        let (site, proxy) = Site::behind_a_proxy(kind).await;
        let site = site.pooled(|pool| pool.hold_timeout(HOLD).release_timeout(BOUND));
        let proxy = Arc::new(proxy);
        for early in [true, false] {
            let name = unique_name();
            let (proxy, handler_name, pool) =
                (proxy.clone(), name.clone(), site.layer.pool().clone());
            let response = site.call({
                let proxy = proxy.clone();
                async move |tx: DbTx| {
                    insert_item(&tx, &handler_name).await;
                    proxy.delay_replies(2 * HOLD);
                    if early {
                        tx.commit().await.unwrap();
                        proxy.delay_replies(Duration::ZERO);
                        // Then its time is up.
                        taken(&pool).await;
                        assert!(known(tx.execute_unprepared("SELECT 1").await).is_hold_timeout());
                    }
                }
            });
            let response = response.await;
            proxy.delay_replies(Duration::ZERO);
            assert_eq!(response.status(), 200, "{kind:?}, early {early}");
            assert!(outcome(&response).is_committed());
            assert_eq!(site.count(&name).await, 1, "{kind:?}, early {early}");
        }
        site.assert_whole().await;
    }))
    .await;
}

#[tokio::test]
async fn a_held_body_breaks_at_the_hold_timeout() {
    join_all(Kind::ALL.map(async |kind| {
        for transaction in [true, false] {
            let site = hasty(kind).await.layered(|layer| {
                if transaction {
                    layer.transaction()
                } else {
                    layer
                }
            });
            let pool = site.layer.pool().clone();
            let name = unique_name();
            let handler_name = name.clone();
            let response = site
                .call(async move |db: DbSession| {
                    insert_item(&db, &handler_name).await;
                    let parts = futures_util::stream::iter(0..2).then(move |part| {
                        let pool = pool.clone();
                        async move {
                            if part == 1 {
                                taken(&pool).await;
                            }
                            Ok::<_, DbErr>(Bytes::from_static(b"part"))
                        }
                    });
                    Response::new(Body::new(db.hold_until_body_end(Body::from_stream(parts))))
                })
                .await;
            assert_eq!(response.status(), 200);
            let body = timeout(BOUND, response.into_body().collect())
                .await
                .expect("an end");
            assert!(body.is_err(), "{kind:?}, transaction {transaction}");
            assert_eq!(site.count(&name).await, i64::from(!transaction), "{kind:?}");
            site.assert_whole().await;
        }
    }))
    .await;
}

#[tokio::test]
async fn a_job_loses_its_connection_too_and_its_rollback_hooks_run() {
    join_all(Kind::ALL.map(async |kind| {
        let site = hasty(kind).await;
        let pool = site.layer.pool().clone();
        let ran = Arc::new(Mutex::new(Vec::new()));
        let (committed, rolled_back) = (ran.clone(), ran.clone());
        let job = pool.transaction(async |tx| {
            tx.after_commit(async move { committed.lock().unwrap().push("committed") })?;
            tx.after_rollback(async move { rolled_back.lock().unwrap().push("rolled back") })?;
            insert_item(tx, "lost").await;
            taken(&pool).await;
            Ok::<_, DbErr>(())
        });
        let Err(TransactionError::Connection(error)) = job.await else {
            panic!("{kind:?}: not lost")
        };
        assert!(Error::of(&error).unwrap().is_hold_timeout());
        eventually("the hook ran", async || {
            *ran.lock().unwrap() == ["rolled back"]
        })
        .await;
        // While it holds none, no time is counted.
        let session = pool.session().await.unwrap();
        session.release().await.unwrap();
        tokio::time::sleep(2 * HOLD).await;
        session.execute_unprepared("SELECT 1").await.unwrap();
        drop(session);
        site.assert_whole().await;
    }))
    .await;
}

#[tokio::test]
async fn a_hold_of_zero_is_refused_when_the_pool_is_built() {
    let test = TestDb::new(Kind::SqliteMemory).await;
    let db = test.connect(1).await;
    type Set = fn(SessionPoolBuilder, Duration) -> SessionPoolBuilder;
    for set in [
        SessionPoolBuilder::hold_timeout as Set,
        SessionPoolBuilder::hold_slow_threshold,
    ] {
        let error = set(pool_builder(db.clone()), Duration::ZERO)
            .build()
            .unwrap_err();
        assert!(error.to_string().contains("cannot be zero"), "{error}");
    }
}

#[tokio::test]
async fn a_storm_of_lost_and_cancelled_requests_leaves_no_holder() {
    for kind in Kind::ALL {
        let site = Site::new(kind).await;
        let site = site.pooled(|pool| {
            pool.hold_timeout(Duration::from_millis(20))
                .release_timeout(Duration::from_secs(2))
        });
        let site = site.layered(DbSessionLayer::transaction);
        let app = site.app(async |db: DbSession, uri: http::Uri| -> Response {
            let number: u64 = uri.query().unwrap().parse().unwrap();
            for _ in 0..number % 4 {
                if db.execute_unprepared("SELECT 1").await.is_err() {
                    return StatusCode::INTERNAL_SERVER_ERROR.into_response();
                }
                tokio::time::sleep(Duration::from_millis(number % 13)).await;
            }
            let _ = timeout(Duration::from_millis(30), db.pool().session()).await;
            ().into_response()
        });
        let requests = (0..200_u64).map(|number| {
            let request = Request::get(format!("/?{number}"))
                .body(Body::empty())
                .unwrap();
            timeout(
                Duration::from_millis(5 + number % 60),
                app.clone().oneshot(request),
            )
        });
        for answer in join_all(requests).await.into_iter().flatten() {
            let status = answer.unwrap().status().as_u16();
            assert!(
                matches!(status, 200 | 500 | 503 | 504),
                "{kind:?}: {status}"
            );
        }
        site.assert_whole().await;
        let pool = site.layer.pool();
        eventually("the register is empty", async || {
            let debug = format!("{pool:?}");
            debug.contains("holders: 0") && debug.contains("sessions: 0")
        })
        .await;
    }
}

/// The plain pool's users see nothing of it.
#[tokio::test]
async fn the_time_of_a_plain_connection_is_not_counted() {
    let test = TestDb::new(Kind::Postgres).await;
    let db: DatabaseConnection = test.connect(1).await;
    let _pool = pool_with(&db, |pool| pool.hold_timeout(Duration::from_millis(20)));
    let tx = db.begin().await.unwrap();
    tx.execute_unprepared("SELECT pg_sleep(0.2)").await.unwrap();
    tx.commit().await.unwrap();
}
