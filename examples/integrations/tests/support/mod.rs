//! One database and one small pool for one test.
#![allow(dead_code, reason = "not every test needs all of it")]

use std::{
    env, process,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use integrations::{create_table, item};
use sea_orm::{
    ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DatabaseTransaction, DbBackend,
    EntityTrait, QuerySelect, Statement, TransactionTrait,
};
use tempfile::TempDir;
use tokio::time::timeout;
use tower_sea_orm::{PoolSession, SessionPool, SessionPoolBuilder};

/// How long anything may take until it hangs.
pub const BOUND: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Postgres,
    Sqlite,
}

impl Kind {
    pub const ALL: [Self; 2] = [Self::Postgres, Self::Sqlite];
}

/// A database of its own with the table of the examples, and a pool over it.
pub struct Site {
    pub pool: SessionPool,
    /// Looks on from outside the pool.
    pub observer: DatabaseConnection,
    kind: Kind,
    size: u32,
    /// PostgreSQL's own database, and the name of the test's one.
    admin: Option<(DatabaseConnection, String)>,
    _dir: TempDir,
}

impl Site {
    /// A site whose pool has `size` connections.
    pub async fn new(kind: Kind, size: u32) -> Self {
        Self::with(kind, size, |pool| pool).await
    }

    /// A site whose pool has `size` connections and settings.
    pub async fn with(
        kind: Kind,
        size: u32,
        set: impl FnOnce(SessionPoolBuilder) -> SessionPoolBuilder,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (url, admin) = match kind {
            Kind::Postgres => {
                let (url, admin, name) = new_database().await;
                (url, Some((admin, name)))
            }
            Kind::Sqlite => (
                format!("sqlite://{}?mode=rwc", dir.path().join("db").display()),
                None,
            ),
        };
        let observer = connect(&url, 10).await;
        // Nothing is refused because the machine is busy, unless a test says so.
        let pool = SessionPool::builder(connect(&url, size).await).acquire_timeout(BOUND);
        let pool = set(pool).build().unwrap();
        // Not by the pool, whose time-out may be short.
        let unhurried = SessionPool::new(observer.clone());
        create_table(&unhurried).await.unwrap();
        Self {
            pool,
            observer,
            kind,
            size,
            admin,
            _dir: dir,
        }
    }

    /// How many pieces of an item are in stock, as everyone sees it.
    pub async fn pieces(&self, id: i32) -> i32 {
        let item = item::Entity::find_by_id(id).one(&self.observer).await;
        item.unwrap().expect("the item").pieces
    }

    /// Locks an item's row, so that whoever writes it waits until this is dropped.
    pub async fn lock(&self, id: i32) -> DatabaseTransaction {
        let lock = self.observer.begin().await.unwrap();
        let row = item::Entity::find_by_id(id).lock_exclusive();
        row.one(&lock).await.unwrap().expect("the item");
        lock
    }

    /// Waits until so many statements wait for a lock.
    pub async fn blocked(&self, statements: i64) {
        let sql = "SELECT count(*) FROM pg_stat_activity \
            WHERE datname = current_database() AND wait_event_type = 'Lock'";
        eventually("the statements wait for the lock", async || {
            count(&self.observer, sql).await == statements
        })
        .await;
    }

    /// A session that has a connection, from a pool whose time-out may be too short for a busy machine.
    pub async fn session(&self) -> PoolSession {
        let opened = async {
            loop {
                if let Ok(session) = self.pool.session().await {
                    return session;
                }
            }
        };
        let session = timeout(BOUND, opened).await.expect("a connection");
        session.execute_unprepared("SELECT 1").await.unwrap();
        session
    }

    /// Waits until no session is out.
    pub async fn returned(&self) {
        eventually("no session is out", async || {
            let status = self.pool.status();
            (status.used, status.acquiring, status.pending) == (0, 0, 0)
        })
        .await;
    }

    /// Asserts that all connections come back, that all of them work at the same time, and that no transaction
    /// is left open; then removes the database.
    pub async fn assert_whole(self) {
        self.returned().await;
        let mut sessions = Vec::new();
        for _ in 0..self.size {
            sessions.push(self.session().await);
        }
        drop(sessions);
        if self.kind == Kind::Postgres {
            let sql = "SELECT count(*) FROM pg_stat_activity \
                WHERE datname = current_database() AND state LIKE 'idle in transaction%'";
            eventually("no transaction is left open", async || {
                count(&self.observer, sql).await == 0
            })
            .await;
        }
        self.pool.close(BOUND).await;
        self.observer.close().await.unwrap();
        if let Some((admin, name)) = self.admin {
            let sql = format!("DROP DATABASE {name} WITH (FORCE)");
            admin.execute_unprepared(&sql).await.unwrap();
        }
    }
}

/// Waits until `condition` is true.
pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !condition().await {
        assert!(started.elapsed() < BOUND, "not within {BOUND:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn count(db: &DatabaseConnection, sql: &str) -> i64 {
    let statement = Statement::from_string(DbBackend::Postgres, sql);
    let row = db.query_one_raw(statement).await.unwrap().expect("a row");
    row.try_get_by_index(0).unwrap()
}

async fn connect(url: &str, size: u32) -> DatabaseConnection {
    let mut options = ConnectOptions::new(url);
    options.max_connections(size).acquire_timeout(BOUND);
    options.sqlx_logging(false);
    Database::connect(options).await.unwrap()
}

/// Makes a database on the server of `TEST_POSTGRES_URL`: its URL, the server's own database, its name.
async fn new_database() -> (String, DatabaseConnection, String) {
    static MADE: AtomicU32 = AtomicU32::new(0);
    let url = env::var("TEST_POSTGRES_URL").unwrap_or_else(|_| {
        panic!("no TEST_POSTGRES_URL: examples/integrations/run installs and starts a server")
    });
    let admin = connect(&url, 1).await;
    let name = format!(
        "integrations_{}_{}_{}",
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_millis(),
        process::id(),
        MADE.fetch_add(1, Ordering::Relaxed)
    );
    admin
        .execute_unprepared(&format!("CREATE DATABASE {name}"))
        .await
        .unwrap();
    let (server, _) = url.rsplit_once('/').expect("a URL with a database");
    (format!("{server}/{name}"), admin, name)
}
