//! G7: bodies that hold their session, over HTTP/1.0.

use std::{convert::Infallible, net::Ipv4Addr};

use axum::{
    Router,
    body::{Body, Bytes},
    response::Response,
    routing::get,
};
use futures_util::{StreamExt, stream};
use http::header;
use sea_orm::{ConnectionTrait, DbErr, Statement};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tower_sea_orm::DbTx;

use super::server::Server;
use crate::{
    log::Log,
    support::{
        database::{Kind, insert_item},
        site::{DEFERRING, Site, violate},
        wait::BOUND,
    },
};

#[tokio::test]
async fn rows_go_out_over_http_1_0() {
    for kind in Kind::ALL {
        for keep_alive in [false, true] {
            for has_length in [false, true] {
                let site = Site::new(kind).await;
                let mut server = Server::start(site.app(async move |tx: DbTx| {
                    insert_item(&tx, "one").await;
                    insert_item(&tx, "two").await;
                    let select =
                        Statement::from_string(tx.backend(), "SELECT name FROM item ORDER BY id");
                    let rows = tx.rows(select).await.unwrap();
                    let rows =
                        rows.map(|row| Ok::<_, DbErr>(row?.try_get_by_index::<String>(0)? + "\n"));
                    let mut response =
                        Response::new(Body::new(tx.hold_until_body_end(Body::from_stream(rows))));
                    if has_length {
                        response.headers_mut().insert("content-length", 8.into());
                    }
                    response
                }))
                .await;
                let answer = if keep_alive && has_length {
                    // The connection stays open after it.
                    let mut stream = server.connect().await;
                    stream
                        .write_all(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
                        .await
                        .unwrap();
                    let mut answer = Vec::new();
                    while !answer.ends_with(b"one\ntwo\n") {
                        let read = timeout(BOUND, stream.read_buf(&mut answer))
                            .await
                            .unwrap()
                            .unwrap();
                        assert!(read > 0, "{}", String::from_utf8_lossy(&answer));
                    }
                    String::from_utf8(answer).unwrap()
                } else {
                    server.get_1_0(keep_alive).await
                };
                assert!(
                    answer.starts_with("HTTP/1.0 200") && answer.ends_with("one\ntwo\n"),
                    "{kind:?}: {answer}"
                );
                assert_eq!(site.seen(["one", "two"]).await, [true, true], "{kind:?}");
                server.stop().await;
                site.assert_whole().await;
            }
        }
    }
}

#[tokio::test]
async fn an_http_1_0_body_whose_commit_fails_lacks_its_end() {
    for kind in DEFERRING {
        let site = Site::new(kind).await;
        site.defer().await;
        let mut server = Server::start(site.app(async move |tx: DbTx| {
            insert_item(&tx, "lost").await;
            violate(&tx).await;
            tx.execute_unprepared("SELECT 1").await.unwrap();
            Response::new(Body::new(tx.hold_until_body_end(Body::from("whole"))))
        }))
        .await;
        let answer = server.get_1_0(false).await;
        assert!(!answer.ends_with("whole"), "{kind:?}: {answer}");
        assert_eq!(site.count("lost").await, 0, "{kind:?}");
        server.stop().await;
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn a_failed_commit_of_an_http_1_0_body_without_a_length_is_logged() {
    for kind in DEFERRING {
        let site = Site::new(kind).await;
        site.defer().await;
        let (log, _guard) = Log::start();
        let mut server = Server::start(site.app(async move |tx: DbTx| {
            insert_item(&tx, "lost").await;
            violate(&tx).await;
            let parts = stream::iter(["two ", "parts"].map(Ok::<_, Infallible>));
            Response::new(Body::new(tx.hold_until_body_end(Body::from_stream(parts))))
        }))
        .await;
        // Complete or not, its client cannot tell.
        server.get_1_0(false).await;
        assert_eq!(site.count("lost").await, 0, "{kind:?}");
        let lines = log.lines();
        assert!(
            lines.iter().any(|line| line.starts_with("ERROR")),
            "{kind:?}: {lines:?}"
        );
        server.stop().await;
        site.assert_whole().await;
    }
}

const ROWS: usize = 3000;

/// Rows as they are read, one a line.
async fn rows(tx: DbTx) -> Response {
    let sql = format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS}) SELECT i FROM n"
    );
    let rows = tx
        .rows(Statement::from_string(tx.backend(), sql))
        .await
        .unwrap();
    let lines = rows.map(|row| row.map(|_| Bytes::from_static(b"row\n")));
    Response::new(Body::new(tx.hold_until_body_end(Body::from_stream(lines))))
}

/// The same with a length, where COMMIT will fail.
async fn doomed_rows(tx: DbTx) -> Response {
    violate(&tx).await;
    let mut response = rows(tx).await;
    response
        .headers_mut()
        .insert(header::CONTENT_LENGTH, (ROWS * 4).into());
    response
}

/// Returns how many rows a client of HTTP/1.0 gets until the connection ends.
async fn rows_over_http_1_0(app: Router, path: &str) -> usize {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    let server = tokio::spawn(axum::serve(listener, app).into_future());
    client
        .write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())
        .await
        .unwrap();
    let mut answer = Vec::new();
    // A connection that is reset has told what it had to tell before.
    let _ = timeout(BOUND, client.read_to_end(&mut answer))
        .await
        .expect("the end of the connection");
    server.abort();
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.0 200"), "{answer:.100}");
    answer.lines().filter(|line| *line == "row").count()
}

#[tokio::test]
async fn an_http_1_0_client_gets_the_last_row_only_after_commit() {
    for kind in DEFERRING {
        let site = Site::new(kind).await;
        site.defer().await;
        let app = || {
            Router::new()
                .route("/rows", get(rows))
                .route("/doomed", get(doomed_rows))
                .layer(site.layer.clone())
        };
        assert_eq!(rows_over_http_1_0(app(), "/rows").await, ROWS, "{kind:?}");
        let doomed = rows_over_http_1_0(app(), "/doomed").await;
        assert!(
            doomed < ROWS,
            "{kind:?}: complete, though nothing was committed"
        );
        site.assert_whole().await;
    }
}
