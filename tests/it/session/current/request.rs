//! In requests: transactions, concurrency, layers and tags, cancelled clients.

use std::{
    convert::Infallible,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex},
};

use axum::{Router, routing::get};
use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use http::StatusCode;
use sea_orm::{DbBackend, MockDatabase, MockExecResult, TransactionSession, TransactionTrait};
use tokio::{
    sync::Barrier,
    task::{JoinSet, yield_now},
};
use tower::Service;
use tower_sea_orm::{
    CurrentSession, DbSession, DbSessionLayer, DbTx, PoolMode, SessionPool, TransactionLayer,
};

use super::{Other, add, is_outside, repository};
use crate::support::{
    database::{Kind, unique_name},
    futures::drop_at,
    requests::{request, send},
    site::{Site, call, known},
    wait::eventually,
};

fn current(site: &Site) -> CurrentSession {
    CurrentSession::new(site.layer.pool().clone())
}

#[tokio::test]
async fn a_repository_runs_in_its_requests_transaction() {
    for kind in Kind::ALL {
        let site = Site::new(kind).await;
        let items = repository(&current(&site));
        for (status, stays) in [(StatusCode::OK, 1), (StatusCode::CONFLICT, 0)] {
            let (items, name) = (items.clone(), unique_name());
            let added = name.clone();
            let response = site
                .call(async move |tx: DbTx| {
                    items.add(added.clone()).await.unwrap();
                    // What others cannot see yet.
                    assert_eq!(items.count(added).await, 1);
                    assert!(tx.is_transactional());
                    status
                })
                .await;
            assert_eq!(response.status(), status);
            assert_eq!(site.count(&name).await, stays, "{kind:?} {status}");
        }
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn a_layers_transaction_holds_for_repositories() {
    let site = Site::new(Kind::Postgres).await;
    let items = repository(&current(&site));
    let name = unique_name();
    let added = name.clone();
    // The handler itself takes no session, and the route's layer is inside the session's.
    let handler = async move || {
        items.add(added.clone()).await.unwrap();
        StatusCode::CONFLICT
    };
    let app = Router::new()
        .route("/", get(handler))
        .route_layer(TransactionLayer::new())
        .layer(site.layer.clone().lazy());
    assert_eq!(call(app).await.status(), StatusCode::CONFLICT);
    assert_eq!(site.count(&name).await, 0);
    site.assert_whole().await;
}

#[tokio::test]
async fn concurrent_requests_never_see_each_others_session() {
    for kind in [Kind::Postgres, Kind::MySql] {
        let site = Site::new(kind).await;
        let items = repository(&current(&site));
        let barrier = Arc::new(Barrier::new(2));
        // Both have written and not committed when they count.
        let handler = async move |tx: DbTx| {
            let (mine, others) = (unique_name(), unique_name());
            items.add(mine.clone()).await.unwrap();
            add(&tx, &others).await;
            barrier.wait().await;
            let both = [mine, others].map(|name| items.count(name));
            let both: Vec<_> = both
                .into_iter()
                .collect::<FuturesUnordered<_>>()
                .collect()
                .await;
            assert_eq!(both, [1, 1]);
            let all = "".to_owned();
            tokio::select! {
                count = items.count(all) => assert_eq!(count, 0),
                () = std::future::pending() => {}
            }
            barrier.wait().await;
            StatusCode::CONFLICT
        };
        let app = site.app(handler);
        // By one task, which polls both in turns.
        let (one, two) = tokio::join!(call(app.clone()), call(app.clone()));
        assert_eq!([one.status(), two.status()], [StatusCode::CONFLICT; 2]);
        // By two tasks.
        let mut tasks = JoinSet::from_iter([call(app.clone()), call(app)]);
        while let Some(response) = tasks.join_next().await {
            assert_eq!(response.unwrap().status(), StatusCode::CONFLICT);
        }
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn each_poll_finds_its_own_requests_session() {
    let site = Site::new(Kind::SqliteFile).await;
    let db = current(&site);
    // Every other request is in a transaction, so that the sessions can be told apart.
    let number = Arc::new(Mutex::new(0));
    let handler = async move |session: DbSession| {
        let is_even = {
            let mut number = number.lock().unwrap();
            *number += 1;
            *number % 2 == 0
        };
        if is_even {
            let _ = session.tx();
        }
        for _ in 0..20 {
            yield_now().await;
            assert_eq!(db.session().unwrap().is_transactional(), is_even);
        }
    };
    let app = site.layered(DbSessionLayer::lazy).app(handler);
    let mut requests: FuturesUnordered<_> = (0..10).map(|_| call(app.clone())).collect();
    while let Some(response) = requests.next().await {
        assert_eq!(response.status(), StatusCode::OK);
    }
}

#[tokio::test]
async fn another_tag_and_another_request_have_sessions_of_their_own() {
    let (site, other) = (
        Site::new(Kind::Postgres).await,
        Site::new(Kind::SqliteFile).await,
    );
    let inner_site = Site::new(Kind::SqliteFile).await;
    let db = current(&site);
    let other_db = CurrentSession::<Other>::tagged(other.layer.pool().clone());
    for swapped in [false, true] {
        let [name, theirs, inner_name] = [(); 3].map(|()| unique_name());
        // A service with a database of its own, which the handler calls.
        let inner = {
            let (items, name) = (repository(&db), inner_name.clone());
            inner_site.app(async move || items.add(name.clone()).await.unwrap())
        };
        let handler = {
            let (items, others) = (repository(&db), repository(&other_db));
            let [name, theirs] = [name.clone(), theirs.clone()];
            async move |_: DbTx| {
                others.add(theirs.clone()).await.unwrap();
                assert_eq!(call(inner.clone()).await.status(), StatusCode::OK);
                // After that poll, this request's own is the current one again.
                items.add(name.clone()).await.unwrap();
                StatusCode::CONFLICT
            }
        };
        let app = Router::new().route("/", get(handler));
        let tagged = DbSessionLayer::<Other>::tagged(other.layer.pool().clone());
        let app = if swapped {
            app.layer(site.layer.clone()).layer(tagged)
        } else {
            app.layer(tagged).layer(site.layer.clone())
        };
        assert_eq!(call(app).await.status(), StatusCode::CONFLICT);
        assert_eq!(site.count(&name).await, 0, "rolled back");
        assert_eq!(other.count(&theirs).await, 1, "in autocommit");
        assert_eq!(inner_site.count(&inner_name).await, 1);
    }
    for site in [site, other, inner_site] {
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn a_tag_without_a_layer_is_an_error() {
    let site = Site::new(Kind::SqliteFile).await;
    let db = CurrentSession::<Other>::tagged(site.layer.pool().clone());
    let items = repository(&db);
    let response = site
        .call(async move || {
            let error = known(items.add(unique_name()).await);
            assert!(error.is_missing_layer(), "{error}");
        })
        .await;
    assert_eq!(response.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_panic_leaves_no_session_behind() {
    let site = Site::new(Kind::SqliteFile).await;
    let db = current(&site);
    let inside = db.clone();
    let app = site.app(async move || {
        assert!(!is_outside(&inside));
        yield_now().await;
        // The type of a handler's response cannot be `!`.
        let panics: fn() -> StatusCode = || std::panic::resume_unwind(Box::new("a panic"));
        panics()
    });
    // On this thread, and in this task.
    let polled = AssertUnwindSafe(call(app)).catch_unwind().await;
    assert!(polled.is_err());
    assert!(is_outside(&db));
    site.assert_whole().await;
}

#[tokio::test]
async fn a_service_that_works_in_its_call_finds_the_session() {
    let site = Site::new(Kind::SqliteFile).await;
    let db = current(&site);
    let inside = db.clone();
    let mut service = tower::Layer::layer(
        &site.layer,
        tower::service_fn(move |_| {
            let is_inside = !is_outside(&inside);
            async move { Ok::<_, Infallible>(http::Response::new(is_inside.to_string())) }
        }),
    );
    let response = service.call(request()).await.unwrap();
    assert_eq!(response.into_body(), "true");
    assert!(is_outside(&db));
}

#[tokio::test]
async fn a_nested_transaction_of_a_repository_is_one_of_the_session() {
    for kind in Kind::ALL {
        let site = Site::new(kind).await;
        let db = current(&site);
        let names = [(); 3].map(|()| unique_name());
        let [kept, dropped, refused] = names.clone();
        let response = site
            .call(async move |tx: DbTx| {
                let nested = db.begin().await.unwrap();
                add(&nested, &kept).await;
                let beside = repository(&db).add(refused).await;
                assert!(known(beside).is_wrong_handle());
                nested.commit().await.unwrap();
                let nested = db.begin().await.unwrap();
                add(&nested, &dropped).await;
                TransactionSession::rollback(nested).await.unwrap();
                assert!(tx.is_transactional());
            })
            .await;
        assert_eq!(response.status(), StatusCode::OK);
        let names = names.each_ref().map(String::as_str);
        assert_eq!(site.seen(names).await, [true, false, false], "{kind:?}");
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn a_client_that_leaves_takes_the_repositorys_work_along() {
    for kind in Kind::ALL {
        let site = Site::new(kind).await;
        let items = repository(&current(&site));
        let mut is_over = false;
        for pendings in 1..40 {
            let name = unique_name();
            let (items, added) = (items.clone(), name.clone());
            let app = site.app(async move |_: DbTx| {
                items.add(added.clone()).await.unwrap();
                assert_eq!(items.count(added).await, 1);
            });
            let response = drop_at(pendings, call(app)).await;
            eventually("no session is out", async || {
                site.layer.pool().status().used == 0
            })
            .await;
            // COMMIT may have been sent, and is seen through.
            is_over = response.is_some();
            if is_over {
                assert_eq!(site.count(&name).await, 1);
                break;
            }
        }
        assert!(is_over, "{kind:?}");
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn sessions_that_lend_are_found_as_well() {
    let site = Site::new(Kind::Postgres).await;
    let site = site.pooled(|pool| pool.pool_mode(PoolMode::Transaction));
    let items = repository(&current(&site));
    let app = site.app(async move || {
        for _ in 0..5 {
            let name = unique_name();
            items.add(name.clone()).await.unwrap();
            yield_now().await;
            assert_eq!(items.count(name).await, 1);
        }
    });
    // More than there are connections.
    let mut requests: FuturesUnordered<_> = (0..12).map(|_| call(app.clone())).collect();
    while let Some(response) = requests.next().await {
        assert_eq!(response.status(), StatusCode::OK);
    }
    site.assert_whole().await;
}

#[tokio::test]
async fn a_repository_on_a_mock_runs_in_the_layers_transaction() {
    let done = MockExecResult {
        last_insert_id: 1,
        rows_affected: 1,
    };
    let mock = MockDatabase::new(DbBackend::Postgres)
        .append_exec_results([done])
        .into_connection();
    let pool = SessionPool::new(mock.clone());
    let items = repository::<tower_sea_orm::DefaultDatabase>(&CurrentSession::new(pool.clone()));
    let app = Router::new()
        .route(
            "/",
            get(async move || items.add("x".to_owned()).await.unwrap()),
        )
        .layer(DbSessionLayer::new(pool).transaction());
    assert_eq!(send(&app, "/").await.status(), StatusCode::OK);
    drop(app);
    let log = format!("{:?}", mock.into_transaction_log());
    let order = ["BEGIN", "INSERT", "COMMIT"].map(|word| log.find(word).expect(word));
    assert!(order.is_sorted(), "{log}");
}
