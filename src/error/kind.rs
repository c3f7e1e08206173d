//! [`Kind`]: what can go wrong, and the words for it.

use sea_orm::{ConnAcquireErr, DbErr, RuntimeErr};

use crate::sql::TransactionControl;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(dead_code)] // each driver has its own conflicts
pub(crate) enum Kind {
    Exhausted,
    Crowded,
    Down,
    Closing,
    SessionClosed,
    Reclaimed,
    Unread,
    PoolDeadlock,
    NestedOpen,
    TransactionOver,
    Aborted,
    EndedElsewhere,
    LeftOpenByCode,
    CommitFailed,
    OutcomeUnknown,
    LeftOpen,
    StillRunning,
    RollbackOnly,
    NoTransaction,
    TransactionBegun,
    InUse,
    NoEnd,
    OtherPool(&'static str),
    TransactionOpen,
    MustBeTransaction,
    Control(TransactionControl),
    CommitsImplicitly,
    NestedOptions,
    StreamOpen,
    RawRunning,
    ConnectionLost,
    WrongDriver,
    NoRuntime,
    MissingLayer,
    Disconnected,
    DriverNotEnabled(&'static str),
    InvalidReserve,
    InvalidHold,
    CannotClose,
    NothingToRollBack,
    NothingToReset,
    NoSession,
    Serialization,
    Deadlock,
    LockNotAvailable,
    StatementTimeout,
    ReadOnly,
    ServerFull,
    NotOpened,
    TestConnectionHeld,
    TestEnded,
    StalePlan,
}

/// Every kind that can stand in a [`DbErr`] as text.
pub(super) const IN_DB_ERR: [Kind; 35] = [
    Kind::Down,
    Kind::SessionClosed,
    Kind::Reclaimed,
    Kind::Unread,
    Kind::PoolDeadlock,
    Kind::NestedOpen,
    Kind::TransactionOver,
    Kind::Aborted,
    Kind::EndedElsewhere,
    Kind::LeftOpenByCode,
    Kind::CommitFailed,
    Kind::OutcomeUnknown,
    Kind::LeftOpen,
    Kind::StillRunning,
    Kind::RollbackOnly,
    Kind::NoTransaction,
    Kind::TransactionBegun,
    Kind::InUse,
    Kind::NoEnd,
    Kind::TransactionOpen,
    Kind::MustBeTransaction,
    Kind::Control(TransactionControl::Begin),
    Kind::Control(TransactionControl::Commit),
    Kind::Control(TransactionControl::Rollback),
    Kind::Control(TransactionControl::Savepoint),
    Kind::Control(TransactionControl::SetTransaction),
    Kind::Control(TransactionControl::TwoPhase),
    Kind::CommitsImplicitly,
    Kind::NestedOptions,
    Kind::StreamOpen,
    Kind::RawRunning,
    Kind::ConnectionLost,
    Kind::WrongDriver,
    Kind::NoRuntime,
    Kind::TestEnded,
];

impl Kind {
    pub(crate) fn into_db_err(self) -> DbErr {
        match self {
            Self::Exhausted
            | Self::Crowded
            | Self::ServerFull
            | Self::NotOpened
            | Self::TestConnectionHeld => DbErr::ConnectionAcquire(ConnAcquireErr::Timeout),
            Self::Closing => DbErr::ConnectionAcquire(ConnAcquireErr::ConnectionClosed),
            kind => DbErr::Conn(RuntimeErr::Internal(kind.text().to_owned())),
        }
    }

    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Exhausted => {
                "no connection became free within the acquire timeout: raise max_connections, or hold sessions for less time (`.lazy()`, `release()`)"
            }
            Self::Crowded => {
                "too many others wait for a connection already: raise max_connections or max_pending, or hold sessions for less time (`.lazy()`, `release()`)"
            }
            Self::Down => "the database cannot be reached: see the log for the cause",
            Self::Closing => "the connection pool is closed",
            Self::SessionClosed => {
                "session closed: its request has ended; for work that outlives the request take `session.pool()` and open a session of its own"
            }
            Self::Reclaimed => {
                "the session held its connection for longer than `hold_timeout`, so it was taken away and what was open rolled back: do less in one request, or `release()` it around what needs no database"
            }
            Self::Unread => {
                "the client did not read the response's body for the `body_timeout`, so the session that lived for it was cut off and what was open rolled back"
            }
            Self::PoolDeadlock => {
                "every connection of the pool is held by a request or a job that waits for a second one, so none of them could go on: use one session per request, `release()` it before you take another, or use the plain DatabaseConnection with `reserved_connections`"
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
                "raw or stored code ended this transaction behind the session's back, and what was done until then may stand: leave its BEGIN, COMMIT and ROLLBACK to the session"
            }
            Self::LeftOpenByCode => {
                "stored code left a transaction open, or autocommit off with work to commit, and was rolled back: have it commit what it does"
            }
            Self::CommitFailed => {
                "the server refused to commit: nothing of the transaction is there"
            }
            Self::OutcomeUnknown => {
                "the connection was lost while COMMIT was under way, or it was not answered in time: the transaction may be committed or not"
            }
            Self::LeftOpen => {
                "a transaction begun by the handler was still open when it answered, so everything was rolled back: commit or drop it before you answer"
            }
            Self::StillRunning => {
                "a statement of this session was still running when the handler answered, so everything was rolled back: await what you spawn"
            }
            Self::RollbackOnly => {
                "this session was set to roll back only: it cannot commit any more"
            }
            Self::NoTransaction => {
                "this session commits each statement by itself: take a `DbTx`, or put `.transaction()` on the layer"
            }
            Self::TransactionBegun => {
                "the session's transaction has begun with other options: set them before its first statement"
            }
            Self::InUse => {
                "the session has used its connection already, so a layer's `on_acquire` comes too late: put that layer outside of what runs statements"
            }
            Self::NoEnd => {
                "this session belongs to no request, so nothing would end the transaction that a hook waits for: take it from a layer, `pool.transaction()`, or in a test `testing::serve`"
            }
            Self::OtherPool(_) => {
                "the request has a session of another pool already: give one of the two `DbSessionLayer`s a tag of its own"
            }
            Self::TransactionOpen => {
                "a transaction is open: `commit()` or `rollback()` before you `release()`"
            }
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
            Self::RawRunning => {
                "a raw closure of this session has its connection: use that one in the closure, and the session again when the closure has ended"
            }
            Self::ConnectionLost => {
                "the session's connection is lost: this request cannot go on with it"
            }
            Self::WrongDriver => {
                "the session's connection belongs to another driver: check `backend()` first"
            }
            Self::NoRuntime => {
                "there is no tokio runtime here: a session needs one to acquire its connection"
            }
            Self::MissingLayer => {
                "no database session in this request: add `tower_sea_orm::DbSessionLayer` around the route (with the same tag, if the session has one)"
            }
            Self::Disconnected => {
                "the DatabaseConnection is disconnected: connect it before you build a DbSessionLayer or SessionPool"
            }
            Self::DriverNotEnabled(_) => {
                "the DatabaseConnection's driver is not built into tower-sea-orm"
            }
            Self::InvalidReserve => {
                "`reserved_connections` leaves no connection for sessions: it must be smaller than max_connections"
            }
            Self::InvalidHold => {
                "`hold_slow_threshold`, `hold_timeout` and `body_timeout` cannot be zero: every session would be over it at once (`Duration::MAX` turns them off)"
            }
            Self::CannotClose => {
                "`on_acquire` closes a connection after its request, which an in-memory SQLite database or a mock does not survive: use `on_begin`"
            }
            Self::NothingToRollBack => {
                "a mock or proxy has no transaction to roll back: a test on one needs no `TestPool`"
            }
            Self::NothingToReset => {
                "`reset` puts back what a session changed of its connection, and a proxy has none: leave it at its default"
            }
            Self::NoSession => {
                "a `TransactionLayer` found no database session in the request: put a `tower_sea_orm::DbSessionLayer` (with the same tag) around it"
            }
            Self::Serialization => {
                "the transaction could not be serialized with a concurrent one: run it again"
            }
            Self::Deadlock => "the transaction lost a deadlock: run it again",
            Self::LockNotAvailable => {
                "the statement did not get a lock in time: run the transaction again"
            }
            Self::StatementTimeout => "the statement ran for longer than the server allows",
            Self::ReadOnly => {
                "the server, or the transaction, is read-only: after a fail-over, a new connection leads to the server that takes writes"
            }
            Self::TestConnectionHeld => {
                "the one connection of this `TestPool` is held by another session: drop the test's own session before the service is called"
            }
            Self::TestEnded => {
                "raw or stored code, or a deadlock, ended the transaction around this `TestPool`, and what was done until then may stand: leave BEGIN, COMMIT and ROLLBACK to the sessions, or test such code on a database of its own"
            }
            Self::ServerFull => {
                "the server takes no more connections: raise its limit, or lower max_connections (every instance of the service has a pool of its own)"
            }
            Self::NotOpened => {
                "no connection could be opened within the acquire timeout, although the server was not seen to be down: raise acquire_timeout or min_connections, or find out why log-ins take so long"
            }
            Self::StalePlan => {
                "a prepared statement of this connection is gone, or does not fit its tables any more: run the transaction again"
            }
        }
    }
}

impl TransactionControl {
    /// What to use instead.
    fn text(self) -> &'static str {
        match self {
            Self::Begin => {
                "raw BEGIN is refused: use `begin()`, `transaction_async()` or a `DbTx`, so that the session knows of the transaction"
            }
            Self::Commit => {
                "raw COMMIT is refused: use `commit()` of the session or of its transaction, which says whether it worked"
            }
            Self::Rollback => {
                "raw ROLLBACK is refused: use `rollback()` of the session or of its transaction"
            }
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
