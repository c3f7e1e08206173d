//! [`Rate`]: so many a second.

use std::time::{Duration, Instant};

/// Counts what happens within a second.
#[derive(Default)]
pub(super) struct Rate {
    since: Option<Instant>,
    count: u32,
}

impl Rate {
    /// Whether one more makes `limit` in this second at most; then it counts.
    pub(super) fn allows(&mut self, limit: u32) -> bool {
        if self.since.is_none_or(|since| since.elapsed() >= Duration::from_secs(1)) {
            (self.since, self.count) = (Some(Instant::now()), 0);
        }
        let allowed = self.count < limit;
        self.count += u32::from(allowed);
        allowed
    }
}
