//! An SQLite database in memory lives for as long as its session pool.

use std::{thread, time::Duration};

use sea_orm::{
    ConnectOptions, ConnectionTrait, Database, DatabaseConnection,
    sqlx::{self, ConnectOptions as _, sqlite::SqliteConnectOptions},
};
use tower_sea_orm::{PoolConfig, SessionPool};

use crate::{
    log::Log,
    support::{site::value, wait::eventually},
};

const LIMIT: Duration = Duration::from_secs(1);

/// One in which sqlx closes its connections soon.
async fn connect(url: &str) -> DatabaseConnection {
    let mut options = ConnectOptions::new(url);
    options.idle_timeout(LIMIT).max_lifetime(LIMIT);
    options.max_connections(2).sqlx_logging(false);
    Database::connect(options).await.unwrap()
}

fn build(db: DatabaseConnection) -> SessionPool {
    // So that each connection goes back to sqlx's pool.
    let pool = SessionPool::builder(db).direct_handoff(false);
    pool.build().unwrap()
}

async fn fill(pool: &SessionPool) {
    let session = pool.session().await.unwrap();
    let sql = "CREATE TABLE thing (id integer); INSERT INTO thing VALUES (1)";
    session.execute_unprepared(sql).await.unwrap();
}

async fn none_is_open(db: &DatabaseConnection) {
    let pool = db.get_sqlite_connection_pool();
    eventually("sqlx has closed its connections", async || pool.size() == 0).await;
}

/// Returns how many tables a new connection finds.
async fn tables(options: &SqliteConnectOptions) -> i64 {
    let mut connection = options.connect().await.unwrap();
    let count = sqlx::query_scalar("SELECT count(*) FROM sqlite_schema");
    count.fetch_one(&mut connection).await.unwrap()
}

#[tokio::test]
async fn a_database_in_memory_outlives_all_connections_of_the_driver() {
    for url in [
        "sqlite::memory:",
        "sqlite:file:thing?mode=memory&cache=shared",
    ] {
        for has_runtime in [true, false] {
            let url = &url.replace("thing", &format!("thing_{has_runtime}"));
            let db = connect(url).await;
            let pool = if has_runtime {
                build(db.clone())
            } else {
                let db = db.clone();
                thread::spawn(move || build(db)).join().unwrap()
            };
            fill(&pool).await;
            for round in 1..=2 {
                none_is_open(&db).await;
                let status = pool.status();
                assert_eq!((status.max, status.used, status.idle), (2, 0, 0), "{url}");
                let session = pool.session().await.unwrap();
                assert_eq!(
                    value::<i64>(&*session, "SELECT count(*) FROM thing").await,
                    round
                );
                session
                    .execute_unprepared("INSERT INTO thing VALUES (2)")
                    .await
                    .unwrap();
                // What wants all of the database to itself.
                session
                    .execute_unprepared(
                        "VACUUM; DROP TABLE IF EXISTS other; CREATE TABLE other (id integer)",
                    )
                    .await
                    .unwrap();
            }
            pool.close(LIMIT).await;
        }
    }
}

#[tokio::test]
async fn a_database_in_memory_is_gone_with_its_pool() {
    for closes in [true, false] {
        let db = connect("sqlite::memory:").await;
        let options = db.get_sqlite_connection_pool().connect_options();
        let pool = build(db.clone());
        fill(&pool).await;
        assert_eq!(tables(&options).await, 1);
        none_is_open(&db).await;
        if closes {
            pool.close(LIMIT).await;
        } else {
            drop(pool);
        }
        eventually("the database is gone", async || tables(&options).await == 0).await;
    }
}

const PRIVATE: [&str; 2] = [
    "sqlite::memory:?cache=private",
    "sqlite:file:own?mode=memory&cache=private",
];

#[tokio::test]
async fn a_pool_warns_of_limits_that_would_end_a_database_of_one_connection() {
    for url in PRIVATE {
        let warns = async |options: ConnectOptions| {
            let db = Database::connect(options).await.unwrap();
            let (log, _guard) = Log::start();
            let pool = SessionPool::new(db);
            pool.close(LIMIT).await;
            log.loud()
        };
        let mut options = ConnectOptions::new(url);
        options.sqlx_logging(false);
        let lines = warns(options.clone()).await;
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(
            lines[0].contains("idle_timeout(None).max_lifetime(None)"),
            "{lines:?}"
        );
        options.idle_timeout(None).max_lifetime(None);
        assert_eq!(warns(options).await, [""; 0]);
    }
}

#[tokio::test]
async fn a_configured_pool_has_no_limits_that_would_end_a_database_of_one_connection() {
    for url in PRIVATE {
        let config = PoolConfig::from_vars([("DATABASE_URL", url)]).unwrap();
        let options = config.connect_options();
        assert_eq!(options.get_idle_timeout(), Some(None), "{url}");
        assert_eq!(options.get_max_lifetime(), Some(None), "{url}");
        let never = [("DATABASE_URL", url), ("DB_IDLE_TIMEOUT", "never")];
        assert!(PoolConfig::from_vars(never).is_ok());
        for key in ["DB_IDLE_TIMEOUT", "DB_POOL_RECYCLE"] {
            let error = PoolConfig::from_vars([("DATABASE_URL", url), (key, "60")]).unwrap_err();
            assert_eq!(error.key(), key);
            assert!(error.to_string().contains("`never`"), "{error}");
        }
    }
    // Its pool keeps it, whatever the driver's closes.
    let shared = [
        ("DATABASE_URL", "sqlite::memory:"),
        ("DB_IDLE_TIMEOUT", "60"),
    ];
    assert!(PoolConfig::from_vars(shared).is_ok());
}
