//! Finding a server's error in the table.

use sea_orm::{DbErr, RuntimeErr};
use sqlx_core::error::DatabaseError;

#[cfg(feature = "sqlx-mysql")]
use super::raised::Raised;
use super::{
    Trouble,
    table::{Mark, Row, Says, TABLE},
};

impl Trouble {
    /// Finds the meaning of `error`, if a server said it and the table has it.
    pub(crate) fn of(error: &DbErr) -> Option<Self> {
        Self::of_database(database_error(error)?)
    }

    fn of_database(error: &dyn DatabaseError) -> Option<Self> {
        // From the first row to the last: only failures come here, and prefixes
        // and marks fit no map.
        TABLE
            .iter()
            .find(|row| row.fits(error))
            .map(|row| row.trouble)
    }
}

/// The error in the server's words.
fn database_error(error: &DbErr) -> Option<&dyn DatabaseError> {
    match error {
        DbErr::Conn(RuntimeErr::SqlxError(error))
        | DbErr::Exec(RuntimeErr::SqlxError(error))
        | DbErr::Query(RuntimeErr::SqlxError(error)) => error.as_database_error(),
        _ => None,
    }
}

/// Returns whether the server takes nothing more on the connection after this
/// error.
// A connection that is kept after one of these costs the next session its first
// statement (G4).
pub(crate) fn ends_connection(error: &dyn DatabaseError) -> bool {
    is_farewell(error)
        || matches!(
            Trouble::of_database(error),
            Some(
                Trouble::IdleEnded
                    | Trouble::TransactionIdle
                    | Trouble::TransactionOverdue
                    | Trouble::ConnectionEnded
                    | Trouble::StartingUp
            )
        )
}

/// Returns whether the process that was to be stopped does not exist any more.
#[cfg(feature = "sqlx-mysql")]
pub(crate) fn is_no_such_process(error: &dyn DatabaseError) -> bool {
    Trouble::of_database(error) == Some(Trouble::NoSuchProcess)
}

/// Returns whether PostgreSQL says so by the error's severity.
#[cfg(feature = "sqlx-postgres")]
fn is_farewell(error: &dyn DatabaseError) -> bool {
    // Not by a list of codes: an extension may end a session with any of them
    // (<https://www.postgresql.org/docs/current/runtime-config-logging.html#RUNTIME-CONFIG-SEVERITY-LEVELS>).
    use sea_orm::sqlx::postgres::PgSeverity::{Fatal, Panic};
    let error = error.try_downcast_ref::<sea_orm::SqlxPostgresError>();
    error.is_some_and(|error| matches!(error.severity(), Fatal | Panic))
}

#[cfg(not(feature = "sqlx-postgres"))]
fn is_farewell(_: &dyn DatabaseError) -> bool {
    false
}

/// Returns whether PostgreSQL says that the session goes on. A pooler that
/// gives no severity says nothing.
#[cfg(feature = "sqlx-postgres")]
fn is_plain(error: &dyn DatabaseError) -> bool {
    use sea_orm::sqlx::postgres::PgSeverity::Error;
    let error = error.try_downcast_ref::<sea_orm::SqlxPostgresError>();
    error.is_some_and(|error| matches!(error.severity(), Error))
}

#[cfg(not(feature = "sqlx-postgres"))]
fn is_plain(_: &dyn DatabaseError) -> bool {
    false
}

impl Row {
    fn fits(&self, error: &dyn DatabaseError) -> bool {
        #[cfg(feature = "sqlx-mysql")]
        if let Some(said) = error.try_downcast_ref::<sea_orm::SqlxMySqlError>() {
            // By its number: the SQLSTATE of many of these is the general
            // HY000.
            return self.mysql.has(|code| *code == said.number(), error);
        }
        #[cfg(feature = "sqlx-mysql")]
        if error.try_downcast_ref::<Raised>().is_some() {
            return false;
        }
        let Some(said) = error.code() else {
            return false;
        };
        #[cfg(feature = "sqlx-sqlite")]
        if error
            .try_downcast_ref::<sea_orm::SqlxSqliteError>()
            .is_some()
        {
            // Extended codes have the primary one in their low byte.
            let said: i32 = said.parse().unwrap_or_default();
            return self
                .sqlite
                .has(|code| [said, said & 0xff].contains(code), error);
        }
        // The first two characters are the class, which later versions add
        // codes to
        // (<https://www.postgresql.org/docs/current/errcodes-appendix.html>).
        self.postgres.has(|code| said.starts_with(code), error)
    }
}

impl<Code> Says<Code> {
    fn has(&self, is_code: impl Fn(&Code) -> bool, error: &dyn DatabaseError) -> bool {
        match self {
            Self::These(codes) => codes
                .iter()
                .any(|(code, mark)| is_code(code) && mark.is_on(error)),
            Self::Nothing(_) => false,
        }
    }
}

impl Mark {
    fn is_on(self, error: &dyn DatabaseError) -> bool {
        match self {
            Self::Any => true,
            // Anywhere in the message: names and options stand around it.
            Self::With(words) => error.message().contains(words),
            Self::Is(texts) => texts.contains(&error.message()),
            Self::From(routine) => reported_by(error) == Some(routine),
            Self::Farewell => !is_plain(error),
        }
    }
}

#[cfg(feature = "sqlx-postgres")]
fn reported_by(error: &dyn DatabaseError) -> Option<&str> {
    error
        .try_downcast_ref::<sea_orm::SqlxPostgresError>()?
        .routine()
}

#[cfg(not(feature = "sqlx-postgres"))]
fn reported_by(_: &dyn DatabaseError) -> Option<&str> {
    None
}
