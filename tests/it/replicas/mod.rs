//! Replicas: a client reads its own writes (G19), and no replica takes a write.

mod fail_over;
mod lost;
mod lost_reads;
mod mariadb;
mod mariadb_primaries;
mod positions;
mod settings;

use std::time::Duration;

use axum::{
    Router,
    body::Body,
    extract::Path,
    routing::{get, post},
};
use http::{Request, StatusCode, header};
use sea_orm::{
    ConnectionTrait, Database, DatabaseConnection, DbBackend, IsolationLevel, Statement,
    TransactionOptions,
};
use tower::ServiceExt;
use tower_sea_orm::{DbSession, DbSessionLayer, DbTx, Replicas, SessionPool, unsafe_methods};

use crate::support::{
    database::{TestDb, count_items, try_insert_item},
    pool::pool_with,
    requests::{Failed, text},
    servers::{Engine, OwnServer},
    wait::eventually,
    wire::Proxy,
};

/// Under what name a database on `server` is found at another server or through a proxy.
fn at_port(url: &str, port: u16) -> String {
    let (head, rest) = url.split_once("127.0.0.1:").unwrap();
    let (_, path) = rest.split_once('/').unwrap();
    format!("{head}127.0.0.1:{port}/{path}")
}

/// A primary with two replicas, each behind a proxy.
struct Cluster {
    test: TestDb,
    primary: OwnServer,
    replicas: Vec<(OwnServer, Proxy, SessionPool)>,
    proxy: Proxy,
    pool: SessionPool,
}

/// How long a check of the servers counts in these tests: they look often.
const CHECK_EVERY: Duration = Duration::from_millis(50);

impl Cluster {
    async fn new() -> Self {
        Self::of(OwnServer::postgres()).await
    }

    async fn of(primary: OwnServer) -> Self {
        let test = TestDb::on(&primary).await;
        let proxy = Proxy::start(primary.port()).await;
        let pool = pool_at(&at_port(test.url(), proxy.port())).await;
        let mut replicas = Vec::new();
        for number in 2..4 {
            let standby = match primary.engine() {
                Engine::Postgres => primary.standby(),
                Engine::MySql => mariadb::replica(&primary, number).await,
            };
            let proxy = Proxy::start(standby.port()).await;
            let pool = pool_at(&at_port(test.url(), proxy.port())).await;
            replicas.push((standby, proxy, pool));
        }
        Self {
            test,
            primary,
            replicas,
            proxy,
            pool,
        }
    }

    /// The primary with its replicas, asked often, and patient.
    fn replicas(&self) -> Replicas {
        let replicas = Replicas::of(self.pool.clone())
            .check_every(CHECK_EVERY)
            .max_lag(Duration::from_secs(3600));
        let named = self.replicas.iter().zip(["r1", "r2"]);
        named.fold(replicas, |replicas, ((_, _, pool), name)| {
            replicas.replica(name, pool.clone())
        })
    }

    fn layer(&self, replicas: &Replicas) -> DbSessionLayer {
        DbSessionLayer::new(self.pool.clone())
            .transaction_if(unsafe_methods)
            .replicas(replicas.clone())
    }

    /// A connection to a replica that no pool and no proxy knows of.
    async fn beside(&self, replica: usize) -> DatabaseConnection {
        let port = self.replicas[replica].0.port();
        Database::connect(at_port(self.test.url(), port))
            .await
            .unwrap()
    }
}

async fn pool_at(url: &str) -> SessionPool {
    let mut options = sea_orm::ConnectOptions::new(url);
    options.max_connections(4).sqlx_logging(false);
    pool_with(&Database::connect(options).await.unwrap(), |pool| pool)
}

/// Sends requests until both replicas are in use.
async fn all_in_use(app: &Router, replicas: &Replicas) {
    eventually("both replicas are in use", async || {
        send(app, Request::get("/count/none"), None).await;
        replicas.status().iter().all(|one| one.out_of_use.is_none())
    })
    .await;
}

/// What a request's session has read, and where.
#[derive(Debug, PartialEq)]
struct Answer {
    status: StatusCode,
    text: String,
    cookie: Option<String>,
}

impl Answer {
    fn on_replica(&self) -> bool {
        self.text.ends_with("replica")
    }
}

async fn send(app: &Router, request: http::request::Builder, cookie: Option<&str>) -> Answer {
    let request = match cookie {
        Some(cookie) => request.header(header::COOKIE, cookie),
        None => request,
    };
    let response = app.clone().oneshot(request.body(Body::empty()).unwrap());
    let response = response.await.unwrap();
    let cookie = response.headers().get(header::SET_COOKIE);
    let cookie = cookie.map(|cookie| {
        let (pair, _) = cookie.to_str().unwrap().split_once(';').unwrap();
        pair.to_owned()
    });
    Answer {
        status: response.status(),
        cookie,
        text: text(response).await,
    }
}

/// A service that writes and counts items.
fn app(layer: DbSessionLayer) -> Router {
    Router::new()
        .route("/count/{name}", get(count))
        .route("/write/{name}", post(write).get(write))
        .route("/write_tx/{name}", post(write_tx).get(write_tx))
        .layer(layer)
}

async fn count(db: DbSession, Path(name): Path<String>) -> Result<String, Failed> {
    let count = count_items(&db, &name).await;
    Ok(format!("{count} {}", place(&db)))
}

async fn write(db: DbSession, Path(name): Path<String>) -> Result<String, Failed> {
    try_insert_item(&db, &name).await?;
    Ok(place(&db).to_owned())
}

async fn write_tx(tx: DbTx, Path(name): Path<String>) -> Result<String, Failed> {
    try_insert_item(&*tx, &name).await?;
    Ok(place(&tx).to_owned())
}

fn place(db: &DbSession) -> &'static str {
    if db.is_replica() {
        "replica"
    } else {
        "primary"
    }
}
