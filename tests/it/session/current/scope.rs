//! Outside a request: tasks, hooks, bodies, jobs.

use std::{collections::HashMap, sync::Arc};

use axum::{
    body::{Body, to_bytes},
    response::Response,
};
use futures_util::{StreamExt, stream};
use http::StatusCode;
use sea_orm::{DbErr, Statement, StreamTrait, TransactionError};
use tokio::sync::{Notify, mpsc};
use tower_sea_orm::{CurrentSession, DbSession, DbTx, DefaultDatabase, SessionPool};

use super::{Other, add, is_outside, repository};
use crate::support::{
    database::{Kind, unique_name},
    pool::session_pool,
    site::{Site, known},
};

fn current(site: &Site) -> CurrentSession {
    CurrentSession::new(site.layer.pool().clone())
}

#[tokio::test]
async fn outside_a_request_is_an_error_that_says_what_to_do() {
    for kind in Kind::ALL {
        let site = Site::new(kind).await;
        let db = current(&site);
        let items = repository(&db);
        assert!(is_outside(&db));
        let error = known(items.add(unique_name()).await);
        assert!(error.is_missing_layer(), "{error}");
        assert!(error.to_string().contains("`or_own_session()`"), "{error}");
        let statement = Statement::from_string(kind.backend(), "SELECT 1");
        assert!(known(db.stream_raw(statement).await.map(drop)).is_missing_layer());
        // Also while requests run.
        let response = site
            .call(async move |_: DbSession| {
                let task = tokio::spawn(async move { known(items.add(unique_name()).await) });
                let error = task.await.unwrap();
                assert!(error.is_missing_layer(), "{error}");
            })
            .await;
        assert_eq!(response.status(), StatusCode::OK);
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn a_future_made_in_a_request_and_polled_elsewhere_has_no_session() {
    let site = Site::new(Kind::SqliteFile).await;
    let items = repository(&current(&site));
    let response = site
        .call(async move |_: DbSession| {
            let adding = async move { known(items.add(unique_name()).await) };
            assert!(tokio::spawn(adding).await.unwrap().is_missing_layer());
        })
        .await;
    assert_eq!(response.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_hook_has_no_session_and_a_scope_gives_it_one() {
    let site = Site::new(Kind::SqliteFile).await;
    let db = current(&site);
    let items = repository(&db);
    let (told, mut heard) = mpsc::unbounded_channel();
    let name = unique_name();
    let added = name.clone();
    let response = site
        .call(async move |tx: DbTx| {
            items.add(unique_name()).await.unwrap();
            let hook = async move {
                let outside = is_outside(&db);
                let session = db.pool().session().await.unwrap();
                session.scope(items.add(added)).await.unwrap();
                told.send(outside).unwrap();
            };
            tx.after_commit(hook).unwrap();
        })
        .await;
    assert_eq!(response.status(), StatusCode::OK);
    assert!(heard.recv().await.unwrap());
    assert_eq!(site.count(&name).await, 1);
    site.assert_whole().await;
}

#[tokio::test]
async fn a_scope_takes_the_session_into_a_task() {
    for kind in Kind::ALL {
        let site = Site::new(kind).await;
        let db = current(&site);
        let name = unique_name();
        let added = name.clone();
        let go = Arc::new(Notify::new());
        let gone = go.clone();
        let (told, mut heard) = mpsc::unbounded_channel();
        let response = site
            .call(async move |tx: DbTx| {
                let items = repository(&db);
                let late = repository(&db);
                let task = tx.scope(async move { items.add(added).await });
                tokio::spawn(task).await.unwrap().unwrap();
                let task = tx.scope(async move {
                    gone.notified().await;
                    let _ = told.send(known(late.add(unique_name()).await));
                });
                tokio::spawn(task);
                StatusCode::CONFLICT
            })
            .await;
        assert_eq!(response.status(), StatusCode::CONFLICT);
        assert_eq!(site.count(&name).await, 0, "in the request's transaction");
        go.notify_one();
        // A scope makes no session live longer.
        assert!(heard.recv().await.unwrap().is_session_closed());
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn a_held_body_finds_its_session_and_another_one_does_not() {
    for kind in Kind::ALL {
        for held in [true, false] {
            let site = Site::new(kind).await;
            let db = current(&site);
            let name = unique_name();
            let added = name.clone();
            let response = site
                .call(async move |tx: DbTx| {
                    let items = repository(&db);
                    let adding = stream::once(async move {
                        let result = items.add(added.clone()).await;
                        let text = match result {
                            Ok(()) => format!("{}", items.count(added).await),
                            Err(error) => known::<()>(Err(error)).is_missing_layer().to_string(),
                        };
                        Ok::<_, DbErr>(text)
                    });
                    let body = Body::from_stream(adding);
                    Response::new(if held {
                        Body::new(tx.hold_until_body_end(body))
                    } else {
                        body
                    })
                })
                .await;
            let (head, body) = response.into_parts();
            assert_eq!(head.status, StatusCode::OK);
            // In another task than the handler's.
            let text = tokio::spawn(to_bytes(body, 99)).await.unwrap().unwrap();
            assert_eq!(text, if held { "1" } else { "true" }, "{kind:?}");
            assert_eq!(site.count(&name).await, i64::from(held), "{kind:?}");
            site.assert_whole().await;
        }
    }
}

#[tokio::test]
async fn rows_stream_from_the_current_session() {
    for kind in Kind::ALL {
        let site = Site::new(kind).await;
        let db = current(&site);
        let response = site
            .call(async move |tx: DbTx| {
                let name = unique_name();
                add(&tx, &name).await;
                let sql = format!("SELECT name FROM item WHERE name = '{name}'");
                let statement = Statement::from_string(db.backend(), sql);
                let rows = db.stream_raw(statement).await.unwrap();
                assert_eq!(rows.count().await, 1);
                StatusCode::CONFLICT
            })
            .await;
        assert_eq!(response.status(), StatusCode::CONFLICT);
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn a_job_is_current_for_what_is_on_its_database() {
    let site = Site::new(Kind::Postgres).await;
    let other = Site::new(Kind::SqliteFile).await;
    let pool = site.layer.pool().clone();
    let items = repository(&current(&site));
    let others = repository(&CurrentSession::<Other>::tagged(other.layer.pool().clone()));
    let name = unique_name();
    let failed = pool
        .transaction(async |_| {
            items.add(name.clone()).await?;
            let error = known(others.add(unique_name()).await);
            assert!(error.is_missing_layer(), "{error}");
            Err::<(), _>(DbErr::Custom("no".to_owned()))
        })
        .await;
    assert!(matches!(failed, Err(TransactionError::Transaction(_))));
    assert_eq!(site.count(&name).await, 0);
    pool.transaction(async |_| items.add(name.clone()).await)
        .await
        .unwrap();
    assert_eq!(site.count(&name).await, 1);
    // In a request, a job of another database takes nothing that is meant for the request.
    let other_pool = other.layer.pool().clone();
    let (items, names) = (items.clone(), [unique_name(), unique_name()]);
    let [mine, theirs] = names.clone();
    let response = site
        .call(async move |_: DbTx| {
            let job = other_pool.transaction(async |tx| {
                items.add(mine.clone()).await?;
                others.add(theirs.clone()).await?;
                assert!(tx.is_transactional());
                Ok::<_, DbErr>(())
            });
            job.await.unwrap();
            StatusCode::CONFLICT
        })
        .await;
    assert_eq!(response.status(), StatusCode::CONFLICT);
    assert_eq!(site.count(&names[0]).await, 0, "the request's");
    assert_eq!(other.count(&names[1]).await, 1, "the job's");
    for site in [site, other] {
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn a_tenants_database_is_that_of_the_request_or_of_its_scope() {
    let (home, tenant) = (
        Site::new(Kind::SqliteFile).await,
        Site::new(Kind::SqliteFile).await,
    );
    let pools = HashMap::from([("acme", session_pool(tenant.db.clone()))]);
    let acme: SessionPool = pools["acme"].clone();
    let items = repository::<DefaultDatabase>(&CurrentSession::new(home.layer.pool().clone()));
    let [plain, in_job, beside] = [(); 3].map(|()| unique_name());
    let site = home.layered(|layer| layer.by(move |_| pools.get("acme").cloned()));
    let handler = {
        let (items, acme) = (items.clone(), acme.clone());
        let [plain, in_job] = [plain.clone(), in_job.clone()];
        async move || {
            items.add(plain).await.unwrap();
            let job = acme.transaction(async |_| items.add(in_job.clone()).await);
            job.await.unwrap();
            StatusCode::OK
        }
    };
    assert_eq!(site.call(handler).await.status(), StatusCode::OK);
    // Outside a request, only its scope says that a tenant's session is meant.
    let job = acme.transaction(async |tx| {
        let error = known(items.add(unique_name()).await);
        assert!(error.is_missing_layer(), "{error}");
        tx.scope(items.add(beside.clone())).await
    });
    job.await.unwrap();
    for name in [&plain, &in_job, &beside] {
        assert_eq!(tenant.count(name).await, 1);
    }
    tenant.assert_whole().await;
}

#[test]
fn a_current_session_can_be_shared() {
    fn shared<T: Clone + Send + Sync + 'static>() {}
    shared::<CurrentSession<Other>>();
    shared::<Arc<CurrentSession>>();
}
