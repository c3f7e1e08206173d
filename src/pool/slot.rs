//! What a connection's place in the pool goes through: a [`FetchGuard`] while it is fetched, a [`SlotGuard`]
//! while it is out.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use super::{SessionPool, registry::Key};

/// The right to fetch one connection; a connection that arrives turns it into a [`SlotGuard`].
pub(super) struct FetchGuard {
    pool: SessionPool,
    /// Whose runtime the fetch runs on.
    waiter: u64,
    stage: Stage,
}

enum Stage {
    /// Given to a runtime; the flag stands while `fill` is still at it.
    Spawned(Arc<AtomicBool>),
    /// The driver is at work.
    Fetching,
    /// For so long that nobody counts on it any more.
    Slow,
    /// A connection has come of it.
    Redeemed,
}

impl FetchGuard {
    pub(super) fn new(pool: SessionPool, waiter: u64, spawning: Arc<AtomicBool>) -> Self {
        Self {
            pool,
            waiter,
            stage: Stage::Spawned(spawning),
        }
    }

    pub(super) fn pool(&self) -> &SessionPool {
        &self.pool
    }

    pub(super) fn begin(&mut self) {
        self.stage = Stage::Fetching;
    }

    /// The driver takes long: those who wait need not wait for this fetch.
    pub(super) fn take_long(&mut self) {
        self.stage = Stage::Slow;
        self.pool.shared.queue.fetch_is_slow(&self.pool);
    }

    pub(super) fn redeem(mut self) -> SlotGuard {
        let stage = std::mem::replace(&mut self.stage, Stage::Redeemed);
        self.pool.shared.queue.fetched(matches!(stage, Stage::Slow));
        SlotGuard {
            pool: self.pool.clone(),
            counts: Counts::InUse,
            holder: None,
        }
    }
}

impl Drop for FetchGuard {
    fn drop(&mut self) {
        let queue = &self.pool.shared.queue;
        match &self.stage {
            Stage::Redeemed => {}
            Stage::Fetching => queue.fetched_nothing(&self.pool, false),
            Stage::Slow => queue.fetched_nothing(&self.pool, true),
            Stage::Spawned(spawning) => {
                queue.never_fetched(self.waiter);
                if !spawning.load(Ordering::Acquire) {
                    queue.fill(&self.pool);
                }
            }
        }
    }
}

/// One connection that is out; dropping it frees the slot for the next waiter.
pub(super) struct SlotGuard {
    pool: SessionPool,
    counts: Counts,
    /// By what the pool's register knows its session.
    holder: Option<Key>,
}

/// What a slot counts as.
#[derive(Clone, Copy)]
enum Counts {
    InUse,
    /// Its warm connection goes back to the driver's pool: no session holds it.
    Cooling,
    Free,
}

impl SlotGuard {
    pub(super) fn pool(&self) -> &SessionPool {
        &self.pool
    }

    /// Moves the slot out, leaving a guard that frees nothing.
    pub(super) fn take(&mut self) -> Self {
        let mut counts = std::mem::replace(&mut self.counts, Counts::Free);
        if matches!(counts, Counts::Cooling) {
            // It goes elsewhere after all.
            self.pool.shared.queue.not_cooled();
            counts = Counts::InUse;
        }
        Self {
            pool: self.pool.clone(),
            counts,
            holder: self.holder.take(),
        }
    }

    /// Its warm connection goes back to the driver's pool; the queue has counted it so.
    pub(super) fn cool(&mut self) {
        self.counts = Counts::Cooling;
    }

    /// A session holds it from now on.
    pub(super) fn hold(&mut self, key: Key) {
        self.holder = Some(key);
    }

    /// Frees the slot for the next waiter. Its session has none until another one [succeeds](Self::succeed).
    pub(super) fn free(&mut self) {
        let queue = &self.pool.shared.queue;
        match std::mem::replace(&mut self.counts, Counts::Free) {
            Counts::InUse => queue.freed(&self.pool),
            Counts::Cooling => queue.cooled(&self.pool),
            Counts::Free => {}
        }
    }

    /// The session of `freed` holds this one.
    pub(super) fn succeed(&mut self, freed: &mut Self) {
        self.holder = freed.holder.take();
    }

    /// No session holds it any more.
    pub(super) fn leave(&mut self) {
        if let Some(key) = self.holder.take() {
            self.pool.note_return(key);
        }
    }
}

impl Drop for SlotGuard {
    fn drop(&mut self) {
        self.leave();
        self.free();
    }
}
