//! What is lost on the way: a position that cannot be known, and connections that die between requests.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
};

use tokio::time::timeout;

use super::*;
use crate::support::wait::BOUND;

const UNKNOWN: Option<&str> = Some("db-position=primary");

/// Its client reads on the primary until its next write, and its response does not wait.
#[tokio::test(flavor = "multi_thread")]
async fn g19_a_position_that_cannot_be_asked_for_is_the_primary() {
    let cluster = Cluster::new().await;
    let replicas = cluster.replicas();
    let released = async |db: DbSession| {
        try_insert_item(&db, "released").await?;
        db.release().await?;
        Ok::<_, Failed>(place(&db))
    };
    let stray = async |db: DbSession| {
        try_insert_item(&db, "stray").await?;
        let mut sleeps = pin!(db.execute_unprepared("SELECT pg_sleep(600)"));
        // Begun, and then left alone.
        poll_fn(|context| {
            let polled = sleeps.as_mut().poll(context);
            assert!(polled.is_pending());
            Poll::Ready(())
        })
        .await;
        Ok::<_, Failed>("primary")
    };
    let layer = DbSessionLayer::new(cluster.pool.clone()).replicas(replicas);
    let app = Router::new()
        .route("/released", post(released))
        .route("/stray", post(stray))
        .layer(layer);
    for name in ["released", "stray"] {
        let request = Request::post(format!("/{name}"));
        let written = timeout(BOUND, send(&app, request, None)).await;
        let written = written.expect("the response does not wait for the statement");
        assert_eq!(written.status, StatusCode::OK, "{written:?}");
        assert_eq!(written.cookie.as_deref(), UNKNOWN, "{name}");
    }
    end_all(cluster.pool.database()).await;
}

/// Committed is what the server says is committed, whatever comes after it.
#[tokio::test(flavor = "multi_thread")]
async fn g7_a_connection_lost_behind_commit_has_committed() {
    let cluster = Cluster::new().await;
    let replicas = cluster.replicas();
    let app = app(cluster.layer(&replicas));
    let beside = Database::connect(cluster.test.url()).await.unwrap();
    let own = "ALTER FUNCTION pg_catalog.pg_current_wal_insert_lsn() RENAME TO own_insert_lsn";
    let fails = "CREATE FUNCTION pg_catalog.pg_current_wal_insert_lsn() RETURNS pg_lsn LANGUAGE sql AS \
                 $$ SELECT ('0/' || 1 / (pg_backend_pid() - pg_backend_pid()))::pg_lsn $$";
    let dies = "CREATE OR REPLACE FUNCTION pg_catalog.pg_current_wal_insert_lsn() RETURNS pg_lsn LANGUAGE sql AS \
                $$ SELECT ('0/' || pg_terminate_backend(pg_backend_pid())::int)::pg_lsn $$";
    for (name, set_up) in [
        ("fails", [own, fails].as_slice()),
        ("dies", [dies].as_slice()),
    ] {
        for sql in set_up {
            beside.execute_unprepared(sql).await.unwrap();
        }
        for round in 0..3 {
            let name = format!("{name}_{round}");
            let request = Request::post(format!("/write/{name}"));
            let written = send(&app, request, None).await;
            assert_eq!(written.status, StatusCode::OK, "{name}: {written:?}");
            assert_eq!(written.cookie.as_deref(), UNKNOWN, "{name}");
            assert_eq!(count_items(&beside, &name).await, 1, "{name}");
        }
    }
}

/// Behind a request, a connection of a replica's pool is one as any other.
#[tokio::test(flavor = "multi_thread")]
async fn g17_a_job_on_a_replica_finds_its_connection_dead_and_uses_another() {
    let cluster = Cluster::new().await;
    let replicas = cluster.replicas();
    let app = app(cluster.layer(&replicas));
    all_in_use(&app, &replicas).await;
    for _ in 0..4 {
        let read = send(&app, Request::get("/count/none"), None).await;
        assert!(read.on_replica(), "{read:?}");
    }
    for (replica, (_, _, pool)) in cluster.replicas.iter().enumerate() {
        eventually("its connection is back", async || pool.status().used == 0).await;
        end_all(&cluster.beside(replica).await).await;
        // One that was in use less than a millisecond ago does not count as rested.
        tokio::time::sleep(Duration::from_millis(2)).await;
        let session = pool.session().await.unwrap();
        assert_eq!(count_items(&session, "none").await, 0);
    }
}

/// Ends all connections of clients but this one.
async fn end_all(db: &DatabaseConnection) {
    let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
               WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
    db.execute_unprepared(sql).await.unwrap();
}
