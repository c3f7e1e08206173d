//! The end of a call: its connection comes back to the session, or is lost.

use std::{mem, sync::Arc, task::Waker};

use sea_orm::DbErr;

use super::{
    core::{Core, Locked},
    lend,
    slot::{PolledBy, Running, Slot},
    stack::Purpose,
    state::State,
};
use crate::{
    connection::Output,
    error::{Error, Kind},
    pool::{CheckedOut, Finished, PoolMode, break_deadlock},
    telemetry,
};

/// Takes the connection back from a call that has ended, and returns its
/// output, unless that is kept for a future that is not polled at this moment.
pub(super) fn finish(core: &Arc<Core>, finished: Finished) -> Option<Result<Output, DbErr>> {
    let (mut connection, output) = (finished.connection, finished.output);
    let mut state = core.lock();
    // Dropped below, when the lock is free: it wakes the end of the request.
    let stray_ended = state.phase.take_stray_ended();
    let Slot::Running(mut running) = mem::replace(&mut state.slot, Slot::Empty) else {
        // Not expected, since a call stays in the slot until it has ended. The
        // connection is kept whatever comes.
        return_connection(core, state, connection, false);
        return Some(output);
    };
    // Swapped, not copied: the buffer goes along with the connection and is
    // used again.
    mem::swap(connection.text(), &mut running.text);
    let result = output.as_ref().map(drop);
    let unheard = running.unheard(result);
    let lends = state.pool_mode == PoolMode::Transaction;
    // Before the call's own end changes it. A session that could have lent its
    // connection may use any other.
    let may_change = lends && !state.is_on_connection();
    let observed = running.observed.take();
    // Only then: an error is a text.
    let failure = observed.as_ref().and_then(|_| result.err().cloned());
    let ended_elsewhere = account(core, &mut state, running.purpose, &mut connection, result);
    let is_lost = connection.is_broken();
    let output = note_lost_read(core, &mut state, running.purpose, &connection, output);
    let is_wanted = running.take_wanted();
    // Under the same lock as the slot: the call's own future sees either a
    // running call or its output.
    let (output, owner) = deliver(&mut state, &mut running, output);
    return_connection(core, state, connection, may_change);
    drop(stray_ended);
    // The turn passes on here, when the connection is in its place.
    drop(running);
    if is_wanted {
        core.turns.wake_worker();
    }
    owner.into_iter().for_each(Waker::wake);
    // The log's subscriber and observers are foreign code, so they are called
    // last and under no lock.
    if let Some(observed) = observed {
        core.tell_executed(&observed, failure.as_ref());
    }
    match ended_elsewhere {
        // What the code had done by then, nothing shows any more.
        Some(statement) if is_lost => telemetry::cut_off_in_transaction(&statement),
        Some(statement) => telemetry::ended_elsewhere(&statement),
        None => {}
    }
    unheard.iter().for_each(telemetry::stream_failed_unheard);
    come_to_rest(core, lends);
    output
}

/// The session's connection rests, and is lent where the session `lends` it.
fn come_to_rest(core: &Arc<Core>, lends: bool) {
    if lends {
        lend::offer_unless_polled(core);
    }
    if core.is_awaited() {
        // The request waits for a second connection, and its first one rests
        // now: that may be a deadlock.
        break_deadlock(core.pool());
    }
}

/// Keeps the output of a call that the worker has polled, and returns the waker
/// of the future that waits for it. Any other output is returned to whatever
/// has polled the call.
fn deliver(
    state: &mut State,
    running: &mut Running,
    output: Result<Output, DbErr>,
) -> (Option<Result<Output, DbErr>>, Option<Waker>) {
    // Polled by its own future, it returns from that poll; in a task, nothing
    // asks for it, and it is dropped there.
    let PolledBy::Worker { is_left } = running.polled_by else {
        return (Some(output), None);
    };
    if !is_left {
        state.outputs.push((running.id, output));
    }
    (None, running.waker.take())
}

/// Draws the conclusions from a call, and returns the statement by which a
/// transaction was ended behind the session's back.
fn account(
    core: &Core,
    state: &mut Locked<'_>,
    purpose: Purpose,
    connection: &mut CheckedOut,
    result: Result<(), &DbErr>,
) -> Option<String> {
    state.account(purpose, connection, result);
    // With each call, not at the session's end: the request may answer before
    // this session, a job's for instance, ends.
    core.tell_request(state);
    // A write that the server itself refuses succeeds elsewhere: the client may
    // send the request again.
    if connection.may_be_demoted()
        && let Some(known) = result.err().and_then(Error::of)
        && known.is_read_only()
    {
        state.stack.failures.may_pass(known, 0, false);
    }
    if let Some(position) = connection.take_position() {
        // Read with COMMIT's own answer wherever that is safe: asked for later,
        // it would cost a round trip (`g19_positions_cost_no_round_trip`).
        state.written.note(position);
    }
    state.is_out_of_step |= connection.is_out_of_step();
    let is_ended = connection.take_ended_elsewhere();
    let has_failed = connection.has_failed() || connection.is_broken();
    let standing = &mut state.stack.standing;
    if !is_ended && !has_failed && standing.cause().is_none() {
        return None;
    }
    let backend = core.pool().backend();
    let error = result.err().filter(|_| purpose.is_work());
    standing.note_cause(has_failed, error, || {
        connection.text().without_values(backend)
    });
    let statement = is_ended.then(|| connection.text().without_values(backend))?;
    standing.ended_elsewhere(statement.clone());
    Some(statement)
}

/// Notes a connection that was lost on which its request has only read, and
/// returns what the call's caller hears of it.
fn note_lost_read(
    core: &Core,
    state: &mut State,
    purpose: Purpose,
    connection: &CheckedOut,
    output: Result<Output, DbErr>,
) -> Result<Output, DbErr> {
    let Err(error) = &output else { return output };
    // A COMMIT that is lost has an error of its own: its outcome is unknown.
    let is_lost = connection.is_broken()
        && purpose != Purpose::Commit
        && core
            .replication()
            .is_some_and(|replication| replication.note_lost_read(error));
    if !is_lost {
        return output;
    }
    let depth = state.stack.depth();
    let lost = Error::with_source(Kind::ReadLost, error.clone());
    state.stack.failures.may_pass(lost, depth, false);
    // The driver's words, which the log and the replica's status have, do not
    // say that another try helps.
    Err(Kind::ReadLost.into_db_err())
}

/// Keeps a connection for the session's next statement, or gives it back. If
/// that `may_change`, a lost one is no loss.
fn return_connection(
    core: &Arc<Core>,
    mut state: Locked<'_>,
    connection: CheckedOut,
    may_change: bool,
) {
    let is_over = state.phase.is_over();
    if is_over {
        // The pool rolls back what is open before another session gets the
        // connection (G4).
        state.stack.roll_back_all();
    }
    if connection.is_broken() && !may_change {
        // Not `Empty`: a session does not go on elsewhere in silence, since
        // what it did may be lost (G2).
        state.slot = Slot::Broken;
    }
    if is_over || connection.is_broken() {
        return release(core, state, connection);
    }
    state.slot = Slot::Idle(connection);
    // At the end of the request they wait for the connection's return.
    let is_any_due = state.phase.is_open() && state.stack.hooks.is_any_due();
    drop(state);
    if is_any_due {
        core.run_hooks();
    }
}

/// Gives the session's connection back. When it has left, the end of the
/// request goes on, and then the hooks run.
pub(super) fn release(core: &Arc<Core>, mut state: Locked<'_>, connection: CheckedOut) {
    let released = state.phase.take_released();
    drop(state);
    // Hooks run once the connection is back, because one of them may want it: a
    // pool of one would wait for itself. Shown by
    // `a_hook_finds_the_connection_back_and_its_work_done`.
    let core = core.clone();
    connection.give_back(move || {
        drop(released);
        core.run_hooks();
    });
}

/// The running call was dropped, and its connection closed with it.
pub(super) fn lose(core: &Arc<Core>) {
    let mut state = core.lock();
    let mut running = match mem::replace(&mut state.slot, Slot::Broken) {
        Slot::Running(running) => running,
        // Lost already, by the call's own future and by the worker for
        // instance.
        other => {
            state.slot = other;
            return;
        }
    };
    // It may have been sent: from here on the outcome is unknown, and no hook
    // runs (G7).
    if running.purpose == Purpose::Commit {
        state.stack.commit_lost();
    }
    let backend = core.pool().backend();
    // Stored or raw code may have committed on the connection that is gone, and
    // the savepoint that would show it with it.
    let doubtful = running
        .is_doubtful
        .then(|| running.text.without_values(backend));
    if let Some(statement) = &doubtful {
        state.stack.standing.ended_elsewhere(statement.clone());
    }
    let is_over = state.phase.is_over();
    if is_over {
        state.stack.roll_back_all();
    }
    let released = state.phase.take_released();
    let stray_ended = state.phase.take_stray_ended();
    let observed = running.observed.take();
    drop(state);
    // Without the lock: with it go the turn and the channels, which wake tasks.
    drop((running, released, stray_ended));
    // It may wait for the call that is gone now, and what comes behind it is to
    // be refused.
    core.turns.wake_worker();
    if let Some(observed) = observed {
        core.tell_executed(&observed, Some(&Kind::ConnectionLost.into_db_err()));
    }
    if let Some(statement) = &doubtful {
        telemetry::cut_off_in_transaction(statement);
    }
    if is_over {
        // Those of a rollback: the connection is closed, and with it all that
        // was open.
        core.run_hooks();
    }
}
