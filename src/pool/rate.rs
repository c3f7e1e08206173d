//! [`Rate`]: so many in some time.

use std::time::{Duration, Instant};

/// Counts what happens within a span of time.
#[derive(Default)]
pub(super) struct Rate {
    since: Option<Instant>,
    count: u32,
}

impl Rate {
    /// Whether one more makes `limit` within `span` at most; then it counts.
    pub(super) fn allows(&mut self, limit: u32, span: Duration) -> bool {
        if self.since.is_none_or(|since| since.elapsed() >= span) {
            (self.since, self.count) = (Some(Instant::now()), 0);
        }
        let allowed = self.count < limit;
        self.count += u32::from(allowed);
        allowed
    }
}
