//! Counts what the lexer goes over, for the test that its time is linear.

use std::cell::Cell;

thread_local! {
    static STEPS: Cell<usize> = const { Cell::new(0) };
}

/// A token was read that is so long.
pub(super) fn count(bytes: usize) {
    STEPS.set(STEPS.get() + bytes);
}

pub(crate) fn reset() {
    STEPS.set(0);
}

pub(crate) fn count_so_far() -> usize {
    STEPS.get()
}
