//! Transactions without a round trip for their BEGIN: while requests wait for connections, a COMMIT carries the BEGIN of
//! the next waiter along.
//!
//! Decided when COMMIT is sent, for a request that waits by then; it gets the connection in its transaction if it is still
//! the first when COMMIT was answered. For any other one, and where nothing waits any more, the empty transaction is rolled
//! back first.

use std::{sync::Arc, time::Instant};

use super::{
    checked_out::CheckedOut, inner::PoolInner, ledger::Ledger, plain_share::AgeVisit,
    waiters::Waiter,
};
use crate::connection::{Chain, Peer, PinnedConnection};

impl PoolInner {
    /// Returns the transaction that the COMMIT of `connection` is to begin, if a request waits for one.
    pub(crate) fn chain(&self, connection: &CheckedOut) -> Option<Chain> {
        if !self.chains() || !connection.is(PinnedConnection::may_chain) {
            return None;
        }
        let chain = self.ledger().chain()?;
        connection
            .is(|connection| connection.may_continue_with(chain.options))
            .then_some(chain)
    }

    /// Returns whether connections go from session to session as they are.
    fn chains(&self) -> bool {
        self.settings.direct_handoff
            && self.has_server()
            // It is due between two transactions.
            && !self.reset().is_of_session()
            // Behind a proxy, statements may have no names, or the process belongs to one transaction only (H29).
            && !self.is_unnamed
            && (!self.settings.cancel_running || self.cancels.route() == Peer::Server)
    }
}

impl<T, C> Ledger<T, C> {
    /// Returns the transaction that the next waiter wants for which none is on its way.
    fn chain(&self) -> Option<Chain> {
        if self.chains.is_ignored() {
            return None;
        }
        // Those are served before, and the first ones by what is being fetched.
        let coming = Arc::strong_count(&self.chains) - 1 + self.fetches.counted_on();
        let mut wanted = self.waiters.live().map(|waiter| waiter.applicant.begins);
        let options = wanted.nth(coming)??;
        // First come, first served, and a COMMIT may overtake another one: each of them has to fit each.
        let mut before = self.waiters.live().take(coming);
        let fits = before.all(|waiter| waiter.applicant.begins == Some(options));
        fits.then(|| Chain {
            options,
            newest: self.waiters.newest(),
            chains: self.chains.clone(),
        })
    }

    /// [`next_turn`](Self::next_turn) for a connection that is in the transaction of `chain`.
    fn next_chained(&mut self, chain: &Chain, visit: AgeVisit, max: u32) -> Option<Waiter<T>> {
        let first = self.waiters.live().next()?;
        let fits = first.id <= chain.newest && first.applicant.begins == Some(chain.options);
        // Asked last, since it counts.
        if fits && self.passes_by(visit, max) {
            self.next_turn()
        } else {
            None
        }
    }
}

impl CheckedOut {
    /// Hands a connection in a transaction that has begun for a waiter to that one, or gives it back to be rolled back.
    pub(super) fn pass_on(mut self) -> Option<Self> {
        let pool = self.pool().clone();
        let is_wanted =
            self.is_chained() && !pool.is_shut() && !pool.is_evicted(self.parts.fetched);
        let now = Instant::now();
        let age = now.saturating_duration_since(self.parts.fetched);
        let visit = AgeVisit::of(age, self.parts.returns, pool.driver().max_lifetime());
        if !is_wanted || visit == AgeVisit::Overdue {
            return Some(self);
        }
        self.parts.used = now;
        let max = pool.driver().max_connections().unwrap_or(0);
        // Again for each waiter that has gone when it is answered.
        loop {
            let waiter = {
                let connection = self.parts.connection.as_ref();
                let chain = connection.and_then(PinnedConnection::chain);
                chain.and_then(|chain| pool.ledger().next_chained(chain, visit, max))
            };
            let Some(waiter) = waiter else {
                return Some(self);
            };
            // Before it is given: from then on it may be the next session's.
            self.leave();
            self.parts.returns += 1;
            self = PoolInner::give(waiter, self)?;
        }
    }
}
