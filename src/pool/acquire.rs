//! Acquiring: waiting in the queue, serving it, and telling why a wait failed.

use std::{
    error::Error as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use sea_orm::TransactionOptions;
use tokio::{runtime::Handle, task::JoinHandle, time::timeout};

use super::{
    checked_out::{CheckedOut, Lease},
    deadlock::{SecondWindow, break_deadlock},
    fetch::fetch,
    holder::{Grip, Holder, current, holds_one},
    inner::PoolInner,
    ledger::Use,
    log::log_session,
    probe::PROBE,
    slot::{FetchGuard, SlotGuard},
    waiters::{Applicant, Claim, Receiver},
};
use crate::error::{Error, Kind};

impl PoolInner {
    /// Takes an idle connection, if there is one and no request waits before.
    pub(crate) fn try_acquire(self: &Arc<Self>) -> Option<Lease> {
        // Without `direct_handoff`, each connection is to pass through sqlx's
        // pool, whose hooks run there (H30).
        if !self.settings.direct_handoff || self.is_shut() {
            return None;
        }
        let idle = self.ledger().take_idle()?;
        // Counted as out under that lock: from here on, the guard gives the
        // place back.
        let slot = SlotGuard::new(self.clone(), Use::Session);
        self.pressure.relieved();
        Some(Lease::new(CheckedOut::of_idle(idle, slot)))
    }

    /// Returns for how long a session with this `deadline` may wait for a
    /// connection.
    pub(crate) fn patience(&self, deadline: Option<Instant>) -> Duration {
        time_until(deadline, self.settings.acquire_timeout)
    }

    /// Waits for a connection, at most for `patience`. One that is to begin a
    /// transaction there may get it with the transaction
    /// [begun](CheckedOut::is_chained).
    pub(crate) async fn acquire(
        self: &Arc<Self>,
        claim: Claim,
        begins: Option<TransactionOptions>,
        patience: Duration,
    ) -> Result<Lease, Error> {
        if self.is_shut() {
            return Err(self.fail(Kind::Closing.into(), Duration::ZERO));
        }
        // Before the queue: a request that finds an idle connection costs no
        // task, no channel and no wake-up.
        if let Some(lease) = self.try_acquire() {
            return Ok(lease);
        }
        // Not before: an idle connection needs no runtime to be handed out.
        let runtime = Handle::try_current().map_err(|_| Kind::NoRuntime)?;
        let (started, request) = (Instant::now(), current());
        let mut waiting = self.join(runtime, request, claim, begins)?;
        // Dropped here, the wait costs nothing: the driver's `acquire()` runs
        // in a task of the pool, and a lease that has arrived goes back by its
        // own `Drop` (H22;
        // `h22_ten_thousand_cancelled_waits_cost_no_connection`).
        let answer = self.answer(&mut waiting.receiver, patience).await;
        // One that was answered has left the queue.
        waiting.is_answered = matches!(answer, Ok(Ok(_)));
        // Before a failure is logged, which tells how many wait.
        drop(waiting);
        let error = match answer {
            // Looked at again: `close` has cut off all that it knew of, and
            // nothing may join them afterwards.
            Ok(Ok(Ok(lease))) if !self.is_shut() => {
                self.pressure.relieved();
                return Ok(lease);
            }
            // Logged where the deadlock was found.
            Ok(Ok(Err(error))) if error.is_pool_deadlock() => return Err(error),
            Ok(Ok(Err(error))) | Err(error) => error,
            // Without an answer, its runtime is shutting down; a lease that
            // came too late goes back clean when it is dropped.
            Ok(Ok(Ok(_)) | Err(_)) => Kind::Closing.into(),
        };
        Err(self.fail(error, started.elapsed()))
    }

    /// Joins the queue, and has a connection fetched if one more may be out.
    fn join(
        self: &Arc<Self>,
        runtime: Handle,
        request: Option<Arc<dyn Holder>>,
        claim: Claim,
        begins: Option<TransactionOptions>,
    ) -> Result<Waiting<'_>, Error> {
        // One that goes on with another connection has freed its slot: its
        // request holds none at the moment. Shown by
        // `beginning_on_another_connection_is_no_wait_for_a_second_session`.
        let another = claim == Claim::Another;
        let holder = request
            .clone()
            .filter(|request| !another && holds_one(&**request));
        let lenders = self.registry.offers();
        let mut ledger = self.ledger();
        if holder.is_some() {
            // Otherwise newcomers would take each connection that comes free,
            // and then wait for a second one while holding it. Shown by
            // `a_session_store_on_the_same_pool_costs_no_request`.
            ledger.expect_second();
        }
        let applicant = Applicant {
            runtime,
            request: request.clone(),
            holds: another || holder.is_some(),
            returns: claim == Claim::Return,
            begins,
        };
        let joined = ledger.join(applicant, lenders);
        drop(ledger);
        let Some(receiver) = joined else {
            return Err(self.fail(Kind::Crowded.into(), Duration::ZERO));
        };
        // Behind the join: a connection that came back just before it found the
        // queue empty, and lies among the idle ones.
        self.fill();
        // Where the last free connection is kept for others, no event would end
        // that: without this, requests were refused beside a free connection
        // (G17;
        // `g17_the_connection_that_is_kept_for_a_second_session_serves_who_waits_soon`).
        SecondWindow::watch(self);
        let waiting = Waiting::new(receiver, self, request);
        // Last: it may be this one that a deadlock is broken by.
        if let Some(holder) = holder {
            self.note_second(&holder);
        }
        Ok(waiting)
    }

    /// Has sessions lend the connections that they do not use for as long as
    /// requests wait, even where connections are being fetched for them: a
    /// fetch may be slow or fail, and if it succeeds, its connection serves the
    /// lenders.
    fn call_in(&self) {
        while self.has_waiters() {
            // One at a time: what the first lender gives may serve all that
            // wait, and the others keep theirs.
            let Some(lender) = self.registry.take_offer() else {
                return;
            };
            lender.lend();
        }
    }

    /// Returns whether a request waits for a connection.
    pub(crate) fn has_waiters(&self) -> bool {
        self.ledger().waiters.is_any()
    }

    /// Looks whether a request that waits while it holds a connection is in a
    /// deadlock, and logs it if that connection is one of this pool's.
    fn note_second(&self, request: &Arc<dyn Holder>) {
        let is_second = self.registry.is_held_by(request) || self.is_shared_with(&**request);
        // A handler that takes a second session takes one with each request
        // (G15).
        if is_second && let Some(suppressed) = self.lines.next_line("second session", 16) {
            let (label, status) = (request.label(), self.status());
            log_session!(
                warn,
                label,
                used = status.used,
                pending = status.pending,
                max = status.max,
                suppressed,
                "a request or a job is waiting for a second session of this pool while it holds one: use only one, or `release()` it first",
            );
        }
        break_deadlock(self);
    }

    /// Returns whether a request's outermost session holds a connection of the
    /// same driver's pool through another session pool.
    fn is_shared_with(&self, request: &dyn Holder) -> bool {
        // A busy one is no such session: that of a read has moved to this pool
        // while it is still on its replica's connection. Shown by
        // `a_read_that_goes_on_to_a_busy_primary_takes_no_second_session`.
        request.is_on(&self.driver) && matches!(request.grip(), Grip::Idle | Grip::Lendable)
    }

    /// Waits for what the queue gives, for the time `all`. Where connections
    /// are still being opened shortly before that is over, the server is tried,
    /// so that the reason is known in time.
    async fn answer<T>(
        &self,
        receiver: &mut (impl Future<Output = T> + Unpin),
        all: Duration,
    ) -> Result<T, Error> {
        // A short time-out keeps half of itself for waiting.
        let ahead = PROBE.min(all / 2);
        if let Ok(answer) = timeout(all - ahead, &mut *receiver).await {
            return Ok(answer);
        }
        // Where sessions hold all there are, the reason is known, and the
        // server has no use for one more log-in.
        let is_opening = !self.is_test() && self.ledger().fetches.running() > 0;
        let runtime = Handle::try_current().ok().filter(|_| is_opening);
        // By a connect of our own: sqlx says `PoolTimedOut` of a server that is
        // down and of a full pool alike (H25,
        // <https://github.com/launchbadge/sqlx/issues/3808>).
        let probe = runtime.map(|runtime| self.probe.start(&self.driver, &runtime));
        timeout(ahead, receiver)
            .await
            .map_err(|_| self.diagnose(probe, ahead))
    }

    /// Returns why no connection came: *down* if one cannot be made at all,
    /// *exhausted* otherwise. The `probe` had this time and gets no more; it is
    /// `None` where sessions held every connection.
    fn diagnose(&self, probe: Option<JoinHandle<Option<Error>>>, time: Duration) -> Error {
        if self.is_shut() {
            return Kind::Closing.into();
        }
        if self.is_test() {
            return Kind::TestConnectionHeld.into();
        }
        // `in_hand` and not `status()`, which walks the queue: when thousands
        // give up at once, that would be quadratic.
        let (used, acquiring) = self.ledger().in_hand();
        // Nothing is being opened (any more): sessions have all there are.
        let Some(probe) = probe.filter(|_| acquiring > 0) else {
            return Kind::Exhausted.into();
        };
        // Also those of the plain `DatabaseConnection`: a server that serves
        // these is neither down nor full for all.
        let is_any_used = used > 0 || self.driver.is_used(acquiring);
        match self.failure(probe, time) {
            Some(error) if error.is_unreachable() || !is_any_used => error,
            // A server at its limit of connections, some of which work, is full
            // and not down (G17).
            _ if is_any_used => Kind::Exhausted.into(),
            // *Exhausted* would have its reader look for sessions that hold
            // connections, where there are none.
            _ => Kind::NotOpened.into(),
        }
    }

    /// Returns why the `probe` could not connect; `None` where it could, or may
    /// only need longer.
    fn failure(&self, probe: JoinHandle<Option<Error>>, time: Duration) -> Option<Error> {
        let failure = match probe.now_or_never() {
            Some(ended) => ended.ok().flatten()?,
            // A time-out of less than two seconds has cut its time short.
            None if time < PROBE => return None,
            None => Kind::Down.into(),
        };
        // Without a cause it is silence, which may be a slow log-in.
        let is_silence = failure.is_unreachable() && failure.source().is_none();
        // A server whose log-ins take longer than the probe is slow and not
        // down: there, a silent second proves nothing.
        (!is_silence || !self.ledger().fetches.logs_in_slowly()).then_some(failure)
    }

    /// Serves the waiters: from idle connections, by as many fetches as the
    /// limit allows, and by what other sessions lend.
    pub(super) fn fill(self: &Arc<Self>) {
        // Idle ones first: they are there, and each spares a round trip.
        loop {
            let idle = self.ledger().take_idle_for_waiter();
            // Without the lock: handing over wakes a task.
            let Some(idle) = idle else { break };
            let slot = SlotGuard::new(self.clone(), Use::Session);
            self.hand_over(CheckedOut::of_idle(idle, slot));
        }
        loop {
            let next = self.ledger().next_fetch();
            let Some((waiter, runtime)) = next else { break };
            let is_spawning = Arc::new(AtomicBool::new(true));
            // Made before the task, so that the count is right even if the task
            // never runs.
            let guard = FetchGuard::new(self.clone(), waiter, is_spawning.clone());
            // On the waiter's runtime, which is alive for as long as the waiter
            // is polled.
            runtime.spawn(fetch(guard, runtime.clone()));
            is_spawning.store(false, Ordering::Release);
        }
        // Behind the idle ones: otherwise a session would give up its
        // connection for a waiter that an idle one serves as well.
        self.call_in();
    }

    /// Gives a connection to the first waiter, or back if none takes it.
    pub(super) fn hand_over(&self, mut connection: CheckedOut) {
        loop {
            let next = self.ledger().next_turn();
            // It stays out while it is handed from one to the next, so that no
            // fetch begins for the waiter behind.
            let Some(waiter) = next else {
                return connection.put_back();
            };
            match Self::give(waiter, connection) {
                Some(left) => connection = left,
                None => return,
            }
        }
    }
}

/// Returns the time until the `deadline`, and `most` of it at most.
pub(crate) fn time_until(deadline: Option<Instant>, most: Duration) -> Duration {
    deadline.map_or(most, |deadline| {
        // Its client has gone by then, and the connection would be kept from
        // those that still wait
        // (`a_request_waits_no_longer_than_its_deadline`).
        most.min(deadline.saturating_duration_since(Instant::now()))
    })
}

/// A place in the queue.
pub(super) struct Waiting<'p> {
    pub(super) receiver: Receiver<Lease>,
    pool: &'p PoolInner,
    request: Option<Arc<dyn Holder>>,
    pub(super) is_answered: bool,
}

impl<'p> Waiting<'p> {
    pub(super) fn new(
        receiver: Receiver<Lease>,
        pool: &'p PoolInner,
        request: Option<Arc<dyn Holder>>,
    ) -> Self {
        if let Some(request) = &request {
            // By this count it is known that a connection of the request, once
            // it rests, may complete a deadlock (H11).
            request.waits().fetch_add(1, Ordering::Relaxed);
        }
        Self {
            receiver,
            pool,
            request,
            is_answered: false,
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.is_answered {
            // First: what is given from here on comes back to the giver, and
            // the count below is of closed ones.
            self.receiver.close();
            self.pool.ledger().waiters.left();
        }
        if let Some(request) = &self.request {
            request.waits().fetch_sub(1, Ordering::Relaxed);
        }
    }
}
