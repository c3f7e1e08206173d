//! What a client sees, over hyper's HTTP/1 and HTTP/2 connections.

use std::{convert::Infallible, time::Duration};

use http::{Method, Request, Response, Version, header};
use http_body_util::{BodyExt, Empty};
use hyper::{body::Incoming, client, server, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::task::{JoinHandle, yield_now};

use super::*;

/// How a response of nine bytes is sent.
#[derive(Clone, Copy, Debug)]
struct Form {
    version: Version,
    header: bool,
    exact: bool,
    knows_end: bool,
    trailers: bool,
}

impl Form {
    fn all() -> impl Iterator<Item = Self> {
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

    fn plain(version: Version) -> Self {
        Self {
            version,
            header: false,
            exact: false,
            knows_end: false,
            trailers: false,
        }
    }

    fn has_length(self) -> bool {
        self.header || self.exact
    }

    fn length(self) -> Option<u64> {
        self.header.then_some(9)
    }

    fn steps(self) -> Vec<Step> {
        let mut steps = vec![data("first"), Step::Pending, data("last")];
        steps.extend(self.trailers.then(|| trailers("7")));
        steps
    }

    fn script(self, log: &Log, steps: Vec<Step>) -> Script {
        let mut script = Script::new(log, steps);
        script.knows_end = self.knows_end;
        script.exact = self.exact.then_some(9);
        script
    }

    /// What of the body is with the client when its transaction is still to be settled.
    fn before_the_commit(self) -> &'static str {
        if self.has_length() || (self.knows_end && !self.trailers) {
            "first"
        } else {
            "firstlast"
        }
    }
}

/// A connection whose server sends one response.
struct Exchange {
    request: BoxFuture<'static, Result<Response<Incoming>, hyper::Error>>,
    client: JoinHandle<()>,
}

impl Exchange {
    async fn new(
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

    fn read(self) -> Reader {
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
struct Reader {
    seen: Arc<Mutex<String>>,
    task: JoinHandle<Result<Option<HeaderMap>, hyper::Error>>,
    client: JoinHandle<()>,
}

impl Reader {
    fn seen(&self) -> String {
        self.seen.lock().unwrap().clone()
    }

    fn hang_up(self) {
        self.task.abort();
        self.client.abort();
    }

    async fn end(self) -> (String, Result<Option<HeaderMap>, hyper::Error>) {
        let result = soon(self.task).await.unwrap();
        let seen = self.seen.lock().unwrap().clone();
        (seen, result)
    }
}

/// A bound for what ought to happen at once.
async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), what)
        .await
        .expect("it hangs")
}

/// Lets all tasks run as far as they can. There is one thread and no socket, so none is left waiting.
async fn quiet() {
    for _ in 0..200 {
        yield_now().await;
    }
}

/// Waits for an event in the log.
async fn happened(log: &Log, event: &str) {
    soon(async {
        while !log.events().iter().any(|seen| seen == event) {
            yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn the_client_sees_no_end_before_the_commit() {
    for form in Form::all() {
        let log = Log::default();
        let (body, hold) = SessionBody::new(form.script(&log, form.steps()));
        let Finishing {
            finish,
            called,
            outcome,
        } = finishing(&log);
        engaged(&hold, finish, form.length());
        let reader = Exchange::new(form, Method::GET, body, form.length())
            .await
            .read();

        assert_eq!(
            soon(called).await.unwrap().is_some(),
            form.trailers,
            "{form:?}"
        );
        quiet().await;
        assert_eq!(reader.seen(), form.before_the_commit(), "{form:?}");
        assert!(!reader.task.is_finished(), "{form:?}");

        outcome.send(Ok(())).unwrap();
        let (seen, result) = reader.end().await;
        let received = result.unwrap();
        assert_eq!(seen, "firstlast", "{form:?}");
        let carries_trailers = form.version == Version::HTTP_2 || !form.has_length();
        assert_eq!(
            received,
            (form.trailers && carries_trailers).then(|| trailer_map("7")),
            "{form:?}"
        );
        assert_eq!(
            log.events(),
            ["inner dropped", "finish called", "committed"],
            "{form:?}"
        );
    }
}

#[tokio::test]
async fn a_failed_commit_is_an_incomplete_body() {
    for form in Form::all() {
        let log = Log::default();
        let (body, hold) = SessionBody::new(form.script(&log, form.steps()));
        let Finishing {
            finish,
            called,
            outcome,
        } = finishing(&log);
        engaged(&hold, finish, form.length());
        let reader = Exchange::new(form, Method::GET, body, form.length())
            .await
            .read();

        soon(called).await.unwrap();
        quiet().await;
        outcome.send(Err("no quorum".into())).unwrap();
        let (seen, result) = reader.end().await;
        assert!(result.is_err(), "{form:?}: {seen}");
        assert_eq!(seen, form.before_the_commit(), "{form:?}");
        assert_eq!(
            log.events(),
            ["inner dropped", "finish called", "failed"],
            "{form:?}"
        );
    }
}

#[tokio::test]
async fn an_inner_error_is_an_incomplete_body_and_rolls_back() {
    for form in Form::all() {
        let log = Log::default();
        let (body, hold) =
            SessionBody::new(form.script(&log, vec![data("first"), Step::Pending, Step::Fail]));
        engaged(&hold, finish(&log, Ok(())), form.length());
        let (_, result) = Exchange::new(form, Method::GET, body, form.length())
            .await
            .read()
            .end()
            .await;
        assert!(result.is_err(), "{form:?}");
        assert_eq!(log.events(), ["inner dropped", "rolled back"], "{form:?}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_rolls_back() {
    for form in Form::all() {
        let log = Log::default();
        let (_never, wait) = oneshot::channel();
        let steps = vec![data("first"), Step::Wait(wait), data("last")];
        let (body, hold) = SessionBody::new(form.script(&log, steps));
        engaged(&hold, finish(&log, Ok(())), form.length());
        let reader = Exchange::new(form, Method::GET, body, form.length())
            .await
            .read();
        quiet().await;
        assert_eq!(reader.seen(), "first", "{form:?}");
        reader.hang_up();
        happened(&log, "rolled back").await;
        assert_eq!(log.events(), ["inner dropped", "rolled back"], "{form:?}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_during_the_commit_drops_its_future() {
    for form in Form::all() {
        let log = Log::default();
        let (body, hold) = SessionBody::new(form.script(&log, form.steps()));
        let Finishing {
            finish,
            called,
            outcome: _outcome,
        } = finishing(&log);
        engaged(&hold, finish, form.length());
        let reader = Exchange::new(form, Method::GET, body, form.length())
            .await
            .read();
        soon(called).await.unwrap();
        reader.hang_up();
        happened(&log, "finish dropped").await;
        assert_eq!(
            log.events(),
            ["inner dropped", "finish called", "finish dropped"],
            "{form:?}"
        );
    }
}

#[tokio::test]
async fn a_body_of_another_length_than_declared_is_incomplete_and_rolled_back() {
    for version in [Version::HTTP_11, Version::HTTP_2] {
        for declared in [3, 5, 7, 12] {
            let log = Log::default();
            let form = Form::plain(version);
            let (body, hold) = SessionBody::new(form.script(&log, form.steps()));
            engaged(&hold, finish(&log, Ok(())), Some(declared));
            let (_, result) = Exchange::new(form, Method::GET, body, Some(declared))
                .await
                .read()
                .end()
                .await;
            assert!(result.is_err(), "{version:?} {declared}");
            assert_eq!(
                log.events(),
                ["inner dropped", "rolled back"],
                "{version:?} {declared}"
            );
        }
    }
}

#[tokio::test]
async fn a_response_to_head_is_settled_at_its_head() {
    let form = Form {
        header: true,
        ..Form::plain(Version::HTTP_11)
    };
    let log = Log::default();
    let (body, hold) = SessionBody::new(form.script(&log, form.steps()));
    hold.pass();
    let (seen, result) = Exchange::new(form, Method::HEAD, body, form.length())
        .await
        .read()
        .end()
        .await;
    assert!(result.is_ok() && seen.is_empty());
    assert_eq!(log.events(), ["inner dropped"]);

    // Left to its body, it would be rolled back: no server reads that body.
    let log = Log::default();
    let (body, hold) = SessionBody::new(form.script(&log, form.steps()));
    engaged(&hold, finish(&log, Ok(())), form.length());
    Exchange::new(form, Method::HEAD, body, form.length())
        .await
        .read()
        .end()
        .await
        .1
        .unwrap();
    assert_eq!(log.events(), ["inner dropped", "rolled back"]);
}

#[tokio::test]
async fn a_body_of_trailers_alone_is_settled_at_its_end() {
    for version in [Version::HTTP_11, Version::HTTP_2] {
        for exact in [None, Some(0)] {
            let log = Log::default();
            let form = Form::plain(version);
            let mut script = form.script(&log, vec![trailers("7")]);
            script.exact = exact;
            let (body, hold) = SessionBody::new(script);
            let Finishing {
                finish,
                called,
                outcome,
            } = finishing(&log);
            engaged(&hold, finish, None);
            let reader = Exchange::new(form, Method::GET, body, None).await.read();
            assert_eq!(soon(called).await.unwrap(), Some(trailer_map("7")));
            outcome.send(Ok(())).unwrap();
            assert_eq!(
                reader.end().await.1.unwrap(),
                Some(trailer_map("7")),
                "{version:?}"
            );
        }
    }
}

#[tokio::test]
async fn an_error_status_goes_out_with_a_body_that_passes() {
    for form in Form::all() {
        let log = Log::default();
        let (body, hold) = SessionBody::new(form.script(&log, form.steps()));
        hold.pass();
        let (seen, result) = Exchange::new(form, Method::GET, body, form.length())
            .await
            .read()
            .end()
            .await;
        assert!(result.is_ok(), "{form:?}");
        assert_eq!(seen, "firstlast", "{form:?}");
    }
}
