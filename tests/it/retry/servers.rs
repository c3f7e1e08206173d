//! G20: behind real servers, with real clients.

use std::{convert::Infallible, net::Ipv4Addr};

use axum::body::to_bytes;
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::timeout,
};
use tower::{Layer, service_fn};
use tower_sea_orm::{Attempt, DbSession, DbTx, ReplayBody};

use super::{app, conflict, retrying, site};
use crate::support::{
    database::Kind,
    requests::Failed,
    site::{BOUND, Site},
};

/// Answers with the attempt and the body, after a conflict in the first attempt.
fn echo(site: &Site) -> axum::Router {
    let other = site.view().clone();
    app(
        site,
        retrying(),
        async move |tx: DbTx, attempt: Attempt, body: axum::body::Body| {
            let body = body.collect().await.unwrap();
            let trailer = body
                .trailers()
                .and_then(|trailers| trailers.get("sum"))
                .cloned();
            if !attempt.is_retry() {
                conflict(&tx, &other).await?;
            }
            let text = format!("{} {trailer:?} ", attempt.number());
            Ok::<_, Failed>([text.as_bytes(), &body.to_bytes()].concat())
        },
    )
}

async fn on_axum(app: axum::Router) -> (u16, JoinHandle<()>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let serving = async move { axum::serve(listener, app).await.unwrap() };
    (port, tokio::spawn(serving))
}

/// A service on plain hyper, whose body is hyper's.
async fn on_hyper(site: &Site) -> (u16, JoinHandle<()>) {
    let other = site.view().clone();
    let handler = service_fn(move |request: Request<ReplayBody<Incoming>>| {
        let other = other.clone();
        async move {
            let (head, body) = request.into_parts();
            let session: DbSession = DbSession::from_extensions(&head.extensions).unwrap();
            let attempt = Attempt::of(&head.extensions);
            let body = body.collect().await.unwrap();
            let trailer = body
                .trailers()
                .and_then(|trailers| trailers.get("sum"))
                .cloned();
            let mut text = format!("{} {trailer:?} ", attempt.number()).into_bytes();
            text.extend_from_slice(&body.to_bytes());
            let mut response = Response::new(Full::new(Bytes::from(text)));
            if !attempt.is_retry() && conflict(&session.tx(), &other).await.is_err() {
                *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            }
            Ok::<_, Infallible>(response)
        }
    });
    let service = retrying().layer(site.layer.clone().layer(handler));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let serving = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let service = TowerToHyperService::new(service.clone());
            tokio::spawn(async move {
                let server = auto::Builder::new(TokioExecutor::new());
                drop(server.serve_connection(TokioIo::new(stream), service).await);
            });
        }
    });
    (port, serving)
}

/// The answer to a POST of a chunked body with a trailer.
async fn post(port: u16, is_http2: bool) -> Response<Incoming> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))
        .await
        .unwrap();
    let mut trailers = HeaderMap::new();
    trailers.insert("sum", "17".parse().unwrap());
    let frames = [
        Frame::data(Bytes::from("hello ")),
        Frame::data(Bytes::from("world")),
        Frame::trailers(trailers),
    ];
    let body = StreamBody::new(stream::iter(frames.map(Ok::<_, Infallible>)));
    let request = Request::post(format!("http://127.0.0.1:{port}/"))
        .header("host", "localhost")
        .header("trailer", "sum")
        .body(body)
        .unwrap();
    if is_http2 {
        let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (mut sender, connection) = handshake.await.unwrap();
        tokio::spawn(connection);
        sender.send_request(request).await.unwrap()
    } else {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        sender.send_request(request).await.unwrap()
    }
}

#[tokio::test]
async fn g20_a_chunked_body_with_trailers_is_replayed_behind_real_servers() {
    let site = site(Kind::Postgres).await;
    let servers = [on_axum(echo(&site)).await, on_hyper(&site).await];
    for (port, _) in &servers {
        for is_http2 in [false, true] {
            let response = timeout(BOUND, post(*port, is_http2)).await.unwrap();
            assert_eq!(response.status(), StatusCode::OK);
            let body = axum::body::Body::new(response.into_body());
            let body = to_bytes(body, usize::MAX).await.unwrap();
            assert_eq!(body, r#"2 Some("17") hello world"#, "HTTP/2: {is_http2}");
        }
    }
    servers.into_iter().for_each(|(_, serving)| serving.abort());
    site.assert_whole().await;
}

#[tokio::test]
async fn g20_a_client_that_waits_for_100_continue_is_told_once() {
    let site = site(Kind::Postgres).await;
    let (port, serving) = on_axum(echo(&site)).await;
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))
        .await
        .unwrap();
    let head = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\nexpect: 100-continue\r\nconnection: close\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut told = [0; 25];
    timeout(BOUND, stream.read_exact(&mut told))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&told, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"hello").await.unwrap();
    let mut answer = String::new();
    timeout(BOUND, stream.read_to_string(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert!(
        answer.ends_with("2 None hello") && !answer.contains("100 Continue"),
        "{answer}"
    );
    serving.abort();
    site.assert_whole().await;
}
