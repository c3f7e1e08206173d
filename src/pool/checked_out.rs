//! [`CheckedOut`]: a connection that a session uses, together with its slot in the pool.

use std::{
    mem,
    sync::{Arc, Weak},
    time::Instant,
};

use futures_util::future::BoxFuture;
use sea_orm::DbErr;
use tokio::runtime::Handle;

use super::{
    holder::{Holder, Key},
    inner::PoolInner,
    ledger::Ledger,
    slot::SlotGuard,
};
use crate::{
    connection::{CancelHandle, PinnedConnection, Rest},
    error::Error,
    position::Position,
    sql::Redacted,
};

/// The way to another pool.
// A trait, since the pool imports nothing of sessions, and the other pool is
// theirs to know.
pub(crate) trait WayOut: Send + Sync {
    /// Leads a session to the other pool, because of an error of the
    /// transaction's BEGIN, and acquires a connection there. From here on, the
    /// session is one of that pool's. It waits until the `deadline` at most.
    fn take(&self, error: &DbErr, deadline: Option<Instant>)
    -> BoxFuture<'_, Result<Lease, Error>>;
}

/// The other pool, and what its connection is registered for.
pub(crate) struct Elsewhere {
    pub(crate) way_out: Arc<dyn WayOut>,
    pub(crate) holder: Weak<dyn Holder>,
    pub(crate) request: Option<Weak<dyn Holder>>,
}

/// A connection that a session uses.
///
/// It moves by value: a running call owns it and gives it back with the result.
/// Dropped on the way, it closes the connection and frees the slot. In a box,
/// because every statement moves it several times.
pub(crate) struct CheckedOut {
    pub(super) parts: Box<Parts>,
    pub(super) pool: Arc<PoolInner>,
}

/// A connection with what is kept for as long as the pool has it, checked out
/// or idle: one box for all that time.
pub(super) struct Parts {
    /// `None` once it has moved on. Before `slot`, so that the slot is freed
    /// last.
    pub(super) connection: Option<PinnedConnection>,
    /// The runtime that serves the connection.
    pub(super) runtime: Handle,
    /// The time at which the driver's pool was asked for it.
    pub(super) fetched: Instant,
    /// How often it came back since then.
    pub(super) returns: u32,
    /// The time at which it came back last, or was fetched.
    pub(super) used: Instant,
    /// The session's last statement.
    pub(super) text: Redacted,
    /// The place of its session in the pool's registry.
    pub(super) holder: Option<Key>,
    /// Its session would lend it to what waits.
    is_offered: bool,
    /// Where else a transaction may begin.
    pub(super) elsewhere: Option<Box<Elsewhere>>,
    /// Its session waits for no other connection beyond this time.
    pub(super) deadline: Option<Instant>,
    /// `None` while it is idle.
    slot: Option<SlotGuard>,
}

/// A connection on its way to a session; dropped before it arrives, it goes
/// back clean.
// Not the bare connection, which closes itself when it is dropped: a waiter
// that leaves must not cost one (H22).
pub(crate) struct Lease(Option<CheckedOut>);

impl Lease {
    pub(super) fn new(connection: CheckedOut) -> Self {
        Self(Some(connection))
    }

    pub(crate) fn into_connection(mut self) -> Option<CheckedOut> {
        self.0.take()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            // A waiter that has gone has not taken it: nothing has run on it,
            // but a transaction may have begun for the waiter.
            connection.give_back(|| ());
        }
    }
}

impl CheckedOut {
    /// A connection that the driver's pool was asked for at the time `fetched`.
    pub(super) fn new(connection: PinnedConnection, fetched: Instant, slot: SlotGuard) -> Self {
        let parts = Box::new(Parts {
            runtime: connection.runtime().clone(),
            connection: Some(connection),
            fetched,
            returns: 0,
            used: Instant::now(),
            text: Redacted::default(),
            holder: None,
            is_offered: false,
            elsewhere: None,
            deadline: None,
            slot: None,
        });
        Self::of_idle(parts, slot)
    }

    /// Joins a connection, idle until now or just fetched, with its slot.
    pub(super) fn of_idle(mut parts: Box<Parts>, slot: SlotGuard) -> Self {
        let pool = slot.pool().clone();
        parts.slot = Some(slot);
        Self { parts, pool }
    }

    /// Makes it idle, which frees its slot where the caller holds the ledger.
    pub(super) fn into_idle<T, C>(mut self, ledger: &mut Ledger<T, C>) -> Box<Parts> {
        // Under the caller's lock, with the push that follows: in between, a
        // fetch could begin that is not needed.
        if let Some(mut slot) = self.parts.slot.take() {
            slot.free_in(ledger);
        }
        self.parts
    }

    pub(crate) fn pool(&self) -> &Arc<PoolInner> {
        &self.pool
    }

    /// Notes that a session, of `request`, holds the connection from now on,
    /// until it is back.
    pub(crate) fn hold(&mut self, holder: Weak<dyn Holder>, request: Option<Weak<dyn Holder>>) {
        // A line in the log must not name the last session's statement as this
        // one's.
        self.parts.text.clear();
        let runtime = &self.parts.runtime;
        let key = self.pool.note_holder(holder, request, runtime);
        self.parts.holder = Some(key);
        // The flag is in the box, which outlives the session: left set, it
        // would cost the next one's first statement the registry's lock.
        self.parts.is_offered = false;
        // The last session's would keep this one from another connection.
        self.parts.elsewhere = None;
    }

    /// Notes that its session would lend it.
    pub(crate) fn offer(&mut self) {
        if let Some(key) = self.parts.holder {
            self.parts.is_offered = true;
            self.pool.registry.offer(key);
        }
    }

    /// Notes that its session would not lend it any more.
    pub(crate) fn withdraw(&mut self) {
        // Known without the registry's lock: each statement comes by here, and
        // nearly none finds an offer.
        if mem::take(&mut self.parts.is_offered)
            && let Some(key) = self.parts.holder
        {
            self.pool.registry.withdraw(key);
        }
    }

    /// Notes that it is on its way back, although it is still to be cleaned.
    pub(super) fn begin_return(&self) {
        if let Some(key) = self.parts.holder {
            // Before it is clean: its request must not be taken for one that
            // holds a connection and waits for another
            // (`a_connection_that_is_on_its_way_back_is_no_reason_for_an_error`).
            self.pool.registry.begin_return(key);
        }
    }

    /// Says until when its session may wait for another connection.
    pub(crate) fn set_deadline(&mut self, deadline: Option<Instant>) {
        self.parts.deadline = deadline;
    }

    /// Says where else the next transaction may begin.
    pub(crate) fn set_way_out(&mut self, elsewhere: Option<Box<Elsewhere>>) {
        self.parts.elsewhere = elsewhere;
    }

    /// Has the cancel handle that a session has handed out stop what runs here.
    pub(super) fn adopt_handle_of(&mut self, other: &mut Self) {
        let handle = other.ask(PinnedConnection::take_cancel_handle);
        if let (Some(connection), Some(handle)) = (&mut self.parts.connection, handle) {
            connection.adopt(handle);
        }
    }

    /// Returns the position that a COMMIT has made since this was last asked.
    pub(crate) fn take_position(&mut self) -> Option<Position> {
        self.ask(|connection| connection.transaction.take_position())
    }

    /// Returns for how long the server has heard nothing on it, if no statement
    /// of its session's has run yet.
    pub(crate) fn rest(&self) -> Rest {
        Rest::of(self.parts.used.elapsed())
    }

    /// Returns the session's last statement.
    pub(crate) fn text(&mut self) -> &mut Redacted {
        &mut self.parts.text
    }

    /// Takes the connection out of the pool; the slot is free.
    pub(super) fn into_connection(mut self) -> Option<PinnedConnection> {
        self.parts.connection.take()
    }

    /// Returns what stops its statements.
    pub(crate) fn cancel_handle(&mut self) -> Option<Arc<CancelHandle>> {
        self.ask(|connection| Some(connection.cancel_handle().clone()))
    }

    pub(crate) fn depth(&self) -> usize {
        let connection = self.parts.connection.as_ref();
        connection.map_or(0, PinnedConnection::depth)
    }

    /// Returns whether it may go to another session as it is.
    pub(crate) fn is_clean(&self) -> bool {
        self.is(PinnedConnection::is_clean)
    }

    /// Returns whether the open transaction has failed.
    pub(crate) fn has_failed(&self) -> bool {
        self.is(|connection| connection.transaction.has_failed())
    }

    /// Notes that the reader of the stream that has failed knows it now.
    #[cfg(feature = "stream")]
    pub(crate) fn was_heard(&mut self) {
        self.ask(|connection| connection.transaction.was_heard());
    }

    /// Returns whether a transaction was ended behind the session's back since
    /// this was last asked.
    pub(crate) fn take_ended_elsewhere(&mut self) -> bool {
        self.ask(|connection| connection.transaction.take_ended_elsewhere())
    }

    /// Returns whether its server has refused a write, and may have another one
    /// in its place.
    pub(crate) fn may_be_demoted(&self) -> bool {
        self.is(PinnedConnection::may_be_demoted)
    }

    /// Replaces all connections to a server that takes no writes.
    pub(super) fn leave_read_only(&self) {
        if self.is(PinnedConnection::is_demoted) {
            self.pool().leave_server(self.parts.fetched);
        }
    }

    pub(crate) fn is_broken(&self) -> bool {
        let connection = self.parts.connection.as_ref();
        // One that has moved on counts as broken: nothing may rely on it.
        connection.is_none_or(PinnedConnection::is_broken)
    }

    /// Returns whether raw code has left it out of step with its server.
    pub(crate) fn is_out_of_step(&self) -> bool {
        self.is(PinnedConnection::is_out_of_step)
    }

    /// Returns whether a transaction has begun for the next session, and
    /// nothing else is left on the connection.
    pub(crate) fn is_chained(&self) -> bool {
        self.is(PinnedConnection::is_chained)
    }

    /// Returns the answer, or the empty one if the connection has moved on.
    fn ask<T: Default>(&mut self, question: impl FnOnce(&mut PinnedConnection) -> T) -> T {
        let connection = self.parts.connection.as_mut();
        connection.map(question).unwrap_or_default()
    }

    pub(super) fn is(&self, question: impl FnOnce(&PinnedConnection) -> bool) -> bool {
        self.parts.connection.as_ref().is_some_and(question)
    }

    /// Returns the runtime that serves the connection.
    pub(crate) fn runtime(&self) -> &Handle {
        &self.parts.runtime
    }
}

impl Parts {
    /// Frees the slot before the connection's place in the registry is left.
    pub(super) fn free_slot(&mut self) {
        if let Some(slot) = &mut self.slot {
            slot.free();
        }
    }

    /// Has the server end its side of a connection that is lost: on its own it
    /// would notice only after hours, and keep the transaction's locks until
    /// then. Asked here, where nothing can arrive on the connection any more,
    /// and not with the verdict, which an answer may still overtake.
    pub(super) fn end_orphan(&self) {
        let connection = self.connection.as_ref();
        let orphan = connection.and_then(PinnedConnection::orphan);
        if let (Some(orphan), Some(slot)) = (orphan, &self.slot) {
            slot.pool().cancels.end(orphan, &self.runtime);
        }
    }

    /// Notes that no session holds it any more.
    pub(super) fn leave(&mut self) {
        if let (Some(key), Some(slot)) = (self.holder.take(), &self.slot) {
            slot.pool().note_return(key);
        }
    }

    /// Moves the connection into a task that cleans it, instead of closing it
    /// with its database.
    fn survive(&mut self) {
        let (Some(connection), Some(slot)) = (self.connection.take(), self.slot.take()) else {
            return;
        };
        // The place moves along, since the database has this one connection:
        // another fetch would open an empty one. Shown by
        // `a_dropped_future_costs_only_its_own_work_in_memory`.
        let runtime = self.runtime.clone();
        // Made anew, since what is being dropped cannot be moved out of its
        // box.
        let mut rescued = CheckedOut::new(connection, self.fetched, slot);
        // It is held until it is clean: closing the pool waits for it.
        rescued.parts.holder = self.holder.take();
        let mut survivor = Survivor(Some(rescued));
        runtime.spawn(async move {
            if let Some(checked_out) = &mut survivor.0
                && checked_out.clean().await.is_ok()
                && let Some(clean) = survivor.0.take()
            {
                clean.put_back();
            }
        });
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        // SQLite in memory: closed with its connection, the database would be
        // gone.
        let connection = self.connection.as_ref();
        if connection.is_some_and(PinnedConnection::survives_cancel) && self.slot.is_some() {
            // It takes the connection, so that what follows finds none.
            self.survive();
        }
        self.end_orphan();
        // In this order: while a session is known to hold it, closing the pool
        // waits for it.
        drop(self.connection.take());
        self.leave();
    }
}

/// A connection to an in-memory database being cleaned. Its runtime may drop it
/// unrun: then nothing can save it, and it must not [survive](Parts::survive)
/// once more.
struct Survivor(Option<CheckedOut>);

impl Drop for Survivor {
    fn drop(&mut self) {
        if let Some(mut lost) = self.0.take() {
            drop(lost.parts.connection.take());
        }
    }
}
