//! G10, G17: `ping` does not queue, and distinguishes a server that is down from a full pool.

use futures_util::future::join_all;
use sea_orm::Database;
use tokio::time::timeout;

use crate::support::{
    database::{Kind, TestDb},
    pool::{session_layer, session_pool},
    queue::{pool_of, queue, take},
    servers::OwnServer,
    site::{BOUND, port_of},
    wait::eventually,
    wire::Proxy,
};

#[tokio::test]
async fn ping_does_not_queue_and_distinguishes_down_from_full() {
    for start in [OwnServer::postgres, OwnServer::mysql] {
        let mut server = start();
        let test = TestDb::on(&server).await;
        let db = test.connect(1).await;
        let pool = pool_of(&db);
        let held = take(&pool).await;
        let waiting = queue(&pool, 2).await;
        timeout(BOUND, pool.ping())
            .await
            .expect("an answer")
            .expect("a full pool is no failure");
        waiting.into_iter().for_each(|waiter| waiter.abort());
        drop(held);

        server.stop();
        // The result is up to a second old; that it is down is true for longer than that.
        eventually("it is seen to be down", async || pool.ping().await.is_err()).await;
        let error = pool.ping().await.unwrap_err();
        assert!(error.is_unreachable(), "{error}");
        assert!(!error.to_string().contains("127.0.0.1"), "{error}");
        server.start();
        eventually("it is seen to be up again", async || {
            pool.ping().await.is_ok()
        })
        .await;
        db.close_by_ref().await.unwrap();
        assert!(pool.ping().await.unwrap_err().is_closing());
    }
}

#[tokio::test]
async fn many_pings_at_once_are_few_log_ins_for_the_server() {
    for kind in [Kind::Postgres, Kind::MySql] {
        let test = TestDb::new(kind).await;
        let proxy = Proxy::start(port_of(test.url())).await;
        let db = Database::connect(test.options_at(&proxy.url(test.url()), 2))
            .await
            .unwrap();
        let pool = session_pool(db.clone());
        let before = proxy.accepted();
        // Those who give up leave their attempt to the others.
        for _ in 0..50 {
            let mut ping = Box::pin(pool.ping());
            let _ = futures_util::poll!(&mut ping);
        }
        for answer in join_all((0..200).map(|_| pool.ping())).await {
            answer.unwrap();
        }
        assert_eq!(proxy.accepted() - before, 1, "{kind:?}");
        db.close().await.unwrap();
    }
}

#[tokio::test]
async fn ping_works_without_a_server() {
    for kind in [Kind::SqliteFile, Kind::SqliteMemory] {
        let test = TestDb::new(kind).await;
        let db = test.connect(1).await;
        let layer = session_layer(db.clone());
        let _held = take(layer.pool()).await;
        timeout(BOUND, layer.pool().ping())
            .await
            .expect("an answer")
            .unwrap();
    }
    let mock = sea_orm::MockDatabase::new(sea_orm::DbBackend::Postgres).into_connection();
    session_pool(mock).ping().await.unwrap();
}
