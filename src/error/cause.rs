//! [`Cause`]: the statement by which a transaction was lost.

use std::fmt;

use sea_orm::DbErr;

/// The first statement that went wrong in a transaction, without its values.
#[derive(Debug, Clone)]
pub(crate) struct Cause {
    pub(crate) statement: String,
    /// The server's answer, unless that was none.
    pub(crate) error: Option<DbErr>,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { statement, error } = self;
        match error {
            Some(error) => write!(f, "`{statement}` failed: {error}"),
            None => write!(f, "`{statement}`"),
        }
    }
}

impl std::error::Error for Cause {}
