//! [`State`]: where a request is on its way.

use std::pin::Pin;

use futures_util::future::BoxFuture;
use http::Request;
use pin_project::pin_project;
use tower_service::Service;

#[cfg(feature = "retry")]
use crate::session::OpenSession;
use crate::{
    DbSession, Error,
    session::{Ended, SessionGuard},
};

#[pin_project(project = StateProj, project_replace = StateOwned)]
#[allow(
    clippy::large_enum_variant,
    reason = "a box would cost every request an allocation"
)]
pub(super) enum State<S, ReqBody, F, R, E, Tag> {
    /// Waiting for a connection, with the ready service and the request.
    Acquiring {
        inner: S,
        request: Request<ReqBody>,
        // Dropped with the request, it leaves the queue; what the driver is
        // opening for it goes to the next (H22).
        acquire: Acquire<Tag>,
    },
    /// The request's session cannot follow the layer's settings.
    Refused(Error),
    /// The inner service is at work.
    Serving {
        #[pin]
        future: F,
        /// `None` if a layer further out has the session.
        guard: Option<SessionGuard>,
    },
    /// The response is there; the transaction is being committed or rolled
    /// back.
    Settling {
        // Kept back until the session has ended (G7).
        result: Option<Result<R, E>>,
        // `'static`: dropped with the request, it is seen through in a task
        // (H17).
        settlement: BoxFuture<'static, Ended>,
        guard: SessionGuard,
    },
    /// The response was returned.
    // A poll from here on panics, as any future's may: a second response would
    // be untrue.
    Done,
}

impl<S, ReqBody, Tag> State<S, ReqBody, S::Future, S::Response, S::Error, Tag>
where
    S: Service<Request<ReqBody>>,
    Tag: 'static,
{
    /// Calls the inner service. `own` is the session that the request gets from
    /// this layer.
    pub(super) fn serving(
        inner: &mut S,
        mut request: Request<ReqBody>,
        own: Option<Own<Tag>>,
    ) -> Self {
        // The guard stays here and only the handle goes into the request:
        // extensions may be cloned and kept (G3, G6).
        let guard = own.map(|(session, guard)| {
            #[cfg(feature = "retry")]
            OpenSession::note(&session, request.extensions_mut());
            request.extensions_mut().insert(session);
            guard
        });
        // A service may do its work in `call`: a second session that it takes
        // there is this request's too.
        let entered = guard.as_ref().map(SessionGuard::enter);
        let future = inner.call(request);
        // Not longer than the call: whatever this thread does next is another
        // request's.
        drop(entered);
        Self::Serving { future, guard }
    }

    /// The connection is there: calls the service that has waited with the
    /// request.
    pub(super) fn acquired(self: Pin<&mut Self>, own: Option<Own<Tag>>) -> Self {
        // The request has to be moved out of the state that is left.
        match self.project_replace(Self::Done) {
            StateOwned::Acquiring {
                mut inner, request, ..
            } => Self::serving(&mut inner, request, own),
            _ => polled_after_completion(),
        }
    }

    /// The service that was polled ready goes with the request. Its clone was
    /// not, and stays.
    pub(super) fn acquiring(inner: &mut S, request: Request<ReqBody>, acquire: Acquire<Tag>) -> Self
    where
        S: Clone,
    {
        let next = inner.clone();
        Self::Acquiring {
            // <https://docs.rs/tower/latest/tower/trait.Service.html#be-careful-when-cloning-inner-services>
            inner: std::mem::replace(inner, next),
            request,
            acquire,
        }
    }
}

type Own<Tag> = (DbSession<Tag>, SessionGuard);

/// Acquires a session, or `None` for one that the request had before and that
/// has its connection now.
type Acquire<Tag> = BoxFuture<'static, Result<Option<Own<Tag>>, Error>>;

pub(super) fn polled_after_completion() -> ! {
    panic!("ResponseFuture polled after completion")
}
