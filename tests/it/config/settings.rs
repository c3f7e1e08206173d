//! `PoolConfig`: the settings of a pool, from the environment and by their names.

use std::time::{Duration, Instant};

use sea_orm::{ConnectionTrait, DatabaseConnection, Statement};
use tokio::time::timeout;
use tower_sea_orm::PoolConfig;

use crate::{
    config::from_settings::config,
    log::FullLog,
    support::{
        database::{Kind, TestDb, unique_name},
        pool::assert_whole,
        wait::BOUND,
    },
};

async fn size(db: &DatabaseConnection, kind: Kind) -> u32 {
    match kind {
        Kind::Postgres => db.get_postgres_connection_pool().size(),
        Kind::MySql => db.get_mysql_connection_pool().size(),
        Kind::SqliteFile | Kind::SqliteMemory => db.get_sqlite_connection_pool().size(),
    }
}

#[tokio::test]
async fn pool_size_max_overflow_and_pool_timeout_are_in_force() {
    for kind in [Kind::Postgres, Kind::MySql, Kind::SqliteFile] {
        let test = TestDb::new(kind).await;
        let settings = [
            ("POOL_SIZE", "2"),
            ("MAX_OVERFLOW", "1"),
            ("POOL_TIMEOUT", "3s"),
            ("ECHO", "false"),
        ];
        let pool = config(test.url(), &settings).connect().await.unwrap();
        assert_eq!(pool.status().max, 3, "{kind:?}");
        assert_eq!(
            size(pool.database(), kind).await,
            2,
            "{kind:?}: pool_size are opened at the start"
        );

        let mut sessions = Vec::new();
        for _ in 0..3 {
            let session = pool.session().await.unwrap();
            session.ping().await.unwrap();
            sessions.push(session);
        }
        assert_eq!(size(pool.database(), kind).await, 3, "{kind:?}");
        let started = Instant::now();
        let error = timeout(BOUND, pool.session()).await.unwrap().unwrap_err();
        assert!(error.is_exhausted(), "{kind:?}: {error:?}");
        assert!(
            started.elapsed() >= Duration::from_secs(3),
            "{kind:?}: {:?}",
            started.elapsed()
        );

        sessions.pop();
        drop(pool.session().await.unwrap());
        drop(sessions);
        assert_whole(&test, pool.database(), 3).await;
    }
}

#[tokio::test]
async fn reserved_connections_and_the_pools_own_settings_arrive() {
    let test = TestDb::new(Kind::SqliteFile).await;
    let settings = [
        ("MAX_CONNECTIONS", "3"),
        ("RESERVED_CONNECTIONS", "2"),
        ("DIRECT_HANDOFF", "no"),
        ("TEST_BEFORE_ACQUIRE_IF_IDLE_FOR", "20"),
        ("RELEASE_TIMEOUT", "7s"),
        ("COMMIT_TIMEOUT", "9s"),
        ("ACQUIRE_TIMEOUT", "30"),
        ("MAX_PENDING", "4"),
        ("RESET", "session_state"),
        ("POOL_MODE", "Transaction"),
        ("CANCEL_RUNNING", "yes"),
        ("HOLD_SLOW_THRESHOLD", "1min"),
        ("HOLD_TIMEOUT", "90"),
    ];
    let pool = config(test.url(), &settings).connect().await.unwrap();
    assert_eq!(pool.status().max, 1);
    let debug = format!("{pool:?}");
    for part in [
        "acquire_timeout: 30s",
        "release_timeout: 7s",
        "commit_timeout: 9s",
        "reserved_connections: 2",
        "direct_handoff: false",
        "test_before_acquire_if_idle_for: 20s",
        "max_pending: Some(4)",
        "reset: SessionState",
        "pool_mode: Transaction",
        "cancel_running: true",
        "hold_slow_threshold: 60s",
        "hold_timeout: 90s",
    ] {
        assert!(debug.contains(part), "no {part} in {debug}");
    }
    assert_whole(&test, pool.database(), 3).await;

    let settings = config(
        test.url(),
        &[("MAX_CONNECTIONS", "3"), ("RESERVED_CONNECTIONS", "2")],
    );
    let error = settings.session_pool(test.connect(2).await).unwrap_err();
    assert!(
        error.to_string().contains("`reserved_connections`"),
        "{error}"
    );
}

#[tokio::test]
async fn an_overflow_that_works_unlike_sqlalchemys_is_logged_once() {
    let (log, _guard) = FullLog::start();
    let test = TestDb::new(Kind::SqliteFile).await;
    let line = "`max_overflow` is added to `max_connections`";
    let pool = config(test.url(), &[("POOL_SIZE", "1"), ("MAX_OVERFLOW", "0")])
        .connect()
        .await
        .unwrap();
    assert_eq!(log.count(line), 0);
    drop(pool);
    let pool = config(test.url(), &[("POOL_SIZE", "1"), ("MAX_OVERFLOW", "2")])
        .connect()
        .await
        .unwrap();
    assert_eq!(log.count(line), 1);
    assert_whole(&test, pool.database(), 3).await;
}

#[tokio::test]
async fn echo_puts_the_statements_into_the_log_or_not() {
    for (echo, level, expected) in [("true", "warn", "WARN"), ("false", "warn", "")] {
        // SQLite's statements are logged by a thread of sqlx's, which this subscriber does not see.
        for kind in [Kind::Postgres, Kind::MySql] {
            let test = TestDb::new(kind).await;
            let pool = config(test.url(), &[("ECHO", echo), ("SQLX_LOGGING_LEVEL", level)])
                .connect()
                .await
                .unwrap();
            let session = pool.session().await.unwrap();
            let (log, guard) = FullLog::start();
            let name = unique_name();
            let sql = format!("SELECT hits AS {name} FROM item");
            session
                .query_all_raw(Statement::from_string(kind.backend(), sql))
                .await
                .unwrap();
            drop(guard);
            let text = log.text();
            let lines: Vec<_> = text
                .lines()
                .filter(|line| line.contains("sqlx::query") && line.contains(&name))
                .collect();
            if expected.is_empty() {
                assert!(lines.is_empty(), "{kind:?}: {lines:?}");
            } else {
                assert!(
                    lines.iter().any(|line| line.contains(expected)),
                    "{kind:?}: {text}"
                );
            }
            drop(session);
            assert_whole(&test, pool.database(), 3).await;
        }
    }
}

#[tokio::test]
async fn variables_of_other_programs_are_named_in_one_line_of_the_log() {
    let (log, _guard) = FullLog::start();
    let vars = [
        ("DATABASE_URL", "sqlite://shop.db"),
        ("DB_SERVICE_HOST", "10.0.0.1"),
        ("DB_PORT", "tcp://10.0.0.1:5432"),
        ("DB_PORT_5432_TCP", "tcp://10.0.0.1:5432"),
        ("DB_COLOUR", "hunter2"),
    ];
    PoolConfig::from_vars(vars).unwrap();
    assert_eq!(log.count("WARN"), 1, "{}", log.text());
    for (name, value) in &vars[1..] {
        assert_eq!(
            log.count(&format!("{name},")) + log.count(&format!("{name}\"")),
            1,
            "{name}: {}",
            log.text()
        );
        assert_eq!(log.count(value), 0, "{}", log.text());
    }
    let (log, _guard) = FullLog::start();
    PoolConfig::from_vars([
        ("DATABASE_URL", "sqlite://shop.db"),
        ("DB_POOL_SIZE", "1"),
        ("DB_MAX_OVERFLOW", "0"),
    ])
    .unwrap();
    assert_eq!(log.text(), "");
}

/// Runs itself in a separate process, which has another environment.
#[test]
fn the_environment_is_read() {
    const CHILD: &str = "CONFIG_TEST_EXPECTS";
    if let Ok(expected) = std::env::var(CHILD) {
        let read =
            PoolConfig::from_env().map(|config| config.connect_options().get_max_connections());
        assert_eq!(format!("{read:?}"), expected);
        return;
    }
    let read = |pool_size: &'static str, expected: &str| {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child
            .args(["--exact", "config::settings::the_environment_is_read"])
            .env(CHILD, expected);
        let vars = [
            ("DATABASE_URL", "sqlite://shop.db"),
            ("DB_MAX_OVERFLOW", "3"),
            ("DB_PASSWORD", "x"),
            (pool_size, "2"),
        ];
        let output = child.envs(vars).output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stdout)
        );
        assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
    };
    read("DB_POOL_SIZE", "Ok(Some(5))");
    let error = PoolConfig::from_vars([("DB_POOL_SZIE", "2")]).unwrap_err();
    read("DB_POOL_SZIE", &format!("{:?}", Err::<(), _>(error)));
    let error = PoolConfig::from_vars([("db_pool_size", "2")]).unwrap_err();
    read("db_pool_size", &format!("{:?}", Err::<(), _>(error)));
}
