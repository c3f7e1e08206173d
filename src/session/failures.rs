//! [`Failures`]: the errors that the layer answers for if the handler gives up.

use crate::error::Error;

/// Failures of a session that nothing has made good yet.
#[derive(Default)]
pub(super) struct Failures {
    /// No connection was there, and none has come since.
    acquire: Option<Error>,
    /// A transaction was to begin on that connection.
    is_transaction_missing: bool,
    /// The session's transaction did not begin, or was gone with its first statement.
    not_begun: Option<Box<Error>>,
    passing: Option<Box<Passing>>,
}

/// An error that the same request may not meet again: a conflict, a time-out.
struct Passing {
    error: Error,
    /// The number of transactions that were open around the statement.
    depth: usize,
    /// The transaction that it spoilt was rolled back. If the handler goes on after that, it is made good.
    is_undone: bool,
}

impl Failures {
    pub(super) fn current(&self) -> Option<&Error> {
        let passing = self.passing.as_ref().map(|passing| &passing.error);
        self.acquire.as_ref().or(passing)
    }

    /// Returns why a transaction never began that the handler wanted.
    pub(super) fn missing_transaction(&self) -> Option<&Error> {
        self.acquire
            .as_ref()
            .filter(|_| self.is_transaction_missing)
            .or(self.not_begun.as_deref())
    }

    pub(super) fn not_acquired(&mut self, error: Error, for_transaction: bool) {
        self.acquire.get_or_insert(error);
        self.is_transaction_missing |= for_transaction;
    }

    /// A connection is there: the handler has tried again.
    pub(super) fn acquired(&mut self) {
        self.acquire = None;
        self.is_transaction_missing = false;
    }

    pub(super) fn not_begun(&mut self, error: Error) {
        self.not_begun.get_or_insert_with(|| Box::new(error));
    }

    /// The session's transaction has begun: the handler has tried again.
    pub(super) fn begun(&mut self) {
        self.not_begun = None;
    }

    /// The handler has rolled back what it could not do.
    pub(super) fn rolled_back(&mut self) {
        self.is_transaction_missing = false;
        self.not_begun = None;
    }

    /// The session's connection was taken away.
    pub(super) fn cut(&mut self, reason: Error) {
        self.acquire = Some(reason);
    }

    pub(super) fn may_pass(&mut self, error: Error, depth: usize, is_undone: bool) {
        if self.passing.as_ref().is_none_or(|known| known.is_undone) {
            self.passing = Some(Box::new(Passing {
                error,
                depth,
                is_undone,
            }));
        }
    }

    /// The transactions beyond `depth` were rolled back.
    pub(super) fn rolled_back_to(&mut self, depth: usize) {
        if let Some(passing) = &mut self.passing {
            passing.is_undone |= passing.depth > depth;
        }
    }

    /// A statement or a COMMIT has succeeded, or the handler has rolled back to a savepoint: what was undone
    /// before is made good.
    pub(super) fn went_on(&mut self) {
        if self
            .passing
            .as_ref()
            .is_some_and(|passing| passing.is_undone)
        {
            self.passing = None;
        }
    }
}
