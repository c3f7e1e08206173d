//! [`Error`]: a failure, with questions to ask about it.

mod client;
mod construct;
mod kind;
#[cfg(feature = "sqlx-sqlite")]
pub(crate) mod missing_file;
pub(crate) mod server;
mod trouble;

use std::{fmt, sync::Arc, time::Duration};

use http::StatusCode;
use sea_orm::{ConnAcquireErr, DbErr, RuntimeErr, TransactionError};

use self::trouble::Trouble;
#[cfg(feature = "_sqlx")]
pub(crate) use self::trouble::ends_connection;
#[cfg(feature = "sqlx-mysql")]
pub(crate) use self::trouble::is_no_such_process;
pub(crate) use self::{construct::Cause, kind::Kind};

/// A failure of this crate's own, or one of the server's that is worth
/// retrying.
///
/// The text says what to do about it. It contains no database text, SQL or URL;
/// the cause, if there is one, is available from
/// [`source`](std::error::Error::source) and belongs in a log.
///
/// Statements return SeaORM's [`DbErr`]; [`Error::of`] finds the `Error` in it.
#[derive(Clone)]
pub struct Error {
    kind: Kind,
    // Shared: an error is cloned for the response, the log and the retry layer.
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// Finds this crate's error in a statement's [`DbErr`].
    ///
    /// Besides the crate's own failures, it recognises server errors that are
    /// not the statement's fault:
    ///
    /// | question | PostgreSQL | MySQL, MariaDB | SQLite |
    /// |---|---|---|---|
    /// | [`is_conflict`](Self::is_conflict) | `40001`, `40P01`, and the next line | 1020, 1213, and the next line | the next line |
    /// | [`is_lock_not_available`](Self::is_lock_not_available) | `55P03` | 1205, 3572 | `SQLITE_BUSY`, `SQLITE_LOCKED` |
    /// | [`is_statement_timeout`](Self::is_statement_timeout) | `57014`, unless cancelled by request | 3024, MariaDB 1969 | |
    /// | [`is_read_only`](Self::is_read_only) | `25006` | 1290 (`read_only`), 1792, 1836, Galera 1047 | `SQLITE_READONLY` |
    /// | [`is_outcome_unknown`](Self::is_outcome_unknown) | | 1180 (Galera) | |
    /// | [`is_exhausted`](Self::is_exhausted) | `53300`, PgBouncer's `max_client_conn` and `query_wait_timeout` | 1040, 1203, 1226 | |
    /// | [`is_stale_plan`](Self::is_stale_plan) | `0A000` and `26000` of a prepared statement, `XX000` of its types | 1243, 1615 | `SQLITE_SCHEMA` |
    /// | [`is_unreachable`](Self::is_unreachable) | `57P03`, FATAL | 3168 | |
    /// | [`is_connection_lost`](Self::is_connection_lost) | `57P01` and its like, class `08`, FATAL | 1053, 1927, 4031 and their like | |
    /// | [`is_aborted`](Self::is_aborted) | `25P02` | | |
    ///
    /// A connection that has ended without a word is lost as well: the driver's
    /// errors of input and output and of the protocol, and any error of
    /// PostgreSQL's with the severity FATAL. It is known by
    /// [`is_connection_lost`](Self::is_connection_lost) from the statement on
    /// that has met it.
    ///
    /// For everything else it returns `None`, also for a code of the last but
    /// one line that left the connection as it was: a function or a trigger can
    /// raise any code, and a foreign table passes another server's on.
    /// PostgreSQL tells by the severity, which is ERROR then; on MySQL and
    /// MariaDB, the session asks whether the connection answers.
    ///
    /// Galera also reports 1205 if a
    /// wait for another node's writes (`WSREP_SYNC_WAIT_UPTO_GTID`) takes too
    /// long.
    ///
    /// ```
    /// use sea_orm::{ConnAcquireErr, DbErr};
    /// use tower_sea_orm::Error;
    ///
    /// let error = Error::of(&DbErr::ConnectionAcquire(ConnAcquireErr::Timeout)).unwrap();
    /// assert!(error.is_exhausted());
    /// assert_eq!(error.status(), 503);
    /// assert!(Error::of(&DbErr::Custom("no such item".into())).is_none());
    /// ```
    pub fn of(error: &DbErr) -> Option<Self> {
        let kind = match error {
            // Also a plain `DatabaseConnection`'s, whose pool does not tell a
            // full pool from a database that is down (H25).
            DbErr::ConnectionAcquire(ConnAcquireErr::Timeout) => Kind::Exhausted,
            DbErr::ConnectionAcquire(ConnAcquireErr::ConnectionClosed) => Kind::Closing,
            // SeaORM has no place for a foreign error: the text is the kind
            // (see `Kind::into_db_err`).
            DbErr::Conn(RuntimeErr::Internal(text)) => Kind::of_text(text)?,
            // The table has the servers' answers only, and not each by which
            // one may end a connection.
            error => match Trouble::of(error).and_then(Trouble::kind) {
                Some(kind) => kind,
                None if server::is_lost(error) => Kind::ConnectionLost,
                None => return None,
            },
        };
        Some(kind.into())
    }

    /// [`of`](Self::of) for the error of `transaction()` or
    /// `transaction_async()`, whether it came from BEGIN or COMMIT, or from a
    /// statement in the callback. In the latter case `E`, or an error in its
    /// [`source`](std::error::Error::source) chain, has to be the statement's
    /// [`DbErr`].
    ///
    /// ```
    /// use sea_orm::{ConnAcquireErr, DbErr, TransactionError};
    /// use tower_sea_orm::Error;
    ///
    /// let timeout = DbErr::ConnectionAcquire(ConnAcquireErr::Timeout);
    /// for error in [TransactionError::Connection(timeout.clone()), TransactionError::Transaction(timeout)] {
    ///     assert!(Error::of_transaction(&error).is_some_and(|error| error.is_exhausted()));
    /// }
    /// ```
    pub fn of_transaction<E>(error: &TransactionError<E>) -> Option<Self>
    where
        E: std::error::Error + 'static,
    {
        let error = match error {
            TransactionError::Connection(error) => return Self::of(error),
            TransactionError::Transaction(error) => error,
        };
        let chain =
            std::iter::successors(Some(error as &(dyn std::error::Error + 'static)), |error| {
                error.source()
            });
        // The error of the callback may wrap the statement's.
        chain
            .into_iter()
            .find_map(|error| match error.downcast_ref::<DbErr>() {
                Some(error) => Self::of(error),
                None => error.downcast_ref::<Self>().cloned(),
            })
    }

    /// Returns the status that the layer answers with: 503 for temporary
    /// failures, 504 for a statement that the server stopped for taking too
    /// long and for a connection that was taken away by `hold_timeout`, 404 for
    /// a [database that is not known](Self::is_unknown_database), 500 for
    /// everything else.
    pub fn status(&self) -> StatusCode {
        match self.kind {
            // The work was stopped for its length: the same request would be
            // again.
            Kind::Reclaimed | Kind::Unread | Kind::StatementTimeout => StatusCode::GATEWAY_TIMEOUT,
            // A tenant that there is not, for example.
            Kind::UnknownDatabase => StatusCode::NOT_FOUND,
            // 503 and not 409, which asks the client to resolve something
            // (<https://www.rfc-editor.org/rfc/rfc9110#section-15.5.10>): here
            // the same request will do.
            _ if self.is_retryable() => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Returns the code that the layer answers a gRPC request with: 14
    /// (`UNAVAILABLE`) if [`status`](Self::status) is 503, 4
    /// (`DEADLINE_EXCEEDED`) for 504, 5 (`NOT_FOUND`) for 404, 13 (`INTERNAL`)
    /// for everything else. With tonic:
    /// `tonic::Status::new(tonic::Code::from_i32(error.grpc_code()), "…")`.
    pub fn grpc_code(&self) -> i32 {
        // UNAVAILABLE, DEADLINE_EXCEEDED, NOT_FOUND, INTERNAL
        // (https://grpc.io/docs/guides/status-codes).
        match self.status() {
            StatusCode::SERVICE_UNAVAILABLE => 14,
            StatusCode::GATEWAY_TIMEOUT => 4,
            StatusCode::NOT_FOUND => 5,
            _ => 13,
        }
    }

    /// Returns how long the client should wait, for a `Retry-After` header, or
    /// `None` if a retry does not help.
    ///
    /// It is a random 1 to 3 s if the pool had no connection, so that rejected
    /// clients do not all return at once, and if the server is read-only; it is
    /// 1 s after a conflict with another transaction, a stale plan, a replica
    /// that is behind, or a connection lost while reading.
    pub fn retry_after(&self) -> Option<Duration> {
        // Each kind that `is_retryable` names has a time here.
        match self.kind {
            // Random, so that clients that were refused together do not come
            // back together.
            _ if self.is_acquire() || self.is_read_only() => Some(Duration::from_secs(jitter())),
            _ if self.is_conflict() || self.is_stale_plan() || self.is_replica_behind() => {
                Some(Duration::from_secs(1))
            }
            // The server is out of use already: the request goes to another
            // one.
            Kind::ReadLost => Some(Duration::from_secs(1)),
            _ => None,
        }
    }

    /// Returns whether the same request may succeed if it is sent again.
    pub fn is_retryable(&self) -> bool {
        (self.is_acquire() || self.is_conflict() || self.is_read_only())
            || self.is_stale_plan()
            || self.is_replica_behind()
            || self.is_read_lost()
    }

    /// Returns whether no connection could be acquired: exhausted, down or
    /// closing.
    pub fn is_acquire(&self) -> bool {
        self.is_exhausted() || matches!(self.kind, Kind::Down | Kind::Closing)
    }

    /// Returns whether all connections were in use, either for the whole
    /// `acquire_timeout` or with a full queue
    /// ([`max_pending`](crate::SessionPoolBuilder::max_pending)); or whether
    /// the server is at its connection limit, or takes too long to log a
    /// connection in.
    pub fn is_exhausted(&self) -> bool {
        self.kind.is_exhausted()
    }

    /// Returns whether the database could not be reached.
    pub fn is_unreachable(&self) -> bool {
        self.kind == Kind::Down
    }

    /// Returns whether the pool is closed or closing: see
    /// [`SessionPool::close`](crate::SessionPool::close).
    pub fn is_closing(&self) -> bool {
        self.kind == Kind::Closing
    }

    /// Returns whether a handle was used after its request had ended.
    pub fn is_session_closed(&self) -> bool {
        self.kind == Kind::SessionClosed
    }

    /// Returns whether the session's connection was taken away because it was
    /// held for longer than
    /// [`hold_timeout`](crate::SessionPoolBuilder::hold_timeout), or for a body
    /// that the client did not read
    /// ([`body_timeout`](crate::SessionPoolBuilder::body_timeout)).
    pub fn is_hold_timeout(&self) -> bool {
        matches!(self.kind, Kind::Reclaimed | Kind::Unread)
    }

    /// Returns whether every connection of the pool was held by a request that
    /// waited for a second one, and this wait was ended so that the others
    /// could go on. A request that has run no statement yet lends its
    /// connection instead.
    pub fn is_pool_deadlock(&self) -> bool {
        self.kind == Kind::PoolDeadlock
    }

    /// Returns whether the wrong handle was used: beside an open transaction or
    /// stream, after its end, or for an operation that the session's mode does
    /// not allow.
    pub fn is_wrong_handle(&self) -> bool {
        matches!(
            self.kind,
            Kind::NestedOpen
                | Kind::TransactionOver
                | Kind::StreamOpen
                | Kind::RawRunning
                | Kind::TransactionOpen
                | Kind::TransactionBegun
                | Kind::InUse
                | Kind::NoEnd
                | Kind::NoTransaction
                | Kind::RollbackOnly
                | Kind::MustBeTransaction
        )
    }

    /// Returns whether a concurrent transaction was in the way: the transaction
    /// could not be serialized, lost a deadlock, or did not get a lock. A read
    /// that a PostgreSQL replica has cancelled (`canceling statement due to
    /// conflict with recovery`) counts as well.
    pub fn is_conflict(&self) -> bool {
        matches!(
            self.kind,
            Kind::Serialization | Kind::Deadlock | Kind::LockNotAvailable
        )
    }

    /// Returns whether a statement did not get a lock: in time (`lock_timeout`,
    /// `innodb_lock_wait_timeout`, `busy_timeout`), or at once (`NOWAIT`). It
    /// is a [conflict](Self::is_conflict) as well.
    pub fn is_lock_not_available(&self) -> bool {
        self.kind == Kind::LockNotAvailable
    }

    /// Returns whether the server stopped a statement that ran for longer than
    /// it allows: by PostgreSQL's `statement_timeout`, MySQL's
    /// `max_execution_time`, MariaDB's `max_statement_time`. Cancellation by
    /// request does not count.
    pub fn is_statement_timeout(&self) -> bool {
        self.kind == Kind::StatementTimeout
    }

    /// Returns whether a write was refused because the server or the
    /// transaction is read-only: a replica, a former primary after a fail-over,
    /// a Galera node without a quorum, an SQLite file that the process may not
    /// write, or a transaction that was begun READ ONLY. With `replicas` (a
    /// feature), a former primary that still takes writes is refused as well.
    pub fn is_read_only(&self) -> bool {
        matches!(self.kind, Kind::ReadOnly | Kind::FormerPrimary)
    }

    /// Returns whether a prepared statement was gone, or no longer fitted its
    /// tables, after a migration or a `DISCARD ALL`. It did not run. On
    /// PostgreSQL, outside a transaction, it is prepared again and run once
    /// more, so as a rule only a request in a transaction sees this error.
    pub fn is_stale_plan(&self) -> bool {
        self.kind == Kind::StalePlan
    }

    /// Returns whether a replica had not caught up with what the client has
    /// written, and the session could not move to the primary. With
    /// `DbSessionLayer::replicas` (feature `replicas`), a session moves by
    /// itself, except in its second transaction.
    pub fn is_replica_behind(&self) -> bool {
        self.kind == Kind::ReplicaBehind
    }

    /// Returns whether the session's connection was lost before the session
    /// ended. With `replicas` (a feature), it is
    /// [retryable](Self::is_retryable) where the request has only read, in a
    /// READ ONLY transaction.
    pub fn is_connection_lost(&self) -> bool {
        matches!(self.kind, Kind::ConnectionLost | Kind::ReadLost)
    }

    /// Returns whether a transaction could not go on or be committed because
    /// the server had aborted it after a failed statement, or because raw code
    /// had ended it.
    pub fn is_aborted(&self) -> bool {
        matches!(
            self.kind,
            Kind::Aborted | Kind::EndedElsewhere | Kind::TestEnded
        )
    }

    /// Returns whether the server refused the COMMIT, or has not read it because
    /// it had ended the connection as idle: nothing of the transaction was
    /// committed. A conflict with another transaction does not
    /// count: see [`is_conflict`](Self::is_conflict).
    pub fn is_commit_failed(&self) -> bool {
        self.kind == Kind::CommitFailed
    }

    /// Returns whether the connection was lost during COMMIT, or the server did
    /// not answer it in time, or gave it up (a Galera node that has lost the
    /// others, 1180): the transaction may be committed or not. The same goes
    /// for a statement that commits by itself. The crate never retries it, and
    /// never sends a `Retry-After` for it.
    pub fn is_outcome_unknown(&self) -> bool {
        self.kind == Kind::OutcomeUnknown
    }

    /// Returns whether a request could not commit because part of it was
    /// unfinished: a nested transaction still open, or a statement still
    /// running in another task.
    pub fn is_unfinished(&self) -> bool {
        matches!(self.kind, Kind::LeftOpen | Kind::StillRunning)
    }

    /// Returns whether a statement was refused because it controls transactions
    /// behind the session's back, because it would make MySQL commit, or
    /// because it asks about an earlier statement of a connection that
    /// [`PoolMode::Transaction`](crate::PoolMode::Transaction) may have lent.
    pub fn is_forbidden_statement(&self) -> bool {
        matches!(
            self.kind,
            Kind::Control(_) | Kind::CommitsImplicitly | Kind::AsksEarlier
        )
    }

    /// Returns whether there is no [`DbSessionLayer`](crate::DbSessionLayer)
    /// around the handler, or a [`CurrentSession`](crate::CurrentSession) was
    /// used outside the requests of one.
    pub fn is_missing_layer(&self) -> bool {
        matches!(
            self.kind,
            Kind::MissingLayer | Kind::NoSession | Kind::NoCurrentSession
        )
    }

    /// Returns whether [`DbSessionLayer::by`](crate::DbSessionLayer::by) has
    /// picked no pool for a request.
    pub fn is_unknown_database(&self) -> bool {
        self.kind == Kind::UnknownDatabase
    }

    /// Returns whether a transaction was ended behind the session's back: what
    /// it did may stand.
    pub(crate) fn is_ended_elsewhere(&self) -> bool {
        self.kind == Kind::EndedElsewhere
    }

    /// Returns the text that errors of its kind have in common.
    pub(crate) fn kind_text(&self) -> &'static str {
        self.kind.text()
    }

    /// Returns whether a connection was lost on which its request has only
    /// read.
    pub(crate) fn is_read_lost(&self) -> bool {
        self.kind == Kind::ReadLost
    }

    /// Returns whether a retry layer is further in than it may be.
    pub(crate) fn is_retry_inside(&self) -> bool {
        self.kind == Kind::RetryInside
    }

    /// Returns whether a session's connection was taken away.
    pub(crate) fn is_cut_off(&self) -> bool {
        self.is_hold_timeout() || self.is_closing()
    }

    /// Returns whether the same work may succeed at once if it is done again. A
    /// connection that was not there was waited for already, and more of the
    /// same would add to the load.
    #[cfg(feature = "retry")]
    pub(crate) fn is_passing(&self) -> bool {
        self.is_retryable() && !self.is_acquire()
    }

    /// Returns whether something of the transaction may be there nevertheless.
    pub(crate) fn may_stand(&self) -> bool {
        self.is_ended_elsewhere() || self.is_outcome_unknown()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.text())?;
        match self.kind {
            Kind::DriverNotEnabled(remedy) => write!(f, ": {remedy}"),
            Kind::OtherPool(tag) => write!(f, " (both have `{tag}`)"),
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.kind)
            .field("source", &self.source)
            .finish()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| &**source as _)
    }
}

/// A random number from 1 to 3.
fn jitter() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    // The standard library's own source of random numbers: one number is worth
    // no dependency.
    RandomState::new().build_hasher().finish() % 3 + 1
}
