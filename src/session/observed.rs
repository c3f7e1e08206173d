//! [`Observed`]: a call that observers or the log's subscriber want to know of.

use std::time::{Duration, Instant};

use sea_orm::{DbBackend, DbErr};

use crate::{
    connection::Operation,
    sql::Redacted,
    telemetry::{self, OwnSpan},
};

/// A call that observers or the log's subscriber want to know of.
pub(super) struct Observed {
    started: Instant,
    pub(super) statement: Redacted,
    /// It is the session's own.
    pub(super) is_control: bool,
    /// BEGIN is sent before it.
    pub(super) begins: bool,
    /// Of the statement; disabled if no subscriber wants it.
    span: OwnSpan,
}

impl Observed {
    /// Begins to observe a call in a session with `depth` open transactions;
    /// `None` if it sends no statement.
    // In a box, since mostly nothing wants to know and each call has room for
    // it.
    pub(super) fn begin(
        operation: &Operation,
        depth: usize,
        session: &OwnSpan,
        backend: DbBackend,
    ) -> Option<Box<Self>> {
        let statement = Redacted::new(name_of(operation, depth)?);
        let span = telemetry::statement_span(session, backend, &statement);
        Some(Box::new(Self {
            started: Instant::now(),
            statement,
            // A closure is the handler's, although it has no text.
            is_control: operation.text().is_none() && !matches!(operation, Operation::Raw(_)),
            begins: false,
            span,
        }))
    }

    /// Notes whether the call begins the session's transaction first.
    pub(super) fn with_begin(mut self: Box<Self>, begins: bool) -> Box<Self> {
        self.begins = begins;
        if begins {
            telemetry::statement_begins(&self.span);
        }
        self
    }

    /// Returns how long the call took, which has ended with `error`.
    pub(super) fn end(&self, error: Option<&DbErr>) -> Duration {
        if let Some(error) = error {
            telemetry::statement_failed(&self.span, error);
        }
        self.started.elapsed()
    }
}

/// Returns the text of what a call sends; `None` if it is no statement.
fn name_of(operation: &Operation, depth: usize) -> Option<&str> {
    let is_nested = depth > 1;
    Some(match operation {
        // sqlx makes a savepoint of each transaction inside another, whatever
        // it was asked for.
        Operation::Begin(_) if depth > 0 => "SAVEPOINT",
        Operation::Begin(_) => "BEGIN",
        Operation::Commit(_) if is_nested => "RELEASE SAVEPOINT",
        Operation::Commit(_) => "COMMIT",
        Operation::Rollback if is_nested => "ROLLBACK TO SAVEPOINT",
        Operation::Rollback => "ROLLBACK",
        Operation::Raw(_) => "raw code",
        operation => operation.text()?,
    })
}
