//! Whether requests are answered while the network or the server does only part of its work: this crate beside
//! SeaORM alone, on the same database, one after the other.

mod clients;
mod condition;

use std::time::Duration;

use axum::{Router, extract::State, routing::any};
use futures_util::future::join_all;
use http::StatusCode;
use sea_orm::{ConnectionTrait, Database, DatabaseConnection, Statement};
use tokio::time::timeout;
use tower_sea_orm::{DbSession, DbSessionLayer, SessionPool, SessionPoolBuilder};

use self::{
    clients::{Clients, Course, PATIENCE},
    condition::{Condition, Setting},
};
use super::{
    is_long,
    report::{conclude, keep},
    site::all_idle,
    support::{
        database::{self, TestDb},
        servers::OwnServer,
        site::port_of,
        wait::{BOUND, eventually},
        wire::Proxy,
    },
};

/// The pool of each service.
const CONNECTIONS: u32 = 10;
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);

/// What a share may be smaller by because the machine was busy with something else.
const NOISE: f64 = 0.05;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Service {
    Ours,
    /// Which asks the server whether it is still at work for a statement.
    Asking,
    SeaOrm,
}

impl Service {
    fn name(self) -> &'static str {
        match self {
            Self::Ours => "tower-sea-orm",
            Self::Asking => "tower-sea-orm, `cancel_running`, `hold_slow_threshold` of 1 s",
            Self::SeaOrm => "SeaORM alone",
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_some_of_postgres_works_every_request_is_answered_well() {
    side_by_side(database::Kind::Postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_some_of_mariadb_works_every_request_is_answered_well() {
    side_by_side(database::Kind::MySql).await;
}

/// The long form has the machine for one condition at a time.
async fn side_by_side(database: database::Kind) {
    let conditions = Condition::ALL
        .into_iter()
        .filter(|condition| condition.is_for(database));
    let mut broken = Vec::new();
    if is_long() {
        for condition in conditions {
            broken.extend(compare(database, condition).await);
        }
    } else {
        let conditions = conditions.filter(|condition| condition.is_short());
        broken.extend(
            join_all(conditions.map(|condition| compare(database, condition)))
                .await
                .concat(),
        );
    }
    conclude(&broken);
}

/// What does not hold under one condition.
async fn compare(database: database::Kind, condition: Condition) -> Vec<String> {
    let server = condition.needs_own_server().then(OwnServer::mysql);
    let test = match &server {
        Some(server) => TestDb::on(server).await,
        None => TestDb::new(database).await,
    };
    let scenario = format!("{database:?}, {}", condition.name());
    let watched = async |service| {
        let course = run(&test, condition, service).await;
        tell(&scenario, service.name(), &course);
        course
    };
    let ours = watched(Service::Ours).await;
    if condition == Condition::Silenced {
        watched(Service::Asking).await;
    }
    let theirs = watched(Service::SeaOrm).await;
    let mut broken = Vec::new();
    if condition.is_promised() && ours.share() < 1.0 - NOISE {
        broken.push(format!(
            "{scenario}: {:.3} answered well, by SeaORM {:.3}",
            ours.share(),
            theirs.share()
        ));
    }
    if ours.left > 0 {
        broken.push(format!(
            "{scenario}: {} not answered within {PATIENCE:?}",
            ours.left
        ));
    }
    if ours.good_again.is_none() {
        broken.push(format!("{scenario}: requests fail after it"));
    }
    broken
}

/// Clients ask before, during and after the condition.
async fn run(test: &TestDb, condition: Condition, service: Service) -> Course {
    let proxy = Proxy::start(port_of(test.url())).await;
    let setting = Setting::new(test, proxy).await;
    let mut options = test.options_at(&setting.url(), CONNECTIONS);
    options.acquire_timeout(ACQUIRE_TIMEOUT);
    let db = Database::connect(options)
        .await
        .expect("the proxy can be reached");
    let app = app(service, &db);
    let pace = Duration::from_millis(if is_long() { 20 } else { 80 });
    let mut clients = Clients::new(app, pace);
    clients.ask(if condition.is_for_rising_load() {
        FEW
    } else {
        ALL
    });
    tokio::time::sleep(length(2)).await;
    if condition == Condition::Forgotten {
        clients.pause();
        eventually("all connections are idle", async || all_idle(&db)).await;
    }
    condition.begin(&setting).await;
    clients.fault_begins();
    clients.ask(ALL);
    tokio::time::sleep(length(8)).await;
    condition.end(&setting).await;
    clients.fault_is_over(condition.lasts());
    let course = clients.settle(length(3)).await;
    // What still waits on a black hole waits no longer.
    setting.cut();
    let _ = timeout(BOUND, db.close()).await;
    setting.remove().await;
    course
}

/// How many clients there are, and how many while the load is low.
const ALL: usize = 20;
const FEW: usize = 2;

/// So many seconds; in the short form quarters of them.
fn length(seconds: u64) -> Duration {
    Duration::from_millis(if is_long() { 1000 } else { 250 } * seconds)
}

fn app(service: Service, db: &DatabaseConnection) -> Router {
    let on = |pool: SessionPoolBuilder| {
        let layer = DbSessionLayer::new(pool.build().expect("settings that fit"));
        Router::new()
            .route("/", any(async |db: DbSession| answer(&db).await))
            .layer(layer)
    };
    let pool = SessionPool::builder(db.clone());
    match service {
        Service::Ours => on(pool),
        Service::Asking => on(pool
            .cancel_running()
            .hold_slow_threshold(Duration::from_secs(1))),
        Service::SeaOrm => Router::new()
            .route(
                "/",
                any(async |State(db): State<DatabaseConnection>| answer(&db).await),
            )
            .with_state(db.clone()),
    }
}

/// One read, which takes the server a quarter of the clients' pace.
async fn answer(db: &impl ConnectionTrait) -> StatusCode {
    let seconds = if is_long() { "0.005" } else { "0.02" };
    let backend = db.get_database_backend();
    let sql = match backend {
        sea_orm::DbBackend::Postgres => format!("SELECT 1 FROM pg_sleep({seconds})"),
        _ => format!("SELECT SLEEP({seconds})"),
    };
    match db.query_one_raw(Statement::from_string(backend, sql)).await {
        Ok(Some(_)) => StatusCode::OK,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// Prints the line and keeps it for the report.
fn tell(scenario: &str, service: &str, course: &Course) {
    const HEAD: &str = "| scenario | service | answers | good | share | longest wait | good again after | \
                        left |\n|---|---|--:|--:|--:|--:|--:|--:|\n";
    let seconds = |time: Duration| format!("{:.2} s", time.as_secs_f64());
    let good_again = course
        .good_again
        .map_or_else(|| "never".to_owned(), seconds);
    let line = format!(
        "| {scenario} | {service} | {} | {} | {:.1} % | {} | {good_again} | {} |\n",
        course.answers,
        course.good,
        100.0 * course.share(),
        seconds(course.longest),
        course.left,
    );
    eprint!("{HEAD}{line}");
    keep("liveness", HEAD, &line);
}
