//! G10: the example `graceful_shutdown`.

use std::{net::Ipv4Addr, time::Duration};

use axum::body::Bytes;
use futures_util::future::join_all;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::oneshot,
    time::timeout,
};

use crate::support::{
    database::{Kind, TestDb},
    pool::{assert_nothing_left, session_pool},
    site::BOUND,
    wait::eventually,
};

#[allow(
    dead_code,
    clippy::print_stdout,
    reason = "its `main` is for its users"
)]
#[path = "../../../examples/graceful_shutdown.rs"]
mod example;

/// The response to a GET on a separate connection.
async fn get(port: u16, path: &str) -> (StatusCode, bool, String) {
    let io = TokioIo::new(
        TcpStream::connect((Ipv4Addr::LOCALHOST, port))
            .await
            .expect("it still answers"),
    );
    let (mut sender, connection) = http1::handshake(io).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = Request::get(path)
        .header("host", "localhost")
        .body(Empty::<Bytes>::new())
        .unwrap();
    let response = timeout(BOUND, sender.send_request(request))
        .await
        .expect("an answer")
        .unwrap();
    let (status, retry) = (
        response.status(),
        response.headers().contains_key("retry-after"),
    );
    let body = response.into_body().collect().await.unwrap().to_bytes();
    connection.abort();
    (status, retry, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn the_example_finishes_requests_refuses_new_ones_and_cuts_off_slow_ones() {
    join_all(Kind::ALL.map(stop_the_example)).await;
}

async fn stop_the_example(kind: Kind) {
    let test = TestDb::new(kind).await;
    let pool = session_pool(test.connect(2).await);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (stop, stopped) = oneshot::channel::<()>();
    let stopped = async move { drop(stopped.await) };
    let served = tokio::spawn(example::serve(
        listener,
        pool.clone(),
        stopped,
        Duration::from_secs(10),
    ));

    assert_eq!(
        get(port, "/count/0").await,
        (StatusCode::OK, false, "0 seconds\n".to_owned())
    );
    let long = tokio::spawn(get(port, "/count/600"));
    eventually("it holds a connection", async || pool.status().used == 1).await;
    let short = tokio::spawn(get(port, "/count/1"));
    // A pool in memory has one connection: the short one waits for it.
    let alone = kind == Kind::SqliteMemory;
    eventually("both are there", async || {
        pool.status().used + pool.status().pending as u32 == 2
    })
    .await;
    stop.send(()).unwrap();
    eventually("it is told to stop", async || pool.is_closed()).await;
    let (status, retry, _) = get(port, "/count/0").await;
    assert_eq!(
        (status, retry),
        (StatusCode::SERVICE_UNAVAILABLE, true),
        "{kind:?}"
    );

    let (status, ..) = timeout(BOUND, short).await.unwrap().unwrap();
    assert_eq!(status.as_u16(), if alone { 503 } else { 200 }, "{kind:?}");
    let (status, ..) = timeout(BOUND, long).await.unwrap().unwrap();
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{kind:?}");
    timeout(BOUND, served)
        .await
        .expect("the process ends")
        .unwrap()
        .unwrap();
    assert_nothing_left(&test).await;
}
