//! [`Attempt`]: the number of an attempt, and [`Tries`]: all of them at one request or job.

use std::{
    mem,
    time::{Duration, Instant},
};

use http::Extensions;
use tokio::time::Sleep;
use tower::{
    retry::{
        backoff::{Backoff, ExponentialBackoff, ExponentialBackoffMaker, MakeBackoff},
        budget::Budget,
    },
    util::rng::HasherRng,
};

use super::policy::RetryPolicy;
use crate::Error;

/// In a request's extensions, the number of this attempt; in a response's, how
/// many were made (feature `retry`).
///
/// A [`RetryLayer`](crate::RetryLayer) puts it there, counting from 1. With the
/// feature `axum` it is a handler argument as well, 1 where no layer counts.
///
/// ```
/// use tower_sea_orm::Attempt;
///
/// let request = http::Request::new(());
/// assert_eq!(Attempt::of(request.extensions()).number(), 1); // no layer around
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempt(pub(super) u32);

impl Attempt {
    pub(super) const FIRST: Self = Self(1);

    /// Returns the attempt that a request or a response belongs to, by its
    /// extensions; the first one without a layer.
    pub fn of(extensions: &Extensions) -> Self {
        extensions.get().copied().unwrap_or(Self::FIRST)
    }

    /// Returns its number: 1 for the first attempt.
    pub fn number(self) -> u32 {
        self.0
    }

    /// Returns whether an earlier attempt was rolled back.
    pub fn is_retry(self) -> bool {
        self.0 > 1
    }

    pub(super) fn next(self) -> Self {
        // Neither zero nor a panic, however many attempts a policy allows.
        Self(self.0.saturating_add(1))
    }
}

/// The attempts at one request or job.
#[derive(Debug, Clone)]
pub(super) struct Tries {
    policy: RetryPolicy,
    pub(super) attempt: Attempt,
    pub(super) since: Instant,
    /// When the client stops waiting.
    patience: Duration,
    /// A server was lost in the middle of the work.
    has_lost: bool,
    /// Made with the first retry: most work needs none.
    backoff: Option<ExponentialBackoff>,
}

impl Tries {
    /// Begins the first attempt. `left` is how much longer its client waits.
    pub(super) fn new(policy: &RetryPolicy, left: Option<Duration>) -> Self {
        // Each request adds to what may be retried, once.
        policy.budget.deposit();
        let patience = policy.total_timeout;
        Self {
            attempt: Attempt::FIRST,
            // The client's time begins here, and goes on through all attempts.
            since: Instant::now(),
            patience: left.map_or(patience, |left| left.min(patience)),
            has_lost: false,
            backoff: None,
            policy: policy.clone(),
        }
    }

    /// Begins the next attempt after `error`, which has undone this one, and
    /// returns the wait before it; `None` if this was the last. `may_repeat` is
    /// asked last but for the budget.
    pub(super) fn next(
        &mut self,
        error: &Error,
        may_repeat: impl FnOnce() -> bool,
    ) -> Option<Sleep> {
        // The work itself may be what a server has died of: it is not to be
        // sent to all of them.
        let has_lost_another = error.is_connection_lost() && mem::replace(&mut self.has_lost, true);
        let wait = if has_lost_another {
            Err("a second server was lost")
        } else {
            self.wait(may_repeat)
        };
        match wait {
            Ok(wait) => {
                let attempt = self.attempt.number();
                self.attempt = self.attempt.next();
                tracing::debug!(target: "tower_sea_orm::retry", attempt, %error, "rolled back, and runs again");
                Some(wait)
            }
            Err(reason) => {
                let attempt = self.attempt.number();
                // With the reason, which is the first question where a retry
                // was missed.
                tracing::debug!(target: "tower_sea_orm::retry", attempt, %error, reason, "rolled back, and does not run again");
                None
            }
        }
    }

    /// Returns the wait, or the reason why there is no other attempt.
    fn wait(&mut self, may_repeat: impl FnOnce() -> bool) -> Result<Sleep, &'static str> {
        if self.attempt.number() >= self.policy.attempts {
            return Err("the last attempt");
        }
        // After the number of attempts: to ask passes the body on to the next
        // one.
        if !may_repeat() {
            return Err("the body is too long, or is still in use");
        }
        // Before the budget is asked: a wait that is too long must not cost
        // others a retry.
        let wait = self.next_backoff().ok_or("no back-off")?;
        if wait
            // At the end of the wait, and not now: no client waits for an
            // attempt that begins too late.
            .deadline()
            .into_std()
            .saturating_duration_since(self.since)
            >= self.patience
        {
            return Err("no time left");
        }
        if !self.policy.budget.withdraw() {
            return Err("the budget is spent");
        }
        Ok(wait)
    }

    fn next_backoff(&mut self) -> Option<Sleep> {
        if self.backoff.is_none() {
            // A source of random numbers for each: a clone of one would have
            // all requests wait for the same times.
            let random = HasherRng::new();
            let (min, max) = (self.policy.min, self.policy.max);
            // Up to as much again at random: two requests that have met would
            // meet again.
            let mut maker = ExponentialBackoffMaker::new(min, max, 1.0, random).ok()?;
            self.backoff = Some(maker.make_backoff());
        }
        self.backoff.as_mut().map(Backoff::next_backoff)
    }
}
