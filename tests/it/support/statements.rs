//! Statements: slow ones, every way to read a result, and which connection runs them.

use std::collections::BTreeSet;

use futures_util::{TryStreamExt, future::join_all};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, DbErr, Statement, StreamTrait};
use tower_sea_orm::{DbSession, PoolSession, SessionPool};

use super::{database::Kind, pool::pool_with};

/// The ways to run a statement whose result may have several rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    One,
    All,
    Execute,
    Unprepared,
    Stream,
}

/// All of them.
pub const WAYS: [Way; 5] = [
    Way::One,
    Way::All,
    Way::Execute,
    Way::Unprepared,
    Way::Stream,
];

/// Runs `sql` and reads its whole result.
pub async fn read(
    db: &(impl ConnectionTrait + StreamTrait),
    way: Way,
    sql: &str,
) -> Result<(), DbErr> {
    let statement = Statement::from_string(ConnectionTrait::get_database_backend(db), sql);
    match way {
        Way::One => db.query_one_raw(statement).await.map(drop),
        Way::All => db.query_all_raw(statement).await.map(drop),
        Way::Execute => db.execute_raw(statement).await.map(drop),
        Way::Unprepared => db.execute_unprepared(sql).await.map(drop),
        Way::Stream => db
            .stream_raw(statement)
            .await?
            .try_collect::<Vec<_>>()
            .await
            .map(drop),
    }
}

/// Runs SQL that the session does not see.
pub async fn raw(db: &DbSession, sql: &'static str) {
    use sea_orm::sqlx::Executor;
    match db.backend() {
        DbBackend::Postgres => {
            db.with_postgres(move |db| Box::pin(async move { db.execute(sql).await.map(drop) }))
                .await
                .unwrap()
                .unwrap();
        }
        DbBackend::MySql => {
            db.with_mysql(move |db| Box::pin(async move { db.execute(sql).await.map(drop) }))
                .await
                .unwrap()
                .unwrap();
        }
        _ => db
            .with_sqlite(move |db| Box::pin(async move { db.execute(sql).await.map(drop) }))
            .await
            .unwrap()
            .unwrap(),
    }
}

/// Returns how many statements of the observer's database run whose text contains `what`. They have reached the point
/// where they wait: one that is being prepared is shown with its text as well. The observer's own are not counted: the
/// server may show one for a moment after its answer.
pub async fn running(observer: &DatabaseConnection, what: &str) -> usize {
    let backend = observer.get_database_backend();
    let sql = match backend {
        DbBackend::Postgres => format!(
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND state = 'active' \
             AND wait_event_type IN ('Lock', 'Timeout') AND query NOT LIKE '%pg_stat_activity%' AND query ILIKE '%{what}%'"
        ),
        _ => format!(
            "SELECT 1 FROM information_schema.processlist WHERE db = database() \
             AND command IN ('Execute', 'Query') AND info NOT LIKE '%processlist%' AND info LIKE '%{what}%'"
        ),
    };
    observer
        .query_all_raw(Statement::from_string(backend, sql))
        .await
        .unwrap()
        .len()
}

/// Inserts an item in one message, without preparing the statement.
pub async fn insert_unprepared<C: ConnectionTrait>(db: &C, name: &str) -> Result<(), DbErr> {
    db.execute_unprepared(&insert(name)).await.map(drop)
}

/// A statement that takes about so long.
pub fn slow(kind: Kind, seconds: f32) -> Statement {
    let sql = match kind {
        Kind::Postgres => format!("SELECT 1 AS n FROM (SELECT pg_sleep({seconds})) AS slept"),
        Kind::MySql => format!("SELECT SLEEP({seconds}) AS n"),
        _ => {
            let rows = (seconds * 4_000_000.0) as u32;
            format!(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows}) SELECT count(*) FROM n"
            )
        }
    };
    Statement::from_string(kind.backend(), sql)
}

/// The text that inserts an item.
pub fn insert(name: &str) -> String {
    format!("INSERT INTO item (name) VALUES ('{name}')")
}

/// The marks ([`mark`]) of all the pool's connections.
pub async fn marks(pool: &SessionPool) -> BTreeSet<i64> {
    let sessions = join_all((0..pool.status().max).map(|_| pool.session())).await;
    let sessions: Vec<PoolSession> = sessions.into_iter().map(Result::unwrap).collect();
    join_all(sessions.iter().map(|session| mark(&**session)))
        .await
        .into_iter()
        .collect()
}

/// Returns a number that distinguishes one connection to the server from another, for as long as it lives.
pub async fn mark<C: ConnectionTrait>(db: &C) -> i64 {
    let backend = db.get_database_backend();
    let sql = match backend {
        DbBackend::Postgres => "SELECT CAST(pg_backend_pid() AS bigint)",
        DbBackend::MySql => "SELECT CAST(CONNECTION_ID() AS SIGNED)",
        _ => {
            // Temporary tables are the connection's own.
            db.execute_unprepared(
                "CREATE TEMPORARY TABLE IF NOT EXISTS mark (id integer); \
                 INSERT INTO mark SELECT abs(random() / 2) WHERE NOT EXISTS (SELECT 1 FROM mark)",
            )
            .await
            .unwrap();
            "SELECT id FROM mark"
        }
    };
    let row = db
        .query_one_raw(Statement::from_string(backend, sql))
        .await
        .expect("a mark");
    row.unwrap().try_get_by_index(0).unwrap()
}

/// A query that sleeps on the server.
pub fn sleep(kind: Kind, seconds: f64) -> Statement {
    let sql = match kind {
        Kind::Postgres => format!("SELECT 1 FROM pg_sleep({seconds})"),
        _ => format!("SELECT SLEEP({seconds})"),
    };
    Statement::from_string(kind.backend(), sql)
}

/// Holds the items' table, by a connection of `db`, so that what reads it waits.
pub async fn lock(kind: Kind, db: &DatabaseConnection) -> PoolSession {
    let session = pool_with(db, |pool| pool).session().await.unwrap();
    let lock = if kind == Kind::Postgres {
        session.tx();
        "LOCK TABLE item IN ACCESS EXCLUSIVE MODE"
    } else {
        "LOCK TABLES item WRITE"
    };
    session.execute_unprepared(lock).await.unwrap();
    session
}

/// Lets go of it.
pub async fn unlock(kind: Kind, locked: PoolSession) {
    if kind != Kind::Postgres {
        locked.execute_unprepared("UNLOCK TABLES").await.unwrap();
    }
}

/// An insert that takes a while.
pub fn slow_insert(kind: Kind, name: &str, seconds: f64) -> Statement {
    let sql = match kind {
        Kind::Postgres => {
            format!("INSERT INTO item (name) SELECT '{name}' FROM pg_sleep({seconds})")
        }
        _ => format!(
            "INSERT INTO item (name) SELECT '{name}' FROM (SELECT SLEEP({seconds})) AS slept"
        ),
    };
    Statement::from_string(kind.backend(), sql)
}
