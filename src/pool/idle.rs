//! [`IdleConnections`]: connections that came back clean a moment ago, for the next session as they are.
//!
//! The driver's pool pings a connection when it comes back and again when it goes out. One that was in use within the
//! last second needs neither. Those that no session has taken by then go back to the driver's pool.

use std::time::{Duration, Instant};

/// A connection counts as alive for this long after its last use.
const FRESH: Duration = Duration::from_secs(1);

/// A connection that no session uses. It has no slot: it gets one when it is taken out of the list.
struct Idle<C> {
    connection: C,
    since: Instant,
}

pub(super) struct IdleConnections<C> {
    /// The most recently used one is the last.
    list: Vec<Idle<C>>,
    /// Each is used in its turn, so that a session which lends its connection does not get it back.
    pub(super) rotates: bool,
}

impl<C> Default for IdleConnections<C> {
    fn default() -> Self {
        Self {
            list: Vec::new(),
            rotates: false,
        }
    }
}

impl<C> IdleConnections<C> {
    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    pub(super) fn push(&mut self, connection: C) {
        self.list.push(Idle {
            connection,
            since: Instant::now(),
        });
    }

    /// Takes the most recently used one, if it is still fresh.
    pub(super) fn pop(&mut self) -> Option<C> {
        if self.rotates && self.list.first().is_some_and(Idle::is_fresh) {
            return Some(self.list.remove(0).connection);
        }
        // The newest first: the others grow old together and go back to the driver, which closes what is too much.
        let idle = self.list.pop_if(|idle| idle.is_fresh())?;
        Some(idle.connection)
    }

    /// Takes those that are no longer fresh, and at least `least` of the oldest.
    pub(super) fn take_stale(&mut self, least: usize) -> Vec<C> {
        let stale = self.list.iter().take_while(|idle| !idle.is_fresh()).count();
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
    fn is_fresh(&self) -> bool {
        self.since.elapsed() < FRESH
    }
}
