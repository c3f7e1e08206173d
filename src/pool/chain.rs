//! Transactions without a round trip for their BEGIN: while requests wait for
//! connections, a COMMIT carries the BEGIN of the next waiter along.
//!
//! Decided when COMMIT is sent, for a request that waits by then; it gets the
//! connection in its transaction if it is still the first when COMMIT was
//! answered. For any other one, and where nothing waits any more, the empty
//! transaction is rolled back first.

use std::{sync::Arc, time::Instant};

use super::{
    checked_out::CheckedOut, inner::PoolInner, ledger::Ledger, plain_share::AgeVisit,
    waiters::Waiter,
};
use crate::connection::{Chain, Peer, PinnedConnection};

/// Returns the transaction that the COMMIT of `connection` is to begin, if a
/// request waits for one.
pub(crate) fn next_chain(pool: &PoolInner, connection: &CheckedOut) -> Option<Chain> {
    // Before the ledger is locked: each COMMIT comes by here, and most find
    // nothing waiting.
    if !chains(pool) || !connection.is(PinnedConnection::may_chain) {
        return None;
    }
    let chain = pool.ledger().chain()?;
    connection
        .is(|connection| connection.may_continue_with(chain.options))
        .then_some(chain)
}

/// Returns whether connections go from session to session as they are.
fn chains(pool: &PoolInner) -> bool {
    // Otherwise the connection goes to the driver's pool, which would have it
    // in a transaction.
    pool.settings.direct_handoff
        && pool.has_server()
        // A reset is due between two transactions.
        && !pool.reset().is_of_session()
        // Behind a proxy, statements may have no names, or the process belongs
        // to one transaction only (H29).
        && !pool.is_unnamed
        && (!pool.settings.cancel_running || pool.cancels.route() == Peer::Server)
}

impl<T, C> Ledger<T, C> {
    /// Returns the transaction that the next waiter wants for which none is on
    /// its way.
    fn chain(&self) -> Option<Chain> {
        if self.chains.is_ignored() {
            return None;
        }
        // The waiters before it get the transactions that are on their way, and
        // the connections that are being fetched.
        let coming = Arc::strong_count(&self.chains) - 1 + self.fetches.counted_on();
        let mut wanted = self.waiters.live().map(|waiter| waiter.applicant.begins);
        let options = wanted.nth(coming)??;
        // First come, first served, and a COMMIT may overtake another one: each
        // of them has to fit each.
        let mut before = self.waiters.live().take(coming);
        let fits = before.all(|waiter| waiter.applicant.begins == Some(options));
        fits.then(|| Chain {
            options,
            newest: self.waiters.newest(),
            chains: self.chains.clone(),
        })
    }

    /// [`next_turn`](Self::next_turn) for a connection that is in the
    /// transaction of `chain`.
    fn next_chained(&mut self, chain: &Chain, visit: AgeVisit, max: u32) -> Option<Waiter<T>> {
        let first = self.waiters.live().next()?;
        // For a later one, `now()` would be before its own arrival (H35;
        // `a_request_that_came_after_the_commit_gets_no_transaction_from_before_it`).
        let fits = first.id <= chain.newest && first.applicant.begins == Some(chain.options);
        // Asked last, since it counts.
        if fits && self.passes_by(visit, max) {
            self.next_turn()
        } else {
            None
        }
    }
}

/// Hands a connection in a transaction that has begun for a waiter to that one,
/// or gives it back to be rolled back.
pub(super) fn pass_on(mut left: CheckedOut) -> Option<CheckedOut> {
    let pool = left.pool().clone();
    // An evicted one must not be handed on under load, where it would never
    // come to be closed (G18).
    let is_wanted = left.is_chained() && !pool.is_shut() && !pool.is_evicted(left.parts.fetched);
    let now = Instant::now();
    let age = now.saturating_duration_since(left.parts.fetched);
    let visit = AgeVisit::of(age, left.parts.returns, pool.driver().max_lifetime());
    // A connection that is never outside a transaction reports no statistics,
    // by which autovacuum finds its work (H35,
    // <https://github.com/postgres/postgres/commit/2e4eae87d02fef51c42c2028b65d85b9e051f9eb>):
    // however many wait, its visits are not put off.
    if !is_wanted || visit == AgeVisit::Overdue {
        return Some(left);
    }
    left.parts.used = now;
    let max = pool.driver().max_connections().unwrap_or(0);
    // Again for each waiter that has gone when it is answered.
    loop {
        let waiter = {
            let connection = left.parts.connection.as_ref();
            let chain = connection.and_then(PinnedConnection::chain);
            chain.and_then(|chain| pool.ledger().next_chained(chain, visit, max))
        };
        let Some(waiter) = waiter else {
            return Some(left);
        };
        // Before it is given: from then on it may be the next session's.
        left.parts.leave();
        left.parts.returns += 1;
        left = PoolInner::give(waiter, left)?;
    }
}
