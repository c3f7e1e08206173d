//! G7: a gRPC stream that is not committed ends with a status that says so, over real connections.

use std::{convert::Infallible, time::Duration};

use axum::{
    body::{Body, Bytes},
    response::Response,
};
use futures_util::{Stream, StreamExt, stream};
use http::{HeaderMap, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use sea_orm::ConnectionTrait;
use tokio::time::timeout;
use tower_sea_orm::DbTx;

use super::server::Server;
use crate::support::{
    database::{Kind, insert_item},
    site::{BOUND, DEFERRING, Site, violate},
};

type Frames = Result<Frame<Bytes>, Infallible>;

/// A message, and then `rest`.
fn response(
    tx: &DbTx,
    kind: &'static str,
    rest: impl Stream<Item = Frames> + Send + 'static,
) -> Response {
    let message = Frame::data(Bytes::from_static(b"\0\0\0\0\x01a"));
    let body = StreamBody::new(stream::once(async { Ok(message) }).chain(rest));
    let mut response = Response::new(Body::new(tx.hold_until_body_end(body)));
    let kind = kind.parse().unwrap();
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// The trailers of a call that its handler takes for a success.
fn success() -> impl Stream<Item = Frames> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    trailers.insert("x-served-by", "the handler".parse().unwrap());
    stream::once(async { Ok(Frame::trailers(trailers)) })
}

/// What the client reads: the message and the trailers, or an error.
async fn read(server: &Server, http2: bool) -> Result<(Bytes, HeaderMap), hyper::Error> {
    let (answer, connection) = server.get(http2).await;
    let body = timeout(BOUND, answer.into_body().collect()).await;
    let body = body.expect("an end, not a hang")?;
    connection.abort();
    let trailers = body.trailers().cloned().unwrap_or_default();
    Ok((body.to_bytes(), trailers))
}

#[tokio::test]
async fn a_failed_commit_is_the_status_in_the_trailers() {
    for kind in DEFERRING {
        let site = Site::new(kind).await;
        site.defer().await;
        for content_type in ["application/grpc", "Application/gRPC+proto"] {
            let app = site.app(async move |tx: DbTx| {
                insert_item(&tx, "lost").await;
                violate(&tx).await;
                response(&tx, content_type, success())
            });
            let mut server = Server::start(app).await;
            let (message, trailers) = read(&server, true).await.unwrap();
            assert_eq!(message.len(), 6, "{kind:?}: what has left, has left");
            assert_eq!(trailers["grpc-status"], "13", "{kind:?}");
            assert_eq!(trailers["grpc-message"], "internal error");
            assert_eq!(trailers.len(), 2, "nothing of the handler's: {trailers:?}");
            server.stop().await;
            assert_eq!(site.count("lost").await, 0, "{kind:?}");
        }
        site.assert_whole().await;
    }
}

/// Over HTTP/1.1, a server leaves the trailers out; gRPC-Web has its status in the data.
#[tokio::test]
async fn where_no_trailers_can_say_it_a_failed_commit_breaks_the_body() {
    let site = Site::new(Kind::Postgres).await;
    site.defer().await;
    for (http2, content_type) in [
        (false, "application/grpc"),
        (true, "application/grpc-web+proto"),
        (true, "application/grpcish"),
        (true, "text/plain"),
    ] {
        let app = site.app(async move |tx: DbTx| {
            insert_item(&tx, "lost").await;
            violate(&tx).await;
            response(&tx, content_type, success())
        });
        let mut server = Server::start(app).await;
        let read = read(&server, http2).await;
        assert!(read.is_err(), "{content_type}: {read:?}");
        server.stop().await;
        assert_eq!(site.count("lost").await, 0, "{content_type}");
    }
    site.assert_whole().await;
}

#[tokio::test]
async fn a_stream_that_the_server_has_aborted_is_a_status_as_well() {
    let site = Site::new(Kind::Postgres).await;
    let app = site.app(async |tx: DbTx| {
        insert_item(&tx, "lost").await;
        let later = tx.clone();
        // The handler has swallowed the error.
        let swallows = stream::once(async move {
            later.execute_unprepared("SELECT 1 / 0").await.unwrap_err();
            Ok(Frame::data(Bytes::from_static(b"\0\0\0\0\x01b")))
        });
        response(&tx, "application/grpc", swallows.chain(success()))
    });
    let mut server = Server::start(app).await;
    let (messages, trailers) = read(&server, true).await.unwrap();
    assert_eq!(
        (messages.len(), &trailers["grpc-status"]),
        (12, &"13".parse().unwrap())
    );
    server.stop().await;
    assert_eq!(site.count("lost").await, 0);
    site.assert_whole().await;
}

#[tokio::test]
async fn a_stream_that_is_cut_off_is_told_so_by_its_trailers() {
    for kind in [Kind::Postgres, Kind::MySql, Kind::SqliteFile] {
        // Longer than a busy machine takes to send the first message.
        let site = Site::new(kind)
            .await
            .pooled(|pool| pool.hold_timeout(Duration::from_secs(2)));
        let app = site.app(async |tx: DbTx| {
            insert_item(&tx, "lost").await;
            response(&tx, "application/grpc", stream::pending())
        });
        let mut server = Server::start(app).await;
        let (message, trailers) = read(&server, true).await.unwrap();
        assert_eq!(message.len(), 6);
        assert_eq!(trailers["grpc-status"], "4", "{kind:?}: DEADLINE_EXCEEDED");
        assert_eq!(trailers["grpc-message"], "the request took too long");
        server.stop().await;
        assert_eq!(site.count("lost").await, 0, "{kind:?}");
        site.assert_whole().await;
    }
}

/// COMMIT finds a conflict that no statement has found: UNAVAILABLE, as for a call whose head is still there.
#[tokio::test]
async fn a_conflict_at_commit_is_unavailable() {
    let site = Site::new(Kind::Postgres).await;
    site.run(
        "CREATE FUNCTION lose() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN RAISE 'lost' USING ERRCODE = '40001'; END $$; \
         CREATE CONSTRAINT TRIGGER lose AFTER INSERT ON item DEFERRABLE INITIALLY DEFERRED \
         FOR EACH ROW EXECUTE FUNCTION lose()",
    )
    .await;
    let app = site.app(async |tx: DbTx| {
        insert_item(&tx, "lost").await;
        response(&tx, "application/grpc", success())
    });
    let mut server = Server::start(app).await;
    let (_, trailers) = read(&server, true).await.unwrap();
    assert_eq!(trailers["grpc-status"], "14");
    assert_eq!(
        trailers["grpc-message"],
        "the request conflicted with another one"
    );
    server.stop().await;
    assert_eq!(site.count("lost").await, 0);
    site.run("DROP TRIGGER lose ON item").await;
    site.assert_whole().await;
}
