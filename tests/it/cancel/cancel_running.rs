//! G9: `cancel_running` stops the statement of a dropped request on the server, and only that.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{Router, body::Body, routing::any};
use futures_util::{
    StreamExt,
    future::{Either, select},
};
use http::{Request, StatusCode};
use sea_orm::{ConnectionTrait, DbErr, Statement, TransactionTrait};
use tokio::time::timeout;
use tower::ServiceExt;
use tower_sea_orm::{DbSession, DbSessionLayer, SessionPoolBuilder};

use crate::support::{
    database::{Kind, SERVERS, unique_name},
    site::{BOUND, Site, value},
    statements::{mark, running, sleep, slow_insert},
    wait::eventually,
};

/// The most that a client's leaving may cost beyond the cost of the same cancel by an administrator.
const GONE: Duration = Duration::from_millis(100);

/// Seconds that a query sleeps that is not to end by itself: more than any test waits.
pub const LONG: f64 = 600.0;

/// Returns whether a query [sleeps](sleep) to its end.
pub async fn sleeps_undisturbed(db: &DbSession, kind: Kind, seconds: f64) -> bool {
    let Ok(rows) = db.query_all_raw(sleep(kind, seconds)).await else {
        return false;
    };
    // MySQL's SLEEP may tell that it was stopped instead of failing.
    kind == Kind::Postgres || rows[0].try_get_by_index::<i64>(0).unwrap() == 0
}

/// A service whose requests run `statement` and are dropped when it is seen to run; returns when they were.
pub async fn leave(site: &Site, layer: DbSessionLayer, statement: Statement) -> Instant {
    let app = Router::new()
        .route(
            "/",
            any(move |db: DbSession| async move {
                db.query_all_raw(statement)
                    .await
                    .map(|_| ())
                    .map_err(status)
            }),
        )
        .layer(layer);
    let request = Box::pin(app.oneshot(Request::new(Body::empty())));
    let seen = pin!(eventually("the statement runs", async || running(
        site.view(),
        "sleep("
    )
    .await
        > 0));
    let Either::Right(((), request)) = select(request, seen).await else {
        panic!("the request has ended")
    };
    drop(request);
    Instant::now()
}

fn status(_: DbErr) -> StatusCode {
    StatusCode::INTERNAL_SERVER_ERROR
}

/// Polls a statement until the server is seen to run it, and drops it then.
async fn until_it_runs<T>(site: &Site, what: &str, statement: impl Future<Output = T>) {
    let seen = pin!(eventually("it runs", async || running(site.view(), what)
        .await
        > 0));
    assert!(
        matches!(select(pin!(statement), seen).await, Either::Right(_)),
        "{what}: it has ended"
    );
}

/// Waits until no session is out and nothing sleeps.
pub async fn all_gone(site: &Site) {
    eventually("the slot is free", async || {
        site.layer.pool().status().used == 0
    })
    .await;
    eventually("the query is gone", async || {
        running(site.view(), "sleep(").await == 0
    })
    .await;
}

/// Returns how long an administrator's own cancel takes until the query is seen to be gone.
async fn cancelled_by_hand(site: &Site) -> Duration {
    let (db, query) = (site.db.clone(), sleep(site.kind(), LONG));
    let query = tokio::spawn(async move { drop(db.query_all_raw(query).await) });
    eventually("the statement runs", async || {
        running(site.view(), "sleep(").await > 0
    })
    .await;
    let asked = Instant::now();
    let cancel = match site.kind() {
        Kind::Postgres => "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE datname = current_database() \
                           AND state = 'active' AND query LIKE '%FROM pg_sleep(%' AND pid <> pg_backend_pid()"
            .to_owned(),
        _ => {
            let sleeping = "SELECT CAST(id AS SIGNED) FROM information_schema.processlist \
                            WHERE db = database() AND info LIKE '%SLEEP(%' AND info NOT LIKE '%processlist%'";
            format!("KILL QUERY {}", value::<i64>(site.view(), sleeping).await)
        }
    };
    site.view().execute_unprepared(&cancel).await.unwrap();
    query.await.unwrap();
    all_gone(site).await;
    asked.elapsed()
}

#[tokio::test]
async fn the_query_is_stopped_and_its_slot_free_within_100_ms() {
    for kind in SERVERS {
        for transaction in [false, true] {
            let site = Site::new(kind)
                .await
                .pooled(SessionPoolBuilder::cancel_running);
            let layer = if transaction {
                site.layer.clone().transaction()
            } else {
                site.layer.clone()
            };
            let (mut took, mut by_hand) = (Vec::new(), Vec::new());
            let mut marks = Vec::new();
            for _ in 0..7 {
                by_hand.push(cancelled_by_hand(&site).await);
                let left = leave(&site, layer.clone(), sleep(kind, LONG)).await;
                all_gone(&site).await;
                took.push(left.elapsed());
                marks.push(mark(&*site.layer.pool().session().await.unwrap()).await);
            }
            took.sort();
            by_hand.sort();
            eprintln!("{kind:?}, transaction: {transaction}: {took:?}; by hand: {by_hand:?}");
            // What the machine adds, it adds to both.
            assert!(
                took[0] <= GONE + by_hand[6],
                "{kind:?}, transaction: {transaction}: {took:?}, {by_hand:?}"
            );
            marks.sort_unstable();
            marks.dedup();
            // One on its way back may have another one opened beside it; one closed each time would make seven.
            assert!(
                marks.len() as u32 <= site.size,
                "{kind:?}, transaction: {transaction}: connections were closed"
            );
            site.assert_whole().await;
        }
    }
}

#[tokio::test]
async fn cancel_running_is_off_by_default() {
    for kind in SERVERS {
        let site = Site::new(kind).await;
        let asked = Instant::now();
        leave(&site, site.layer.clone(), sleep(kind, 3.0)).await;
        all_gone(&site).await;
        assert!(
            asked.elapsed() >= Duration::from_secs(3),
            "{kind:?}: it was stopped"
        );
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn in_autocommit_a_write_is_finished() {
    for kind in SERVERS {
        let site = Site::new(kind)
            .await
            .pooled(SessionPoolBuilder::cancel_running);
        let name = unique_name();
        leave(&site, site.layer.clone(), slow_insert(kind, &name, 2.0)).await;
        all_gone(&site).await;
        assert_eq!(
            site.count(&name).await,
            1,
            "{kind:?}: the write was stopped"
        );
        let locking = match kind {
            Kind::Postgres => {
                "SELECT 1 FROM pg_sleep(3), (SELECT id FROM item FOR UPDATE) AS locked"
            }
            _ => "SELECT SLEEP(3) FROM item FOR UPDATE",
        };
        let asked = Instant::now();
        leave(
            &site,
            site.layer.clone(),
            Statement::from_string(kind.backend(), locking),
        )
        .await;
        all_gone(&site).await;
        assert!(
            asked.elapsed() >= Duration::from_secs(3),
            "{kind:?}: a locking read was stopped"
        );
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn in_a_transaction_a_write_is_stopped_and_rolled_back() {
    for kind in SERVERS {
        let site = Site::new(kind)
            .await
            .pooled(SessionPoolBuilder::cancel_running)
            .layered(DbSessionLayer::transaction);
        let name = unique_name();
        leave(&site, site.layer.clone(), slow_insert(kind, &name, LONG)).await;
        all_gone(&site).await;
        assert_eq!(site.count(&name).await, 0, "{kind:?}");
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn a_commit_is_never_stopped() {
    let site = Site::new(Kind::Postgres)
        .await
        .pooled(SessionPoolBuilder::cancel_running)
        .layered(DbSessionLayer::transaction);
    site.run(
        "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(2); RETURN NULL; END $$; \
         CREATE CONSTRAINT TRIGGER dawdle AFTER INSERT ON item DEFERRABLE INITIALLY DEFERRED \
         FOR EACH ROW EXECUTE FUNCTION dawdle()",
    )
    .await;
    for early in [false, true] {
        let name = unique_name();
        let insert = Statement::from_string(
            site.kind().backend(),
            format!("INSERT INTO item (name) VALUES ('{name}')"),
        );
        let app = site.app(move |db: DbSession| async move {
            db.execute_raw(insert).await.unwrap();
            if early {
                db.commit().await.unwrap();
            }
        });
        let request = Box::pin(app.oneshot(Request::new(Body::empty())));
        let seen = pin!(eventually("COMMIT runs", async || running(
            site.view(),
            "commit"
        )
        .await
            > 0));
        let Either::Right(((), request)) = select(request, seen).await else {
            panic!("the request has ended")
        };
        drop(request);
        eventually("the slot is free", async || {
            site.layer.pool().status().used == 0
        })
        .await;
        assert_eq!(site.count(&name).await, 1, "early: {early}");
    }
    site.run("DROP TRIGGER dawdle ON item").await;
    site.assert_whole().await;
}

#[tokio::test]
async fn a_dropped_statement_is_finished_if_its_transaction_goes_on() {
    for kind in SERVERS {
        let site = Site::new(kind)
            .await
            .pooled(SessionPoolBuilder::cancel_running);
        let names = [unique_name(), unique_name()];
        let session = site.layer.pool().session().await.unwrap();
        let transaction = session.begin().await.unwrap();
        let slow = slow_insert(kind, &names[0], 2.0);
        until_it_runs(&site, "sleep(2)", transaction.execute_raw(slow)).await;
        // This one waits for the end of that first.
        let slow = sleep(kind, 2.5);
        until_it_runs(&site, "sleep(2.5)", transaction.query_all_raw(slow)).await;
        crate::support::database::insert_item(&transaction, &names[1]).await;
        transaction.commit().await.unwrap();
        drop(session);
        assert_eq!(
            site.seen([&names[0], &names[1]]).await,
            [true, true],
            "{kind:?}"
        );
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn a_dropped_read_in_autocommit_is_stopped_while_its_request_goes_on() {
    for kind in SERVERS {
        let site = Site::new(kind)
            .await
            .pooled(SessionPoolBuilder::cancel_running);
        let session = site.layer.pool().session().await.unwrap();
        let before = mark(&*session).await;
        for _ in 0..20 {
            assert!(
                timeout(
                    Duration::from_millis(20),
                    session.query_all_raw(sleep(kind, LONG))
                )
                .await
                .is_err()
            );
            // The next one waits for the end of that, and is not hit.
            assert_eq!(
                timeout(BOUND, mark(&*session))
                    .await
                    .expect("the query is gone"),
                before
            );
        }
        // A stream as well, that has not begun or has much left.
        let mut rows = session.rows(sleep(kind, LONG)).await.unwrap();
        assert!(
            timeout(Duration::from_millis(50), rows.next())
                .await
                .is_err()
        );
        drop(rows);
        assert_eq!(
            timeout(BOUND, mark(&*session))
                .await
                .expect("the stream is gone"),
            before
        );
        let many = match kind {
            Kind::Postgres => "SELECT generate_series(1, 100000000), repeat('x', 1000)",
            _ => {
                "SELECT a.ORDINAL_POSITION, REPEAT('x', 1000) FROM information_schema.COLUMNS a, \
                 information_schema.COLUMNS b, information_schema.COLUMNS c"
            }
        };
        let mut rows = session
            .rows(Statement::from_string(kind.backend(), many))
            .await
            .unwrap();
        rows.next().await.unwrap().unwrap();
        drop(rows);
        assert_eq!(
            timeout(BOUND, mark(&*session))
                .await
                .expect("the stream is gone"),
            before
        );
        drop(session);
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn a_statement_left_in_a_transaction_is_stopped_with_its_request() {
    for kind in SERVERS {
        let site = Site::new(kind)
            .await
            .pooled(SessionPoolBuilder::cancel_running)
            .layered(DbSessionLayer::transaction);
        let response = site
            .call(async move |db: DbSession| {
                let slept = timeout(
                    Duration::from_millis(100),
                    db.query_all_raw(sleep(kind, LONG)),
                )
                .await;
                assert!(slept.is_err());
                StatusCode::GATEWAY_TIMEOUT
            })
            .await;
        assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT);
        all_gone(&site).await;
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn sqlite_is_interrupted_and_keeps_its_connection() {
    const ENDLESS: &str =
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n";
    for kind in [Kind::SqliteFile, Kind::SqliteMemory] {
        for transaction in [false, true] {
            let site = Site::new(kind)
                .await
                .pooled(SessionPoolBuilder::cancel_running);
            let layer = if transaction {
                site.layer.clone().transaction()
            } else {
                site.layer.clone()
            };
            let before = mark(&*layer.pool().session().await.unwrap()).await;
            for round in 0..5 {
                let name = unique_name();
                let (inserted, started) = (name.clone(), Arc::new(AtomicU32::new(0)));
                let begun = started.clone();
                let app = Router::new()
                    .route(
                        "/",
                        any(move |db: DbSession| async move {
                            crate::support::database::insert_item(&db, &inserted).await;
                            begun.store(1, Ordering::SeqCst);
                            let endless = Statement::from_string(db.backend(), ENDLESS);
                            db.query_one_raw(endless).await.map(|_| ()).map_err(status)
                        }),
                    )
                    .layer(layer.clone());
                let request = Box::pin(app.oneshot(Request::new(Body::empty())));
                let seen = pin!(eventually("it runs", async || started
                    .load(Ordering::SeqCst)
                    == 1));
                let Either::Right(((), request)) = select(request, seen).await else {
                    panic!("no end")
                };
                drop(request);
                eventually("the slot is free", async || {
                    site.layer.pool().status().used == 0
                })
                .await;
                assert_eq!(
                    site.count(&name).await,
                    i64::from(!transaction),
                    "{kind:?}, round {round}"
                );
            }
            let session = layer.pool().session().await.unwrap();
            assert_eq!(
                mark(&*session).await,
                before,
                "{kind:?}: the connection was not closed"
            );
            drop(session);
            site.assert_whole().await;
            // The plain pool's queries are not stopped by anything that is left.
            site.run(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200000) SELECT max(i) FROM n",
            )
            .await;
        }
    }
}
