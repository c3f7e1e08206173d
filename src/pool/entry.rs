//! [`Entry`]: a session in the pool's registry.

use std::{sync::Weak, time::Instant};

use super::{
    hold_times::{Due, Logged, Watch},
    holder::{Holder, Key},
};

/// A session in the registry.
pub(super) struct Entry {
    // Weak, since an entry only names its session: held, that could end in here, and user code with it under the lock.
    pub(super) holder: Weak<dyn Holder>,
    /// The outermost session of its request, which counts the connection.
    pub(super) request: Option<Weak<dyn Holder>>,
    /// `None` for a session that holds no connection of the pool's.
    pub(super) watch: Option<Watch>,
    /// Its number among the offers.
    pub(super) offer: Option<u64>,
}

impl Entry {
    pub(super) fn new(
        holder: Weak<dyn Holder>,
        request: Option<Weak<dyn Holder>>,
        watch: Option<Watch>,
    ) -> Self {
        Self {
            holder,
            request,
            watch,
            offer: None,
        }
    }

    /// A holder that is upgraded here must not be dropped under the lock: `due` takes it along.
    pub(super) fn look(&mut self, key: Key, now: Instant, due: &mut Due) {
        let Some(watch) = &mut self.watch else { return };
        let [is_long, is_doubtful, is_too_long] =
            [watch.warn_at, watch.ask_at, watch.cut_at].map(|at| at.is_some_and(|at| at <= now));
        let held = now.saturating_duration_since(watch.since);
        if (is_long || is_doubtful || is_too_long)
            && let Some(holder) = self.holder.upgrade()
        {
            if is_long {
                watch.logged.get_or_insert_with(|| Logged {
                    label: holder.label(),
                    since: watch.since,
                });
                due.long.push((key, holder.clone(), held));
            }
            if is_doubtful {
                due.doubtful.push(holder.clone());
            }
            if is_too_long {
                due.too_long.push((key, holder, held));
            }
        }
        // Also where the session has gone: its entry is about to leave.
        watch.go_on(now);
        if let Some(next) = watch.due() {
            due.next = due.next.min(Some(next.saturating_duration_since(now)));
        }
    }
}
