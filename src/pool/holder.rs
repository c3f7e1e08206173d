//! [`Holder`]: a session, as its pool sees it; and what this thread polls: the request by which a second session is known to be
//! its, and the [`Scope`]s in which a session is found without being passed
//! along.

use std::{
    any::{Any, TypeId},
    cell::RefCell,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use http::{Method, uri::PathAndQuery};

use super::driver_pool::DriverPool;
use crate::{connection::CancelHandle, error::Kind};

/// A session, as its pool sees it.
// `Any`, so that a scope can give a session back as what it is, which the pool
// does not know.
pub(crate) trait Holder: Any + Send + Sync {
    /// Returns the outermost session of the request it was opened in.
    fn request(self: Arc<Self>) -> Option<Arc<dyn Holder>>;

    /// Returns whether its connections come from `driver`.
    fn is_on(&self, driver: &DriverPool) -> bool;

    /// Returns whether it cannot outlive the future of its request.
    fn is_bound(&self) -> bool;

    /// Returns how many waits for a connection its request has; for a request's
    /// outermost session.
    fn waits(&self) -> &AtomicU32;

    /// Returns how many connections its request holds, those on their way back
    /// excluded; for a request's outermost session.
    // Counted, and not looked for in the registry: that took 3300 instructions
    // with 200 connections, for each lazy request that had to wait.
    fn holds(&self) -> &AtomicU32;

    /// Notes that another session of its request has committed; for a request's
    /// outermost session.
    fn note_committed(&self);

    /// The number of its request's other sessions that have not ended.
    fn beside(&self) -> &AtomicU32;

    /// Returns the state of its connection.
    fn grip(&self) -> Grip;

    /// Returns what runs for it, where the server can be asked whether it still
    /// does.
    fn doubtful(&self) -> Option<Doubt>;

    /// Polls what runs for it, whether its own future is polled or not.
    fn look_at_call(self: Arc<Self>);

    fn label(&self) -> Option<Label>;

    /// Returns the beginning of its last statement, without values.
    fn last_statement(&self) -> String;

    /// Returns for how long the body that it lives for has waited for its
    /// reader.
    fn unread_for(&self) -> Option<Duration>;

    /// Gives its connection to what waits, or back to the pool, if it may be
    /// lent; its next statement acquires another one. Does nothing if there is
    /// none, or it is about to be used.
    fn lend(self: Arc<Self>);

    /// Takes its connection away; its handler goes on and gets `reason` as an
    /// error. Returns false if there is nothing to take, or what runs must be
    /// completed.
    fn cut(self: Arc<Self>, reason: Kind) -> bool;
}

/// The place of a session in the registry.
pub(crate) type Key = usize;

/// The state of the connection that the registry knows a session by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Grip {
    /// It has given it back: that is on its way.
    None,
    /// It is lent to what waits as soon as the session's own request waits for
    /// something.
    Lendable,
    Idle,
    /// A statement is running on it.
    Busy,
}

/// A statement whose answer may have been lost.
pub(crate) struct Doubt {
    /// Names it among those of its connection.
    pub(crate) turn: u64,
    pub(crate) handle: Arc<CancelHandle>,
}

/// A request's name in the log.
#[derive(Debug, Clone)]
pub(crate) struct Label {
    pub(crate) method: Method,
    /// `None` for CONNECT, which names a host alone.
    // Not the whole URI, which is twice the size, in a value that is moved with
    // each session.
    pub(crate) path: Option<PathAndQuery>,
    /// The route by which it was matched, if its layer says so.
    pub(crate) route: Option<Arc<str>>,
}

/// Returns what tells one from another. By the address alone: the same type may
/// have several vtables.
pub(super) fn identity(holder: &Arc<dyn Holder>) -> usize {
    // A request has no other name; while it is held, its address is its own.
    Arc::as_ptr(holder).addr()
}

/// Returns whether a request holds a connection, and has not begun to give it
/// back.
pub(super) fn holds_one(request: &dyn Holder) -> bool {
    request.holds().load(Ordering::Relaxed) > 0
}

thread_local! {
    /// Tells a request's own waits from those of tasks that it has spawned.
    static CURRENT: RefCell<Option<Arc<dyn Holder>>> = const { RefCell::new(None) };
}

/// Returns the request that is being polled, by its outermost session.
pub(crate) fn current() -> Option<Arc<dyn Holder>> {
    // A session may be dropped with its thread's locals: then there is no
    // request.
    CURRENT
        .try_with(|current| current.borrow().clone())
        .ok()
        .flatten()
}

/// Attributes what is polled to `request`, until the returned value is dropped.
pub(crate) fn enter(request: Arc<dyn Holder>) -> Entered {
    Entered {
        // A job within a handler is polled within that one's poll: behind it,
        // the outer one is current again.
        before: replace(Some(request)),
    }
}

/// Restores what was current before when it is dropped.
#[must_use = "it is over when this is dropped"]
pub(crate) struct Entered {
    before: Option<Arc<dyn Holder>>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        drop(replace(self.before.take()));
    }
}

/// Returns the old value, so that it is dropped after the borrow has ended: its
/// drop may come by here again.
fn replace(next: Option<Arc<dyn Holder>>) -> Option<Arc<dyn Holder>> {
    CURRENT
        .try_with(|current| current.replace(next))
        .ok()
        .flatten()
}

/// A session, under the tag by which it is looked for.
#[derive(Clone)]
pub(crate) struct Scope {
    /// `None`: a job's, which is known by its database.
    tag: Option<TypeId>,
    session: Arc<dyn Holder>,
}

/// Something in this process looks for current sessions. Until then, requests
/// are spared the scopes: two for each cost some 400 instructions.
static IS_LOOKED_FOR: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// The scopes that this thread is in, innermost last.
    // One for the thread, whose memory is kept: a request costs no allocation
    // by it.
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
        // Relaxed: a request that does not see it yet may as well have come
        // before the `CurrentSession`.
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

    /// Has the session found by what is polled on this thread, until the
    /// returned value is dropped.
    pub(crate) fn enter(self) -> InScope {
        // A thread that ends polls nothing any more.
        let is_in = SCOPES.try_with(|scopes| scopes.borrow_mut().push(self));
        InScope(is_in.is_ok())
    }

    /// Returns what `pick` finds first in the scopes that this thread is in,
    /// from the innermost one outwards.
    pub(crate) fn find<T>(pick: impl FnMut(&Self) -> Option<T>) -> Option<T> {
        SCOPES
            .try_with(|scopes| scopes.borrow().iter().rev().find_map(pick))
            .ok()
            .flatten()
    }
}

/// Leaves a scope when it is dropped. On the stack of a poll, so that scopes
/// are left in the reverse order.
#[must_use = "the scope is left when this is dropped"]
pub(crate) struct InScope(bool);

impl Drop for InScope {
    fn drop(&mut self) {
        // Dropped after the borrow has ended: with a session's last handle,
        // user code may be dropped, and come by here.
        let scope = SCOPES.try_with(|scopes| self.0.then(|| scopes.borrow_mut().pop()));
        drop(scope);
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope").finish_non_exhaustive()
    }
}
