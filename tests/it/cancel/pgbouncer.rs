//! G9: `cancel_running` behind PgBouncer in transaction mode, where a server process belongs to a connection for
//! one transaction only.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{Router, body::Body, routing::any};
use futures_util::future::{Either, join_all, select};
use http::Request;
use sea_orm::{ConnectionTrait, Database, DatabaseConnection, TransactionTrait};
use tokio::time::timeout;
use tower::ServiceExt;
use tower_sea_orm::{DbSession, DbSessionLayer, PoolSession, SessionPool};

use crate::{
    cancel::cancel_running::LONG,
    support::{
        bouncer::Bouncer,
        database::{Kind, TestDb, count_items, insert_item, unique_name},
        site::{BOUND, port_of},
        statements::{mark, running, sleep},
        wait::eventually,
    },
};

/// How many connections the pool of the service has, and the proxy to the server.
const SIZE: u32 = 4;
const SHARED: u32 = 2;

struct Shared {
    test: TestDb,
    observer: DatabaseConnection,
    layer: DbSessionLayer,
    _bouncer: Bouncer,
}

impl Shared {
    async fn new() -> Self {
        Self::with(SHARED).await
    }

    /// With so many connections between the proxy and the server.
    async fn with(connections: u32) -> Self {
        let test = TestDb::new(Kind::Postgres).await;
        let observer = test.observer().await.unwrap();
        let bouncer = Bouncer::start(port_of(test.url()), connections);
        let url = test.url().replace(
            &format!(":{}/", port_of(test.url())),
            &format!(":{}/", bouncer.port()),
        );
        // PgBouncer knows of prepared statements from 1.21 on; before, a pool must not keep any.
        let url = format!("{url}?statement-cache-capacity=0");
        let db = Database::connect(test.options_at(&url, SIZE))
            .await
            .unwrap();
        let layer = DbSessionLayer::new(
            SessionPool::builder(db)
                .cancel_running()
                .acquire_timeout(BOUND)
                .build()
                .unwrap(),
        );
        Self {
            test,
            observer,
            layer,
            _bouncer: bouncer,
        }
    }

    async fn session(&self) -> PoolSession {
        self.layer.pool().session().await.unwrap()
    }

    /// Drops a request in its statement, and waits until its slot is free.
    async fn leave(&self, layer: DbSessionLayer, seconds: f64) {
        let app = Router::new()
            .route(
                "/",
                any(async move |db: DbSession| {
                    drop(db.query_all_raw(sleep(Kind::Postgres, seconds)).await)
                }),
            )
            .layer(layer);
        let request = Box::pin(app.oneshot(Request::new(Body::empty())));
        let seen = pin!(eventually("the statement runs", async || running(
            &self.observer,
            "sleep("
        )
        .await
            > 0));
        let Either::Right(((), request)) = select(request, seen).await else {
            panic!("the request has ended")
        };
        drop(request);
        eventually("the slot is free", async || {
            self.layer.pool().status().used == 0
        })
        .await;
    }
}

#[tokio::test]
async fn behind_a_sharing_proxy_statements_are_stopped_in_transactions_only() {
    let shared = Shared::new().await;
    for _ in 0..3 {
        shared.leave(shared.layer.clone().transaction(), LONG).await;
        assert_eq!(running(&shared.observer, "sleep(").await, 0, "stopped");
    }
    let asked = Instant::now();
    shared.leave(shared.layer.clone(), 3.0).await;
    let took = asked.elapsed();
    assert!(took >= Duration::from_secs(3), "not stopped: {took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_a_sharing_proxy_no_innocent_statement_is_hit() {
    const LEAVING: u32 = 800;
    let shared = Shared::new().await;
    let left = Arc::new(AtomicU32::new(0));
    let app = Router::new()
        .route(
            "/{micros}",
            any(
                async |axum::extract::Path(micros): axum::extract::Path<u64>, db: DbSession| {
                    let statement =
                        sleep(Kind::Postgres, Duration::from_micros(micros).as_secs_f64());
                    db.query_all_raw(statement)
                        .await
                        .map(|_| ())
                        .map_err(|error| error.to_string())
                        .unwrap();
                },
            ),
        )
        .layer(shared.layer.clone().transaction());
    let request = |micros: u64| {
        Request::get(format!("/{micros}"))
            .body(Body::empty())
            .unwrap()
    };
    let clients = (0..6_u32).map(|client| {
        let (app, left) = (app.clone(), left.clone());
        tokio::spawn(async move {
            loop {
                let seed = left.fetch_add(1, Ordering::SeqCst);
                if seed >= LEAVING {
                    return;
                }
                if client % 2 == 0 {
                    // Long: a cancel that goes astray finds the short ones of the others.
                    let wait = Duration::from_micros(4000 + u64::from(seed % 60) * 100);
                    let _ = timeout(wait, app.clone().oneshot(request(60_000))).await;
                } else {
                    let answer = timeout(BOUND, app.clone().oneshot(request(2000)))
                        .await
                        .expect("no hang")
                        .unwrap();
                    assert_eq!(answer.status(), 200, "an innocent request failed");
                }
            }
        })
    });
    for ended in join_all(clients.collect::<Vec<_>>()).await {
        ended.unwrap();
    }
    eventually("no session is out", async || {
        shared.layer.pool().status().used == 0
    })
    .await;
}

/// The server's process of a connection's transaction serves another client's when that is over.
#[tokio::test]
async fn behind_a_sharing_proxy_a_backend_id_is_valid_for_one_transaction() {
    // For the bystander, for the statement that is left, and for the cancel.
    let shared = Shared::with(3).await;
    let kind = Kind::Postgres;
    for again in [false, true] {
        let (session, bystander) = (shared.session().await, shared.session().await);
        let transaction = session.begin().await.unwrap();
        let process = mark(&transaction).await;
        transaction.commit().await.unwrap();
        let innocent = bystander.begin().await.unwrap();
        assert_eq!(
            mark(&innocent).await,
            process,
            "the proxy gives away the process it used last"
        );
        let innocent = tokio::spawn(async move {
            let slept = innocent.query_all_raw(sleep(kind, 4.0)).await;
            slept.map(|_| ()).map_err(|error| error.to_string())
        });
        eventually("the bystander's statement runs", async || {
            running(&shared.observer, "sleep(4)").await > 0
        })
        .await;
        let left = async {
            if again {
                let transaction = session.begin().await.unwrap();
                transaction.query_all_raw(sleep(kind, 2.0)).await.unwrap();
            } else {
                session.query_all_raw(sleep(kind, 2.0)).await.unwrap();
            }
        };
        let seen = pin!(eventually("it runs", async || running(
            &shared.observer,
            "sleep(2)"
        )
        .await
            > 0));
        assert!(
            matches!(select(Box::pin(left), seen).await, Either::Right(_)),
            "the statement has ended"
        );
        drop(session);
        assert_eq!(
            innocent.await.unwrap(),
            Ok(()),
            "again: {again}: an innocent statement was hit"
        );
        drop(bystander);
        eventually("no session is out", async || {
            shared.layer.pool().status().used == 0
        })
        .await;
    }
}

#[tokio::test]
async fn behind_a_sharing_proxy_transactions_keep_their_promises() {
    let shared = Shared::new().await;
    let pool = shared.layer.pool();
    for _ in 0..20 {
        let names = [unique_name(), unique_name(), unique_name()];
        let session = pool.session().await.unwrap();
        let transaction = session.begin().await.unwrap();
        insert_item(&transaction, &names[0]).await;
        let nested = transaction.begin().await.unwrap();
        insert_item(&nested, &names[1]).await;
        nested.rollback().await.unwrap();
        transaction.commit().await.unwrap();
        let transaction = session.begin().await.unwrap();
        insert_item(&transaction, &names[2]).await;
        drop(transaction);
        drop(session);
        eventually("no session is out", async || pool.status().used == 0).await;
        let mut seen = Vec::new();
        for name in &names {
            seen.push(count_items(&shared.observer, name).await);
        }
        assert_eq!(seen, [1, 0, 0]);
    }
    let _ = &shared.test;
}
