//! G7: a server that ends an idle connection says so before it reads another command. A COMMIT that is answered so has
//! not run, and its outcome is known.

use std::{
    error::Error as _,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use axum::response::Response;
use http::StatusCode;
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, DbErr, Statement, TransactionTrait};
use tower_sea_orm::{DbSession, DbTx, Error};

use crate::{
    log::Log,
    support::{
        database::{Kind, SERVERS, insert_item},
        site::{Site, is_mariadb, outcome, retry_after, value},
        wait::eventually,
    },
};

/// Has the server end this connection as soon as it is idle for a while, and waits until it has.
async fn outlasted(db: &impl ConnectionTrait, view: &DatabaseConnection) {
    let (set, own) = match view.get_database_backend() {
        DbBackend::Postgres => (
            "SET LOCAL idle_in_transaction_session_timeout = '200ms'",
            "SELECT pg_backend_pid()::bigint",
        ),
        _ => (
            "SET SESSION wait_timeout = 1",
            "SELECT CAST(CONNECTION_ID() AS SIGNED)",
        ),
    };
    db.execute_unprepared(set).await.unwrap();
    let id: i64 = value(db, own).await;
    let backend = view.get_database_backend();
    let sql = match backend {
        DbBackend::Postgres => format!("SELECT 1 FROM pg_stat_activity WHERE pid = {id}"),
        _ => format!("SELECT 1 FROM information_schema.PROCESSLIST WHERE ID = {id}"),
    };
    eventually("the server ends the connection", async || {
        let statement = Statement::from_string(backend, &sql);
        view.query_one_raw(statement).await.unwrap().is_none()
    })
    .await;
}

/// MariaDB closes the connection without a word: the same as any other loss.
async fn sites() -> Vec<Site> {
    let mut sites = Vec::new();
    for kind in SERVERS {
        let site = Site::new(kind).await;
        if kind == Kind::Postgres || !is_mariadb(site.view()).await {
            sites.push(site);
        }
    }
    sites
}

#[track_caller]
fn assert_failed(response: &Response, kind: Kind) {
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(retry_after(response), None, "{kind:?}");
    let outcome = outcome(response);
    assert!(!outcome.is_unknown(), "{kind:?} {outcome:?}");
    assert!(outcome.is_undone(), "{kind:?} {outcome:?}");
    let error = outcome.error().unwrap();
    assert!(error.is_commit_failed(), "{kind:?} {error}");
    assert!(error.source().is_some(), "{kind:?}: the cause is kept");
}

#[tokio::test]
async fn a_commit_that_the_server_was_too_idle_to_read_has_failed() {
    for site in sites().await {
        let (kind, view) = (site.kind(), site.view().clone());
        let (log, _guard) = Log::start();
        let rolled_back = Arc::new(AtomicU32::new(0));
        let ran = rolled_back.clone();
        let response = site
            .call(async move |tx: DbTx| {
                insert_item(&tx, "gone").await;
                tx.after_rollback(async move { _ = ran.fetch_add(1, Ordering::SeqCst) })
                    .unwrap();
                outlasted(&tx, &view).await;
            })
            .await;
        assert_failed(&response, kind);
        assert_eq!(site.count("gone").await, 0, "{kind:?}");
        eventually("the hook runs", async || {
            rolled_back.load(Ordering::SeqCst) == 1
        })
        .await;
        assert_eq!(log.count("COMMIT was lost"), 0, "{:?}", log.lines());
        assert_eq!(log.count("refused to commit"), 1, "{:?}", log.lines());
        site.assert_whole().await;
    }
}

/// In the handler's hands, it is a connection that was lost before COMMIT.
#[tokio::test]
async fn a_handlers_commit_that_was_not_read_is_no_unknown_outcome() {
    for site in sites().await {
        let view = site.view().clone();
        let pool = site.layer.pool();
        let error = pool
            .transaction(async |tx| {
                insert_item(tx, "gone").await;
                outlasted(tx, &view).await;
                Ok::<_, DbErr>(())
            })
            .await
            .unwrap_err();
        let known = Error::of_transaction(&error).unwrap();
        assert!(known.is_connection_lost(), "{known}");
        let response = site
            .call(async move |db: DbSession| {
                let tx = db.begin().await.unwrap();
                insert_item(&tx, "gone").await;
                outlasted(&tx, &view).await;
                let error = Error::of(&tx.commit().await.unwrap_err()).unwrap();
                assert!(error.is_connection_lost(), "{error}");
                StatusCode::INTERNAL_SERVER_ERROR
            })
            .await;
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert!(outcome(&response).is_undone(), "{:?}", outcome(&response));
        assert_eq!(site.count("gone").await, 0);
        site.assert_whole().await;
    }
}
