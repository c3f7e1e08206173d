//! Lending: a session gives its connection to what waits for one, as long as it has run nothing on it.
//!
//! A request that acquires first and then reads a slow client's body would keep others from the database for all that
//! time. It loses nothing by lending: all its statements still run on one connection, the one that it acquires with the
//! first of them.

use std::{mem, sync::Arc};

use super::{core::Core, slot::Slot, state::State};

/// Lends the session's connection to what waits for one, now or later. To be called when the session's request waits for
/// something else.
pub(super) fn offer(core: &Arc<Core>) {
    {
        let mut state = core.lock();
        if !is_lendable(core, &state) {
            return;
        }
        if let Slot::Idle(connection) = &mut state.slot {
            connection.offer();
        }
    }
    // In this order: what begins to wait looks for an offer after it has joined the queue, so one of the two sees the
    // other.
    if core.pool().has_waiters() {
        lend(core);
    }
}

/// Gives the connection to the oldest waiter, unless it is about to be used.
pub(super) fn lend(core: &Arc<Core>) {
    // Whatever has the turn has found the connection in its place, and launches its statement on it.
    let Some(turn) = core.try_turn() else { return };
    let mut state = core.lock();
    if !is_lendable(core, &state) {
        return;
    }
    let slot = mem::replace(&mut state.slot, Slot::Empty);
    state.span.lent();
    drop(state);
    drop(turn);
    if let Slot::Idle(connection) = slot {
        connection.give_back(|| ());
    }
}

/// Returns whether the session has a connection that nothing has run on, and its request's future says when it waits.
/// User code that holds a session as a value may be about to use it at any moment.
pub(super) fn is_lendable(core: &Core, state: &State) -> bool {
    state.phase.is_open()
        && state.fresh
        && matches!(state.slot, Slot::Idle(_))
        && core.origin.is_outermost()
}
