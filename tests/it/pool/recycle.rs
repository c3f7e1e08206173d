//! G18: `recycle` replaces every connection and disturbs no session.

use sea_orm::{ConnectionTrait, DbErr, Statement, TransactionTrait};
use tower_sea_orm::{DbSession, SessionPool};

use crate::support::{
    database::{Kind, insert_item},
    site::{SIZE, Site, known},
    wait::eventually,
};

/// Returns the connection's number, from a temporary table.
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

/// A connection that came back while another session waited for it.
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
fn recycling_without_a_runtime_is_an_error() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let site = runtime.block_on(Site::new(Kind::SqliteFile));
    let outside = site.layer.pool().recycle().map_err(DbErr::from);
    assert!(known(outside).to_string().contains("runtime"));
    runtime.block_on(site.assert_whole());
}
