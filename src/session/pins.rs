//! [`Pins`] and [`Waits`]: what a session that lends its connection keeps in mind.

use std::time::{Duration, Instant};

/// What keeps a session's connection outside a transaction.
#[derive(Default)]
pub(super) struct Pins {
    guards: u32,
    /// A statement has left session state on the connection.
    by_state: bool,
    /// The last call before it was kept: what came after it has run on this connection.
    since: Option<u64>,
}

impl Pins {
    pub(super) fn is_any(&self) -> bool {
        self.guards > 0 || self.by_state
    }

    /// Returns whether the call `last` has run on the connection that the session still has.
    pub(super) fn has_kept(&self, last: u64) -> bool {
        self.since.is_some_and(|since| last > since)
    }

    pub(super) fn add(&mut self, last: u64) {
        self.guards += 1;
        self.since.get_or_insert(last);
    }

    pub(super) fn remove(&mut self) {
        self.guards -= 1;
        if !self.is_any() {
            self.since = None;
        }
    }

    /// The call `id` may leave session state behind.
    pub(super) fn note_state(&mut self, id: u64) {
        self.by_state = true;
        self.since.get_or_insert(id);
    }

    /// The session has another connection, behind the call `last`.
    pub(super) fn moved(&mut self, last: u64) {
        self.by_state = false;
        self.since = (self.guards > 0).then_some(last);
    }
}

/// The time that a session has waited for connections, because it lends the one that it has. It pays that time back by
/// not waiting: a session may live as long as the body of a stream of events.
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
