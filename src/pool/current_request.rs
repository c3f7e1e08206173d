//! The request that this thread is polling, which tells its own waits from those of tasks that it has spawned.

use std::{cell::RefCell, sync::Arc};

use super::holder::Holder;

thread_local! {
    static CURRENT: RefCell<Option<Arc<dyn Holder>>> = const { RefCell::new(None) };
}

/// Returns the request that is being polled, by its outermost session.
pub(crate) fn current() -> Option<Arc<dyn Holder>> {
    CURRENT
        .try_with(|current| current.borrow().clone())
        .ok()
        .flatten()
}

/// Attributes what is polled to `request`, until the returned value is dropped.
pub(crate) fn enter(request: Arc<dyn Holder>) -> Entered {
    Entered {
        before: replace(Some(request)),
    }
}

/// Restores what was current before when it is dropped.
#[must_use = "it is over when this is dropped"]
pub(crate) struct Entered {
    before: Option<Arc<dyn Holder>>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        drop(replace(self.before.take()));
    }
}

/// Returns the old value, so that it is dropped after the borrow has ended: its drop may come by here again.
fn replace(next: Option<Arc<dyn Holder>>) -> Option<Arc<dyn Holder>> {
    CURRENT
        .try_with(|current| current.replace(next))
        .ok()
        .flatten()
}
