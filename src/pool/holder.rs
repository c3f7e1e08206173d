//! [`Holder`]: a session, as its pool sees it, and the request that is being polled.

use std::{
    any::Any,
    cell::RefCell,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use http::{Method, uri::PathAndQuery};

use super::driver_pool::DriverPool;
use crate::{connection::CancelHandle, error::Kind};

/// A session, as its pool sees it.
pub(crate) trait Holder: Any + Send + Sync {
    /// Returns the outermost session of the request it was opened in.
    fn request(self: Arc<Self>) -> Option<Arc<dyn Holder>>;

    /// Returns whether its connections come from `driver`.
    fn is_on(&self, driver: &DriverPool) -> bool;

    /// Returns whether it cannot outlive the future of its request.
    fn is_bound(&self) -> bool;

    /// Returns how many waits for a connection its request has; for a request's outermost session.
    fn waits(&self) -> &AtomicU32;

    /// Returns how many connections its request holds, those on their way back excluded; for a request's outermost
    /// session.
    fn holds(&self) -> &AtomicU32;

    /// Notes that another session of its request has committed; for a request's outermost session.
    fn note_committed(&self);

    /// The number of its request's other sessions that have not ended.
    fn beside(&self) -> &AtomicU32;

    /// Returns the state of its connection.
    fn grip(&self) -> Grip;

    /// Returns what runs for it, where the server can be asked whether it still does.
    fn doubtful(&self) -> Option<Doubt>;

    /// Polls what runs for it, whether its own future is polled or not.
    fn look_at_call(self: Arc<Self>);

    fn label(&self) -> Option<Label>;

    /// Returns the beginning of its last statement, without values.
    fn last_statement(&self) -> String;

    /// Returns for how long the body that it lives for has waited for its reader.
    fn unread_for(&self) -> Option<Duration>;

    /// Gives its connection to what waits, or back to the pool, if it may be lent; its next statement acquires another one.
    /// Does nothing if there is none, or it is about to be used.
    fn lend(self: Arc<Self>);

    /// Takes its connection away; its handler goes on and gets `reason` as an error. Returns false if there is nothing
    /// to take, or what runs must be completed.
    fn cut(self: Arc<Self>, reason: Kind) -> bool;
}

/// The place of a session in the registry.
pub(crate) type Key = usize;

/// The state of the connection that the registry knows a session by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Grip {
    /// It has given it back: that is on its way.
    None,
    /// It is lent to what waits as soon as the session's own request waits for something.
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
    // Not the whole URI, which is twice the size, in a value that is moved with each session.
    /// `None` for CONNECT, which names a host alone.
    pub(crate) path: Option<PathAndQuery>,
    /// The route by which it was matched, if its layer says so.
    pub(crate) route: Option<Arc<str>>,
}

/// Returns what tells one from another. By the address alone: the same type may have several vtables.
pub(super) fn identity(holder: &Arc<dyn Holder>) -> usize {
    // A request has no other name; while it is held, its address is its own.
    Arc::as_ptr(holder).addr()
}

/// Returns whether a request holds a connection, and has not begun to give it back.
pub(super) fn holds_one(request: &dyn Holder) -> bool {
    request.holds().load(Ordering::Relaxed) > 0
}

thread_local! {
    /// Tells a request's own waits from those of tasks that it has spawned.
    static CURRENT: RefCell<Option<Arc<dyn Holder>>> = const { RefCell::new(None) };
}

/// Returns the request that is being polled, by its outermost session.
pub(crate) fn current() -> Option<Arc<dyn Holder>> {
    // A session may be dropped with its thread's locals: then there is no request.
    CURRENT
        .try_with(|current| current.borrow().clone())
        .ok()
        .flatten()
}

/// Attributes what is polled to `request`, until the returned value is dropped.
pub(crate) fn enter(request: Arc<dyn Holder>) -> Entered {
    Entered {
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

/// Returns the old value, so that it is dropped after the borrow has ended: its drop may come by here again.
fn replace(next: Option<Arc<dyn Holder>>) -> Option<Arc<dyn Holder>> {
    CURRENT
        .try_with(|current| current.replace(next))
        .ok()
        .flatten()
}
