//! [`Trouble`]: the meaning of a server's error. One table has the codes of all servers.

#[cfg(feature = "sqlx-mysql")]
mod raised;
#[cfg(feature = "_sqlx")]
mod read;
#[cfg(feature = "_sqlx")]
mod table;
#[cfg(all(test, feature = "_sqlx"))]
mod tests;

#[cfg(feature = "sqlx-mysql")]
pub(crate) use self::raised::{may_be_raised, raised};
#[cfg(feature = "_sqlx")]
pub(crate) use self::read::ends_connection;
#[cfg(feature = "sqlx-mysql")]
pub(crate) use self::read::is_no_such_process;
use super::Kind;

/// The meaning of an error, on every server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(
    not(feature = "_sqlx"),
    allow(dead_code, reason = "a server needs a driver")
)]
// By meaning and not by code, so that what follows from it is decided once for
// all servers.
pub(crate) enum Trouble {
    /// The transaction cannot be serialized with a concurrent one.
    Serialization,
    Deadlock,
    /// A lock was not there in time, or not at once for a statement that does
    /// not wait.
    LockNotAvailable,
    /// The statement ran for longer than the server allows.
    StatementTimeout,
    /// The server, or the transaction, takes no writes.
    ReadOnly,
    /// The cluster's node has lost the others, and takes no writes.
    NoQuorum,
    /// COMMIT, or a statement that commits by itself, has failed half-way:
    /// whether it is committed is not known.
    CommitInterrupted,
    TooManyConnections,
    /// The server is being started or stopped, and takes no log-ins.
    StartingUp,
    LogInRefused,
    /// The server has ended a connection that was idle for long: it never saw
    /// the statement that is answered so.
    IdleEnded,
    /// The same of a connection with an open transaction.
    TransactionIdle,
    /// The server ends the connection of a transaction that was open for longer
    /// than it allows.
    TransactionOverdue,
    /// The server ends the connection.
    ConnectionEnded,
    /// An earlier statement has failed, and the transaction takes no other.
    TransactionAborted,
    /// All of the open transaction is gone, and what follows would commit by
    /// itself.
    TransactionEnded,
    /// The statement was refused for what it says or for its rows, and nothing
    /// beside it is lost.
    StatementRefused,
    /// A transaction is open, and no other can begin.
    TransactionOpen,
    /// The process that was to be stopped does not exist.
    NoSuchProcess,
    /// A prepared statement is gone, or does not fit its tables any more. It
    /// did not run.
    StalePlan,
}

impl Trouble {
    /// The crate's kind for it; `None` where the server's words say more.
    pub(super) fn kind(self) -> Option<Kind> {
        match self {
            Self::Serialization => Some(Kind::Serialization),
            Self::Deadlock => Some(Kind::Deadlock),
            Self::LockNotAvailable => Some(Kind::LockNotAvailable),
            Self::StatementTimeout => Some(Kind::StatementTimeout),
            // One to the client: in both cases another server takes the write,
            // or soon will (G18).
            Self::ReadOnly | Self::NoQuorum => Some(Kind::ReadOnly),
            Self::CommitInterrupted => Some(Kind::OutcomeUnknown),
            Self::TooManyConnections => Some(Kind::ServerFull),
            Self::StartingUp => Some(Kind::Down),
            // One to the session, which has lost its connection. Whether its
            // statement has run differs: `came_too_late` asks for that.
            Self::IdleEnded
            | Self::TransactionIdle
            | Self::TransactionOverdue
            | Self::ConnectionEnded => Some(Kind::ConnectionLost),
            Self::TransactionAborted => Some(Kind::Aborted),
            Self::StalePlan => Some(Kind::StalePlan),
            // The crate says nothing better than the server does.
            Self::LogInRefused
            | Self::TransactionEnded
            | Self::StatementRefused
            | Self::TransactionOpen
            | Self::NoSuchProcess => None,
        }
    }

    /// Without a driver, there is no server's error.
    #[cfg(not(feature = "_sqlx"))]
    pub(crate) fn of(_: &sea_orm::DbErr) -> Option<Self> {
        None
    }
}
