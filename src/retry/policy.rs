//! [`RetryPolicy`]: how often and how soon work is done again.

use std::{sync::Arc, time::Duration};

use tower::retry::budget::TpsBudget;

/// How long a retry counts against the budget.
// This, the reserve and the ratio in `new` are tower's defaults
// (<https://docs.rs/tower/latest/src/tower/retry/budget/tps_budget.rs.html>).
const BUDGET_TTL: Duration = Duration::from_secs(10);

/// The retries a second that are allowed however few requests there are.
const BUDGET_RESERVE: u32 = 10;

/// How many times, and after what wait, work is retried after a conflict
/// (feature `retry`). Clones share one budget.
///
/// [`RetryLayer`](crate::RetryLayer) applies it to requests,
/// [`SessionPool::retry_transaction`](crate::SessionPool::retry_transaction) to
/// jobs.
///
/// ```
/// use std::time::Duration;
///
/// use tower_sea_orm::{RetryLayer, RetryPolicy};
///
/// let policy = RetryPolicy::new()
///     .attempts(5)
///     .backoff(Duration::from_millis(2), Duration::from_millis(100))
///     .budget(0.5);
/// let layer = RetryLayer::with(policy.clone()); // requests and jobs have one budget between them
/// # let _ = layer;
/// ```
#[derive(Debug, Clone)]
pub struct RetryPolicy {
    pub(super) attempts: u32,
    pub(super) min: Duration,
    pub(super) max: Duration,
    pub(super) total_timeout: Duration,
    // Shared by clones: servers clone a service for each connection, and a
    // budget for each would be none.
    pub(super) budget: Arc<TpsBudget>,
}

impl RetryPolicy {
    /// Creates a policy of three attempts: the second begins 5 to 10 ms after
    /// the first has failed, the third 10 to 20 ms after the second, and none
    /// later than 10 s after the first began. There is one retry for every five
    /// requests, but ten a second in any case.
    pub fn new() -> Self {
        Self {
            attempts: 3,
            // A conflict is over once the other transaction has ended, most
            // often within milliseconds.
            min: Duration::from_millis(5),
            max: Duration::from_millis(200),
            total_timeout: Duration::from_secs(10),
            budget: Arc::new(budget(0.2)),
        }
    }

    /// Sets how many attempts are made in all, the first one included.
    /// Default: 3. With 1, or 0, there is no retry.
    #[must_use]
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts;
        self
    }

    /// Sets the wait before a retry: `min` before the first one, twice as long
    /// before each further one, and in addition up to as much again at random,
    /// so that requests that met each other do not meet again; `max` in all.
    /// Default: 5 ms and 200 ms, that is 5 to 10 ms, 10 to 20 ms, 20 to 40 ms
    /// and so on, up to 200 ms.
    ///
    /// A `max` below `min` counts as `min`. With a `min` of zero there is no
    /// wait.
    #[must_use]
    pub fn backoff(mut self, min: Duration, max: Duration) -> Self {
        // What tower refuses: a `max` of nothing, or one below `min`.
        self.max = max.max(min).max(Duration::from_nanos(1));
        self.min = min;
        self
    }

    /// Sets how many retries are allowed for each request of the last ten
    /// seconds: 0.2, the default, is one for every five. Ten retries a second
    /// are allowed in any case, so that a service with few requests can retry
    /// them. Beyond that, what fails stays failed: where everything conflicts,
    /// retrying would only add load.
    ///
    /// It begins a budget of its own, which earlier clones do not share.
    ///
    /// # Panics
    ///
    /// If `ratio` is negative, above 1000, or not a number.
    #[must_use]
    pub fn budget(mut self, ratio: f32) -> Self {
        self.budget = Arc::new(budget(ratio));
        self
    }

    /// Sets the time since the first attempt after which no other begins.
    /// Default: 10 s. The attempt that runs is not ended by it. With zero there
    /// is no retry.
    #[must_use]
    pub fn total_timeout(mut self, timeout: Duration) -> Self {
        self.total_timeout = timeout;
        self
    }
}

fn budget(ratio: f32) -> TpsBudget {
    TpsBudget::new(BUDGET_TTL, BUDGET_RESERVE, ratio)
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self::new()
    }
}
