//! What a server remembers or becomes costs no request that it need not cost: stale plans, and a server that takes
//! no writes any more.

use axum::http::StatusCode;
use futures_util::StreamExt;
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, DbErr, Statement, TransactionTrait};
use tower_sea_orm::{DbSession, DbTx, SessionPool};

use crate::support::{
    database::{Kind, TestDb, insert_item},
    site::{SIZE, Site, is_mariadb, known, retry_after, value},
    wait::eventually,
};

async fn one_connection() -> Site {
    let test = TestDb::new(Kind::Postgres).await;
    let db = test.connect(1).await;
    Site::with(test, db, 1).await
}

/// Every way to run a prepared statement, each with a text of its own.
async fn run_all(db: &DbSession) -> Result<(), DbErr> {
    let statement = |sql: &str| Statement::from_sql_and_values(db.backend(), sql, [1.into()]);
    db.query_one_raw(statement("SELECT *, 1 FROM item WHERE id = $1"))
        .await?;
    db.query_all_raw(statement("SELECT *, 2 FROM item WHERE id = $1"))
        .await?;
    db.execute_raw(statement("SELECT *, 3 FROM item WHERE id = $1"))
        .await?;
    let mut rows = db
        .rows(statement("SELECT *, 4 FROM item WHERE id = $1"))
        .await?;
    while let Some(row) = rows.next().await {
        row?;
    }
    Ok(())
}

fn status<T>(result: Result<T, DbErr>) -> StatusCode {
    if result.is_ok() {
        StatusCode::OK
    } else {
        StatusCode::INTERNAL_SERVER_ERROR
    }
}

/// What makes the prepared statements of the pool's only connection stale.
async fn make_stale(site: &Site, how: &'static str) {
    if how.starts_with("ALTER") {
        site.run(how).await;
    } else {
        let response = site
            .call(async move |db: DbSession| status(db.execute_unprepared(how).await))
            .await;
        assert_eq!(response.status(), StatusCode::OK, "{how}");
    }
}

const STALE: [&str; 4] = [
    "ALTER TABLE item ADD COLUMN more integer",
    "DISCARD ALL",
    "DEALLOCATE ALL",
    "DO $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$",
];

#[tokio::test]
async fn a_stale_plan_outside_of_a_transaction_is_prepared_anew() {
    for how in STALE {
        let site = one_connection().await;
        for round in 0..3 {
            let response = site
                .call(async |db: DbSession| status(run_all(&db).await))
                .await;
            assert_eq!(response.status(), StatusCode::OK, "{how}, round {round}");
            if round == 0 {
                make_stale(&site, how).await;
            }
        }
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn a_stale_plan_in_a_transaction_costs_that_request_and_no_other() {
    for how in STALE {
        for nested in [false, true] {
            let site = one_connection().await;
            let request = async || {
                site.call(async move |tx: DbTx| {
                    if !nested {
                        return status(run_all(&tx).await);
                    }
                    let inner = tx.begin().await.unwrap();
                    let statement = Statement::from_string(tx.backend(), "SELECT * FROM item");
                    status(inner.query_all_raw(statement).await)
                })
                .await
            };
            assert_eq!(request().await.status(), StatusCode::OK);
            make_stale(&site, how).await;
            let response = request().await;
            assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE, "{how}");
            assert_eq!(retry_after(&response), Some("1"));
            assert_eq!(request().await.status(), StatusCode::OK, "{how}");
            site.assert_whole().await;
        }
    }
}

/// A database that refuses writes on the connections of before, as a server does that another one has taken over
/// from, and takes those of new ones, as that other one does.
#[tokio::test]
async fn after_a_fail_over_writes_are_good_within_a_few_requests() {
    for in_transaction in [false, true] {
        let test = TestDb::new(Kind::Postgres).await;
        let name = test
            .url()
            .rsplit_once('/')
            .unwrap()
            .1
            .split('?')
            .next()
            .unwrap()
            .to_owned();
        let admin = test.connect(1).await;
        let set = format!("ALTER DATABASE {name} SET default_transaction_read_only = on");
        admin.execute_unprepared(&set).await.unwrap();
        let db = test.connect(3).await;
        let site = Site::with(test, db, 3).await;
        // All connections are opened to the server of before.
        let mut held = Vec::new();
        for _ in 0..3 {
            let session = site.layer.pool().session().await.unwrap();
            session.execute_unprepared("SELECT 1").await.unwrap();
            held.push(session);
        }
        drop(held);
        let reset = format!("ALTER DATABASE {name} RESET default_transaction_read_only");
        admin
            .execute_unprepared("SET default_transaction_read_only = off")
            .await
            .unwrap();
        admin.execute_unprepared(&reset).await.unwrap();
        let mut failed = 0;
        for _ in 0..10 {
            let response = site
                .call(async move |db: DbSession| {
                    if in_transaction {
                        db.tx();
                    }
                    status(
                        db.execute_unprepared("UPDATE item SET hits = hits + 1")
                            .await,
                    )
                })
                .await;
            if response.status() != StatusCode::OK {
                failed += 1;
                assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
                assert!(retry_after(&response).is_some());
            }
        }
        // The first one closes the connections of the others.
        assert_eq!(failed, 1, "of 10 writes");
        site.layer.pool().ping().await.unwrap();
    }
}

/// The ways to send a statement.
#[derive(Clone, Copy, Debug)]
enum Way {
    Execute,
    Unprepared,
    One,
    All,
    Rows,
}

async fn insert_by(way: Way, db: &DbSession, name: &str) -> Result<(), DbErr> {
    let sql = format!("INSERT INTO item (name) VALUES ('{name}')");
    let statement = Statement::from_string(db.backend(), &sql);
    match way {
        Way::Execute => db.execute_raw(statement).await.map(drop),
        Way::Unprepared => db.execute_unprepared(&sql).await.map(drop),
        Way::One => db.query_one_raw(statement).await.map(drop),
        Way::All => db.query_all_raw(statement).await.map(drop),
        Way::Rows => {
            let mut rows = db.rows(statement).await?;
            while let Some(row) = rows.next().await {
                row?;
            }
            Ok(())
        }
    }
}

/// Waits until the server has closed the connection of this number.
async fn closed(view: &DatabaseConnection, id: i64) {
    let backend = view.get_database_backend();
    let sql = match backend {
        DbBackend::Postgres => format!("SELECT 1 FROM pg_stat_activity WHERE pid = {id}"),
        _ => format!("SELECT 1 FROM information_schema.PROCESSLIST WHERE ID = {id}"),
    };
    let sees = async || {
        view.query_one_raw(Statement::from_string(backend, &sql))
            .await
            .unwrap()
            .is_some()
    };
    eventually("the server closes the idle connection", async || {
        !sees().await
    })
    .await;
}

/// A pool of one connection that its server closes as soon as it is idle for a while, and which that is.
async fn soon_closed(kind: Kind) -> (Site, i64) {
    let test = TestDb::new(kind).await;
    let db = test.connect(1).await;
    let site = Site::with(test, db, 1).await;
    let session = site.layer.pool().session().await.unwrap();
    let (set, own) = match kind {
        Kind::Postgres => (
            "SET idle_session_timeout = '300ms'",
            "SELECT pg_backend_pid()::bigint",
        ),
        _ => (
            "SET SESSION wait_timeout = 1",
            "SELECT CAST(CONNECTION_ID() AS SIGNED)",
        ),
    };
    session.execute_unprepared(set).await.unwrap();
    let id = value(&*session, own).await;
    drop(session);
    (site, id)
}

#[tokio::test]
async fn a_first_statement_that_finds_its_connection_closed_as_idle_runs_on_another_one() {
    for kind in [Kind::Postgres, Kind::MySql] {
        for way in [Way::Execute, Way::Unprepared, Way::One, Way::All, Way::Rows] {
            let (site, id) = soon_closed(kind).await;
            if kind == Kind::MySql && is_mariadb(site.view()).await {
                // It closes the connection without a word, as a crash does.
                continue;
            }
            let view = site.view().clone();
            let handler = async move |db: DbSession| {
                closed(&view, id).await;
                status(insert_by(way, &db, "once").await)
            };
            assert_eq!(
                site.call(handler).await.status(),
                StatusCode::OK,
                "{kind:?} {way:?}"
            );
            assert_eq!(site.count("once").await, 1, "{kind:?} {way:?}");
            site.assert_whole().await;
        }
    }
}

#[tokio::test]
async fn a_later_statement_that_finds_its_connection_closed_as_idle_is_lost() {
    for kind in [Kind::Postgres, Kind::MySql] {
        let (site, id) = soon_closed(kind).await;
        let view = site.view().clone();
        let handler = async move |db: DbSession| {
            // What came before may have made the session's state.
            db.execute_unprepared("SELECT 1").await.unwrap();
            closed(&view, id).await;
            let error = insert_by(Way::Unprepared, &db, "never").await.unwrap_err();
            let again = insert_by(Way::Unprepared, &db, "never").await;
            assert!(known(again).is_connection_lost(), "{error}");
        };
        assert_eq!(
            site.call(handler).await.status(),
            StatusCode::OK,
            "{kind:?}"
        );
        assert_eq!(site.count("never").await, 0, "{kind:?}");
        site.assert_whole().await;
    }
}

/// Which connection this is, by a temporary table that has its number.
async fn connection_of(session: &DbSession, next: &mut i32) -> i32 {
    let read = Statement::from_string(session.backend(), "SELECT n FROM numbered");
    if let Ok(Some(row)) = session.query_one_raw(read).await {
        return row.try_get_by_index(0).unwrap();
    }
    *next += 1;
    session
        .execute_unprepared("CREATE TEMPORARY TABLE numbered (n integer)")
        .await
        .unwrap();
    session
        .execute_unprepared(&format!("INSERT INTO numbered VALUES ({next})"))
        .await
        .unwrap();
    *next
}

async fn connections_of(pool: &SessionPool, next: &mut i32) -> Vec<i32> {
    let mut sessions = Vec::new();
    let mut numbers = Vec::new();
    for _ in 0..SIZE {
        let session = pool.session().await.unwrap();
        numbers.push(connection_of(&session, next).await);
        sessions.push(session);
    }
    numbers
}

#[tokio::test]
async fn recycling_replaces_every_connection_and_disturbs_no_session() {
    for kind in [Kind::Postgres, Kind::MySql, Kind::SqliteFile] {
        let site = Site::new(kind).await;
        let (pool, mut next) = (site.layer.pool(), 0);
        let before = connections_of(pool, &mut next).await;
        assert_eq!(before, [1, 2, 3], "{kind:?}");
        let session = pool.session().await.unwrap();
        let held = connection_of(&session, &mut next).await;
        assert!(before.contains(&held), "{kind:?}: a connection from before");
        pool.recycle().unwrap();
        assert_eq!(
            connection_of(&session, &mut next).await,
            held,
            "{kind:?}: the session keeps its connection"
        );
        drop(session);
        let after = connections_of(pool, &mut next).await;
        assert!(
            after.iter().all(|number| *number > 3),
            "{kind:?}: {after:?}"
        );
        site.assert_whole().await;
    }
}

/// One that has come back while another session waited for it.
#[tokio::test]
async fn recycling_replaces_a_connection_that_is_on_its_way_back() {
    for kind in [Kind::Postgres, Kind::MySql] {
        let (site, proxy) = Site::behind_a_proxy(kind).await;
        let site = site.pooled(|pool| pool.direct_handoff(false));
        let (pool, mut next) = (site.layer.pool().clone(), 0);
        let session = pool.session().await.unwrap();
        assert_eq!(connection_of(&session, &mut next).await, 1);
        // All others are in use, so that the next session gets this one.
        let mut plain = Vec::new();
        for _ in 1..SIZE {
            plain.push(site.db.begin().await.unwrap());
        }
        proxy.freeze();
        drop(session);
        pool.recycle().unwrap();
        let waiting = tokio::spawn({
            let pool = pool.clone();
            async move { pool.session().await.unwrap() }
        });
        eventually("it is being fetched", async || pool.status().acquiring == 1).await;
        proxy.thaw();
        let session = waiting.await.unwrap();
        assert_eq!(
            connection_of(&session, &mut next).await,
            2,
            "{kind:?}: a new connection"
        );
        drop((session, plain));
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn recycling_leaves_a_database_in_memory_alone() {
    let site = Site::new(Kind::SqliteMemory).await;
    let (pool, driver) = (site.layer.pool(), site.db.get_sqlite_connection_pool());
    insert_item(&site.db, "kept").await;
    for by_a_session in [false, true] {
        if by_a_session {
            drop(pool.session().await.unwrap());
        }
        eventually("it is idle", async || {
            driver.num_idle() == 1 && pool.status().used == 0
        })
        .await;
        pool.recycle().unwrap();
        eventually("it is idle", async || driver.num_idle() == 1).await;
        assert_eq!(site.count("kept").await, 1);
    }
    site.assert_whole().await;
}

#[test]
fn recycling_outside_of_a_runtime_is_an_error() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let site = runtime.block_on(Site::new(Kind::SqliteFile));
    let outside = site.layer.pool().recycle().map_err(DbErr::from);
    assert!(known(outside).to_string().contains("runtime"));
    runtime.block_on(site.assert_whole());
}
