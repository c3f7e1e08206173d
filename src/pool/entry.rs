//! [`Entry`]: a session in the pool's registry; and [`Watch`]: the times by which something is done about one that holds a
//! connection.

use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use super::{
    holder::{Holder, Key, Label},
    options::Settings,
};

/// A session in the registry.
pub(super) struct Entry {
    // Weak, since an entry only names its session: held, that could end in
    // here, and user code with it under the lock.
    pub(super) holder: Weak<dyn Holder>,
    /// The outermost session of its request, which counts the connection.
    pub(super) request: Option<Weak<dyn Holder>>,
    /// `None` for a session that holds no connection of the pool's.
    // A mock's session is here too, so that `close` finds it.
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

    /// A holder that is upgraded here must not be dropped under the lock: `due`
    /// takes it along.
    pub(super) fn look(&mut self, key: Key, now: Instant, due: &mut Due) {
        let Some(watch) = &mut self.watch else { return };
        let [is_long, is_doubtful, is_too_long] =
            [watch.warn_at, watch.ask_at, watch.cut_at].map(|at| at.is_some_and(|at| at <= now));
        let held = now.saturating_duration_since(watch.since);
        if (is_long || is_doubtful || is_too_long)
            && let Some(holder) = self.holder.upgrade()
        {
            if is_long {
                // With its label: by the time of the second line, the session
                // may be gone.
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

/// The server is asked this often whether it works for a holder.
pub(super) const ASK: Duration = Duration::from_secs(5);

/// A connection that could not be taken away is tried again this soon.
pub(super) const AGAIN: Duration = Duration::from_millis(50);

/// The times by which something is done about a holder.
pub(super) struct Watch {
    pub(super) since: Instant,
    pub(super) warn_at: Option<Instant>,
    /// The time at which the server is asked whether it still works for the
    /// holder.
    pub(super) ask_at: Option<Instant>,
    pub(super) cut_at: Option<Instant>,
    pub(super) logged: Option<Logged>,
}

/// A line in the log about a holder.
pub(super) struct Logged {
    pub(super) label: Option<Label>,
    pub(super) since: Instant,
}

/// The work of the hold watch.
pub(super) struct Due {
    pub(super) long: Vec<(Key, Arc<dyn Holder>, Duration)>,
    /// The holders of which the server is to be asked.
    pub(super) doubtful: Vec<Arc<dyn Holder>>,
    pub(super) too_long: Vec<(Key, Arc<dyn Holder>, Duration)>,
    /// The time it may sleep; `None` if there is nothing left to watch.
    pub(super) next: Option<Duration>,
}

impl Watch {
    pub(super) fn begin(settings: &Settings) -> Self {
        let since = Instant::now();
        let warn_at = since.checked_add(settings.hold_slow_threshold);
        Self {
            since,
            warn_at,
            // The server process behind a connection is known only with
            // `cancel_running`.
            ask_at: warn_at.filter(|_| settings.cancel_running),
            // No limit is the longest time, which the clock cannot show:
            // nothing is due then.
            cut_at: since.checked_add(settings.hold_timeout),
            logged: None,
        }
    }

    pub(super) fn due(&self) -> Option<Instant> {
        let times = [self.warn_at, self.ask_at, self.cut_at];
        times.into_iter().flatten().min()
    }

    /// Sets what was due by `now` to the next time, if there is one.
    pub(super) fn go_on(&mut self, now: Instant) {
        // Once for each hold: its second line says that the connection has come
        // back.
        self.warn_at.take_if(|at| *at <= now);
        if self.ask_at.is_some_and(|at| at <= now) {
            self.ask_at = now.checked_add(ASK);
        }
        // Until it has been cut: a COMMIT under way is not.
        if self.cut_at.is_some_and(|at| at <= now) {
            self.cut_at = now.checked_add(AGAIN);
        }
    }
}
