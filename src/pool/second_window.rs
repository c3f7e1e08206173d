//! [`SecondWindow`]: serves the waiters when the time is over for which the last connection is kept for requests that hold
//! one.

use std::{
    sync::{Arc, Weak},
    time::Instant,
};

use tokio::{runtime::Handle, time::sleep};

use super::{background::Work, inner::PoolInner};

pub(super) struct SecondWindow {
    // Weak, because it is a task: the pool may go meanwhile.
    pool: Weak<PoolInner>,
}

impl PoolInner {
    /// Sees to it that what waits is served when that time is over: a connection may be free, and no other event would
    /// give it to them.
    pub(super) fn watch_second_window(self: &Arc<Self>) {
        if self.ledger().kept_until().is_none() || !self.has_waiters() {
            return;
        }
        // Without a runtime, nothing waits.
        if let Ok(runtime) = Handle::try_current() {
            let pool = Arc::downgrade(self);
            self.second_window.start(&runtime, || SecondWindow { pool });
        }
    }
}

impl Work for SecondWindow {
    async fn step(&mut self) -> bool {
        let Some(pool) = self.pool.upgrade() else {
            return false;
        };
        let until = pool.ledger().kept_until();
        let Some(until) = until else {
            pool.fill();
            return false;
        };
        // Not held while it sleeps.
        drop(pool);
        sleep(until.saturating_duration_since(Instant::now())).await;
        true
    }

    fn is_pending(&self) -> bool {
        self.pool.upgrade().is_some_and(|pool| {
            let is_kept = pool.ledger().kept_until().is_some();
            is_kept && pool.has_waiters()
        })
    }

    fn abandon(&mut self) {}
}
