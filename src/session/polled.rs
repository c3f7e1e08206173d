//! Which sessions' raw code this thread is polling: a statement within it would
//! wait for itself.

use std::{cell::RefCell, future::poll_fn, sync::Arc};

use futures_util::future::BoxFuture;

use super::core::Core;

thread_local! {
    /// The sessions by their addresses, innermost last.
    // Addresses, because raw code must be `'static` and a reference to its
    // session would be a cycle. While one is polled, the session is alive and
    // its address its own.
    static POLLED: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// Returns whether this is called by raw code of the session `core`.
pub(super) fn is_polled_for(core: &Arc<Core>) -> bool {
    let session = address(core);
    POLLED
        .try_with(|polled| polled.borrow().contains(&session))
        // A thread that ends polls nothing any more.
        .unwrap_or(false)
}

pub(super) fn address(core: &Arc<Core>) -> usize {
    Arc::as_ptr(core).addr()
}

/// Polls raw code in the name of the session at the address `session`.
pub(super) async fn polled_for<T>(session: usize, mut code: BoxFuture<'_, T>) -> T {
    poll_fn(move |cx| {
        // A guard, so that code that panics is taken off as well.
        let _polled = Polled::new(session);
        code.as_mut().poll(cx)
    })
    .await
}

struct Polled;

impl Polled {
    fn new(session: usize) -> Self {
        let _ = POLLED.try_with(|polled| polled.borrow_mut().push(session));
        Self
    }
}

impl Drop for Polled {
    fn drop(&mut self) {
        let _ = POLLED.try_with(|polled| polled.borrow_mut().pop());
    }
}
