//! [`Origin`]: the request or job that a session belongs to.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU32},
};

use super::plan::OpenedFor;
use crate::pool::{Holder, Label};

/// The request or job that a session belongs to.
pub(super) struct Origin {
    opened_for: OpenedFor,
    /// The outermost session of the request in which it was opened.
    outer: Option<Arc<dyn Holder>>,
    /// Another session of the same request has committed something.
    pub(super) has_committed_beside: AtomicBool,
    /// The number of waits for a connection in its own request.
    pub(super) own_waits: AtomicU32,
}

impl Origin {
    pub(super) fn new(opened_for: OpenedFor, outer: Option<Arc<dyn Holder>>) -> Self {
        Self {
            opened_for,
            outer,
            has_committed_beside: AtomicBool::new(false),
            own_waits: AtomicU32::new(0),
        }
    }

    pub(super) fn outer(&self) -> Option<&Arc<dyn Holder>> {
        self.outer.as_ref()
    }

    /// Returns whether what is opened while its future is polled belongs to it.
    pub(super) fn is_outermost(&self) -> bool {
        matches!(self.opened_for, OpenedFor::Request(_) | OpenedFor::Job)
    }

    /// Returns whether the session cannot outlive the future that it was opened for.
    pub(super) fn is_bound(&self) -> bool {
        !matches!(self.opened_for, OpenedFor::User)
    }

    /// Returns whether nothing but the session's handles ends it.
    pub(super) fn is_plain(&self) -> bool {
        matches!(self.opened_for, OpenedFor::Plain)
    }

    /// Returns whether it is a request's, or of one.
    pub(super) fn is_of_request(&self) -> bool {
        matches!(self.opened_for, OpenedFor::Request(_)) || self.label().is_some()
    }

    /// Returns what its request is called.
    pub(super) fn label(&self) -> Option<Label> {
        match &self.opened_for {
            OpenedFor::Request(label) => Some(label.clone()),
            _ => self.outer.as_ref()?.label(),
        }
    }

    /// Returns how many waits for a connection its request has.
    pub(super) fn waits(&self) -> &AtomicU32 {
        match &self.outer {
            Some(outer) => outer.waits(),
            None => &self.own_waits,
        }
    }
}
