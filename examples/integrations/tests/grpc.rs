//! The gRPC service with a client over the network: verdicts by `grpc-status`, deadlines, hang-ups, exhaustion.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[allow(dead_code, reason = "its `main` is for its users")]
#[path = "../src/bin/grpc.rs"]
mod example;
mod support;

use std::{future::pending, time::Duration};

use futures_util::TryStreamExt;
use sea_orm::ConnectionTrait;
use tokio::net::TcpListener;
use tonic::{Code, Request, Status, transport::Channel};
use tower_sea_orm::{DbSessionLayer, SessionPoolBuilder};

use self::{
    example::shop::{
        GetRequest, Item, ListRequest, OrderRequest, TakeRequest, orders_client::OrdersClient,
        shop_client::ShopClient,
    },
    support::{BOUND, Kind, Site},
};

/// So short that it passes in each test, and nothing depends on how much of the request it leaves time for.
const DEADLINE: Duration = Duration::from_millis(300);

#[derive(Clone)]
struct Client {
    shop: ShopClient<Channel>,
    orders: OrdersClient<Channel>,
}

async fn client(sessions: DbSessionLayer) -> Client {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(example::serve(listener, sessions, pending()));
    let channel = Channel::from_shared(url).unwrap();
    let channel = channel.connect().await.unwrap();
    Client {
        shop: ShopClient::new(channel.clone()),
        orders: OrdersClient::new(channel),
    }
}

async fn site_and_client(kind: Kind) -> (Site, Client) {
    let site = Site::new(kind, 2).await;
    let client = client(DbSessionLayer::new(site.pool.clone())).await;
    (site, client)
}

/// A site whose statements end with their request: a test sees by that that the server has noticed the hang-up,
/// while the lock that the statement waits for is still held.
async fn site_that_cancels() -> (Site, Client) {
    let site = Site::with(Kind::Postgres, 2, |pool| pool.cancel_running()).await;
    let client = client(DbSessionLayer::new(site.pool.clone())).await;
    (site, client)
}

fn line(id: i32, pieces: i32) -> TakeRequest {
    TakeRequest { id, pieces }
}

fn order(lines: impl Into<Vec<TakeRequest>>) -> OrderRequest {
    OrderRequest {
        lines: lines.into(),
    }
}

/// The messages that arrived, and the status at their end.
async fn ordered(
    client: &mut Client,
    lines: impl Into<Vec<TakeRequest>>,
) -> (Vec<Item>, Result<(), Status>) {
    let mut stream = client
        .orders
        .order(order(lines))
        .await
        .unwrap()
        .into_inner();
    let mut items = Vec::new();
    loop {
        match stream.try_next().await {
            Ok(Some(item)) => items.push(item),
            Ok(None) => return (items, Ok(())),
            Err(status) => return (items, Err(status)),
        }
    }
}

#[tokio::test]
async fn a_unary_ok_is_committed_and_an_err_rolls_back() {
    for kind in Kind::ALL {
        let (site, mut client) = site_and_client(kind).await;
        let left = client.shop.take(line(1, 3)).await.unwrap().into_inner();
        assert_eq!(left.pieces, 7);
        assert_eq!(site.pieces(1).await, 7, "{kind:?}");

        // The UPDATE ran; its status is in the head, because there is no message.
        let refused = client.shop.take(line(1, 8)).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert_eq!(site.pieces(1).await, 7, "{kind:?}");

        let missing = client.shop.get(GetRequest { id: 9 }).await.unwrap_err();
        assert_eq!(missing.code(), Code::NotFound);
        let got = client.shop.get(GetRequest { id: 2 }).await.unwrap();
        assert_eq!(got.into_inner().name, "table");
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn a_stream_is_committed_at_its_end_or_rolled_back_by_its_trailers() {
    for kind in Kind::ALL {
        let (site, mut client) = site_and_client(kind).await;
        let (items, end) = ordered(&mut client, [line(1, 3), line(2, 4)]).await;
        end.unwrap();
        assert_eq!(items.len(), 2);
        // At once: the trailers leave after COMMIT.
        assert_eq!((site.pieces(1).await, site.pieces(2).await), (7, 6));

        let (items, end) = ordered(&mut client, [line(1, 3), line(2, 9)]).await;
        assert_eq!(items.len(), 1, "{kind:?}");
        assert_eq!(end.unwrap_err().code(), Code::FailedPrecondition);
        assert_eq!((site.pieces(1).await, site.pieces(2).await), (7, 6));
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn a_commit_that_fails_is_an_error_of_the_call() {
    let (site, mut client) = site_and_client(Kind::Postgres).await;
    client.shop.take(line(2, 5)).await.unwrap();
    let deferred = "ALTER TABLE item ADD UNIQUE (pieces) DEFERRABLE INITIALLY DEFERRED";
    site.observer.execute_unprepared(deferred).await.unwrap();
    let refused = client.shop.take(line(1, 5)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Internal);
    assert_eq!(refused.message(), "internal error");
    // The message has left, and the status says that it does not count.
    let (items, end) = ordered(&mut client, [line(1, 5)]).await;
    assert_eq!(items.len(), 1);
    let refused = end.unwrap_err();
    assert_eq!(refused.code(), Code::Internal);
    assert_eq!(refused.message(), "internal error");
    assert_eq!((site.pieces(1).await, site.pieces(2).await), (10, 5));
    site.assert_whole().await;
}

#[tokio::test]
async fn a_stream_reads_on_the_session_of_its_request() {
    for kind in Kind::ALL {
        let (site, mut client) = site_and_client(kind).await;
        let stream = client
            .orders
            .list(ListRequest {})
            .await
            .unwrap()
            .into_inner();
        let items: Vec<Item> = stream.try_collect().await.unwrap();
        let names: Vec<_> = items.iter().map(|item| item.name.as_str()).collect();
        assert_eq!(names, ["lamp", "table"], "{kind:?}");
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn a_stream_that_its_client_leaves_is_rolled_back() {
    let (site, mut client) = site_that_cancels().await;
    let lock = site.lock(2).await;
    let lines = [line(1, 3), line(2, 3)];
    let mut stream = client
        .orders
        .order(order(lines))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(stream.try_next().await.unwrap().unwrap().pieces, 7);
    site.blocked(1).await;
    drop(stream);
    site.returned().await;
    drop(lock);
    assert_eq!((site.pieces(1).await, site.pieces(2).await), (10, 10));
    site.assert_whole().await;
}

#[tokio::test]
async fn calls_that_their_client_drops_are_rolled_back() {
    let (site, client) = site_that_cancels().await;
    let lock = site.lock(1).await;
    // As many as the pool has connections.
    let calls = [client.clone(), client]
        .map(|mut client| tokio::spawn(async move { client.shop.take(line(1, 1)).await }));
    site.blocked(2).await;
    for call in calls {
        call.abort();
    }
    site.returned().await;
    drop(lock);
    assert_eq!(site.pieces(1).await, 10);
    site.assert_whole().await;
}

#[tokio::test]
async fn calls_that_take_longer_than_their_deadline_are_rolled_back() {
    let (site, mut client) = site_that_cancels().await;
    let lock = site.lock(1).await;
    for _ in 0..2 {
        let mut late = Request::new(line(1, 1));
        late.set_timeout(DEADLINE);
        let late = client.shop.take(late).await.unwrap_err();
        // The client's clock or the server's, whichever is first: tonic says it in two ways.
        let codes = [Code::Cancelled, Code::DeadlineExceeded];
        assert!(codes.contains(&late.code()), "{late}");
    }
    // On the same connection: with this answer, the server has read what the calls before it sent.
    client.shop.get(GetRequest { id: 2 }).await.unwrap();
    site.returned().await;
    drop(lock);
    assert_eq!(site.pieces(1).await, 10);
    site.assert_whole().await;
}

/// tonic holds a call to its deadline until its head is there. A stream may wait in its messages for ever, but
/// for the pool's own limit.
#[tokio::test]
async fn a_stream_that_takes_too_long_is_ended_by_the_pools_hold_timeout() {
    let set = |pool: SessionPoolBuilder| pool.cancel_running().hold_timeout(Duration::from_secs(2));
    let site = Site::with(Kind::Postgres, 2, set).await;
    let mut client = client(DbSessionLayer::new(site.pool.clone())).await;
    let lock = site.lock(2).await;
    let (_, end) = ordered(&mut client, [line(1, 3), line(2, 3)]).await;
    assert_eq!(end.unwrap_err().code(), Code::DeadlineExceeded);
    drop(lock);
    assert_eq!((site.pieces(1).await, site.pieces(2).await), (10, 10));
    site.assert_whole().await;
}

#[tokio::test]
async fn an_exhausted_pool_is_unavailable_from_the_layer_and_from_a_handler() {
    for lazy in [false, true] {
        let set = |pool: SessionPoolBuilder| pool.acquire_timeout(DEADLINE);
        let site = Site::with(Kind::Postgres, 1, set).await;
        let layer = DbSessionLayer::new(site.pool.clone());
        // Lazy, and with the handler's own answers: `failed` of the example makes them.
        let layer = if lazy {
            layer.lazy().keep_handler_errors()
        } else {
            layer
        };
        let mut client = client(layer).await;
        let all = site.session().await;
        let refused = client.shop.take(line(1, 1)).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "lazy: {lazy}");
        let by = if lazy {
            "the database failed"
        } else {
            "the service is busy"
        };
        assert_eq!(refused.message(), by);
        // The stream's status is in its trailers if its session is lazy.
        let stream = client.orders.list(ListRequest {}).await;
        let refused = match stream {
            Err(status) => status,
            Ok(stream) => stream.into_inner().try_next().await.unwrap_err(),
        };
        assert_eq!(refused.code(), Code::Unavailable, "lazy: {lazy}");
        drop(all);
        // Busy, not broken.
        tokio::time::timeout(BOUND, async {
            while client.shop.take(line(1, 1)).await.is_err() {}
        })
        .await
        .unwrap();
        assert_eq!(site.pieces(1).await, 9);
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn commit_when_may_keep_what_a_call_that_fails_has_done() {
    let site = Site::new(Kind::Postgres, 2).await;
    let layer = DbSessionLayer::new(site.pool.clone()).commit_when(|parts| {
        // 9 is FAILED_PRECONDITION. The rule sees the head, and then the trailers of a stream.
        let code = parts.headers.get("grpc-status");
        code.is_none_or(|code| code == "0" || code == "9")
    });
    let mut client = client(layer).await;
    let refused = client.shop.take(line(1, 11)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(site.pieces(1).await, -1);

    // Any other code still rolls back: 5, NOT_FOUND.
    let (_, end) = ordered(&mut client, [line(2, 4), line(9, 1)]).await;
    assert_eq!(end.unwrap_err().code(), Code::NotFound);
    assert_eq!(site.pieces(2).await, 10);

    let (items, end) = ordered(&mut client, [line(2, 4), line(2, 7)]).await;
    assert_eq!(items.len(), 1);
    assert_eq!(end.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(site.pieces(2).await, -1);
    site.assert_whole().await;
}
