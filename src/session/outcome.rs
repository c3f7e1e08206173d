//! [`Outcome`]: how a request's session ended, and what it has used.

use std::{fmt, marker::PhantomData, time::Duration};

use super::{db_session::DefaultDatabase, settle::Ended};
use crate::{Error, telemetry::Usage};

/// How a request's session ended and what it has used, in the extensions of the
/// response: for logging, metrics and tests in a layer further out.
///
/// It is absent if the session was in no transaction and has neither run a
/// statement nor waited for a connection, and if the request was refused
/// because there was no connection for it. `Tag` distinguishes several
/// databases.
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
/// let outcome = response.extensions().get::<Outcome>().unwrap();
/// assert!(outcome.is_committed());
/// assert_eq!(outcome.statements(), 1); // on a database 2, with COMMIT
/// # }); }
/// ```
pub struct Outcome<Tag = DefaultDatabase> {
    ended: Ended,
    usage: Usage,
    // As it was at the end: when this is read, the session is gone.
    is_undone: bool,
    // A function's result, so that an outcome is `Send` and `Sync` whatever its
    // tag is: extensions ask for that.
    tag: PhantomData<fn() -> Tag>,
}

impl<Tag> Outcome<Tag> {
    pub(crate) fn of(ended: Ended, usage: Usage, is_undone: bool) -> Option<Self> {
        let is_transactional = !matches!(ended, Ended::Autocommit);
        // Otherwise there is nothing to tell, and the extensions would cost an
        // untouched request three allocations.
        let is_used = usage.statements > 0 || !usage.waited.is_zero();
        (is_transactional || is_used).then_some(Self {
            ended,
            usage,
            is_undone,
            tag: PhantomData,
        })
    }

    /// Returns how long the session has waited for connections in all.
    pub fn waited(&self) -> Duration {
        self.usage.waited
    }

    /// Returns how long the session has held connections in all; if the outcome
    /// is [pending](Self::is_pending), until the response's head.
    pub fn held(&self) -> Duration {
        self.usage.held
    }

    /// Returns how many statements the session has run: with COMMIT, with the
    /// handler's own `begin()`, `rollback()` and savepoints, without the BEGIN
    /// that travels with the first one, and without the rollback of what was
    /// open at the end. On SeaORM's mock, only the handler's statements count.
    pub fn statements(&self) -> u64 {
        self.usage.statements
    }

    /// Returns whether the session was in no transaction of its own: each
    /// statement has committed by itself.
    pub fn is_autocommit(&self) -> bool {
        matches!(self.ended, Ended::Autocommit)
    }

    /// Returns whether the server has committed it.
    pub fn is_committed(&self) -> bool {
        matches!(self.ended, Ended::Committed)
    }

    /// Returns whether it was to be rolled back, and was. Work that an early
    /// `commit()` committed stays committed.
    pub fn is_rolled_back(&self) -> bool {
        matches!(self.ended, Ended::RolledBack)
    }

    /// Returns whether there was nothing to commit at the end: the request ran
    /// no statement, so that no transaction was begun, or the handler had
    /// itself rolled back what it did.
    pub fn is_untouched(&self) -> bool {
        matches!(self.ended, Ended::Untouched)
    }

    /// Returns whether it will be decided at the end of the response's body,
    /// which has not been sent yet.
    pub fn is_pending(&self) -> bool {
        matches!(self.ended, Ended::Pending)
    }

    /// Returns whether the outcome is unknown: the connection was lost during
    /// COMMIT, or the server did not answer it or gave it up.
    pub fn is_unknown(&self) -> bool {
        self.error().is_some_and(Error::is_outcome_unknown)
    }

    /// Returns whether it is known that nothing of the request stands in this
    /// session's database, so that the same request may be served once more:
    /// all was rolled back, and neither an early `commit()`, a statement
    /// outside the transaction, stored code nor another session that the
    /// request has opened has committed anything. It is false in any doubt, and
    /// while the outcome is [pending](Self::is_pending).
    ///
    /// What passes by the sessions is not taken into account: the plain
    /// `DatabaseConnection`, tasks of the handler's, calls to other services.
    pub fn is_undone(&self) -> bool {
        self.is_undone
    }

    /// Returns why it was not committed although the response called for it;
    /// the client got an error instead.
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
            usage: self.usage,
            is_undone: self.is_undone,
            tag: PhantomData,
        }
    }
}

impl<Tag> fmt::Debug for Outcome<Tag> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outcome")
            .field("ended", &self.ended)
            .field("usage", &self.usage)
            .field("is_undone", &self.is_undone)
            .finish()
    }
}
