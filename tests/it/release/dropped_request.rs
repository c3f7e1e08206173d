//! G3: a request that is dropped by a time-out or by its client gives the connection back.

use std::{convert::Infallible, net::Ipv4Addr, time::Duration};

use axum::{
    BoxError, Router,
    body::{Body, Bytes},
    routing::any,
};
use futures_util::{StreamExt, stream};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::{
    body::Frame,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tower::{Layer, Service, ServiceExt, timeout::TimeoutLayer};
use tower_http::timeout::TimeoutLayer as HttpTimeoutLayer;
use tower_sea_orm::DbSession;

use crate::support::{
    case::{Case, Doing, everywhere, half_way, stay},
    requests::request,
    wire::Proxy,
};

/// After what the time-out layers strike: while [`run_slow`] runs.
const STRIKE: Duration = Duration::from_millis(120);

#[tokio::test]
async fn a_request_that_is_never_polled_costs_nothing() {
    everywhere(async |case| {
        let writes = case.writes();
        let mut app = case.app(move |db: DbSession| async move { drop(writes.write(&db).await) });
        for _ in 0..50 {
            let future = ServiceExt::<Request<Body>>::ready(&mut app)
                .await
                .unwrap()
                .call(request());
            drop(future);
            assert_eq!(case.layer.pool().status().used, 0);
        }
        assert!(!case.writes.is_written());
    })
    .await;
}

#[tokio::test]
async fn g3_a_request_dropped_in_any_state_gives_the_connection_back() {
    for doing in Doing::ALL {
        everywhere(async |case| {
            let answer = half_way(case, doing).await;
            drop(answer);
            case.writes.left().await;
        })
        .await;
    }
}

#[tokio::test]
async fn a_timeout_layer_outside_gives_the_connection_back() {
    everywhere(async |case| {
        let writes = case.writes();
        let app = case.app(move |db: DbSession| stay(Doing::Querying, writes, db));
        let app = app.layer(HttpTimeoutLayer::with_status_code(
            StatusCode::REQUEST_TIMEOUT,
            STRIKE,
        ));
        let answer = app.oneshot(request()).await.unwrap();
        assert_eq!(answer.status(), StatusCode::REQUEST_TIMEOUT);
    })
    .await;
    everywhere(async |case| {
        let writes = case.writes();
        let app = case.app(move |db: DbSession| stay(Doing::Querying, writes, db));
        let error = TimeoutLayer::new(STRIKE)
            .layer(app)
            .oneshot(request())
            .await
            .unwrap_err();
        assert!(error.is::<tower::timeout::error::Elapsed>());
    })
    .await;
}

#[tokio::test]
async fn a_timeout_layer_inside_gives_the_connection_back() {
    everywhere(async |case| {
        let writes = case.writes();
        let handler = any(move |db: DbSession| stay(Doing::Querying, writes, db));
        let strike = HttpTimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, STRIKE);
        let app = Router::new()
            .route("/", handler)
            .layer(strike)
            .layer(case.layer.clone());
        let answer = app.oneshot(request()).await.unwrap();
        assert_eq!(answer.status(), StatusCode::REQUEST_TIMEOUT);
    })
    .await;
    everywhere(async |case| {
        let writes = case.writes();
        let handler = any(move |db: DbSession| stay(Doing::Querying, writes, db));
        let inner: Router = Router::new().route("/", handler);
        let app = case.layer.layer(TimeoutLayer::new(STRIKE).layer(inner));
        let error: BoxError = app.oneshot(request()).await.unwrap_err();
        assert!(error.is::<tower::timeout::error::Elapsed>());
    })
    .await;
}

/// The protocol of a client.
#[derive(Debug, Clone, Copy)]
enum Http {
    One,
    Two,
}

/// When a client goes.
#[derive(Debug, Clone, Copy)]
enum During {
    /// Its request is complete, the handler runs a statement.
    Handler,
    /// The handler reads an upload.
    Upload,
}

/// How a client goes.
#[derive(Debug, Clone, Copy)]
enum Going {
    /// Its connection is cut.
    Cut,
    /// HTTP/2: it takes the one request back.
    Reset,
}

/// A client over a real connection goes while the handler is in the middle of something.
async fn client_goes(http: Http, going: Going, during: During) {
    everywhere(async |case| {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let app = match during {
            During::Handler => mid_handler(case),
            During::Upload => mid_upload(case),
        };
        let server = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        let cable = Proxy::start(port).await;
        let answer = send(http, cable.port(), during).await;
        case.writes.reached().await;
        match going {
            Going::Cut => cable.cut(),
            Going::Reset => answer.abort(),
        }
        case.writes.left().await;
        answer.abort();
        server.abort();
    })
    .await;
}

/// Sends a request: the first part of an upload that never ends, or all there is.
async fn send(http: Http, port: u16, during: During) -> JoinHandle<()> {
    let io = TcpStream::connect((Ipv4Addr::LOCALHOST, port))
        .await
        .unwrap();
    let io = TokioIo::new(io);
    let first = Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"first")));
    let body = match during {
        // An upload that nobody reads would keep hyper from seeing an HTTP/1 client go.
        During::Handler => Empty::new().boxed_unsync(),
        During::Upload => {
            StreamBody::new(stream::iter([first]).chain(stream::pending())).boxed_unsync()
        }
    };
    let uri = format!("http://127.0.0.1:{port}/");
    let request = Request::post(uri)
        .header("host", "localhost")
        .body(body)
        .unwrap();
    match http {
        Http::One => {
            let (mut sender, connection) = http1::handshake(io).await.unwrap();
            tokio::spawn(connection);
            tokio::spawn(async move { drop(sender.send_request(request).await) })
        }
        Http::Two => {
            let (mut sender, connection) =
                http2::handshake(TokioExecutor::new(), io).await.unwrap();
            tokio::spawn(connection);
            tokio::spawn(async move { drop(sender.send_request(request).await) })
        }
    }
}

/// A handler in the middle of a statement.
fn mid_handler(case: &Case<'_>) -> Router {
    let writes = case.writes();
    case.app(move |db: DbSession| stay(Doing::Querying, writes, db))
}

/// A handler that reads an upload with a transaction open.
fn mid_upload(case: &Case<'_>) -> Router {
    let writes = case.writes();
    case.app(move |db: DbSession, mut body: Body| async move {
        let _leaving = writes.on_leaving();
        assert!(
            matches!(body.frame().await, Some(Ok(_))),
            "the first part of the upload"
        );
        let _open = writes.write(&db).await;
        writes.reach();
        while let Some(Ok(_)) = body.frame().await {}
        StatusCode::BAD_REQUEST
    })
}

#[tokio::test]
async fn an_http1_disconnect_mid_handler_gives_the_connection_back() {
    client_goes(Http::One, Going::Cut, During::Handler).await;
}

#[tokio::test]
async fn an_http1_disconnect_mid_upload_gives_the_connection_back() {
    client_goes(Http::One, Going::Cut, During::Upload).await;
}

#[tokio::test]
async fn an_http2_disconnect_mid_handler_gives_the_connection_back() {
    client_goes(Http::Two, Going::Cut, During::Handler).await;
}

#[tokio::test]
async fn an_http2_disconnect_mid_upload_gives_the_connection_back() {
    client_goes(Http::Two, Going::Cut, During::Upload).await;
}

#[tokio::test]
async fn an_http2_client_that_resets_its_stream_gives_the_connection_back() {
    client_goes(Http::Two, Going::Reset, During::Handler).await;
    client_goes(Http::Two, Going::Reset, During::Upload).await;
}
