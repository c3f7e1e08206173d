//! G13, G15: time-outs that travel with BEGIN hold for exactly one transaction, and what exceeds them is told apart.

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt;
use http::StatusCode;
use sea_orm::{
    AccessMode, ConnectionTrait, DbBackend, Statement, TransactionOptions, TransactionTrait,
};
use tokio::sync::Notify;
use tower::ServiceExt;
use tower_sea_orm::{
    DbSession, DbSessionLayer, Error, Reset, SessionPool, TransactionLayer, testing::TestPool,
};

use super::settings::request;
use crate::support::{
    database::{Kind, SERVERS, TestDb, insert_item, try_insert_item},
    pool::returned,
    requests::{Failed, text},
    site::{is_mariadb, retry_after, value},
    world::{World, outcome, post, serve},
};

/// The time-outs of a connection, as the server says them.
async fn timeouts(db: &impl ConnectionTrait) -> String {
    let backend = db.get_database_backend();
    let sql = match backend {
        DbBackend::Postgres => {
            "SELECT current_setting('statement_timeout') || ' ' || current_setting('lock_timeout')"
        }
        DbBackend::MySql => {
            "SELECT CONCAT(/*M! @@max_statement_time */ /*!50708 @@max_execution_time */, ' ', \
             @@innodb_lock_wait_timeout, ' ', @@lock_wait_timeout)"
        }
        _ => "SELECT CAST(timeout AS text) FROM pragma_busy_timeout",
    };
    value(db, sql).await
}

/// Gives a layer both time-outs, where the database has them.
fn limited(
    kind: Kind,
    layer: TransactionLayer,
    statement: Duration,
    lock: Duration,
) -> TransactionLayer {
    let layer = layer.lock_timeout(lock);
    match kind {
        Kind::SqliteFile | Kind::SqliteMemory => layer,
        _ => layer.statement_timeout(statement),
    }
}

#[tokio::test]
async fn time_outs_mean_what_they_say_and_end_with_their_transaction() {
    let (nano, milli, second) = (
        Duration::from_nanos(1),
        Duration::from_millis(61_500),
        Duration::from_secs(62),
    );
    let century = Duration::from_secs(3_200_000_000);
    for kind in Kind::ALL {
        let world = World::new(kind, 1).await;
        let mariadb = kind == Kind::MySql && is_mariadb(&world.db).await;
        if kind == Kind::MySql {
            // As of `after_connect`: what is put back is this, and not the server's default.
            let sql = "SET innodb_lock_wait_timeout = 41, lock_wait_timeout = 42 \
                       /*M! , max_statement_time = 43.5 */ /*!50708 , max_execution_time = 43500 */";
            world.db.execute_unprepared(sql).await.unwrap();
        }
        let before = timeouts(&world.db).await;
        let zero = Duration::ZERO;
        // A statement's shortest limit would strike: a unit test has it.
        for (statement, lock, postgres, mysql, maria, sqlite) in [
            (
                zero,
                zero,
                "0 0",
                "0 100000000 31536000",
                "0.000000",
                "2147483647",
            ),
            (second, nano, "62s 1ms", "62000 1 1", "62.000000", "1"),
            (
                milli,
                milli,
                "61500ms 61500ms",
                "61500 62 62",
                "61.500000",
                "61500",
            ),
            (
                century,
                century,
                "0 0",
                "0 100000000 31536000",
                "0.000000",
                "2147483647",
            ),
            (
                Duration::MAX,
                Duration::MAX,
                "0 0",
                "0 100000000 31536000",
                "0.000000",
                "2147483647",
            ),
        ] {
            let expected = match kind {
                Kind::Postgres => postgres.to_owned(),
                Kind::MySql if mariadb => {
                    format!("{maria} {}", mysql.split_once(' ').unwrap().1)
                }
                Kind::MySql => mysql.to_owned(),
                _ => sqlite.to_owned(),
            };
            for status in [StatusCode::OK, StatusCode::CONFLICT] {
                let seen = expected.clone();
                let handler = async move |db: DbSession| {
                    assert_eq!(timeouts(&db).await, seen, "{kind:?} {statement:?} {lock:?}");
                    db.commit().await.unwrap();
                    assert_eq!(
                        timeouts(&db).await,
                        seen,
                        "{kind:?} {statement:?} {lock:?}: again"
                    );
                    status
                };
                let layer = limited(kind, TransactionLayer::new(), statement, lock);
                let app = serve(handler).layer(layer).layer(world.layer());
                assert_eq!(post(&app, "/").await.status(), status, "{kind:?}");
                assert_eq!(
                    timeouts(&world.db).await,
                    before,
                    "{kind:?} {statement:?} {lock:?}"
                );
            }
        }
        world.assert_whole().await;
    }
}

#[tokio::test]
async fn a_statement_that_takes_too_long_is_answered_with_504() {
    for kind in SERVERS {
        let world = World::new(kind, 1).await;
        let slow = match kind {
            Kind::Postgres => "SELECT pg_sleep(60)",
            // MySQL's SLEEP only wakes up.
            _ => {
                "SELECT count(*) FROM information_schema.collations a, information_schema.collations b, \
                 information_schema.collations c, information_schema.collations d"
            }
        };
        let app = serve(async move |db: DbSession| {
            let work = async {
                // On a busy machine, this may be the one.
                try_insert_item(&db, "before").await?;
                let statement = Statement::from_string(db.backend(), slow);
                db.query_all_raw(statement).await
            };
            let error = work.await.unwrap_err();
            let known = Error::of(&error).unwrap();
            assert!(known.is_statement_timeout(), "{error}");
            StatusCode::INTERNAL_SERVER_ERROR
        });
        let limit = TransactionLayer::new().statement_timeout(Duration::from_secs(1));
        let app = app.layer(limit).layer(world.layer());
        let response = post(&app, "/").await;
        assert_eq!(
            (
                response.status(),
                outcome(&response),
                retry_after(&response)
            ),
            (StatusCode::GATEWAY_TIMEOUT, "rolled back", None),
            "{kind:?}"
        );
        assert_eq!(world.seen("before").await, 0, "{kind:?}");
        world.assert_whole().await;
    }
}

#[tokio::test]
async fn a_lock_that_does_not_come_in_time_is_answered_with_503() {
    for kind in [Kind::Postgres, Kind::MySql, Kind::SqliteFile] {
        let world = World::new(kind, 1).await;
        insert_item(&world.view, "locked").await;
        let holder = world.view.begin().await.unwrap();
        let lock = "UPDATE item SET hits = 1";
        holder.execute_unprepared(lock).await.unwrap();
        let app = serve(async move |db: DbSession| -> Result<(), Failed> {
            let error = db.execute_unprepared(lock).await.unwrap_err();
            let known = Error::of(&error).unwrap();
            assert!(known.is_lock_not_available(), "{error}");
            Err(Failed(error))
        });
        let immediate = TransactionOptions {
            sqlite_transaction_mode: Some(sea_orm::SqliteTransactionMode::Immediate),
            ..Default::default()
        };
        // For SQLite, where BEGIN itself waits for the lock.
        for options in [TransactionOptions::default(), immediate] {
            let limit = TransactionLayer::with(options).lock_timeout(Duration::from_millis(50));
            let app = app.clone().layer(limit).layer(world.layer());
            let response = post(&app, "/").await;
            assert_eq!(
                (response.status(), retry_after(&response)),
                (StatusCode::SERVICE_UNAVAILABLE, Some("1")),
                "{kind:?}"
            );
        }
        holder.rollback().await.unwrap();
        world.assert_whole().await;
    }
}

#[tokio::test]
async fn a_reset_does_not_bring_a_transactions_settings_back() {
    let world = World::new(Kind::Postgres, 1).await;
    let app = serve(async |db: DbSession| {
        assert_eq!(timeouts(&db).await, "0 9s");
        // Only now it becomes clear that there is something to put back.
        db.execute_unprepared("SET statement_timeout = '8s'")
            .await
            .unwrap();
    });
    let layer = world
        .layer_with(|pool| pool.reset(Reset::SessionState))
        .lock_timeout(Duration::from_secs(9));
    let pool = layer.pool().clone();
    let app = app.layer(layer);
    for _ in 0..3 {
        assert_eq!(post(&app, "/").await.status(), StatusCode::OK);
        returned(&pool).await;
        let session = pool.session().await.unwrap();
        assert_eq!(timeouts(&*session).await, "0 0");
    }
    world.assert_whole().await;
}

#[tokio::test]
async fn in_a_test_pool_settings_are_there_as_well() {
    for kind in SERVERS {
        let test = TestDb::new(kind).await;
        let pool = TestPool::begin(SessionPool::builder(test.connect(1).await))
            .await
            .unwrap();
        let session = pool.session().await.unwrap();
        let before = timeouts(&*session).await;
        drop(session);
        let limit = Duration::from_secs(999);
        let layer = limited(kind, TransactionLayer::new(), limit, limit);
        let app = serve(async |db: DbSession| timeouts(&db).await)
            .layer(layer)
            .layer(DbSessionLayer::new(pool.pool()));
        let seen = text(post(&app, "/").await).await;
        assert!(seen.contains('9') && seen != before, "{kind:?}: {seen}");
        drop(app);
        pool.rollback().await.unwrap();
    }
}

#[tokio::test]
async fn read_only_requests_have_the_settings_too() {
    for kind in Kind::ALL {
        let world = World::new(kind, 1).await;
        let before = timeouts(&world.db).await;
        let options = TransactionOptions {
            access_mode: Some(AccessMode::ReadOnly),
            ..Default::default()
        };
        let limit = Duration::from_secs(999);
        let layer = limited(kind, TransactionLayer::with(options), limit, limit);
        let app = serve(async |db: DbSession| {
            db.execute_unprepared("DELETE FROM item").await.unwrap_err();
            db.rollback().await.unwrap();
            timeouts(&db).await
        });
        let app = app.layer(layer).layer(world.layer());
        let seen = text(post(&app, "/").await).await;
        assert!(seen.contains('9') && seen != before, "{kind:?}: {seen}");
        assert_eq!(timeouts(&world.db).await, before, "{kind:?}");
        // Given up half-way: what was set is put back all the same.
        let reached = Arc::new(Notify::new());
        let half_way = reached.clone();
        let half = serve(async move |db: DbSession| {
            timeouts(&db).await;
            half_way.notify_one();
            std::future::pending::<()>().await;
        });
        let limits = limited(kind, TransactionLayer::with(options), limit, limit);
        let layer = world.layer();
        let pool = layer.pool().clone();
        let mut answer = half
            .layer(limits)
            .layer(layer)
            .oneshot(request("x"))
            .boxed();
        tokio::select! {
            _ = &mut answer => panic!("{kind:?}: a handler that stays has returned"),
            () = reached.notified() => {}
        }
        drop(answer);
        returned(&pool).await;
        assert_eq!(timeouts(&world.db).await, before, "{kind:?}: given up");
        world.assert_whole().await;
    }
}
