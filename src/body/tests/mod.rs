#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test may panic")]

use std::{
    collections::VecDeque,
    error::Error,
    fmt::Debug,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::{FutureExt, future::BoxFuture};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::oneshot;

use super::{BoxError, End, Finish, Hold, SessionBody, Terms};

mod exchange;
mod failures;
mod frames;
mod grpc;
mod head;
mod http1_http2;
mod property;

/// What happened, in order.
#[derive(Clone, Debug, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn push(&self, event: impl Into<String>) {
        self.0.lock().unwrap().push(event.into());
    }

    fn events(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

/// Says when it goes.
struct OnDrop(Log, Option<&'static str>);

impl OnDrop {
    fn forget(&mut self) {
        self.1 = None;
    }
}

impl Drop for OnDrop {
    fn drop(&mut self) {
        if let Some(event) = self.1.take() {
            self.0.push(event);
        }
    }
}

enum Step {
    Data(Bytes),
    Trailers(HeaderMap),
    /// Pending once.
    Pending,
    /// Pending until the test says so.
    Wait(oneshot::Receiver<()>),
    Fail,
    /// Something that happens elsewhere while the body is being polled.
    Meanwhile(Box<dyn FnOnce() + Send>),
}

fn data(text: &'static str) -> Step {
    Step::Data(Bytes::from_static(text.as_bytes()))
}

fn trailers(value: &'static str) -> Step {
    Step::Trailers(trailer_map(value))
}

fn trailer_map(value: &'static str) -> HeaderMap {
    HeaderMap::from_iter([(
        http::HeaderName::from_static("x-sum"),
        http::HeaderValue::from_static(value),
    )])
}

/// An inner body that plays its steps.
struct Script {
    steps: VecDeque<Step>,
    /// `is_end_stream` after the last step.
    knows_end: bool,
    exact: Option<u64>,
    over: bool,
    _gone: OnDrop,
}

impl Script {
    fn new(log: &Log, steps: impl IntoIterator<Item = Step>) -> Self {
        let gone = OnDrop(log.clone(), Some("inner dropped"));
        Self {
            steps: steps.into_iter().collect(),
            knows_end: false,
            exact: None,
            over: false,
            _gone: gone,
        }
    }

    fn knowing_its_end(mut self) -> Self {
        self.knows_end = true;
        self
    }

    fn of_exactly(mut self, bytes: u64) -> Self {
        self.exact = Some(bytes);
        self
    }
}

#[derive(Debug, PartialEq)]
struct Broken;

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("broken")
    }
}

impl Error for Broken {}

impl Body for Script {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        assert!(!self.over, "the inner body was polled after its end");
        if let Some(Step::Wait(signal)) = self.steps.front_mut() {
            std::task::ready!(signal.poll_unpin(cx)).ok();
            self.steps.pop_front();
        }
        if let Some(meanwhile) = self
            .steps
            .pop_front_if(|step| matches!(step, Step::Meanwhile(_)))
        {
            let Step::Meanwhile(happens) = meanwhile else {
                unreachable!()
            };
            happens();
        }
        Poll::Ready(match self.steps.pop_front() {
            Some(Step::Data(data)) => {
                self.exact = self
                    .exact
                    .map(|exact| exact.saturating_sub(data.len() as u64));
                Some(Ok(Frame::data(data)))
            }
            Some(Step::Trailers(trailers)) => Some(Ok(Frame::trailers(trailers))),
            Some(Step::Fail) => {
                self.over = true;
                Some(Err(Broken))
            }
            Some(Step::Pending) => {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Some(Step::Wait(_) | Step::Meanwhile(_)) => unreachable!("two of them in a row"),
            None => {
                self.over = true;
                None
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.knows_end && self.steps.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        self.exact
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// A `finish` that says when it was called, waits for the test, and says how it
/// ended.
struct Finishing {
    finish: Finish,
    called: oneshot::Receiver<Option<HeaderMap>>,
    outcome: oneshot::Sender<Result<(), BoxError>>,
}

fn finishing(log: &Log) -> Finishing {
    let (call, called) = oneshot::channel();
    let (outcome, result) = oneshot::channel::<Result<(), BoxError>>();
    let mut uncalled = OnDrop(log.clone(), Some("rolled back"));
    let finish: Finish = Box::new(
        move |end: End| -> BoxFuture<'static, Result<(), BoxError>> {
            let log = uncalled.0.clone();
            uncalled.forget();
            log.push("finish called");
            let _ = call.send(end.trailers);
            let mut unfinished = OnDrop(log.clone(), Some("finish dropped"));
            Box::pin(async move {
                let result = result.await.unwrap();
                unfinished.forget();
                log.push(if result.is_ok() {
                    "committed"
                } else {
                    "failed"
                });
                result
            })
        },
    );
    Finishing {
        finish,
        called,
        outcome,
    }
}

/// A `finish` that is ready at once.
fn finish(log: &Log, result: Result<(), BoxError>) -> Finish {
    let Finishing {
        finish, outcome, ..
    } = finishing(log);
    outcome.send(result).unwrap();
    finish
}

fn length(content_length: Option<u64>) -> Terms {
    Terms {
        content_length,
        ..Terms::default()
    }
}

fn refused(result: Result<(), Finish>) -> bool {
    result.is_err()
}

fn engaged(hold: &Hold, finish: Finish, content_length: Option<u64>) {
    assert!(
        !refused(hold.engage(finish, length(content_length), None)),
        "{hold:?}"
    );
}

/// One frame as a text: `data:…`, `trailers:…`, `error:…` or `end`.
async fn next<B>(body: &mut SessionBody<B>) -> String
where
    SessionBody<B>: Body<Data = Bytes, Error = BoxError> + Unpin,
    B: Body,
{
    describe(std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await)
}

fn describe(frame: Option<Result<Frame<Bytes>, impl Debug + ToString>>) -> String {
    match frame {
        None => "end".into(),
        Some(Err(error)) => format!("error:{}", error.to_string()),
        Some(Ok(frame)) => match frame.into_data() {
            Ok(data) => format!("data:{}", String::from_utf8_lossy(&data)),
            Err(frame) => format!(
                "trailers:{}",
                frame.into_trailers().unwrap()["x-sum"].to_str().unwrap()
            ),
        },
    }
}

/// Up to and including the end or an error.
async fn all<B>(body: &mut SessionBody<B>) -> Vec<String>
where
    SessionBody<B>: Body<Data = Bytes, Error = BoxError> + Unpin,
    B: Body,
{
    let mut frames = Vec::new();
    loop {
        frames.push(next(body).await);
        if frames
            .last()
            .is_some_and(|last| last == "end" || last.starts_with("error:"))
        {
            return frames;
        }
    }
}

const TOO_LONG: &str =
    "error:the response's body is longer than its declared length; its transaction is rolled back";
const TOO_SHORT: &str =
    "error:the response's body ended before its declared length; its transaction is rolled back";
const NOT_COMMITTED: &str = "error:the response's transaction could not be committed";
