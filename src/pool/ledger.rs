//! [`Ledger`]: the one place that counts connections, and decides who gets the next one.

use std::{
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::runtime::Handle;

use super::{
    admission::Admission,
    fetches::Fetches,
    holder::Holder,
    idle::IdleConnections,
    plain_share::{AgeVisit, PlainShare},
    waiters::{Applicant, Receiver, Waiter, Waiters},
};
use crate::connection::Chains;

/// For how long a request that was turned away counts as one that waits.
const TURNED_AWAY: Duration = Duration::from_secs(10);

/// The current state of a [`SessionPool`](crate::SessionPool).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// Connections that sessions may hold at the same time: `max_connections`
    /// less `reserved_connections`.
    pub max: u32,
    /// Connections that sessions hold, those on their way back included.
    pub used: u32,
    /// Connections that came back a while ago and wait for the next session or,
    /// if none came, are on their way to the driver's pool.
    pub idle: usize,
    /// Connections being fetched from the driver's pool for waiting requests.
    pub acquiring: u32,
    /// Requests waiting for a connection.
    pub pending: usize,
    /// Those of the `used` connections that their sessions would lend to the
    /// next request that waits: before their first statement, and in
    /// [`PoolMode::Transaction`](crate::PoolMode::Transaction) between
    /// statements.
    pub lendable: usize,
}

/// The purpose of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// A session holds it, or has just given it back.
    Session,
    /// It was idle, and goes back to the driver's pool.
    Return,
}

/// The waiters for values of type `T`, the idle connections of type `C`, and
/// the number of those that are out. One value under one lock, because each
/// decision needs all of it.
pub(super) struct Ledger<T, C> {
    /// The most connections that may be out at the same time. An idle one is
    /// not out until a session takes it.
    limit: u32,
    used: u32,
    returning: u32,
    pub(super) fetches: Fetches,
    pub(super) waiters: Waiters<T>,
    admission: Admission,
    pub(super) idle: IdleConnections<C>,
    pub(super) plain_share: PlainShare,
    /// Its copies count the transactions that were begun for waiters and are on
    /// their way to them.
    pub(super) chains: Arc<Chains>,
    keeps_last_for: Duration,
    /// Until then, requests that hold a connection may come for a second one.
    second_until: Option<Instant>,
    /// When a request was last turned away, because too many waited or none may
    /// wait.
    turned_away: Option<Instant>,
}

impl<T, C> Ledger<T, C> {
    /// A connection that came back counts as alive for `fresh_for`; the last
    /// free one is kept for requests that hold one for the time
    /// `keeps_last_for` after one of them took a second.
    pub(super) fn new(
        limit: u32,
        admission: Admission,
        plain_share: PlainShare,
        fresh_for: Duration,
        keeps_last_for: Duration,
    ) -> Self {
        Self {
            limit,
            used: 0,
            returning: 0,
            fetches: Fetches::default(),
            waiters: Waiters::default(),
            admission,
            idle: IdleConnections::new(fresh_for),
            plain_share,
            chains: Arc::default(),
            keeps_last_for,
            second_until: None,
            turned_away: None,
        }
    }

    pub(super) fn status(&self) -> Status {
        Status {
            max: self.limit,
            used: self.used,
            // Those on their way to the driver's pool as well, which no session
            // uses
            // (`a_connection_on_its_way_to_the_drivers_pool_is_not_in_use`).
            idle: self.idle.len() + self.returning as usize,
            acquiring: self.fetches.running(),
            // Counted and not kept: those who have given up stay in the queue
            // until they are swept out.
            pending: self.waiters.live().count(),
            lendable: 0,
        }
    }

    /// Returns how many connections sessions hold, and how many are being
    /// fetched.
    pub(super) fn in_hand(&self) -> (u32, u32) {
        (self.used, self.fetches.running())
    }

    /// Counts one more connection as out.
    pub(super) fn occupy(&mut self, used_for: Use) {
        *self.counter(used_for) += 1;
    }

    /// Counts one less.
    pub(super) fn vacate(&mut self, used_for: Use) {
        *self.counter(used_for) -= 1;
    }

    fn counter(&mut self, used_for: Use) -> &mut u32 {
        match used_for {
            Use::Session => &mut self.used,
            Use::Return => &mut self.returning,
        }
    }

    pub(super) fn out(&self) -> u32 {
        self.used + self.returning
    }

    /// Returns whether all connections are out and requests wait, or were
    /// turned away a moment ago.
    pub(super) fn is_exhausted(&self) -> bool {
        // With `max_pending(0)` none waits, and requests are refused all the
        // same.
        let is_recent = |at: Instant| at.elapsed() < TURNED_AWAY;
        let is_wanted = self.waiters.is_any() || self.turned_away.is_some_and(is_recent);
        self.out() >= self.limit && is_wanted
    }

    /// Returns how many may be out when one more goes to a waiter.
    fn limit_for(&self, holds: bool) -> u32 {
        if !holds && self.kept_until().is_some() {
            // Never below one: of a single connection nothing is kept.
            self.limit - 1
        } else {
            self.limit
        }
    }

    /// Keeps the last free connection for requests that hold one already: one
    /// of them wants another.
    pub(super) fn expect_second(&mut self) {
        self.second_until = Instant::now().checked_add(self.keeps_last_for);
    }

    /// Returns until when the last free connection is kept for requests that
    /// hold one, if it is.
    pub(super) fn kept_until(&self) -> Option<Instant> {
        // Of one, nothing could be kept, and no session would ever begin.
        self.second_until
            .filter(|until| self.limit > 1 && Instant::now() < *until)
    }

    fn free(&self) -> usize {
        self.limit.saturating_sub(self.out()) as usize
    }

    /// Joins the queue, unless too many wait already. A connection that one of
    /// the `lenders` has counts as free.
    pub(super) fn join(&mut self, applicant: Applicant, lenders: usize) -> Option<Receiver<T>> {
        let free = self.free() + lenders;
        let admits = if applicant.holds {
            self.admission.admits_holder(free)
        // Its request was let in before: turned away now, it would fail in its
        // middle (G10;
        // `a_session_that_has_lent_its_connection_is_not_turned_away`).
        } else if applicant.returns {
            // Not before the others, though: a request of many statements would
            // pass the newcomers with each of them.
            true
        } else {
            // Those who have given up are counted exactly only where that
            // decides.
            let bound = self.admission.guaranteed(free);
            let waiting = self.waiters.count(bound);
            self.admission.admits(waiting, free)
        };
        if !admits {
            self.turned_away = Some(Instant::now());
            return None;
        }
        Some(self.waiters.join(applicant))
    }

    /// Takes the first waiter that no fetch is under way for, if one more
    /// connection may be out, and counts the fetch.
    pub(super) fn next_fetch(&mut self) -> Option<(u64, Handle)> {
        // A server that has just refused one connect would refuse the next.
        if self.fetches.is_paused() {
            return None;
        }
        // A fetch belongs to no waiter: it serves whichever is first when it
        // ends. So the first n waiters are covered by the n fetches under way.
        let waiter = self.waiters.live().nth(self.fetches.counted_on())?;
        let Applicant { runtime, holds, .. } = &waiter.applicant;
        // The slow ones as well: each may still bring a connection.
        if self.out() + self.fetches.running() >= self.limit_for(*holds) {
            return None;
        }
        let found = (waiter.id, runtime.clone());
        self.fetches.begin();
        Some(found)
    }

    /// Takes the waiter that gets a connection, which counts as out.
    pub(super) fn next_turn(&mut self) -> Option<Waiter<T>> {
        let holds = self.waiters.live().next()?.applicant.holds;
        // Not `>=`: the connection that it gets is out already.
        if self.out() > self.limit_for(holds) {
            return None;
        }
        let waiter = self.waiters.pop()?;
        self.admission.served();
        Some(waiter)
    }

    /// Takes an idle connection for a newcomer, unless others wait before it.
    pub(super) fn take_idle(&mut self) -> Option<C> {
        // First come, first served: one of them may be about to get it.
        if self.waiters.is_any() {
            return None;
        }
        self.pop_idle(false)
    }

    /// Takes an idle connection for the first waiter.
    pub(super) fn take_idle_for_waiter(&mut self) -> Option<C> {
        let holds = self.waiters.live().next()?.applicant.holds;
        self.pop_idle(holds)
    }

    fn pop_idle(&mut self, holds: bool) -> Option<C> {
        if self.out() >= self.limit_for(holds) {
            return None;
        }
        // With `rotates`, a session that has lent its connection is not to get
        // the same one back: if it is the only idle one, the session waits for
        // another to be fetched. Shown by `a_fresh_pool_of_two_rotates_at_once`.
        let is_only = self.idle.len() == 1 && self.out() + 1 < self.limit;
        if self.idle.rotates && is_only {
            return None;
        }
        // Taken and counted under one lock: in between, it would be neither
        // idle nor out, and one fetch too many could begin.
        let connection = self.idle.pop()?;
        self.occupy(Use::Session);
        Some(connection)
    }

    /// Returns whether a connection that just came back visits the driver's
    /// pool of `max` connections, for its age or for the users of that pool.
    pub(super) fn takes_visit(&mut self, visit: AgeVisit, max: u32) -> bool {
        if visit == AgeVisit::Due && self.plain_share.take_visit_for_age() {
            return true;
        }
        let taken = self.taken();
        // Where connections rotate, the driver's pool would give the same one
        // back to the session that has just lent it.
        !self.idle.rotates && self.plain_share.take_visit(|| taken >= max)
    }

    /// Counts a connection that goes to another session at once, unless
    /// [`takes_visit`](Self::takes_visit) may have it visit the driver's pool.
    pub(super) fn passes_by(&mut self, visit: AgeVisit, max: u32) -> bool {
        let taken = self.taken();
        self.plain_share.passes_by(taken >= max, visit)
    }

    /// Returns how many connections the driver's pool cannot give to others.
    fn taken(&self) -> u32 {
        self.out() + self.fetches.running() + self.idle.len() as u32
    }

    /// Takes the idle connections that are no longer fresh, and now and then
    /// one where the driver's pool has `nothing_left` for others. They count as
    /// out until they are back there.
    pub(super) fn take_stale(&mut self, nothing_left: bool) -> Vec<C> {
        // Those who use the driver's pool beside this one cannot ask for one:
        // they wait until sqlx has one.
        let least = usize::from(nothing_left && self.plain_share.take_visit_of_idle());
        let stale = self.idle.take_stale(least);
        stale.iter().for_each(|_| self.occupy(Use::Return));
        stale
    }

    /// Takes all idle connections, to be returned to the driver's pool. They
    /// count as out until they are there.
    pub(super) fn take_all_idle(&mut self) -> Vec<C> {
        // Counted in the same breath, or a fetch could begin in their places.
        let idle = self.idle.take_all();
        idle.iter().for_each(|_| self.occupy(Use::Return));
        idle
    }

    /// Takes the newest waiter of a deadlock: every connection is held by a
    /// request that waits for another one. `holders` are the requests of all
    /// who hold one.
    pub(super) fn take_deadlocked(&mut self, holders: &[Arc<dyn Holder>]) -> Option<Waiter<T>> {
        let can_serve = self.fetches.running() > 0 || self.out() < self.limit;
        // Fewer are known where one is on its way: that one comes, so there is
        // no deadlock.
        if can_serve || holders.len() != self.out() as usize {
            return None;
        }
        self.waiters.remove_newest_if_all_wait(holders)
    }
}

/// Access to the ledger. What was swept out of the queue is dropped when the
/// lock is free again.
pub(super) struct Locked<'l, T, C> {
    // In this order: fields are dropped from first to last.
    ledger: MutexGuard<'l, Ledger<T, C>>,
    discarded: Vec<Waiter<T>>,
}

impl<'l, T, C> Locked<'l, T, C> {
    pub(super) fn of(ledger: &'l Mutex<Ledger<T, C>>) -> Self {
        Self {
            ledger: ledger.lock().unwrap_or_else(PoisonError::into_inner),
            discarded: Vec::new(),
        }
    }
}

impl<T, C> Deref for Locked<'_, T, C> {
    type Target = Ledger<T, C>;

    fn deref(&self) -> &Ledger<T, C> {
        &self.ledger
    }
}

impl<T, C> DerefMut for Locked<'_, T, C> {
    fn deref_mut(&mut self) -> &mut Ledger<T, C> {
        &mut self.ledger
    }
}

impl<T, C> Drop for Locked<'_, T, C> {
    fn drop(&mut self) {
        // A waker is foreign code: its `Drop` may come back to this pool
        // (`waiters_that_gave_up_are_dropped_under_no_lock`).
        self.discarded = self.ledger.waiters.take_discarded();
    }
}
