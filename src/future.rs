//! [`ResponseFuture`]: a request's way through its session.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_util::future::BoxFuture;
use http::{Request, Response};
use pin_project::pin_project;
use tower::Service;

use crate::{
    DbSession, DefaultDatabase, Error, SessionPool,
    decision::{Fate, decide},
    error::Kind,
    policy::Policy,
    response::{Answer, DefaultResponseForError, ResponseForError},
    session::{Ended, SessionGuard, Settlement},
};

/// The future of a [`DbSessionService`](crate::DbSessionService).
///
/// It owns the session's guard: dropping it at any point ends the session, and the connection goes
/// back.
#[pin_project]
#[must_use = "futures do nothing unless polled"]
pub struct ResponseFuture<S, ReqBody, Tag = DefaultDatabase, Respond = DefaultResponseForError>
where
    S: Service<Request<ReqBody>>,
{
    #[pin]
    state: State<S, ReqBody, S::Future, S::Response, S::Error, Tag>,
    answer: Answer<Tag, Respond>,
}

#[pin_project(project = StateProj, project_replace = StateOwned)]
#[allow(
    clippy::large_enum_variant,
    reason = "a box would cost every request an allocation"
)]
enum State<S, ReqBody, F, R, E, Tag> {
    /// Waiting for a connection; the ready service and the request wait along.
    Acquiring {
        inner: S,
        request: Request<ReqBody>,
        acquire: Acquire<Tag>,
    },
    /// The request has a session that cannot do as told.
    Refused(Error),
    /// The inner service is at work.
    Serving {
        #[pin]
        future: F,
        /// `None` if a layer further out has the session.
        guard: Option<SessionGuard>,
    },
    /// The answer is there; the transaction is being committed or rolled back.
    Settling {
        result: Option<Result<R, E>>,
        settlement: BoxFuture<'static, Ended>,
        guard: SessionGuard,
    },
    /// Answered.
    Done,
}

impl<S, ReqBody, Tag> State<S, ReqBody, S::Future, S::Response, S::Error, Tag>
where
    S: Service<Request<ReqBody>>,
{
    /// `own` is the session that the request gets from here, if it has none.
    fn serving(
        inner: &mut S,
        mut request: Request<ReqBody>,
        own: Option<(DbSession<Tag>, SessionGuard)>,
    ) -> Self
    where
        Tag: 'static,
    {
        let Some((session, guard)) = own else {
            return Self::Serving {
                future: inner.call(request),
                guard: None,
            };
        };
        request.extensions_mut().insert(session);
        let entered = guard.enter();
        let future = inner.call(request);
        drop(entered);
        Self::Serving {
            future,
            guard: Some(guard),
        }
    }

    /// The clone has not been polled ready: it stays, and the ready one goes.
    fn acquiring(inner: &mut S, request: Request<ReqBody>, acquire: Acquire<Tag>) -> Self
    where
        S: Clone,
    {
        let next = inner.clone();
        Self::Acquiring {
            inner: std::mem::replace(inner, next),
            request,
            acquire,
        }
    }
}

/// `None`: a session that the request had before has its connection now.
type Acquire<Tag> = BoxFuture<'static, Result<Option<(DbSession<Tag>, SessionGuard)>, Error>>;

impl<S, ReqBody, Tag, Respond> ResponseFuture<S, ReqBody, Tag, Respond>
where
    S: Service<Request<ReqBody>>,
    Tag: 'static,
{
    /// For a request that gets its session here.
    pub(crate) fn new<ResBody>(
        inner: &mut S,
        request: Request<ReqBody>,
        pool: &SessionPool,
        policy: &Policy,
        respond: Respond,
    ) -> Self
    where
        S: Clone,
        Respond: ResponseForError<ResBody>,
    {
        let (parts, body) = request.into_parts();
        let eager = policy.checkout.is_eager(&parts) && !pool.is_direct();
        let plan = policy.plan(&parts);
        let answer = Answer::new(respond, &parts, policy.keep_handler_errors);
        let request = Request::from_parts(parts, body);
        let opened = if eager {
            pool.try_session::<Tag>(plan)
        } else {
            pool.lazy_session::<Tag>(plan)
        };
        let state = match opened {
            Ok(own) => State::serving(inner, request, Some(own)),
            Err(plan) => {
                let pool = pool.clone();
                State::acquiring(
                    inner,
                    request,
                    Box::pin(async move { pool.eager_session(plan).await.map(Some) }),
                )
            }
        };
        Self { state, answer }
    }

    /// For a request that has its session from a layer further out: tells it what this layer says.
    pub(crate) fn join<ResBody>(
        inner: &mut S,
        session: DbSession<Tag>,
        request: Request<ReqBody>,
        pool: &SessionPool,
        policy: &Policy,
        respond: Respond,
    ) -> Self
    where
        S: Clone,
        Respond: ResponseForError<ResBody>,
    {
        let (parts, body) = request.into_parts();
        let answer = Answer::new(respond, &parts, true);
        let told = if pool.has_database_of(session.pool()) {
            session.order(policy.order(&parts))
        } else {
            Err(Kind::OtherPool(std::any::type_name::<Tag>()).into())
        };
        let waits = policy.checkout.is_eager(&parts) && session.is_to_check_out();
        let request = Request::from_parts(parts, body);
        let state = match told {
            Err(error) => State::Refused(error),
            Ok(()) if waits => {
                let check_out = async move { session.check_out().await.map(|()| None) };
                State::acquiring(inner, request, Box::pin(check_out))
            }
            Ok(()) => State::serving(inner, request, None),
        };
        Self { state, answer }
    }
}

impl<S, ReqBody, ResBody, Tag, Respond> Future for ResponseFuture<S, ReqBody, Tag, Respond>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    Respond: ResponseForError<ResBody>,
    Tag: 'static,
{
    type Output = Result<Response<ResBody>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let next = match this.state.as_mut().project() {
                StateProj::Acquiring { acquire, .. } => {
                    let acquired = ready!(acquire.as_mut().poll(cx));
                    let StateOwned::Acquiring {
                        mut inner, request, ..
                    } = this.state.as_mut().project_replace(State::Done)
                    else {
                        polled_after_completion()
                    };
                    match acquired {
                        Ok(own) => State::serving(&mut inner, request, own),
                        Err(error) => return Poll::Ready(Ok(this.answer.error(&error))),
                    }
                }
                StateProj::Refused(error) => {
                    let response = this.answer.error(error);
                    this.state.set(State::Done);
                    return Poll::Ready(Ok(response));
                }
                StateProj::Serving { future, guard } => {
                    let entered = guard.as_ref().and_then(SessionGuard::enter);
                    let result = ready!(future.poll(cx));
                    drop(entered);
                    let Some(guard) = guard.take() else {
                        this.state.set(State::Done);
                        return Poll::Ready(result);
                    };
                    let (result, decision, guard) = match decide(guard, result) {
                        Fate::Head(result, decision, guard) => (result, decision, guard),
                        Fate::Body(response) => {
                            this.state.set(State::Done);
                            return Poll::Ready(Ok(this.answer.pending(response)));
                        }
                    };
                    match guard.settle(decision) {
                        Settlement::Now(ended) => {
                            this.state.set(State::Done);
                            return Poll::Ready(
                                result
                                    .map(|response| this.answer.conclude(response, ended, &guard)),
                            );
                        }
                        Settlement::Later(settlement) => State::Settling {
                            result: Some(result),
                            settlement,
                            guard,
                        },
                    }
                }
                StateProj::Settling {
                    result,
                    settlement,
                    guard,
                } => {
                    let ended = ready!(settlement.as_mut().poll(cx));
                    let Some(result) = result.take() else {
                        polled_after_completion()
                    };
                    let result =
                        result.map(|response| this.answer.conclude(response, ended, guard));
                    this.state.set(State::Done);
                    return Poll::Ready(result);
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

impl<S, ReqBody, Tag, Respond> fmt::Debug for ResponseFuture<S, ReqBody, Tag, Respond>
where
    S: Service<Request<ReqBody>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
