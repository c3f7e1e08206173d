//! G8: requests beside each other. Locks are free with the response, and conflicts are answered as retryable.

use std::{convert::Infallible, sync::Arc};

use axum::{Router, body::Body, extract::Path, response::Response, routing::any};
use futures_util::future::join_all;
use http::{Request, StatusCode};
use sea_orm::{
    ConnectionTrait, DbErr, IsolationLevel, Statement, TransactionOptions, TransactionTrait,
    sqlx::Executor,
};
use tokio::{sync::Barrier, time::timeout};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_sea_orm::{DbSession, DbTx};

use crate::support::{
    database::{Kind, insert_item},
    requests::Failed,
    site::{BOUND, Site, outcome, retry_after, value, violate},
};

/// Asserts that another session can lock the row at once.
async fn assert_unlocked(site: &Site, case: &str) {
    let view = site.view();
    let locked = match site.kind() {
        Kind::SqliteFile => {
            let pool = view.get_sqlite_connection_pool();
            let mut connection = pool.acquire().await.unwrap();
            let locked = connection
                .execute("PRAGMA busy_timeout = 0; BEGIN IMMEDIATE")
                .await
                .map(drop);
            let _ = connection.execute("ROLLBACK").await;
            connection.close().await.unwrap();
            locked.map_err(|error| error.to_string())
        }
        // There is no other connection.
        Kind::SqliteMemory => Ok(()),
        kind => {
            let sql = "SELECT id FROM item WHERE id = 1 FOR UPDATE NOWAIT";
            let statement = Statement::from_string(kind.backend(), sql);
            let tx = view.begin().await.unwrap();
            let locked = tx.query_all_raw(statement).await;
            tx.rollback().await.unwrap();
            locked.map(drop).map_err(|error| error.to_string())
        }
    };
    assert_eq!(locked, Ok(()), "{case}");
}

/// How a request ends that has locked a row.
#[derive(Clone, Copy, Debug)]
enum End {
    Answer(u16),
    CommitFails,
    RollbackOnly,
    /// A nested transaction is kept.
    LeftOpen,
    /// In autocommit, the handler's transaction is dropped, or kept.
    Dropped(u16),
    Kept,
    /// The statement is dropped while it runs.
    Cancelled(u16),
}

async fn lock(db: &impl ConnectionTrait) {
    db.execute_unprepared("UPDATE item SET hits = hits + 1 WHERE id = 1")
        .await
        .unwrap();
}

async fn end(
    end: End,
    db: DbSession,
) -> (StatusCode, Option<Arc<tower_sea_orm::SessionTransaction>>) {
    let status = |code| StatusCode::from_u16(code).unwrap();
    if !matches!(end, End::Dropped(_) | End::Kept) {
        lock(&db.tx()).await;
    }
    match end {
        End::Answer(code) => (status(code), None),
        End::CommitFails => {
            violate(&db).await;
            (StatusCode::OK, None)
        }
        End::RollbackOnly => {
            db.set_rollback_only().unwrap();
            (StatusCode::OK, None)
        }
        End::LeftOpen => (StatusCode::OK, Some(Arc::new(db.begin().await.unwrap()))),
        End::Dropped(code) => {
            lock(&db.begin().await.unwrap()).await;
            (status(code), None)
        }
        End::Kept => {
            let tx = db.begin().await.unwrap();
            lock(&tx).await;
            (StatusCode::OK, Some(Arc::new(tx)))
        }
        End::Cancelled(code) => {
            let mut running = Box::pin(lock(&db));
            let _ = futures_util::poll!(&mut running);
            drop(running);
            (status(code), None)
        }
    }
}

#[tokio::test]
async fn locks_are_free_when_the_response_arrives() {
    let ends = [
        End::Answer(200),
        End::Answer(404),
        End::Answer(500),
        End::CommitFails,
        End::RollbackOnly,
        End::LeftOpen,
        End::Dropped(200),
        End::Dropped(404),
        End::Kept,
        End::Cancelled(200),
        End::Cancelled(404),
    ];
    for kind in [Kind::Postgres, Kind::MySql, Kind::SqliteFile] {
        let site = Site::new(kind).await;
        insert_item(&site.db, "row").await;
        if kind != Kind::MySql {
            site.defer().await;
        }
        for way in ends {
            if kind == Kind::MySql && matches!(way, End::CommitFails) {
                continue;
            }
            for _ in 0..5 {
                let response = site
                    .call(async move |db: DbSession| {
                        let (status, kept) = end(way, db).await;
                        let mut response: Response = Response::default();
                        *response.status_mut() = status;
                        if let Some(kept) = kept {
                            response.extensions_mut().insert(kept);
                        }
                        response
                    })
                    .await;
                assert_unlocked(&site, &format!("{kind:?} {way:?} {}", response.status())).await;
            }
        }
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn locks_are_free_when_an_inner_services_error_arrives() {
    for kind in [Kind::Postgres, Kind::MySql, Kind::SqliteFile] {
        let site = Site::new(kind).await.layered(|layer| layer.transaction());
        insert_item(&site.db, "row").await;
        let mut service = site.layer.layer(service_fn(async |request: Request<Body>| {
            let db: DbSession = DbSession::from_extensions(request.extensions()).unwrap();
            lock(&db).await;
            Err::<Response, _>("inner")
        }));
        let answer = service
            .ready()
            .await
            .unwrap()
            .call(Request::new(Body::empty()))
            .await;
        assert_unlocked(&site, &format!("{kind:?}")).await;
        assert_eq!(answer.unwrap_err(), "inner");
        assert_eq!(
            value::<i32>(site.view(), "SELECT hits FROM item WHERE id = 1").await,
            0
        );
        site.assert_whole().await;
    }
}

const SERIALIZABLE: TransactionOptions = TransactionOptions {
    isolation_level: Some(IsolationLevel::Serializable),
    access_mode: None,
    sqlite_transaction_mode: None,
};

/// Sends a request again as long as its answer says so; returns how often it was sent.
async fn until_served(app: &Router, uri: &str) -> u32 {
    for sent in 1.. {
        let request = Request::post(uri).body(Body::empty()).unwrap();
        let response = app
            .clone()
            .oneshot(request)
            .await
            .unwrap_or_else(|never: Infallible| match never {});
        if response.status() == StatusCode::OK {
            assert!(outcome(&response).is_committed() || outcome(&response).is_untouched());
            return sent;
        }
        assert_eq!(
            (response.status(), retry_after(&response)),
            (StatusCode::SERVICE_UNAVAILABLE, Some("1"))
        );
        tokio::task::yield_now().await;
    }
    unreachable!("a request is served some time")
}

async fn number(tx: &DbTx, sql: &str) -> Result<i64, DbErr> {
    let sql = format!(
        "SELECT CAST(({sql}) AS {})",
        if tx.backend() == sea_orm::DbBackend::MySql {
            "SIGNED"
        } else {
            "bigint"
        }
    );
    let row = tx
        .query_one_raw(Statement::from_string(tx.backend(), sql))
        .await?;
    row.unwrap().try_get_by_index(0)
}

#[tokio::test]
async fn no_update_is_lost_under_serializable() {
    for kind in [Kind::Postgres, Kind::MySql, Kind::SqliteFile] {
        let site = Site::new(kind)
            .await
            .layered(|layer| layer.transaction_with(SERIALIZABLE));
        insert_item(&site.db, "counter").await;
        let app = site.app(async |tx: DbTx| {
            let hits = number(&tx, "SELECT hits FROM item WHERE id = 1").await?;
            tokio::task::yield_now().await;
            tx.execute_unprepared(&format!("UPDATE item SET hits = {} WHERE id = 1", hits + 1))
                .await?;
            Ok::<_, Failed>(())
        });
        let clients = (0..6).map(async |_| {
            for _ in 0..4 {
                until_served(&app, "/").await;
            }
        });
        timeout(BOUND, join_all(clients))
            .await
            .expect("all are served");
        assert_eq!(
            value::<i32>(site.view(), "SELECT hits FROM item WHERE id = 1").await,
            24,
            "{kind:?}"
        );
        site.assert_whole().await;
    }
}

/// Two may go off duty if the other one stays; both see that the other one does.
#[tokio::test]
async fn no_write_is_skewed_under_serializable() {
    for kind in [Kind::Postgres, Kind::MySql, Kind::SqliteFile] {
        let site = Site::new(kind)
            .await
            .layered(|layer| layer.transaction_with(SERIALIZABLE));
        for round in 0..4 {
            site.run("DELETE FROM item").await;
            insert_item(site.view(), "first").await;
            insert_item(site.view(), "second").await;
            // At the first try, both read before either writes.
            let both = Arc::new(Barrier::new(2));
            let tries = Arc::new(std::sync::atomic::AtomicU32::new(0));
            let app = Router::new()
                .route(
                    "/{name}",
                    any(async move |Path(name): Path<String>, tx: DbTx| {
                        let on_duty =
                            number(&tx, "SELECT count(*) FROM item WHERE hits = 0").await?;
                        if tries.fetch_add(1, std::sync::atomic::Ordering::SeqCst) < 2 {
                            both.wait().await;
                        }
                        if on_duty == 2 {
                            let sql = format!("UPDATE item SET hits = 1 WHERE name = '{name}'");
                            tx.execute_unprepared(&sql).await?;
                        }
                        Ok::<_, Failed>(())
                    }),
                )
                .layer(site.layer.clone());
            let clients = ["/first", "/second"].map(|uri| until_served(&app, uri));
            let sent: u32 = timeout(BOUND, join_all(clients))
                .await
                .expect("both are served")
                .iter()
                .sum();
            assert!(sent > 2, "{kind:?}: one of them had to come again");
            let off: i64 = value(site.view(), "SELECT count(*) FROM item WHERE hits = 1").await;
            assert_eq!(off, 1, "{kind:?} round {round}: exactly one of them goes");
        }
        site.assert_whole().await;
    }
}
