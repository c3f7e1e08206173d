//! [`Raised`]: a code of MySQL's for the end of a connection, of one that has
//! gone on.

use std::{borrow::Cow, error::Error, fmt, sync::Arc};

use sea_orm::{DbErr, RuntimeErr, SqlxMySqlError};
use sqlx_core::error::{DatabaseError, Error as SqlxError, ErrorKind};

use super::read::ends_connection;

/// An error that has the code of a connection's end, and was not one: a stored
/// program may raise any code by SIGNAL.
// Of a type of its own, since MySQL's errors have no severity: nothing else in
// it says that the server goes on. It says the same as the server's.
#[derive(Debug)]
pub(super) struct Raised(Box<dyn DatabaseError>);

/// Returns whether an error has the code of a connection's end, which a stored
/// program may have raised as well.
pub(crate) fn may_be_raised(error: &DbErr) -> bool {
    let (DbErr::Exec(RuntimeErr::SqlxError(error)) | DbErr::Query(RuntimeErr::SqlxError(error))) =
        error
    else {
        return false;
    };
    matches!(&**error, SqlxError::Database(said)
        if said.try_downcast_ref::<SqlxMySqlError>().is_some() && ends_connection(&**said))
}

/// The error of a connection that has answered after it.
pub(crate) fn raised(error: DbErr) -> DbErr {
    match error {
        DbErr::Exec(RuntimeErr::SqlxError(error)) => {
            DbErr::Exec(RuntimeErr::SqlxError(wrapped(error)))
        }
        DbErr::Query(RuntimeErr::SqlxError(error)) => {
            DbErr::Query(RuntimeErr::SqlxError(wrapped(error)))
        }
        error => error,
    }
}

fn wrapped(error: Arc<SqlxError>) -> Arc<SqlxError> {
    // Nothing else has the error yet.
    match Arc::try_unwrap(error) {
        Ok(SqlxError::Database(said)) => Arc::new(SqlxError::Database(Box::new(Raised(said)))),
        Ok(error) => Arc::new(error),
        Err(error) => error,
    }
}

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for Raised {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        // The server's own, for those who ask for its number.
        Some(self.0.as_error())
    }
}

impl DatabaseError for Raised {
    fn message(&self) -> &str {
        self.0.message()
    }

    fn code(&self) -> Option<Cow<'_, str>> {
        self.0.code()
    }

    fn as_error(&self) -> &(dyn Error + Send + Sync + 'static) {
        self
    }

    fn as_error_mut(&mut self) -> &mut (dyn Error + Send + Sync + 'static) {
        self
    }

    fn into_error(self: Box<Self>) -> Box<dyn Error + Send + Sync + 'static> {
        self
    }

    fn kind(&self) -> ErrorKind {
        self.0.kind()
    }
}
