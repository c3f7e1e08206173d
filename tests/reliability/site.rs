//! [`Site`]: the service on a database of its own behind a fault proxy, watched from beside the proxy.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::Router;
use futures_util::future::join_all;
use http::{HeaderValue, Response};
use sea_orm::{ConnectionTrait, Database, DatabaseConnection, DbBackend};
use tokio::time::timeout;
use tower::ServiceExt;
use tower_sea_orm::{DbSessionLayer, SessionPool};

use super::{
    faults::{FaultProxy, Wire},
    ledger::{Ledger, Note, schema},
    report::Row,
    service::{self, BROKEN},
    support::{
        database::{self, TestDb},
        pool::{in_mode, open_transactions},
        site::port_of,
        wait,
    },
    witness::Witness,
    work::{Court, Kind},
};

/// How long anything may take to be as it should once a fault is over: what is slow on a busy machine is not
/// broken, and what is broken stays so.
const PATIENCE: Duration = wait::BOUND;

pub struct Site {
    pub test: TestDb,
    pub proxy: FaultProxy,
    pub db: DatabaseConnection,
    pub app: Router,
    pub court: Arc<Court>,
    /// Somebody else, not behind the proxy.
    pub view: DatabaseConnection,
    pub size: u32,
    idle: Idle,
}

/// Tells whether a service holds no connection, and nobody waits for one.
pub type Idle = Box<dyn Fn() -> bool + Send + Sync>;

/// How a site differs from the usual one.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub size: u32,
    pub release_timeout: Duration,
    pub acquire_timeout: Duration,
    pub lazy: bool,
    pub transaction: bool,
    /// What runs for a client that has gone is cancelled on the server.
    pub cancel: bool,
    /// So many requests fit into the ledger before it grows.
    pub requests: usize,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            size: 2,
            release_timeout: Duration::from_secs(1),
            acquire_timeout: Duration::from_secs(5),
            lazy: false,
            transaction: false,
            cancel: false,
            requests: 0,
        }
    }
}

impl Site {
    /// On the shared server.
    pub async fn new(kind: database::Kind, plan: Plan) -> Self {
        Self::over(TestDb::new(kind).await, plan, |url| url, ours).await
    }

    /// With a change to the URL that the service connects by, and any service.
    pub async fn over(
        test: TestDb,
        plan: Plan,
        change: impl FnOnce(String) -> String,
        service: impl FnOnce(&Plan, DatabaseConnection, Arc<Court>) -> (Router, Idle),
    ) -> Self {
        let view = Database::connect(test.options(2))
            .await
            .expect("the database can be reached");
        for sql in schema(view.get_database_backend()) {
            view.execute_unprepared(sql).await.expect("a table");
        }
        let wire = if test.kind == database::Kind::Postgres {
            Wire::Postgres
        } else {
            Wire::MySql
        };
        let proxy = FaultProxy::start(port_of(test.url()), wire).await;
        let url = change(proxy.url(test.url()));
        let mut options = test.options_at(&url, plan.size);
        // The driver's own patience is no part of what is measured.
        options.acquire_timeout(Duration::from_secs(5));
        let db = Database::connect(options)
            .await
            .expect("the proxy can be reached");
        let court = Arc::new(Court {
            ledger: Ledger::with_capacity(plan.requests),
            witness: Witness::default(),
            in_transaction: plan.transaction,
        });
        let (app, idle) = service(&plan, db.clone(), court.clone());
        Self {
            test,
            proxy,
            db,
            app,
            court,
            view,
            size: plan.size,
            idle,
        }
    }

    /// Begins anew with an empty pool of this crate's.
    pub async fn renew(&mut self, plan: &Plan) {
        let mut options = self
            .test
            .options_at(&self.proxy.url(self.test.url()), plan.size);
        options
            .acquire_timeout(Duration::from_secs(5))
            .connect_lazy(true);
        let db = Database::connect(options)
            .await
            .expect("a pool without a connection");
        let before = std::mem::replace(&mut self.db, db.clone());
        (self.app, self.idle) = ours(plan, db, self.court.clone());
        let _ = timeout(PATIENCE, before.close()).await;
    }

    /// One request and its answer, noted in the ledger.
    pub async fn ask(&self, kind: Kind, status: u16) -> (i64, Note) {
        let number = self.court.ledger.open(kind.is_doomed(status));
        let response = self.send(kind, number, status).await;
        let note = service::meaning(kind, &response);
        self.court.ledger.note(number, note);
        (number, note)
    }

    /// Whether a request succeeds.
    pub async fn works(&self, kind: Kind) -> bool {
        let number = self.court.ledger.open(kind.is_doomed(200));
        let response = self.send(kind, number, 200).await;
        self.court
            .ledger
            .note(number, service::meaning(kind, &response));
        response.status() == 200 && !response.headers().contains_key(BROKEN)
    }

    /// The answer to a request, with its body read to the end.
    pub async fn send(&self, kind: Kind, number: i64, status: u16) -> Response<()> {
        let response = match self
            .app
            .clone()
            .oneshot(service::request(kind, number, status))
            .await
        {
            Ok(response) => response,
            Err(never) => match never {},
        };
        let (mut head, body) = response.into_parts();
        if axum::body::to_bytes(body, 1 << 20).await.is_err() {
            head.headers.insert(BROKEN, HeaderValue::from_static("yes"));
        }
        Response::from_parts(head, ())
    }

    /// Waits until a request succeeds and no session is out; how many failed before, if that came to be. On a
    /// busy machine one may take longer than a time-out.
    pub async fn settles(&self, kind: Kind) -> Option<u64> {
        let works = timeout(PATIENCE, async {
            let mut failed = 0;
            while !self.works(kind).await {
                failed += 1;
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            failed
        });
        let failed = works.await.ok()?;
        self.quiet().await.then_some(failed)
    }

    /// Waits until no session is out; whether that came to be.
    pub async fn quiet(&self) -> bool {
        let quiet = timeout(PATIENCE, async {
            while !(self.idle)() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
        quiet.await.is_ok()
    }

    /// Waits until as many requests as the pool has connections succeed at the same time; how long it
    /// took, if that came to be.
    pub async fn whole(&self) -> Option<Duration> {
        let started = Instant::now();
        let whole = timeout(PATIENCE, async {
            while !join_all((0..self.size).map(|_| self.works(Kind::Slow)))
                .await
                .into_iter()
                .all(|works| works)
            {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
        whole.await.ok().map(|()| started.elapsed())
    }

    /// Everything that must hold when nothing runs, added to `row`. What is wrong is counted, not asserted.
    pub async fn judge(&self, row: &mut Row) {
        row.leaked += u64::from(!self.comes_back().await);
        let open = async || open_transactions(&self.view).await;
        let closed = timeout(PATIENCE, async {
            while open().await > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        if closed.await.is_err() {
            row.open_transactions += open().await as u64;
        }
        row.audit.add(self.court.ledger.audit(&self.view).await);
        row.witnessed(&self.court.witness);
        row.counted(&self.court.ledger);
        row.connections += self.proxy.accepted();
    }

    /// Whether all of the driver's connections are idle in its pool again, and all can be had.
    async fn comes_back(&self) -> bool {
        let back = timeout(PATIENCE, async {
            while !(self.idle)() || !all_idle(&self.db) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        back.await.is_ok() && self.whole().await.is_some()
    }
}

/// This crate's service.
pub fn ours(plan: &Plan, db: DatabaseConnection, court: Arc<Court>) -> (Router, Idle) {
    let pool = SessionPool::builder(db)
        .release_timeout(plan.release_timeout)
        .acquire_timeout(plan.acquire_timeout);
    let pool = if plan.cancel {
        pool.cancel_running()
    } else {
        pool
    };
    let layer = DbSessionLayer::new(in_mode(pool).build().expect("settings that fit"));
    let layer = if plan.lazy { layer.lazy() } else { layer };
    let layer = if plan.transaction {
        layer.transaction()
    } else {
        layer
    };
    let pool = layer.pool().clone();
    let idle = move || {
        let status = pool.status();
        (status.used, status.acquiring, status.pending) == (0, 0, 0)
    };
    (service::app(layer, court), Box::new(idle))
}

/// Whether all of the driver's connections are idle in its pool.
pub fn all_idle(db: &DatabaseConnection) -> bool {
    let (size, idle) = match db.get_database_backend() {
        DbBackend::Postgres => {
            let pool = db.get_postgres_connection_pool();
            (pool.size(), pool.num_idle())
        }
        _ => {
            let pool = db.get_mysql_connection_pool();
            (pool.size(), pool.num_idle())
        }
    };
    size as usize == idle
}
