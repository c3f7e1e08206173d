//! G17: the settings of the driver's pool underneath keep their meaning, and its plain users their share.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use sea_orm::{ConnectionTrait, Database, DatabaseConnection, DbBackend, Statement};
use tokio::time::timeout;
use tower_sea_orm::SessionPool;

use crate::support::{
    database::{Kind, SERVERS, TestDb},
    pool::{assert_whole, brief_pool},
    site::{BOUND, value},
    wait::eventually,
};

/// Returns the server's number of a session's connection.
async fn identity(pool: &SessionPool) -> i64 {
    let session = pool.session().await.unwrap();
    match session.backend() {
        DbBackend::Postgres => value::<i32>(&*session, "SELECT pg_backend_pid()")
            .await
            .into(),
        _ => value(&*session, "SELECT CAST(connection_id() AS SIGNED)").await,
    }
}

fn size(db: &DatabaseConnection) -> (u32, usize) {
    match db.get_database_backend() {
        DbBackend::Postgres => {
            let pool = db.get_postgres_connection_pool();
            (pool.size(), pool.num_idle())
        }
        DbBackend::MySql => {
            let pool = db.get_mysql_connection_pool();
            (pool.size(), pool.num_idle())
        }
        _ => {
            let pool = db.get_sqlite_connection_pool();
            (pool.size(), pool.num_idle())
        }
    }
}

#[tokio::test]
async fn a_connection_that_is_never_idle_is_replaced_after_its_max_lifetime() {
    for kind in SERVERS {
        let test = TestDb::new(kind).await;
        let mut options = test.options(2);
        options.max_lifetime(Duration::from_millis(300));
        let db = Database::connect(options).await.unwrap();
        let pool = brief_pool(db.clone());
        let first = identity(&pool).await;
        // One session after the other, so that it goes from hand to hand.
        eventually("another connection serves", async || {
            identity(&pool).await != first
        })
        .await;
        assert_whole(&test, &db, 2).await;
    }
}

#[tokio::test]
async fn idle_timeout_and_min_connections_keep_their_meaning() {
    for kind in SERVERS {
        let test = TestDb::new(kind).await;
        let mut options = test.options(4);
        options
            .idle_timeout(Duration::from_millis(500))
            .min_connections(1);
        let db = Database::connect(options).await.unwrap();
        let pool = brief_pool(db.clone());
        let three: Vec<_> = join_all((0..3).map(|_| pool.session())).await;
        assert_eq!(size(&db).0, 3, "{kind:?}");
        drop(three);
        eventually("all but the minimum are closed", async || {
            size(&db) == (1, 1)
        })
        .await;
        assert_eq!(pool.status().idle, 0);
        assert_whole(&test, &db, 4).await;
    }
}

#[tokio::test]
async fn while_sessions_rest_a_plain_user_is_served_at_once() {
    for kind in [Kind::Postgres, Kind::MySql, Kind::SqliteFile] {
        let test = TestDb::new(kind).await;
        let db = test.connect(2).await;
        let pool = brief_pool(db.clone());
        // Whatever sessions did a moment ago, one connection is the plain users'.
        for _ in 0..20 {
            drop(join_all([pool.session(), pool.session()]).await);
            timeout(BOUND, db.execute_unprepared("SELECT 1"))
                .await
                .expect("a connection")
                .unwrap();
        }
        assert_whole(&test, &db, 2).await;
    }
}

/// The target is 250 ms for the 99th percentile: `tests/run plain_users_share --no-capture` prints what it is.
#[tokio::test]
async fn plain_users_share_a_pool_that_sessions_saturate() {
    const ROUNDS: usize = 40;
    for users in [1, 4] {
        let test = TestDb::new(Kind::Postgres).await;
        let db = test.connect(10).await;
        let pool = SessionPool::builder(db.clone())
            .acquire_timeout(BOUND)
            .max_pending(1000)
            .build()
            .unwrap();
        let sessions: Vec<_> = (0..64)
            .map(|_| {
                let pool = pool.clone();
                tokio::spawn(async move {
                    loop {
                        let session = pool.session().await.unwrap();
                        let sleep =
                            Statement::from_string(DbBackend::Postgres, "SELECT pg_sleep(0.002)");
                        session.query_one_raw(sleep).await.unwrap();
                    }
                })
            })
            .collect();
        eventually("sessions wait", async || pool.status().pending > 20).await;
        let plain = join_all((0..users).map(|_| async {
            let mut waits = Vec::new();
            for _ in 0..ROUNDS {
                let started = Instant::now();
                timeout(BOUND, db.execute_unprepared("SELECT 1"))
                    .await
                    .expect("a turn")
                    .unwrap();
                waits.push(started.elapsed());
            }
            waits
        }));
        let mut waits = plain.await.concat();
        waits.sort();
        let (median, worst) = (waits[waits.len() / 2], waits[waits.len() * 99 / 100]);
        eprintln!(
            "{users} plain user(s) beside 64 sessions on 10 connections: median {median:?}, p99 {worst:?}"
        );
        sessions.iter().for_each(|session| session.abort());
        eventually("the sessions rest", async || pool.status().used == 0).await;
        assert_whole(&test, &db, 10).await;
    }
}
