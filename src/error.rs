//! [`Error`]: what went wrong, as questions to ask.

use std::{fmt, sync::Arc, time::Duration};

use http::StatusCode;
use sea_orm::{ConnAcquireErr, DbErr, RuntimeErr};

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
    NestedOptions,
    StreamOpen,
    ConnectionLost,
    WrongDriver,
    NoRuntime,
    MissingLayer,
    Disconnected,
    DriverNotEnabled(&'static str),
    InvalidReserve,
    Serialization,
    Deadlock,
    LockTimeout,
}

/// Every kind that can stand in a [`DbErr`] as text.
const IN_DB_ERR: [Kind; 10] = [
    Kind::Down,
    Kind::SessionClosed,
    Kind::NestedOpen,
    Kind::TransactionOver,
    Kind::Aborted,
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

    /// Whether there is no [`DbSessionLayer`](crate::DbSessionLayer) around the handler.
    pub fn is_missing_layer(&self) -> bool {
        self.kind == Kind::MissingLayer
    }

    pub(crate) fn with_source(kind: Kind, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self { kind, source: Some(Arc::new(source)) }
    }

    /// SeaORM's own variant where it has one.
    pub(crate) fn to_db_err(&self) -> DbErr {
        self.kind.into_db_err()
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

    fn text(&self) -> &'static str {
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
            Self::Serialization => "the transaction could not be serialized with a concurrent one: run it again",
            Self::Deadlock => "the transaction lost a deadlock: run it again",
            Self::LockTimeout => "the statement waited too long for a lock: run the transaction again",
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
