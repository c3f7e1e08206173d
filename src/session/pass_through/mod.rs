//! The second path: sessions without a connection of their own (mock, proxy,
//! plain handles). Their statements go to SeaORM, and so do their transactions:
//! [`Through`].

mod nested;
mod own;
#[cfg(feature = "stream")]
mod rows;
mod run;

use std::sync::Arc;

use sea_orm::DatabaseTransaction;

#[cfg(feature = "stream")]
pub(super) use self::rows::{PassedRows, nested_rows, rows};
pub(super) use self::{
    nested::{abandon, begin, end},
    own::{commit_own, end_own, roll_back_own},
    run::{ping, release, run},
};
use super::stack::TransactionId;

/// A session's own transaction, which statements share while they run in it.
pub(super) type OwnTransaction = Arc<DatabaseTransaction>;

/// SeaORM's transactions under a session.
///
/// SeaORM ends the innermost one, whichever handle asks for it, so a
/// transaction whose handle goes first is kept until those inside it have
/// ended.
#[derive(Default)]
pub(super) struct Through {
    /// The session's own transaction.
    // Shared, because SeaORM lets statements run in it side by side, and each
    // may outlast the handler.
    pub(super) own: Option<OwnTransaction>,
    /// The server has given up the transactions from this depth on.
    // SeaORM keeps no account of this, and a mock commits what a server would
    // not (`a_mock_of_postgresql_commits_nothing_after_a_failed_statement`).
    given_up: Option<usize>,
    /// Handles whose transactions SeaORM still has, outermost first.
    alive: Vec<TransactionId>,
    /// Transactions whose handles went before those inside them.
    parked: Vec<(TransactionId, DatabaseTransaction)>,
}

impl Through {
    /// Returns whether a transaction waits for those inside it to be ended.
    pub(super) fn is_any_parked(&self) -> bool {
        !self.parked.is_empty()
    }

    /// Notes that the server has given up the innermost of `depth`
    /// transactions, or all of them.
    pub(super) fn give_up(&mut self, depth: usize, all: bool) {
        if depth > 0 {
            // The first one counts: those inside are given up with it.
            self.given_up.get_or_insert(if all { 1 } else { depth });
        }
    }

    /// Returns whether the server has given up the innermost of `depth`
    /// transactions.
    pub(super) fn is_given_up(&self, depth: usize) -> bool {
        self.given_up.is_some_and(|from| from <= depth)
    }

    /// Forgets that the transaction at `depth`, which is being ended, was given
    /// up; returns whether it was.
    pub(super) fn take_given_up(&mut self, depth: usize) -> bool {
        self.given_up.take_if(|from| *from >= depth).is_some()
    }

    /// Forgets what is known of transactions that are not open any more.
    pub(super) fn forget_beyond(&mut self, depth: usize) {
        self.given_up = self.given_up.filter(|from| *from <= depth);
    }

    pub(super) fn opened(&mut self, id: TransactionId) {
        self.alive.push(id);
    }

    /// Keeps a transaction whose handle goes before those inside it; gives it
    /// back if there are none.
    pub(super) fn park(
        &mut self,
        id: TransactionId,
        transaction: DatabaseTransaction,
    ) -> Option<DatabaseTransaction> {
        // Numbers only grow, so a greater one was begun inside.
        let innermost = self.alive.last();
        if innermost.is_none_or(|innermost| *innermost <= id) {
            return Some(transaction);
        }
        self.alive.retain(|alive| *alive != id);
        self.parked.push((id, transaction));
        None
    }

    /// The handle of `id` is gone; returns what was waiting for that, to be
    /// rolled back in this order.
    pub(super) fn unpark(&mut self, id: TransactionId) -> Vec<DatabaseTransaction> {
        self.alive.retain(|alive| *alive != id);
        let innermost = self.alive.last().copied();
        // Handles are dropped in any order, but only the innermost transaction
        // may be ended (H16). In the order in which they were begun, since
        // numbers only grow.
        self.parked.sort_by_key(|(id, _)| *id);
        let outside = |id: TransactionId| innermost.is_some_and(|alive| id < alive);
        let stays = self.parked.iter().take_while(|(id, _)| outside(*id));
        let stays = stays.count();
        let inside_first = self.parked.drain(stays..).rev();
        inside_first.map(|(_, transaction)| transaction).collect()
    }
}
