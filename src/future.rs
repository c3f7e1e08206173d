//! [`ResponseFuture`]: a request's way through its session.

use std::{
    fmt,
    future::Future,
    marker::PhantomData,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_util::future::BoxFuture;
use http::{HeaderValue, Request, Response, Version, header, request::Parts};
use pin_project::pin_project;
use tower::Service;

use crate::{
    DbSession, Error, Main, Outcome, SessionPool,
    layer::Policy,
    pool::Label,
    respond::{EmptyBody, OnError},
    session::{Decision, Ended, SessionGuard, Settlement, is_success},
    telemetry,
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
    state: State<S, ReqBody, S::Future, S::Response, S::Error, Tag>,
    answer: Answer<Tag, Respond>,
}

#[pin_project(project = StateProj, project_replace = StateOwned)]
#[allow(clippy::large_enum_variant, reason = "a box would cost every request an allocation")]
enum State<S, ReqBody, F, R, E, Tag> {
    /// Waiting for a connection; the ready service and the request wait along.
    Acquiring { inner: S, request: Request<ReqBody>, acquire: Acquire<Tag> },
    /// The inner service is at work.
    Serving {
        #[pin]
        future: F,
        /// `None` if a layer further out has the session.
        guard: Option<SessionGuard>,
    },
    /// The answer is there; the transaction is being committed or rolled back.
    Settling { result: Option<Result<R, E>>, settlement: BoxFuture<'static, Ended>, guard: SessionGuard },
    /// Answered.
    Done,
}

impl<S, ReqBody, Tag> State<S, ReqBody, S::Future, S::Response, S::Error, Tag>
where
    S: Service<Request<ReqBody>>,
{
    fn serving(inner: &mut S, request: Request<ReqBody>, guard: SessionGuard) -> Self {
        let _entered = guard.enter();
        Self::Serving { future: inner.call(request), guard: Some(guard) }
    }
}

type Acquire<Tag> = BoxFuture<'static, Result<(DbSession<Tag>, SessionGuard), Error>>;

impl<S, ReqBody, Tag, Respond> ResponseFuture<S, ReqBody, Tag, Respond>
where
    S: Service<Request<ReqBody>>,
    Tag: 'static,
{
    pub(crate) fn new(
        inner: &mut S,
        request: Request<ReqBody>,
        pool: &SessionPool,
        policy: &Policy,
        respond: Respond,
    ) -> Self
    where
        S: Clone,
    {
        let (parts, body) = request.into_parts();
        let eager = policy.checkout.is_eager(&parts) && !pool.is_direct();
        let plan = policy.plan(&parts);
        let answer = Answer::new(respond, &parts, policy.keep_handler_errors);
        let mut request = Request::from_parts(parts, body);
        let opened = if eager { pool.try_session::<Tag>(plan) } else { pool.lazy_session::<Tag>(plan) };
        let state = match opened {
            Ok((session, guard)) => {
                request.extensions_mut().insert(session);
                State::serving(inner, request, guard)
            }
            Err(plan) => {
                let pool = pool.clone();
                // The clone has not been polled ready: it stays, and the ready one goes.
                let next = inner.clone();
                let inner = std::mem::replace(inner, next);
                State::Acquiring { inner, request, acquire: Box::pin(async move { pool.eager_session(plan).await }) }
            }
        };
        Self { state, answer }
    }

    /// For a request that has its session from a layer further out.
    pub(crate) fn pass(inner: &mut S, request: Request<ReqBody>, respond: Respond) -> Self {
        let (parts, body) = request.into_parts();
        let answer = Answer::new(respond, &parts, true);
        let request = Request::from_parts(parts, body);
        Self { state: State::Serving { future: inner.call(request), guard: None }, answer }
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
                    let StateOwned::Acquiring { mut inner, mut request, .. } =
                        this.state.as_mut().project_replace(State::Done)
                    else {
                        polled_after_completion()
                    };
                    match acquired {
                        Ok((session, guard)) => {
                            request.extensions_mut().insert(session);
                            State::serving(&mut inner, request, guard)
                        }
                        Err(error) => {
                            let (Parts { method, uri, .. }, _) = request.into_parts();
                            return Poll::Ready(Ok(this.answer.error(&error, Some(&Label { method, uri }))));
                        }
                    }
                }
                StateProj::Serving { future, guard } => {
                    let entered = guard.as_ref().and_then(SessionGuard::enter);
                    let result = ready!(future.poll(cx));
                    drop(entered);
                    let Some(guard) = guard.take() else {
                        this.state.set(State::Done);
                        return Poll::Ready(result);
                    };
                    let (result, decision, guard) = match decide(guard, result, this.answer.asked.version) {
                        Fate::Head(result, decision, guard) => (result, decision, guard),
                        Fate::Body(response) => {
                            this.state.set(State::Done);
                            return Poll::Ready(Ok(this.answer.pending(response)));
                        }
                    };
                    match guard.settle(decision) {
                        Settlement::Now(ended) => {
                            this.state.set(State::Done);
                            return Poll::Ready(result.map(|response| this.answer.conclude(response, ended, &guard)));
                        }
                        Settlement::Later(settlement) => State::Settling { result: Some(result), settlement, guard },
                    }
                }
                StateProj::Settling { result, settlement, guard } => {
                    let ended = ready!(settlement.as_mut().poll(cx));
                    let Some(result) = result.take() else { polled_after_completion() };
                    let result = result.map(|response| this.answer.conclude(response, ended, guard));
                    this.state.set(State::Done);
                    return Poll::Ready(result);
                }
                StateProj::Done => polled_after_completion(),
            };
            this.state.set(next);
        }
    }
}

/// Where an answer's fate is decided.
enum Fate<B, E> {
    /// Now.
    Head(Result<Response<B>, E>, Decision, SessionGuard),
    /// At the end of the body, which has the guard.
    Body(Response<B>),
}

/// What the answer means for the session's transaction.
fn decide<B, E>(guard: SessionGuard, result: Result<Response<B>, E>, version: Version) -> Fate<B, E> {
    let response = match result {
        Ok(response) => response,
        Err(error) => return Fate::Head(Err(error), Decision::RollBack, guard),
    };
    let (head, body) = response.into_parts();
    let mut decision = guard.decide(&head);
    let mut guard = guard;
    if let Some(hold) = guard.hold() {
        if hold.has_failed() {
            decision = Decision::RollBack;
        }
        if decision == Decision::RollBack || guard.cut_off().is_some() {
            hold.pass();
        } else {
            guard = match guard.leave_to(&hold, &head, version) {
                Ok(()) => return Fate::Body(Response::from_parts(head, body)),
                Err(guard) => guard,
            };
        }
    }
    Fate::Head(Ok(Response::from_parts(head, body)), decision, guard)
}

/// Makes answers of the layer's own.
struct Answer<Tag, Respond> {
    respond: Respond,
    asked: Asked,
    keep_handler_errors: bool,
    tag: PhantomData<fn() -> Tag>,
}

/// The request's parts, as far as an answer may depend on them and the session does not know them. A clone
/// of all headers, or even a map of these two, would cost every request allocations for the sake of the few
/// that fail.
struct Asked {
    version: Version,
    accept: Option<HeaderValue>,
    content_type: Option<HeaderValue>,
}

impl Asked {
    fn of(parts: &Parts) -> Self {
        Self {
            version: parts.version,
            accept: parts.headers.get(header::ACCEPT).cloned(),
            content_type: parts.headers.get(header::CONTENT_TYPE).cloned(),
        }
    }

    fn parts(&self, label: Option<&Label>) -> Parts {
        let (mut parts, ()) = Request::new(()).into_parts();
        if let Some(Label { method, uri }) = label {
            parts.method.clone_from(method);
            parts.uri.clone_from(uri);
        }
        parts.version = self.version;
        for (name, value) in [(header::ACCEPT, &self.accept), (header::CONTENT_TYPE, &self.content_type)] {
            if let Some(value) = value {
                parts.headers.insert(name, value.clone());
            }
        }
        parts
    }
}

impl<Tag: 'static, Respond> Answer<Tag, Respond> {
    fn new(respond: Respond, parts: &Parts, keep_handler_errors: bool) -> Self {
        Self { respond, asked: Asked::of(parts), keep_handler_errors, tag: PhantomData }
    }

    fn error<B>(&self, error: &Error, label: Option<&Label>) -> Response<B>
    where
        Respond: OnError<B>,
    {
        telemetry::answered(error);
        self.respond.response(error, &self.asked.parts(label))
    }

    /// The handler's answer, whose body decides.
    fn pending<B>(&self, mut response: Response<B>) -> Response<B> {
        if let Some(outcome) = Outcome::<Tag>::of(Ended::Pending) {
            response.extensions_mut().insert(outcome);
        }
        response
    }

    /// The handler's answer, or the layer's where the handler's would not be true.
    fn conclude<B>(&self, response: Response<B>, ended: Ended, guard: &SessionGuard) -> Response<B>
    where
        Respond: OnError<B>,
    {
        let failure = match (&ended, guard.lost()) {
            (Ended::Failed(error), _) => Some(error.clone()),
            // Whatever the rule made of it: what the handler believes to be there is not.
            (_, Some(lost)) if is_success(response.status(), response.headers()) => Some(lost),
            _ if !response.status().is_server_error() || self.keep_handler_errors => None,
            _ => guard.failure(),
        };
        let mut response = match failure {
            None => response,
            Some(error) => {
                let mut answer = self.error(&error, guard.label());
                if guard.may_have_committed() {
                    // What came before may stand: sent again, it would happen twice.
                    answer.headers_mut().remove(header::RETRY_AFTER);
                }
                answer
            }
        };
        if let Some(outcome) = Outcome::<Tag>::of(ended) {
            response.extensions_mut().insert(outcome);
        }
        response
    }
}

fn polled_after_completion() -> ! {
    panic!("ResponseFuture polled after completion")
}

impl<S, ReqBody, Tag, Respond> fmt::Debug for ResponseFuture<S, ReqBody, Tag, Respond>
where
    S: Service<Request<ReqBody>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
