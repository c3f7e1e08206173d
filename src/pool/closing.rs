//! [`Closing`]: how far a pool has closed, and the sessions that it waits for.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};

use tokio::{sync::Notify, time::timeout};

#[derive(Default)]
pub(super) struct Closing {
    /// New sessions are refused.
    has_begun: AtomicBool,
    /// No session gets a connection any more.
    is_shut: AtomicBool,
    /// Sessions that have begun and not ended, those that wait for their
    /// connection included.
    // Not read off the registry: a session that has not acquired its connection
    // yet, or has lent it, counts too
    // (`a_pool_that_closes_waits_for_a_session_that_has_lent`).
    sessions: AtomicUsize,
    /// A session has ended, or a connection is back.
    changed: Notify,
}

impl Closing {
    pub(super) fn begin(&self) {
        // Never taken back: a `close` that was dropped half-way leaves new
        // sessions refused
        // (`a_dropped_close_refuses_new_sessions_and_leaves_the_others_alone`).
        self.has_begun.store(true, Ordering::SeqCst);
    }

    pub(super) fn has_begun(&self) -> bool {
        self.has_begun.load(Ordering::SeqCst)
    }

    pub(super) fn shut(&self) {
        self.is_shut.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_shut(&self) -> bool {
        self.is_shut.load(Ordering::SeqCst)
    }

    pub(super) fn sessions(&self) -> usize {
        self.sessions.load(Ordering::SeqCst)
    }

    /// Counts a session from here on, unless new ones are refused.
    pub(super) fn count(&self) -> Option<CountedSession<'_>> {
        // Sequentially consistent, as `begin` and `sessions`: each side stores
        // and then reads what the other has stored, and with a weaker order
        // both could miss it.
        self.sessions.fetch_add(1, Ordering::SeqCst);
        let counted = CountedSession(Some(self));
        // Only when it was counted: either it is refused, or closing waits for
        // it.
        (!self.has_begun()).then_some(counted)
    }

    /// Notes that a session which [has begun](CountedSession::begin) has ended.
    pub(super) fn session_ended(&self) {
        self.sessions.fetch_sub(1, Ordering::SeqCst);
        // `last_session` waits for sessions that never had a connection as
        // well.
        self.changed();
    }

    /// Notes that a session has ended, or that a connection is back.
    pub(super) fn changed(&self) {
        // Every returned connection comes by here, and `notify_waiters` takes a
        // lock.
        if self.has_begun() {
            self.changed.notify_waiters();
        }
    }

    /// Waits for the next change, at most `time`.
    pub(super) async fn change(&self, time: Duration) {
        let _ = timeout(time, self.changed.notified()).await;
    }

    /// Waits until there is no session.
    pub(super) async fn last_session(&self) {
        loop {
            // Made before the look: it hears of what changes from here on.
            let changed = self.changed.notified();
            if self.sessions() == 0 {
                return;
            }
            changed.await;
        }
    }
}

/// A session that is about to begin; dropped, it counts no more.
#[must_use = "the session counts as long as this lives"]
pub(crate) struct CountedSession<'c>(Option<&'c Closing>);

impl CountedSession<'_> {
    /// It has begun, and counts until its guard says that it has ended.
    pub(crate) fn begin(mut self) {
        self.0 = None;
    }
}

impl Drop for CountedSession<'_> {
    fn drop(&mut self) {
        if let Some(closing) = self.0 {
            closing.session_ended();
        }
    }
}
