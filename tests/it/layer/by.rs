//! `DbSessionLayer::by`: the pool for a request is picked by its head.

use std::{collections::HashMap, sync::Arc};

use axum::{Router, body::Body, extract::Request, middleware::Next, routing::get};
use http::{Response, StatusCode};
use sea_orm::{ConnectionTrait, Statement, TransactionOptions};
use tower::ServiceExt;
use tower_sea_orm::{
    DbSession, DbSessionLayer, DbTx, PoolMode, Reset, SessionPool, TransactionLayer, problem_json,
};

use crate::{
    log::Log,
    support::{
        database::{Kind, TestDb, insert_item, unique_name},
        pool::{assert_whole, pool_with},
    },
};

#[derive(Clone)]
struct Tenant(String);

/// Two tenants with a database each, and one that is the layer's own.
struct Tenants {
    databases: Vec<(TestDb, SessionPool)>,
}

impl Tenants {
    async fn new(kind: Kind) -> Self {
        let mut databases = Vec::new();
        for _ in 0..3 {
            let test = TestDb::new(kind).await;
            let pool = pool_with(&test.connect(2).await, |pool| pool);
            databases.push((test, pool));
        }
        Self { databases }
    }

    fn pool(&self, number: usize) -> SessionPool {
        self.databases[number].1.clone()
    }

    /// A layer that knows the tenants `a` and `b`.
    fn layer(&self) -> DbSessionLayer {
        let pools = HashMap::from([
            ("a".to_owned(), self.pool(1)),
            ("b".to_owned(), self.pool(2)),
        ]);
        let pools = Arc::new(pools);
        DbSessionLayer::new(self.pool(0))
            .by(move |parts| pools.get(&parts.extensions.get::<Tenant>()?.0).cloned())
    }

    async fn counts(&self) -> Vec<i64> {
        let mut counts = Vec::new();
        for (_, pool) in &self.databases {
            let statement = Statement::from_string(
                pool.database().get_database_backend(),
                "SELECT count(*) AS n FROM item",
            );
            let row = pool
                .database()
                .query_one_raw(statement)
                .await
                .unwrap()
                .unwrap();
            counts.push(row.try_get("", "n").unwrap());
        }
        counts
    }

    async fn assert_whole(&self) {
        for (test, pool) in &self.databases {
            assert_whole(test, pool.database(), 2).await;
        }
    }
}

/// As an authentication layer does it.
async fn identify(mut request: Request, next: Next) -> Response<Body> {
    let tenant = request.headers().get("x-tenant");
    if let Some(tenant) = tenant.and_then(|tenant| tenant.to_str().ok()) {
        let tenant = Tenant(tenant.to_owned());
        request.extensions_mut().insert(tenant);
    }
    next.run(request).await
}

async fn call(app: &Router, path: &str, tenant: &str) -> Response<Body> {
    let request = Request::get(path).header("x-tenant", tenant);
    app.clone()
        .oneshot(request.body(Body::empty()).unwrap())
        .await
        .unwrap()
}

fn routes() -> Router {
    Router::new()
        .route(
            "/write",
            get(async |db: DbSession| insert_item(&db, &unique_name()).await),
        )
        .route(
            "/fail",
            get(async |tx: DbTx| {
                insert_item(&tx, &unique_name()).await;
                StatusCode::CONFLICT
            }),
        )
        .route(
            "/write-all",
            get(async |tx: DbTx| insert_item(&tx, &unique_name()).await),
        )
}

fn app(layer: DbSessionLayer) -> Router {
    routes()
        .layer(layer)
        .layer(axum::middleware::from_fn(identify))
}

#[tokio::test]
async fn each_request_works_on_the_database_that_is_picked_for_it() {
    for kind in Kind::ALL {
        let tenants = Tenants::new(kind).await;
        for layer in [
            tenants.layer(),
            tenants.layer().lazy(),
            tenants.layer().transaction(),
        ] {
            let before = tenants.counts().await;
            let app = app(layer);
            for (path, tenant, status) in [
                ("/write", "a", 200),
                ("/write-all", "a", 200),
                ("/write", "b", 200),
                ("/fail", "a", 409),
            ] {
                assert_eq!(
                    call(&app, path, tenant).await.status(),
                    status,
                    "{kind:?} {path}"
                );
            }
            let after = tenants.counts().await;
            let added: Vec<_> = after
                .iter()
                .zip(before)
                .map(|(after, before)| after - before)
                .collect();
            assert_eq!(added, [0, 2, 1], "{kind:?}");
        }
        tenants.assert_whole().await;
    }
}

#[tokio::test]
async fn a_request_for_which_there_is_no_database_is_not_found() {
    let (log, _guard) = Log::start();
    let tenants = Tenants::new(Kind::SqliteFile).await;
    let plain = app(tenants.layer());
    for tenant in ["c", "", "A", "a/../b"] {
        assert_eq!(
            call(&plain, "/write", tenant).await.status(),
            404,
            "{tenant}"
        );
    }
    let problem = routes()
        .layer(tenants.layer().response_for_error(problem_json::<Body>))
        .layer(axum::middleware::from_fn(identify));
    let response = call(&problem, "/write", "c").await;
    assert_eq!(response.status(), 404);
    let body = axum::body::to_bytes(response.into_body(), 1000)
        .await
        .unwrap();
    assert_eq!(
        &body[..],
        br#"{"type":"about:blank","title":"not found","status":404}"#
    );
    // gRPC's NOT_FOUND.
    let request = Request::post("/write").header("content-type", "application/grpc");
    let response = plain
        .oneshot(request.body(Body::empty()).unwrap())
        .await
        .unwrap();
    assert_eq!(response.headers()["grpc-status"], "5");
    // Anybody can ask for it at any rate.
    assert_eq!(
        log.count("WARN") + log.count("ERROR"),
        0,
        "{:?}",
        log.lines()
    );
    assert_eq!(tenants.counts().await, [0, 0, 0]);
}

#[tokio::test]
async fn a_pool_that_the_layer_cannot_use_is_refused_and_logged() {
    let (log, _guard) = Log::start();
    let home = TestDb::new(Kind::Postgres).await;
    let home = pool_with(&home.connect(2).await, |pool| pool);
    let other = TestDb::new(Kind::SqliteFile).await;
    let other = pool_with(&other.connect(2).await, |pool| pool);
    let picked = other.clone();
    let layer = DbSessionLayer::new(home.clone()).by(move |_| Some(picked.clone()));
    assert_eq!(call(&app(layer), "/write", "a").await.status(), 500);
    assert_eq!(
        log.count("another kind of database"),
        1,
        "{:?}",
        log.lines()
    );
    // What is refused for the layer's own pool when the layer is built.
    let always = TestDb::new(Kind::Postgres).await;
    let always = pool_with(&always.connect(2).await, |pool| {
        pool.reset(Reset::SessionStateAlways)
            .pool_mode(PoolMode::Session)
    });
    let layer = DbSessionLayer::new(home)
        .pool_mode(PoolMode::Transaction)
        .by(move |_| Some(always.clone()));
    assert_eq!(call(&app(layer), "/write", "a").await.status(), 500);
    assert_eq!(log.count("SessionStateAlways"), 1, "{:?}", log.lines());
}

#[tokio::test]
async fn an_inner_layer_joins_the_session_of_the_pool_that_it_picks_itself() {
    let tenants = Tenants::new(Kind::Postgres).await;
    let routes = || {
        Router::new().route(
            "/",
            get(async |db: DbSession| {
                insert_item(&db, &unique_name()).await;
                db.pool().status().max.to_string()
            }),
        )
    };
    let same = routes()
        .layer(
            tenants
                .layer()
                .transaction_with(TransactionOptions::default()),
        )
        .layer(TransactionLayer::new())
        .layer(tenants.layer())
        .layer(axum::middleware::from_fn(identify));
    assert_eq!(call(&same, "/", "a").await.status(), 200);
    assert_eq!(tenants.counts().await, [0, 1, 0]);
    // The inner one is over the layer's own pool: its handlers would write to another tenant.
    let other = routes()
        .layer(DbSessionLayer::new(tenants.pool(0)))
        .layer(tenants.layer())
        .layer(axum::middleware::from_fn(identify));
    assert_eq!(call(&other, "/", "a").await.status(), 500);
    assert_eq!(tenants.counts().await, [0, 1, 0]);
    tenants.assert_whole().await;
}
