//! [`Origin`]: which request or job a session belongs to.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU32},
};

use super::plan::{Plan, Rules};
use crate::pool::{Holder, Label};

/// Where a session comes from.
#[derive(Default)]
pub(super) struct Origin {
    /// The outermost session of the request in which it was opened.
    outer: Option<Arc<dyn Holder>>,
    /// What its own request is called.
    label: Option<Label>,
    /// It is that of a job, for which all holds that is said of a request.
    is_job: bool,
    /// Its guard is owned by user code and may move to another task.
    pub(super) is_loose: bool,
    /// It has no guard: nothing but its handles ends it.
    pub(super) is_plain: bool,
    /// Another session of its own request has committed something.
    pub(super) has_committed_beside: AtomicBool,
    /// How many waits for a connection its own request has.
    pub(super) own_waits: AtomicU32,
}

impl Origin {
    pub(super) fn of(plan: Plan, outer: Option<Arc<dyn Holder>>) -> (Rules, Self) {
        let origin = Self {
            outer,
            label: plan.label,
            is_job: plan.is_job,
            is_loose: plan.is_loose,
            is_plain: plan.is_plain,
            ..Self::default()
        };
        (plan.rules, origin)
    }

    pub(super) fn outer(&self) -> Option<&Arc<dyn Holder>> {
        self.outer.as_ref()
    }

    /// Returns whether what is opened while its future is polled belongs to it.
    pub(super) fn is_outermost(&self) -> bool {
        self.label.is_some() || self.is_job
    }

    /// Returns whether it is a request's, or of one.
    pub(super) fn is_of_request(&self) -> bool {
        let outer = self.outer.as_ref();
        self.label.is_some() || outer.is_some_and(|outer| outer.label().is_some())
    }

    /// Returns what its request is called.
    pub(super) fn label(&self) -> Option<Label> {
        let outer = self.outer.as_ref();
        self.label.clone().or_else(|| outer?.label())
    }

    /// Returns how many waits for a connection its request has.
    pub(super) fn waits(&self) -> &AtomicU32 {
        match &self.outer {
            Some(outer) => outer.waits(),
            None => &self.own_waits,
        }
    }
}
