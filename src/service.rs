//! [`DbSessionService`]: one session per request.

use std::{
    fmt,
    marker::PhantomData,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use tower_service::Service;

use crate::{
    DbSession, DefaultDatabase, SessionPool,
    future::ResponseFuture,
    policy::Policy,
    response::{DefaultResponseForError, ResponseForError},
};

/// The service that a [`DbSessionLayer`](crate::DbSessionLayer) makes.
///
/// It calls the same inner service that it polled ready.
///
/// Nested layers of one tag share one session, which the outermost layer opens.
/// The settings of an inner layer (transactions, `commit_when`, `on_begin`,
/// `set_local`, time-outs, `on_acquire`) apply to the requests that reach it,
/// as with [`TransactionLayer`](crate::TransactionLayer); an eager inner layer
/// checks out a lazy session's connection before its own inner service is
/// called. A layer over another database under the same tag responds with 500
/// and logs the tag, because its handlers would run on the wrong database.
pub struct DbSessionService<S, Tag = DefaultDatabase, Respond = DefaultResponseForError> {
    // A request clones it only where it has to wait for its connection.
    inner: S,
    pool: SessionPool,
    // Shared: servers clone the service for each connection, and some for each
    // request.
    policy: Arc<Policy>,
    respond: Respond,
    tag: PhantomData<fn() -> Tag>,
}

impl<S, Tag, Respond> DbSessionService<S, Tag, Respond> {
    pub(crate) fn new(inner: S, pool: SessionPool, policy: Arc<Policy>, respond: Respond) -> Self {
        Self {
            inner,
            pool,
            policy,
            respond,
            tag: PhantomData,
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

impl<S, Tag, Respond, ReqBody, ResBody> Service<Request<ReqBody>>
    for DbSessionService<S, Tag, Respond>
where
    // `Clone`, because a request that waits for its connection takes the
    // service along that was polled ready.
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
    Respond: ResponseForError<ResBody> + Clone,
    Tag: 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S, ReqBody, Tag, Respond>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        // Nothing is acquired here: a service that is ready and never called
        // would keep a connection from others (G14).
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let outer = request.extensions().get::<DbSession<Tag>>();
        // A request that is retried or kept carries the handle of a session
        // that is over.
        let outer = outer.filter(|session| !session.has_ended()).cloned();
        let (inner, pool, policy) = (&mut self.inner, &self.pool, &self.policy);
        // The future outlives `&mut self`.
        let respond = self.respond.clone();
        // A second session would have a second connection, and might wait for
        // the first one (G2, H11).
        match outer {
            None => ResponseFuture::new(inner, request, pool, policy, respond),
            Some(outer) => ResponseFuture::join(inner, outer, request, pool, policy, respond),
        }
    }
}

// By hand, because a derived one would ask the tag to be `Clone`.
impl<S: Clone, Tag, Respond: Clone> Clone for DbSessionService<S, Tag, Respond> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            pool: self.pool.clone(),
            policy: self.policy.clone(),
            respond: self.respond.clone(),
            tag: PhantomData,
        }
    }
}

impl<S: fmt::Debug, Tag, Respond> fmt::Debug for DbSessionService<S, Tag, Respond> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DbSessionService")
            .field("inner", &self.inner)
            .field("pool", &self.pool)
            .finish_non_exhaustive()
    }
}
