//! Requests that hold a connection each and wait for a second one: the deadlock
//! is broken; and [`SecondWindow`] serves the waiters when the time is over for
//! which the last connection is kept for such requests.

use std::{
    collections::HashSet,
    sync::{Arc, Weak},
    time::Instant,
};

use tokio::{runtime::Handle, time::sleep};

use super::{
    background::Work,
    holder::{Grip, Holder, current, holds_one, identity},
    inner::PoolInner,
};
use crate::error::{Error, Kind};

/// Looks whether any of the requests that wait for a second session can still
/// go on, after a change for one of them. If none can, the newest gets an
/// error.
pub(crate) fn break_deadlock(pool: &PoolInner) {
    // Not under the ledger's lock, since `grip` takes each session's own: the
    // ledger compares with its own count, which is another one if a connection
    // has come or gone since.
    let Some(requests) = requests_of(&pool.registry.all()) else {
        return;
    };
    // The newest: it has the least behind it. Its error ends its request, whose
    // connection then serves the next.
    let newest = pool.ledger().take_deadlocked(&requests);
    let Some(newest) = newest else { return };
    // Only if it was heard: a waiter that has left meanwhile has broken the
    // deadlock by itself.
    if newest.answer(Err(Kind::PoolDeadlock.into())).is_ok() {
        tracing::warn!(target: "tower_sea_orm::pool", "{}", Error::from(Kind::PoolDeadlock));
    }
}

/// Returns the requests that hold the connections; `None` if one of the
/// `holders` will certainly go on by itself. A request that waits may be served
/// when another one's session ends; where all of them wait for a second
/// connection, none would end before the acquire time-out.
fn requests_of(holders: &[Arc<dyn Holder>]) -> Option<Vec<Arc<dyn Holder>>> {
    // A running statement ends, and a connection on its way back arrives: also
    // of a session that has another by now.
    let mut seen = HashSet::with_capacity(holders.len());
    if holders
        .iter()
        .any(|holder| holder.grip() != Grip::Idle || !seen.insert(identity(holder)))
    {
        return None;
    }
    // A session that is not bound to its request may have moved to another
    // task.
    let bound = holders.iter().filter(|holder| holder.is_bound());
    let requests = bound.filter_map(|holder| holder.clone().request());
    Some(requests.collect())
}

pub(super) struct SecondWindow {
    // Weak, because it is a task: the pool may go meanwhile.
    pool: Weak<PoolInner>,
}

impl SecondWindow {
    /// Sees to it that what waits is served when that time is over: a
    /// connection may be free, and no other event would give it to them.
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

/// Keeps the last free connection for requests that hold one, if the current
/// one does, or will when its own session is used: a session store reads before
/// that, and writes afterwards.
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
        // Read anew each time: every second session that is taken puts the end
        // off.
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
