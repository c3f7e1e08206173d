//! Lending: a session gives the connection that it does not use to what waits
//! for one, unless a [`SessionPin`] keeps it.
//!
//! Until its first statement, a request's session always lends: a request that
//! acquires first and then reads a slow client's body would keep others from
//! the database for all that time. It loses nothing, since all its statements
//! still run on one connection, the one that it acquires with the first of them
//! (G2). In [`PoolMode::Transaction`], a session lends between its statements
//! as well, except in a transaction and while it is pinned.

use std::{fmt, mem, sync::Arc};

use super::{
    core::{Core, Turn},
    slot::Slot,
    stack::Caller,
    state::State,
};
use crate::{
    pool::{self, CheckedOut, PoolMode},
    sql::Earlier,
};

/// Lends the session's connection to what waits for one, now or later. To be
/// called when the session's request waits for something else.
pub(super) fn offer(core: &Arc<Core>) {
    let is_chained = {
        let mut state = core.lock();
        // Asked before each offer: in `PoolMode::Session`, a session has run
        // something and keeps its connection for good (G2;
        // `g2_a_session_that_has_run_a_statement_does_not_lend`).
        if !is_lendable(core, &state) {
            return;
        }
        match &mut state.slot {
            Slot::Idle(connection) => {
                connection.offer();
                connection.is_chained()
            }
            _ => false,
        }
    };
    // No wake-up is lost: the offer is in the registry before this looks for
    // waiters, and what begins to wait joins the queue before it looks for
    // offers, so one of the two sees the other. A transaction that was begun
    // for this session is not to be open while it does something else: the
    // server may end it by its `idle_in_transaction_session_timeout`, and
    // `now()` would be of the past. Shown by
    // `a_request_that_waits_for_something_else_has_no_transaction_open`.
    if is_chained || core.pool().has_waiters() || core.pool().settings().rotates {
        lend(core);
    }
}

/// [`offer`] for a session that has come to rest, unless its guard polls its
/// request at this moment: that offers when the request waits, and not between
/// two statements that follow one another.
pub(super) fn offer_unless_polled(core: &Arc<Core>) {
    // Not after each statement: a request of several would queue anew for each,
    // and under load fail in its middle
    // (`statements_in_a_row_keep_their_connection`).
    let request = core.origin.is_outermost().then(pool::current).flatten();
    let is_polled = request
        .zip(core.request_holder())
        .is_some_and(|(polled, own)| Arc::as_ptr(&polled).addr() == Arc::as_ptr(&own).addr());
    if !is_polled {
        offer(core);
    }
}

/// Gives the connection to the first waiter, unless it is about to be used.
pub(super) fn lend(core: &Arc<Core>) {
    if let Some(turn) = core.try_turn() {
        return lend_in_turn(core, turn);
    }
    // The holder of the turn is about to launch its statement, or finds that
    // there is none to launch: then nothing else would offer the connection
    // again. Not a job of the session's worker: it need not be done in order.
    let (this, runtime) = (core.clone(), core.runtime());
    if let Some(runtime) = runtime {
        runtime.spawn(async move {
            if let Ok(turn) = this.turn(Caller::Session).await {
                lend_in_turn(&this, turn);
            }
        });
    }
}

fn lend_in_turn(core: &Arc<Core>, turn: Turn) {
    let mut state = core.lock();
    // Looked at again: since its offer, the session may have run a statement,
    // or ended.
    if !is_lendable(core, &state) {
        return;
    }
    let slot = mem::replace(&mut state.slot, Slot::Empty);
    // By this, its next acquire is not turned away for want of room in the
    // queue (G10): the request was let in before.
    let held = state.span.lent();
    drop(state);
    drop(turn);
    if let Slot::Idle(connection) = slot {
        connection.give_back(|| ());
    }
    core.tell_released(held);
}

/// Returns whether the session holds a connection that it may do without until
/// its next statement.
pub(super) fn is_lendable(core: &Core, state: &State) -> bool {
    let Slot::Idle(connection) = &state.slot else {
        return false;
    };
    // Nothing has run in a transaction that was begun for the session: there is
    // nothing that a pin could keep.
    if !state.phase.is_open() || state.pins.is_any() && !connection.is_chained() {
        return false;
    }
    // A session that user code holds as a value may be used at any moment, and
    // has no guard that notices when it waits.
    let is_unused = state.needs_set_up && core.origin.is_outermost();
    is_unused
        || state.pool_mode == PoolMode::Transaction && is_between_statements(state, connection)
}

/// Returns whether nothing of the session is on its connection. That the
/// connection is clean says so of transactions, of what is unread, and of
/// session state; a stream's reader may still ask what the connection was like.
fn is_between_statements(state: &State, connection: &CheckedOut) -> bool {
    !state.streaming && state.stack.depth() == 0 && connection.is_clean()
}

/// Keeps a session's connection until it is dropped, where
/// [`PoolMode::Transaction`](crate::PoolMode::Transaction) would lend it;
/// created by [`DbSession::pin`](crate::DbSession::pin).
#[must_use = "the connection is kept until this is dropped"]
pub struct SessionPin {
    core: Arc<Core>,
}

impl SessionPin {
    pub(super) fn new(core: &Arc<Core>) -> Self {
        let mut state = core.lock();
        let last = state.last_id();
        let in_transaction = state.stack.depth() > 0;
        state.pins.add(last, in_transaction);
        if let Slot::Idle(connection) = &mut state.slot {
            // An offer that still stands would be taken although the connection
            // is to be kept.
            connection.withdraw();
        }
        drop(state);
        Self { core: core.clone() }
    }
}

impl Drop for SessionPin {
    fn drop(&mut self) {
        self.core.lock().pins.remove();
        // Something may wait by now, and nothing else would offer it before the
        // session's next statement.
        offer_unless_polled(&self.core);
    }
}

impl fmt::Debug for SessionPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionPin").finish_non_exhaustive()
    }
}

impl State {
    /// Returns whether the session's connection stays with it after a statement
    /// of `caller`.
    pub(super) fn is_kept(&self, caller: Caller) -> bool {
        self.pool_mode == PoolMode::Session || self.is_inside(caller) || self.pins.is_any()
    }

    /// Returns whether something of the session, a transaction or session
    /// state, is on its connection.
    pub(super) fn is_on_connection(&self) -> bool {
        self.pins.is_any() || self.stack.depth() > 0
    }

    /// Returns whether an earlier statement that is asked about has run on the
    /// connection that the session still has.
    pub(super) fn knows(&self, asks: Earlier) -> bool {
        let is_inside = self.stack.depth() > 0;
        self.pool_mode == PoolMode::Session || self.pins.know(asks, self.last_id(), is_inside)
    }
}
