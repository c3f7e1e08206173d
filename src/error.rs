//! [`Error`]: what went wrong, as questions to ask.

use std::{fmt, sync::Arc, time::Duration};

use http::StatusCode;
use sea_orm::{ConnAcquireErr, DbErr, RuntimeErr};

use crate::connection::Control;

/// A failure of this crate's own, or one of the server's that is worth retrying.
///
/// The text says what to do about it. It holds no database text, SQL or URL; the cause, where
/// there is one, is behind [`source`](std::error::Error::source) and belongs into a log.
///
/// Statements return SeaORM's [`DbErr`]; [`Error::of`] finds the `Error` in it.
#[derive(Clone)]
pub struct Error {
    kind: Kind,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(dead_code)] // each driver has its own conflicts
pub(crate) enum Kind {
    Exhausted,
    Down,
    Closing,
    SessionClosed,
    NestedOpen,
    TransactionOver,
    Aborted,
    EndedElsewhere,
    CommitFailed,
    OutcomeUnknown,
    LeftOpen,
    StillRunning,
    RollbackOnly,
    NoTransaction,
    TransactionBegun,
    TransactionOpen,
    MustBeTransaction,
    Control(Control),
    CommitsImplicitly,
    NestedOptions,
    StreamOpen,
    ConnectionLost,
    WrongDriver,
    NoRuntime,
    MissingLayer,
    Disconnected,
    DriverNotEnabled(&'static str),
    InvalidReserve,
    CannotClose,
    NothingToRollBack,
    NoSession,
    Serialization,
    Deadlock,
    LockTimeout,
}

/// Every kind that can stand in a [`DbErr`] as text.
const IN_DB_ERR: [Kind; 27] = [
    Kind::Down,
    Kind::SessionClosed,
    Kind::NestedOpen,
    Kind::TransactionOver,
    Kind::Aborted,
    Kind::EndedElsewhere,
    Kind::CommitFailed,
    Kind::OutcomeUnknown,
    Kind::LeftOpen,
    Kind::StillRunning,
    Kind::RollbackOnly,
    Kind::NoTransaction,
    Kind::TransactionBegun,
    Kind::TransactionOpen,
    Kind::MustBeTransaction,
    Kind::Control(Control::Begin),
    Kind::Control(Control::Commit),
    Kind::Control(Control::Rollback),
    Kind::Control(Control::Savepoint),
    Kind::Control(Control::SetTransaction),
    Kind::Control(Control::TwoPhase),
    Kind::CommitsImplicitly,
    Kind::NestedOptions,
    Kind::StreamOpen,
    Kind::ConnectionLost,
    Kind::WrongDriver,
    Kind::NoRuntime,
];

impl Error {
    /// Finds this crate's error in a statement's [`DbErr`].
    ///
    /// Besides the crate's own failures it recognises the server errors that a retry of the whole
    /// transaction may cure: serialization failures (`40001`), deadlocks (`40P01`, MySQL 1213),
    /// lock wait time-outs (MySQL 1205) and `SQLITE_BUSY`. Everything else is `None`.
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
            DbErr::ConnectionAcquire(ConnAcquireErr::Timeout) => Kind::Exhausted,
            DbErr::ConnectionAcquire(ConnAcquireErr::ConnectionClosed) => Kind::Closing,
            DbErr::Conn(RuntimeErr::Internal(text)) => *IN_DB_ERR.iter().find(|kind| kind.text() == text)?,
            #[cfg(feature = "_sqlx")]
            DbErr::Conn(RuntimeErr::SqlxError(error))
            | DbErr::Exec(RuntimeErr::SqlxError(error))
            | DbErr::Query(RuntimeErr::SqlxError(error)) => retryable(error.as_database_error()?)?,
            _ => return None,
        };
        Some(kind.into())
    }

    /// The status that the layer answers with: 503 for what may pass, 500 for the rest.
    pub fn status(&self) -> StatusCode {
        if self.is_retryable() { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::INTERNAL_SERVER_ERROR }
    }

    /// When to come back, for a `Retry-After` header; `None` where coming back is no cure.
    ///
    /// A random 1 to 3 s for a pool that had no connection, so that the rejected do not return all
    /// at once; 1 s after a serialization failure or a deadlock.
    pub fn retry_after(&self) -> Option<Duration> {
        match self.kind {
            Kind::Exhausted | Kind::Down | Kind::Closing => Some(Duration::from_secs(jitter())),
            Kind::Serialization | Kind::Deadlock | Kind::LockTimeout => Some(Duration::from_secs(1)),
            _ => None,
        }
    }

    /// Whether the same request may succeed when it is sent again.
    pub fn is_retryable(&self) -> bool {
        self.is_acquire() || self.is_conflict()
    }

    /// Whether no connection could be had: exhausted, down or closing.
    pub fn is_acquire(&self) -> bool {
        matches!(self.kind, Kind::Exhausted | Kind::Down | Kind::Closing)
    }

    /// Whether all connections were in use for the whole `acquire_timeout`.
    pub fn is_exhausted(&self) -> bool {
        self.kind == Kind::Exhausted
    }

    /// Whether the database could not be reached.
    pub fn is_down(&self) -> bool {
        self.kind == Kind::Down
    }

    /// Whether the pool is closed.
    pub fn is_closing(&self) -> bool {
        self.kind == Kind::Closing
    }

    /// Whether a handle was used after its request had ended.
    pub fn is_session_closed(&self) -> bool {
        self.kind == Kind::SessionClosed
    }

    /// Whether a handle was used out of turn: beside an open transaction or stream, or after its end.
    pub fn is_out_of_turn(&self) -> bool {
        matches!(self.kind, Kind::NestedOpen | Kind::TransactionOver | Kind::StreamOpen)
    }

    /// Whether the server gave up the transaction for another one's sake.
    pub fn is_conflict(&self) -> bool {
        matches!(self.kind, Kind::Serialization | Kind::Deadlock | Kind::LockTimeout)
    }

    /// Whether a transaction could not be committed because a statement in it had failed and the
    /// server had given it up.
    pub fn is_aborted(&self) -> bool {
        self.kind == Kind::Aborted
    }

    /// Whether the server refused the COMMIT: nothing of the transaction is there. A conflict with
    /// another transaction is not meant: [`is_conflict`](Self::is_conflict).
    pub fn is_commit_failed(&self) -> bool {
        self.kind == Kind::CommitFailed
    }

    /// Whether the connection was lost during COMMIT, or the server did not answer it in time: the
    /// transaction may be committed or not. Never retried, neither here nor by a `Retry-After`.
    pub fn is_outcome_unknown(&self) -> bool {
        self.kind == Kind::OutcomeUnknown
    }

    /// Whether a request could not commit because something of it was not at its end: a nested
    /// transaction still open, or a statement still running in another task.
    pub fn is_unfinished(&self) -> bool {
        matches!(self.kind, Kind::LeftOpen | Kind::StillRunning)
    }

    /// Whether a statement was refused because it controls transactions behind the session's back,
    /// or because MySQL would commit by it.
    pub fn is_refused(&self) -> bool {
        matches!(self.kind, Kind::Control(_) | Kind::CommitsImplicitly)
    }

    /// Whether there is no [`DbSessionLayer`](crate::DbSessionLayer) around the handler.
    pub fn is_missing_layer(&self) -> bool {
        matches!(self.kind, Kind::MissingLayer | Kind::NoSession)
    }

    pub(crate) fn with_source(kind: Kind, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self { kind, source: Some(Arc::new(source)) }
    }

    /// What the failure of a COMMIT means.
    pub(crate) fn of_commit(error: DbErr) -> Self {
        let kind = Self::of(&error).map_or(Kind::CommitFailed, |known| known.kind);
        Self::with_source(kind, error)
    }

    /// What SeaORM said, where that is the cause; else SeaORM's own variant where it has one.
    pub(crate) fn to_db_err(&self) -> DbErr {
        let is_servers = self.is_commit_failed() || self.is_conflict();
        let cause = self.source.as_ref().filter(|_| is_servers).and_then(|source| source.downcast_ref::<DbErr>());
        cause.cloned().unwrap_or_else(|| self.kind.into_db_err())
    }

    /// The words that a client may read.
    pub(crate) fn title(&self) -> &'static str {
        match self.kind {
            Kind::Exhausted => "the service is busy",
            Kind::Down => "the database cannot be reached",
            Kind::Closing => "the service is shutting down",
            Kind::Serialization | Kind::Deadlock | Kind::LockTimeout => "the request met a concurrent one",
            _ => "internal error",
        }
    }
}

impl Kind {
    pub(crate) fn into_db_err(self) -> DbErr {
        match self {
            Self::Exhausted => DbErr::ConnectionAcquire(ConnAcquireErr::Timeout),
            Self::Closing => DbErr::ConnectionAcquire(ConnAcquireErr::ConnectionClosed),
            kind => DbErr::Conn(RuntimeErr::Internal(kind.text().to_owned())),
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Exhausted => {
                "no connection became free within the acquire timeout: raise max_connections, or hold sessions for less time (`.lazy()`, `release()`)"
            }
            Self::Down => "the database cannot be reached: see the log for the cause",
            Self::Closing => "the connection pool is closed",
            Self::SessionClosed => {
                "session closed: its request has ended; for work that outlives the request take `session.pool()` and open a session of its own"
            }
            Self::NestedOpen => {
                "a nested transaction is open: use its handle, and commit or roll it back before you use the one around it"
            }
            Self::TransactionOver => {
                "this transaction has ended: it, or one around it, was committed, rolled back or dropped"
            }
            Self::Aborted => {
                "the server has given this transaction up after a failed statement, and nothing of it is committed: put what may fail into a nested transaction of its own"
            }
            Self::EndedElsewhere => {
                "raw code ended this transaction behind the session's back: leave its BEGIN, COMMIT and ROLLBACK to the session"
            }
            Self::CommitFailed => "the server refused to commit: nothing of the transaction is there",
            Self::OutcomeUnknown => {
                "the connection was lost while COMMIT was under way, or it was not answered in time: the transaction may be committed or not"
            }
            Self::LeftOpen => {
                "a transaction begun by the handler was still open when it answered, so everything was rolled back: commit or drop it before you answer"
            }
            Self::StillRunning => {
                "a statement of this session was still running when the handler answered, so everything was rolled back: await what you spawn"
            }
            Self::RollbackOnly => "this session was set to roll back only: it cannot commit any more",
            Self::NoTransaction => {
                "this session commits each statement by itself: take a `DbTx`, or put `.transaction()` on the layer"
            }
            Self::TransactionBegun => {
                "the session's transaction has begun with other options: set them before its first statement"
            }
            Self::TransactionOpen => "a transaction is open: `commit()` or `rollback()` before you `release()`",
            Self::MustBeTransaction => {
                "the session layer's `on_begin` needs a transaction: a route inside of it cannot do without"
            }
            Self::Control(control) => control.text(),
            Self::CommitsImplicitly => {
                "MySQL and MariaDB commit the open transaction by this statement: run it in a session without one"
            }
            Self::NestedOptions => {
                "isolation level and access mode belong to the outermost transaction: a nested one is a savepoint and cannot change them"
            }
            Self::StreamOpen => {
                "a stream of this session is open: read it to its end or drop it before the next statement"
            }
            Self::ConnectionLost => "the session's connection is lost: this request cannot go on with it",
            Self::WrongDriver => "the session's connection belongs to another driver: check `backend()` first",
            Self::NoRuntime => "there is no tokio runtime here: a session needs one to acquire its connection",
            Self::MissingLayer => {
                "no database session in this request: add `tower_sea_orm::DbSessionLayer` around the route (with the same tag, if the session has one)"
            }
            Self::Disconnected => {
                "the DatabaseConnection is disconnected: connect it before you build a DbSessionLayer or SessionPool"
            }
            Self::DriverNotEnabled(_) => "the DatabaseConnection's driver is not built into tower-sea-orm",
            Self::InvalidReserve => {
                "`reserve` leaves no connection for sessions: it must be smaller than max_connections"
            }
            Self::CannotClose => {
                "`on_acquire` closes a connection after its request, which an in-memory SQLite database or a mock does not survive: use `on_begin`"
            }
            Self::NothingToRollBack => {
                "a mock or proxy has no transaction to roll back: a test on one needs no `TestPool`"
            }
            Self::NoSession => {
                "a `TransactionLayer` found no database session in the request: put a `tower_sea_orm::DbSessionLayer` (with the same tag) around it"
            }
            Self::Serialization => "the transaction could not be serialized with a concurrent one: run it again",
            Self::Deadlock => "the transaction lost a deadlock: run it again",
            Self::LockTimeout => "the statement waited too long for a lock: run the transaction again",
        }
    }
}

impl Control {
    /// What to use instead.
    fn text(self) -> &'static str {
        match self {
            Self::Begin => {
                "raw BEGIN is refused: use `begin()`, `transaction_async()` or a `DbTx`, so that the session knows of the transaction"
            }
            Self::Commit => {
                "raw COMMIT is refused: use `commit()` of the session or of its transaction, which says whether it worked"
            }
            Self::Rollback => "raw ROLLBACK is refused: use `rollback()` of the session or of its transaction",
            Self::Savepoint => {
                "raw SAVEPOINT, RELEASE and ROLLBACK TO are refused: use `begin()` on the transaction, then `commit()` or `rollback()` of what it returns"
            }
            Self::SetTransaction => {
                "this setting would change transactions behind the session's back: use `begin_with_options()`, `tx_with()` or the layer's `transaction_with()`"
            }
            Self::TwoPhase => {
                "two-phase commit in raw SQL is refused: use `with_postgres()` or `with_mysql()` on a session without a transaction"
            }
        }
    }
}

/// So that `?` works on both in code that returns SeaORM's error. [`Error::of`] finds it again.
impl From<Error> for DbErr {
    fn from(error: Error) -> Self {
        error.to_db_err()
    }
}

impl From<Kind> for Error {
    fn from(kind: Kind) -> Self {
        Self { kind, source: None }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.text())?;
        match self.kind {
            Kind::DriverNotEnabled(feature) => write!(f, ": enable its feature `{feature}`"),
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error").field("kind", &self.kind).field("source", &self.source).finish()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| &**source as _)
    }
}

#[cfg(feature = "_sqlx")]
fn retryable(error: &dyn sqlx_core::error::DatabaseError) -> Option<Kind> {
    #[cfg(feature = "sqlx-mysql")]
    if let Some(error) = error.try_downcast_ref::<sea_orm::SqlxMySqlError>() {
        return match error.number() {
            1213 => Some(Kind::Deadlock),
            1205 => Some(Kind::LockTimeout),
            _ => None,
        };
    }
    #[cfg(feature = "sqlx-sqlite")]
    if error.try_downcast_ref::<sea_orm::SqlxSqliteError>().is_some() {
        // The low byte is SQLite's primary result code; 5 is SQLITE_BUSY.
        let code: i32 = error.code()?.parse().ok()?;
        return (code & 0xff == 5).then_some(Kind::LockTimeout);
    }
    match error.code()?.as_ref() {
        "40001" => Some(Kind::Serialization),
        "40P01" => Some(Kind::Deadlock),
        _ => None,
    }
}

/// A random number from 1 to 3.
fn jitter() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish() % 3 + 1
}
