//! Lending: a session gives its connection to what waits for one, as long as it has run nothing on it.
//!
//! A request that acquires first and then reads a slow client's body would keep others from the database for all that
//! time. It loses nothing by lending: all its statements still run on one connection, the one that it acquires with the
//! first of them.

use std::{mem, sync::Arc};

use super::{
    core::{Core, Turn},
    queue::enqueue_detached,
    slot::Slot,
    stack::Caller,
    state::State,
};

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
    // No wake-up is lost: the offer is in the registry before this looks for waiters, and what begins to wait joins the
    // queue before it looks for offers, so one of the two sees the other.
    if core.pool().has_waiters() {
        lend(core);
    }
}

/// Gives the connection to the first waiter, unless it is about to be used.
pub(super) fn lend(core: &Arc<Core>) {
    if let Some(turn) = core.try_turn() {
        return lend_in_turn(core, turn);
    }
    // Whatever has the turn is about to launch its statement, or finds that there is none to launch: then nothing else would
    // offer the connection again.
    let this = core.clone();
    enqueue_detached(core, async move {
        if let Ok(turn) = this.turn(Caller::Session).await {
            lend_in_turn(&this, turn);
        }
    });
}

fn lend_in_turn(core: &Arc<Core>, turn: Turn) {
    // Whatever waited may have been served meanwhile: then the session keeps what it has.
    if !core.pool().has_waiters() {
        return;
    }
    let mut state = core.lock();
    // Looked at again: since its offer, the session may have run a statement, or ended.
    if !is_lendable(core, &state) {
        return;
    }
    let slot = mem::replace(&mut state.slot, Slot::Empty);
    // By this, its next acquire is not turned away for want of room in the queue (G10): the request was let in before.
    state.span.lent();
    drop(state);
    drop(turn);
    if let Slot::Idle(connection) = slot {
        connection.give_back(|| ());
    }
}

/// Returns whether the session holds a connection that nothing has run on, and has a guard that notices when its request
/// waits. A session that user code holds as a value has none: it may be used at any moment.
pub(super) fn is_lendable(core: &Core, state: &State) -> bool {
    state.phase.is_open()
        // What has run may have left something on the connection, which the session's next statement must find there
        // (G2).
        && state.fresh
        && matches!(state.slot, Slot::Idle(_))
        && core.origin.is_outermost()
}
