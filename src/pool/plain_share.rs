//! [`PlainShare`]: the connections that users of the plain `DatabaseConnection` get while sessions want all there are.

use std::time::{Duration, Instant};

/// Pool-wide, a released connection passes the waiters this often and visits the driver's pool.
const INTERVAL: Duration = Duration::from_millis(50);

#[derive(Default)]
pub(super) struct PlainShare {
    last_visit: Option<Instant>,
    /// A connection that had just been returned was taken: until then there may be more who wait for one.
    awaited_until: Option<Instant>,
}

impl PlainShare {
    /// Returns whether the next released connection is for the users of the driver's pool, which has `nothing_left`.
    pub(super) fn is_due(&mut self, nothing_left: impl FnOnce() -> bool) -> bool {
        // Where one of them waited, others may wait behind it, and sqlx serves them in turn.
        if self
            .awaited_until
            .is_some_and(|until| Instant::now() < until)
        {
            return true;
        }
        let is_due = nothing_left()
            && self
                .last_visit
                .is_none_or(|last| last.elapsed() >= INTERVAL);
        if is_due {
            self.last_visit = Some(Instant::now());
        }
        is_due
    }

    /// Notes whether a connection that was just returned to the driver's pool is idle there.
    pub(super) fn returned(&mut self, is_idle: bool, is_fetching: bool) {
        if is_idle {
            self.awaited_until = None;
        } else if !is_fetching {
            // It was not taken by a fetch of our own. Only for a while: what is taken while we fetch says nothing.
            self.awaited_until = Some(Instant::now() + INTERVAL);
        }
    }
}
