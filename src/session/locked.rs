//! [`Locked`]: a session's state under its lock, and what must not be dropped there.

use std::{
    ops::{Deref, DerefMut},
    sync::MutexGuard,
};

use super::state::State;
use crate::pool::Hook;

/// Access to a session's state. Hooks that will not run are dropped when the lock is free again: what they
/// captured may use the session in its own `Drop`.
pub(super) struct Locked<'c> {
    // In this order: fields are dropped from first to last.
    state: MutexGuard<'c, State>,
    discarded: Option<Vec<Hook>>,
}

impl<'c> Locked<'c> {
    pub(super) fn new(state: MutexGuard<'c, State>) -> Self {
        Self {
            state,
            discarded: None,
        }
    }
}

impl Deref for Locked<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.state
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        if self.state.stack.hooks.is_any_discarded() {
            self.discarded = Some(self.state.stack.hooks.take_discarded());
        }
    }
}
