//! Whose request this thread is polling: tells a request's own wait from a spawned task's.

use std::{cell::RefCell, sync::Arc};

use super::Holder;

thread_local! {
    static CURRENT: RefCell<Option<Arc<dyn Holder>>> = const { RefCell::new(None) };
}

/// The request that is being polled, by its outermost session.
pub(crate) fn current() -> Option<Arc<dyn Holder>> {
    CURRENT
        .try_with(|current| current.borrow().clone())
        .ok()
        .flatten()
}

/// What is polled from here on, until the returned value is dropped, belongs to `request`.
pub(crate) fn enter(request: Arc<dyn Holder>) -> Entered {
    Entered {
        before: replace(Some(request)),
    }
}

/// Restores, when it is dropped, what was current before.
#[must_use = "it is over when this is dropped"]
pub(crate) struct Entered {
    before: Option<Arc<dyn Holder>>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        drop(replace(self.before.take()));
    }
}

/// Whatever goes is dropped by the caller, when nothing is borrowed any more.
fn replace(next: Option<Arc<dyn Holder>>) -> Option<Arc<dyn Holder>> {
    CURRENT
        .try_with(|current| current.replace(next))
        .ok()
        .flatten()
}
