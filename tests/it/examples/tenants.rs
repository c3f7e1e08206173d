//! The example `tenants`: a pool is opened once and closed when it is idle, the budget holds, and a tenant that is not known or
//! whose server is dead is the only one to notice.

use std::{
    net::{Ipv4Addr, TcpListener},
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{Router, body::Body, routing::get};
use futures_util::{TryStreamExt, future::join_all};
use http::{Request, StatusCode, header::RETRY_AFTER};
use http_body_util::BodyExt;
use sea_orm::{DatabaseConnection, DbBackend, Statement};
use tokio::{sync::Semaphore, task::JoinHandle};
use tower::ServiceExt;
use tower_sea_orm::DbSession;

use crate::support::{
    database::{Kind, TestDb},
    futures::drop_at,
    site::value,
    wait::{LONG, eventually},
};

#[allow(dead_code, reason = "a test does not call main")]
#[path = "../../../examples/tenants/main.rs"]
mod example;

use example::{Limits, Tenants};

/// The example, with tenants `t0`, `t1` and so on, each in a database of its own.
struct Service {
    tenants: Tenants,
    app: Router,
    /// Says when requests to `/hold` end.
    end: Arc<Semaphore>,
    observer: DatabaseConnection,
    databases: Vec<String>,
}

/// A budget for so many pools, each with two connections.
fn limits(pools: usize, wait: Duration) -> Limits {
    let limits = Limits {
        budget: pools * 4,
        connections: 2,
        wait,
    };
    assert_eq!(limits.pools(), pools);
    limits
}

impl Service {
    async fn new(count: usize, limits: Limits) -> Self {
        Self::with(count, &[], limits).await
    }

    /// With further tenants at these URLs.
    async fn with(count: usize, others: &[(&str, String)], limits: Limits) -> Self {
        let beside = TestDb::new(Kind::Postgres).await;
        let observer = beside.observer().await.unwrap();
        let mut urls = Vec::new();
        let mut databases = Vec::new();
        for number in 0..count {
            let url = TestDb::new(Kind::Postgres).await.url().to_owned();
            example::set_up(&url).await.unwrap();
            databases.push(url.rsplit_once('/').unwrap().1.to_owned());
            urls.push((format!("t{number}"), url));
        }
        let others = others.iter().cloned();
        urls.extend(others.map(|(name, url)| (name.to_owned(), url)));
        let tenants = Tenants::new(urls, limits).unwrap();
        let end = Arc::new(Semaphore::new(0));
        let service = Self {
            app: Self::app(&tenants, end.clone()),
            tenants,
            end,
            observer,
            databases,
        };
        eventually("the set-up's connections are gone", async || {
            service.connections().await == 0
        })
        .await;
        service
    }

    fn app(tenants: &Tenants, end: Arc<Semaphore>) -> Router {
        let hold = async move |db: DbSession| {
            let name = value::<String>(&db, "SELECT current_database()::text").await;
            end.acquire().await.unwrap().forget();
            name
        };
        let stream = async |db: DbSession| {
            let sql = "SELECT n::text FROM generate_series(1, 1000) n";
            let rows = db.rows(Statement::from_string(DbBackend::Postgres, sql));
            let rows = rows.await.unwrap();
            let rows = rows.and_then(async |row| row.try_get_by_index::<String>(0));
            Body::new(db.hold_until_body_end(Body::from_stream(rows)))
        };
        let routes = Router::new()
            .route("/hold", get(hold))
            .route("/stream", get(stream));
        example::app(tenants.clone()).merge(example::protected(routes, tenants.clone()))
    }

    async fn ask(&self, tenant: &str, path: &str) -> http::Response<Body> {
        let request = request(tenant, path);
        self.app.clone().oneshot(request).await.unwrap()
    }

    /// Asserts that the tenant is served.
    async fn serve(&self, tenant: &str) {
        let status = self.ask(tenant, "/notes").await.status();
        assert_eq!(status, StatusCode::OK, "{tenant}");
    }

    /// A request that has a session until `end` says so.
    async fn hold(&self, tenant: &str) -> JoinHandle<StatusCode> {
        let before = self.running(tenant).await;
        let request = self.app.clone().oneshot(request(tenant, "/hold"));
        let held = tokio::spawn(async move { request.await.unwrap().status() });
        eventually("the request has its session", async || {
            self.running(tenant).await > before
        })
        .await;
        held
    }

    /// How many connections of this tenant are in `hold`'s statement, or have run it last.
    async fn running(&self, tenant: &str) -> i64 {
        let number: usize = tenant[1..].parse().unwrap();
        let database = &self.databases[number];
        let sql = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}' \
             AND query LIKE 'SELECT current_database()%'"
        );
        value(&self.observer, &sql).await
    }

    /// How many connections the server has for all tenants.
    async fn connections(&self) -> i64 {
        let sql = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE datname IN ('{}')",
            self.databases.join("', '")
        );
        value(&self.observer, &sql).await
    }

    /// Asserts that no request has a lease any more and that nothing is left of the pools.
    async fn assert_whole(&self) {
        eventually("all pools are idle, and closed", async || {
            self.tenants.close_idle(Duration::ZERO);
            self.tenants.pools().0 == 0 && self.connections().await == 0
        })
        .await;
    }
}

fn request(tenant: &str, path: &str) -> Request<Body> {
    let request = Request::get(path).header("x-tenant", tenant);
    request.body(Body::empty()).unwrap()
}

async fn text(response: http::Response<Body>) -> String {
    let body = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(body.into()).unwrap()
}

#[tokio::test]
async fn a_hundred_first_requests_of_a_tenant_open_one_pool() {
    let limits = Limits {
        budget: 100,
        connections: 6, // no more may wait for one than 20 for each
        wait: LONG,
    };
    let service = Service::new(1, limits).await;
    join_all((0..100).map(|_| service.serve("t0"))).await;
    assert_eq!(service.tenants.pools(), (1, 1));
    assert!(service.connections().await <= 6);
    service.assert_whole().await;
}

/// They find no pool, all at the same time.
#[tokio::test]
async fn requests_that_wait_for_a_place_open_one_pool() {
    let limits = Limits {
        connections: 6,
        budget: 8,
        wait: LONG,
    };
    let service = Service::new(2, limits).await;
    for round in 0..3 {
        let held = service.hold("t1").await;
        let mut waiting = Box::pin(join_all((0..100).map(|_| service.serve("t0"))));
        let early = tokio::time::timeout(Duration::from_millis(50), &mut waiting).await;
        assert!(early.is_err(), "they were served beside the budget");
        service.end.add_permits(1);
        waiting.await;
        assert_eq!(held.await.unwrap(), StatusCode::OK);
        // One for each of the two tenants, in each round.
        assert_eq!(service.tenants.pools(), (1, 2 * (round + 1)));
    }
    service.assert_whole().await;
}

#[tokio::test]
async fn a_pool_that_was_in_use_lately_is_not_closed() {
    let service = Service::new(2, limits(2, LONG)).await;
    service.serve("t0").await;
    let unused = Duration::from_millis(200);
    tokio::time::sleep(unused).await;
    let began = Instant::now();
    service.serve("t1").await;
    service.tenants.close_idle(LONG);
    assert_eq!(service.tenants.pools(), (2, 2));
    service.tenants.close_idle(unused);
    // On a machine that takes so long for a request and a look, both may go.
    let left = service.tenants.pools().0;
    assert!(left == 1 || left == 0 && began.elapsed() > unused, "{left}");
    service.assert_whole().await;
}

#[tokio::test]
async fn each_tenant_has_its_own_notes() {
    let service = Service::new(3, limits(2, LONG)).await;
    for tenant in ["t0", "t1", "t2", "t0"] {
        let body = format!(r#"{{"text":"of {tenant}"}}"#);
        let create = Request::post("/notes")
            .header("x-tenant", tenant)
            .header("content-type", "application/json");
        let create = create.body(Body::from(body)).unwrap();
        let response = service.app.clone().oneshot(create).await.unwrap();
        assert_eq!(response.status(), StatusCode::CREATED);
    }
    for (tenant, count) in [("t0", 2), ("t1", 1), ("t2", 1)] {
        let notes = text(service.ask(tenant, "/notes").await).await;
        assert_eq!(notes.matches("\"text\"").count(), count, "{notes}");
        assert_eq!(notes.matches(tenant).count(), count, "{notes}");
    }
    service.assert_whole().await;
}

#[tokio::test]
async fn the_pool_that_was_idle_for_longest_makes_room() {
    let service = Service::new(3, limits(2, LONG)).await;
    for (tenant, opened) in [("t0", 1), ("t1", 2), ("t0", 2), ("t2", 3), ("t0", 3)] {
        service.serve(tenant).await;
        assert_eq!(service.tenants.pools().1, opened, "{tenant}");
    }
    assert_eq!(service.tenants.pools().0, 2);
    service.serve("t1").await;
    assert_eq!(service.tenants.pools(), (2, 4));
    service.assert_whole().await;
}

#[tokio::test]
async fn a_pool_that_is_in_use_is_not_closed() {
    let service = Service::new(2, limits(2, LONG)).await;
    let held = service.hold("t0").await;
    let streaming = service.ask("t1", "/stream").await;
    service.tenants.close_idle(Duration::ZERO);
    assert_eq!(service.tenants.pools().0, 2);
    service.end.add_permits(1);
    assert_eq!(held.await.unwrap(), StatusCode::OK);
    assert!(text(streaming).await.ends_with("9991000"));
    service.assert_whole().await;
}

#[tokio::test]
async fn a_tenant_for_which_there_is_no_place_waits_and_is_then_refused() {
    let patient = Service::new(2, limits(1, LONG)).await;
    let held = patient.hold("t0").await;
    let mut waiting = Box::pin(patient.serve("t1"));
    let early = tokio::time::timeout(Duration::from_millis(100), &mut waiting).await;
    assert!(early.is_err(), "it was served beside the budget");
    patient.end.add_permits(1);
    waiting.await;
    assert_eq!(held.await.unwrap(), StatusCode::OK);
    patient.assert_whole().await;

    let hasty = Service::new(2, limits(1, Duration::from_millis(200))).await;
    let held = hasty.hold("t0").await;
    let refused = join_all((0..10).map(|_| hasty.ask("t1", "/notes"))).await;
    for response in refused {
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()[RETRY_AFTER], "1");
    }
    assert_eq!(hasty.tenants.pools(), (1, 1));
    hasty.end.add_permits(1);
    assert_eq!(held.await.unwrap(), StatusCode::OK);
    hasty.assert_whole().await;
}

#[tokio::test]
async fn the_budget_of_connections_holds_under_load() {
    let limits = limits(2, LONG);
    let service = Service::new(6, limits).await;
    let clients = (0..24).map(async |client: usize| {
        for round in 0..20 {
            let tenant = format!("t{}", (client + round * 5) % 6);
            service.serve(&tenant).await;
        }
    });
    let load = join_all(clients);
    let watch = async {
        let mut most = 0;
        loop {
            most = most.max(service.connections().await);
            assert!(most <= limits.budget as i64, "{most} connections");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        _ = load => {}
        () = watch => {}
    }
    assert!(service.tenants.pools().1 > 6, "no pool was opened again");
    service.assert_whole().await;
}

#[tokio::test]
async fn a_tenant_that_is_not_known_is_not_found_and_opens_nothing() {
    let service = Service::new(1, limits(1, LONG)).await;
    for tenant in ["t1", "", "T0", "t0/../t0"] {
        let response = service.ask(tenant, "/notes").await;
        assert_eq!(response.status(), StatusCode::NOT_FOUND, "{tenant}");
        assert_eq!(text(response).await, "no such tenant\n");
    }
    assert_eq!(service.tenants.pools(), (0, 0));
    service.assert_whole().await;
}

#[tokio::test]
async fn a_tenant_whose_server_is_dead_leaves_the_others_alone() {
    // It lets clients connect and says nothing.
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let gone = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let url = |server: &TcpListener, name| {
        let port = server.local_addr().unwrap().port();
        format!("postgres://postgres@127.0.0.1:{port}/{name}")
    };
    let dead = [
        ("silent1", url(&silent, "one")),
        ("silent2", url(&silent, "two")),
        ("silent3", url(&silent, "three")),
        ("gone", url(&gone, "one")),
    ];
    drop(gone);
    let service = Service::with(2, &dead, limits(2, Duration::from_secs(1))).await;
    // Their pools are there: on a busy machine, logging in may take longer than a request waits.
    for tenant in ["t0", "t1"] {
        eventually("the tenant is served", async || {
            service.ask(tenant, "/notes").await.status() == StatusCode::OK
        })
        .await;
    }
    let dying = (0..40).map(async |number: usize| {
        let response = service.ask(dead[number % 4].0, "/notes").await;
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(response.headers().contains_key(RETRY_AFTER));
    });
    let living = async {
        for number in 0..100 {
            service.serve(["t0", "t1"][number % 2]).await;
        }
    };
    tokio::join!(join_all(dying), living);
    service.assert_whole().await;
}

#[tokio::test]
async fn clients_that_leave_at_any_point_give_their_place_back() {
    let service = Service::new(2, limits(1, LONG)).await;
    for pendings in 1..200 {
        let leaving = service.app.clone().oneshot(request("t0", "/notes"));
        let answered = drop_at(pendings, leaving).await.is_some();
        service.serve("t1").await;
        if answered {
            return service.assert_whole().await;
        }
    }
    panic!("there are more points to leave at");
}
