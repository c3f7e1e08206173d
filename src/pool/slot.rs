//! The guards of the [`Ledger`](super::ledger::Ledger)'s counters: a
//! [`FetchGuard`] while a connection is fetched, a [`SlotGuard`] while it is
//! out.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use super::{
    inner::PoolInner,
    ledger::{Ledger, Use},
};

/// The right to fetch one connection; a connection that arrives turns it into a
/// [`SlotGuard`].
pub(super) struct FetchGuard {
    pool: Arc<PoolInner>,
    /// The waiter whose runtime the fetch runs on.
    waiter: u64,
    stage: Stage,
}

enum Stage {
    /// Its task has not run yet. The flag stands while `fill` is spawning it: a
    /// runtime that is shutting down drops the task within the spawn, and
    /// `fill` must not be called by itself.
    Spawned(Arc<AtomicBool>),
    /// The driver is at work.
    Fetching,
    /// For so long that no waiter counts on it.
    Slow,
    /// A connection has come of it.
    Fetched,
}

impl FetchGuard {
    pub(super) fn new(pool: Arc<PoolInner>, waiter: u64, is_spawning: Arc<AtomicBool>) -> Self {
        Self {
            pool,
            waiter,
            stage: Stage::Spawned(is_spawning),
        }
    }

    pub(super) fn pool(&self) -> &Arc<PoolInner> {
        &self.pool
    }

    pub(super) fn begin(&mut self) {
        self.stage = Stage::Fetching;
    }

    /// Notes that the driver takes long: those who wait need not wait for this
    /// fetch.
    pub(super) fn become_slow(&mut self) {
        self.stage = Stage::Slow;
        self.pool.ledger().fetches.become_slow();
        // At once: a waiter that counted on this fetch gets another one, or an
        // idle connection
        // (`while_a_connect_is_silent_its_waiters_get_another_one`).
        self.pool.fill();
    }

    /// Turns it into the slot of the connection that has come.
    pub(super) fn into_slot(mut self) -> SlotGuard {
        let stage = std::mem::replace(&mut self.stage, Stage::Fetched);
        // Under one lock: in between, it would be neither fetched nor out, and
        // another fetch might begin.
        let mut ledger = self.pool.ledger();
        ledger.fetches.succeed(matches!(stage, Stage::Slow));
        ledger.occupy(Use::Session);
        drop(ledger);
        SlotGuard::new(self.pool.clone(), Use::Session)
    }
}

impl Drop for FetchGuard {
    fn drop(&mut self) {
        match &self.stage {
            Stage::Fetched => {}
            // It has failed, or its runtime has dropped it half-way.
            Stage::Fetching | Stage::Slow => {
                let was_slow = matches!(self.stage, Stage::Slow);
                // In this order: as long as it counts as running, no other
                // fetch would begin for those that wait.
                self.pool.ledger().fetches.end(was_slow);
                self.pool.fill();
            }
            Stage::Spawned(is_spawning) => {
                let mut ledger = self.pool.ledger();
                ledger.fetches.end(false);
                // Its runtime takes no tasks, because it is shutting down: the
                // waiter can get nothing.
                let waiter = ledger.waiters.remove(self.waiter);
                drop(ledger);
                // Wakes it, which must not happen under the lock.
                drop(waiter);
                // Within `fill`'s own spawn, its loop goes on to the next
                // waiter by itself. Shown by
                // `g11_a_runtime_dropped_with_sessions_out_panics_nowhere`.
                if !is_spawning.load(Ordering::Acquire) {
                    self.pool.fill();
                }
            }
        }
    }
}

/// One connection that is out; dropping it frees the slot for the next waiter.
pub(super) struct SlotGuard {
    pool: Arc<PoolInner>,
    /// `None` once it is free.
    // Taken when it is freed: `Drop` comes behind that, and must not count once
    // more.
    counts_as: Option<Use>,
}

impl SlotGuard {
    /// A guard for what the ledger has counted just now.
    pub(super) fn new(pool: Arc<PoolInner>, counts_as: Use) -> Self {
        Self {
            pool,
            counts_as: Some(counts_as),
        }
    }

    pub(super) fn pool(&self) -> &Arc<PoolInner> {
        &self.pool
    }

    /// Frees the slot where the caller holds the ledger: what comes next is
    /// decided there, under the same lock.
    pub(super) fn free_in<T, C>(&mut self, ledger: &mut Ledger<T, C>) {
        if let Some(counts_as) = self.counts_as.take() {
            ledger.vacate(counts_as);
        }
    }

    /// Frees the slot for the next waiter.
    pub(super) fn free(&mut self) {
        if let Some(counts_as) = self.counts_as.take() {
            self.pool.ledger().vacate(counts_as);
            // The lock is free again: this hands connections over, which wakes
            // tasks.
            self.pool.fill();
        }
    }
}

impl Drop for SlotGuard {
    fn drop(&mut self) {
        self.free();
    }
}
