//! [`ResponseFuture`]: a request's way through its session.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::future::BoxFuture;
use http::{Request, Response, header, request::Parts};
use pin_project::pin_project;
use tokio::{sync::oneshot, time::Timeout};
use tower::Service;

use crate::{
    DbSession, Error, Main, SessionPool,
    layer::Policy,
    respond::{EmptyBody, OnError},
    session::SessionGuard,
};

/// The future of a [`DbSessionService`](crate::DbSessionService).
///
/// It owns the session's guard: dropped at any point, it ends the session and the connection goes
/// back.
#[pin_project]
#[must_use = "futures do nothing unless polled"]
pub struct ResponseFuture<S, ReqBody, Tag = Main, Respond = EmptyBody>
where
    S: Service<Request<ReqBody>>,
{
    #[pin]
    state: State<S, ReqBody, S::Future, S::Response, Tag>,
    respond: Respond,
    /// The request's parts, for an answer of the layer's own.
    parts: Parts,
    keep_handler_errors: bool,
    release_timeout: Duration,
}

#[pin_project(project = StateProj, project_replace = StateOwned)]
enum State<S, ReqBody, F, R, Tag> {
    /// Waiting for a connection; the ready service and the request wait along.
    Acquiring { inner: S, request: Request<ReqBody>, acquire: Acquire<Tag> },
    /// The inner service is at work.
    Serving {
        #[pin]
        future: F,
        guard: Option<SessionGuard>,
    },
    /// The answer is there; a transaction that was left open is being rolled back.
    Settling {
        response: Option<R>,
        #[pin]
        rollback: Timeout<oneshot::Receiver<()>>,
        /// Ended already; it stays until the rollback has.
        _guard: SessionGuard,
    },
    /// Answered.
    Done,
}

type Acquire<Tag> = BoxFuture<'static, Result<(DbSession<Tag>, SessionGuard), Error>>;

impl<S, ReqBody, Tag, Respond> ResponseFuture<S, ReqBody, Tag, Respond>
where
    S: Service<Request<ReqBody>>,
    Tag: 'static,
{
    pub(crate) fn new(
        mut inner: S,
        request: Request<ReqBody>,
        pool: &SessionPool,
        policy: &Policy,
        respond: Respond,
    ) -> Self {
        let (parts, body) = request.into_parts();
        let eager = policy.checkout.is_eager(&parts) && !pool.is_direct();
        let kept = answer_parts(&parts);
        let mut request = Request::from_parts(parts, body);
        let state = if eager {
            let pool = pool.clone();
            State::Acquiring { inner, request, acquire: Box::pin(async move { pool.eager_session().await }) }
        } else {
            let (session, guard) = pool.lazy_session::<Tag>();
            request.extensions_mut().insert(session);
            State::Serving { future: inner.call(request), guard: Some(guard) }
        };
        Self {
            state,
            respond,
            parts: kept,
            keep_handler_errors: policy.keep_handler_errors,
            release_timeout: pool.settings().release_timeout,
        }
    }

    /// For a request that has its session from a layer further out.
    pub(crate) fn pass(mut inner: S, request: Request<ReqBody>, respond: Respond) -> Self {
        let (parts, body) = request.into_parts();
        let kept = answer_parts(&parts);
        let request = Request::from_parts(parts, body);
        Self {
            state: State::Serving { future: inner.call(request), guard: None },
            respond,
            parts: kept,
            keep_handler_errors: true,
            release_timeout: Duration::ZERO,
        }
    }
}

impl<S, ReqBody, ResBody, Tag, Respond> Future for ResponseFuture<S, ReqBody, Tag, Respond>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    Respond: OnError<ResBody>,
    Tag: 'static,
{
    type Output = Result<Response<ResBody>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let next = match this.state.as_mut().project() {
                StateProj::Acquiring { acquire, .. } => {
                    let acquired = ready!(acquire.as_mut().poll(cx));
                    match acquired {
                        Ok((session, guard)) => {
                            let StateOwned::Acquiring { mut inner, mut request, .. } =
                                this.state.as_mut().project_replace(State::Done)
                            else {
                                polled_after_completion()
                            };
                            request.extensions_mut().insert(session);
                            State::Serving { future: inner.call(request), guard: Some(guard) }
                        }
                        Err(error) => {
                            this.state.set(State::Done);
                            return Poll::Ready(Ok(this.respond.response(&error, this.parts)));
                        }
                    }
                }
                StateProj::Serving { future, guard } => {
                    let result = ready!(future.poll(cx));
                    let Some(guard) = guard.take() else {
                        this.state.set(State::Done);
                        return Poll::Ready(result);
                    };
                    let rollback = guard.settle();
                    let response = match result {
                        Ok(response) => response,
                        Err(error) => {
                            this.state.set(State::Done);
                            return Poll::Ready(Err(error));
                        }
                    };
                    let failure =
                        guard.failure().filter(|_| response.status().is_server_error() && !*this.keep_handler_errors);
                    let response = match failure {
                        Some(error) => {
                            let mut answer = this.respond.response(&error, this.parts);
                            if guard.has_run() {
                                // What came before may stand: sent again, it would happen twice.
                                answer.headers_mut().remove(header::RETRY_AFTER);
                            }
                            answer
                        }
                        None => response,
                    };
                    match rollback {
                        Some(rollback) => State::Settling {
                            response: Some(response),
                            rollback: tokio::time::timeout(*this.release_timeout, rollback),
                            _guard: guard,
                        },
                        None => {
                            this.state.set(State::Done);
                            return Poll::Ready(Ok(response));
                        }
                    }
                }
                StateProj::Settling { response, rollback, .. } => {
                    let _ = ready!(rollback.poll(cx));
                    let response = response.take();
                    this.state.set(State::Done);
                    return response.map_or_else(|| polled_after_completion(), |response| Poll::Ready(Ok(response)));
                }
                StateProj::Done => polled_after_completion(),
            };
            this.state.set(next);
        }
    }
}

fn polled_after_completion() -> ! {
    panic!("ResponseFuture polled after completion")
}

/// What an answer of the layer's own may depend on. A clone of all headers would cost every request
/// several allocations, for the sake of the few that fail.
fn answer_parts(parts: &Parts) -> Parts {
    let (mut kept, ()) = Request::new(()).into_parts();
    kept.method.clone_from(&parts.method);
    kept.uri.clone_from(&parts.uri);
    kept.version = parts.version;
    for name in [header::ACCEPT, header::CONTENT_TYPE] {
        if let Some(value) = parts.headers.get(&name) {
            kept.headers.insert(name, value.clone());
        }
    }
    kept
}

impl<S, ReqBody, Tag, Respond> fmt::Debug for ResponseFuture<S, ReqBody, Tag, Respond>
where
    S: Service<Request<ReqBody>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
