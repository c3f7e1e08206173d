//! [`ResponseFuture`]: a request's way through its session.

mod state;

use std::{
    fmt,
    future::Future,
    ops::ControlFlow::{self, Break, Continue},
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{Request, Response};
use pin_project::pin_project;
use tower_service::Service;

use self::state::{State, StateProj, polled_after_completion};
use crate::{
    DbSession, DefaultDatabase, Error, SessionPool,
    error::Kind,
    policy::Policy,
    response::{DefaultResponseForError, Responder, ResponseForError, ResponsePolicy},
    session::{SessionGuard, SettleAt, Settlement, open_eager, try_open},
    telemetry,
};

/// The future of a [`DbSessionService`](crate::DbSessionService).
///
/// It owns the session's guard: dropping it at any point ends the session, and
/// the connection goes back.
#[pin_project]
#[must_use = "futures do nothing unless polled"]
pub struct ResponseFuture<S, ReqBody, Tag = DefaultDatabase, Respond = DefaultResponseForError>
where
    S: Service<Request<ReqBody>>,
{
    #[pin]
    state: State<S, ReqBody, S::Future, S::Response, S::Error, Tag>,
    // Kept for the whole request: also a COMMIT that fails at the end needs a
    // response.
    responder: Responder<Tag, Respond>,
}

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
        #[cfg_attr(not(feature = "retry"), allow(unused_mut))]
        let mut responder = Responder::new(respond, &parts, policy.response);
        #[cfg(feature = "retry")]
        // Before the plan: a request whose retries are misplaced gets no
        // session at all.
        if let Err(error) = responder.join_tally(&parts) {
            return Self::refused(error, pool, responder);
        }
        // The predicates see the request as it came in, before it has a
        // session.
        let (picked, plan) = match policy.route(&parts, pool) {
            Ok(routed) => routed,
            Err(error) => return Self::refused(error, pool, responder),
        };
        let pool = picked.as_ref().unwrap_or(pool);
        // Pass-through sessions have no connection to check out.
        let eager = policy.checkout.is_eager(&parts) && !pool.inner().is_direct();
        let request = Request::from_parts(parts, body);
        let state = match try_open(pool, plan, eager) {
            // Called in `call`, as without this layer: services may do their
            // work there (G14).
            Ok(own) => State::serving(inner, request, Some(own)),
            Err(plan) => {
                // Only a session that has to wait costs a box, and a future
                // that owns what it needs.
                let pool = pool.clone();
                let acquire = async move { logged(&pool, open_eager(&pool, plan).await.map(Some)) };
                State::acquiring(inner, request, Box::pin(acquire))
            }
        };
        Self { state, responder }
    }

    /// For a request that cannot have a session.
    fn refused(error: Error, pool: &SessionPool, responder: Responder<Tag, Respond>) -> Self {
        telemetry::response_for(&error, &pool.inner().lines);
        // Answered when it is polled, as all others: `call` only makes futures.
        let state = State::Refused(error);
        Self { state, responder }
    }

    /// For a request that has its session from an outer layer, to which this
    /// layer's settings are applied.
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
        // The outer layer decides about the handler's errors: this one has
        // opened nothing.
        let joined = ResponsePolicy {
            keeps_errors: true,
            times: false,
        };
        let responder = Responder::new(respond, &parts, joined);
        // Without a session of its own: a second one could wait for the first
        // for ever (H11).
        let applied = policy.pick(&parts, pool).and_then(|picked| {
            let driver = picked.as_ref().unwrap_or(pool).inner().driver();
            // Under one tag, a handler could not know which of two databases it
            // writes to.
            if !driver.is_same(session.pool().inner().driver()) {
                return Err(Kind::OtherPool(std::any::type_name::<Tag>()).into());
            }
            session.order(policy.order(&parts))
        });
        if let Err(error) = applied {
            return Self::refused(error, pool, responder);
        }
        // Before the inner service is called, as in a layer without another one
        // around (G1).
        let waits = policy.checkout.is_eager(&parts) && session.is_to_check_out();
        let request = Request::from_parts(parts, body);
        let state = if waits {
            let pool = pool.clone();
            let check_out = async move { logged(&pool, session.check_out().await.map(|()| None)) };
            State::acquiring(inner, request, Box::pin(check_out))
        } else {
            State::serving(inner, request, None)
        };
        Self { state, responder }
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
        // A loop, so that a session that need not wait is served and settled in
        // one poll.
        let mut this = self.project();
        loop {
            let step = match this.state.as_mut().project() {
                StateProj::Acquiring { acquire, .. } => match ready!(acquire.as_mut().poll(cx)) {
                    Ok(own) => Continue(this.state.as_mut().acquired(own)),
                    // `Ok`: the inner service's error type has no place for it,
                    // and stays what it is (G14).
                    Err(error) => Break(Ok(this.responder.error(&error))),
                },
                StateProj::Refused(error) => Break(Ok(this.responder.error(error))),
                StateProj::Serving { future, guard } => {
                    // For the poll only: on the same thread, other requests are
                    // polled in between.
                    let result = ready!(match guard {
                        Some(guard) => guard.poll(future, cx),
                        None => future.poll(cx),
                    });
                    match guard.take() {
                        // The outer layer settles, and has the guard.
                        None => Break(result),
                        Some(guard) => served(result, guard, this.responder),
                    }
                }
                StateProj::Settling {
                    result,
                    settlement,
                    guard,
                } => {
                    let ended = ready!(settlement.as_mut().poll(cx));
                    // Taken and not cloned: a body cannot be.
                    let result = result.take().unwrap_or_else(|| polled_after_completion());
                    Break(result.map(|response| this.responder.conclude(response, ended, guard)))
                }
                StateProj::Done => polled_after_completion(),
            };
            match step {
                Continue(next) => this.state.set(next),
                Break(result) => {
                    // Drops the guard before the response is returned: its
                    // session has ended when the client sees the answer (G3).
                    this.state.set(State::Done);
                    return Poll::Ready(result);
                }
            }
        }
    }
}

/// The result of the future, or its next state.
type Step<S, ReqBody, F, R, E, Tag> = ControlFlow<Result<R, E>, State<S, ReqBody, F, R, E, Tag>>;

/// The inner service has responded: settles the session, or leaves it to the
/// response's body.
fn served<S, ReqBody, F, B, E, Tag: 'static, Respond: ResponseForError<B>>(
    result: Result<Response<B>, E>,
    guard: SessionGuard,
    responder: &Responder<Tag, Respond>,
) -> Step<S, ReqBody, F, Response<B>, E, Tag> {
    // The body's end may decide instead: then the body owns the guard from here
    // on.
    let (result, decision, guard) = match SettleAt::of(result, guard) {
        SettleAt::Head(result, decision, guard) => (result, decision, guard),
        SettleAt::BodyEnd(response, usage) => {
            return Break(Ok(responder.pending(response, usage)));
        }
    };
    match guard.settle(decision) {
        Settlement::Now(ended) => {
            Break(result.map(|response| responder.conclude(response, ended, &guard)))
        }
        // Only a settlement that has to wait for the database costs a box.
        Settlement::Later(settlement) => Continue(State::Settling {
            result: Some(result),
            settlement,
            guard,
        }),
    }
}

/// Logs why there is no connection for a request: the client learns a status,
/// the log the cause (G15).
fn logged<T>(pool: &SessionPool, acquired: Result<T, Error>) -> Result<T, Error> {
    acquired.inspect_err(|error| telemetry::response_for(error, &pool.inner().lines))
}

impl<S, ReqBody, Tag, Respond> fmt::Debug for ResponseFuture<S, ReqBody, Tag, Respond>
where
    S: Service<Request<ReqBody>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
