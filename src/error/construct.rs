//! Errors made from a kind or from one of SeaORM's, and back, and [`Cause`]:
//! the statement by which a transaction was lost.

use std::{fmt, sync::Arc};

use sea_orm::DbErr;

use super::{Error, Kind, server};

impl Error {
    pub(crate) fn with_source(
        kind: Kind,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Self {
            kind,
            source: Some(Arc::new(source)),
        }
    }

    /// Names the statement by which a transaction or its connection was lost,
    /// for the log.
    pub(crate) fn because(mut self, cause: Option<&Cause>) -> Self {
        // Only these are consequences: any other error is the cause itself.
        if let Some(cause) = cause.filter(|_| self.is_aborted() || self.is_connection_lost()) {
            self.source = Some(Arc::new(cause.clone()));
        }
        self
    }

    /// The meaning of a failed COMMIT.
    pub(crate) fn of_commit(error: DbErr) -> Self {
        // A conflict stays one: SERIALIZABLE may fail at COMMIT itself
        // (<https://www.postgresql.org/docs/current/transaction-iso.html#XACT-SERIALIZABLE>),
        // and so does Galera (H36). A retry layer has to see that. To be told
        // instead of an answer that the connection has ended is a refusal.
        let known = Self::of(&error).filter(|_| !server::was_not_read(&error));
        let kind = known.map_or(Kind::CommitFailed, |known| known.kind);
        Self::with_source(kind, error)
    }

    /// The meaning of a transaction that did not begin, or was gone with its
    /// first statement.
    pub(crate) fn of_begin(error: DbErr) -> Self {
        // `Aborted` says that nothing was committed, which is true whatever
        // kept it from beginning.
        let kind = Self::of(&error).map_or(Kind::Aborted, |known| known.kind);
        Self::with_source(kind, error)
    }

    /// SeaORM's error, where that is the cause; else SeaORM's variant where it
    /// has one.
    pub(crate) fn to_db_err(&self) -> DbErr {
        // Not for the crate's own failures, whose kind is their text:
        // `Error::of` has to find it again.
        let is_servers = self.is_commit_failed()
            || self.is_conflict()
            || matches!(
                self.kind,
                Kind::StatementTimeout | Kind::ReadOnly | Kind::StalePlan
            );
        // Of those errors SeaORM's own says more, to `sql_err()` for example.
        let cause = self
            .source
            .as_ref()
            .filter(|_| is_servers)
            .and_then(|source| source.downcast_ref::<DbErr>());
        cause.cloned().unwrap_or_else(|| self.kind.into_db_err())
    }
}

impl From<Kind> for Error {
    fn from(kind: Kind) -> Self {
        Self { kind, source: None }
    }
}

/// Lets `?` work on both errors in code that returns SeaORM's. [`Error::of`]
/// finds this one again.
impl From<Error> for DbErr {
    fn from(error: Error) -> Self {
        error.to_db_err()
    }
}

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
            // With the server's words: only a log gets this text (G15).
            Some(error) => write!(f, "`{statement}` failed: {error}"),
            None => write!(f, "`{statement}`"),
        }
    }
}

impl std::error::Error for Cause {}
