//! One way out of a request, taken on every kind of database, eager and lazy.
//!
//! The requests write one row that stays and one in a transaction that is never committed, and leave
//! the rest to the way out.

use std::{
    convert::Infallible,
    future::{pending, poll_fn},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
};

use axum::{Router, body::Body, handler::Handler, routing::any};
use futures_util::{
    FutureExt, StreamExt,
    future::{BoxFuture, join, join_all},
};
use http::{Response, StatusCode};
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DbBackend, DbErr, Statement, StreamTrait, TransactionTrait,
};
use tokio::{
    sync::{Barrier, Notify},
    time::timeout,
};
use tower::ServiceExt;
use tower_sea_orm::{DbSession, DbSessionLayer, Error, SessionTransaction};

use crate::support::{
    database::{Kind, TestDb, count_items, insert_item, unique_name},
    pool::{assert_whole, lends, session_layer},
    requests::request,
    statements::marks,
    wait::{BOUND, eventually},
};

/// How many connections the pools have.
pub const SIZE: u32 = 2;

/// Takes `way` on every kind of database, eager and lazy; each time the pool must be whole after it.
pub async fn everywhere(way: impl AsyncFn(&Case<'_>)) {
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        for lazy in [false, true] {
            eprintln!("{kind:?}, lazy: {lazy}");
            let case = Case::new(&test, lazy).await;
            let before = marks(case.layer.pool()).await;
            eventually("no session is out", async || {
                case.layer.pool().status().used == 0
            })
            .await;
            way(&case).await;
            case.assert_whole().await;
            // A session that lends may have had another one opened.
            if !lends() {
                assert_eq!(
                    marks(case.layer.pool()).await,
                    before,
                    "no connection was closed for it"
                );
            }
            case.close().await;
        }
    }
}

/// A private pool on one kind of database, and a layer over it.
pub struct Case<'t> {
    pub test: &'t TestDb,
    pub db: DatabaseConnection,
    pub layer: DbSessionLayer,
    pub writes: Arc<Writes>,
}

impl<'t> Case<'t> {
    pub async fn new(test: &'t TestDb, lazy: bool) -> Self {
        let db = test.connect(SIZE).await;
        let layer = session_layer(db.clone());
        let layer = if lazy { layer.lazy() } else { layer };
        Self {
            test,
            db,
            layer,
            writes: Arc::default(),
        }
    }

    pub fn writes(&self) -> Arc<Writes> {
        self.writes.clone()
    }

    /// The service: `handler` under the layer.
    pub fn app<H, T>(&self, handler: H) -> Router
    where
        H: Handler<T, ()>,
        T: 'static,
    {
        Router::new()
            .route("/", any(handler))
            .layer(self.layer.clone())
    }

    /// Asserts that nothing of the request is left but the row that stays.
    ///
    /// The plain users of the pool come first: a session would mend what another one broke.
    pub async fn assert_whole(&self) {
        assert_whole(self.test, &self.db, SIZE).await;
        eventually("no session is out", async || {
            self.layer.pool().status().used == 0
        })
        .await;
        self.assert_serves().await;
        let observer = self.test.observer().await;
        let view = observer.as_ref().unwrap_or(&self.db);
        let Writes {
            kept,
            lost,
            written,
            ..
        } = &*self.writes;
        if written.load(Ordering::SeqCst) {
            assert_eq!(
                count_items(view, kept).await,
                1,
                "what was written outside of a transaction is there"
            );
        }
        assert_eq!(
            count_items(view, lost).await,
            0,
            "what nobody committed is not there"
        );
        if let Some(observer) = observer {
            let _ = observer.close().await;
        }
    }

    /// Closes the pool, unless the database would be gone with it.
    pub async fn close(&self) {
        if self.test.kind != Kind::SqliteMemory {
            self.db.close_by_ref().await.unwrap();
        }
    }

    /// Asserts that as many next requests as there are connections run at once, and that others see
    /// what they write.
    pub async fn assert_serves(&self) {
        let limit = self.layer.pool().status().max;
        let together = Arc::new(Barrier::new(limit as usize));
        let names: Vec<String> = (0..limit).map(|_| unique_name()).collect();
        let requests = names.iter().map(|name| {
            let (name, together) = (name.clone(), together.clone());
            let app = self.app(move |db: DbSession| async move {
                insert_item(&db, &name).await;
                together.wait().await;
            });
            app.oneshot(request())
        });
        let answers = timeout(BOUND, join_all(requests))
            .await
            .expect("the next requests have a connection each");
        for answer in answers {
            assert_eq!(answer.unwrap().status(), StatusCode::OK, "a next request");
        }
        let observer = self.test.observer().await;
        let view = observer.as_ref().unwrap_or(&self.db);
        for name in &names {
            assert_eq!(
                count_items(view, name).await,
                1,
                "others see what the next request writes"
            );
        }
        if let Some(observer) = observer {
            let _ = observer.close().await;
        }
    }
}

/// The writes of a request before its way out.
#[derive(Debug)]
pub struct Writes {
    pub kept: String,
    pub lost: String,
    /// `kept` was acknowledged.
    pub written: AtomicBool,
    /// Told when the handler is where the way out finds it.
    pub reached: Notify,
    /// Told when the handler is gone, returned or dropped.
    pub left: Notify,
}

impl Default for Writes {
    fn default() -> Self {
        Self {
            kept: unique_name(),
            lost: unique_name(),
            written: AtomicBool::new(false),
            reached: Notify::new(),
            left: Notify::new(),
        }
    }
}

impl Writes {
    /// Writes the row that stays, then the other one in a transaction that is left open.
    pub async fn write(&self, db: &DbSession) -> SessionTransaction {
        insert_item(db, &self.kept).await;
        self.written.store(true, Ordering::SeqCst);
        let transaction = db.begin().await.expect("a transaction");
        insert_item(&transaction, &self.lost).await;
        transaction
    }

    pub fn is_written(&self) -> bool {
        self.written.load(Ordering::SeqCst)
    }

    pub fn reach(&self) {
        self.reached.notify_one();
    }

    pub async fn reached(&self) {
        timeout(BOUND, self.reached.notified())
            .await
            .expect("the handler got there");
    }

    pub async fn left(&self) {
        timeout(BOUND, self.left.notified())
            .await
            .expect("the handler is gone");
    }

    /// Tells `left` when it is dropped.
    pub fn on_leaving(self: &Arc<Self>) -> Leaving {
        Leaving(self.clone())
    }
}

pub struct Leaving(pub Arc<Writes>);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.left.notify_one();
    }
}

/// A query that takes about 0.3 seconds on the server.
pub async fn run_slow<C: ConnectionTrait>(db: &C) -> Result<(), DbErr> {
    let backend = db.get_database_backend();
    let sql = match backend {
        DbBackend::Postgres => "SELECT pg_sleep(0.3)",
        DbBackend::MySql => "SELECT SLEEP(0.3)",
        _ => {
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 400000) SELECT count(*) FROM n"
        }
    };
    db.query_all_raw(Statement::from_string(backend, sql))
        .await
        .map(drop)
}

/// A query for `500` rows.
pub fn rows(backend: DbBackend) -> Statement {
    let sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500) SELECT i FROM n";
    Statement::from_string(backend, sql)
}

/// Returns whether a statement was told that its session is closed.
pub fn is_closed<T>(result: &Result<T, DbErr>) -> bool {
    let error = result.as_ref().err().and_then(Error::of);
    error.is_some_and(|error| error.is_session_closed())
}

/// Polls `future` once; it must not be ready.
pub async fn start<F: Future + Unpin>(future: &mut F) {
    let ready = poll_fn(|cx| Poll::Ready(future.poll_unpin(cx).is_ready())).await;
    assert!(!ready, "it takes longer than one poll");
}

/// The work in the middle of which a handler is, with its transaction open.
#[derive(Debug, Clone, Copy)]
pub enum Doing {
    /// Nothing: its connection is idle.
    Nothing,
    /// One statement.
    Querying,
    /// One statement, and another one waits its turn.
    Queueing,
    /// A stream, half-read.
    Streaming,
}

impl Doing {
    pub const ALL: [Self; 4] = [
        Self::Nothing,
        Self::Querying,
        Self::Queueing,
        Self::Streaming,
    ];
}

/// A handler that never returns by itself, and is found in the middle of something.
pub async fn stay(doing: Doing, writes: Arc<Writes>, db: DbSession) {
    let _leaving = writes.on_leaving();
    let transaction = writes.write(&db).await;
    match doing {
        Doing::Nothing => writes.reach(),
        Doing::Querying => {
            let mut query = pin!(run_slow(&transaction));
            start(&mut query).await;
            writes.reach();
            let _ = query.await;
        }
        Doing::Queueing => {
            let (mut first, mut second) =
                (pin!(run_slow(&transaction)), pin!(run_slow(&transaction)));
            start(&mut first).await;
            start(&mut second).await;
            writes.reach();
            let _ = join(first, second).await;
        }
        Doing::Streaming => {
            let mut stream = transaction.stream_raw(rows(db.backend())).await.unwrap();
            stream.next().await.unwrap().unwrap();
            writes.reach();
            pending::<()>().await;
        }
    }
    pending().await
}

pub type Answer = Result<Response<Body>, Infallible>;

/// A request whose handler is in the middle of something.
pub async fn half_way(case: &Case<'_>, doing: Doing) -> BoxFuture<'static, Answer> {
    let writes = case.writes();
    let app = case.app(move |db: DbSession| stay(doing, writes, db));
    let mut answer = app.oneshot(request()).boxed();
    tokio::select! {
        biased;
        _ = &mut answer => panic!("a handler that stays has returned"),
        () = case.writes.reached() => {}
    }
    answer
}
