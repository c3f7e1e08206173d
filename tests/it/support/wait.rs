//! Bounded waiting for a condition, in place of sleeping and hoping.

use std::time::{Duration, Instant};

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(5);

/// How long anything may take until it hangs. It measures nothing: what works comes nowhere near it on a
/// machine that is twenty times slower, and what a test wants to tell apart from a hang takes much longer.
pub const BOUND: Duration = Duration::from_secs(60);

/// So long that only a hang would come to it.
pub const LONG: Duration = Duration::from_secs(600);

/// Waits until `condition` is true, for at most [`BOUND`].
///
/// # Panics
///
/// If the time is over; the message names `what`.
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
/// If the time is over; the message names `what`.
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

/// Tries until an attempt succeeds: for what must be quicker than something else, which a busy machine may
/// spoil now and then, while a fault spoils it each time.
///
/// # Panics
///
/// If all attempts failed; the message names `what`.
pub async fn in_one_of(attempts: u32, what: &str, mut attempt: impl AsyncFnMut() -> bool) {
    for _ in 0..attempts {
        if attempt().await {
            return;
        }
    }
    panic!("not in one of {attempts} attempts: {what}");
}
