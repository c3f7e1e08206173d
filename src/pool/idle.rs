//! [`IdleConnections`]: connections that came back clean and are fresh, for the next session as they are.
//!
//! The driver's pool pings a connection when it comes back and again when it
//! goes out. One that was in use a short while ago needs neither. Those that no
//! session has taken by then go back to the driver's pool.

use std::time::{Duration, Instant};

/// A connection that no session uses. It has no slot: it gets one when it is
/// taken out of the list.
// With a slot, which owns its pool, the idle ones would keep the pool that
// keeps them: they would not return when its last handle goes.
struct Idle<C> {
    connection: C,
    since: Instant,
}

pub(super) struct IdleConnections<C> {
    /// The most recently used one is the last.
    list: Vec<Idle<C>>,
    /// A connection counts as alive for this long after its last use.
    fresh_for: Duration,
    /// Each is used in its turn, so that a session which lends its connection
    /// does not get it back.
    pub(super) rotates: bool,
}

impl<C> IdleConnections<C> {
    pub(super) fn new(fresh_for: Duration) -> Self {
        Self {
            list: Vec::new(),
            fresh_for,
            rotates: false,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    /// Returns whether none is kept.
    pub(super) fn is_off(&self) -> bool {
        self.fresh_for.is_zero()
    }

    /// Adds one that was in use until now, which is `since`.
    pub(super) fn push(&mut self, connection: C, since: Instant) {
        self.list.push(Idle { connection, since });
    }

    /// Takes the most recently used one, if it is still fresh.
    pub(super) fn pop(&mut self) -> Option<C> {
        let fresh_for = self.fresh_for;
        let is_fresh = |idle: &Idle<C>| idle.is_fresh(fresh_for);
        if self.rotates && self.list.first().is_some_and(is_fresh) {
            return Some(self.list.remove(0).connection);
        }
        // The newest first: the others grow old together and go back to the
        // driver, which closes what is too much.
        let idle = self.list.pop_if(|idle| is_fresh(idle))?;
        Some(idle.connection)
    }

    /// Takes those that are no longer fresh, and at least `least` of the
    /// oldest.
    pub(super) fn take_stale(&mut self, least: usize) -> Vec<C> {
        let is_stale = |idle: &&Idle<C>| !idle.is_fresh(self.fresh_for);
        // The stale ones are at the front, because each is added at the end
        // when it comes back.
        let stale = self.list.iter().take_while(is_stale).count();
        let taken = stale.max(least).min(self.list.len());
        self.list
            .drain(..taken)
            .map(|idle| idle.connection)
            .collect()
    }

    pub(super) fn take_all(&mut self) -> Vec<C> {
        self.list.drain(..).map(|idle| idle.connection).collect()
    }
}

impl<C> Idle<C> {
    fn is_fresh(&self, fresh_for: Duration) -> bool {
        self.since.elapsed() < fresh_for
    }
}
