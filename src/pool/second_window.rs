//! [`SecondWindow`]: serves the waiters when the time is over for which the last connection is kept for requests that hold
//! one.

use std::{
    sync::{Arc, Weak},
    time::Instant,
};

use tokio::{runtime::Handle, time::sleep};

use super::{
    background::Work,
    holder::{Holder, current, holds_one},
    inner::PoolInner,
};

pub(super) struct SecondWindow {
    // Weak, because it is a task: the pool may go meanwhile.
    pool: Weak<PoolInner>,
}

impl SecondWindow {
    /// Sees to it that what waits is served when that time is over: a connection may be free, and no other event would
    /// give it to them.
    pub(super) fn watch(pool: &Arc<PoolInner>) {
        if pool.ledger().kept_until().is_none() || !pool.has_waiters() {
            return;
        }
        // Without a runtime, nothing waits.
        if let Ok(runtime) = Handle::try_current() {
            let weak = Arc::downgrade(pool);
            pool.second_window
                .start(&runtime, || SecondWindow { pool: weak });
        }
    }
}

/// Keeps the last free connection for requests that hold one, if the current one does, or will when its
/// own session is used: a session store reads before that, and writes afterwards.
pub(crate) fn expect_second(pool: &Arc<PoolInner>) {
    let expects = |request: &dyn Holder| request.is_on(&pool.driver) || holds_one(request);
    if current().is_some_and(|request| expects(&*request)) {
        pool.ledger().expect_second();
        SecondWindow::watch(pool);
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
