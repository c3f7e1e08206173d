//! G1, G14: the layer keeps tower's contract: readiness, errors, bodies, clones.

use std::{
    fmt,
    pin::pin,
    sync::{Arc, Mutex},
    task::Poll,
};

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use futures_util::poll;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use sea_orm::{ConnectionTrait, DbBackend, MockDatabase, TransactionTrait};
use static_assertions::{assert_impl_all, assert_not_impl_any};
use tokio::time::timeout;
use tower::{Layer, Service, ServiceBuilder, ServiceExt, limit::ConcurrencyLimitLayer, service_fn};
use tower_sea_orm::{
    DbSession, DbSessionLayer, DbSessionService, DefaultDatabase, DefaultResponseForError, Error,
    MissingSession, PoolSession, ResponseFuture, SessionPool, SessionStream, SessionTransaction,
    Status,
};
use tower_test::mock;

use crate::support::{
    database::{Kind, TestDb, count_items, insert_item},
    pool::{assert_whole, session_layer},
    requests::{Analytics, Own},
    wait::{BOUND, eventually},
};

type Routed = axum::routing::Route;
assert_impl_all!(DbSession: Send, Sync, Unpin, Clone, fmt::Debug);
assert_impl_all!(DbSession<Analytics>: Send, Sync, Unpin, Clone, fmt::Debug);
assert_impl_all!(DbSessionLayer: Send, Sync, Unpin, Clone, fmt::Debug);
assert_impl_all!(DbSessionLayer<Analytics, DefaultResponseForError>: Send, Sync, Unpin, Clone, fmt::Debug);
assert_impl_all!(DbSessionService<Routed>: Send, Sync, Unpin, Clone, fmt::Debug);
assert_impl_all!(ResponseFuture<Routed, Request<Body>>: Send, fmt::Debug);
assert_impl_all!(SessionTransaction: Send, Sync, Unpin, fmt::Debug);
assert_impl_all!(SessionStream<'static>: Send, Unpin, fmt::Debug);
assert_impl_all!(SessionPool: Send, Sync, Unpin, Clone, fmt::Debug);
assert_impl_all!(PoolSession: Send, Sync, Unpin, fmt::Debug);
assert_impl_all!(Error: Send, Sync, Unpin, Clone, std::error::Error);
assert_impl_all!(MissingSession: Send, Sync, Unpin, Clone, std::error::Error, IntoResponse);
assert_impl_all!(Status: Send, Sync, Unpin, Copy, Eq, fmt::Debug);
assert_impl_all!(DefaultResponseForError: Send, Sync, Unpin, Copy, Default, fmt::Debug);
assert_impl_all!(DefaultDatabase: Send, Sync, Unpin, Copy, Eq, fmt::Debug);

// One way out each.
assert_not_impl_any!(SessionTransaction: Clone);

assert_not_impl_any!(PoolSession: Clone);

#[tokio::test]
async fn g14_the_inner_service_that_was_polled_ready_is_the_one_called() {
    for lazy in [false, true] {
        let test = TestDb::new(Kind::SqliteMemory).await;
        let mut layer = session_layer(test.connect(1).await);
        if lazy {
            layer = layer.lazy();
        }
        let pool = layer.pool().clone();
        let (mut service, mut handle) =
            mock::spawn_layer::<Request<()>, Response<String>, _>(layer);

        handle.allow(0);
        assert!(
            service.poll_ready().is_pending(),
            "not ready when the inner service is not"
        );
        handle.allow(1);
        assert!(matches!(service.poll_ready(), Poll::Ready(Ok(()))));
        // A mock panics when it is called without having been polled ready.
        let answer = tokio::spawn(service.call(Request::new(())));
        let (request, respond) = handle.next_request().await.unwrap();
        assert!(
            service.poll_ready().is_pending(),
            "the next call needs readiness of its own"
        );
        let session: DbSession = DbSession::from_extensions(request.extensions()).unwrap();
        session.ping().await.unwrap();
        respond.send_response(Response::new("hello".to_owned()));
        assert_eq!(answer.await.unwrap().unwrap().body(), "hello");
        assert!(session.is_closed());
        eventually("the connection is back", async || pool.status().used == 0).await;
    }
}

#[tokio::test]
async fn readiness_that_was_reserved_is_used_and_not_taken_twice() {
    let test = TestDb::new(Kind::SqliteMemory).await;
    let layer = session_layer(test.connect(1).await);
    // Its permit is reserved by `poll_ready`, and calling it without one panics.
    let limited = ConcurrencyLimitLayer::new(1);
    let mut service = ServiceBuilder::new()
        .layer(layer)
        .layer(limited)
        .service(service_fn(async |_: Request<()>| {
            tokio::task::yield_now().await;
            Ok::<_, Own>(Response::new(String::new()))
        }));
    for _ in 0..20 {
        let first = service.ready().await.unwrap().call(Request::new(()));
        assert!(
            poll!(pin!(service.clone().ready())).is_pending(),
            "the one permit is with the first call"
        );
        let mut copy = service.clone();
        let second = async { copy.ready().await.unwrap().call(Request::new(())).await };
        let both = timeout(BOUND, async { futures_util::join!(first, second) }).await;
        let (first, second) = both.expect("both are served");
        first.unwrap();
        second.unwrap();
    }
}

#[tokio::test]
async fn g1_the_inner_service_is_not_called_before_a_connection_is_checked_out() {
    let test = TestDb::new(Kind::SqliteMemory).await;
    let layer = session_layer(test.connect(1).await);
    let holder = layer.pool().session().await.unwrap();
    let (mut service, mut handle) = mock::spawn_layer::<Request<()>, Response<String>, _>(layer);
    handle.allow(1);
    assert!(service.poll_ready().is_ready());
    let mut answer = Box::pin(service.call(Request::new(())));
    for _ in 0..100 {
        assert!(poll!(&mut answer).is_pending());
        assert!(
            handle.poll_request().is_pending(),
            "called without a connection"
        );
        tokio::task::yield_now().await;
    }
    drop(holder);
    let answer = tokio::spawn(answer);
    let (request, respond) = handle.next_request().await.unwrap();
    assert!(request.extensions().get::<DbSession>().is_some());
    respond.send_response(Response::new(String::new()));
    answer.await.unwrap().unwrap();
}

#[tokio::test]
async fn the_inner_services_error_passes_untouched_and_ends_the_session() {
    let test = TestDb::new(Kind::SqliteMemory).await;
    let db = test.connect(1).await;
    let kept = Arc::new(Mutex::new(None));
    let keep = kept.clone();
    let service = session_layer(db.clone()).layer(service_fn(move |request: Request<()>| {
        let keep = keep.clone();
        async move {
            let session: DbSession = DbSession::from_extensions(request.extensions()).unwrap();
            let tx = session.begin().await.unwrap();
            insert_item(&tx, "lost").await;
            *keep.lock().unwrap() = Some((session, tx));
            Err::<Response<String>, Own>(Own(7))
        }
    }));
    assert_eq!(service.oneshot(Request::new(())).await.unwrap_err(), Own(7));
    let (session, tx) = kept.lock().unwrap().take().unwrap();
    let error = Error::of(&session.execute_unprepared("SELECT 1").await.unwrap_err()).unwrap();
    assert!(error.is_session_closed());
    let error = Error::of(&tx.commit().await.unwrap_err()).unwrap();
    assert!(error.is_session_closed());
    assert_whole(&test, &db, 1).await;
    assert_eq!(count_items(&db, "lost").await, 0);
}

#[tokio::test]
async fn an_error_of_readiness_passes_untouched() {
    let layer = session_layer(MockDatabase::new(DbBackend::Sqlite).into_connection());
    let (mut service, mut handle) = mock::spawn_layer::<Request<()>, Response<String>, _>(layer);
    handle.send_error("not today");
    let Poll::Ready(Err(error)) = service.poll_ready() else {
        panic!("no error")
    };
    assert_eq!(error.to_string(), "not today");
}

#[tokio::test]
async fn any_body_will_do() {
    let test = TestDb::new(Kind::SqliteMemory).await;
    let layer = session_layer(test.connect(1).await);
    let full = layer
        .clone()
        .layer(service_fn(async |request: Request<Full<Bytes>>| {
            let session: DbSession = DbSession::from_extensions(request.extensions()).unwrap();
            session.ping().await.unwrap();
            let body = request.into_body().collect().await.unwrap().to_bytes();
            Ok::<_, Own>(Response::new(Full::new(body)))
        }));
    let request = Request::new(Full::new(Bytes::from_static(b"echo")));
    let response = full.oneshot(request).await.unwrap();
    assert_eq!(
        response.into_body().collect().await.unwrap().to_bytes(),
        "echo"
    );

    let unit = layer.layer(service_fn(async |_: Request<u8>| {
        Ok::<_, Own>(Response::new(5_u64))
    }));
    assert_eq!(*unit.oneshot(Request::new(1)).await.unwrap().body(), 5);
}

#[tokio::test]
async fn clones_serve_and_the_inner_service_can_be_reached() {
    let test = TestDb::new(Kind::SqliteMemory).await;
    let db = test.connect(1).await;
    let mut service = ServiceBuilder::new()
        .layer(session_layer(db.clone()))
        .service(service_fn(async |_: Request<()>| {
            Ok::<_, Own>(Response::new(String::new()))
        }));
    let mut copy = service.clone();
    copy.ready()
        .await
        .unwrap()
        .call(Request::new(()))
        .await
        .unwrap();
    service
        .ready()
        .await
        .unwrap()
        .call(Request::new(()))
        .await
        .unwrap();
    let _ = (service.get_ref(), copy.get_mut());
    service
        .into_inner()
        .oneshot(Request::new(()))
        .await
        .unwrap();
    assert_whole(&test, &db, 1).await;
}
