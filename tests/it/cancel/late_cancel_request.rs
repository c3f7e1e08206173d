//! G9: cancels that come late. A proxy holds them back until their statement has ended by itself.

use std::{
    collections::BTreeSet,
    pin::pin,
    time::{Duration, Instant},
};

use axum::{Router, body::Body, routing::any};
use futures_util::future::{Either, join_all, select};
use http::{Request, StatusCode};
use sea_orm::{ConnectionTrait, Database};
use tokio::time::timeout;
use tower::ServiceExt;
use tower_sea_orm::{DbSession, DbSessionLayer};

use crate::{
    cancel::{
        cancel_running::{LONG, leave, sleeps_undisturbed},
        cancel_running_under_load::kill_control,
    },
    support::{
        database::{Kind, SERVERS, TestDb},
        site::{BOUND, SIZE, Site, port_of, value},
        statements::{mark, marks, running, sleep},
        wait::{eventually, eventually_within, in_one_of},
        wire::Proxy,
    },
};

/// How long the statements take that are left: long enough to be seen and for a cancel to be under way, which
/// has four seconds in all.
const LEFT: f64 = 1.5;

/// How long a cancel is waited for at least.
const WAITED_FOR: Duration = Duration::from_secs(4);

/// Returns a part of the text of a cancel.
fn cancel_of(kind: Kind) -> &'static str {
    if kind == Kind::Postgres {
        "pg_cancel_backend"
    } else {
        "KILL QUERY"
    }
}

/// From here on, this test's log is printed, which a failed one shows.
fn print_log() {
    let levels = tracing_subscriber::EnvFilter::new("tower_sea_orm=debug");
    // A second one in the same process is of no use.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(levels)
        .with_test_writer()
        .try_init();
}

/// A site that has one connection, so that whatever comes next runs on it.
async fn one_connection(kind: Kind, transaction: bool) -> (Site, Proxy) {
    print_log();
    let test = TestDb::new(kind).await;
    let proxy = Proxy::start(port_of(test.url())).await;
    let db = Database::connect(test.options_at(&proxy.url(test.url()), 1))
        .await
        .unwrap();
    let site = Site::with(test, db, 1)
        .await
        .pooled(|pool| pool.cancel_running().acquire_timeout(BOUND));
    let site = if transaction {
        site.layered(DbSessionLayer::transaction)
    } else {
        site
    };
    (site, proxy)
}

/// The number of the only connection.
async fn only(site: &Site) -> i64 {
    mark(&*site.layer.pool().session().await.unwrap()).await
}

/// Such a site, whose connection's statement has been left and has ended while its cancel is held back; and
/// the connection's number.
async fn with_a_late_cancel(kind: Kind, transaction: bool) -> (Site, Proxy, i64) {
    let (site, proxy) = one_connection(kind, transaction).await;
    let before = only(&site).await;
    proxy.hold_back(cancel_of(kind));
    leave(&site, site.layer.clone(), sleep(kind, LEFT)).await;
    ended(&site, &proxy).await;
    (site, proxy, before)
}

/// Waits until the statement has ended whose cancel is held back.
async fn ended(site: &Site, proxy: &Proxy) {
    eventually("the cancel is on its way", async || proxy.held() == 1).await;
    eventually("the statement has ended", async || {
        running(site.view(), "sleep(").await == 0
    })
    .await;
}

/// A request that must not be hit by the cancel of the one before; `meanwhile` lets that go.
async fn innocent(site: &Site, meanwhile: impl AsyncFnOnce()) {
    let kind = site.kind();
    let app = Router::new()
        .route(
            "/",
            any(async move |db: DbSession| {
                if sleeps_undisturbed(&db, kind, 0.9).await {
                    StatusCode::OK
                } else {
                    StatusCode::CONFLICT
                }
            }),
        )
        .layer(site.layer.clone());
    let request = tokio::spawn(app.oneshot(Request::new(Body::empty())));
    meanwhile().await;
    let answer = timeout(BOUND, request)
        .await
        .expect("no hang")
        .unwrap()
        .unwrap();
    assert_eq!(
        answer.status(),
        StatusCode::OK,
        "{kind:?}: an innocent request was hit"
    );
    site.assert_whole().await;
}

#[tokio::test]
async fn a_connection_is_not_reused_until_its_cancel_is_answered() {
    for kind in SERVERS {
        for transaction in [false, true] {
            in_one_of(10, "the cancel is let go in time", async || {
                let asked = Instant::now();
                let (site, proxy, before) = with_a_late_cancel(kind, transaction).await;
                let mut in_time = false;
                innocent(&site, async || {
                    // It waits; if it did not, it would run by then.
                    let runs = eventually("it runs", async || {
                        running(site.view(), "sleep(0.9)").await > 0
                    });
                    let runs = timeout(Duration::from_millis(300), runs).await.is_ok();
                    proxy.let_go();
                    in_time = asked.elapsed() < WAITED_FOR;
                    assert!(
                        !runs || !in_time,
                        "{kind:?}: it runs on a connection whose cancel is under way"
                    );
                })
                .await;
                assert!(
                    !in_time || only(&site).await == before,
                    "{kind:?}: it is the same"
                );
                in_time
            })
            .await;
        }
    }
}

#[tokio::test]
async fn a_connection_whose_cancel_is_not_answered_is_not_reused() {
    for kind in SERVERS {
        for transaction in [false, true] {
            let (site, proxy, before) = with_a_late_cancel(kind, transaction).await;
            innocent(&site, async || {
                let runs = async || running(site.view(), "sleep(0.9)").await > 0;
                eventually_within(BOUND, "nobody waits for an answer any more", runs).await;
                proxy.let_go();
            })
            .await;
            assert_ne!(only(&site).await, before, "{kind:?}: it is another one");
        }
    }
}

/// The server or the network ends the connection for cancels: requests sent on it may still arrive.
#[tokio::test]
async fn a_connection_whose_cancel_request_was_lost_is_not_reused() {
    for kind in SERVERS {
        for cut in [false, true] {
            let (site, proxy, before) = with_a_late_cancel(kind, false).await;
            if cut {
                // And no other can be opened.
                proxy.refuse(true);
                proxy.forsake();
            } else {
                kill_control(&site, &BTreeSet::from([before])).await;
            }
            eventually("no session is out", async || {
                site.layer.pool().status().used == 0
            })
            .await;
            proxy.refuse(false);
            proxy.let_go();
            assert_ne!(
                only(&site).await,
                before,
                "{kind:?}, {cut}: it is another one"
            );
            site.assert_whole().await;
        }
    }
}

/// What a server takes for a statement's cancel when it comes between two of them, is the server's own
/// affair: MariaDB and PostgreSQL forget it, MySQL may keep it for the next.
#[tokio::test]
async fn after_a_late_cancel_a_connection_runs_something_of_its_own_first() {
    for kind in SERVERS {
        let (site, proxy) = one_connection(kind, false).await;
        let session = site.layer.pool().session().await.unwrap();
        // From here on it is prepared.
        assert_eq!(value::<i32>(&*session, "SELECT 1").await, 1);
        proxy.reset_count();
        assert_eq!(value::<i32>(&*session, "SELECT 1").await, 1);
        assert_eq!(proxy.requests(), 1, "{kind:?}");
        proxy.hold_back(cancel_of(kind));
        {
            let statement = session.query_all_raw(sleep(kind, LEFT));
            let seen = pin!(eventually("it runs", async || running(
                site.view(),
                "sleep("
            )
            .await
                > 0));
            let left = select(Box::pin(statement), seen).await;
            assert!(matches!(left, Either::Right(_)), "{kind:?}: it has ended");
        }
        ended(&site, &proxy).await;
        proxy.reset_count();
        proxy.let_go();
        assert_eq!(value::<i32>(&*session, "SELECT 1").await, 1);
        assert_eq!(
            proxy.requests(),
            2,
            "{kind:?}: one for the late cancel, one for the statement"
        );
        drop(session);
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn a_cancel_may_take_as_long_as_that_of_mariadb() {
    let kind = Kind::MySql;
    in_one_of(10, "the cancel is let go in time", async || {
        let (site, proxy) = one_connection(kind, false).await;
        let before = only(&site).await;
        proxy.hold_back(cancel_of(kind));
        let left = leave(&site, site.layer.clone(), sleep(kind, LONG)).await;
        eventually("the cancel is on its way", async || proxy.held() == 1).await;
        // Two seconds, and some more.
        tokio::time::sleep(Duration::from_millis(2500)).await;
        proxy.let_go();
        eventually("no session is out", async || {
            site.layer.pool().status().used == 0
        })
        .await;
        let in_time = left.elapsed() < WAITED_FOR;
        assert!(
            !in_time || only(&site).await == before,
            "the connection was closed"
        );
        site.assert_whole().await;
        in_time
    })
    .await;
}

#[tokio::test]
async fn an_unanswered_cancel_costs_one_connection_and_not_the_whole_batch() {
    let kind = Kind::MySql;
    let (site, proxy) = Site::behind_a_proxy(kind).await;
    let site = site.pooled(|pool| pool.cancel_running().acquire_timeout(BOUND));
    let before = marks(site.layer.pool()).await;
    let accepted = proxy.accepted();
    // While it looks who is at it for the first, the others come in.
    proxy.hold_back("COMMAND <> 'Sleep'");
    let app = Router::new()
        .route(
            "/",
            any(async move |db: DbSession| drop(db.query_all_raw(sleep(kind, LONG)).await)),
        )
        .layer(site.layer.clone());
    let requests: Vec<_> = (0..SIZE)
        .map(|_| Box::pin(app.clone().oneshot(Request::new(Body::empty()))))
        .collect();
    let mut requests = join_all(requests);
    let all_run = pin!(eventually("all run", async || running(
        site.view(),
        "sleep("
    )
    .await
        == SIZE as usize));
    assert!(
        matches!(select(&mut requests, all_run).await, Either::Right(_)),
        "a request has ended"
    );
    drop(requests);
    eventually("the first is asked for", async || proxy.held() == 1).await;
    // The lowest number: it begins no other one's.
    let slow = before.first().unwrap();
    proxy.hold_back(&format!("KILL QUERY {slow}"));
    eventually("no session is out", async || {
        site.layer.pool().status().used == 0
    })
    .await;
    proxy.let_go();
    eventually("nothing runs", async || {
        running(site.view(), "sleep(").await == 0
    })
    .await;
    assert_eq!(
        proxy.accepted() - accepted,
        1,
        "the way for cancels is opened again"
    );
    let mut kept = before.clone();
    kept.remove(slow);
    let after = marks(site.layer.pool()).await;
    assert!(
        after.is_superset(&kept) && !after.contains(slow),
        "{after:?} of {before:?}, without {slow}"
    );
    site.assert_whole().await;
}
