//! G16: a statement that finds its connection gone says so itself, whatever the driver's words.

use std::sync::Arc;

use futures_util::TryStreamExt;
use http::StatusCode;
use sea_orm::{ConnectionTrait, DbErr, RuntimeErr, Statement, StreamTrait, TransactionTrait};
use tower_sea_orm::{DbSession, DbTx, Error};

use crate::support::{
    database::{Kind, SERVERS},
    site::{Site, known},
    statements::{WAYS, insert, read},
    wait::eventually,
    wire::Proxy,
};

/// Cuts the connections, and waits until nothing of them is left.
async fn cut(proxy: &Proxy) {
    proxy.cut();
    eventually("the connections are cut", async || proxy.connections() == 0).await;
}

#[track_caller]
fn assert_lost(error: &DbErr, case: &str) {
    let known = Error::of(error).unwrap_or_else(|| panic!("{case}: not known: {error}"));
    assert!(known.is_connection_lost(), "{case}: {known}");
    assert!(!known.is_retryable(), "{case}: it may have run");
    assert_eq!(known.status(), StatusCode::INTERNAL_SERVER_ERROR, "{case}");
    // SeaORM's error is the driver's own, for those who match it.
    let is_drivers = matches!(
        error,
        DbErr::Exec(RuntimeErr::SqlxError(_)) | DbErr::Query(RuntimeErr::SqlxError(_))
    );
    assert!(is_drivers, "{case}: {error:?}");
}

#[tokio::test]
async fn a_statement_that_finds_its_connection_cut_says_so() {
    for kind in SERVERS {
        for way in WAYS {
            let (site, proxy) = Site::behind_a_proxy(kind).await;
            let proxy = Arc::new(proxy);
            let wire = proxy.clone();
            let response = site
                .call(async move |db: DbSession| {
                    // A session that lends would use another connection.
                    let _pin = db.pin();
                    read(&db, way, "SELECT 1").await.unwrap();
                    cut(&wire).await;
                    let case = format!("{kind:?} {way:?}");
                    let sql = insert("never");
                    let error = read(&db, way, &sql).await.unwrap_err();
                    assert_lost(&error, &case);
                    let again = known(read(&db, way, &sql).await);
                    assert!(again.is_connection_lost(), "{case}");
                })
                .await;
            assert_eq!(response.status(), StatusCode::OK, "{kind:?} {way:?}");
            site.assert_whole().await;
        }
    }
}

#[tokio::test]
async fn a_statement_in_a_transaction_that_is_cut_says_so() {
    for kind in SERVERS {
        let (site, proxy) = Site::behind_a_proxy(kind).await;
        let proxy = Arc::new(proxy);
        for nested in [false, true] {
            let wire = proxy.clone();
            let response = site
                .call(async move |tx: DbTx| {
                    tx.execute_unprepared(&insert("gone")).await.unwrap();
                    let case = format!("{kind:?} {nested}");
                    let error = if nested {
                        let inner = tx.begin().await.unwrap();
                        cut(&wire).await;
                        inner.execute_unprepared(&insert("in it")).await
                    } else {
                        cut(&wire).await;
                        tx.execute_unprepared(&insert("in it")).await
                    };
                    assert_lost(&error.unwrap_err(), &case);
                    StatusCode::INTERNAL_SERVER_ERROR
                })
                .await;
            assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
            assert_eq!(site.count("gone").await, 0, "{kind:?}");
        }
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn a_stream_that_is_cut_half_way_ends_with_that_error() {
    const MANY: &str = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 900) \
                        SELECT a.i, b.i AS j FROM n a, n b";
    for kind in SERVERS {
        let (site, proxy) = Site::behind_a_proxy(kind).await;
        let session = site.layer.pool().session().await.unwrap();
        session.execute_unprepared("SELECT 1").await.unwrap();
        let statement = Statement::from_string(session.get_database_backend(), MANY);
        let mut rows = session.stream_raw(statement).await.unwrap();
        rows.try_next().await.unwrap().expect("a row");
        cut(&proxy).await;
        let error = loop {
            match rows.try_next().await {
                Ok(row) => assert!(row.is_some(), "{kind:?}: it ends by an error"),
                Err(error) => break error,
            }
        };
        assert_lost(&error, &format!("{kind:?}"));
        drop(rows);
        drop(session);
        site.assert_whole().await;
    }
}

/// The error of raw code is its own: as SeaORM's, it is known all the same.
#[tokio::test]
async fn raw_code_that_is_cut_has_an_error_that_is_known_as_seaorms() {
    use sea_orm::sqlx::{self, Executor};
    for kind in SERVERS {
        let (site, proxy) = Site::behind_a_proxy(kind).await;
        let session = site.layer.pool().session().await.unwrap();
        session.execute_unprepared("SELECT 1").await.unwrap();
        cut(&proxy).await;
        let result: Result<Result<(), sqlx::Error>, DbErr> = match kind {
            Kind::Postgres => {
                session
                    .with_postgres(|c| {
                        Box::pin(async move { c.execute("SELECT 1").await.map(drop) })
                    })
                    .await
            }
            _ => {
                session
                    .with_mysql(|c| Box::pin(async move { c.execute("SELECT 1").await.map(drop) }))
                    .await
            }
        };
        let error = match result {
            Ok(own) => DbErr::Query(RuntimeErr::SqlxError(Arc::new(own.unwrap_err()))),
            // It is the session's where that has found it out behind the code.
            Err(error) => error,
        };
        let first = Error::of(&error).unwrap_or_else(|| panic!("{kind:?}: {error:?}"));
        assert!(first.is_connection_lost(), "{kind:?}: {error:?}");
        let next = session.execute_unprepared("SELECT 1").await;
        assert!(known(next).is_connection_lost(), "{kind:?}");
        drop(session);
        site.assert_whole().await;
    }
}

/// A database that cannot be reached has no connection that could be lost.
#[tokio::test]
async fn a_connection_that_was_never_there_is_not_lost() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let mut options = sea_orm::ConnectOptions::new(format!("postgres://app@127.0.0.1:{port}/shop"));
    options.connect_timeout(std::time::Duration::from_millis(300));
    let error = sea_orm::Database::connect(options).await.unwrap_err();
    let known = Error::of(&error);
    assert!(
        !known.is_some_and(|known| known.is_connection_lost()),
        "{error}"
    );
}
