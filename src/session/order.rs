//! Puts what layers and handlers ask for into a session's rules.

use std::{mem, sync::Arc};

use sea_orm::{AccessMode, Statement};

use super::{
    core::Core,
    plan::{Mode, Order},
    slot::Slot,
    state::State,
};
use crate::{connection::BeginSetUp, error::Kind, pool::PoolMode};

/// Puts the session's statements into a transaction, or out of one, from the
/// next statement on.
pub(super) fn set_mode(core: &Arc<Core>, mode: Mode) -> Result<(), Kind> {
    // Also one in autocommit: a replica is read in READ ONLY transactions only.
    let reads = matches!(mode, Mode::Transaction(options) if options.access_mode == Some(AccessMode::ReadOnly));
    if !reads {
        write(core);
    }
    let mut state = core.lock();
    // First: asking for the mode that is already set is allowed even after
    // BEGIN.
    if state.rules.mode == mode {
        return Ok(());
    }
    // An isolation level cannot be changed any more, and autocommit would leave
    // the transaction open.
    if state.stack.has_begun() {
        return Err(Kind::TransactionBegun);
    }
    // The settings that these statements make, such as a tenant's for row-level
    // security, must hold for all that runs. Shown by
    // `a_set_up_is_never_skipped_in_silence`.
    if mode == Mode::Autocommit && is_required(state.rules.on_begin.as_deref()) {
        return Err(Kind::MustBeTransaction);
    }
    state.rules.mode = mode;
    Ok(())
}

/// Applies what a layer inside the session's own asks for.
pub(super) fn apply(core: &Arc<Core>, order: Order) -> Result<(), Kind> {
    if let Some(set_up) = &order.on_begin {
        // First: a route's layer does not know its database when it is built.
        set_up.settings.check(core.pool().backend())?;
    }
    match order.mode {
        Some(Mode::Autocommit) if is_required(order.on_begin.as_ref()) => {
            return Err(Kind::MustBeTransaction);
        }
        Some(mode) => set_mode(core, mode)?,
        None if is_required(order.on_begin.as_ref()) => core.lock().rules.need_transaction(),
        None => {}
    }
    let mut state = core.lock();
    // Never the other way round: what holds for a session must go on to hold.
    if order.pool_mode == Some(PoolMode::Session) {
        state.pool_mode = PoolMode::Session;
    }
    may_set_up(&state, &order)?;
    let rules = &mut state.rules;
    add(&mut rules.on_begin, order.on_begin);
    append(&mut rules.on_acquire, order.on_acquire);
    let rule = order.commit_when;
    let before = rule.and_then(|rule| rules.commit_when.replace(rule));
    drop(state);
    // User code, which must not be dropped under the lock.
    drop(before);
    Ok(())
}

/// Returns an error if it is too late for statements that set up the
/// transaction or the connection: they would not run before what has run
/// already.
fn may_set_up(state: &State, order: &Order) -> Result<(), Kind> {
    if is_required(order.on_begin.as_ref()) && state.stack.has_begun() {
        return Err(Kind::TransactionBegun);
    }
    // A connection that is acquired later is set up then
    // (`on_acquire_prepares_each_connection_once_for_one_request`).
    let is_used = !state.needs_set_up && !matches!(state.slot, Slot::Empty);
    if order.on_acquire.is_some() && is_used {
        return Err(Kind::InUse);
    }
    Ok(())
}

/// Returns whether what BEGIN brings along must hold for all that runs.
fn is_required(set_up: Option<&BeginSetUp>) -> bool {
    set_up.is_some_and(|set_up| set_up.is_required)
}

/// Adds what a layer further in brings along.
fn add(set_up: &mut Option<Arc<BeginSetUp>>, inner: Option<BeginSetUp>) {
    let Some(inner) = inner else { return };
    let mut sum = set_up.take().map(Arc::unwrap_or_clone).unwrap_or_default();
    // Once required, always: a layer further in does not take back what the
    // outer one's routes rely on.
    sum.is_required |= inner.is_required;
    sum.settings.add(inner.settings);
    sum.statements.extend(inner.statements);
    *set_up = Some(Arc::new(sum));
}

/// Puts the `next` statements after those that are there.
fn append(statements: &mut Option<Arc<[Statement]>>, next: Option<Vec<Statement>>) {
    if let Some(next) = next {
        let before = statements.take();
        let before = before.iter().flat_map(|before| before.iter());
        *statements = Some(before.cloned().chain(next).collect());
    }
}

/// Has a session whose request reads write on the primary, unless its
/// transaction has begun.
pub(super) fn write(core: &Arc<Core>) {
    let Some(replication) = core.replication() else {
        return;
    };
    // With a statement on its way, it is too late: the server will refuse to
    // write.
    let Some(turn) = core.try_turn() else { return };
    let mut state = core.lock();
    if state.stack.has_begun() {
        return;
    }
    // In the turn: a statement that acquires at this moment would go on with
    // the replica's connection.
    let Some((mode, has_moved)) = replication.begin_to_write() else {
        return;
    };
    state.rules.mode = mode;
    let idle = match mem::replace(&mut state.slot, Slot::Empty) {
        Slot::Idle(connection) if has_moved => Some(connection),
        other => {
            state.slot = other;
            None
        }
    };
    drop(state);
    if let Some(connection) = idle {
        connection.give_back(|| ());
    }
    drop(turn);
}
