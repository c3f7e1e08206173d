//! Held bodies that lose their session, that have nothing to send for long, or that go out over HTTP/1.0.

use std::{
    convert::Infallible,
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    response::Response,
    routing::get,
};
use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use sea_orm::{ConnectionTrait, DbErr, Statement, TransactionTrait};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinHandle,
    time::timeout,
};
use tower_sea_orm::{DbSession, DbTx};

use crate::{
    layer::log::Log,
    support::{
        database::{Kind, insert_item},
        site::{BOUND, DEFERRING, Site, value, violate},
        wait::eventually,
    },
};

/// What `axum::serve` serves until it is told to stop.
struct Server {
    port: u16,
    stop: Option<oneshot::Sender<()>>,
    ended: JoinHandle<()>,
}

impl Server {
    async fn start(app: Router) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (stop, stopped) = oneshot::channel();
        let ended = tokio::spawn(async move {
            let stopped = async move { drop(stopped.await) };
            axum::serve(listener, app)
                .with_graceful_shutdown(stopped)
                .await
                .unwrap();
        });
        Self {
            port,
            stop: Some(stop),
            ended,
        }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))
            .await
            .unwrap()
    }

    /// The head of an answer, whose body is still to come.
    async fn get(&self, http2: bool) -> (http::Response<hyper::body::Incoming>, JoinHandle<()>) {
        let io = TokioIo::new(self.connect().await);
        let request = http::Request::get(format!("http://127.0.0.1:{}/", self.port))
            .header("host", "localhost");
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        if http2 {
            let (mut sender, connection) =
                http2::handshake(TokioExecutor::new(), io).await.unwrap();
            let task = tokio::spawn(async move { drop(connection.await) });
            (sender.send_request(request).await.unwrap(), task)
        } else {
            let (mut sender, connection) = http1::handshake(io).await.unwrap();
            let task = tokio::spawn(async move { drop(connection.await) });
            (sender.send_request(request).await.unwrap(), task)
        }
    }

    /// The whole answer to an HTTP/1.0 request, as it comes.
    async fn get_1_0(&self, keep_alive: bool) -> String {
        let mut stream = self.connect().await;
        let keep_alive = if keep_alive {
            "Connection: keep-alive\r\n"
        } else {
            ""
        };
        stream
            .write_all(format!("GET / HTTP/1.0\r\n{keep_alive}\r\n").as_bytes())
            .await
            .unwrap();
        let mut answer = Vec::new();
        let _ = timeout(BOUND, stream.read_to_end(&mut answer))
            .await
            .expect("the connection's end");
        String::from_utf8(answer).unwrap()
    }

    async fn stop(&mut self) {
        drop(self.stop.take());
        timeout(BOUND, &mut self.ended)
            .await
            .expect("the server stops")
            .unwrap();
    }
}

/// One event, then nothing for ever.
fn events() -> Body {
    let first = stream::once(async { Ok::<_, Infallible>(Bytes::from_static(b"data: 1\n\n")) });
    Body::from_stream(first.chain(stream::pending()))
}

#[tokio::test]
async fn what_a_broken_body_held_is_dropped_and_nothing_of_it_stands() {
    for kind in Kind::ALL {
        for http2 in [false, true] {
            // Longer than a busy machine takes to send the first part.
            let site = Site::new(kind)
                .await
                .pooled(|pool| pool.hold_timeout(Duration::from_secs(2)));
            let dropped = Arc::new(AtomicBool::new(false));
            let gone = dropped.clone();
            let app = site.app(async move |tx: DbTx| {
                insert_item(&tx, "lost").await;
                let gone = SetOnDrop(gone);
                let body = events().map_frame(move |frame| {
                    let _ = &gone;
                    frame
                });
                Response::new(Body::new(tx.hold_until_body_end(body)))
            });
            let mut server = Server::start(app).await;
            let (answer, connection) = server.get(http2).await;
            let mut body = answer.into_body();
            assert!(timeout(BOUND, body.frame()).await.unwrap().unwrap().is_ok());
            let end = timeout(BOUND, body.frame())
                .await
                .expect("an end, not a hang");
            assert!(matches!(end, Some(Err(_))), "{kind:?} {http2}: incomplete");
            eventually("what the body held is dropped", async || {
                dropped.load(Ordering::SeqCst)
            })
            .await;
            drop(body);
            connection.abort();
            server.stop().await;
            assert_eq!(site.count("lost").await, 0, "{kind:?}");
            site.assert_whole().await;
        }
    }
}

struct SetOnDrop(Arc<AtomicBool>);

impl Drop for SetOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn what_was_committed_by_itself_stands_when_the_pool_is_closed_and_a_transaction_does_not() {
    for kind in [Kind::Postgres, Kind::MySql, Kind::SqliteFile] {
        for transactional in [false, true] {
            let site = Site::new(kind).await;
            let layer = if transactional {
                site.layer.clone().transaction()
            } else {
                site.layer.clone()
            };
            let handler = async |db: DbSession| {
                insert_item(&db, "row").await;
                Response::new(Body::new(db.hold_until_body_end(events())))
            };
            let mut server =
                Server::start(Router::new().route("/", get(handler)).layer(layer)).await;
            let (answer, connection) = server.get(false).await;
            let mut body = answer.into_body();
            assert!(timeout(BOUND, body.frame()).await.unwrap().unwrap().is_ok());
            assert_eq!(
                timeout(BOUND, site.layer.pool().close(Duration::ZERO))
                    .await
                    .unwrap(),
                1
            );
            let end = timeout(BOUND, body.frame())
                .await
                .expect("an end, not a hang");
            assert!(matches!(end, Some(Err(_))), "{kind:?}");
            drop(body);
            server.stop().await;
            connection.abort();
            assert_eq!(
                site.count("row").await,
                i64::from(!transactional),
                "{kind:?}"
            );
        }
    }
}

/// Holds up each COMMIT that inserts items, until whoever has the lock lets go.
const GATE: &str = "
    CREATE FUNCTION pass() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN PERFORM pg_advisory_xact_lock(7); RETURN NULL; END $$;
    CREATE CONSTRAINT TRIGGER gate AFTER INSERT ON item
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION pass();";

#[tokio::test]
async fn a_body_whose_commit_is_under_way_ends_as_that_does_though_the_pool_closes() {
    for fails in [false, true] {
        for http2 in [false, true] {
            let site = Site::new(Kind::Postgres).await;
            site.defer().await;
            site.run(GATE).await;
            let gate = site.view().begin().await.unwrap();
            gate.execute_unprepared("SELECT pg_advisory_xact_lock(7)")
                .await
                .unwrap();
            let app = site.app(async move |tx: DbTx| {
                insert_item(&tx, "row").await;
                if fails {
                    violate(&tx).await;
                }
                let parts = stream::iter(["two ", "parts"].map(Ok::<_, Infallible>));
                Response::new(Body::new(tx.hold_until_body_end(Body::from_stream(parts))))
            });
            let mut server = Server::start(app).await;
            let (answer, connection) = server.get(http2).await;
            let body = tokio::spawn(answer.into_body().collect());
            let waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted \
                           AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
            eventually("COMMIT waits", async || {
                value::<i64>(&gate, waiting).await == 1
            })
            .await;

            let pool = site.layer.pool().clone();
            let closing = tokio::spawn(async move { pool.close(Duration::ZERO).await });
            eventually("the pool closes", async || site.layer.pool().is_closed()).await;
            // Some time to cut it off, which must not be done.
            tokio::time::sleep(Duration::from_millis(100)).await;
            gate.commit().await.unwrap();
            let read = timeout(BOUND, body)
                .await
                .expect("an end, not a hang")
                .unwrap();
            assert_eq!(
                read.ok().map(|body| body.to_bytes()),
                (!fails).then(|| Bytes::from("two parts")),
                "{http2}"
            );
            assert_eq!(
                timeout(BOUND, closing).await.unwrap().unwrap(),
                0,
                "nothing was cut off"
            );
            assert_eq!(site.count("row").await, i64::from(!fails), "{http2}");
            connection.abort();
            server.stop().await;
        }
    }
}

#[tokio::test]
async fn a_body_that_has_nothing_to_send_for_long_is_not_taken_for_one_that_is_not_read() {
    for http2 in [false, true] {
        let bound = Duration::from_secs(2);
        let site = Site::new(Kind::SqliteMemory)
            .await
            .pooled(|pool| pool.body_timeout(bound));
        let app = site.app(async move |tx: DbTx| {
            insert_item(&tx, "kept").await;
            let late = stream::once(async move {
                tokio::time::sleep(bound * 2).await;
                Ok::<_, Infallible>(Bytes::from_static(b"late"))
            });
            Response::new(Body::new(tx.hold_until_body_end(Body::from_stream(late))))
        });
        let mut server = Server::start(app).await;
        let (answer, connection) = server.get(http2).await;
        let body = timeout(BOUND, answer.into_body().collect())
            .await
            .unwrap()
            .unwrap()
            .to_bytes();
        assert_eq!(&body[..], b"late");
        assert_eq!(site.count("kept").await, 1);
        connection.abort();
        server.stop().await;
        site.assert_whole().await;
    }
}

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
async fn an_http_1_0_body_without_a_length_whose_commit_fails_is_told_of_in_the_log() {
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
