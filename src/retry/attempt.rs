//! [`Attempt`]: the number of an attempt at a request.

use http::Extensions;

/// In a request's extensions, the number of this attempt; in a response's, how many were made (feature `retry`).
///
/// A [`RetryLayer`](crate::RetryLayer) puts it there, counting from 1. With the feature `axum` it is a handler argument as well, 1
/// where no layer counts.
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

    /// Returns the attempt that a request or a response belongs to, by its extensions; the first one without a layer.
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
        Self(self.0.saturating_add(1))
    }
}
