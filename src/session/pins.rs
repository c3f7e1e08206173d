//! [`Pins`] and [`Waits`]: what a session that lends its connection keeps in
//! mind.

use std::time::{Duration, Instant};

use crate::sql::Earlier;

/// What keeps a session's connection outside a transaction, and which of its
/// calls have run on it since it was kept.
#[derive(Default)]
pub(super) struct Pins {
    guards: u32,
    /// A statement has left session state on the connection.
    by_state: bool,
    /// The first call of which it is certain that the session has had the same
    /// connection from then on.
    since: u64,
    /// The latest call that wrote.
    wrote: u64,
    /// The latest call that inserted.
    inserted: u64,
}

impl Pins {
    pub(super) fn is_any(&self) -> bool {
        self.guards > 0 || self.by_state
    }

    /// Pins the connection by hand, behind the call `last`.
    pub(super) fn add(&mut self, last: u64, in_transaction: bool) {
        if !self.is_any() && !in_transaction {
            // Behind the calls so far: they may have run on another connection,
            // which was lent since.
            self.since = last + 1;
        }
        // Counted, since each `pin()` of a handler's functions ends by itself.
        self.guards += 1;
    }

    pub(super) fn remove(&mut self) {
        self.guards -= 1;
    }

    /// The call `id` begins, and may leave session state behind.
    pub(super) fn note(&mut self, id: u64, is: Earlier, in_transaction: bool, leaves_state: bool) {
        if !self.is_any() && !in_transaction {
            // Before this call the connection could be lent: it may be another
            // one than that of the calls before.
            self.since = id;
        }
        self.by_state |= leaves_state;
        // Compared and not matched: what inserts has written as well.
        if is >= Earlier::Write {
            self.wrote = id;
        }
        if is >= Earlier::Insert {
            self.inserted = id;
        }
    }

    /// The session has given its connection back, or got another one, behind
    /// the call `last`.
    pub(super) fn moved(&mut self, last: u64) {
        // Session state goes with its connection. The pins by hand are the
        // handler's, and hold the next one.
        self.by_state = false;
        self.since = last + 1;
    }

    /// Returns whether what is asked about has run on the connection that the
    /// session still has, behind the call `last`.
    pub(super) fn know(&self, asks: Earlier, last: u64, in_transaction: bool) -> bool {
        // By the call that is asked about, and not by the last one: `lastval()`
        // is about an INSERT, however many reads came since.
        let about = match asks {
            Earlier::None => return true,
            Earlier::Any => last,
            Earlier::Write => self.wrote,
            Earlier::Insert => self.inserted,
        };
        // Without either, the connection may have been lent since.
        (self.is_any() || in_transaction) && about >= self.since
    }
}

/// The time that a session has waited for connections, because it lends the one
/// that it has. It pays that time back by not waiting: a session may live as
/// long as the body of a stream of events.
#[derive(Default)]
pub(super) struct Waits {
    sum: Duration,
    /// When the last wait ended.
    ended: Option<Instant>,
}

impl Waits {
    /// Returns how much is left of a time-out.
    pub(super) fn left_of(&self, all: Duration) -> Duration {
        let since = self.ended.map_or(Duration::ZERO, |ended| ended.elapsed());
        all.saturating_sub(self.sum.saturating_sub(since))
    }

    pub(super) fn add(&mut self, waited: Duration) {
        let now = Instant::now();
        if let Some(ended) = self.ended.replace(now) {
            // That time includes the wait itself.
            let between = now.duration_since(ended).saturating_sub(waited);
            self.sum = self.sum.saturating_sub(between);
        }
        self.sum += waited;
    }
}
