//! [`Stack`]: the open transactions of a session, and what becomes of them.

use sea_orm::DbErr;

use super::{
    hooks::Hooks,
    standing::{Failures, Standing},
};
use crate::{
    connection::Operation,
    error::{Error, Kind},
};

/// Names a transaction of a session; never used twice.
pub(super) type TransactionId = u64;

/// The session's own transaction, which has no handle.
// No other has this number: they are counted from 1.
const OWN: TransactionId = 0;

/// A user of the connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Caller {
    /// The session itself.
    Session,
    /// A transaction that the handler began.
    Transaction(TransactionId),
    /// The end of the request.
    Settlement,
}

/// The effect of a call on the transactions around it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A statement, which commits by itself if no transaction is open.
    Work,
    /// Opens the session's own transaction, then works in it.
    BeginAndWork,
    Commit,
    Other,
}

/// The transactions of a session: those that are open, the hooks that wait for
/// their ends, and what is known of those that have ended.
#[derive(Default)]
pub(super) struct Stack {
    /// Outermost first.
    // Beside the driver's count, which knows neither handles nor which of them
    // were dropped: SeaORM ends the innermost one whichever asks (H4, H5).
    open: Vec<OpenTransaction>,
    /// Those whose handles were dropped before they began.
    given_up: Vec<TransactionId>,
    // Beside the transactions, because each end of one decides about all three
    // of these, under the same lock.
    pub(super) hooks: Hooks,
    pub(super) standing: Standing,
    pub(super) failures: Failures,
}

struct OpenTransaction {
    id: TransactionId,
    /// Its handle was dropped without an end: rolled back before anything else
    /// happens.
    // Kept until the connection is free: `Drop` cannot wait, and the depth has
    // to agree with the driver's until then.
    is_abandoned: bool,
}

impl Stack {
    /// Returns how many transactions are open, the abandoned ones included.
    pub(super) fn depth(&self) -> usize {
        self.open.len()
    }

    /// Returns how many transactions remain when the abandoned ones are rolled
    /// back.
    pub(super) fn surviving(&self) -> usize {
        // Up to the first one: what is inside an abandoned transaction goes
        // with it.
        let surviving = self.open.iter().take_while(|open| !open.is_abandoned);
        surviving.count()
    }

    /// Returns the user of the innermost transaction that remains when the
    /// abandoned ones are rolled back.
    pub(super) fn innermost(&self) -> Caller {
        let surviving = self.open.iter().take_while(|open| !open.is_abandoned);
        match surviving.last() {
            Some(open) if open.id != OWN => Caller::Transaction(open.id),
            _ => Caller::Session,
        }
    }

    /// Returns whether the session's own transaction has begun.
    pub(super) fn has_begun(&self) -> bool {
        self.open.first().is_some_and(|open| open.id == OWN)
    }

    /// Returns whether a transaction that the handler began is still open and
    /// its handle held.
    pub(super) fn has_left_open(&self) -> bool {
        self.open
            .iter()
            .any(|open| open.id != OWN && !open.is_abandoned)
    }

    /// Returns whether something would be lost with the connection.
    pub(super) fn has_work(&self) -> bool {
        self.open.iter().any(|open| !open.is_abandoned) || self.hooks.is_any_waiting()
    }

    /// Returns how many transactions are open around a statement in the
    /// transaction `id`.
    pub(super) fn depth_of(&self, id: TransactionId) -> Result<usize, Kind> {
        let mut open = self.open.iter();
        let position = open.position(|open| open.id == id && !open.is_abandoned);
        position
            .map(|position| position + 1)
            .ok_or(Kind::TransactionOver)
    }

    /// Returns how many transactions are open around a statement of `caller`,
    /// if that one is innermost.
    pub(super) fn admit(&mut self, caller: Caller) -> Result<usize, Kind> {
        self.drop_abandoned();
        // Only the innermost: SeaORM ends that one whichever handle asks, and a
        // statement of an outer handle would be undone with the inner
        // transaction (G12, H5). Shown by
        // `g12_a_handle_of_the_session_is_refused_while_a_nested_one_is_open`.
        let innermost = self.open.last().map_or(OWN, |open| open.id);
        match caller {
            Caller::Session | Caller::Settlement if innermost == OWN => Ok(self.depth()),
            Caller::Transaction(id) if innermost == id => Ok(self.depth()),
            // The two errors have different remedies: this handle is of no more
            // use, the other one has to wait.
            Caller::Transaction(id) if !self.open.iter().any(|open| open.id == id) => {
                Err(Kind::TransactionOver)
            }
            _ => Err(Kind::NestedOpen),
        }
    }

    /// Opens the session's own transaction.
    pub(super) fn open_own(&mut self) {
        self.open(OWN);
    }

    pub(super) fn open(&mut self, id: TransactionId) {
        self.open.push(OpenTransaction {
            id,
            is_abandoned: false,
        });
    }

    /// Notes that a call is on its way, inside `depth` transactions, and the
    /// transaction that it opens.
    pub(super) fn launched(
        &mut self,
        purpose: Purpose,
        depth: usize,
        opens: Option<TransactionId>,
    ) {
        if purpose == Purpose::Commit && depth <= 1 {
            // A hook that is registered while COMMIT is under way belongs to
            // the next transaction.
            self.hooks.seal();
        }
        // Open before it is sent: dropped meanwhile, its handle finds something
        // to abandon.
        if let Some(transaction) = opens {
            self.open(transaction);
        }
    }

    /// A transaction is not to begin any more: its handle was dropped.
    pub(super) fn give_up(&mut self, id: TransactionId) {
        self.given_up.push(id);
    }

    /// Returns whether a transaction is not to begin any more.
    pub(super) fn has_given_up(&self, id: TransactionId) -> bool {
        self.given_up.contains(&id)
    }

    /// Marks a transaction whose handle was dropped, and those inside it; false
    /// if it is not open.
    pub(super) fn abandon(&mut self, id: TransactionId) -> bool {
        let Some(position) = self.open.iter().position(|open| open.id == id) else {
            return false;
        };
        // Savepoints inside it go with it, whether their handles are held or
        // not.
        for open in &mut self.open[position..] {
            open.is_abandoned = true;
        }
        true
    }

    /// Forgets transactions whose handles are gone; the next call rolls them
    /// back first.
    pub(super) fn drop_abandoned(&mut self) {
        let surviving = self.surviving();
        if surviving < self.depth() {
            self.roll_back_to(surviving);
        }
    }

    /// Ends a transaction, and those inside it, that the driver is not asked
    /// about.
    pub(super) fn close(&mut self, id: TransactionId, is_committed: bool) {
        let Some(position) = self.open.iter().position(|open| open.id == id) else {
            return;
        };
        let is_innermost = position + 1 == self.depth();
        // SeaORM says `Ok` to the COMMIT of a transaction with an open child,
        // and ends the child (H4).
        if is_committed && is_innermost {
            self.open.truncate(position);
            if position == 0 {
                self.hooks.seal();
            }
            self.hooks.committed(position + 1);
        } else {
            self.roll_back_to(position);
        }
    }

    /// Nothing is open any more: what was not committed is, or is about to be,
    /// rolled back.
    pub(super) fn roll_back_all(&mut self) {
        self.roll_back_to(0);
    }

    /// The transactions beyond `depth` were rolled back.
    fn roll_back_to(&mut self, depth: usize) {
        self.open.truncate(depth);
        // These count the depth themselves, and must agree with it before the
        // lock is free.
        self.hooks.rolled_back_to(depth);
        self.failures.rolled_back_to(depth);
    }

    /// Forgets the open transactions, which SeaORM is about to end.
    pub(super) fn forget_open(&mut self) {
        self.open.clear();
    }

    /// The transaction ends without a statement in it, so that no COMMIT is
    /// sent. Its hooks run all the same.
    pub(super) fn nothing_to_commit(&mut self) {
        // As after a COMMIT that was sent: the handler cannot know that there
        // was nothing to send it for.
        self.hooks.seal();
        self.hooks.committed(1);
    }

    /// The innermost transaction is committed.
    pub(super) fn committed(&mut self) {
        let depth = self.depth();
        self.open.pop();
        self.hooks.committed(depth);
        // A released savepoint is stored with the transaction around it, or not
        // at all.
        if depth == 1 {
            self.standing.committed();
        }
    }

    /// The COMMIT of the innermost transaction has failed. One that outlasted
    /// its handler is the response's to answer for, whichever transaction it
    /// was.
    pub(super) fn not_committed(&mut self, error: &DbErr, outlasted_handler: bool) {
        // With the first failure in it, for the log: the server's answer to
        // COMMIT does not repeat that.
        let error = Error::of_commit(error.clone()).because(self.standing.cause());
        let is_outermost = self.depth() == 1;
        let is_own = is_outermost && self.has_begun();
        if is_outermost && error.is_outcome_unknown() {
            // The request must not be sent again, and neither kind of hook may
            // run.
            self.standing.stored();
            self.hooks.forget();
        } else if is_outermost {
            self.hooks.not_committed();
        }
        // The COMMIT of the handler's own transaction is the handler's to
        // answer for: it has got the error.
        if is_own || outlasted_handler {
            self.standing.not_committed(error, outlasted_handler);
        }
        // The next call rolls the rest of it back before anything else runs.
        if is_own {
            self.open.clear();
        } else if let Some(open) = self.open.last_mut() {
            open.is_abandoned = true;
        }
    }

    /// The COMMIT of the session's own transaction has ended, which was one of
    /// SeaORM's and is open no more.
    pub(super) fn own_committed(&mut self, result: Result<(), Error>) {
        // SeaORM's was taken off the stack when its end began, so that
        // `committed` would find no depth.
        self.hooks.seal();
        match result {
            Ok(()) => {
                self.hooks.committed(1);
                self.standing.committed();
            }
            Err(error) if error.is_outcome_unknown() => self.commit_lost(),
            Err(error) => {
                self.hooks.not_committed();
                self.standing.not_committed(error, false);
            }
        }
    }

    /// The call with the COMMIT was dropped, and the connection closed.
    pub(super) fn commit_lost(&mut self) {
        self.hooks.forget();
        self.standing.commit_lost();
        // Left open, it would make the response name the lost connection, not
        // the unknown outcome.
        if self.depth() == 1 && self.has_begun() {
            self.open.clear();
        }
    }

    /// A call that is no COMMIT has ended and left `depth` transactions open.
    pub(super) fn ran(&mut self, purpose: Purpose, depth: usize, result: Result<(), &DbErr>) {
        match (purpose, result) {
            (Purpose::BeginAndWork, _) if depth == 0 => self.not_begun(result),
            (Purpose::BeginAndWork, Ok(())) => self.failures.begun(),
            // The driver's count is the truth: a server, or sqlx after a failed
            // SAVEPOINT, may have ended some.
            _ if self.depth() > depth => self.vanished(purpose, depth),
            (Purpose::Work, _) if self.depth() == 0 => self.standing.ran_alone(result),
            _ => {}
        }
    }

    /// The session's own transaction did not begin, or was gone with its first
    /// statement.
    fn not_begun(&mut self, result: Result<(), &DbErr>) {
        self.open.clear();
        // Also a handler that swallows the error must not answer with a success
        // (G7).
        if let Err(error) = result {
            self.failures.not_begun(Error::of_begin(error.clone()));
        }
    }

    /// The transactions beyond `depth` are open no more: they were rolled back,
    /// by the session or by something else.
    fn vanished(&mut self, purpose: Purpose, depth: usize) {
        // Where a SAVEPOINT fails on PostgreSQL, sqlx rolls all of the
        // transaction back (H5b).
        if depth == 0 && purpose == Purpose::Work && self.has_begun() {
            self.standing.not_committed(Kind::Aborted.into(), true);
        }
        self.roll_back_to(depth);
    }
}

impl Purpose {
    pub(super) fn is_work(self) -> bool {
        matches!(self, Self::Work | Self::BeginAndWork)
    }

    pub(super) fn of(operation: &Operation, begins: bool) -> Self {
        match operation {
            Operation::Commit(_) => Self::Commit,
            // One call for both: its error may be BEGIN's or the statement's,
            // and only the depth behind it tells.
            _ if begins => Self::BeginAndWork,
            _ if operation.is_work() => Self::Work,
            _ => Self::Other,
        }
    }
}
