//! [`Waiting`]: a place in the queue of waiters, left when it is dropped.

use std::sync::{Arc, atomic::Ordering};

use super::{checked_out::Lease, holder::Holder, inner::PoolInner, waiters::Receiver};

/// A place in the queue.
pub(super) struct Waiting<'p> {
    pub(super) receiver: Receiver<Lease>,
    pool: &'p PoolInner,
    request: Option<Arc<dyn Holder>>,
    pub(super) is_answered: bool,
}

impl<'p> Waiting<'p> {
    pub(super) fn new(
        receiver: Receiver<Lease>,
        pool: &'p PoolInner,
        request: Option<Arc<dyn Holder>>,
    ) -> Self {
        if let Some(request) = &request {
            // By this count it is known that a connection of the request, once it rests, may complete a deadlock (H11).
            request.waits().fetch_add(1, Ordering::Relaxed);
        }
        Self {
            receiver,
            pool,
            request,
            is_answered: false,
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.is_answered {
            // First: what is given from here on comes back to the giver, and the count below is of closed ones.
            self.receiver.close();
            self.pool.ledger().waiters.left();
        }
        if let Some(request) = &self.request {
            request.waits().fetch_sub(1, Ordering::Relaxed);
        }
    }
}
