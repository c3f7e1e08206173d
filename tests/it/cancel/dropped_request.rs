//! G3, G5: a request dropped at every point where it waits. The pool is whole, the next request's write is
//! seen, and a transaction is there in full or not at all.

use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    task::Poll,
    time::Duration,
};

use axum::{Router, routing::any};
use futures_util::{FutureExt, StreamExt, future::BoxFuture};
use http::StatusCode;
use sea_orm::{
    ConnectionTrait, Database, DatabaseConnection, DbBackend, Statement, StreamTrait,
    TransactionTrait,
};
use tokio::time::timeout;
use tower::ServiceExt;
use tower_sea_orm::{DbSession, DbSessionLayer};

use crate::support::{
    database::{Kind, TestDb, count_items, insert_item, unique_name},
    futures::drop_at,
    pool::{assert_whole, lends, open_transactions, session_layer},
    requests::request,
    site::port_of,
    statements::{mark, marks},
    wait::{BOUND, eventually},
    wire::Proxy,
};

/// How many connections the pools have.
const SIZE: u32 = 2;

/// By how much the server's replies are delayed, so that there are many points to drop at.
const DELAY: Duration = Duration::from_millis(1);

/// The work of a request, and how far it got.
struct Work {
    /// Two rows that belong together.
    names: [String; 2],
    /// How many writes were acknowledged to the handler.
    acknowledged: AtomicU32,
}

impl Work {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            names: [unique_name(), unique_name()],
            acknowledged: AtomicU32::new(0),
        })
    }

    fn acknowledge(&self) {
        self.acknowledged.fetch_add(1, Ordering::SeqCst);
    }
}

/// A handler, and what may be in the database when it was dropped.
#[derive(Clone, Copy)]
struct Scenario {
    handler: fn(Arc<Work>, DbSession) -> BoxFuture<'static, ()>,
    /// Whether rows `[first, second]` are right after `acknowledged` writes; the last of `writes`
    /// is what the answer stands for.
    right: fn(rows: [bool; 2], acknowledged: u32) -> bool,
    writes: u32,
}

const READ: Scenario = Scenario {
    handler: |work, db| {
        async move {
            assert_eq!(count_items(&db, &work.names[0]).await, 0);
            assert_eq!(
                db.query_all_raw(rows(db.backend())).await.unwrap().len(),
                100
            );
            work.acknowledge();
        }
        .boxed()
    },
    right: |rows, _| rows == [false, false],
    writes: 1,
};

/// Every acknowledged write is there; one that was on its way may be.
const AUTOCOMMIT: Scenario = Scenario {
    handler: |work, db| {
        async move {
            for name in &work.names {
                insert_item(&db, name).await;
                work.acknowledge();
            }
        }
        .boxed()
    },
    right: |rows, acknowledged| match acknowledged {
        0 => !rows[1],
        1 => rows[0],
        _ => rows == [true, true],
    },
    writes: 2,
};

/// All or nothing; all once COMMIT was acknowledged.
const TRANSACTION: Scenario = Scenario {
    handler: |work, db| {
        async move {
            let transaction = db.begin().await.unwrap();
            for name in &work.names {
                insert_item(&transaction, name).await;
            }
            transaction.commit().await.unwrap();
            work.acknowledge();
        }
        .boxed()
    },
    right: |rows, acknowledged| rows[0] == rows[1] && (acknowledged == 0 || rows[0]),
    writes: 1,
};

/// Nothing, whatever happens: it is the rollback that is dropped.
const ROLLBACK: Scenario = Scenario {
    handler: |work, db| {
        async move {
            let transaction = db.begin().await.unwrap();
            insert_item(&transaction, &work.names[0]).await;
            transaction.rollback().await.unwrap();
            let transaction = db.begin().await.unwrap();
            insert_item(&transaction, &work.names[1]).await;
            drop(transaction);
            assert_eq!(count_items(&db, &work.names[1]).await, 0);
            work.acknowledge();
        }
        .boxed()
    },
    right: |rows, _| rows == [false, false],
    writes: 1,
};

/// All or nothing, the savepoint included.
const NESTED: Scenario = Scenario {
    handler: |work, db| {
        async move {
            let outer = db.begin().await.unwrap();
            insert_item(&outer, &work.names[0]).await;
            let inner = outer.begin().await.unwrap();
            insert_item(&inner, &work.names[1]).await;
            inner.commit().await.unwrap();
            let undone = outer.begin().await.unwrap();
            insert_item(&undone, &unique_name()).await;
            undone.rollback().await.unwrap();
            outer.commit().await.unwrap();
            work.acknowledge();
        }
        .boxed()
    },
    right: TRANSACTION.right,
    writes: 1,
};

/// A write, a stream half-read, a stream read to its end, in one transaction.
const STREAM: Scenario = Scenario {
    handler: |work, db| {
        async move {
            let transaction = db.begin().await.unwrap();
            insert_item(&transaction, &work.names[0]).await;
            for wanted in [3, 100] {
                let mut stream = transaction.stream_raw(rows(db.backend())).await.unwrap();
                let mut read = 0;
                while read < wanted {
                    stream.next().await.unwrap().unwrap();
                    read += 1;
                }
            }
            insert_item(&transaction, &work.names[1]).await;
            transaction.commit().await.unwrap();
            work.acknowledge();
        }
        .boxed()
    },
    right: TRANSACTION.right,
    writes: 1,
};

/// A query for 100 rows.
fn rows(backend: DbBackend) -> Statement {
    let sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100) SELECT i FROM n";
    Statement::from_string(backend, sql)
}

/// A pool and a layer over a slow network, or over SQLite itself.
struct Case {
    test: TestDb,
    db: DatabaseConnection,
    layer: DbSessionLayer,
    observer: Option<DatabaseConnection>,
    proxy: Option<Proxy>,
}

impl Case {
    async fn new(kind: Kind, size: u32) -> Self {
        let test = TestDb::new(kind).await;
        let observer = test.observer().await;
        let proxy = match kind {
            Kind::Postgres | Kind::MySql => Some(Proxy::start(port_of(test.url())).await),
            _ => None,
        };
        let db = connect(&test, proxy.as_ref(), size).await;
        let layer = session_layer(db.clone());
        Self {
            test,
            db,
            layer,
            observer,
            proxy,
        }
    }

    /// Starts anew with connections that have prepared nothing. An in-memory database keeps its own.
    async fn renew(&mut self) {
        if self.test.kind != Kind::SqliteMemory {
            self.db.close_by_ref().await.unwrap();
            self.db = connect(&self.test, self.proxy.as_ref(), SIZE).await;
            self.layer = session_layer(self.db.clone());
        }
    }

    fn view(&self) -> &DatabaseConnection {
        self.observer.as_ref().unwrap_or(&self.db)
    }

    fn app(&self, lazy: bool, scenario: Scenario, work: &Arc<Work>) -> Router {
        let work = work.clone();
        let handler = any(move |db: DbSession| (scenario.handler)(work, db));
        let layer = self.layer.clone();
        Router::new()
            .route("/", handler)
            .layer(if lazy { layer.lazy() } else { layer })
    }

    /// Drops the request after 1, 2, … pending polls until it gets its answer; returns how many
    /// times it was dropped.
    async fn drop_everywhere(&mut self, lazy: bool, fresh: bool, scenario: Scenario) -> usize {
        for pendings in 1.. {
            if fresh {
                self.renew().await;
            }
            let work = Work::new();
            let app = self.app(lazy, scenario, &work);
            let answer = drop_at(pendings, app.oneshot(request())).await;
            self.check(
                scenario,
                &work,
                &format!("dropped at pending point {pendings}"),
            )
            .await;
            if let Some(answer) = answer {
                assert_eq!(answer.unwrap().status(), StatusCode::OK);
                assert_eq!(work.acknowledged.load(Ordering::SeqCst), scenario.writes);
                return pendings - 1;
            }
        }
        unreachable!("a request ends")
    }

    async fn check(&self, scenario: Scenario, work: &Work, when: &str) {
        let pool = self.layer.pool();
        eventually("the session's connection came back", async || {
            let status = pool.status();
            (status.used, status.acquiring, status.pending) == (0, 0, 0)
        })
        .await;
        if let Some(observer) = &self.observer {
            assert_eq!(
                open_transactions(observer).await,
                0,
                "{when}: a transaction is open"
            );
        }
        let plain = unique_name();
        insert_item(&self.db, &plain).await;
        assert_eq!(
            count_items(self.view(), &plain).await,
            1,
            "{when}: what a plain user of the pool wrote"
        );
        let next = Work::new();
        let answer = self.app(false, AUTOCOMMIT, &next).oneshot(request());
        let answer = timeout(BOUND, answer)
            .await
            .expect("a connection for the next request")
            .unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{when}: the next request");
        assert_eq!(
            self.seen(&next).await,
            [true, true],
            "{when}: what the next request wrote"
        );
        let (seen, acknowledged) = (
            self.seen(work).await,
            work.acknowledged.load(Ordering::SeqCst),
        );
        assert!(
            (scenario.right)(seen, acknowledged),
            "{when}: {seen:?} after {acknowledged} acknowledged writes"
        );
    }

    /// Returns which of the rows others see.
    async fn seen(&self, work: &Work) -> [bool; 2] {
        [
            count_items(self.view(), &work.names[0]).await == 1,
            count_items(self.view(), &work.names[1]).await == 1,
        ]
    }
}

/// Opens a pool, through the proxy if there is one, and only then makes its replies slow.
async fn connect(test: &TestDb, proxy: Option<&Proxy>, size: u32) -> DatabaseConnection {
    let Some(proxy) = proxy else {
        return test.connect(size).await;
    };
    proxy.delay_replies(Duration::ZERO);
    let db = Database::connect(test.options_at(&proxy.url(test.url()), size)).await;
    proxy.delay_replies(DELAY);
    db.expect("a connection through the proxy")
}

/// Drops requests of one scenario everywhere, on new connections and on used ones.
async fn dropped_at_every_point(scenario: Scenario) {
    for kind in Kind::ALL {
        let mut case = Case::new(kind, SIZE).await;
        for (lazy, fresh) in [(false, true), (false, false), (true, true), (true, false)] {
            let before = if fresh {
                None
            } else {
                Some(marks(case.layer.pool()).await)
            };
            let points = case.drop_everywhere(lazy, fresh, scenario).await;
            eprintln!("{kind:?}, lazy: {lazy}, fresh: {fresh}: {points} points");
            // SQLite may answer before it is waited for; a server behind a slow network does not.
            assert!(
                points > 1 || case.proxy.is_none(),
                "{points} points are not enough"
            );
            // A session that lends may have had another one opened.
            if let Some(before) = before.filter(|_| !lends()) {
                assert_eq!(
                    marks(case.layer.pool()).await,
                    before,
                    "{kind:?}: a dropped request cost a connection"
                );
            }
        }
        assert_whole(&case.test, &case.db, SIZE).await;
    }
}

#[tokio::test]
async fn a_read_dropped_at_every_point_leaves_the_pool_whole() {
    dropped_at_every_point(READ).await;
}

#[tokio::test]
async fn a_write_dropped_at_every_point_is_kept_once_acknowledged() {
    dropped_at_every_point(AUTOCOMMIT).await;
}

#[tokio::test]
async fn a_transaction_dropped_at_every_point_is_all_or_nothing() {
    dropped_at_every_point(TRANSACTION).await;
}

#[tokio::test]
async fn a_rollback_dropped_at_every_point_is_seen_through() {
    dropped_at_every_point(ROLLBACK).await;
}

#[tokio::test]
async fn a_nested_transaction_dropped_at_every_point_is_all_or_nothing() {
    dropped_at_every_point(NESTED).await;
}

#[tokio::test]
async fn a_stream_dropped_at_every_point_leaves_the_transaction_all_or_nothing() {
    dropped_at_every_point(STREAM).await;
}

/// A statement dropped at every point *inside* of a request that goes on in its transaction.
#[tokio::test]
async fn a_statement_dropped_at_every_point_never_ends_its_transaction() {
    for kind in Kind::ALL {
        let case = Case::new(kind, SIZE).await;
        for pendings in 1..=8 {
            let names = [unique_name(), unique_name(), unique_name()];
            let session = case.layer.pool().session().await.unwrap();
            let transaction = session.begin().await.unwrap();
            insert_item(&transaction, &names[0]).await;
            let _ = drop_at(pendings, insert_item(&transaction, &names[1])).await;
            let _ = drop_at(pendings, transaction.begin()).await;
            let _ = drop_at(pendings, async {
                let mut stream = transaction
                    .stream_raw(rows(case.test.kind.backend()))
                    .await
                    .unwrap();
                while let Some(row) = stream.next().await {
                    row.unwrap();
                }
            })
            .await;
            insert_item(&transaction, &names[2]).await;
            if let Some(observer) = &case.observer {
                for name in &names {
                    assert_eq!(
                        count_items(observer, name).await,
                        0,
                        "nothing is written outside of the transaction"
                    );
                }
            }
            transaction.commit().await.unwrap();
            drop(session);
            let seen = [
                count_items(case.view(), &names[0]).await,
                count_items(case.view(), &names[2]).await,
            ];
            assert_eq!(
                seen,
                [1, 1],
                "{kind:?}, dropped at pending point {pendings}"
            );
        }
        assert_whole(&case.test, &case.db, SIZE).await;
    }
}

#[tokio::test]
async fn requests_dropped_while_they_wait_for_a_connection_cost_none() {
    for kind in Kind::ALL {
        let case = Case::new(kind, 1).await;
        let session = case.layer.pool().session().await.unwrap();
        let before = mark(&*session).await;
        for waits in 0..200 {
            let app = case.app(waits % 2 == 0, READ, &Work::new());
            assert!(
                drop_at(1, app.oneshot(request())).await.is_none(),
                "there is one connection"
            );
        }
        assert_eq!(case.layer.pool().status().pending, 0);
        drop(session);
        for waits in 0..200 {
            let session = case.layer.pool().session().await.unwrap();
            let app = case.app(waits % 2 == 0, READ, &Work::new());
            let mut waiting = Box::pin(app.oneshot(request()));
            assert!(poll_fn(|cx| Poll::Ready(waiting.poll_unpin(cx).is_pending())).await);
            // The connection is handed to somebody who never looks at it.
            drop(session);
            drop(waiting);
        }
        let session = case.layer.pool().session().await.unwrap();
        assert_eq!(mark(&*session).await, before, "{kind:?}");
        drop(session);
        assert_whole(&case.test, &case.db, 1).await;
    }
}

/// As above with the connection in the driver's pool: the wait is for the driver's own acquire.
#[tokio::test]
async fn requests_dropped_while_the_driver_acquires_cost_no_connection() {
    for kind in Kind::ALL {
        let case = Case::new(kind, 1).await;
        let before = mark(&*case.layer.pool().session().await.unwrap()).await;
        for round in 0..200 {
            let app = case.app(round % 2 == 0, READ, &Work::new());
            drop(drop_at(1, app.oneshot(request())).await);
            // At another moment of the driver's acquire each time.
            for _ in 0..round % 7 {
                tokio::task::yield_now().await;
            }
            if round % 20 == 0 {
                eventually("the driver's pool has the connection", async || {
                    case.layer.pool().status().acquiring == 0
                })
                .await;
            }
        }
        let session = timeout(BOUND, case.layer.pool().session())
            .await
            .expect("a connection")
            .unwrap();
        assert_eq!(mark(&*session).await, before, "{kind:?}");
        drop(session);
        assert_whole(&case.test, &case.db, 1).await;
    }
}
