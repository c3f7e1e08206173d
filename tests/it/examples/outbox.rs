//! The example `outbox`: a message is delivered if its transaction is committed, and only then.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use axum::{Router, body::Body};
use futures_util::future::join_all;
use http::{Request, StatusCode};
use sea_orm::{Database, DbErr};
use tokio::task::JoinHandle;
use tower::ServiceExt;
use tower_sea_orm::SessionPool;

use self::example::{Message, Outbox};
use crate::support::{
    database::{Kind, TestDb},
    pool::returned,
    site::value,
    wait::eventually,
};

#[allow(dead_code, reason = "a test does not call main")]
#[path = "../../../examples/outbox.rs"]
mod example;

/// How often each message was delivered.
type Delivered = Arc<Mutex<BTreeMap<String, u32>>>;

struct Service {
    app: Router,
    pool: SessionPool,
    outbox: Outbox,
    observer: sea_orm::DatabaseConnection,
    _test: TestDb,
}

impl Service {
    async fn new() -> Self {
        let test = TestDb::new(Kind::Postgres).await;
        let observer = test.observer().await.unwrap();
        example::set_up(&observer).await.unwrap();
        let db = Database::connect(test.options(8)).await.unwrap();
        let (pool, outbox) = (SessionPool::new(db), Outbox::default());
        Self {
            app: example::app(pool.clone(), outbox.clone()),
            pool,
            outbox,
            observer,
            _test: test,
        }
    }

    async fn order(&self, item: &str) -> StatusCode {
        let request = Request::post("/orders").header("content-type", "application/json");
        let body = Body::from(format!(r#"{{"item":"{item}"}}"#));
        let response = self.app.clone().oneshot(request.body(body).unwrap());
        response.await.unwrap().status()
    }

    /// A relay whose deliveries fail while `fails` says so.
    fn relay(&self, delivered: &Delivered, fails: fn(u32) -> bool) -> JoinHandle<()> {
        let (delivered, calls) = (delivered.clone(), Arc::new(Mutex::new(0)));
        let relay = self
            .outbox
            .clone()
            .relay(self.pool.clone(), async move |message: &Message| {
                let call = {
                    let mut calls = calls.lock().unwrap();
                    *calls += 1;
                    *calls
                };
                if fails(call) {
                    return Err(DbErr::Custom("the broker is away".to_owned()));
                }
                let mut delivered = delivered.lock().unwrap();
                *delivered.entry(message.payload.clone()).or_default() += 1;
                Ok(())
            });
        tokio::spawn(relay)
    }

    async fn is_empty(&self) -> bool {
        value::<i64>(&self.observer, "SELECT count(*) FROM outbox").await == 0
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_message_of_a_committed_request_is_delivered_and_no_other() {
    let (service, delivered) = (Service::new().await, Delivered::default());
    let relays = [(); 2].map(|()| service.relay(&delivered, |call| call <= 5));
    let orders = (0..40).map(|number| {
        let service = &service;
        async move {
            let refused = service.order("").await;
            assert_eq!(refused, StatusCode::UNPROCESSABLE_ENTITY);
            let ordered = service.order(&format!("item {number}")).await;
            assert_eq!(ordered, StatusCode::CREATED);
        }
    });
    join_all(orders).await;
    eventually("all messages are delivered", async || {
        service.is_empty().await
    })
    .await;
    for relay in relays {
        relay.abort();
    }
    let delivered = delivered.lock().unwrap().clone();
    let expected: Vec<_> = (0..40)
        .map(|number| format!("ordered item {number}"))
        .collect();
    assert_eq!(delivered.len(), 40, "{delivered:?}");
    assert!(
        expected
            .iter()
            .all(|message| delivered.contains_key(message))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_relay_has_in_hand_when_it_stops_is_delivered_by_the_next() {
    let (service, delivered) = (Service::new().await, Delivered::default());
    assert_eq!(service.order("lamp").await, StatusCode::CREATED);
    let (taken, stuck) = (Arc::new(Mutex::new(0)), service.outbox.clone());
    let counts = taken.clone();
    let stuck = stuck.relay(service.pool.clone(), async move |_: &Message| {
        *counts.lock().unwrap() += 1;
        std::future::pending().await
    });
    let stuck = tokio::spawn(stuck);
    eventually("the first relay has the message", async || {
        *taken.lock().unwrap() == 1
    })
    .await;
    stuck.abort();
    let next = service.relay(&delivered, |_| false);
    eventually("the next one delivers it", async || {
        service.is_empty().await
    })
    .await;
    next.abort();
    assert_eq!(delivered.lock().unwrap()["ordered lamp"], 1);
    let _ = next.await;
    returned(&service.pool).await;
}
