//! The check that a pool is whole: nothing leaked, nothing left open.

use std::time::Duration;

use sea_orm::{
    ConnectionTrait, DatabaseConnection, DbBackend, Statement,
    sqlx::{Database, Executor, MySql, Pool, Postgres, Sqlite},
};

use tokio::time::timeout;
use tower_sea_orm::{
    DbSessionLayer, PoolMode, PoolSession, Reset, SessionPool, SessionPoolBuilder,
};

use super::{
    database::{Kind, TestDb, count_items, try_insert_item, unique_name},
    wait::{BOUND, eventually},
};

/// For how long an idle connection is kept from the driver's pool.
const SOON: Duration = Duration::from_secs(1);

/// The builder of a session pool over `db`. The suite runs twice: with `TEST_HANDOFF=off`, no connection goes
/// straight from session to session, and with `TEST_POOL_MODE=transaction`, sessions lend their connection whenever they
/// may; every promise holds all the same.
/// Nobody is refused because the machine is busy, and idle connections go back to the driver's pool soon.
pub fn pool_builder(db: DatabaseConnection) -> SessionPoolBuilder {
    in_mode(
        SessionPool::builder(db)
            .direct_handoff(hands_over())
            .acquire_timeout(BOUND),
    )
}

/// Has the sessions lend whenever they may, if the suite runs so, and idle connections go back to the driver's pool soon.
pub fn in_mode(builder: SessionPoolBuilder) -> SessionPoolBuilder {
    let builder = builder.test_before_acquire_if_idle_for(SOON);
    if lends() {
        builder
            .pool_mode(PoolMode::Transaction)
            .rotate_connections()
    } else {
        builder
    }
}

/// Whether the suite runs with connections that go straight from session to session.
pub fn hands_over() -> bool {
    !std::env::var("TEST_HANDOFF").is_ok_and(|handoff| handoff == "off")
}

/// Whether the suite runs with sessions that lend their connection whenever they may.
pub fn lends() -> bool {
    std::env::var("TEST_POOL_MODE").is_ok_and(|mode| mode == "transaction")
}

/// A session pool with the default settings, whose idle connections go back to the driver's pool soon.
#[track_caller]
pub fn brief_pool(db: DatabaseConnection) -> SessionPool {
    let pool = SessionPool::builder(db).test_before_acquire_if_idle_for(SOON);
    pool.build().expect("a pool")
}

/// A session pool over `db`, with settings.
#[track_caller]
pub fn pool_with(
    db: &DatabaseConnection,
    set: impl FnOnce(SessionPoolBuilder) -> SessionPoolBuilder,
) -> SessionPool {
    set(pool_builder(db.clone())).build().expect("a pool")
}

/// A layer over a session pool with settings.
#[track_caller]
pub fn layer_with(
    db: &DatabaseConnection,
    set: impl FnOnce(SessionPoolBuilder) -> SessionPoolBuilder,
) -> DbSessionLayer {
    DbSessionLayer::new(pool_with(db, set))
}

/// A session pool over `db`.
#[track_caller]
pub fn session_pool(db: DatabaseConnection) -> SessionPool {
    pool_with(&db, |pool| pool)
}

/// A session of a pool whose waits are so short that a busy machine may need several.
pub async fn opened(pool: &SessionPool) -> PoolSession {
    let opened = async {
        loop {
            if let Ok(session) = pool.session().await {
                return session;
            }
        }
    };
    timeout(BOUND, opened).await.expect("a connection")
}

/// A layer over a [`session_pool`].
#[track_caller]
pub fn session_layer(db: DatabaseConnection) -> DbSessionLayer {
    DbSessionLayer::new(session_pool(db))
}

/// Waits until no session is out, and no request waits for one.
pub async fn returned(pool: &SessionPool) {
    eventually("no session is out", async || {
        let status = pool.status();
        (status.used, status.acquiring, status.pending) == (0, 0, 0)
    })
    .await;
}

/// Asserts that `db`, a pool on `test_db`, is whole: all its connections come
/// back, `size` of them can be had at the same time and work, no transaction
/// of this database is left open on the server, and an insert through `db` is
/// seen by others.
///
/// Call it when nothing else uses the database. A pool of an in-memory
/// database has one connection, whatever `size` says.
///
/// # Panics
///
/// If one of these does not hold; the message says which.
pub async fn assert_whole(test_db: &TestDb, db: &DatabaseConnection, size: u32) {
    match test_db.kind {
        Kind::Postgres => assert_gives::<Postgres>(db.get_postgres_connection_pool(), size).await,
        Kind::MySql => assert_gives::<MySql>(db.get_mysql_connection_pool(), size).await,
        Kind::SqliteFile => assert_gives::<Sqlite>(db.get_sqlite_connection_pool(), size).await,
        Kind::SqliteMemory => assert_gives::<Sqlite>(db.get_sqlite_connection_pool(), 1).await,
    }

    let observer = test_db.observer().await;
    let name = unique_name();
    if let Some(observer) = &observer {
        eventually("no transaction is left open", async || {
            open_transactions(observer).await == 0
        })
        .await;
    }
    // SQLite's worker may still be at the statement of a connection that was closed, and hold its lock.
    eventually("an insert works", async || {
        try_insert_item(db, &name).await.is_ok()
    })
    .await;
    let view = observer.as_ref().unwrap_or(db);
    assert_eq!(count_items(view, &name).await, 1, "the insert is seen");
    if let Some(observer) = observer {
        let _ = observer.close().await;
    }
}

/// Asserts that all of the pool's connections come back, and that `size` of
/// them can be had at the same time and work.
async fn assert_gives<DB>(pool: &Pool<DB>, size: u32)
where
    DB: Database,
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
{
    eventually("all connections came back to the pool", async || {
        usize::try_from(pool.size()) == Ok(pool.num_idle())
    })
    .await;
    let max = pool.options().get_max_connections();
    assert!(pool.size() <= max, "{} of {max} connections", pool.size());

    let all = async {
        let mut held = Vec::new();
        for taken in 0..size {
            match pool.acquire().await {
                Ok(connection) => held.push(connection),
                Err(error) => panic!("connection {} of {size}: {error}", taken + 1),
            }
        }
        for connection in &mut held {
            let ran = (&mut **connection).execute("SELECT 1").await;
            ran.expect("a connection of the pool works");
        }
    };
    let all = timeout(BOUND, all).await;
    assert!(all.is_ok(), "{size} connections within {BOUND:?}");
    eventually("all connections came back to the pool again", async || {
        usize::try_from(pool.size()) == Ok(pool.num_idle())
    })
    .await;
}

/// Returns how many transactions are open on the observer's database, other than the
/// observer's own.
pub async fn open_transactions(observer: &DatabaseConnection) -> usize {
    let backend = observer.get_database_backend();
    let rows = async |sql: &str| {
        let rows = observer.query_all_raw(Statement::from_string(backend, sql));
        rows.await.expect("the observer's query works")
    };
    match backend {
        DbBackend::Postgres => rows(
            "SELECT pid FROM pg_stat_activity \
             WHERE datname = current_database() AND state LIKE 'idle in transaction%'",
        )
        .await
        .len(),
        DbBackend::MySql => {
            // Not information_schema.innodb_trx: it shows what was true when
            // it was last read, unless nobody read it for 0.1 seconds.
            let threads = rows(
                "SELECT id FROM information_schema.processlist \
                 WHERE db = database() AND id <> connection_id()",
            )
            .await;
            let ours: Vec<String> = threads
                .iter()
                .map(|row| {
                    let id = row.try_get_by_index::<i64>(0);
                    let id = id.or_else(|_| row.try_get_by_index::<u64>(0).map(|id| id as i64));
                    format!(" thread id {},", id.expect("a thread's id"))
                })
                .collect();
            let status = rows("SHOW ENGINE INNODB STATUS").await;
            let status: String = status[0].try_get_by_index(2).expect("InnoDB's status");
            status
                .split("---TRANSACTION ")
                .skip(1)
                .filter(|transaction| transaction.lines().next().is_some_and(is_active))
                .filter(|transaction| ours.iter().any(|id| transaction.contains(id)))
                .count()
        }
        // A transaction left open on a file shows as a lock on the insert.
        _ => 0,
    }
}

/// Returns whether the first line about a transaction in InnoDB's status says that it
/// has begun.
fn is_active(line: &str) -> bool {
    line.contains(", ACTIVE")
}

/// Asserts that nothing is left open on the database; one in memory is gone with its pool.
pub async fn assert_nothing_left(test: &TestDb) {
    if test.kind != Kind::SqliteMemory {
        let db = test.connect(3).await;
        assert_whole(test, &db, 3).await;
    }
}

/// The resets that a pool may have in this run: sessions that lend cannot have the last one.
pub fn resets() -> impl Iterator<Item = Reset> {
    let all = [
        Reset::None,
        Reset::RollbackOnly,
        Reset::SessionState,
        Reset::SessionStateAlways,
    ];
    all.into_iter()
        .filter(|reset| !lends() || *reset != Reset::SessionStateAlways)
}
