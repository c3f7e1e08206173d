//! [`Scope`]: a session that is found by what this thread polls, without being passed along.

use std::{
    any::{Any, TypeId},
    cell::RefCell,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::holder::Holder;

/// A session, under the tag by which it is looked for.
#[derive(Clone)]
pub(crate) struct Scope {
    /// `None`: a job's, which is known by its database.
    tag: Option<TypeId>,
    session: Arc<dyn Holder>,
}

/// Something in this process looks for current sessions. Until then, requests are spared the scopes: two for each cost some
/// 400 instructions.
static IS_LOOKED_FOR: AtomicBool = AtomicBool::new(false);

thread_local! {
    // One for the thread, whose memory is kept: a request costs no allocation by it.
    /// The scopes that this thread is in, innermost last.
    static SCOPES: RefCell<Vec<Scope>> = const { RefCell::new(Vec::new()) };
}

impl Scope {
    /// A scope in which `session` is found under the tag.
    pub(crate) fn new(tag: Option<TypeId>, session: Arc<dyn Holder>) -> Self {
        Self { tag, session }
    }

    /// From here on, requests enter their scopes.
    pub(crate) fn look() {
        IS_LOOKED_FOR.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_looked_for() -> bool {
        IS_LOOKED_FOR.load(Ordering::Relaxed)
    }

    pub(crate) fn tag(&self) -> Option<TypeId> {
        self.tag
    }

    /// Returns the session, if it is a `T`.
    pub(crate) fn session<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        let session: Arc<dyn Any + Send + Sync> = self.session.clone();
        session.downcast().ok()
    }

    /// Has the session found by what is polled on this thread, until the returned value is dropped.
    pub(crate) fn enter(self) -> InScope {
        // A thread that ends polls nothing any more.
        let is_in = SCOPES.try_with(|scopes| scopes.borrow_mut().push(self));
        InScope(is_in.is_ok())
    }

    /// Returns what `pick` finds first in the scopes that this thread is in, from the innermost one outwards.
    pub(crate) fn find<T>(pick: impl FnMut(&Self) -> Option<T>) -> Option<T> {
        SCOPES
            .try_with(|scopes| scopes.borrow().iter().rev().find_map(pick))
            .ok()
            .flatten()
    }
}

/// Leaves a scope when it is dropped. On the stack of a poll, so that scopes are left in the reverse order.
#[must_use = "the scope is left when this is dropped"]
pub(crate) struct InScope(bool);

impl Drop for InScope {
    fn drop(&mut self) {
        // Dropped after the borrow has ended: with a session's last handle, user code may be dropped, and come by here.
        let scope = SCOPES.try_with(|scopes| self.0.then(|| scopes.borrow_mut().pop()));
        drop(scope);
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope").finish_non_exhaustive()
    }
}
