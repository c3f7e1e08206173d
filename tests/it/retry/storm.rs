//! G20: with many clients in each other's way, each acknowledged request is done once.

use std::time::Duration;

use axum::{Router, extract::Path, routing::get};
use futures_util::future::join_all;
use sea_orm::{ConnectionTrait, IsolationLevel, Statement, TransactionOptions};
use tower_sea_orm::{DbTx, RetryLayer};

use super::{Runs, attempts};
use crate::support::{
    database::{Kind, TestDb},
    requests::{Failed, send},
    site::{Site, value},
    statements::insert,
};

const CLIENTS: usize = 64;
const ROUNDS: usize = 3;

fn generous() -> RetryLayer {
    RetryLayer::new()
        .attempts(10_000)
        .budget(1000.0)
        .backoff(Duration::from_millis(1), Duration::from_millis(100))
        .total_timeout(Duration::from_secs(600))
}

/// Adds one to two counters, read and written as most handlers do; every second client takes them in the opposite order.
async fn count(tx: &DbTx, client: usize) -> Result<(), Failed> {
    let mut names = ["a", "b"];
    names.rotate_left(client % 2);
    for name in names {
        let update = format!("UPDATE item SET hits = hits + 1 WHERE name = '{name}'");
        tx.execute_unprepared(&update).await?;
        let read = format!("SELECT hits FROM item WHERE name = '{name}'");
        let backend = tx.get_database_backend();
        tx.query_one_raw(Statement::from_string(backend, read))
            .await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn g20_64_clients_in_each_others_way_are_all_served_and_each_once() {
    let serializable = TransactionOptions {
        isolation_level: Some(IsolationLevel::Serializable),
        ..Default::default()
    };
    for (kind, options) in [
        (Kind::MySql, TransactionOptions::default()),
        (Kind::Postgres, serializable),
    ] {
        let test = TestDb::new(kind).await;
        let db = test.connect(16).await;
        let site = Site::with(test, db, 16).await;
        site.run(&insert("a")).await;
        site.run(&insert("b")).await;
        let runs = Runs::default();
        let counted = runs.clone();
        let layer = site.layer.clone().transaction_with(options);
        // Where a lock is waited for in vain, PostgreSQL looks after a second only.
        let layer = if kind == Kind::Postgres {
            layer.set_local("deadlock_timeout", |_| "20ms".into())
        } else {
            layer
        };
        let handler = async move |tx: DbTx, Path(client): Path<usize>| {
            counted.note();
            count(&tx, client).await
        };
        let app = Router::new()
            .route("/{client}", get(handler))
            .layer(layer)
            .layer(generous());
        let clients = (0..CLIENTS).map(|client| {
            let app = &app;
            async move {
                let mut retries = 0;
                for _ in 0..ROUNDS {
                    let response = send(app, &format!("/{client}")).await;
                    assert_eq!(response.status(), 200, "{kind:?}");
                    retries += attempts(&response) - 1;
                }
                retries
            }
        });
        let retries: u32 = join_all(clients).await.into_iter().sum();
        let commits = (CLIENTS * ROUNDS) as u32;
        assert!(retries > 0, "{kind:?}: nobody was in anybody's way");
        assert_eq!(runs.count(), commits + retries, "{kind:?}");
        for name in ["a", "b"] {
            let hits = format!("SELECT hits FROM item WHERE name = '{name}'");
            assert_eq!(
                value::<i32>(site.view(), &hits).await,
                commits as i32,
                "{kind:?}"
            );
        }
        site.assert_whole().await;
    }
}
