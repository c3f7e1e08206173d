//! G20: the example `idempotency_key`: a request that is sent again is done once, also after an unknown outcome.

use std::sync::Arc;

use axum::{Router, body::Body};
use futures_util::future::join_all;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use sea_orm::{ConnectionTrait, Database};
use tower::ServiceExt;
use tower_sea_orm::SessionPool;

use crate::support::{
    database::{Kind, TestDb},
    pool::returned,
    site::{port_of, value},
    wait::eventually,
    wire::Proxy,
};

#[allow(dead_code, reason = "a test does not call main")]
#[path = "../../../examples/idempotency_key.rs"]
mod example;

struct Service {
    app: Router,
    pool: SessionPool,
    proxy: Arc<Proxy>,
    observer: sea_orm::DatabaseConnection,
    _test: TestDb,
}

impl Service {
    async fn new() -> Self {
        let test = TestDb::new(Kind::Postgres).await;
        let proxy = Proxy::start(port_of(test.url())).await;
        let observer = test.observer().await.unwrap();
        example::set_up(&observer).await.unwrap();
        let db = Database::connect(test.options_at(&proxy.url(test.url()), 8))
            .await
            .unwrap();
        let pool = SessionPool::new(db);
        Self {
            app: example::app(pool.clone()),
            pool,
            proxy: Arc::new(proxy),
            observer,
            _test: test,
        }
    }

    async fn pay(&self, key: Option<&str>, amount: i64) -> Response<Body> {
        let mut request = Request::post("/payments").header("content-type", "application/json");
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        let body = Body::from(format!(r#"{{"amount":{amount}}}"#));
        self.app
            .clone()
            .oneshot(request.body(body).unwrap())
            .await
            .unwrap()
    }

    async fn count(&self, table: &str) -> i64 {
        value(&self.observer, &format!("SELECT count(*) FROM {table}")).await
    }
}

async fn text(response: Response<Body>) -> (StatusCode, bool, String) {
    let is_replayed = response.headers().contains_key("idempotency-replayed");
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (
        status,
        is_replayed,
        String::from_utf8(body.to_vec()).unwrap(),
    )
}

#[tokio::test]
async fn a_request_with_the_same_key_gets_the_same_answer() {
    let service = Service::new().await;
    let (status, is_replayed, first) = text(service.pay(Some("\"one\""), 5).await).await;
    assert_eq!((status, is_replayed), (StatusCode::CREATED, false));
    let second = text(service.pay(Some("one"), 5).await).await;
    assert_eq!(second, (StatusCode::CREATED, true, first));
    assert_eq!(
        service.pay(Some("one"), 6).await.status(),
        StatusCode::UNPROCESSABLE_ENTITY
    );
    for key in [
        None,
        Some(""),
        Some("\"open"),
        Some("a b"),
        Some(&*"x".repeat(256)),
    ] {
        assert_eq!(
            service.pay(key, 5).await.status(),
            StatusCode::BAD_REQUEST,
            "{key:?}"
        );
    }
    // What was refused leaves no key behind.
    assert_eq!(
        service.pay(Some("two"), 0).await.status(),
        StatusCode::BAD_REQUEST
    );
    assert_eq!(
        service.pay(Some("two"), 7).await.status(),
        StatusCode::CREATED
    );
    assert_eq!(
        (
            service.count("payment").await,
            service.count("idempotency_key").await
        ),
        (2, 2)
    );
    returned(&service.pool).await;
}

#[tokio::test]
async fn two_requests_with_one_key_at_the_same_time_are_done_once() {
    let service = Service::new().await;
    let answers = join_all((0..20).map(|_| service.pay(Some("same"), 5))).await;
    let statuses = answers.iter().map(|answer| answer.status());
    let (done, others): (Vec<_>, Vec<_>) =
        statuses.partition(|status| *status == StatusCode::CREATED);
    assert!(!done.is_empty() && others.iter().all(|status| *status == StatusCode::CONFLICT));
    assert_eq!(service.count("payment").await, 1);
    returned(&service.pool).await;
}

#[tokio::test]
async fn a_request_under_way_is_a_conflict_for_another_with_its_key() {
    let service = Service::new().await;
    use sea_orm::TransactionTrait;
    let other = service.observer.begin().await.unwrap();
    let lock = "SELECT pg_advisory_xact_lock(hashtextextended('busy', 0))";
    other.execute_unprepared(lock).await.unwrap();
    assert_eq!(
        service.pay(Some("busy"), 5).await.status(),
        StatusCode::CONFLICT
    );
    other.rollback().await.unwrap();
    assert_eq!(
        service.pay(Some("busy"), 5).await.status(),
        StatusCode::CREATED
    );
    returned(&service.pool).await;
}

#[tokio::test]
async fn a_request_with_an_unknown_outcome_is_sent_again_and_done_once() {
    let service = Service::new().await;
    let proxy = service.proxy.clone();
    proxy.hold_back("COMMIT");
    let paying = service.pay(Some("unknown"), 5);
    let cut = async {
        eventually("COMMIT is on its way", async || proxy.held() > 0).await;
        proxy.forsake();
    };
    let (response, ()) = tokio::join!(paying, cut);
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    // It arrives all the same, and nobody hears of it.
    proxy.let_go();
    let took_effect = async || service.count("payment").await == 1;
    eventually("the COMMIT took effect", took_effect).await;
    let (status, is_replayed, body) = text(service.pay(Some("unknown"), 5).await).await;
    assert_eq!((status, is_replayed), (StatusCode::CREATED, true));
    assert_eq!(body, r#"{"id":1,"amount":5}"#);
    assert_eq!(service.count("payment").await, 1);
    returned(&service.pool).await;
}
