//! [`Slot`]: where the session's connection is.

use super::{running::Running, stack::Purpose};
use crate::pool::CheckedOut;

/// Where the session's connection is.
pub(super) enum Slot {
    /// Not checked out: not yet, or no more.
    Empty,
    /// At rest; the next call takes it.
    Idle(CheckedOut),
    /// Owned by a call.
    Running(Running),
    /// Lost or closed; the session has no other.
    Broken,
}

/// How a call has left its connection.
pub(super) struct Found {
    /// How many transactions are open on it.
    pub(super) depth: usize,
    pub(super) is_broken: bool,
    /// What is open there can only be rolled back.
    pub(super) has_failed: bool,
}

impl Found {
    pub(super) fn of(connection: &CheckedOut) -> Self {
        Self {
            depth: connection.depth(),
            is_broken: connection.is_broken(),
            has_failed: connection.has_failed(),
        }
    }
}

impl Slot {
    /// Returns what the running call does, if there is one.
    pub(super) fn purpose(&self) -> Option<Purpose> {
        match self {
            Self::Running(running) => Some(running.purpose),
            _ => None,
        }
    }
}
