//! The services whose requests are counted and timed: a bare one, and the same one in various layers.

use std::{convert::Infallible, hint::black_box, path::Path};

use http::{Request, Response};
use sea_orm::{
    ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DbBackend, MockDatabase,
    Statement, TransactionTrait,
};
use tokio::runtime::Runtime;
use tower::{Layer, Service, ServiceExt, service_fn, util::BoxCloneService};
use tower_sea_orm::{DbSession, DbSessionLayer, PoolMode};

pub type App = BoxCloneService<Request<()>, Response<String>, Infallible>;

pub type Row = (&'static str, App);

pub fn rows(runtime: &Runtime, file: &Path) -> Vec<Row> {
    let mock = || MockDatabase::new(DbBackend::Sqlite).into_connection();
    let sqlite = || runtime.block_on(connect(file));
    let untouched = service_fn(untouched);
    let plain = {
        let db = sqlite();
        service_fn(move |_: Request<()>| {
            let db = db.clone();
            async move { Ok(select(&db, 1).await) }
        })
    };
    let transaction = |statements| {
        let db = sqlite();
        service_fn(move |_: Request<()>| {
            let db = db.clone();
            async move {
                let tx = db.begin().await.expect("a transaction");
                let response = select(&tx, statements).await;
                tx.commit().await.expect("a commit");
                Ok(response)
            }
        })
    };
    let layer = || DbSessionLayer::new(sqlite());
    let selecting = |statements| service_fn(move |request| selecting(request, statements));
    vec![
        ("no layer", BoxCloneService::new(untouched)),
        (
            "mock",
            BoxCloneService::new(DbSessionLayer::new(mock()).layer(untouched)),
        ),
        (
            "lazy, untouched",
            BoxCloneService::new(layer().lazy().layer(untouched)),
        ),
        (
            "eager, untouched",
            BoxCloneService::new(layer().layer(untouched)),
        ),
        ("one SELECT, SeaORM's pool", BoxCloneService::new(plain)),
        (
            "one SELECT, lazy session",
            BoxCloneService::new(layer().lazy().layer(selecting(1))),
        ),
        (
            "one SELECT, eager session",
            BoxCloneService::new(layer().layer(selecting(1))),
        ),
        (
            "one SELECT, PoolMode::Transaction",
            BoxCloneService::new(
                layer()
                    .lazy()
                    .pool_mode(PoolMode::Transaction)
                    .layer(selecting(1)),
            ),
        ),
        (
            "transaction of 1, SeaORM's",
            BoxCloneService::new(transaction(1)),
        ),
        (
            "transaction of 11, SeaORM's",
            BoxCloneService::new(transaction(11)),
        ),
        (
            "transaction of 1, session's",
            BoxCloneService::new(layer().transaction().layer(selecting(1))),
        ),
        (
            "transaction of 11, session's",
            BoxCloneService::new(layer().transaction().layer(selecting(11))),
        ),
    ]
}

/// Two connections: the last free one of a pool stays with the driver.
async fn connect(file: &Path) -> DatabaseConnection {
    let mut options = ConnectOptions::new(format!("sqlite://{}?mode=rwc", file.display()));
    options.sqlx_logging(false).max_connections(2);
    Database::connect(options)
        .await
        .expect("a database in a file")
}

async fn untouched(_: Request<()>) -> Result<Response<String>, Infallible> {
    Ok(Response::new(String::new()))
}

async fn selecting(request: Request<()>, statements: u32) -> Result<Response<String>, Infallible> {
    let session: DbSession = DbSession::from_extensions(request.extensions()).expect("a layer");
    Ok(select(&session, statements).await)
}

async fn select(db: &impl ConnectionTrait, times: u32) -> Response<String> {
    for _ in 0..times {
        let statement = Statement::from_string(DbBackend::Sqlite, "SELECT 1");
        let row = db.query_one_raw(statement).await.expect("an answer");
        black_box(row);
    }
    Response::new(String::new())
}

/// One request from its beginning to its answer.
pub async fn request(service: &mut App) {
    let service = service.ready().await.expect("a service that does not fail");
    black_box(
        service
            .call(Request::new(()))
            .await
            .expect("a service that does not fail"),
    );
}
