//! G7: what a handler has left unfinished when it answers (hazards H4 and H17).

use std::{
    sync::{Arc, Mutex},
    task::Poll,
    time::{Duration, Instant},
};

use axum::response::Response;
use futures_util::{FutureExt, future::join_all};
use http::StatusCode;
use sea_orm::{ConnectionTrait, TransactionTrait};
use tower_sea_orm::{DbSession, DbTx, SessionTransaction};

use crate::support::{
    database::{Kind, insert_item},
    site::{Site, outcome, violate},
    wait::in_one_of,
};

/// The place where a handle outlives its handler.
#[derive(Clone, Copy, Debug)]
enum Leak {
    Task,
    Static,
    Response,
}

impl Leak {
    fn of(self, handle: SessionTransaction) -> Response {
        static KEPT: Mutex<Vec<SessionTransaction>> = Mutex::new(Vec::new());
        let mut response = Response::default();
        match self {
            Self::Task => {
                tokio::spawn(async move {
                    let _handle = handle;
                    std::future::pending::<()>().await;
                });
            }
            Self::Static => KEPT.lock().unwrap().push(handle),
            Self::Response => {
                response
                    .extensions_mut()
                    .insert(Arc::new(Mutex::new(handle)));
            }
        }
        response
    }
}

#[tokio::test]
async fn h4_a_transaction_left_open_is_no_200() {
    for kind in Kind::ALL {
        for leak in [Leak::Task, Leak::Static, Leak::Response] {
            for (transactional, nested) in
                [(true, false), (true, true), (false, false), (false, true)]
            {
                let site = Site::new(kind).await;
                let response = site
                    .call(async move |db: DbSession| {
                        if transactional {
                            db.tx();
                        }
                        insert_item(&db, "before").await;
                        let outer = db.begin().await.unwrap();
                        insert_item(&outer, "lost").await;
                        if nested {
                            let inner = outer.begin().await.unwrap();
                            insert_item(&inner, "lost as well").await;
                            leak.of(inner)
                        } else {
                            leak.of(outer)
                        }
                    })
                    .await;
                let case =
                    format!("{kind:?} {leak:?} transactional: {transactional} nested: {nested}");
                // A parent that was dropped takes what is inside of it along: nothing is left open then.
                let open = !nested;
                assert_eq!(
                    response.status().as_u16(),
                    if open { 500 } else { 200 },
                    "{case}"
                );
                let before = !transactional || !open;
                assert_eq!(
                    site.seen(["before", "lost", "lost as well"]).await,
                    [before, false, false],
                    "{case}"
                );
                if open {
                    assert!(
                        outcome(&response).error().unwrap().is_unfinished(),
                        "{case}"
                    );
                }
                site.assert_whole().await;
            }
        }
    }
}

#[tokio::test]
async fn a_dropped_nested_transaction_is_rolled_back_and_the_rest_commits() {
    for kind in Kind::ALL {
        let site = Site::new(kind).await;
        let response = site
            .call(async |tx: DbTx| {
                insert_item(&tx, "before").await;
                let inner = tx.begin().await.unwrap();
                insert_item(&inner, "dropped").await;
                drop(inner);
                insert_item(&tx, "after").await;
                let _last = tx.begin().await.unwrap();
            })
            .await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(
            site.seen(["before", "dropped", "after"]).await,
            [true, false, true],
            "{kind:?}"
        );
        site.assert_whole().await;
    }
}

/// Inserts `stray` after some time.
fn slow_insert(kind: Kind, seconds: f32) -> String {
    let delay = match kind {
        Kind::Postgres => format!("(SELECT pg_sleep({seconds}))"),
        Kind::MySql => format!("(SELECT SLEEP({seconds}) AS slept)"),
        _ => {
            let rows = (seconds * 1_000_000.0) as u32;
            format!(
                "(SELECT * FROM (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows}) \
                 SELECT count(*) FROM n))"
            )
        }
    };
    format!("INSERT INTO item (name) SELECT 'stray' FROM {delay} AS delay")
}

/// Seconds that end long before the answer has waited for a second. SQLite has to work for its own, which a busy
/// machine makes many times longer.
fn soon(kind: Kind) -> f32 {
    if matches!(kind, Kind::Postgres | Kind::MySql) {
        0.2
    } else {
        0.02
    }
}

/// Polls `future` once, which starts its call, and leaves it to a task, unless the server has answered already.
async fn start<F>(future: F)
where
    F: Future<Output: Send> + Send + 'static,
{
    let mut future = Box::pin(future);
    if std::future::poll_fn(|cx| Poll::Ready(future.poll_unpin(cx).is_pending())).await {
        tokio::spawn(future);
    }
}

#[tokio::test]
async fn a_stray_statement_that_ends_soon_belongs_to_the_200() {
    for kind in Kind::ALL {
        in_one_of(
            10,
            "the statement ends within a second of the answer",
            async || {
                let site = Site::new(kind).await;
                let asked = Instant::now();
                let response = site
                    .call(async move |tx: DbTx| {
                        insert_item(&tx, "before").await;
                        let stray = tx.clone();
                        start(async move {
                            stray
                                .execute_unprepared(&slow_insert(kind, soon(kind)))
                                .await
                        })
                        .await;
                    })
                    .await;
                let soon = response.status() == StatusCode::OK;
                assert!(
                    soon || asked.elapsed() >= Duration::from_secs(1),
                    "{kind:?}: {}",
                    response.status()
                );
                assert_eq!(site.seen(["before", "stray"]).await, [soon; 2], "{kind:?}");
                site.assert_whole().await;
                soon
            },
        )
        .await;
    }
}

async fn assert_rolled_back_beside_a_stray_statement(kind: Kind, release: Duration) {
    let site = Site::new(kind)
        .await
        .pooled(|pool| pool.release_timeout(release));
    let response = site
        .call(async move |tx: DbTx| {
            insert_item(&tx, "before").await;
            let stray = tx.clone();
            start(async move { stray.execute_unprepared(&slow_insert(kind, 10.0)).await }).await;
        })
        .await;
    assert_eq!(
        response.status(),
        StatusCode::INTERNAL_SERVER_ERROR,
        "{kind:?}"
    );
    assert!(outcome(&response).error().unwrap().is_unfinished());
    site.assert_whole().await;
    assert_eq!(
        site.seen(["before", "stray"]).await,
        [false, false],
        "{kind:?}"
    );
}

#[tokio::test]
async fn a_stray_statement_that_does_not_end_is_a_500_and_all_is_rolled_back() {
    let all = [Kind::Postgres, Kind::MySql].into_iter().flat_map(|kind| {
        let releases = [Duration::from_millis(300), Duration::from_secs(60)];
        releases.map(|release| assert_rolled_back_beside_a_stray_statement(kind, release))
    });
    join_all(all).await;
}

#[tokio::test]
async fn a_statement_dropped_half_way_belongs_to_the_transaction() {
    for kind in Kind::ALL {
        for status in [200, 404] {
            in_one_of(
                10,
                "the statement ends within a second of the answer",
                async || {
                    let site = Site::new(kind).await;
                    let asked = Instant::now();
                    let response = site
                        .call(async move |tx: DbTx| {
                            insert_item(&tx, "before").await;
                            let sql = slow_insert(kind, soon(kind));
                            // It is sent at the first poll, and then it is dropped.
                            drop(tx.execute_unprepared(&sql).now_or_never());
                            StatusCode::from_u16(status).unwrap()
                        })
                        .await;
                    let soon = response.status().as_u16() == status;
                    assert!(
                        soon || asked.elapsed() >= Duration::from_secs(1),
                        "{kind:?}: {}",
                        response.status()
                    );
                    assert_eq!(
                        site.seen(["before", "stray"]).await,
                        [soon && status == 200; 2],
                        "{kind:?} {status}"
                    );
                    site.assert_whole().await;
                    soon
                },
            )
            .await;
        }
    }
}

/// The owner of the COMMIT that is running when the handler answers.
#[derive(Clone, Copy, Debug)]
enum Stray {
    /// The session's own, early.
    Own,
    /// A transaction's that the handler began.
    Begun,
    /// A savepoint's.
    Nested,
}

async fn stray_commit(site: &Site, stray: Stray, fails: bool) -> Response {
    site.call(async move |db: DbSession| match stray {
        Stray::Own => {
            let tx = db.tx();
            insert_item(&tx, "acknowledged").await;
            if fails {
                violate(&tx).await;
            }
            start(async move { tx.commit().await }).await;
        }
        Stray::Begun | Stray::Nested => {
            if matches!(stray, Stray::Nested) {
                db.tx();
            }
            let tx = db.begin().await.unwrap();
            insert_item(&tx, "acknowledged").await;
            if fails {
                violate(&tx).await;
            }
            start(tx.commit()).await;
        }
    })
    .await
}

#[tokio::test]
async fn h17_a_stray_commit_is_waited_for_and_its_failure_is_a_500() {
    // SQLite may answer at once.
    for kind in [Kind::Postgres, Kind::MySql] {
        for stray in [Stray::Own, Stray::Begun, Stray::Nested] {
            for fails in [false, true] {
                if fails && kind == Kind::MySql {
                    continue;
                }
                let (site, proxy) = Site::behind_a_proxy(kind).await;
                proxy.delay_replies(Duration::from_millis(5));
                if fails {
                    site.defer().await;
                }
                let response = stray_commit(&site, stray, fails).await;
                let case = format!("{kind:?} {stray:?} fails: {fails}");
                assert_eq!(
                    site.count("acknowledged").await,
                    i64::from(!fails),
                    "{case}"
                );
                assert_eq!(
                    response.status().as_u16(),
                    if fails { 500 } else { 200 },
                    "{case}"
                );
                assert_eq!(outcome(&response).is_committed(), !fails, "{case}");
                site.assert_whole().await;
            }
        }
    }
}

#[tokio::test]
async fn h17_a_later_commit_does_not_hide_one_that_failed_unseen() {
    for makes_good in [false, true] {
        let (site, proxy) = Site::behind_a_proxy(Kind::Postgres).await;
        let proxy = Arc::new(proxy);
        let held = proxy.clone();
        site.defer().await;
        let response = site
            .call(async move |tx: DbTx| {
                insert_item(&tx, "lost").await;
                violate(&tx).await;
                held.hold_back("COMMIT");
                let mut commit = Box::pin(tx.commit());
                assert!(
                    std::future::poll_fn(|cx| Poll::Ready(commit.poll_unpin(cx).is_pending()))
                        .await
                );
                drop(commit);
                held.let_go();
                insert_item(&tx, "later").await;
                tx.commit().await.unwrap_err();
                if makes_good {
                    // Told of it by now, the handler says that it was meant.
                    tx.rollback().await.unwrap();
                    insert_item(&tx, "last").await;
                }
            })
            .await;
        assert_eq!(
            response.status().as_u16(),
            if makes_good { 200 } else { 500 }
        );
        assert_eq!(
            site.seen(["lost", "later", "last"]).await,
            [false, false, makes_good]
        );
        site.assert_whole().await;
    }
}
