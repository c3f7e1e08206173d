//! [`WeakSessionPool`]: a handle that does not keep its pool.

use std::{
    any::Any,
    fmt,
    sync::{Arc, Weak},
};

/// A handle that does not keep its pool, from [`SessionPool::downgrade`](crate::SessionPool::downgrade).
// Of no type: an observer is given one, and the pool has its observers.
#[derive(Clone)]
pub struct WeakSessionPool(Weak<dyn Any + Send + Sync>);

impl WeakSessionPool {
    pub(super) fn of<T: Any + Send + Sync>(pool: &Arc<T>) -> Self {
        let weak: Weak<T> = Arc::downgrade(pool);
        Self(weak)
    }

    /// Returns what it was made of, if that is still there.
    pub(super) fn inner<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        self.0.upgrade()?.downcast().ok()
    }
}

impl fmt::Debug for WeakSessionPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WeakSessionPool").finish_non_exhaustive()
    }
}
