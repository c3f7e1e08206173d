//! [`Refusals`]: who is turned away is not back at once.
//!
//! A refusal costs a good third of what serving the request would. Clients that ask again as soon as they are
//! refused, and there are many of them, would have the processors do nothing else, while those who
//! have a connection wait for a processor.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use super::rate::Rate;

/// How many are told at once within [`SPAN`]: a crowd that comes only once, and clients that heed
/// `Retry-After`.
const AT_ONCE: u32 = 1000;
const SPAN: Duration = Duration::from_secs(2);

/// How long the others are kept before they are told.
const KEPT: Duration = Duration::from_millis(500);

/// How many are kept at the same time: what they take of the memory has a bound.
const MOST: usize = 10_000;

#[derive(Default)]
pub(super) struct Refusals {
    at_once: Mutex<Rate>,
    kept: AtomicUsize,
}

impl Refusals {
    /// Ends when one more refusal may be told: at once, unless many have been; `longest` at most.
    pub(super) async fn keep(&self, longest: Duration) {
        let at_once = self
            .at_once
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .allows(AT_ONCE, SPAN);
        if at_once {
            return;
        }
        let kept = Kept::count(&self.kept);
        if kept.before < MOST {
            tokio::time::sleep(KEPT.min(longest)).await;
        }
    }
}

/// Counts one for as long as it is kept.
struct Kept<'c> {
    count: &'c AtomicUsize,
    /// How many others there were.
    before: usize,
}

impl<'c> Kept<'c> {
    fn count(count: &'c AtomicUsize) -> Self {
        Self {
            count,
            before: count.fetch_add(1, Ordering::Relaxed),
        }
    }
}

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}
