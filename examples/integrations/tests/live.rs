//! WebSocket and server-sent events: many clients that wait, on a pool of two connections, and clients that hang up.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[allow(dead_code, reason = "its `main` is for its users")]
#[path = "../src/bin/live.rs"]
mod example;
mod support;

use std::pin::Pin;

use futures_util::{SinkExt, Stream, StreamExt};
use tokio::{
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async, tungstenite::Message};

use self::support::{BOUND, Kind, Site};

/// Many more than the pool has connections.
const CLIENTS: usize = 20;

async fn served(site: &Site) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let app = example::app(site.pool.clone(), example::Taken::default());
    tokio::spawn(axum::serve(listener, app).into_future());
    address
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

async fn till(address: &str) -> Socket {
    let opened = connect_async(format!("ws://{address}/till")).await;
    opened.unwrap().0
}

async fn say(socket: &mut Socket, text: &str) -> String {
    socket.send(Message::text(text)).await.unwrap();
    let answer = timeout(BOUND, socket.next()).await.expect("an answer");
    answer.unwrap().unwrap().into_text().unwrap().to_string()
}

type Lines = Pin<Box<dyn Stream<Item = String>>>;

/// The events of an item's stock.
async fn stock(address: &str, id: i32) -> Lines {
    let response = reqwest::get(format!("http://{address}/stock/{id}")).await;
    let response = response.unwrap().error_for_status().unwrap();
    let chunks = response.bytes_stream();
    // One event is one chunk, as each is flushed by itself.
    Box::pin(chunks.map(|chunk| String::from_utf8(chunk.unwrap().to_vec()).unwrap()))
}

async fn next(events: &mut Lines) -> String {
    loop {
        let event = timeout(BOUND, events.next()).await.expect("an event");
        let event = event.expect("an open stream").trim().to_owned();
        // The others are comments, which keep the connection alive.
        if event.starts_with("data") {
            return event;
        }
    }
}

#[tokio::test]
async fn clients_that_wait_hold_no_connection() {
    for kind in Kind::ALL {
        let site = Site::new(kind, 2).await;
        let address = served(&site).await;
        let mut tills = Vec::new();
        let mut streams = Vec::new();
        for _ in 0..CLIENTS {
            tills.push(till(&address).await);
            let mut stream = stock(&address, 1).await;
            assert_eq!(next(&mut stream).await, "data: 10");
            streams.push(stream);
        }
        site.returned().await;
        assert_eq!(say(&mut tills[0], "1").await, "9 left", "{kind:?}");
        for stream in &mut streams {
            assert_eq!(next(stream).await, "data: 9", "{kind:?}");
        }
        assert_eq!(say(&mut tills[1], "lamp").await, "which item?");
        assert_eq!(say(&mut tills[1], "9").await, "no such item");
        for till in &mut tills[2..11] {
            say(till, "1").await;
        }
        assert_eq!(say(&mut tills[11], "1").await, "not in stock");
        assert_eq!(site.pieces(1).await, 0, "{kind:?}");
        drop((tills, streams));
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn a_client_that_hangs_up_leaves_the_pool_whole() {
    let site = Site::new(Kind::Postgres, 2).await;
    let address = served(&site).await;
    let lock = site.lock(1).await;
    let mut gone = Vec::new();
    for _ in 0..2 {
        let mut socket = till(&address).await;
        socket.send(Message::text("1")).await.unwrap();
        gone.push(socket);
    }
    site.blocked(2).await;
    // Without a closing handshake, as a network that goes away.
    drop(gone);
    let stream = reqwest::get(format!("http://{address}/stock/2"));
    // No connection is free: this one waits for its first statement, and hangs up.
    let waiting = timeout(std::time::Duration::from_millis(300), stream);
    assert!(waiting.await.is_err());
    drop(lock);
    site.returned().await;
    // A message that had arrived is worked off, as its sender cannot know whether it was.
    assert_eq!(site.pieces(1).await, 8);
    let mut stream = stock(&address, 1).await;
    assert_eq!(next(&mut stream).await, "data: 8");
    drop(stream);
    site.assert_whole().await;
}

#[tokio::test]
async fn an_item_that_is_not_there_is_a_404_and_no_stream() {
    let site = Site::new(Kind::Sqlite, 2).await;
    let address = served(&site).await;
    let response = reqwest::get(format!("http://{address}/stock/9")).await;
    assert_eq!(response.unwrap().status(), 404);
    site.assert_whole().await;
}
