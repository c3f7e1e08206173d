//! G7: a client that has the complete body can rely on its transaction, over real connections.
//! One whose response is not committed never gets it complete.

use std::{convert::Infallible, net::Ipv4Addr, sync::Arc, time::Duration};

use axum::{
    BoxError, Router,
    body::{Body, Bytes},
    middleware,
    response::{IntoResponse, Response},
};
use futures_util::StreamExt;
use http::{HeaderMap, Method, Request, StatusCode, Version, header};
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::{
    body::{Frame, Incoming},
    client::conn::{http1, http2},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use sea_orm::{ConnectionTrait, DbErr, Statement};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinHandle,
    time::timeout,
};
use tower_sea_orm::{DbSession, DbTx, Outcome, SessionBodyLayer};

use crate::support::{
    database::{Kind, insert_item},
    site::{BOUND, DEFERRING, Site, violate},
    wait::eventually,
};

/// How many rows a body has.
const ROWS: usize = 3000;

/// How an answer goes out.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    Chunked,
    Length,
    Two,
    TwoLength,
    /// HTTP/2 with gRPC's status in the trailers.
    Trailers,
}

impl Form {
    const ALL: [Self; 5] = [
        Self::Chunked,
        Self::Length,
        Self::Two,
        Self::TwoLength,
        Self::Trailers,
    ];

    fn version(self) -> Version {
        if matches!(self, Self::Chunked | Self::Length) {
            Version::HTTP_11
        } else {
            Version::HTTP_2
        }
    }

    fn has_length(self) -> bool {
        matches!(self, Self::Length | Self::TwoLength)
    }
}

fn rows(db: &DbSession) -> Statement {
    let sql = format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS}) SELECT i + 10000 FROM n"
    );
    let sql = if db.backend() == sea_orm::DbBackend::MySql {
        // Each server has a setting of its own for the depth of a recursion, and 1000 as its default.
        "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 99) \
         SELECT a.i * 100 + b.i + 10001 FROM n a, n b WHERE a.i * 100 + b.i < ROWS ORDER BY 1"
            .replace("ROWS", &ROWS.to_string())
    } else {
        sql
    };
    Statement::from_string(db.backend(), sql)
}

/// The rows as they come, one a line of six bytes, and gRPC's status if the form has trailers. Half of
/// them wait for the gate.
async fn lines(tx: &DbTx, form: Form, status: &'static str, gate: Arc<Semaphore>) -> Response {
    let rows = tx.rows(rows(tx)).await.unwrap();
    let rows = rows.enumerate().then(move |(n, row)| {
        let gate = gate.clone();
        async move {
            if n == ROWS / 2 {
                gate.acquire().await.unwrap().forget();
            }
            row
        }
    });
    let lines = rows.map(|row| {
        let number = row?;
        let number = number
            .try_get_by_index::<i32>(0)
            .map(i64::from)
            .or_else(|_| number.try_get_by_index::<i64>(0))?;
        Ok::<_, DbErr>(Frame::data(Bytes::from(format!("{number}\n"))))
    });
    let trailers = (form == Form::Trailers).then(|| {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", status.parse().unwrap());
        Ok(Frame::trailers(trailers))
    });
    let body = StreamBody::new(lines.chain(futures_util::stream::iter(trailers)));
    let mut response = Response::new(Body::new(tx.hold_until_body_end(body)));
    if form.has_length() {
        response
            .headers_mut()
            .insert(header::CONTENT_LENGTH, (ROWS * 6).into());
    }
    response
}

fn open_gate() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(1))
}

/// A server on a free port; it ends with this value.
struct Server {
    port: u16,
    task: JoinHandle<()>,
}

impl Server {
    async fn start(app: Router) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = TowerToHyperService::new(app.clone());
                tokio::spawn(async move {
                    let _ = auto::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { port, task }
    }

    /// Sends a request; the connection lives as long as the handle.
    async fn send(
        &self,
        version: Version,
        method: Method,
    ) -> Result<(http::Response<Incoming>, JoinHandle<()>), hyper::Error> {
        let io = TokioIo::new(
            TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))
                .await
                .unwrap(),
        );
        let uri = format!("http://127.0.0.1:{}/", self.port);
        let request = Request::builder()
            .method(method)
            .uri(uri)
            .header("host", "localhost")
            .header("te", "trailers");
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        if version == Version::HTTP_2 {
            let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
            let connection = tokio::spawn(async move { drop(connection.await) });
            let response = sender.send_request(request).await?;
            // The connection ends with its sender.
            let connection = tokio::spawn(async move {
                let _sender = sender;
                let _ = connection.await;
            });
            Ok((response, connection))
        } else {
            let (mut sender, connection) = http1::handshake(io).await?;
            let connection = tokio::spawn(async move { drop(connection.await) });
            let response = sender.send_request(request).await?;
            let connection = tokio::spawn(async move {
                let _sender = sender;
                let _ = connection.await;
            });
            Ok((response, connection))
        }
    }

    /// Reads an answer to its end.
    async fn read(
        &self,
        form: Form,
    ) -> Result<(StatusCode, Vec<u8>, Option<HeaderMap>), hyper::Error> {
        let exchange = async {
            let (response, _connection) = self.send(form.version(), Method::GET).await?;
            let status = response.status();
            let body = response.into_body().collect().await?;
            let trailers = body.trailers().cloned();
            Ok((status, body.to_bytes().to_vec(), trailers))
        };
        timeout(BOUND, exchange).await.expect("an end, not a hang")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test]
async fn a_complete_body_is_a_committed_transaction() {
    for kind in Kind::ALL {
        let site = Site::new(kind).await;
        for form in Form::ALL {
            let name = format!("{form:?}");
            let gate = Arc::new(Semaphore::new(0));
            let (handler_name, handler_gate) = (name.clone(), gate.clone());
            let server = Server::start(site.app(async move |tx: DbTx| {
                insert_item(&tx, &handler_name).await;
                lines(&tx, form, "0", handler_gate).await
            }))
            .await;
            let (response, connection) = server.send(form.version(), Method::GET).await.unwrap();
            let mut body = response.into_body();
            let mut read = 0;
            while read < ROWS / 2 * 6 {
                let frame = timeout(BOUND, body.frame()).await.unwrap().unwrap();
                read += frame.unwrap().data_ref().map_or(0, Bytes::len);
            }
            if site.observer.is_some() {
                assert_eq!(
                    site.count(&name).await,
                    0,
                    "{kind:?} {form:?}: with the body's end, not before"
                );
            }
            gate.add_permits(1);
            let rest = timeout(BOUND, body.collect()).await.unwrap().unwrap();
            let trailers = rest.trailers().cloned();
            read += rest.to_bytes().len();
            assert_eq!(
                site.count(&name).await,
                1,
                "{kind:?} {form:?}: the complete body is there"
            );
            assert_eq!(read, ROWS * 6);
            assert_eq!(trailers.is_some(), form == Form::Trailers);
            connection.abort();
        }
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn a_body_whose_commit_fails_is_incomplete_in_every_form() {
    for kind in DEFERRING {
        let site = Site::new(kind).await;
        site.defer().await;
        for form in Form::ALL {
            let server = Server::start(site.app(async move |tx: DbTx| {
                insert_item(&tx, "lost").await;
                violate(&tx).await;
                lines(&tx, form, "0", open_gate()).await
            }))
            .await;
            let answer = server.read(form).await;
            assert!(
                answer.is_err(),
                "{kind:?} {form:?}: {:?}",
                answer.map(|(status, body, _)| (status, body.len()))
            );
            assert_eq!(site.count("lost").await, 0, "{kind:?} {form:?}");
        }
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn a_client_that_hangs_up_half_way_rolls_back() {
    for kind in Kind::ALL {
        let site = Site::new(kind).await;
        for form in Form::ALL {
            let server = Server::start(site.app(async move |tx: DbTx| {
                insert_item(&tx, "lost").await;
                // More than the sockets' buffers take.
                let endless = futures_util::stream::iter(0..)
                    .map(|_| Ok::<_, Infallible>(Bytes::from(vec![b'x'; 1 << 16])));
                let mut response = Response::new(Body::new(
                    tx.hold_until_body_end(Body::from_stream(endless)),
                ));
                if form.has_length() {
                    response
                        .headers_mut()
                        .insert(header::CONTENT_LENGTH, (1_u64 << 40).into());
                }
                response
            }))
            .await;
            let (response, connection) = server.send(form.version(), Method::GET).await.unwrap();
            let mut body = response.into_body();
            timeout(BOUND, body.frame())
                .await
                .unwrap()
                .unwrap()
                .unwrap();
            drop(body);
            connection.abort();
            eventually("the session has ended", async || {
                site.layer.pool().status().used == 0
            })
            .await;
            assert_eq!(site.count("lost").await, 0, "{kind:?} {form:?}");
        }
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn an_error_in_the_body_rolls_back() {
    for kind in Kind::ALL {
        let site = Site::new(kind).await;
        for form in Form::ALL {
            let server = Server::start(site.app(async move |tx: DbTx| {
                insert_item(&tx, "lost").await;
                let parts = [
                    Ok(Bytes::from_static(b"part")),
                    Err(BoxError::from("broken")),
                ];
                let body =
                    tx.hold_until_body_end(Body::from_stream(futures_util::stream::iter(parts)));
                let mut response = Response::new(Body::new(body));
                if form.has_length() {
                    response
                        .headers_mut()
                        .insert(header::CONTENT_LENGTH, 8.into());
                }
                response
            }))
            .await;
            assert!(server.read(form).await.is_err(), "{kind:?} {form:?}");
            eventually("the session has ended", async || {
                site.layer.pool().status().used == 0
            })
            .await;
            assert_eq!(site.count("lost").await, 0, "{kind:?} {form:?}");
        }
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn trailers_with_an_error_status_roll_back_and_go_out() {
    for kind in Kind::ALL {
        let site = Site::new(kind).await;
        let server = Server::start(site.app(async |tx: DbTx| {
            insert_item(&tx, "lost").await;
            lines(&tx, Form::Trailers, "5", open_gate()).await
        }))
        .await;
        let (status, body, trailers) = server.read(Form::Trailers).await.unwrap();
        assert_eq!(site.count("lost").await, 0, "{kind:?}");
        assert_eq!((status, body.len()), (StatusCode::OK, ROWS * 6));
        assert_eq!(trailers.unwrap()["grpc-status"], "5");
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn a_response_without_a_body_settles_at_its_head() {
    for kind in Kind::ALL {
        for (method, status) in [
            (Method::HEAD, 200),
            (Method::GET, 204),
            (Method::GET, 404),
            (Method::GET, 500),
        ] {
            for version in [Version::HTTP_11, Version::HTTP_2] {
                let site = Site::new(kind).await.layered(|layer| layer.transaction());
                let app = Router::new()
                    .route(
                        "/",
                        axum::routing::any(async move |db: DbSession| {
                            insert_item(&db, "row").await;
                            (
                                StatusCode::from_u16(status).unwrap(),
                                if status == 204 { "" } else { "a body" },
                            )
                        }),
                    )
                    .layer(site.layer.clone().hold_until_body_end());
                let server = Server::start(app).await;
                let (response, connection) = server.send(version, method.clone()).await.unwrap();
                assert_eq!(response.status().as_u16(), status);
                let case = format!("{kind:?} {method} {status} {version:?}");
                assert_eq!(site.count("row").await, i64::from(status < 400), "{case}");
                drop(response);
                connection.abort();
                site.assert_whole().await;
            }
        }
    }
}

#[tokio::test]
async fn a_middleware_that_replaces_the_body_settles_at_the_head() {
    for kind in Kind::ALL {
        let site = Site::new(kind).await;
        let app = Router::new()
            .route(
                "/",
                axum::routing::get(async |tx: DbTx| {
                    insert_item(&tx, "row").await;
                    lines(&tx, Form::Chunked, "0", open_gate()).await
                }),
            )
            .layer(middleware::map_response(async |_: Response| {
                "replaced".into_response()
            }))
            .layer(site.layer.clone());
        let server = Server::start(app).await;
        let (status, body, _) = server.read(Form::Chunked).await.unwrap();
        assert_eq!((status, &body[..]), (StatusCode::OK, &b"replaced"[..]));
        assert_eq!(site.count("row").await, 1, "{kind:?}");
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn a_session_without_a_transaction_holds_its_connection_as_well() {
    for kind in Kind::ALL {
        let site = Site::new(kind).await;
        let app = Router::new()
            .route(
                "/",
                axum::routing::get(async |db: DbSession| {
                    insert_item(&db, "row").await;
                    let rows = db.rows(rows(&db)).await.unwrap();
                    Body::from_stream(rows.map(|row| row.map(|_| Bytes::from_static(b"line\n"))))
                }),
            )
            .layer(SessionBodyLayer::new())
            .layer(site.layer.clone());
        let server = Server::start(app).await;
        let (response, connection) = server.send(Version::HTTP_11, Method::GET).await.unwrap();
        assert!(response.extensions().get::<Outcome>().is_none());
        let body = timeout(BOUND, response.into_body().collect())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(body.to_bytes().len(), ROWS * 5, "{kind:?}");
        assert_eq!(site.count("row").await, 1, "{kind:?}");
        connection.abort();
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn a_statement_that_fails_while_the_body_goes_out_breaks_it() {
    let site = Site::new(Kind::Postgres).await;
    for form in Form::ALL {
        let server = Server::start(site.app(async move |tx: DbTx| {
            insert_item(&tx, "lost").await;
            let later = tx.clone();
            // The error is swallowed where nobody sees it, in the body.
            let body = futures_util::stream::once(async move {
                later.execute_unprepared("SELECT 1 / 0").await.unwrap_err();
                tokio::time::sleep(Duration::ZERO).await;
                Ok::<_, Infallible>(Bytes::from_static(b"all is well"))
            });
            let mut response =
                Response::new(Body::new(tx.hold_until_body_end(Body::from_stream(body))));
            if form.has_length() {
                response
                    .headers_mut()
                    .insert(header::CONTENT_LENGTH, 11.into());
            }
            response
        }))
        .await;
        assert!(server.read(form).await.is_err(), "{form:?}");
        assert_eq!(site.count("lost").await, 0);
    }
    site.assert_whole().await;
}
