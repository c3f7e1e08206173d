//! Questions about the errors of servers and of connections to them. The codes
//! are in the table of [`Trouble`].

#[cfg(feature = "_sqlx")]
use std::{fmt, sync::Arc};

use sea_orm::{DbBackend, DbErr};
#[cfg(feature = "_sqlx")]
use sea_orm::{RuntimeErr, sqlx};

use super::trouble::Trouble;

/// Returns whether the connection can no longer be used after this error.
///
/// An error of the server or of a value's conversion leaves the protocol in
/// order. Any other error, above all one of input and output, does not.
#[cfg(feature = "_sqlx")]
pub(crate) fn is_fatal(error: &DbErr) -> bool {
    let (DbErr::Conn(RuntimeErr::SqlxError(error))
    | DbErr::Exec(RuntimeErr::SqlxError(error))
    | DbErr::Query(RuntimeErr::SqlxError(error))) = error
    else {
        // Errors of this crate and of SeaORM's own touch no protocol.
        return false;
    };
    match &**error {
        sqlx::Error::Database(error) => return super::trouble::ends_connection(&**error),
        sqlx::Error::Protocol(text) if text.contains(TOO_MANY_VALUES) => return false,
        _ => {}
    }
    // The list is of what is harmless: a variant that a later sqlx adds closes
    // the connection, which is safe (G4).
    !matches!(
        **error,
        sqlx::Error::RowNotFound
            | sqlx::Error::Encode(_)
            | sqlx::Error::Decode(_)
            | sqlx::Error::ColumnDecode { .. }
            | sqlx::Error::TypeNotFound { .. }
            | sqlx::Error::ColumnNotFound(_)
            | sqlx::Error::InvalidSavePointStatement
            | sqlx::Error::BeginFailed
    )
}

/// What sqlx says of a statement with more values than PostgreSQL has numbers
/// for, before it sends anything of it.
// By its words, since the same variant tells of a protocol out of order. Shown
// by `too_few_or_too_many_values_leave_the_connection_in_use`.
#[cfg(feature = "_sqlx")]
const TOO_MANY_VALUES: &str = "too many arguments for query";

/// Returns whether the connection is lost, and not only an answer that belongs
/// to another statement.
pub(crate) fn has_lost_connection(error: &DbErr) -> bool {
    #[cfg(feature = "_sqlx")]
    if let DbErr::Exec(RuntimeErr::SqlxError(error)) | DbErr::Query(RuntimeErr::SqlxError(error)) =
        error
        && matches!(**error, sqlx::Error::Protocol(_))
    {
        // Rows of a COPY, for example.
        return false;
    }
    is_fatal(error)
}

/// Returns whether the server has given up the open transaction, or a part of
/// it, with this error.
pub(crate) fn aborts(backend: DbBackend, error: &DbErr) -> bool {
    match backend {
        // Every error of the server, until a rollback to a savepoint from
        // before. An error of the driver's own has reached no server, and a
        // lost connection is another case.
        DbBackend::Postgres => is_answer(error),
        // The whole transaction is gone, and what follows would autocommit
        // (<https://dev.mysql.com/doc/refman/8.4/en/innodb-error-handling.html>).
        // After a lock's time-out it depends on `innodb_rollback_on_timeout`:
        // there the server is asked.
        DbBackend::MySql => matches!(
            Trouble::of(error),
            Some(Trouble::Serialization | Trouble::Deadlock | Trouble::TransactionEnded)
        ),
        // See
        // <https://sqlite.org/lang_transaction.html#response_to_errors_within_a_transaction>.
        _ => Trouble::of(error) == Some(Trouble::TransactionEnded),
    }
}

/// Returns whether the open transaction is certain to have survived this error.
/// About any other error the server is asked, which costs a round trip.
pub(crate) fn is_harmless(error: &DbErr) -> bool {
    // A list of what is safe: an error that it lacks costs a round trip, not a
    // transaction (H8).
    !is_answer(error) || Trouble::of(error) == Some(Trouble::StatementRefused)
}

/// Returns whether PostgreSQL refused a statement because an earlier one had
/// failed.
pub(crate) fn is_aborted(error: &DbErr) -> bool {
    Trouble::of(error) == Some(Trouble::TransactionAborted)
}

/// Returns whether the server refuses to begin, or to change, a transaction
/// because one is open.
pub(crate) fn is_within_transaction(error: &DbErr) -> bool {
    Trouble::of(error) == Some(Trouble::TransactionOpen)
}

/// The SQLSTATE by which a check on MariaDB says no.
// MariaDB recommends 45000 for errors of one's own
// (<https://mariadb.com/kb/en/signal/>). With another ending, neither the
// server's nor a trigger's error is taken for it.
pub(crate) const FAILED_CHECK: &str = "45TSO";

/// Returns whether a check of this crate has said no: on PostgreSQL, by a
/// division by zero.
#[cfg(feature = "_sqlx")]
pub(crate) fn is_failed_check(error: &DbErr) -> bool {
    let (DbErr::Exec(RuntimeErr::SqlxError(error)) | DbErr::Query(RuntimeErr::SqlxError(error))) =
        error
    else {
        return false;
    };
    // By an error, because that keeps the rest of the text from running: no row
    // has to be read first.
    let code = error.as_database_error().and_then(|error| error.code());
    matches!(code.as_deref(), Some("22012" | FAILED_CHECK))
}

#[cfg(not(feature = "_sqlx"))]
pub(crate) fn is_failed_check(_: &DbErr) -> bool {
    false
}

/// Returns whether the server had closed the connection as idle, and so has
/// never seen the statement: both servers give a connection up before they read
/// its next command.
pub(crate) fn came_too_late(error: &DbErr) -> bool {
    Trouble::of(error) == Some(Trouble::IdleEnded)
}

/// Returns whether the server has ended the connection before it read the
/// command that is answered so: the open transaction, if there was one, is
/// rolled back.
// Both servers give a connection up as idle before they read its next command:
// PostgreSQL looks for a time-out of the last moment behind the read, and
// before it acts on it
// (<https://github.com/postgres/postgres/blob/REL_17_STABLE/src/backend/tcop/postgres.c>,
// `PostgresMain`).
pub(crate) fn was_not_read(error: &DbErr) -> bool {
    matches!(
        Trouble::of(error),
        Some(Trouble::IdleEnded | Trouble::TransactionIdle)
    )
}

/// Returns whether a prepared statement is gone, or does not fit its tables any
/// more.
pub(crate) fn is_stale(error: &DbErr) -> bool {
    Trouble::of(error) == Some(Trouble::StalePlan)
}

/// Returns whether a stale plan was that of the statement itself, and not of
/// one in a function that it called.
pub(crate) fn has_not_run(error: &DbErr) -> bool {
    #[cfg(feature = "sqlx-postgres")]
    if let DbErr::Exec(RuntimeErr::SqlxError(error)) | DbErr::Query(RuntimeErr::SqlxError(error)) =
        error
    {
        let error = error
            .as_database_error()
            .and_then(|error| error.try_downcast_ref::<sea_orm::SqlxPostgresError>());
        // PostgreSQL names the function around a statement there
        // (<https://www.postgresql.org/docs/current/protocol-error-fields.html>).
        // With one, the statement has begun to run, and must not run again.
        return error.is_some_and(|error| error.r#where().is_none());
    }
    let _ = error;
    false
}

/// Returns whether a write was refused because the server or the transaction
/// takes none.
pub(crate) fn is_read_only(error: &DbErr) -> bool {
    Trouble::of(error) == Some(Trouble::ReadOnly)
}

/// Returns whether Galera takes no writes because the node has no quorum.
pub(crate) fn is_without_quorum(error: &DbErr) -> bool {
    Trouble::of(error) == Some(Trouble::NoQuorum)
}

/// Returns whether a COMMIT has failed in a way that may leave its transaction
/// committed.
pub(crate) fn is_commit_interrupted(error: &DbErr) -> bool {
    Trouble::of(error) == Some(Trouble::CommitInterrupted)
}

/// Returns whether the server has ended the connection for what the session
/// did, or did not do, in its transaction.
pub(crate) fn is_overdue(error: &DbErr) -> bool {
    matches!(
        Trouble::of(error),
        Some(Trouble::TransactionIdle | Trouble::TransactionOverdue)
    )
}

/// Returns whether a new connection may succeed soon, because the server is
/// being started.
#[cfg(feature = "config")]
pub(crate) fn is_starting_up(error: &DbErr) -> bool {
    Trouble::of(error) == Some(Trouble::StartingUp)
}

/// Returns whether an error has the code of a connection's end, which stored
/// code may have raised as well. Only MySQL's errors do not say which it is.
pub(crate) fn may_be_raised(error: &DbErr) -> bool {
    #[cfg(feature = "sqlx-mysql")]
    return super::trouble::may_be_raised(error);
    #[cfg(not(feature = "sqlx-mysql"))]
    {
        let _ = error;
        false
    }
}

/// The error of a connection that has answered after it.
pub(crate) fn raised(error: DbErr) -> DbErr {
    #[cfg(feature = "sqlx-mysql")]
    return super::trouble::raised(error);
    #[cfg(not(feature = "sqlx-mysql"))]
    error
}

/// Returns the server's own code of an error: the SQLSTATE, or SQLite's result
/// code.
#[cfg(feature = "_sqlx")]
pub(crate) fn code(error: &DbErr) -> Option<String> {
    match error {
        DbErr::Exec(RuntimeErr::SqlxError(error)) | DbErr::Query(RuntimeErr::SqlxError(error)) => {
            Some(error.as_database_error()?.code()?.into_owned())
        }
        _ => None,
    }
}

#[cfg(not(feature = "_sqlx"))]
pub(crate) fn code(_: &DbErr) -> Option<String> {
    None
}

/// Returns whether a connection that was there is lost with this error, for
/// which there is no code.
#[cfg(feature = "_sqlx")]
pub(crate) fn is_lost(error: &DbErr) -> bool {
    use std::io::ErrorKind::{
        BrokenPipe, ConnectionAborted, ConnectionReset, TimedOut, UnexpectedEof,
    };
    match error {
        DbErr::Exec(RuntimeErr::SqlxError(cause)) | DbErr::Query(RuntimeErr::SqlxError(cause)) => {
            // A list, unlike that of `is_fatal`: an error of a pool's, or of
            // its settings, is none of a connection's.
            use sqlx::Error::{Database, Io, Protocol, Tls, WorkerCrashed};
            let is_its = matches!(
                **cause,
                Database(_) | Io(_) | Protocol(_) | Tls(_) | WorkerCrashed
            );
            is_its && is_fatal(error)
        }
        // Of a ping, or of what was left unread. A connection that could not be
        // opened has such an error as well, and was never there.
        DbErr::Conn(RuntimeErr::SqlxError(cause)) => matches!(
            &**cause,
            sqlx::Error::Io(error) if matches!(
                error.kind(),
                BrokenPipe | ConnectionAborted | ConnectionReset | TimedOut | UnexpectedEof
            )
        ),
        _ => false,
    }
}

#[cfg(not(feature = "_sqlx"))]
pub(crate) fn is_lost(_: &DbErr) -> bool {
    false
}

/// Returns whether a statement was answered with this error.
#[cfg(feature = "_sqlx")]
fn is_answer(error: &DbErr) -> bool {
    matches!(
        error,
        DbErr::Exec(RuntimeErr::SqlxError(error)) | DbErr::Query(RuntimeErr::SqlxError(error))
            if error.as_database_error().is_some()
    )
}

/// The error of a statement whose answer the network has lost.
#[cfg(feature = "_sqlx")]
pub(crate) fn unanswered() -> DbErr {
    // As sqlx reports a broken network: then nothing takes the connection for a
    // good one.
    let error = std::io::Error::new(std::io::ErrorKind::TimedOut, Unanswered);
    DbErr::Conn(RuntimeErr::SqlxError(Arc::new(sqlx::Error::Io(error))))
}

/// Whether it is the error of such a statement.
#[cfg(feature = "_sqlx")]
pub(crate) fn is_unanswered(error: &DbErr) -> bool {
    let DbErr::Conn(RuntimeErr::SqlxError(error)) = error else {
        return false;
    };
    matches!(&**error, sqlx::Error::Io(error) if error.get_ref().is_some_and(|inner| inner.is::<Unanswered>()))
}

/// Returns whether the thread that runs a connection to SQLite has died.
#[cfg(feature = "_sqlx")]
pub(crate) fn is_worker_gone(error: &DbErr) -> bool {
    let (DbErr::Conn(RuntimeErr::SqlxError(error))
    | DbErr::Exec(RuntimeErr::SqlxError(error))
    | DbErr::Query(RuntimeErr::SqlxError(error))) = error
    else {
        return false;
    };
    matches!(**error, sqlx::Error::WorkerCrashed)
}

#[derive(Debug)]
#[cfg(feature = "_sqlx")]
struct Unanswered;

#[cfg(feature = "_sqlx")]
impl fmt::Display for Unanswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the server's answer was lost in the network")
    }
}

#[cfg(feature = "_sqlx")]
impl std::error::Error for Unanswered {}

#[cfg(not(feature = "_sqlx"))]
pub(crate) fn unanswered() -> DbErr {
    super::Kind::ConnectionLost.into_db_err()
}

#[cfg(not(feature = "_sqlx"))]
pub(crate) fn is_unanswered(_: &DbErr) -> bool {
    false
}

#[cfg(not(feature = "_sqlx"))]
pub(crate) fn is_worker_gone(_: &DbErr) -> bool {
    false
}

#[cfg(not(feature = "_sqlx"))]
pub(crate) fn is_fatal(_: &DbErr) -> bool {
    false
}

#[cfg(not(feature = "_sqlx"))]
fn is_answer(_: &DbErr) -> bool {
    false
}
