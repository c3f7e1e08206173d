//! Puts what layers and handlers ask for into a session's rules.

use std::sync::Arc;

use sea_orm::Statement;

use super::{
    core::Core,
    plan::{Mode, Order},
    slot::Slot,
};
use crate::error::Kind;

/// Puts the session's statements into a transaction, or out of one, from the next statement on.
pub(super) fn set_mode(core: &Core, mode: Mode) -> Result<(), Kind> {
    let mut state = core.lock();
    if state.rules.mode == mode {
        return Ok(());
    }
    if state.stack.has_begun() {
        return Err(Kind::TransactionBegun);
    }
    if mode == Mode::Autocommit && state.rules.on_begin.is_some() {
        return Err(Kind::MustBeTransaction);
    }
    state.rules.mode = mode;
    Ok(())
}

/// Applies what a layer inside the session's own asks for.
pub(super) fn apply(core: &Core, order: Order) -> Result<(), Kind> {
    let Order {
        mode,
        commit_when,
        on_begin,
        on_acquire,
    } = order;
    if mode == Some(Mode::Autocommit) && on_begin.is_some() {
        return Err(Kind::MustBeTransaction);
    }
    if mode.is_none() && on_begin.is_some() {
        core.lock().rules.need_transaction();
    }
    if let Some(mode) = mode {
        set_mode(core, mode)?;
    }
    let mut state = core.lock();
    if on_begin.is_some() && state.stack.has_begun() {
        return Err(Kind::TransactionBegun);
    }
    if on_acquire.is_some() && !state.fresh && !matches!(state.slot, Slot::Empty) {
        return Err(Kind::InUse);
    }
    let rules = &mut state.rules;
    append(&mut rules.on_begin, on_begin);
    append(&mut rules.on_acquire, on_acquire);
    let before = commit_when.and_then(|rule| rules.commit_when.replace(rule));
    drop(state);
    // User code, which must not be dropped under the lock.
    drop(before);
    Ok(())
}

/// Puts the `next` statements after those that are there.
fn append(statements: &mut Option<Arc<[Statement]>>, next: Option<Vec<Statement>>) {
    if let Some(next) = next {
        let before = statements.take();
        let before = before.iter().flat_map(|before| before.iter());
        *statements = Some(before.cloned().chain(next).collect());
    }
}
