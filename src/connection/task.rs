//! [`Task`]: one call of a session on its connection, with what comes before the operation.

use std::{mem, sync::Arc};

use sea_orm::{DbBackend, Statement, TransactionOptions};

use super::{Demand, Peer, Reset, Rest, Settings, operation::Operation};
use crate::sql::{Change, Classified, classify};

/// One call on a connection.
pub(crate) struct Task {
    /// The session has run nothing on this connection yet.
    pub(crate) first: bool,
    /// For how long the server has heard nothing on the connection, if this is
    /// the first.
    pub(crate) rest: Rest,
    /// The number of transactions that are open around it; others are rolled
    /// back first.
    pub(crate) depth: usize,
    /// Prepares a connection that has just been checked out.
    // Shared: each call of a request may be the one that needs it.
    pub(crate) on_acquire: Option<Arc<[Statement]>>,
    /// Opens the session's own transaction first.
    pub(crate) begin: Option<Begin>,
    /// `None` once it was sent, unless it may have to be sent again.
    pub(crate) operation: Option<Operation>,
    /// The operation was sent, and is kept for one case alone: that its
    /// prepared statement is stale.
    pub(crate) is_sent: bool,
    /// The answers that the operation's text gives.
    pub(crate) text: Classified,
    /// The operation only reads, and calls nothing that might do more. Asked
    /// only of one on a connection that has rested.
    pub(crate) changes_nothing: bool,
    /// The operation, or what came before it, may do more to the transaction
    /// around it than its text says.
    pub(crate) doubtful: bool,
    /// The reset that is due when the session gives the connection back.
    pub(crate) reset: Reset,
    /// The server's process has to be known, with this peer at the other end.
    pub(crate) identify: Option<Peer>,
    /// The operation may be stopped when its request is gone.
    pub(crate) stoppable: bool,
}

impl Task {
    /// Returns whether it may leave session state behind. What `on_acquire`
    /// sets is not looked into.
    pub(crate) fn leaves_state(&self, backend: DbBackend) -> bool {
        let set_up = self.begin.iter().flat_map(Begin::statements);
        self.on_acquire.is_some()
            || self.text.change > Change::Transaction
            || set_up
                .map(|statement| classify(backend, &statement.sql).change)
                .any(|change| change > Change::Transaction)
    }

    /// A statement that prepares something, beside the session's own.
    pub(super) fn set_up(statement: Statement, depth: usize, text: Classified) -> Self {
        Self {
            // The call around it is the first, and decides about another
            // connection.
            first: false,
            rest: Rest::None,
            depth,
            on_acquire: None,
            begin: None,
            operation: Some(Operation::Execute(statement)),
            is_sent: false,
            text,
            changes_nothing: false,
            doubtful: text.is_doubtful(),
            reset: Reset::default(),
            identify: None,
            stoppable: false,
        }
    }

    /// Returns whether its operation was not sent yet, and answers `question`
    /// with yes.
    pub(super) fn is(&self, question: impl Fn(&Operation) -> bool) -> bool {
        self.operation.as_ref().is_some_and(question)
    }

    /// Returns about how many bytes its operation sends.
    pub(super) fn size(&self) -> usize {
        self.operation.as_ref().map_or(0, Operation::size)
    }

    /// Returns whether nothing came before it, and all of it is here to be sent
    /// again.
    pub(crate) fn is_whole(&self) -> bool {
        // Later on, the session relies on what it has done on this connection.
        self.first && self.depth == 0 && self.operation.is_some() && !self.is_sent
    }

    /// Returns whether what was to come before its operation may be there in
    /// part.
    pub(super) fn is_half_begun(&self) -> bool {
        self.begin.is_some() && self.operation.is_some()
    }

    /// Returns whether it opens a transaction, without which nothing of it
    /// takes effect.
    pub(crate) fn opens(&self) -> bool {
        self.begin.is_some() || matches!(self.operation, Some(Operation::Begin(_)))
    }

    /// Returns whether it sends a BEGIN first, so that nothing is lost with the
    /// connection.
    pub(crate) fn begins(&self) -> bool {
        // A set-up is sent before BEGIN, and a change has what it changes read
        // before it.
        self.opens() && self.on_acquire.is_none() && self.text.change == Change::None
    }

    /// Returns whether all of it can be run once more after it was lost,
    /// because it changes nothing.
    pub(crate) fn may_run_twice(&self) -> bool {
        // Not a stream: its reader may have rows already. What is set up before
        // may be anything. Shown by
        // `a_statement_that_might_happen_twice_happens_once_at_most`.
        let is_set_up = self.on_acquire.is_some();
        self.changes_nothing && self.is_whole() && !is_set_up && !self.is(Operation::is_stream)
    }

    /// The operation, to be sent now. What may have to be sent again stays: a
    /// BEGIN, what the server may never see because it has closed the
    /// connection, and what it may not have prepared any more.
    pub(super) fn take_operation(&mut self, may_be_stale: bool) -> Operation {
        let again = match &self.operation {
            // A BEGIN that fails has done nothing, so that it may be tried on
            // another connection (G20).
            Some(Operation::Begin(options)) => Some(Operation::Begin(*options)),
            // Behind a BEGIN the connection is known to be alive; a BEGIN that
            // fails leaves the operation here.
            Some(operation) if self.rest != Rest::None && self.begin.is_none() => operation.copy(),
            Some(operation) if may_be_stale => {
                self.is_sent = true;
                operation.copy_of_prepared()
            }
            _ => None,
        };
        mem::replace(&mut self.operation, again).unwrap_or(Operation::Settle)
    }
}

/// The beginning of a session's own transaction.
pub(crate) struct Begin {
    pub(crate) options: TransactionOptions,
    pub(crate) set_up: Option<Arc<BeginSetUp>>,
}

/// What each BEGIN of a session's own transaction brings along.
#[derive(Clone, Default)]
pub(crate) struct BeginSetUp {
    /// In its own text.
    pub(crate) settings: Settings,
    /// After it.
    pub(crate) statements: Vec<Statement>,
    /// It has to hold for all that runs, so that the session is in a
    /// transaction for good.
    pub(crate) is_required: bool,
    /// With either of them.
    pub(crate) demand: Demand,
}

impl Begin {
    pub(crate) fn demand(&self) -> &Demand {
        self.set_up
            .as_deref()
            .map_or(&Demand::None, |set_up| &set_up.demand)
    }

    pub(super) fn settings(&self) -> Option<&Settings> {
        self.set_up.as_deref().map(|set_up| &set_up.settings)
    }

    pub(super) fn statements(&self) -> &[Statement] {
        self.set_up
            .as_deref()
            .map_or(&[], |set_up| &set_up.statements)
    }
}
