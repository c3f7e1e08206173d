//! Sites whose network fails, and whose pools are in no hurry.

use std::time::Duration;

use axum::response::Response;
use futures_util::future::join_all;
use http::StatusCode;
use sea_orm::{ConnectionTrait, Database, DbBackend, DbErr, QueryResult, Statement};
use tower_sea_orm::{DbSession, DbSessionLayer, Error, SessionPoolBuilder};

use super::{
    database::{Kind, TestDb},
    pool::pool_with,
    site::{SIZE, Site, port_of},
    statements::{running, sleep},
    wait::{LONG, eventually},
    wire::Proxy,
};

/// Opens all connections of the site and waits until they are idle in the driver's pool.
pub async fn all_idle(site: &Site) {
    let pool = site.layer.pool();
    let sessions = join_all((0..site.size).map(|_| pool.session())).await;
    assert!(sessions.iter().all(Result::is_ok));
    drop(sessions);
    eventually("all are with the driver", async || {
        pool.status().idle == 0 && pool.status().used == 0
    })
    .await;
}

/// Waits until each connection of the site sleeps on the server.
pub async fn all_run(site: &Site) {
    eventually("all run", async || {
        running(site.view(), "sleep(").await == SIZE as usize
    })
    .await;
}

/// Waits until sessions hold all connections of the site, whose statements need not have arrived.
pub async fn all_used(site: &Site) {
    eventually("all are in use", async || {
        site.layer.pool().status().used == SIZE
    })
    .await;
}

/// Makes a pool that is in no hurry, and holds long after a second. If it `cancels`, it knows the server's process behind
/// each connection.
pub fn watched(pool: SessionPoolBuilder, cancels: bool) -> SessionPoolBuilder {
    let pool = pool
        .acquire_timeout(LONG)
        .hold_slow_threshold(Duration::from_secs(1));
    if cancels { pool.cancel_running() } else { pool }
}

/// A site behind a proxy whose time-outs are far longer than any test.
pub async fn patient_site(kind: Kind) -> (Site, Proxy) {
    let test = TestDb::new(kind).await;
    let proxy = Proxy::start(port_of(test.url())).await;
    (patient_site_at(test, &proxy).await, proxy)
}

/// A site behind this proxy whose time-outs are far longer than any test.
pub async fn patient_site_at(test: TestDb, proxy: &Proxy) -> Site {
    let mut options = test.options_at(&proxy.url(test.url()), SIZE);
    options.acquire_timeout(LONG);
    let db = Database::connect(options).await.unwrap();
    let layer = DbSessionLayer::new(pool_with(&db, |pool| pool.acquire_timeout(LONG)));
    Site::with(test, db, SIZE).await.layered(|_| layer)
}

pub async fn select(db: DbSession) {
    db.execute_unprepared("SELECT 1").await.unwrap();
}

/// How many seconds a statement runs whose answer is to be lost.
// Longer than a busy machine takes to see that the last one has begun, and to silence the network.
pub const RUNS: f64 = 3.0;

/// A statement that takes so long, and its answer: 502 if it was lost.
pub async fn sleeping(db: DbSession, kind: Kind, seconds: f64) -> StatusCode {
    match db.execute_raw(sleep(kind, seconds)).await {
        Ok(_) => StatusCode::OK,
        Err(error) if Error::of(&error).is_some_and(|error| error.is_connection_lost()) => {
            StatusCode::BAD_GATEWAY
        }
        Err(error) => panic!("{error}"),
    }
}

/// Sends so many bytes, which begin with `upload`.
pub async fn upload(db: &DbSession, bytes: usize) -> Result<Option<QueryResult>, DbErr> {
    let backend = db.backend();
    let sql = match backend {
        DbBackend::Postgres => "SELECT length($1)",
        _ => "SELECT length(?)",
    };
    let text = "upload".repeat(bytes / "upload".len());
    db.query_one_raw(Statement::from_sql_and_values(backend, sql, [text.into()]))
        .await
}

/// Panics unless all of these succeeded, and the one behind them.
#[track_caller]
pub fn assert_all_ok(answers: &[Response], next: &Response, case: &str) {
    let statuses: Vec<_> = answers
        .iter()
        .chain([next])
        .map(|answer| answer.status().as_u16())
        .collect();
    assert!(
        statuses.iter().all(|status| *status == 200),
        "{case}: {statuses:?}"
    );
}
