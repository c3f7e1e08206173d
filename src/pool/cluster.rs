//! [`Cluster`]: what a pool with replicas knows of the cluster that its server belongs to.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, AtomicU32, Ordering},
};

use crate::connection::Promotion;

/// What the checks of replicas have seen of a cluster.
#[derive(Default)]
pub(crate) struct Cluster {
    /// The latest timeline that any of its servers has shown. On MariaDB, a
    /// number that grows with what is known of its promotions.
    latest_timeline: AtomicU32,
    /// The last promotion on MariaDB.
    promotion: Mutex<Option<Arc<Promotion>>>,
    /// The pool's server was a node of a Galera cluster at the last check.
    is_galera: AtomicBool,
}

impl Cluster {
    pub(super) fn latest_timeline(&self) -> u32 {
        self.latest_timeline.load(Ordering::Relaxed)
    }

    /// Notes a timeline that one of its servers has shown. Returns the latest
    /// one.
    pub(crate) fn note_latest_timeline(&self, timeline: u32) -> u32 {
        // Timelines only grow, and the servers of a cluster show theirs in any
        // order.
        let before = self.latest_timeline.fetch_max(timeline, Ordering::Relaxed);
        before.max(timeline)
    }

    pub(crate) fn promotion(&self) -> Option<Arc<Promotion>> {
        let promotion = self.promotion.lock();
        promotion.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes what the checks have seen of the last promotion on MariaDB.
    #[cfg(feature = "replicas")]
    pub(crate) fn note_promotion(&self, promotion: Option<Promotion>) {
        let last = self.promotion.lock();
        let mut last = last.unwrap_or_else(PoisonError::into_inner);
        if last.as_deref() == promotion.as_ref() {
            return;
        }
        *last = promotion.map(Arc::new);
        // After it: whoever sees the number finds the promotion. The first one
        // is no doubt.
        let number = self.latest_timeline().max(1).saturating_add(1);
        self.latest_timeline.store(number, Ordering::Relaxed);
    }

    pub(crate) fn is_galera(&self) -> bool {
        self.is_galera.load(Ordering::Relaxed)
    }

    #[cfg(feature = "replicas")]
    pub(crate) fn note_galera(&self, is_galera: bool) {
        self.is_galera.store(is_galera, Ordering::Relaxed);
    }
}
