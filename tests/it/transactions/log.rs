//! G15: what the log says of transactions: the first cause, and what has no effect without one.

use std::{
    future::pending,
    sync::{Arc, Mutex},
};

use axum::{Router, body::Body, routing::any};
use futures_util::{FutureExt, StreamExt};
use http::{Request, StatusCode};
use sea_orm::{
    ConnectionTrait, DbBackend, Statement, StreamTrait, TransactionTrait,
    sqlx::{self, Connection, Executor},
};
use tower::ServiceExt;
use tower_sea_orm::{DbSession, DbTx, Reset};
use tracing::{Event, Subscriber, subscriber::DefaultGuard};
use tracing_subscriber::{
    Layer,
    layer::{Context, SubscriberExt},
};

use crate::{
    log::{Log, keep_interest},
    support::{
        database::{Kind, insert_item},
        pool::{resets, returned},
        site::{DEFERRING, Site, call, is_mariadb, known, outcome, violate},
        statements::raw,
        wait::eventually,
    },
};

#[tokio::test]
async fn the_error_line_of_an_aborted_transaction_names_its_first_failure() {
    let site = Site::new(Kind::Postgres).await;
    insert_item(&site.db, "taken").await;
    let (log, _guard) = Log::start();
    let response = site
        .call(async |tx: DbTx| {
            tx.execute_unprepared("INSERT INTO item (name) VALUES ('taken')")
                .await
                .unwrap_err();
            tx.execute_unprepared("UPDATE item SET hits = 7")
                .await
                .unwrap_err();
        })
        .await;
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    let lines: Vec<_> = log
        .lines()
        .into_iter()
        .filter(|line| line.starts_with("ERROR"))
        .collect();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(
        lines[0].contains("INSERT INTO item (name) VALUES (?)"),
        "{lines:?}"
    );
    assert!(
        lines[0].contains("item_name"),
        "the server's own words: {lines:?}"
    );
    assert!(!lines[0].contains("UPDATE"), "{lines:?}");
}

#[tokio::test]
async fn statements_without_effect_in_autocommit_are_logged_once_per_text() {
    for kind in [Kind::Postgres, Kind::MySql] {
        let site = Site::new(kind).await;
        let (log, _guard) = Log::start();
        // Other tests of this process may have told of the usual texts.
        let locking =
            Box::leak(format!("SELECT id AS {kind:?}_told FROM item FOR UPDATE").into_boxed_str());
        for _ in 0..3 {
            let sql: &'static str = locking;
            site.call(async move |db: DbSession| {
                db.query_all_raw(Statement::from_string(db.backend(), sql))
                    .await
                    .unwrap();
            })
            .await;
            site.call(async move |tx: DbTx| {
                tx.query_all_raw(Statement::from_string(
                    tx.backend(),
                    "SELECT name FROM item FOR UPDATE",
                ))
                .await
                .unwrap();
            })
            .await;
        }
        let lines: Vec<_> = log
            .lines()
            .into_iter()
            .filter(|line| line.starts_with("WARN"))
            .collect();
        assert_eq!(lines.len(), 1, "{kind:?}: {lines:?}");
        assert!(
            lines[0].contains("DbTx") && lines[0].contains("FOR UPDATE"),
            "{kind:?}: {lines:?}"
        );
    }
}

/// The code that ends a transaction behind its session's back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EndedBy {
    /// MariaDB's procedure that commits and takes its time.
    Procedure,
    Text,
    Raw(Kind),
}

/// COMMIT, then nothing more if the code `stays`.
macro_rules! commit {
    ($tx:ident, $method:ident, $stays:ident) => {{
        let code = $tx.$method(move |raw| {
            Box::pin(async move {
                raw.execute("COMMIT").await.unwrap();
                if $stays {
                    pending::<()>().await;
                }
            })
        });
        drop(code.await);
    }};
}

impl EndedBy {
    async fn end(self, tx: &DbTx, stays: bool) {
        match self {
            Self::Procedure => drop(tx.execute_unprepared("CALL commits_and_sleeps()").await),
            Self::Text => drop(tx.execute_unprepared("EXECUTE IMMEDIATE 'COMMIT'").await),
            Self::Raw(Kind::Postgres) => commit!(tx, with_postgres, stays),
            Self::Raw(Kind::MySql) => commit!(tx, with_mysql, stays),
            Self::Raw(_) => commit!(tx, with_sqlite, stays),
        }
    }
}

/// How the request ends after that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaves {
    /// With an answer that is to roll back.
    Refuses,
    /// The client has gone, and the handler was doing something else.
    Later,
    /// The client has gone while it ran.
    Meanwhile,
}

#[tokio::test]
async fn a_transaction_ended_elsewhere_is_one_error_line_in_the_log() {
    use {EndedBy::*, Leaves::*};
    let cases = [
        (Kind::MySql, Procedure, &[Refuses, Later, Meanwhile][..]),
        (Kind::MySql, Text, &[Refuses, Later]),
        (Kind::MySql, Raw(Kind::MySql), &[Refuses, Later, Meanwhile]),
        (
            Kind::Postgres,
            Raw(Kind::Postgres),
            &[Refuses, Later, Meanwhile],
        ),
        (
            Kind::SqliteFile,
            Raw(Kind::SqliteFile),
            &[Refuses, Later, Meanwhile],
        ),
    ];
    for (kind, ended_by, leaves) in cases {
        for leaves in leaves {
            assert_told_of_an_end_elsewhere(kind, ended_by, *leaves).await;
        }
    }
}

async fn assert_told_of_an_end_elsewhere(kind: Kind, ended_by: EndedBy, leaves: Leaves) {
    let site = Site::new(kind).await;
    if ended_by == EndedBy::Text && !is_mariadb(site.view()).await {
        // MySQL has no EXECUTE IMMEDIATE.
        return;
    }
    if ended_by == EndedBy::Procedure {
        let slept = if leaves == Leaves::Meanwhile {
            "0.5"
        } else {
            "0"
        };
        site.run(&format!(
            "CREATE PROCEDURE commits_and_sleeps() BEGIN COMMIT; DO SLEEP({slept}); END"
        ))
        .await;
    }
    let (log, _guard) = Log::start();
    let ended = Arc::new(tokio::sync::Notify::new());
    let told = ended.clone();
    let app = site.app(async move |tx: DbTx| {
        insert_item(&tx, "stands").await;
        ended_by.end(&tx, leaves == Leaves::Meanwhile).await;
        told.notify_one();
        if leaves != Leaves::Refuses {
            pending::<()>().await;
        }
        StatusCode::BAD_REQUEST
    });
    let request = app.oneshot(Request::new(Body::empty()));
    match leaves {
        Leaves::Refuses => assert_eq!(
            request.await.unwrap().status(),
            StatusCode::INTERNAL_SERVER_ERROR
        ),
        Leaves::Later => {
            tokio::select! {
                _ = request => unreachable!("no answer"),
                () = ended.notified() => {}
            }
        }
        Leaves::Meanwhile => {
            let stands = async || site.count("stands").await == 1;
            tokio::select! {
                _ = request => unreachable!("no answer"),
                () = eventually("the row is committed", stands) => {}
            }
        }
    }
    site.assert_whole().await;
    let lines = log.lines();
    let lines: Vec<_> = lines
        .iter()
        .filter(|line| {
            // Nothing shows what raw code had done that was cut off.
            line.contains(match (ended_by, leaves) {
                (EndedBy::Raw(_), Leaves::Meanwhile) => "was cut off in a transaction",
                _ => "behind its session's back",
            })
        })
        .collect();
    assert_eq!(
        lines.len(),
        1,
        "{kind:?} {ended_by:?} {leaves:?}: {lines:?}"
    );
    assert!(lines[0].starts_with("ERROR"), "{lines:?}");
    if ended_by == EndedBy::Procedure {
        assert!(lines[0].contains("commits_and_sleeps"), "{lines:?}");
    }
    assert_eq!(
        site.count("stands").await,
        1,
        "{kind:?} {ended_by:?} {leaves:?}"
    );
}

/// Keeps what the driver says.
#[derive(Clone, Default)]
struct DriverLog(Arc<Mutex<Vec<String>>>);

impl DriverLog {
    fn start() -> (Self, DefaultGuard) {
        keep_interest();
        let log = Self::default();
        let guard =
            tracing::subscriber::set_default(tracing_subscriber::registry().with(log.clone()));
        (log, guard)
    }
}

impl<S: Subscriber> Layer<S> for DriverLog {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        if metadata.target().starts_with("sqlx") && *metadata.level() <= tracing::Level::WARN {
            self.0
                .lock()
                .unwrap()
                .push(format!("{} {event:?}", metadata.target()));
        }
    }
}

#[tokio::test]
async fn a_refused_commit_makes_the_driver_log_no_warning() {
    for kind in DEFERRING {
        for early in [false, true] {
            let site = Site::new(kind).await;
            site.defer().await;
            let (log, _guard) = DriverLog::start();
            let response = site
                .call(async move |tx: DbTx| {
                    insert_item(&tx, "lost").await;
                    violate(&tx).await;
                    if early {
                        tx.commit().await.unwrap_err();
                        insert_item(&tx, "after").await;
                        StatusCode::CONFLICT
                    } else {
                        StatusCode::OK
                    }
                })
                .await;
            let expected = if early {
                StatusCode::CONFLICT
            } else {
                StatusCode::INTERNAL_SERVER_ERROR
            };
            assert_eq!(response.status(), expected, "{kind:?} {early}");
            site.assert_whole().await;
            let lines = log.0.lock().unwrap().clone();
            assert!(lines.is_empty(), "{kind:?} {early}: {lines:?}");
        }
    }
}

#[tokio::test]
async fn after_raw_code_the_driver_logs_no_warning() {
    for kind in [Kind::Postgres, Kind::MySql, Kind::SqliteFile] {
        for reset in resets().filter(|reset| *reset != Reset::None) {
            let site = Site::new(kind).await.pooled(|pool| pool.reset(reset));
            let (log, _guard) = DriverLog::start();
            for transactional in [false, true] {
                let response = site
                    .call(async move |db: DbSession| {
                        if transactional {
                            db.tx();
                        }
                        raw(&db, "SELECT 1").await;
                        raw(&db, "SELECT 2").await;
                        insert_item(&db, if transactional { "in" } else { "out" }).await;
                    })
                    .await;
                assert_eq!(response.status(), StatusCode::OK);
                returned(site.layer.pool()).await;
            }
            let lines = log.0.lock().unwrap().clone();
            assert!(lines.is_empty(), "{kind:?} {reset:?}: {lines:?}");
            assert_eq!(site.seen(["in", "out"]).await, [true, true]);
            site.assert_whole().await;
        }
    }
}

#[tokio::test]
async fn after_a_failed_on_begin_the_driver_logs_no_warning() {
    for kind in [Kind::Postgres, Kind::MySql, Kind::SqliteFile] {
        for reset in resets().filter(|reset| *reset != Reset::None) {
            let site = Site::new(kind)
                .await
                .pooled(|pool| pool.reset(reset))
                .layered(move |layer| {
                    layer.on_begin(move |_| {
                        vec![Statement::from_string(kind.backend(), "SELECT nothing")]
                    })
                });
            let (log, _guard) = DriverLog::start();
            let response = site
                .call(async |tx: DbTx| {
                    tx.execute_unprepared("SELECT 1").await.unwrap_err();
                    tx.execute_unprepared("SELECT 1").await.unwrap_err();
                })
                .await;
            assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
            returned(site.layer.pool()).await;
            let lines = log.0.lock().unwrap().clone();
            assert!(lines.is_empty(), "{kind:?} {reset:?}: {lines:?}");
            site.assert_whole().await;
        }
    }
}

#[tokio::test]
async fn what_raw_code_left_open_is_rolled_back_in_every_state() {
    for reset in resets().filter(|reset| *reset != Reset::None) {
        let site = Site::new(Kind::Postgres)
            .await
            .pooled(|pool| pool.reset(reset));
        // Open, and aborted by an error.
        for sql in [
            "BEGIN; INSERT INTO item (name) VALUES ('stray')",
            "BEGIN; INSERT INTO item (name) VALUES ('stray'); SELECT 1 / 0",
        ] {
            for goes_on in [false, true] {
                let response = site
                    .call(async move |db: DbSession| {
                        db.with_postgres(move |c| {
                            Box::pin(async move { c.execute(sql).await.map(drop) })
                        })
                        .await
                        .unwrap()
                        .ok();
                        if goes_on {
                            insert_item(&db, "after").await;
                        }
                    })
                    .await;
                assert_eq!(response.status(), StatusCode::OK);
                returned(site.layer.pool()).await;
                assert_eq!(site.seen(["stray", "after"]).await, [false, goes_on]);
                site.run("DELETE FROM item").await;
            }
        }
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn a_warning_of_the_server_reaches_the_drivers_log() {
    let site = Site::new(Kind::Postgres).await;
    let (log, _guard) = DriverLog::start();
    let mut connection = sqlx::PgConnection::connect(site.test.url()).await.unwrap();
    connection.execute("ROLLBACK").await.unwrap();
    eventually("the warning is heard", async || {
        log.0
            .lock()
            .unwrap()
            .iter()
            .any(|line| line.contains("no transaction in progress"))
    })
    .await;
}

#[tokio::test]
async fn the_log_of_a_lost_connection_names_what_was_lost_with_it() {
    let site = Site::new(Kind::Postgres).await;
    let end = "SELECT pg_terminate_backend(pg_backend_pid())";
    let prepare = "SELECT 1 / 0 AS prepared";
    for (layer, sql, cause) in [
        (site.layer.clone(), end, "terminating connection"),
        (
            site.layer
                .clone()
                .on_acquire(move |_| vec![Statement::from_string(DbBackend::Postgres, prepare)]),
            "SELECT 1",
            "division by zero",
        ),
    ] {
        let (log, _guard) = Log::start();
        let handler = async move |tx: DbTx| {
            let _ = tx
                .query_one_raw(Statement::from_string(DbBackend::Postgres, sql))
                .await;
        };
        let response = call(Router::new().route("/", any(handler)).layer(layer)).await;
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let lines: Vec<_> = log
            .lines()
            .into_iter()
            .filter(|line| line.starts_with("ERROR"))
            .collect();
        assert!(lines.iter().any(|line| line.contains(cause)), "{lines:?}");
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn the_log_names_raw_code_that_has_ended_a_transaction() {
    let site = Site::new(Kind::Postgres).await;
    let (log, _guard) = Log::start();
    let response = site
        .call(async |tx: DbTx| {
            insert_item(&tx, "before").await;
            tx.with_postgres(|connection| sqlx::query("COMMIT").execute(connection).boxed())
                .await
                .unwrap()
                .unwrap();
        })
        .await;
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    let lines: Vec<_> = log
        .lines()
        .into_iter()
        .filter(|line| line.starts_with("ERROR"))
        .collect();
    assert!(
        lines.iter().any(|line| line.contains("raw code")),
        "{lines:?}"
    );
    assert!(
        !lines.iter().any(|line| line.contains("INSERT")),
        "{lines:?}"
    );
}

#[tokio::test]
async fn a_commit_by_stored_code_is_reported_even_if_the_connection_is_lost() {
    let site = Site::new(Kind::MySql).await;
    site.run("CREATE PROCEDURE commits_and_dies() BEGIN COMMIT; KILL CONNECTION_ID(); END")
        .await;
    for savepoint in [false, true] {
        for commits in [false, true] {
            let name = format!("stands {savepoint} {commits}");
            let inserted = name.clone();
            site.call(async move |db: DbSession| {
                if savepoint {
                    db.tx();
                    db.execute_unprepared("UPDATE item SET hits = 1")
                        .await
                        .unwrap();
                }
                let tx = db.begin().await.unwrap();
                insert_item(&tx, &inserted).await;
                tx.execute_unprepared("CALL commits_and_dies()")
                    .await
                    .unwrap_err();
                let ended = if commits {
                    tx.commit().await
                } else {
                    tx.rollback().await
                };
                let error = known(ended);
                assert!(
                    error.to_string().contains("may be committed"),
                    "{savepoint} {commits}: {error}"
                );
                StatusCode::CONFLICT
            })
            .await;
            assert_eq!(site.count(&name).await, 1);
        }
    }
    site.assert_whole().await;
}

#[tokio::test]
async fn no_rollback_is_reported_while_stored_code_may_still_commit() {
    // Whether it ends before the answer, and how the handler answers.
    for (seconds, status) in [(0.03, 409), (0.6, 409), (0.6, 500), (2.5, 200)] {
        let site = Site::new(Kind::MySql).await;
        site.run(&format!(
            "CREATE PROCEDURE commits_late() BEGIN DO SLEEP({seconds}); COMMIT; END"
        ))
        .await;
        for streams in [false, true] {
            let name = format!("stands {streams} {status}");
            let inserted = name.clone();
            let response = site
                .call(async move |tx: DbTx| {
                    insert_item(&tx, &inserted).await;
                    let statement = Statement::from_string(tx.backend(), "CALL commits_late()");
                    if streams {
                        let opening = std::pin::pin!(async {
                            tx.stream_raw(statement).await.unwrap().next().await
                        });
                        let _ = futures_util::poll!(opening);
                    } else {
                        let calling = std::pin::pin!(tx.execute_raw(statement));
                        let _ = futures_util::poll!(calling);
                    }
                    StatusCode::from_u16(status).unwrap()
                })
                .await;
            assert_eq!(
                response.status(),
                StatusCode::INTERNAL_SERVER_ERROR,
                "{seconds} {streams} {status}"
            );
            let error = outcome(&response).error().expect("no rollback").to_string();
            assert!(
                error.contains("may be committed"),
                "{seconds} {streams} {status}: {error}"
            );
            site.assert_whole().await;
            assert_eq!(site.count(&name).await, 1, "{seconds} {streams} {status}");
        }
    }
}
