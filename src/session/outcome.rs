//! [`Outcome`]: how a request's transaction ended.

use std::{fmt, marker::PhantomData};

use super::{db_session::DefaultDatabase, settle::Ended};
use crate::Error;

/// How a request's transaction ended, in the extensions of the response: for logging, metrics and
/// tests in a layer further out.
///
/// It is present if the session was in its own transaction; `Tag` distinguishes several databases.
///
/// ```
/// # #[cfg(feature = "mock")] {
/// # use std::convert::Infallible;
/// # use http::{Request, Response};
/// # use sea_orm::{ConnectionTrait, DbBackend, MockDatabase, MockExecResult};
/// # use tower::{Layer, ServiceExt, service_fn};
/// # use tower_sea_orm::{DbSession, DbSessionLayer, Outcome};
/// # let done = MockExecResult { last_insert_id: 0, rows_affected: 1 };
/// # let db = MockDatabase::new(DbBackend::Postgres).append_exec_results([done]).into_connection();
/// let service = DbSessionLayer::new(db).transaction().layer(service_fn(async |request: Request<()>| {
///     let session: DbSession = DbSession::from_extensions(request.extensions()).unwrap();
///     session.execute_unprepared("UPDATE item SET hits = hits + 1").await.unwrap();
///     Ok::<_, Infallible>(Response::new(String::new()))
/// }));
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// let response = service.oneshot(Request::new(())).await.unwrap();
/// assert!(response.extensions().get::<Outcome>().unwrap().is_committed());
/// # }); }
/// ```
pub struct Outcome<Tag = DefaultDatabase> {
    ended: Ended,
    // A function's result, so that an outcome is `Send` and `Sync` whatever its tag is: extensions ask for that.
    tag: PhantomData<fn() -> Tag>,
}

impl<Tag> Outcome<Tag> {
    pub(crate) fn of(ended: Ended) -> Option<Self> {
        let transactional = !matches!(ended, Ended::Autocommit);
        transactional.then_some(Self {
            ended,
            tag: PhantomData,
        })
    }

    /// Returns whether the server has committed it.
    pub fn is_committed(&self) -> bool {
        matches!(self.ended, Ended::Committed)
    }

    /// Returns whether it was to be rolled back, and was. Work that an early `commit()` committed
    /// stays committed.
    pub fn is_rolled_back(&self) -> bool {
        matches!(self.ended, Ended::RolledBack)
    }

    /// Returns whether the request ran no statement, so that no transaction was begun.
    pub fn is_untouched(&self) -> bool {
        matches!(self.ended, Ended::Untouched)
    }

    /// Returns whether it will be decided at the end of the response's body, which has not been
    /// sent yet.
    pub fn is_pending(&self) -> bool {
        matches!(self.ended, Ended::Pending)
    }

    /// Returns whether the outcome is unknown: the connection was lost during COMMIT, or the server
    /// did not answer.
    pub fn is_unknown(&self) -> bool {
        self.error().is_some_and(Error::is_outcome_unknown)
    }

    /// Returns why it was not committed although the response called for it; the client got an
    /// error instead.
    pub fn error(&self) -> Option<&Error> {
        match &self.ended {
            Ended::Failed(error) => Some(error),
            _ => None,
        }
    }
}

impl<Tag> Clone for Outcome<Tag> {
    fn clone(&self) -> Self {
        Self {
            ended: self.ended.clone(),
            tag: PhantomData,
        }
    }
}

impl<Tag> fmt::Debug for Outcome<Tag> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Outcome").field(&self.ended).finish()
    }
}
