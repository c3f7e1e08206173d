//! [`RetryService`]: serves a request, and serves it again if nothing of it stands.

use std::{
    mem,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Method, Request, Response, header};
use http_body::Body;
use tower::retry::{Policy, Retry};
use tower_service::Service;

use super::{
    attempt::{Attempt, Tries},
    body::ReplayBody,
    future::RetryFuture,
    policy::RetryPolicy,
};
use crate::{
    body::BoxError,
    policy::grpc_timeout,
    response::{forbid_retry, is_failure},
    session::{OpenSession, Tally},
};

/// The service that a [`RetryLayer`](crate::RetryLayer) makes.
#[derive(Debug, Clone)]
pub struct RetryService<S> {
    inner: S,
    policy: RetryPolicy,
    max_body: usize,
}

impl<S> RetryService<S> {
    pub(super) fn new(inner: S, policy: RetryPolicy, max_body: usize) -> Self {
        Self {
            inner,
            policy,
            max_body,
        }
    }

    /// Returns a reference to the inner service.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// Returns a mutable reference to the inner service.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// Returns the inner service.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for RetryService<S>
where
    // `Clone`, as for tower's `Retry`: a later attempt needs a service that is
    // ready once more.
    S: Service<Request<ReplayBody<ReqBody>>, Response = Response<ResBody>> + Clone,
    ReqBody: Body,
    ReqBody::Error: Into<BoxError>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = RetryFuture<S, ReqBody, ResBody>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let (mut parts, body) = request.into_parts();
        // Also where the request is served once: the inner service knows one
        // type of body.
        let body = ReplayBody::new(body, self.max_body);
        // Of two layers, the outer one has the head and the body that all the
        // work was done for.
        let is_outermost = parts.extensions.get::<Arc<Tally>>().is_none();
        let around = OpenSession::find(&parts.extensions).filter(|_| is_outermost);
        // An inner layer adds no attempts: three times three would be a storm.
        let may_retry = is_outermost && around.is_none() && !upgrades(&parts);
        let tries = may_retry.then(|| Tries::new(&self.policy, grpc_timeout(&parts)));
        // The number that counts is the outer layer's: an inner one serves its
        // requests once.
        if is_outermost {
            parts.extensions.insert(Attempt::FIRST);
        }
        // None where the request is served once: the layers inside answer as
        // without this one.
        if let Some(tries) = &tries {
            parts.extensions.insert(Tally::new(tries.since));
        }
        if let Some(session) = around {
            // What runs in it would run once more with each attempt, and
            // nothing else here can make a response.
            session.refuse_retries();
            parts.extensions.insert(Tally::within_session());
        }
        // The service that was polled ready serves the first attempt. tower
        // polls the clone ready before it serves a later one.
        let next = self.inner.clone();
        let ready = mem::replace(&mut self.inner, next);
        let request = Request::from_parts(parts, body);
        RetryFuture::new(Retry::new(Replays(tries), ready).call(request))
    }
}

/// Returns whether a request's connection itself goes to the handler, once.
fn upgrades(parts: &http::request::Parts) -> bool {
    // Behind the answer, the connection carries no more HTTP
    // (<https://www.rfc-editor.org/rfc/rfc9110#section-7.8>, 9.3.6): a second
    // attempt has none.
    parts.method == Method::CONNECT || parts.headers.contains_key(header::UPGRADE)
}

/// Decides by what the sessions of an attempt have reported. `None`: the
/// request is served once.
#[derive(Debug, Clone)]
pub(super) struct Replays(Option<Tries>);

impl<ReqBody: Body, ResBody, E> Policy<Request<ReplayBody<ReqBody>>, Response<ResBody>, E>
    for Replays
{
    // Named: tower's future holds it without a box.
    type Future = tokio::time::Sleep;

    fn retry(
        &mut self,
        next: &mut Request<ReplayBody<ReqBody>>,
        result: &mut Result<Response<ResBody>, E>,
    ) -> Option<Self::Future> {
        let tries = self.0.as_mut()?;
        let tally = next.extensions().get::<Arc<Tally>>()?.clone();
        let served = tries.attempt;
        let failure = tally.failure().filter(|_| {
            // A layer in between may have made the best of it, and an error of
            // the inner service says nothing of this.
            tally.is_undone() && result.as_ref().is_ok_and(is_failure)
        });
        let wait = failure.and_then(|error| tries.next(&error, || next.body_mut().rewind()));
        if wait.is_some() {
            let (attempt, tally) = (tries.attempt, Tally::new(tries.since));
            next.extensions_mut().insert(attempt);
            // A tally of its own: what the attempt before has left undone says
            // nothing of this one.
            next.extensions_mut().insert(tally);
            return wait;
        }
        // Only now that no attempt follows: a conflict that is made good is no
        // failure of the service.
        tally.log();
        if let Ok(response) = result {
            // A session has failed beside another one that stands: the client
            // would do the other's work twice.
            if tally.failure().is_some() && !tally.is_undone() {
                forbid_retry(response);
            }
            // Where a request was served once only, `RetryFuture` puts it
            // there.
            response.extensions_mut().insert(served);
        }
        None
    }

    fn clone_request(
        &mut self,
        request: &Request<ReplayBody<ReqBody>>,
    ) -> Option<Request<ReplayBody<ReqBody>>> {
        self.0.as_ref()?;
        // Field by field, since a reference to a request lends no `Parts`. And
        // before the services inside have put anything into the extensions: no
        // handle of the first attempt's session comes along.
        let mut next = Request::new(request.body().next());
        *next.method_mut() = request.method().clone();
        *next.uri_mut() = request.uri().clone();
        *next.version_mut() = request.version();
        next.headers_mut().clone_from(request.headers());
        next.extensions_mut().clone_from(request.extensions());
        Some(next)
    }
}
