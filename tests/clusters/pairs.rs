//! [`Cluster`]: services over a primary and two replicas, whose clients write rows and read them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Path, State},
    routing::get,
};
use futures_util::future::join_all;
use http::{Request, StatusCode, header};
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DbBackend, DbErr, IsolationLevel, Statement,
    TransactionOptions,
};
use tokio::{task::JoinHandle, time::sleep};
use tower::ServiceExt;
use tower_sea_orm::{DbSession, DbSessionLayer, Replicas, SessionPool, unsafe_methods};

use super::{
    nodes::{self, steer},
    site::{self, Failed, Maker},
    support::wait::eventually,
};

const CLIENTS: usize = 16;

/// What the services run at, and what the tables call it.
pub const LEVELS: [(&str, IsolationLevel); 2] = [
    ("READ COMMITTED", IsolationLevel::ReadCommitted),
    ("REPEATABLE READ", IsolationLevel::RepeatableRead),
];

/// How the services get to the nodes of one cluster.
pub struct Cluster {
    primary: SessionPool,
    replicas: [SessionPool; 2],
    pub beside: [DatabaseConnection; 2],
}

impl Cluster {
    /// `ways`: what leads to the primary, to `r1` and to `r2`.
    pub async fn by(ways: [&str; 3]) -> Self {
        Self::beside(ways, ["r1", "r2"]).await
    }

    /// The same with replicas of these names.
    pub async fn beside(ways: [&str; 3], replicas: [&str; 2]) -> Self {
        let [primary, one, two] = ways;
        let urls = [
            nodes::url(primary).await,
            nodes::url(one).await,
            nodes::url(two).await,
        ];
        Self::at(urls, replicas).await
    }

    /// The same by URLs.
    pub async fn at(urls: [String; 3], replicas: [&str; 2]) -> Self {
        let pool = async |url: &str| SessionPool::new(site::connect(url).await);
        let [primary, one, two] = urls;
        Self {
            primary: pool(&primary).await,
            replicas: [pool(&one).await, pool(&two).await],
            beside: [
                nodes::view(&nodes::url(replicas[0]).await).await,
                nodes::view(&nodes::url(replicas[1]).await).await,
            ],
        }
    }

    /// The service with this crate, at this level, once so many replicas are in use.
    pub async fn by_layer(&self, level: Option<IsolationLevel>, in_use: usize) -> Router {
        self.watched(level, in_use).await.0
    }

    /// The same, with what is known of the replicas.
    pub async fn watched(
        &self,
        level: Option<IsolationLevel>,
        in_use: usize,
    ) -> (Router, Replicas) {
        let [one, two] = self.replicas.clone();
        let replicas = Replicas::of(self.primary.clone())
            .replica("r1", one)
            .replica("r2", two);
        let options = TransactionOptions {
            isolation_level: level,
            ..TransactionOptions::default()
        };
        let layer = DbSessionLayer::new(self.primary.clone())
            .lazy()
            .transaction_with(options)
            .transaction_if(unsafe_methods)
            .replicas(replicas.clone());
        let app = Router::new()
            .route("/{number}", get(read).post(write))
            .layer(layer);
        eventually("the replicas are in use", async || {
            send(&app, "GET", 0, None).await;
            let status = replicas.status();
            status.iter().filter(|one| one.out_of_use.is_none()).count() == in_use
        })
        .await;
        (app, replicas)
    }

    /// The primary's connections are opened anew.
    pub fn recycle(&self) {
        self.primary.recycle().expect("an open pool");
    }

    /// The same by hand: GET on a replica, POST on the primary.
    pub fn by_hand(&self) -> Router {
        let databases = [&self.primary, &self.replicas[0], &self.replicas[1]];
        let databases = databases.map(|pool| pool.database().clone());
        Router::new()
            .route("/{number}", get(read_by_hand).post(write_by_hand))
            .with_state(Arc::new(databases))
    }
}

async fn write(db: DbSession, Path(number): Path<i64>) -> Result<String, Failed> {
    Ok(site::write(&db, Maker::Layer, number).await?)
}

async fn read(db: DbSession, Path(number): Path<i64>) -> Result<String, Failed> {
    let count = count(&db, Maker::Layer, number).await?;
    let place = if db.is_replica() {
        "replica"
    } else {
        "primary"
    };
    Ok(format!("{count} {place}"))
}

type Databases = Arc<[DatabaseConnection; 3]>;

async fn write_by_hand(
    State(databases): State<Databases>,
    Path(number): Path<i64>,
) -> Result<String, Failed> {
    Ok(site::write(&databases[0], Maker::ByHand, number).await?)
}

async fn read_by_hand(
    State(databases): State<Databases>,
    Path(number): Path<i64>,
) -> Result<String, Failed> {
    let replica = &databases[1 + usize::from(number % 2 == 0)];
    let count = count(replica, Maker::ByHand, number).await?;
    Ok(format!("{count} replica"))
}

async fn count<C: ConnectionTrait>(db: &C, maker: Maker, number: i64) -> Result<i64, DbErr> {
    let backend = db.get_database_backend();
    let sql = match backend {
        DbBackend::MySql => "SELECT count(*) FROM ledger WHERE maker = ? AND number = ?",
        _ => "SELECT count(*) FROM ledger WHERE maker = $1 AND number = $2",
    };
    let values = [maker.mark().into(), number.into()];
    let statement = Statement::from_sql_and_values(backend, sql, values);
    let row = db.query_one_raw(statement).await?;
    row.map_or(Ok(0), |row| row.try_get_by_index(0))
}

/// Returns the status, the text and the cookie, if it has one.
pub async fn send(
    app: &Router,
    method: &str,
    number: i64,
    cookie: Option<&str>,
) -> (StatusCode, String, Option<String>) {
    let mut request = Request::builder().method(method).uri(format!("/{number}"));
    if let Some(cookie) = cookie {
        request = request.header(header::COOKIE, cookie);
    }
    let request = request.body(Body::empty()).expect("a request");
    let Ok(response) = app.clone().oneshot(request).await;
    let cookie = response.headers().get(header::SET_COOKIE);
    let cookie = cookie.and_then(|cookie| cookie.to_str().ok()?.split(';').next());
    let (status, cookie) = (response.status(), cookie.map(str::to_owned));
    let text = to_bytes(response.into_body(), usize::MAX).await;
    let text = String::from_utf8_lossy(&text.expect("a body")).into_owned();
    (status, text, cookie)
}

/// What the clients saw.
#[derive(Default)]
pub struct Seen {
    pairs: AtomicUsize,
    stale: AtomicUsize,
    on_replica: AtomicUsize,
    errors: AtomicUsize,
}

/// Has the clients write and read `pairs` rows in all. `keeps`: they send back what the writes have given them.
pub async fn run(app: &Router, first: i64, pairs: usize, keeps: bool) -> Seen {
    let (seen, next) = (Seen::default(), AtomicUsize::new(0));
    let client = async || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= pairs {
                return;
            }
            let number = first + i64::try_from(number).expect("a small number");
            let (status, _, cookie) = send(app, "POST", number, None).await;
            if status != StatusCode::OK {
                seen.errors.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            let cookie = cookie.filter(|_| keeps);
            let (status, text, _) = send(app, "GET", number, cookie.as_deref()).await;
            seen.pairs.fetch_add(1, Ordering::Relaxed);
            let counts = [
                (&seen.errors, status != StatusCode::OK),
                (&seen.stale, text.starts_with("0 ")),
                (&seen.on_replica, text.ends_with("replica")),
            ];
            for (count, is_so) in counts {
                count.fetch_add(usize::from(is_so), Ordering::Relaxed);
            }
        }
    };
    join_all((0..CLIENTS).map(|_| client())).await;
    seen
}

impl Seen {
    /// The pairs, the stale ones, those read on a replica, and the errors.
    pub fn counts(&self) -> [usize; 4] {
        let counts = [&self.pairs, &self.stale, &self.on_replica, &self.errors];
        counts.map(|count| count.load(Ordering::Relaxed))
    }
}

/// Pauses the replicas' replay at random, until it is dropped.
pub struct Pauses(JoinHandle<()>);

impl Pauses {
    pub fn begin(beside: &[DatabaseConnection; 2]) -> Self {
        let beside = beside.clone();
        Self(tokio::spawn(async move {
            let mut random = 88_172_645_463_325_252_u64;
            loop {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                for (bit, replica) in beside.iter().enumerate() {
                    let is_pause = random >> (8 + bit) & 1 == 1;
                    let sql = match (replica.get_database_backend(), is_pause) {
                        (DbBackend::Postgres, true) => "SELECT pg_wal_replay_pause()",
                        (DbBackend::Postgres, false) => "SELECT pg_wal_replay_resume()",
                        (_, true) => "STOP SLAVE SQL_THREAD",
                        (_, false) => "START SLAVE SQL_THREAD",
                    };
                    replica
                        .execute_unprepared(sql)
                        .await
                        .expect("the replica does so");
                }
                sleep(Duration::from_millis(20 + random % 200)).await;
            }
        }))
    }

    pub async fn end(self) {
        self.0.abort();
        let _ = self.0.await;
        for replica in ["r1", "r2"] {
            steer(&["resume_replay", replica]).await;
        }
    }
}
