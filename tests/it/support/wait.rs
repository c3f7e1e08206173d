//! Bounded waiting for a condition, in place of sleeping and hoping.

use std::time::{Duration, Instant};

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(5);

/// How long [`eventually`] waits.
const BOUND: Duration = Duration::from_secs(20);

/// Waits until `condition` is true, for at most 20 seconds.
///
/// # Panics
///
/// When the time is over; the message names `what`.
pub async fn eventually<F, Fut>(what: &str, condition: F)
where
    F: FnMut() -> Fut,
    Fut: Future<Output = bool>,
{
    eventually_within(BOUND, what, condition).await;
}

/// Waits until `condition` is true, for at most `bound`.
///
/// One look at the condition is bounded too, so one that hangs fails as well.
/// The condition is looked at once at least.
///
/// # Panics
///
/// When the time is over; the message names `what`.
pub async fn eventually_within<F, Fut>(bound: Duration, what: &str, mut condition: F)
where
    F: FnMut() -> Fut,
    Fut: Future<Output = bool>,
{
    let started = Instant::now();
    loop {
        let left = bound.saturating_sub(started.elapsed());
        match tokio::time::timeout(left.max(INTERVAL), condition()).await {
            Ok(true) => return,
            Ok(false) if started.elapsed() < bound => tokio::time::sleep(INTERVAL).await,
            Ok(false) => panic!("not within {bound:?}: {what}"),
            Err(_) => panic!("not within {bound:?} (the last look hung): {what}"),
        }
    }
}
