//! The ends of a session, and of a transaction whose handle was dropped.

use std::{mem, sync::Arc, time::Duration};

use sea_orm::DbErr;

use super::{
    call::detach,
    core::{Core, Locked, Turn},
    finish,
    phase::{CutOff, Over, Phase, Rollback},
    pins::Waits,
    slot::{Running, Slot},
    stack::{Caller, Purpose, TransactionId},
    state::State,
    statement::{CallRequest, launch},
    worker::{enqueue_detached, in_turn},
};
use crate::{connection::Operation, error::Kind};

/// The time that a response which rolls back waits for a statement that its
/// handler has left running.
// Such a response acknowledges nothing, so there is no reason to delay it: a
// time-out layer inside the session's own has left a long statement, and its
// 504 is due. Shown by
// `a_failed_response_does_not_wait_for_a_dropped_statement`.
const STRAY_TIMEOUT: Duration = Duration::from_millis(100);

/// The same where the server is asked to stop the statement, which takes a
/// round trip or two.
const CANCELLED_TIMEOUT: Duration = Duration::from_secs(1);

/// Marks a transaction whose handle was dropped, and has it rolled back: now,
/// or as soon as its running statement has ended.
pub(super) fn abandon(core: &Arc<Core>, id: TransactionId, has_begun: bool) {
    let mut state = core.lock();
    if !state.stack.abandon(id) {
        // It has ended, as by `commit()`. Or its BEGIN waits: the worker may
        // have that in hand at this moment. Shown by
        // `a_begin_dropped_as_its_connection_arrives_opens_nothing`.
        if !has_begun {
            state.stack.give_up(id);
        }
        return;
    }
    drop(state);
    // Not left to the next statement: until that comes, the transaction would
    // hold its locks. Shown by
    // `a_transaction_dropped_with_its_statement_is_rolled_back_after_it`.
    if let Some(turn) = core.try_turn() {
        return roll_back_abandoned(core, turn);
    }
    let this = core.clone();
    enqueue_detached(core, async move {
        if let Ok(turn) = this.turn(Caller::Session).await {
            roll_back_abandoned(&this, turn);
        }
    });
}

fn roll_back_abandoned(core: &Arc<Core>, turn: Turn) {
    let caller = {
        let state = core.lock();
        let surviving = state.stack.surviving();
        // Nothing is to be sent if BEGIN never was, or if a statement that came
        // first has rolled it back.
        if !matches!(&state.slot, Slot::Idle(connection) if connection.depth() > surviving) {
            return;
        }
        // As the innermost that is left: any other caller would be refused.
        state.stack.innermost()
    };
    // An error means that the session has ended meanwhile, and its end rolls
    // back.
    if let Ok(call) = launch(core, turn, CallRequest::new(caller, Operation::Settle)) {
        // Dropped unpolled, the call moves to a task. `Drop` of a transaction
        // waits for nothing (G11).
        drop(call);
    }
}

/// Gives the connection back before the request ends; the next statement checks
/// out again.
pub(super) async fn release_early(core: &Arc<Core>) -> Result<(), DbErr> {
    // In a turn: a statement that was polled before still needs the connection.
    in_turn(core, |core, _turn| release_now(core)).await
}

fn release_now(core: &Core) -> Result<(), DbErr> {
    let mut state = core.lock();
    if state.admit(Caller::Session).map_err(Kind::into_db_err)? > 0 {
        return Err(Kind::TransactionOpen.into_db_err());
    }
    match mem::replace(&mut state.slot, Slot::Empty) {
        Slot::Idle(connection) => {
            let held = state.span.released();
            // The handler asked for it: its next wait is another one.
            state.waits = Waits::default();
            let last = state.last_id();
            state.pins.moved(last);
            drop(state);
            connection.give_back(|| ());
            core.tell_released(held);
        }
        // Nothing is held. One that was lost stays so, since the work done on
        // it may be lost as well.
        other => state.slot = other,
    }
    Ok(())
}

/// Ends the session: its handles are dead from here on, its connection goes
/// back.
///
/// There is something to wait for if a transaction is open, or is being rolled
/// back.
pub(super) fn end(core: &Arc<Core>) -> Option<Rollback> {
    end_locked(core, core.lock())
}

/// [`end`], under the lock that its caller has taken.
pub(super) fn end_locked(core: &Arc<Core>, mut state: Locked<'_>) -> Option<Rollback> {
    // Also if the session is over: a cut-off may have left something stored.
    core.tell_request(&state);
    if let Some(over) = state.phase.over() {
        // The guard is dropped after it has settled. A cut-off, though, has
        // left its rollback for this moment.
        return over.cut_off.as_mut()?.rollback.take();
    }
    let rollback = end_now(core, state, Over::default());
    // A job that gets the turn before that is refused, because the phase has
    // changed already.
    core.turns.close();
    rollback
}

/// Ends the session before anything runs in it, because its request cannot be
/// served.
#[cfg(feature = "retry")]
pub(super) fn refuse(core: &Arc<Core>, reason: Kind) {
    let mut state = core.lock();
    if !state.phase.is_open() {
        return;
    }
    let own = state.through.own.take();
    let refused = CutOff {
        reason,
        // Its response is no success, whatever the handler answers.
        has_lost: true,
        rollback: None,
    };
    cut_off(core, state, refused);
    // SeaORM rolls it back.
    drop(own);
}

/// Ends the session because its pool takes its connection away. The end of the
/// request waits for the rollback.
pub(super) fn cut_off(core: &Arc<Core>, state: Locked<'_>, cut_off: CutOff) {
    let over = Over::cut_off(cut_off);
    // Nothing to wait for is returned: the pool, which cuts, does not wait, and
    // `over` keeps the rollback.
    drop(end_now(core, state, over));
    core.turns.close();
}

fn end_now(core: &Arc<Core>, mut state: Locked<'_>, over: Over) -> Option<Rollback> {
    // Asked first: it is about the transactions that `close_phase` forgets.
    let outcome = state.outcome();
    let held = state.span.released();
    let (usage, repeated) = (state.span.usage(), state.repeats.take_most());
    // Closed when the lock is free again, because that runs the log
    // subscriber's code.
    let span = state.span.close(outcome);
    let rollback = leave(core, state, over);
    drop(span);
    core.tell_released(held);
    core.tell_ended(usage, outcome);
    if let Some(repeated) = repeated {
        core.log_repeated(&repeated);
    }
    rollback
}

/// Has the connection leave the session, or the call that runs on it.
fn leave(core: &Arc<Core>, mut state: Locked<'_>, over: Over) -> Option<Rollback> {
    let rollback = close_phase(&mut state, over);
    match mem::replace(&mut state.slot, Slot::Empty) {
        // A clean one goes back here and now, without a task: a request that
        // waits need not wait for this one's response.
        Slot::Idle(connection) => finish::release(core, state, connection),
        Slot::Running(running) => {
            // Before it is detached, so that the task finds the call stopped at
            // its first look.
            running.session_ended();
            state.slot = Slot::Running(running);
            // Not if it is being polled at this moment: that poll finds the
            // session over, and detaches it.
            detach(core, state, None);
            core.run_hooks();
        }
        other => {
            // A session whose connection was lost stays without one.
            state.slot = other;
            let released = state.phase.take_released();
            let is_any_due = state.stack.hooks.is_any_due();
            drop(state);
            drop(released);
            if is_any_due {
                core.run_hooks();
            }
        }
    }
    rollback
}

/// Makes the phase `over`, and prepares to wait for what is open.
fn close_phase(state: &mut State, mut over: Over) -> Option<Rollback> {
    let running = state.slot.call();
    // A transaction that the handler dropped is being rolled back: it counts as
    // open until that is done, because the response says that it is (G8).
    let is_unclean = match &state.slot {
        Slot::Idle(connection) => connection.depth() > 0,
        Slot::Running(running) => running.purpose == Purpose::Other,
        Slot::Empty | Slot::Broken => false,
    };
    let is_open = state.stack.depth() > 0 || is_unclean;
    let rollback = is_open.then(|| over.expect_rollback(running.and_then(stray_timeout)));
    // A running call, which may be a COMMIT, has the last word on what becomes
    // of the hooks.
    if running.is_none() {
        state.stack.roll_back_all();
    }
    // Last, because `admit` refuses everything from here on.
    let rollback = over.keep_for_the_end(rollback);
    state.phase = Phase::Over(over);
    rollback
}

/// Returns the time that a response which rolls back waits for a call; `None`
/// for one that ends soon, or has to be waited for.
fn stray_timeout(running: &Running) -> Option<Duration> {
    // COMMIT and ROLLBACK are waited for in full: the response must not leave
    // before their end is known.
    running
        .purpose
        .is_work()
        .then_some(if running.cancel.is_some() {
            CANCELLED_TIMEOUT
        } else {
            STRAY_TIMEOUT
        })
}
