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

use std::{convert::Infallible, hint::black_box};

use criterion::{Criterion, criterion_group, criterion_main};
use http::{Request, Response};
use sea_orm::{ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DbBackend, MockDatabase, Statement};
use tokio::runtime::{Builder, Runtime};
use tower::{Layer, Service, ServiceExt, service_fn, util::BoxCloneService};
use tower_sea_orm::{DbSession, DbSessionLayer};

type Row = (&'static str, BoxCloneService<Request<()>, Response<String>, Infallible>);

/// Requests before counting, so that pools and caches are filled.
const WARM_UP: u32 = 200;
const COUNTED: u32 = 1000;

fn rows(runtime: &Runtime) -> Vec<Row> {
    let mock = || MockDatabase::new(DbBackend::Sqlite).into_connection();
    let sqlite = || runtime.block_on(connect());
    let untouched = service_fn(untouched);
    let plain = {
        let db = sqlite();
        service_fn(move |_: Request<()>| {
            let db = db.clone();
            async move { Ok(select(&db).await) }
        })
    };
    vec![
        ("no layer", BoxCloneService::new(untouched)),
        ("mock", BoxCloneService::new(DbSessionLayer::new(mock()).layer(untouched))),
        ("SQLite, lazy, untouched", BoxCloneService::new(DbSessionLayer::new(sqlite()).lazy().layer(untouched))),
        ("SQLite, eager, untouched", BoxCloneService::new(DbSessionLayer::new(sqlite()).layer(untouched))),
        ("SQLite, one SELECT, SeaORM's pool", BoxCloneService::new(plain)),
        (
            "SQLite, one SELECT, lazy session",
            BoxCloneService::new(DbSessionLayer::new(sqlite()).lazy().layer(service_fn(selecting))),
        ),
        (
            "SQLite, one SELECT, eager session",
            BoxCloneService::new(DbSessionLayer::new(sqlite()).layer(service_fn(selecting))),
        ),
    ]
}

async fn connect() -> DatabaseConnection {
    let mut options = ConnectOptions::new("sqlite::memory:");
    options.sqlx_logging(false);
    Database::connect(options).await.expect("a database in memory")
}

async fn untouched(_: Request<()>) -> Result<Response<String>, Infallible> {
    Ok(Response::new(String::new()))
}

async fn selecting(request: Request<()>) -> Result<Response<String>, Infallible> {
    let session: DbSession = DbSession::from_extensions(request.extensions()).expect("a layer");
    Ok(select(&session).await)
}

async fn select(db: &impl ConnectionTrait) -> Response<String> {
    let statement = Statement::from_string(DbBackend::Sqlite, "SELECT 1");
    let row = db.query_one_raw(statement).await.expect("an answer");
    black_box(row);
    Response::new(String::new())
}

/// One request from its beginning to its answer.
async fn request(service: &mut BoxCloneService<Request<()>, Response<String>, Infallible>) {
    let service = service.ready().await.expect("a service that does not fail");
    black_box(service.call(Request::new(())).await.expect("a service that does not fail"));
}

fn overhead(criterion: &mut Criterion) {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut rows = rows(&runtime);

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
