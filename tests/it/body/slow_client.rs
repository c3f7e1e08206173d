//! G3: bodies that are cut off, and clients that are slow to read or to write, over real connections.

use std::{convert::Infallible, net::Ipv4Addr, time::Duration};

use axum::{
    Router,
    body::{Body, Bytes},
    response::Response,
    routing::{get, post},
};
use futures_util::{Stream, StreamExt, future::join_all, stream};
use http::{Request, StatusCode, Version};
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::{
    body::{Frame, Incoming},
    client::conn::{http1, http2},
    server,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use sea_orm::ConnectionTrait;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot},
    time::{Instant, timeout},
};
use tower::ServiceExt;
use tower_sea_orm::{DbSession, DbSessionLayer, DbTx, SessionPool, without_body};

use crate::support::{
    database::{Kind, TestDb},
    pool::pool_with,
    wait::{BOUND, eventually},
};

type Part = Result<Frame<Bytes>, Infallible>;

fn part(size: usize) -> Part {
    Ok(Frame::data(Bytes::from(vec![b'.'; size])))
}

/// A body that lives as long as its transaction, which has begun.
async fn held(tx: DbTx, parts: impl Stream<Item = Part> + Send + 'static) -> Response {
    tx.execute_unprepared("SELECT 1").await.unwrap();
    Response::new(Body::new(tx.hold_until_body_end(StreamBody::new(parts))))
}

/// Events that come once, and then never.
async fn idle(tx: DbTx) -> Response {
    held(tx, stream::iter([part(10)]).chain(stream::pending())).await
}

/// Events without an end.
async fn busy(tx: DbTx) -> Response {
    let parts = stream::repeat_with(|| part(10)).then(async |part| {
        tokio::time::sleep(Duration::from_millis(1)).await;
        part
    });
    held(tx, parts).await
}

/// Large parts without an end, as fast as they are read.
async fn large(tx: DbTx) -> Response {
    held(tx, stream::repeat_with(|| part(1 << 16))).await
}

async fn ping(db: DbSession) {
    db.execute_unprepared("SELECT 1").await.unwrap();
}

async fn upload(db: DbSession, body: Bytes) -> String {
    db.execute_unprepared("SELECT 1").await.unwrap();
    body.len().to_string()
}

fn app(layer: DbSessionLayer) -> Router {
    Router::new()
        .route("/idle", get(idle))
        .route("/busy", get(busy))
        .route("/large", get(large))
        .route("/ping", get(ping))
        .route("/upload", post(upload))
        .layer(layer)
}

/// Sends a GET request; the connection ends on its own.
async fn ask<Io>(io: Io, version: Version, path: &str) -> http::Response<Incoming>
where
    Io: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let request = Request::get(format!("http://localhost{path}"))
        .body(Empty::<Bytes>::new())
        .unwrap();
    if version == Version::HTTP_2 {
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(io))
            .await
            .unwrap();
        tokio::spawn(connection);
        return sender.send_request(request).await.unwrap();
    }
    let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await.unwrap();
    tokio::spawn(connection);
    sender.send_request(request).await.unwrap()
}

/// The body must break; a connection that stays open after it must not keep the server.
async fn breaks(mut body: Incoming, case: &str) {
    let end = timeout(BOUND, async {
        loop {
            match body.frame().await {
                Some(Ok(_)) => {}
                end => return end,
            }
        }
    });
    let end = end
        .await
        .unwrap_or_else(|_| panic!("{case}: the body streams on"));
    assert!(matches!(end, Some(Err(_))), "{case}: {end:?}");
}

/// Serves one body as `axum::serve` does, cuts its session by `cut`, and waits for the server's end.
async fn is_cut(
    pool: SessionPool,
    version: Version,
    path: &str,
    cut: impl AsyncFnOnce(&SessionPool),
) {
    let case = format!("{version:?} {path}");
    let app = app(DbSessionLayer::new(pool.clone()));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let serving =
        axum::serve(listener, app).with_graceful_shutdown(async { stopped.await.unwrap() });
    let server = tokio::spawn(serving.into_future());

    let response = ask(TcpStream::connect(address).await.unwrap(), version, path).await;
    assert_eq!(response.status(), StatusCode::OK, "{case}");
    let mut body = response.into_body();
    body.frame().await.unwrap().unwrap();
    stop.send(()).unwrap();
    cut(&pool).await;
    breaks(body, &case).await;
    let stopped = timeout(BOUND, server).await;
    stopped
        .unwrap_or_else(|_| panic!("{case}: the server does not stop"))
        .unwrap()
        .unwrap();
    eventually(&format!("{case}: the connection is back"), async || {
        pool.status().used == 0
    })
    .await;
}

const FORMS: [(Version, &str); 4] = [
    (Version::HTTP_11, "/idle"),
    (Version::HTTP_11, "/busy"),
    (Version::HTTP_2, "/idle"),
    (Version::HTTP_2, "/busy"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_the_pool_breaks_held_bodies_and_lets_the_server_stop() {
    for kind in Kind::ALL {
        for (version, path) in FORMS {
            let test = TestDb::new(kind).await;
            let pool = pool_with(&test.connect(2).await, |pool| pool);
            is_cut(pool, version, path, async |pool| {
                pool.close(Duration::ZERO).await;
            })
            .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hold_timeout_breaks_the_body_of_its_session() {
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        for (version, path) in FORMS {
            // Longer than a busy machine takes to send the first part.
            let pool = pool_with(&test.connect(2).await, |pool| {
                pool.hold_timeout(Duration::from_secs(2))
            });
            is_cut(pool, version, path, async |_| {}).await;
        }
    }
}

/// A body of large parts over a connection that holds next to nothing.
async fn over_a_thin_line(pool: &SessionPool, version: Version) -> Incoming {
    let (client, served) = tokio::io::duplex(1 << 12);
    let service = TowerToHyperService::new(app(DbSessionLayer::new(pool.clone())));
    tokio::spawn(async move {
        let io = TokioIo::new(served);
        let _ = match version {
            Version::HTTP_2 => {
                server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(io, service)
                    .await
            }
            _ => {
                server::conn::http1::Builder::new()
                    .serve_connection(io, service)
                    .await
            }
        };
    });
    ask(client, version, "/large").await.into_body()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_stops_reading_loses_the_connection_of_its_session() {
    for kind in [Kind::Postgres, Kind::MySql, Kind::SqliteFile] {
        let test = TestDb::new(kind).await;
        for version in [Version::HTTP_11, Version::HTTP_2] {
            // Nobody is watched for anything else.
            let pool = pool_with(&test.connect(1).await, |pool| {
                pool.body_timeout(Duration::from_secs(2))
                    .hold_slow_threshold(Duration::MAX)
            });
            let mut body = over_a_thin_line(&pool, version).await;
            body.frame().await.unwrap().unwrap();
            // The only connection serves the next one, while the client is still there.
            let next = pool
                .session()
                .await
                .unwrap_or_else(|error| panic!("{kind:?} {version:?}: {error}"));
            next.execute_unprepared("SELECT 1").await.unwrap();
            breaks(body, &format!("{kind:?} {version:?}")).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_reads_slowly_keeps_its_session() {
    let test = TestDb::new(Kind::SqliteFile).await;
    let bound = Duration::from_secs(8);
    let pool = pool_with(&test.connect(2).await, |pool| pool.body_timeout(bound));
    let [mut one, mut two] = [
        over_a_thin_line(&pool, Version::HTTP_11).await,
        over_a_thin_line(&pool, Version::HTTP_2).await,
    ];
    let started = Instant::now();
    while started.elapsed() < bound * 3 / 2 {
        for body in [&mut one, &mut two] {
            body.frame()
                .await
                .expect("more")
                .expect("the session was cut off");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(pool.status().used, 2);
}

#[tokio::test]
async fn slow_uploads_keep_no_connection_from_others() {
    let test = TestDb::new(Kind::Postgres).await;
    let layer =
        DbSessionLayer::new(pool_with(&test.connect(2).await, |pool| pool)).eager_if(without_body);
    let app = app(layer);
    let (lines, uploads): (Vec<_>, Vec<_>) =
        [("transfer-encoding", "chunked"), ("content-length", "4")]
            .into_iter()
            .map(|(name, value)| {
                let (line, mut parts) = mpsc::channel::<&str>(1);
                let body = Body::from_stream(stream::poll_fn(move |cx| {
                    parts.poll_recv(cx).map(|p| p.map(Ok::<_, Infallible>))
                }));
                let upload = app.clone().oneshot(
                    Request::post("/upload")
                        .header(name, value)
                        .body(body)
                        .unwrap(),
                );
                (line, tokio::spawn(upload))
            })
            .unzip();
    for line in &lines {
        line.send("slow").await.unwrap();
        // Room for another one: the handler has taken the first, and waits for more.
        line.reserve().await.unwrap();
    }
    let pings = (0..40).map(|_| {
        app.clone()
            .oneshot(Request::get("/ping").body(Body::empty()).unwrap())
    });
    for response in timeout(BOUND / 2, join_all(pings))
        .await
        .expect("the uploads hold the connections")
    {
        assert_eq!(response.unwrap().status(), StatusCode::OK);
    }
    drop(lines);
    for upload in uploads {
        let response = timeout(BOUND, upload).await.unwrap().unwrap().unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(
            response.into_body().collect().await.unwrap().to_bytes(),
            "4"
        );
    }
}
