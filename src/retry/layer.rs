//! [`RetryLayer`]: requests that a conflict has undone run again.

use std::time::Duration;

use tower_layer::Layer;

use super::{policy::RetryPolicy, service::RetryService};

#[doc = include_str!("layer.md")]
#[derive(Debug, Clone)]
#[must_use = "a layer does nothing until it wraps a service"]
pub struct RetryLayer {
    policy: RetryPolicy,
    max_body: usize,
}

impl RetryLayer {
    /// Creates a layer with [the default policy](RetryPolicy::new) for bodies
    /// of up to 64 KiB.
    pub fn new() -> Self {
        Self::with(RetryPolicy::new())
    }

    /// Creates a layer with a policy that others may share. The methods below
    /// change this layer's copy of it, and no other; the budget stays shared
    /// until [`budget`](Self::budget) is called.
    pub fn with(policy: RetryPolicy) -> Self {
        // As much as linkerd keeps of a request for its retries
        // (<https://linkerd.io/2021/10/26/how-linkerd-retries-http-requests-with-bodies/>).
        let max_body = 64 << 10;
        Self { policy, max_body }
    }

    /// Sets the length in bytes up to which a body is recorded. A request with
    /// a longer one is served as without the layer. Default: 64 KiB. Up to that
    /// much memory is used for each request whose body is read.
    pub fn max_body(mut self, bytes: usize) -> Self {
        self.max_body = bytes;
        self
    }

    /// Sets how many attempts are made in all. Default: 3. See
    /// [`RetryPolicy::attempts`].
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.policy = self.policy.attempts(attempts);
        self
    }

    /// Sets the wait before a retry. Default: from 5 ms, doubled each time, to
    /// 200 ms. See [`RetryPolicy::backoff`].
    pub fn backoff(mut self, min: Duration, max: Duration) -> Self {
        self.policy = self.policy.backoff(min, max);
        self
    }

    /// Sets how many retries are allowed for each request. Default: 0.2, one
    /// for every five. See [`RetryPolicy::budget`].
    ///
    /// # Panics
    ///
    /// If `ratio` is negative, above 1000, or not a number.
    pub fn budget(mut self, ratio: f32) -> Self {
        self.policy = self.policy.budget(ratio);
        self
    }

    /// Sets the time since the first attempt after which no other begins.
    /// Default: 10 s. A gRPC request's own `grpc-timeout` counts as well. See
    /// [`RetryPolicy::total_timeout`].
    pub fn total_timeout(mut self, timeout: Duration) -> Self {
        self.policy = self.policy.total_timeout(timeout);
        self
    }
}

impl Default for RetryLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> Layer<S> for RetryLayer {
    type Service = RetryService<S>;

    fn layer(&self, inner: S) -> RetryService<S> {
        RetryService::new(inner, self.policy.clone(), self.max_body)
    }
}
