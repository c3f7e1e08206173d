//! G5, G7: a request dropped at every point where it waits, its COMMIT included.
//! Acknowledged is present, rolled back is absent, cancelled is all or nothing, and the hooks know which.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use axum::Router;
use futures_util::{StreamExt, future::BoxFuture};
use http::{Request, StatusCode};
use sea_orm::{Database, Statement, TransactionTrait};
use tower::ServiceExt;
use tower_sea_orm::{DbTx, Outcome};

use crate::support::{
    database::{Kind, count_items, insert_item, unique_name},
    futures::drop_at,
    pool::{open_transactions, session_layer},
    site::{DEFERRING, SIZE, Site, call, outcome, violate},
    wait::eventually,
    wire::Proxy,
};

/// By how much the server's replies are delayed, so that there are many points to drop at.
const DELAY: Duration = Duration::from_millis(1);

/// A site over a slow network, or over SQLite itself.
async fn slow_site(kind: Kind) -> (Site, Option<Proxy>) {
    match kind {
        Kind::Postgres | Kind::MySql => {
            let (site, proxy) = Site::behind_a_proxy(kind).await;
            proxy.delay_replies(DELAY);
            (site, Some(proxy))
        }
        _ => (Site::new(kind).await, None),
    }
}

/// The work of a request, and the reports of its hooks.
#[derive(Default)]
struct Trace {
    names: [String; 2],
    registered: AtomicU32,
    committed: AtomicU32,
    rolled_back: AtomicU32,
}

impl Trace {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            names: [unique_name(), unique_name()],
            ..Self::default()
        })
    }

    fn watch(self: &Arc<Self>, tx: &DbTx) {
        let (after, before) = (self.clone(), self.clone());
        tx.after_commit(async move {
            let _ = after.committed.fetch_add(1, Ordering::SeqCst);
        })
        .unwrap();
        tx.after_rollback(async move {
            let _ = before.rolled_back.fetch_add(1, Ordering::SeqCst);
        })
        .unwrap();
        self.registered.store(1, Ordering::SeqCst);
    }

    fn hooks(&self) -> [u32; 3] {
        [&self.registered, &self.committed, &self.rolled_back]
            .map(|count| count.load(Ordering::SeqCst))
    }
}

type Work = fn(Arc<Trace>, DbTx) -> BoxFuture<'static, StatusCode>;

const PLAIN: Work = |trace, tx| {
    Box::pin(async move {
        trace.watch(&tx);
        for name in &trace.names {
            insert_item(&tx, name).await;
        }
        StatusCode::OK
    })
};

const NOT_FOUND: Work = |trace, tx| {
    Box::pin(async move {
        PLAIN(trace, tx).await;
        StatusCode::NOT_FOUND
    })
};

const REFUSED: Work = |trace, tx| {
    Box::pin(async move {
        violate(&tx).await;
        PLAIN(trace, tx).await
    })
};

/// Savepoints, a stream half-read, and one transaction left to be rolled back with the answer.
const NESTED: Work = |trace, tx| {
    Box::pin(async move {
        trace.watch(&tx);
        insert_item(&tx, &trace.names[0]).await;
        let inner = tx.begin().await.unwrap();
        insert_item(&inner, &trace.names[1]).await;
        inner.commit().await.unwrap();
        let sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100) SELECT i FROM n";
        let mut rows = tx
            .rows(Statement::from_string(tx.backend(), sql))
            .await
            .unwrap();
        rows.next().await.unwrap().unwrap();
        drop(rows);
        let undone = tx.begin().await.unwrap();
        insert_item(&undone, &unique_name()).await;
        StatusCode::OK
    })
};

/// All that counts is committed early.
const EARLY: Work = |trace, tx| {
    Box::pin(async move {
        PLAIN(trace, tx.clone()).await;
        tx.commit().await.unwrap();
        insert_item(&tx, &unique_name()).await;
        StatusCode::NOT_FOUND
    })
};

fn app(site: &Site, lazy: bool, work: Work, trace: &Arc<Trace>) -> Router {
    let trace = trace.clone();
    let layer = if lazy {
        site.layer.clone().lazy()
    } else {
        site.layer.clone()
    };
    Router::new()
        .route("/", axum::routing::any(move |tx: DbTx| work(trace, tx)))
        .layer(layer)
}

/// Drops the request after 1, 2, … pending polls until it gets its answer.
async fn dropped_everywhere(kinds: &[Kind], work: Work, status: u16, present: bool) {
    for &kind in kinds {
        let (mut site, proxy) = slow_site(kind).await;
        if kind != Kind::MySql {
            site.defer().await;
        }
        for (lazy, fresh) in [(false, true), (false, false), (true, false)] {
            for pendings in 1.. {
                if let Some(proxy) = proxy.as_ref().filter(|_| fresh) {
                    site = renewed(site, proxy).await;
                }
                let trace = Trace::new();
                let request =
                    app(&site, lazy, work, &trace).oneshot(Request::new(axum::body::Body::empty()));
                let answer = drop_at(pendings, request).await.map(Result::unwrap);
                let case =
                    format!("{kind:?} lazy: {lazy}, fresh: {fresh}, pending point {pendings}");
                let [first, second] = [trace.names[0].as_str(), trace.names[1].as_str()];
                if let Some(answer) = &answer {
                    assert_eq!(
                        site.seen([first, second]).await,
                        [present; 2],
                        "{case}: at once"
                    );
                    assert_eq!(answer.status().as_u16(), status, "{case}");
                    assert_eq!(outcome(answer).is_committed(), status == 200, "{case}");
                }
                settled(&site, &case).await;
                let seen = site.seen([first, second]).await;
                assert_eq!(seen[0], seen[1], "{case}: all or nothing");
                eventually("one of the hooks ran", async || {
                    let [registered, committed, rolled_back] = trace.hooks();
                    let expected = if seen[0] {
                        [committed, rolled_back]
                    } else {
                        [rolled_back, committed]
                    };
                    expected == [registered, 0]
                })
                .await;
                if answer.is_some() {
                    eprintln!("{case}");
                    break;
                }
            }
        }
        site.assert_whole().await;
    }
}

/// The same site with connections that have prepared nothing yet.
async fn renewed(site: Site, proxy: &Proxy) -> Site {
    site.db.close_by_ref().await.unwrap();
    proxy.delay_replies(Duration::ZERO);
    let db = Database::connect(site.test.options_at(&proxy.url(site.test.url()), SIZE))
        .await
        .unwrap();
    proxy.delay_replies(DELAY);
    Site {
        layer: session_layer(db.clone()),
        db,
        ..site
    }
}

async fn settled(site: &Site, case: &str) {
    let pool = site.layer.pool();
    eventually("the session's connection came back", async || {
        let status = pool.status();
        (status.used, status.acquiring, status.pending) == (0, 0, 0)
    })
    .await;
    if let Some(observer) = &site.observer {
        assert_eq!(
            open_transactions(observer).await,
            0,
            "{case}: a transaction is open"
        );
    }
    let next = unique_name();
    insert_item(&site.db, &next).await;
    assert_eq!(
        site.count(&next).await,
        1,
        "{case}: what a plain user of the pool wrote"
    );
}

#[tokio::test]
async fn a_request_that_commits_is_dropped_at_every_point() {
    dropped_everywhere(&Kind::ALL, PLAIN, 200, true).await;
}

#[tokio::test]
async fn a_request_that_rolls_back_is_dropped_at_every_point() {
    dropped_everywhere(&Kind::ALL, NOT_FOUND, 404, false).await;
}

#[tokio::test]
async fn a_request_whose_commit_is_refused_is_dropped_at_every_point() {
    dropped_everywhere(&DEFERRING, REFUSED, 500, false).await;
}

#[tokio::test]
async fn a_request_with_savepoints_is_dropped_at_every_point() {
    dropped_everywhere(&Kind::ALL, NESTED, 200, true).await;
}

#[tokio::test]
async fn a_request_that_commits_early_is_dropped_at_every_point() {
    dropped_everywhere(&Kind::ALL, EARLY, 404, true).await;
}

#[tokio::test]
async fn h17_a_commit_dropped_at_every_point_is_seen_through() {
    for (kind, fails) in Kind::ALL
        .map(|kind| (kind, false))
        .into_iter()
        .chain(DEFERRING.map(|kind| (kind, true)))
    {
        let (site, proxy) = slow_site(kind).await;
        if fails {
            site.defer().await;
        }
        let trace_points = if proxy.is_some() { 8 } else { 4 };
        for pendings in 1..=trace_points {
            for ends_well in [true, false] {
                let trace = Trace::new();
                let names = trace.names.clone();
                let observer = site.observer.clone();
                let dropped = Arc::new(AtomicU32::new(0));
                let request = site.app({
                    let (trace, dropped) = (trace.clone(), dropped.clone());
                    async move |tx: DbTx| {
                        insert_item(&tx, &trace.names[0]).await;
                        if fails {
                            violate(&tx).await;
                        }
                        match drop_at(pendings, tx.commit()).await {
                            None => dropped.store(1, Ordering::SeqCst),
                            Some(result) => assert_eq!(result.is_err(), fails),
                        }
                        insert_item(&tx, &trace.names[1]).await;
                        trace.watch(&tx);
                        if let Some(observer) = &observer {
                            let seen = count_items(observer, &trace.names[1]).await;
                            assert_eq!(seen, 0, "it waits for the transaction's end");
                        }
                        if ends_well {
                            StatusCode::OK
                        } else {
                            StatusCode::NOT_FOUND
                        }
                    }
                });
                let response = call(request).await;
                let seen = site.seen([names[0].as_str(), names[1].as_str()]).await;
                let told = dropped.load(Ordering::SeqCst) == 0;
                let case = format!(
                    "{kind:?} fails: {fails}, pending point {pendings}, told: {told}, well: {ends_well}"
                );
                let status = response.status().as_u16();
                match (fails, ends_well) {
                    (false, true) => assert_eq!((status, seen), (200, [true, true]), "{case}"),
                    (false, false) => assert_eq!((status, seen), (404, [true, false]), "{case}"),
                    // Told of it, the handler goes on at its own risk, and the next commit stands.
                    (true, true) if told => {
                        assert_eq!((status, seen), (200, [false, true]), "{case}")
                    }
                    (true, true) => assert_eq!((status, seen), (500, [false, false]), "{case}"),
                    (true, false) => assert_eq!((status, seen), (404, [false, false]), "{case}"),
                }
                assert!(response.extensions().get::<Outcome>().is_some());
                eventually("one of the hooks ran", async || {
                    let [_, committed, rolled_back] = trace.hooks();
                    [committed, rolled_back] == [u32::from(seen[1]), u32::from(!seen[1])]
                })
                .await;
            }
        }
        site.assert_whole().await;
    }
}
