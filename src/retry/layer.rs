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
    /// Creates a layer with [the default policy](RetryPolicy::new) for bodies of up to 64 KiB.
    pub fn new() -> Self {
        Self::with(RetryPolicy::new())
    }

    /// Creates a layer with a policy that others may share.
    pub fn with(policy: RetryPolicy) -> Self {
        let max_body = 64 << 10;
        Self { policy, max_body }
    }

    /// Sets the length in bytes up to which a body is recorded. A request with a longer one is served as without the layer.
    /// Default: 64 KiB. Up to that much memory is used for each request whose body is read.
    pub fn max_body(mut self, bytes: usize) -> Self {
        self.max_body = bytes;
        self
    }

    /// [`RetryPolicy::attempts`].
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.policy = self.policy.attempts(attempts);
        self
    }

    /// [`RetryPolicy::backoff`].
    pub fn backoff(mut self, min: Duration, max: Duration) -> Self {
        self.policy = self.policy.backoff(min, max);
        self
    }

    /// [`RetryPolicy::budget`].
    ///
    /// # Panics
    ///
    /// As that.
    pub fn budget(mut self, ratio: f32) -> Self {
        self.policy = self.policy.budget(ratio);
        self
    }

    /// [`RetryPolicy::total_timeout`]. A gRPC request's own `grpc-timeout` counts as well.
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
