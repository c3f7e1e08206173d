//! Giving connections back: to the next waiter, to the idle ones, or to the
//! driver's pool.

use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use tokio::{runtime::Handle, time::timeout};

use super::{
    chain::pass_on,
    checked_out::{CheckedOut, Parts},
    entry::Logged,
    hold_watch::HoldWatch,
    holder::{Holder, Key},
    inner::PoolInner,
    ledger::Use,
    log::{Unclean, log_session},
    plain_share::AgeVisit,
    reaper::Reaper,
    slot::SlotGuard,
};
use crate::{
    connection::{PinnedConnection, SILENCE},
    error::Kind,
};

impl CheckedOut {
    /// Takes a session's connection back: at once if it is clean, after
    /// cleaning it in a task if not, never if it is broken. `then` runs when it
    /// has left.
    pub(crate) fn give_back(self, then: impl FnOnce() + Send + 'static) {
        // `then` answers the request and runs its hooks: not before the
        // connection is away, or a client that comes back at once would find
        // the pool full.
        let Some(connection) = &self.parts.connection else {
            return then();
        };
        if connection.is_broken() {
            // The cause of its death may have killed the others. Shown by
            // `a_server_that_restarts_under_warm_connections_costs_one_request_at_most`.
            self.pool().return_idle();
            drop(self);
            then();
        } else if connection.is_clean() {
            self.put_back();
            then();
        } else {
            let Some(mut left) = pass_on(self) else {
                return then();
            };
            let runtime = left.parts.runtime.clone();
            left.begin_return();
            // On the connection's own runtime: the last handle may be dropped
            // on a thread without one (G11;
            // `handles_dropped_on_a_plain_thread_give_the_connection_back`).
            runtime.spawn(async move {
                // Bounded by the `release_timeout`, since a server that has
                // vanished never answers, and the slot would be gone for good
                // (H2,
                // <https://github.com/launchbadge/sqlx/issues/4349>;
                // `h2_a_hung_server_does_not_keep_a_returning_connections_slot`).
                match left.clean().await {
                    Ok(()) => {
                        // First: it evicts the connections to this server, this
                        // one included, which `put_back` then closes.
                        left.leave_read_only();
                        left.put_back_unless_changed();
                    }
                    Err(unclean) => {
                        left.log_unclean(&unclean);
                        drop(left);
                    }
                }
                then();
            });
        }
    }

    pub(super) async fn clean(&mut self) -> Result<(), Unclean> {
        let bound = self.pool.release_bound();
        let Some(connection) = &mut self.parts.connection else {
            return Err(Unclean::Failed(Kind::ConnectionLost.into_db_err()));
        };
        let cleaned = match bound {
            // Without a bound: closed, it would take its in-memory database
            // along (G4).
            None => connection.clean().await,
            Some(bound) => timeout(bound, connection.clean())
                .await
                .map_err(|_| Unclean::InTime)?,
        };
        cleaned.map_err(Unclean::Failed)
    }

    /// Logs why it is closed.
    fn log_unclean(&self, why: &Unclean) {
        // One that is out of step has a line of its own.
        if self.is_out_of_step() {
            return;
        }
        let Some(suppressed) = self.pool().lines.next_line("not cleaned", 1) else {
            return;
        };
        why.log(suppressed);
    }

    /// Puts it back, or closes it if the session has changed state on it that
    /// cannot be reset.
    fn put_back_unless_changed(self) {
        let connection = self.parts.connection.as_ref();
        // Put back, it would show the next session what this one has set (G13;
        // `g13_nothing_leaks_on_postgres`).
        if connection.is_some_and(|connection| connection.must_close()) {
            tracing::debug!(target: "tower_sea_orm::session", "closed a connection whose session state cannot be restored");
        } else {
            self.put_back();
        }
    }

    /// Hands a clean connection to the next waiter, keeps it idle, or returns
    /// it to the driver's pool.
    pub(super) fn put_back(mut self) {
        let pool = self.pool().clone();
        // G18: dropping it here closes it.
        if pool.is_evicted(self.parts.fetched) {
            return;
        }
        // Before it is placed: from then on it may be the next session's.
        self.parts.leave();
        if let Some(left) = pool.place(self) {
            left.return_to_driver();
        }
    }

    /// Gives a clean connection to sqlx's pool, and frees the slot when sqlx
    /// has it.
    fn return_to_driver(mut self) {
        let pool = self.pool().clone();
        if let Some(test) = pool.test() {
            // Not to sqlx's pool: the test's transaction is open on it.
            if let Some(connection) = self.parts.connection.take() {
                test.put(connection);
            }
            return;
        }
        let runtime = self.parts.runtime.clone();
        // All of it goes into the task: a runtime that is shutting down drops
        // it unpolled, and the slot is free.
        runtime.spawn(async move {
            let fetched = self.parts.fetched;
            if let Some(connection) = &mut self.parts.connection {
                pool.return_to_driver(connection, fetched).await;
            }
        });
    }
}

impl Parts {
    /// Gives an idle connection, whose pool is gone, to sqlx's pool in a task,
    /// within `bound` if there is one.
    pub(super) fn outlive_pool(mut self: Box<Self>, bound: Option<Duration>) {
        let runtime = self.runtime.clone();
        // In a task of the connection's runtime: the pool's last handle may go
        // on any thread (G11).
        runtime.spawn(async move {
            if let Some(connection) = &mut self.connection {
                return_within(connection, bound).await;
            }
        });
    }
}

impl PoolInner {
    /// Notes that `holder`, of `request`, holds a connection from now on, and
    /// sees to it that it is watched.
    pub(super) fn note_holder(
        self: &Arc<Self>,
        holder: Weak<dyn Holder>,
        request: Option<Weak<dyn Holder>>,
        runtime: &Handle,
    ) -> Key {
        // First: the watch looks once more after it has said that it rests.
        let (key, is_early) = self.registry.enter(holder, request, &self.settings);
        let is_started = self.hold_watch.start(runtime, || HoldWatch::over(self));
        if is_early && !is_started {
            self.hold_watch.ring();
        }
        key
    }

    /// Notes a session that passes its statements through: it is not watched.
    pub(crate) fn note_direct(&self, holder: Weak<dyn Holder>) -> Key {
        self.registry.enter_unwatched(holder)
    }

    /// Notes that a holder's connection is back.
    pub(crate) fn note_return(&self, key: Key) {
        if let Some(Logged { label, since }) = self.registry.leave(key) {
            log_session!(
                info,
                label,
                held_ms = since.elapsed().as_millis() as u64,
                "a connection held for a long time was returned",
            );
        }
        // `close()` waits for it.
        self.closing.changed();
    }

    /// Hands a clean connection on, keeps it idle, or gives it back for the
    /// driver's pool.
    fn place(self: &Arc<Self>, mut connection: CheckedOut) -> Option<CheckedOut> {
        let now = Instant::now();
        connection.parts.used = now;
        let age = now.saturating_duration_since(connection.parts.fetched);
        let visit = AgeVisit::of(age, connection.parts.returns, self.driver.max_lifetime());
        let is_due = visit == AgeVisit::Overdue;
        // A driver's pool that is being closed waits for every connection
        // (H26).
        if !self.settings.direct_handoff || self.is_test() || self.driver.is_closed() || is_due {
            return Some(connection);
        }
        // Only where it stays here: a visit of the driver's pool begins the
        // count anew.
        connection.parts.returns += 1;
        let max = self.driver.max_connections().unwrap_or(0);
        // Again for each waiter that has gone when it is answered.
        loop {
            let mut ledger = self.ledger();
            // Before the waiters: under load there is always one, and users of
            // the plain `DatabaseConnection` would get nothing
            // (`plain_users_share_a_pool_that_sessions_saturate`).
            if ledger.takes_visit(visit, max) {
                return Some(connection);
            }
            let Some(waiter) = ledger.next_turn() else {
                // The only one, kept here, would keep users of the plain
                // `DatabaseConnection` from the database.
                if max < 2 || ledger.idle.is_off() {
                    return Some(connection);
                }
                let runtime = connection.runtime().clone();
                // Under one lock: what is no longer out is idle in the same
                // moment.
                let idle = connection.into_idle(&mut *ledger);
                ledger.idle.push(idle, now);
                drop(ledger);
                // After the push: the reaper looks once more after it has said
                // that it rests.
                self.reaper.start(&runtime, || Reaper::over(self));
                return None;
            };
            drop(ledger);
            connection = Self::give(waiter, connection)?;
        }
    }

    /// Returns all idle connections to the driver's pool, which looks whether
    /// they are alive.
    pub(super) fn return_idle(self: &Arc<Self>) {
        let idle = self.ledger().take_all_idle();
        self.return_all(idle);
    }

    /// Returns connections that were idle, and count as [`Use::Return`].
    #[allow(
        clippy::vec_box,
        reason = "they stay in the boxes that they were checked out in"
    )]
    pub(super) fn return_all(self: &Arc<Self>, connections: Vec<Box<Parts>>) {
        for idle in connections {
            // Idle connections have none, and on its way back this one is still
            // out.
            let slot = SlotGuard::new(self.clone(), Use::Return);
            CheckedOut::of_idle(idle, slot).return_to_driver();
        }
    }

    /// Gives a clean connection, whose slot the caller has, to sqlx's pool.
    async fn return_to_driver(
        self: &Arc<Self>,
        connection: &mut PinnedConnection,
        fetched: Instant,
    ) {
        return_within(connection, self.release_bound()).await;
        if self.is_evicted(fetched) {
            // All were evicted on its way, and sqlx has it among its idle ones
            // by now, where a fetch would find it
            // (`recycling_replaces_a_connection_that_is_on_its_way_back`).
            self.eviction.close_idle();
        }
        // Before the slot is free: the next fetch must not be taken for a plain
        // user.
        let is_idle = self.driver.has_idle();
        let mut ledger = self.ledger();
        let is_fetching = ledger.fetches.running() > 0;
        ledger.plain_share.returned(is_idle, is_fetching);
    }

    /// Replaces the connections to a server that takes no writes: one was
    /// fetched at this time.
    pub(super) fn leave_server(self: &Arc<Self>, fetched: Instant) {
        // It is on its way out already: it says nothing of the server that the
        // name leads to now.
        if self.is_evicted(fetched) {
            return;
        }
        let Some(is_news) = self.eviction.note_refusal() else {
            return;
        };
        if is_news {
            tracing::warn!(target: "tower_sea_orm::pool", "the server is read-only: its connections are closed, so that new ones go to the writable server");
        }
        self.close_idle();
    }

    /// Replaces every connection before its next use. An in-memory database
    /// would die with its connection, a test would lose its transaction, and a
    /// mock has none.
    pub(crate) fn evict(self: &Arc<Self>) {
        if !self.is_in_memory() && !self.is_test() && !self.is_direct() {
            self.eviction.note();
            self.close_idle();
        }
    }

    fn close_idle(self: &Arc<Self>) {
        let idle = self.ledger().idle.take_all();
        // Not under the lock: closing one spawns a task.
        drop(idle);
        self.eviction.close_idle();
    }

    /// Returns whether a connection that was fetched at this time has been
    /// evicted since.
    pub(super) fn is_evicted(&self, fetched: Instant) -> bool {
        self.eviction.includes(fetched)
    }
}

/// Gives a clean connection to sqlx's pool, within `bound` if there is one.
///
/// sqlx waits for its ping without a bound
/// (<https://github.com/launchbadge/sqlx/issues/4349>). One that is not
/// answered for so long will not be.
async fn return_within(connection: &mut PinnedConnection, bound: Option<Duration>) {
    let Some(bound) = bound.map(|bound| bound.min(SILENCE)) else {
        return connection.return_to_driver().await;
    };
    if timeout(bound, connection.return_to_driver()).await.is_err() {
        tracing::warn!(target: "tower_sea_orm::pool", "closed a connection that could not be returned: its ping was not answered");
    }
}
