//! A server and its client, over hyper's HTTP/1 and HTTP/2 connections.

use std::{convert::Infallible, time::Duration};

use http::{Method, Request, Response, Version, header};
use http_body_util::{BodyExt, Empty};
use hyper::{body::Incoming, client, server, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::task::{JoinHandle, yield_now};

use super::*;

/// How a response of nine bytes is sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Form {
    pub(super) version: Version,
    pub(super) header: bool,
    pub(super) exact: bool,
    pub(super) knows_end: bool,
    pub(super) trailers: bool,
}

impl Form {
    pub(super) fn all() -> impl Iterator<Item = Self> {
        (0..32).map(|bits: u8| {
            let bit = |n: u8| bits & (1 << n) != 0;
            let version = if bit(0) {
                Version::HTTP_2
            } else {
                Version::HTTP_11
            };
            Self {
                version,
                header: bit(1),
                exact: bit(2),
                knows_end: bit(3),
                trailers: bit(4),
            }
        })
    }

    pub(super) fn plain(version: Version) -> Self {
        Self {
            version,
            header: false,
            exact: false,
            knows_end: false,
            trailers: false,
        }
    }

    pub(super) fn has_length(self) -> bool {
        self.header || self.exact
    }

    pub(super) fn length(self) -> Option<u64> {
        self.header.then_some(9)
    }

    pub(super) fn steps(self) -> Vec<Step> {
        let mut steps = vec![data("first"), Step::Pending, data("last")];
        steps.extend(self.trailers.then(|| trailers("7")));
        steps
    }

    pub(super) fn script(self, log: &Log, steps: Vec<Step>) -> Script {
        let mut script = Script::new(log, steps);
        script.knows_end = self.knows_end;
        script.exact = self.exact.then_some(9);
        script
    }

    /// What of the body is with the client when its transaction is still to be
    /// settled.
    pub(super) fn before_the_commit(self) -> &'static str {
        if self.has_length() || (self.knows_end && !self.trailers) {
            "first"
        } else {
            "firstlast"
        }
    }
}

/// A connection whose server sends one response.
pub(super) struct Exchange {
    pub(super) request: BoxFuture<'static, Result<Response<Incoming>, hyper::Error>>,
    pub(super) client: JoinHandle<()>,
}

impl Exchange {
    pub(super) async fn new(
        form: Form,
        method: Method,
        body: SessionBody<Script>,
        content_length: Option<u64>,
    ) -> Self {
        let mut response = Response::new(body);
        if let Some(length) = content_length {
            response
                .headers_mut()
                .insert(header::CONTENT_LENGTH, length.into());
        }
        response
            .headers_mut()
            .insert(header::TRAILER, header::HeaderValue::from_static("x-sum"));
        let response = Mutex::new(Some(response));
        let service = service_fn(move |_: Request<Incoming>| {
            let response = response.lock().unwrap().take().unwrap();
            async move { Ok::<_, Infallible>(response) }
        });

        let mut request = Request::new(Empty::<Bytes>::new());
        *request.method_mut() = method;
        *request.uri_mut() = "http://host/".parse().unwrap();
        request
            .headers_mut()
            .insert(header::TE, header::HeaderValue::from_static("trailers"));

        let (near, far) = tokio::io::duplex(1 << 16);
        let (near, far) = (TokioIo::new(near), TokioIo::new(far));
        let (request, client) = if form.version == Version::HTTP_2 {
            tokio::spawn(
                server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(far, service),
            );
            let (mut sender, connection) =
                client::conn::http2::handshake(TokioExecutor::new(), near)
                    .await
                    .unwrap();
            let client = tokio::spawn(connection.map(drop));
            (
                async move { sender.send_request(request).await }.boxed(),
                client,
            )
        } else {
            tokio::spawn(server::conn::http1::Builder::new().serve_connection(far, service));
            let (mut sender, connection) = client::conn::http1::handshake(near).await.unwrap();
            let client = tokio::spawn(connection.map(drop));
            (
                async move { sender.send_request(request).await }.boxed(),
                client,
            )
        };
        Self { request, client }
    }

    pub(super) fn read(self) -> Reader {
        let seen = Arc::<Mutex<String>>::default();
        let far = seen.clone();
        let task = tokio::spawn(async move {
            // A body that breaks at once may take the head with it.
            let mut response = self.request.await?;
            let mut trailers = None;
            while let Some(frame) = response.frame().await {
                match frame?.into_data() {
                    Ok(data) => far
                        .lock()
                        .unwrap()
                        .push_str(std::str::from_utf8(&data).unwrap()),
                    Err(frame) => trailers = frame.into_trailers().ok(),
                }
            }
            Ok(trailers)
        });
        Reader {
            seen,
            task,
            client: self.client,
        }
    }
}

/// A client that reads a body as it comes.
pub(super) struct Reader {
    pub(super) seen: Arc<Mutex<String>>,
    pub(super) task: JoinHandle<Result<Option<HeaderMap>, hyper::Error>>,
    pub(super) client: JoinHandle<()>,
}

impl Reader {
    pub(super) fn seen(&self) -> String {
        self.seen.lock().unwrap().clone()
    }

    pub(super) fn hang_up(self) {
        self.task.abort();
        self.client.abort();
    }

    pub(super) async fn end(self) -> (String, Result<Option<HeaderMap>, hyper::Error>) {
        let result = soon(self.task).await.unwrap();
        let seen = self.seen.lock().unwrap().clone();
        (seen, result)
    }
}

/// A bound for what ought to happen at once.
pub(super) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), what)
        .await
        .expect("it hangs")
}

/// Lets all tasks run as far as they can. There is one thread and no socket, so
/// none is left waiting.
pub(super) async fn quiet() {
    for _ in 0..200 {
        yield_now().await;
    }
}

/// Waits for an event in the log.
pub(super) async fn happened(log: &Log, event: &str) {
    soon(async {
        while !log.events().iter().any(|seen| seen == event) {
            yield_now().await;
        }
    })
    .await;
}
