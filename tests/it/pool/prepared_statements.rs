//! G15: MySQL closes a prepared statement by a message that has no answer, and the next statement then waits for a delayed
//! acknowledgement.

use std::time::{Duration, Instant};

use sea_orm::{ConnectionTrait, DatabaseConnection, Statement};
use tower_sea_orm::{PoolConfig, SessionPool};

use crate::{
    log::Log,
    support::{
        database::{Kind, TestDb},
        pool::{opened, session_pool},
    },
};

/// Runs `texts` different statements on one connection, twice. Returns how many of them it closed, and the time each took.
#[allow(clippy::print_stderr, reason = "the figures of docs/hazards.md")]
async fn run(pool: &SessionPool, texts: u32) -> (u64, Duration) {
    let session = opened(pool).await;
    let backend = session.get_database_backend();
    let before = closed(&session).await;
    let began = Instant::now();
    for _ in 0..2 {
        for text in 0..texts {
            let sql = format!("SELECT name AS n{text} FROM item WHERE id = ?");
            let statement = Statement::from_sql_and_values(backend, sql, [1.into()]);
            session.query_one_raw(statement).await.unwrap();
        }
    }
    let each = began.elapsed() / (2 * texts);
    let closed = closed(&session).await - before;
    eprintln!("{texts} texts: {closed} closed, {each:?} each");
    (closed, each)
}

/// How many prepared statements the session's connection has closed.
async fn closed(session: &impl ConnectionTrait) -> u64 {
    let sql = "SHOW SESSION STATUS LIKE 'Com_stmt_close'";
    let statement = Statement::from_string(session.get_database_backend(), sql);
    let row = session.query_one_raw(statement).await.unwrap().unwrap();
    let count: String = row.try_get_by_index(1).unwrap();
    count.parse().unwrap()
}

#[tokio::test]
async fn a_configured_pool_keeps_more_than_a_hundred_statements_prepared() {
    let test = TestDb::new(Kind::MySql).await;
    let configured = |url: String| async move {
        let config = PoolConfig::from_vars([("DATABASE_URL", url), ("POOL_SIZE", "1".to_owned())]);
        config.unwrap().connect().await.unwrap()
    };

    let pool = configured(test.url().to_owned()).await;
    assert_eq!(run(&pool, 150).await.0, 0);
    pool.close(Duration::ZERO).await;

    let separator = if test.url().contains('?') { '&' } else { '?' };
    let few = format!("{}{separator}statement-cache-capacity=40", test.url());
    let pool = configured(few).await;
    assert!(run(&pool, 60).await.0 >= 80, "the URL counts");
    pool.close(Duration::ZERO).await;
}

#[tokio::test]
async fn the_log_says_once_that_statements_are_prepared_again_and_again() {
    let test = TestDb::new(Kind::MySql).await;
    let (log, _guard) = Log::start();
    let lines = || log.count("more different statements than a connection keeps prepared");
    let pool = session_pool(test.connect(1).await);
    assert_eq!(run(&pool, 90).await.0, 0);
    assert_eq!(lines(), 0);
    // The control: sqlx's own options. Not a few texts more than the hundred: by their hashes, some count as one.
    assert!(run(&pool, 150).await.0 >= 60);
    assert_eq!(lines(), 1);
}

#[tokio::test]
async fn a_pool_that_is_to_keep_no_statement_is_told_nothing() {
    let test = TestDb::new(Kind::MySql).await;
    let (log, _guard) = Log::start();
    let separator = if test.url().contains('?') { '&' } else { '?' };
    let none = format!("{}{separator}statement-cache-capacity=0", test.url());
    let config = PoolConfig::from_vars([("DATABASE_URL", none)]).unwrap();
    let pool = config.connect().await.unwrap();
    run(&pool, 3).await;
    assert_eq!(log.count("keeps prepared"), 0);
    pool.close(Duration::ZERO).await;
}

#[tokio::test]
async fn postgres_answers_the_end_of_a_statement_and_the_log_says_nothing() {
    let test = TestDb::new(Kind::Postgres).await;
    let (log, _guard) = Log::start();
    let db: DatabaseConnection = test.connect(1).await;
    let session = opened(&session_pool(db)).await;
    for text in 0..150 {
        let sql = format!("SELECT name AS n{text} FROM item WHERE id = $1");
        let statement =
            Statement::from_sql_and_values(session.get_database_backend(), sql, [1.into()]);
        session.query_one_raw(statement).await.unwrap();
    }
    assert_eq!(log.count("keeps prepared"), 0);
}
