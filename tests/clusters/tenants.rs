//! The example `tenants` at its full size: a thousand tenants on three servers, within a budget of connections, and one of the
//! servers is killed. Beside it, SeaORM by hand: a pool for each tenant, kept in a map.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::State,
    routing::get,
};
use futures_util::future::join_all;
use http::{HeaderMap, Request, StatusCode, header::RETRY_AFTER};
use nix::sys::signal::Signal;
use sea_orm::{
    ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DbBackend, DbErr, Statement,
};
use tokio::{task::JoinHandle, time::sleep};
use tower::ServiceExt;
use tower_sea_orm::DbSession;

use super::{
    nodes::view,
    report::{Table, about},
    site::Failed,
    support::{servers::OwnServer, wait::BOUND},
};

#[allow(dead_code, reason = "a test does not call main")]
#[path = "../../examples/tenants/main.rs"]
mod example;

use example::{Limits, Tenants};

const TABLE: Table = Table {
    name: "tenants",
    head: &[
        "1 000 tenants on three servers",
        "requests",
        "200",
        "503",
        "other 5xx",
        "rows of another tenant",
        "pools opened",
        "connections at one server, at most",
        "longest answer",
    ],
};

const SERVERS: usize = 3;
const TENANTS: usize = 1000;
const CLIENTS: usize = 64;

/// Connections of each tenant's pool.
const SIZE: u32 = 4;
const WAIT: Duration = Duration::from_secs(2);

const LIMITS: Limits = Limits {
    budget: 60,
    connections: SIZE,
    wait: WAIT,
};

/// Each phase.
const TIME: Duration = Duration::from_secs(10);

/// Writes a row of the tenant, and reads the latest ones; each has to be the tenant's own.
const WRITE: &str = "INSERT INTO note (text) VALUES ($1)";
const READ: &str = "SELECT text FROM note ORDER BY id DESC LIMIT 5";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_tenants_share_a_budget_and_one_dead_server() {
    let mut servers: Vec<_> = (0..SERVERS)
        .map(|_| OwnServer::postgres_with(&["-cmax_connections=100"]))
        .collect();
    let started = Instant::now();
    join_all(servers.iter().enumerate().map(make_schemas)).await;
    eprintln!("{TENANTS} schemas after {}", about(started.elapsed()));
    let urls: Vec<_> = servers.iter().map(OwnServer::url).collect();
    let urls = |tenant: usize| {
        let (server, name) = (&urls[tenant % SERVERS], name(tenant));
        let url = format!("{server}?application_name=service&options[search_path]={name}");
        (name, url)
    };
    let urls: Vec<_> = (0..TENANTS).map(urls).collect();
    let views = join_all(servers.iter().map(async |server| view(&server.url()).await)).await;

    by_hand(&urls, &views).await;

    let tenants = Tenants::new(urls, LIMITS).expect("the URLs are right");
    let routes = Router::new().route("/", get(read).post(write));
    let app = example::protected(routes, tenants.clone());
    let watch = Watch::start(&views);
    let answers = phase(&app, TIME).await;
    let opened = tenants.pools().1;
    let most = watch.stop().await;
    row("all servers live", &answers, Some(opened), Some(most));
    judge_all_live(&answers, most);

    servers[2].end_by(Signal::SIGKILL, false);
    let watch = Watch::start(&views[..2]);
    let answers = phase(&app, TIME).await;
    let opened_later = tenants.pools().1 - opened;
    let most = watch.stop().await;
    let (dead, alive): (Vec<_>, Vec<_>) = answers
        .into_iter()
        .partition(|answer| answer.tenant % SERVERS == 2);
    let label = "one server killed: the tenants of the others";
    row(label, &alive, Some(opened_later), Some(most));
    row("one server killed: its tenants", &dead, None, None);
    judge_all_live(&alive, most);
    judge_dead(&dead);
    tenants.close(Duration::from_secs(5)).await;
}

fn judge_all_live(answers: &[Answer], most: i64) {
    assert!(most <= LIMITS.budget as i64, "{most} connections");
    assert!(most >= LIMITS.pools() as i64, "not all places were taken");
    assert_eq!(foreign(answers), 0, "rows of another tenant");
    let failed = count(answers, |status| status != 200 && status != 503);
    assert_eq!(failed, 0, "requests to living servers failed");
    let refused = count(answers, |status| status == 503);
    assert_eq!(refused, 0, "requests to living servers were refused");
}

fn judge_dead(answers: &[Answer]) {
    assert!(!answers.is_empty());
    assert_eq!(count(answers, |status| status == 200), 0);
    // A statement may meet a connection that has died: each does so once.
    let others = count(answers, |status| status != 503);
    assert!(others <= LIMITS.budget, "{others} with another status");
    let refused = answers.iter().filter(|answer| answer.status == 503);
    assert!(refused.clone().all(|answer| answer.retry_after));
    let longest = answers.iter().map(|answer| answer.took).max();
    assert!(longest < Some(BOUND), "a request hung");
}

/// A service without a budget, whose pools stay open. It is to show that the budget matters.
async fn by_hand(urls: &[(String, String)], views: &[DatabaseConnection]) {
    let pools = Arc::new(ByHand {
        urls: urls.iter().cloned().collect(),
        pools: Mutex::default(),
    });
    let app = Router::new()
        .route("/", get(read_by_hand).post(write_by_hand))
        .with_state(pools.clone());
    let watch = Watch::start(views);
    let answers = phase(&app, TIME).await;
    let opened = pools.pools().len();
    row(
        "by hand, all servers live",
        &answers,
        Some(opened),
        Some(watch.stop().await),
    );
    assert_eq!(foreign(&answers), 0);
    let pools: Vec<_> = pools.pools().drain().map(|(_, pool)| pool).collect();
    for pool in pools {
        pool.close().await.expect("the pool closes");
    }
}

/// The tenants of one server: a schema in place of a database, which would take minutes to make.
async fn make_schemas((server, own): (usize, &OwnServer)) {
    let admin = view(&own.url()).await;
    for tenant in (server..TENANTS).step_by(SERVERS) {
        let name = name(tenant);
        let sql = format!(
            "CREATE SCHEMA {name}; CREATE TABLE {name}.note \
             (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, text text NOT NULL)"
        );
        let made = admin.execute_unprepared(&sql).await;
        made.expect("the schema is made");
    }
}

fn name(tenant: usize) -> String {
    format!("tenant_{tenant}")
}

async fn one<T: sea_orm::TryGetable>(db: &DatabaseConnection, sql: &str) -> T {
    let row = db.query_one_raw(Statement::from_string(DbBackend::Postgres, sql));
    let row = row.await.expect("an answer").expect("a row");
    row.try_get_by_index(0).expect("a value")
}

/// Looks all the while how many connections each server has for its tenants.
struct Watch {
    stopped: Arc<AtomicBool>,
    looking: Vec<JoinHandle<i64>>,
}

impl Watch {
    fn start(views: &[DatabaseConnection]) -> Self {
        let stopped = Arc::new(AtomicBool::new(false));
        let look = |view: &DatabaseConnection| {
            let (view, stopped) = (view.clone(), stopped.clone());
            tokio::spawn(async move {
                let sql =
                    "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'service'";
                let mut most = 0;
                while !stopped.load(Ordering::Relaxed) {
                    most = most.max(one(&view, sql).await);
                    sleep(Duration::from_millis(2)).await;
                }
                most
            })
        };
        let looking = views.iter().map(look).collect();
        Self { stopped, looking }
    }

    /// The most that one server had at one time.
    async fn stop(self) -> i64 {
        self.stopped.store(true, Ordering::Relaxed);
        let most = join_all(self.looking).await;
        let most = most.into_iter().map(|most| most.expect("no panic"));
        most.max().unwrap_or_default()
    }
}

struct Answer {
    tenant: usize,
    status: u16,
    retry_after: bool,
    foreign: usize,
    took: Duration,
}

/// Clients that pick a tenant for each request, for so long.
async fn phase(app: &Router, time: Duration) -> Vec<Answer> {
    let until = Instant::now() + time;
    let picks = Arc::new(zipf());
    let clients = (1..=CLIENTS).map(|seed| {
        let (app, picks) = (app.clone(), picks.clone());
        tokio::spawn(async move {
            let mut random = Random((seed as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15));
            let mut answers = Vec::new();
            while Instant::now() < until {
                let at = random.next();
                let tenant = picks.partition_point(|sum| *sum < at).min(TENANTS - 1);
                let method = if random.next() < 0.3 { "POST" } else { "GET" };
                answers.push(ask(&app, method, tenant).await);
            }
            answers
        })
    });
    let answers = join_all(clients.collect::<Vec<_>>()).await;
    let answers = answers
        .into_iter()
        .map(|answers| answers.expect("no panic"));
    answers.flatten().collect()
}

async fn ask(app: &Router, method: &str, tenant: usize) -> Answer {
    let sent = Instant::now();
    let name = name(tenant);
    let request = Request::builder().method(method).uri("/");
    let request = request.header("x-tenant", &name).body(Body::empty());
    let response = app.clone().oneshot(request.expect("a request")).await;
    let (head, body) = response.expect("an answer").into_parts();
    let body = to_bytes(body, usize::MAX).await.expect("a body");
    let body = String::from_utf8_lossy(&body);
    let is_foreign = |line: &&str| head.status == StatusCode::OK && *line != name;
    Answer {
        tenant,
        status: head.status.as_u16(),
        retry_after: head.headers.contains_key(RETRY_AFTER),
        foreign: body.lines().filter(is_foreign).count(),
        took: sent.elapsed(),
    }
}

/// The sums of the tenants' shares by Zipf's law: the first is asked for twice as often as the second, and so on.
fn zipf() -> Vec<f64> {
    let shares = (1..=TENANTS).map(|rank| 1.0 / rank as f64);
    let all: f64 = shares.clone().sum();
    let sums = shares.scan(0.0, |sum, share| {
        *sum += share / all;
        Some(*sum)
    });
    sums.collect()
}

/// Marsaglia's xorshift (<https://www.jstatsoft.org/article/view/v008i14>): the same picks in every run.
struct Random(u64);

impl Random {
    /// A number from 0 to 1.
    fn next(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }
}

async fn read(db: DbSession) -> Result<String, Failed> {
    Ok(read_notes(&db).await?)
}

async fn write(db: DbSession, head: HeaderMap) -> Result<String, Failed> {
    Ok(write_note(&db, &head).await?)
}

async fn read_notes<C: ConnectionTrait>(db: &C) -> Result<String, DbErr> {
    let rows = db.query_all_raw(Statement::from_string(DbBackend::Postgres, READ));
    let rows = rows.await?;
    let texts = rows.iter().map(|row| row.try_get_by_index::<String>(0));
    Ok(texts.collect::<Result<Vec<_>, _>>()?.join("\n"))
}

async fn write_note<C: ConnectionTrait>(db: &C, head: &HeaderMap) -> Result<String, DbErr> {
    let values = [tenant_of(head).into()];
    let statement = Statement::from_sql_and_values(DbBackend::Postgres, WRITE, values);
    db.execute_raw(statement).await?;
    read_notes(db).await
}

fn tenant_of(head: &HeaderMap) -> &str {
    head["x-tenant"].to_str().expect("a name")
}

/// A pool for each tenant that was ever asked for.
struct ByHand {
    urls: HashMap<String, String>,
    pools: Mutex<HashMap<String, DatabaseConnection>>,
}

impl ByHand {
    fn pools(&self) -> std::sync::MutexGuard<'_, HashMap<String, DatabaseConnection>> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn pool(&self, tenant: &str) -> Result<DatabaseConnection, DbErr> {
        let there = self.pools().get(tenant).cloned();
        if let Some(pool) = there {
            return Ok(pool);
        }
        let mut options = ConnectOptions::new(&self.urls[tenant]);
        options
            .connect_lazy(true)
            .max_connections(SIZE)
            .acquire_timeout(WAIT)
            .sqlx_logging(false);
        let pool = Database::connect(options).await?;
        Ok(self
            .pools()
            .entry(tenant.to_owned())
            .or_insert(pool)
            .clone())
    }
}

async fn read_by_hand(
    State(by_hand): State<Arc<ByHand>>,
    head: HeaderMap,
) -> Result<String, StatusCode> {
    let failed = |_| StatusCode::INTERNAL_SERVER_ERROR;
    let db = by_hand.pool(tenant_of(&head)).await.map_err(failed)?;
    read_notes(&db).await.map_err(failed)
}

async fn write_by_hand(
    State(by_hand): State<Arc<ByHand>>,
    head: HeaderMap,
) -> Result<String, StatusCode> {
    let failed = |_| StatusCode::INTERNAL_SERVER_ERROR;
    let db = by_hand.pool(tenant_of(&head)).await.map_err(failed)?;
    write_note(&db, &head).await.map_err(failed)
}

fn count(answers: &[Answer], is: impl Fn(u16) -> bool) -> usize {
    answers.iter().filter(|answer| is(answer.status)).count()
}

fn foreign(answers: &[Answer]) -> usize {
    answers.iter().map(|answer| answer.foreign).sum()
}

fn row(label: &str, answers: &[Answer], opened: Option<usize>, most: Option<i64>) {
    let longest = answers.iter().map(|answer| answer.took).max();
    TABLE.row(&[
        label.to_owned(),
        answers.len().to_string(),
        count(answers, |status| status == 200).to_string(),
        count(answers, |status| status == 503).to_string(),
        count(answers, |status| status >= 500 && status != 503).to_string(),
        foreign(answers).to_string(),
        opened.map_or("–".to_owned(), |opened| opened.to_string()),
        most.map_or("–".to_owned(), |most| most.to_string()),
        about(longest.unwrap_or_default()),
    ]);
}
