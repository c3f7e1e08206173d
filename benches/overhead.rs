//! What does a session cost a request?
//!
//! The baseline is a bare service. Each row puts a layer around the same service; the rows that say
//! "one SELECT" run one statement, with the session and with SeaORM's pool used directly. Time comes
//! from criterion, allocations are counted on the request's thread and printed first.
//!
//! ```text
//! cargo bench --bench overhead
//! ```
#![allow(clippy::expect_used, missing_docs, reason = "a benchmark may panic, and criterion's macros have no docs")]

use std::{convert::Infallible, hint::black_box, path::Path};

use criterion::{Criterion, criterion_group, criterion_main};
use http::{Request, Response};
use sea_orm::{
    ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DbBackend, MockDatabase, Statement, TransactionTrait,
};
use tokio::runtime::{Builder, Runtime};
use tower::{Layer, Service, ServiceExt, service_fn, util::BoxCloneService};
use tower_sea_orm::{DbSession, DbSessionLayer};

type Row = (&'static str, BoxCloneService<Request<()>, Response<String>, Infallible>);

/// Requests before counting, so that pools and caches are filled.
const WARM_UP: u32 = 200;
const COUNTED: u32 = 1000;

fn rows(runtime: &Runtime, file: &Path) -> Vec<Row> {
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
        ("mock", BoxCloneService::new(DbSessionLayer::new(mock()).layer(untouched))),
        ("lazy, untouched", BoxCloneService::new(layer().lazy().layer(untouched))),
        ("eager, untouched", BoxCloneService::new(layer().layer(untouched))),
        ("one SELECT, SeaORM's pool", BoxCloneService::new(plain)),
        ("one SELECT, lazy session", BoxCloneService::new(layer().lazy().layer(selecting(1)))),
        ("one SELECT, eager session", BoxCloneService::new(layer().layer(selecting(1)))),
        ("transaction of 1, SeaORM's", BoxCloneService::new(transaction(1))),
        ("transaction of 11, SeaORM's", BoxCloneService::new(transaction(11))),
        ("transaction of 1, session's", BoxCloneService::new(layer().transaction().layer(selecting(1)))),
        ("transaction of 11, session's", BoxCloneService::new(layer().transaction().layer(selecting(11)))),
    ]
}

/// Two connections: the last free one of a pool stays with the driver.
async fn connect(file: &Path) -> DatabaseConnection {
    let mut options = ConnectOptions::new(format!("sqlite://{}?mode=rwc", file.display()));
    options.sqlx_logging(false).max_connections(2);
    Database::connect(options).await.expect("a database in a file")
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
async fn request(service: &mut BoxCloneService<Request<()>, Response<String>, Infallible>) {
    let service = service.ready().await.expect("a service that does not fail");
    black_box(service.call(Request::new(())).await.expect("a service that does not fail"));
}

fn overhead(criterion: &mut Criterion) {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let dir = tempfile::tempdir().expect("a directory");
    let mut rows = rows(&runtime, &dir.path().join("items"));

    eprintln!("{:<36} {:>12} {:>10}", "allocations per request", "count", "bytes");
    for (name, service) in &mut rows {
        let mut run = |requests| {
            runtime.block_on(async {
                for _ in 0..requests {
                    request(service).await;
                }
            });
        };
        run(WARM_UP);
        let counted = allocation_counter::measure(|| run(COUNTED));
        let (count, bytes) = (counted.count_total / u64::from(COUNTED), counted.bytes_total / u64::from(COUNTED));
        eprintln!("{name:<36} {count:>12} {bytes:>10}");
    }

    let mut group = criterion.benchmark_group("request");
    for (name, service) in rows {
        group.bench_function(name, |bencher| {
            bencher.to_async(&runtime).iter(|| {
                let mut service = service.clone();
                async move { request(&mut service).await }
            });
        });
    }
}

criterion_group!(benches, overhead);
criterion_main!(benches);
