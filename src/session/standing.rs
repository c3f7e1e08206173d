//! [`Standing`]: the part of a session's work that is stored, as far as is known; and [`Failures`]: the errors that
//! the layer answers for if the handler gives up.

use sea_orm::DbErr;

use crate::error::{Cause, Error, Kind};

/// The part of a session's work that is stored, as far as is known.
///
/// It decides whether the response may be a success, and whether the request
/// may be sent again: a COMMIT can fail, can take effect without an answer, or
/// can be sent by code that the session does not see.
#[derive(Default)]
pub(super) struct Standing {
    /// Something may stand, whatever happens from here on.
    // Only ever set: a rollback undoes nothing of what was committed before it.
    may_stand: bool,
    /// The failure of a COMMIT that nothing has made good since.
    failure: Option<Error>,
    /// The handler has not heard how its COMMIT ended: only a rollback makes a
    /// failure good.
    is_unheard: bool,
    /// Why the open transaction cannot be committed, for the log.
    // Boxed, because nearly no session has one.
    cause: Option<Box<Cause>>,
}

impl Standing {
    /// Returns whether the request, sent again, could do something twice.
    pub(super) fn may_stand(&self) -> bool {
        self.may_stand
    }

    pub(super) fn is_outcome_unknown(&self) -> bool {
        self.failure.as_ref().is_some_and(Error::is_outcome_unknown)
    }

    pub(super) fn is_ended_elsewhere(&self) -> bool {
        self.failure.as_ref().is_some_and(Error::is_ended_elsewhere)
    }

    /// Returns why the open transaction cannot be committed.
    pub(super) fn cause(&self) -> Option<&Cause> {
        self.cause.as_deref()
    }

    /// Returns the failure of an earlier COMMIT that the handler does not know
    /// of, or that stays unknown.
    pub(super) fn unheard_failure(&self) -> Option<Error> {
        self.failure
            .clone()
            // An unknown outcome counts even if it was heard: no decision of
            // the handler's makes it known.
            .filter(|error| self.is_unheard || error.is_outcome_unknown())
    }

    pub(super) fn failure(&self) -> Option<&Error> {
        self.failure.as_ref()
    }

    /// Takes the failure that the response answers for.
    pub(super) fn take_failure(&mut self) -> Option<Error> {
        self.failure.take()
    }

    /// Something is stored that no rollback undoes.
    pub(super) fn stored(&mut self) {
        self.may_stand = true;
    }

    /// A statement has ended that commits by itself.
    pub(super) fn ran_alone(&mut self, result: Result<(), &DbErr>) {
        // Also after an error: a table without transactions keeps the rows
        // before it.
        self.may_stand |= !result.is_err_and(has_not_run);
    }

    /// A COMMIT of the handler's was sent.
    pub(super) fn commit_sent(&mut self) {
        // Until `heard`: the future that waits for the answer may be dropped at
        // any time.
        self.is_unheard = true;
    }

    /// The handler has heard how its COMMIT ended.
    pub(super) fn heard(&mut self, is_outcome_unknown: bool) {
        self.is_unheard = false;
        if is_outcome_unknown {
            // The handler has this error already, so it stays, even if the
            // server's answer comes after all.
            self.failure = Some(Kind::OutcomeUnknown.into());
        }
    }

    /// The outermost transaction is committed.
    pub(super) fn committed(&mut self) {
        self.may_stand = true;
        // The handler has tried again, and it worked. An unknown outcome stays
        // what it is, whatever comes after it. Shown by
        // `an_unknown_outcome_stays_unknown_if_the_answer_comes_late`.
        self.failure = self.failure.take().filter(Error::is_outcome_unknown);
        self.is_unheard = false;
    }

    /// The session's transaction is not committed, or may not be.
    pub(super) fn not_committed(&mut self, error: Error, is_unheard: bool) {
        self.failure = Some(error);
        // Not cleared by a failure that was heard: an earlier one may not have
        // been.
        self.is_unheard |= is_unheard;
    }

    /// A COMMIT was lost, together with its connection.
    pub(super) fn commit_lost(&mut self) {
        self.may_stand = true;
        self.failure = Some(Kind::OutcomeUnknown.into());
    }

    /// The handler has rolled back, which makes good all but what something
    /// else has committed.
    pub(super) fn rolled_back(&mut self) {
        // A ROLLBACK does not reach what stored code has committed, and the
        // response must say so (G7).
        self.failure = self.failure.take().filter(Error::is_ended_elsewhere);
        self.is_unheard = false;
    }

    /// Something else has ended the transaction, in which `statement` was the
    /// last one.
    pub(super) fn ended_elsewhere(&mut self, statement: String) {
        let cause = Cause {
            statement,
            error: None,
        };
        let error = Error::from(Kind::EndedElsewhere).because(Some(&cause));
        // By a COMMIT or a ROLLBACK, and nothing shows which: neither a success
        // nor a rollback may be claimed. Shown by
        // `a_commit_by_stored_code_is_not_reported_as_rolled_back`.
        self.may_stand = true;
        self.not_committed(error, true);
        self.cause = Some(Box::new(cause));
    }

    /// Keeps the first failure of a transaction that it has made impossible to
    /// commit.
    pub(super) fn note_cause(
        &mut self,
        has_failed: bool,
        error: Option<&DbErr>,
        statement: impl FnOnce() -> String,
    ) {
        if !has_failed {
            // Rolled back to a savepoint, or begun anew.
            self.cause = None;
        } else if let (None, Some(error)) = (&self.cause, error) {
            self.cause = Some(Box::new(Cause {
                statement: statement(),
                error: Some(error.clone()),
            }));
        }
    }
}

/// Returns whether a statement that failed has certainly left nothing behind.
fn has_not_run(error: &DbErr) -> bool {
    // A server refuses these before it does anything. Any other error may come
    // half-way.
    Error::of(error).is_some_and(|known| known.is_read_only() || known.is_stale_plan())
}

/// Failures of a session that nothing has made good yet.
#[derive(Default)]
pub(super) struct Failures {
    /// No connection was there, and none has come since.
    acquire: Option<Error>,
    /// A transaction was to begin on that connection.
    is_transaction_missing: bool,
    /// The session's transaction did not begin, or was gone with its first
    /// statement.
    // These two are boxed for the same reason as `Standing::cause`.
    not_begun: Option<Box<Error>>,
    passing: Option<Box<Passing>>,
}

/// An error that the same request may not meet again: a conflict, a time-out.
struct Passing {
    error: Error,
    /// The number of transactions that were open around the statement.
    depth: usize,
    /// The transaction that it spoilt was rolled back. If the handler goes on
    /// after that, it is made good.
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

    /// Returns whether the session's connection was lost on which it has only
    /// read.
    pub(super) fn is_read_lost(&self) -> bool {
        self.current().is_some_and(Error::is_read_lost)
    }

    pub(super) fn not_acquired(&mut self, error: Error, for_transaction: bool) {
        // The first one says why; later ones are its consequences.
        self.acquire.get_or_insert(error);
        self.is_transaction_missing |= for_transaction;
    }

    /// A connection is there: the handler has tried again.
    pub(super) fn acquired(&mut self) {
        // A transaction that is wanted begins on this one, or fails by itself.
        // Shown by `a_second_try_that_gets_a_connection_is_a_success`.
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
        // The first that counts: a statement after it fails because of it.
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
            // Not forgotten yet: a handler that rolls back and gives up means
            // this error by its 5xx.
            passing.is_undone |= passing.depth > depth;
        }
    }

    /// A statement or a COMMIT has succeeded, or the handler has rolled back to
    /// a savepoint: what was undone before is made good.
    pub(super) fn went_on(&mut self) {
        // A 5xx that comes after this is about something else, and keeps its
        // own body.
        if self
            .passing
            .as_ref()
            .is_some_and(|passing| passing.is_undone)
        {
            self.passing = None;
        }
    }
}
