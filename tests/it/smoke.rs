//! The helpers themselves work.

use std::time::Duration;

use sea_orm::{
    ConnectionTrait, DatabaseConnection, DbErr, TransactionTrait,
    sqlx::{Connection, Executor, MySqlConnection, PgConnection},
};

use crate::support::{
    database::{Kind, TestDb, count_items, insert_item},
    pool::{assert_whole, open_transactions},
    servers::OwnServer,
    site::port_of,
    wait::eventually,
    wire::Proxy,
};

/// A commit is seen by others, a rollback is not, and the pool stays whole.
async fn commits_and_rolls_back(kind: Kind) {
    let test_db = TestDb::new(kind).await;
    let db = test_db.connect(3).await;
    let observer = test_db.observer().await;
    let view = observer.as_ref().unwrap_or(&db);

    let transaction = db.begin().await.expect("a transaction");
    insert_item(&transaction, "kept").await;
    if let Some(observer) = &observer {
        assert_eq!(count_items(observer, "kept").await, 0, "not committed yet");
    }
    transaction.commit().await.expect("a commit");
    assert_eq!(count_items(view, "kept").await, 1);

    let transaction = db.begin().await.expect("a transaction");
    insert_item(&transaction, "dropped").await;
    drop(transaction);
    assert_whole(&test_db, &db, 3).await;
    assert_eq!(count_items(view, "dropped").await, 0);
}

#[tokio::test]
async fn postgres_database() {
    commits_and_rolls_back(Kind::Postgres).await;
}

#[tokio::test]
async fn mysql_database() {
    commits_and_rolls_back(Kind::MySql).await;
}

#[tokio::test]
async fn sqlite_file_database() {
    commits_and_rolls_back(Kind::SqliteFile).await;
}

#[tokio::test]
async fn sqlite_memory_database() {
    commits_and_rolls_back(Kind::SqliteMemory).await;
}

/// The check for open transactions sees one that is left open.
async fn sees_an_open_transaction(kind: Kind) {
    let test_db = TestDb::new(kind).await;
    let db = test_db.connect(2).await;
    let observer = test_db.observer().await.expect("a second view");
    assert_eq!(open_transactions(&observer).await, 0);
    let transaction = db.begin().await.expect("a transaction");
    insert_item(&transaction, "pending").await;
    assert_eq!(open_transactions(&observer).await, 1);
    transaction.rollback().await.expect("a rollback");
    assert_eq!(open_transactions(&observer).await, 0);
}

#[tokio::test]
async fn open_transaction_seen_on_postgres() {
    sees_an_open_transaction(Kind::Postgres).await;
}

#[tokio::test]
async fn open_transaction_seen_on_mysql() {
    sees_an_open_transaction(Kind::MySql).await;
}

/// A frozen server answers neither old connections nor new ones, and
/// a stopped one comes back with what was committed.
async fn freezes_and_restarts(mut server: OwnServer) {
    let test_db = TestDb::on(&server).await;
    let db = test_db.connect(2).await;
    insert_item(&db, "before").await;

    server.freeze();
    let answer = tokio::time::timeout(Duration::from_millis(300), ping(&db)).await;
    assert!(answer.is_err(), "a frozen server answered");
    server.thaw();
    eventually("the server answers after the thaw", async || {
        ping(&db).await.is_ok()
    })
    .await;

    server.freeze();
    server.stop();
    let answer = tokio::time::timeout(Duration::from_millis(300), ping(&db)).await;
    assert!(!matches!(answer, Ok(Ok(()))), "a stopped server answered");
    server.start();
    eventually("the server answers after the restart", async || {
        ping(&db).await.is_ok()
    })
    .await;
    assert_eq!(count_items(&db, "before").await, 1);
    assert_whole(&test_db, &db, 2).await;
}

/// One statement, on any connection.
async fn ping(db: &DatabaseConnection) -> Result<(), DbErr> {
    db.execute_unprepared("SELECT 1").await.map(drop)
}

#[tokio::test]
async fn postgres_server_freezes_and_restarts() {
    freezes_and_restarts(OwnServer::postgres()).await;
}

#[tokio::test]
async fn mysql_server_freezes_and_restarts() {
    freezes_and_restarts(OwnServer::mysql()).await;
}

#[tokio::test]
async fn proxy_counts_requests_to_postgres() {
    let test_db = TestDb::new(Kind::Postgres).await;
    let proxy = Proxy::start(port_of(test_db.url())).await;
    let connection = PgConnection::connect(&proxy.url(test_db.url())).await;
    let mut connection = connection.expect("a connection through the proxy");
    proxy.reset_count();
    for expected in 1..=3 {
        connection.execute("SELECT 1").await.expect("an answer");
        assert_eq!(proxy.requests(), expected);
    }
    connection.close().await.expect("a goodbye");
    eventually("the connection ended", async || proxy.connections() == 0).await;
    assert_eq!(proxy.requests(), 3);
}

#[tokio::test]
async fn proxy_counts_requests_to_mysql() {
    let test_db = TestDb::new(Kind::MySql).await;
    let proxy = Proxy::start(port_of(test_db.url())).await;
    let connection = MySqlConnection::connect(&proxy.url(test_db.url())).await;
    let mut connection = connection.expect("a connection through the proxy");
    proxy.reset_count();
    for expected in 1..=3 {
        connection.execute("SELECT 1").await.expect("an answer");
        assert_eq!(proxy.requests(), expected);
    }
    connection.close().await.expect("a goodbye");
    eventually("the connection ended", async || proxy.connections() == 0).await;
    assert_eq!(proxy.requests(), 3);
}

#[tokio::test]
async fn proxy_delays_freezes_cuts_and_refuses() {
    let test_db = TestDb::new(Kind::Postgres).await;
    let proxy = Proxy::start(port_of(test_db.url())).await;
    let url = proxy.url(test_db.url());
    let connection = PgConnection::connect(&url).await;
    let mut connection = connection.expect("a connection through the proxy");

    let delay = Duration::from_millis(50);
    proxy.delay_replies(delay);
    let started = std::time::Instant::now();
    connection.execute("SELECT 1").await.expect("an answer");
    assert!(started.elapsed() >= delay, "the reply came too early");
    proxy.delay_replies(Duration::ZERO);

    proxy.freeze();
    let mut answer = Box::pin(connection.execute("SELECT 1"));
    let early = tokio::time::timeout(Duration::from_millis(100), &mut answer).await;
    assert!(early.is_err(), "a frozen proxy let an answer through");
    proxy.thaw();
    answer.await.expect("an answer after the thaw");

    proxy.refuse(true);
    assert!(PgConnection::connect(&url).await.is_err(), "not refused");
    proxy.refuse(false);
    proxy.cut();
    assert!(connection.execute("SELECT 1").await.is_err(), "not cut");
    let again = PgConnection::connect(&url).await;
    again.expect("a new connection after the cut");
}
