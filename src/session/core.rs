//! [`Core`]: what a session's handles, its guard and its running call share; its hooks run from here.
//!
//! The connection is in one place at a time, and the
//! [`Slot`](super::slot::Slot) says where. A call owns it while it runs; ending
//! the call early moves it, connection included, to a task that runs it to its
//! end. The lock is never held across an await.

use std::{
    future::{Future, poll_fn},
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, atomic::Ordering},
    task::{Context, Poll},
};

use sea_orm::DbErr;
use tokio::runtime::Handle;

use super::{
    hooks::After,
    plan::{Origin, Plan},
    replication::Replication,
    stack::Caller,
    state::State,
    turns::Turns,
};
use crate::{
    error::Kind,
    pool::{self, Holder, Hook, PoolInner, SessionPool},
};

pub(crate) struct Core {
    pool: SessionPool,
    // Beside the rules, which have it too but are under the lock: each
    // statement asks by it which pool is the session's.
    replication: Option<Arc<Replication>>,
    pub(super) turns: Turns,
    pub(super) origin: Origin,
    // The standard library's mutex, not tokio's: `Drop` takes it, and it is
    // never held across an await.
    state: Mutex<State>,
}

/// The right to use the session's connection. Dropped, it passes on.
///
/// A running call owns its turn, so that the turn passes on when the connection
/// is back, and not before.
pub(super) struct Turn(Arc<Core>);

impl Core {
    pub(super) fn new(pool: SessionPool, plan: Plan) -> Arc<Self> {
        // A pass-through session has no connection whose arrival would say so.
        let needs_set_up = pool.inner().is_direct();
        let pool_mode = plan.rules.pool_mode;
        let pool_mode = pool_mode.unwrap_or(pool.inner().settings().pool_mode);
        Arc::new(Self {
            pool,
            replication: plan.rules.replication.clone(),
            turns: Turns::default(),
            // The request that this thread polls at the moment, if it polls
            // one: a second session of it is known by that (H11).
            origin: Origin::new(plan.opened_for, pool::current()),
            state: Mutex::new(State::new(plan.rules, needs_set_up, pool_mode)),
        })
    }

    pub(super) fn pool(&self) -> &Arc<PoolInner> {
        self.current_pool().inner()
    }

    /// Returns the pool that counts the session.
    pub(super) fn home(&self) -> &Arc<PoolInner> {
        // Also when the session has moved to the primary: the pool in which it
        // was opened counts it, and waits for it when it closes.
        self.pool.inner()
    }

    fn current_pool(&self) -> &SessionPool {
        let moved = self.replication.as_ref().and_then(|one| one.moved_to());
        moved.unwrap_or(&self.pool)
    }

    pub(super) fn replication(&self) -> Option<&Arc<Replication>> {
        self.replication.as_ref()
    }

    /// Returns the pool as users know it.
    pub(super) fn session_pool(&self) -> &SessionPool {
        // Work that outlives a request which reads may write.
        self.replication
            .as_ref()
            .map_or(&self.pool, |one| one.primary())
    }

    pub(super) fn lock(&self) -> Locked<'_> {
        // Also if it is poisoned: `Drop` comes here, and must not panic in its
        // turn (G11).
        Locked::new(self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn is_over(&self) -> bool {
        self.lock().phase.is_over()
    }

    /// Returns why the session runs no statements any more.
    pub(super) fn closed_error(&self) -> DbErr {
        self.lock().closed_error().into_db_err()
    }

    /// Returns the request that the session belongs to, by that one's outermost
    /// session.
    pub(super) fn request_holder(self: &Arc<Self>) -> Option<Arc<dyn Holder>> {
        // Only a request's or a job's: a session that user code holds may be
        // polled by any request.
        let outermost = || Arc::clone(self) as Arc<dyn Holder>;
        match &self.origin.outer {
            Some(outer) => Some(outer.clone()),
            None => self.origin.is_outermost().then(outermost),
        }
    }

    /// [`request_holder`](Self::request_holder) without keeping it alive.
    pub(super) fn weak_request_holder(self: &Arc<Self>) -> Option<Weak<dyn Holder>> {
        let outermost = || Arc::downgrade(self) as Weak<dyn Holder>;
        match &self.origin.outer {
            Some(outer) => Some(Arc::downgrade(outer)),
            None => self.origin.is_outermost().then(outermost),
        }
    }

    /// Returns whether the session's request waits for a connection.
    pub(super) fn is_awaited(&self) -> bool {
        self.origin.waits().load(Ordering::Relaxed) > 0
    }

    /// Has the request know what stands, so that its answer does not ask for it
    /// to be sent again.
    pub(super) fn tell_request(&self, state: &State) {
        if state.stack.standing.may_stand() {
            self.tell_request_doubt();
        }
    }

    /// Has the request know that something of this session stands, or may come
    /// to stand.
    pub(super) fn tell_request_doubt(&self) {
        if let Some(request) = &self.origin.outer {
            request.note_committed();
        }
    }

    /// Returns the runtime for a task of the session, if there is one.
    pub(super) fn runtime(&self) -> Option<Handle> {
        Handle::try_current()
            .ok()
            .or_else(|| self.lock().runtime.clone())
    }

    /// Takes the turn if it is free and nothing waits for it.
    pub(super) fn try_turn(self: &Arc<Self>) -> Option<Turn> {
        self.turns.try_take().then(|| Turn(self.clone()))
    }

    /// Waits for the turn: for the first job in the line, and for the end of
    /// the request.
    pub(super) async fn turn(self: &Arc<Self>, caller: Caller) -> Result<Turn, DbErr> {
        // Nothing is assigned to a future that waits: one that is dropped, or
        // never polled again, keeps no other from its turn (G16;
        // `futures_that_are_never_polled_again_do_not_block_the_session`).
        poll_fn(|cx| self.poll_turn(caller, cx)).await
    }

    fn poll_turn(
        self: &Arc<Self>,
        caller: Caller,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Turn, DbErr>> {
        // First without a waker, which costs a count of references: mostly the
        // turn is free.
        if self.turns.try_take_before_jobs() {
            return Poll::Ready(Ok(Turn(self.clone())));
        }
        match self.turns.take_or_wait(cx.waker().clone()) {
            Poll::Ready(Ok(())) => return Poll::Ready(Ok(Turn(self.clone()))),
            Poll::Ready(Err(_)) => return Poll::Ready(Err(self.closed_error())),
            Poll::Pending => {}
        }
        // After the waker is in its place: whatever changes one of these wakes
        // it.
        let mut state = self.lock();
        // A statement behind an open stream is refused at once: waiting for a
        // reader that is the same task, it would wait for ever (H10).
        let refused = match caller {
            Caller::Settlement => None,
            _ if !state.phase.is_open() => Some(state.closed_error()),
            _ => state.streaming.then_some(Kind::StreamOpen),
        };
        drop(state);
        refused.map_or(Poll::Pending, |kind| Poll::Ready(Err(kind.into_db_err())))
    }

    /// Registers `hook` for the transaction of `caller`.
    pub(super) fn register(
        self: &Arc<Self>,
        caller: Caller,
        after: After,
        hook: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), DbErr> {
        let mut state = self.lock();
        if !state.phase.is_open() {
            return Err(state.closed_error().into_db_err());
        }
        // The hook could hold the last handle, and each would wait for the
        // other to go. Shown by
        // `a_hook_that_nothing_would_run_is_refused_and_keeps_nothing_alive`.
        if self.origin.is_plain() && state.is_transactional() {
            return Err(Kind::NoEnd.into_db_err());
        }
        let depth = state.depth_of(caller).map_err(Kind::into_db_err)?;
        state.stack.hooks.register(depth, after, hook);
        drop(state);
        self.run_hooks();
        Ok(())
    }

    /// Runs the hooks that are due, one after the other in a task; the pool of
    /// a test keeps them instead.
    pub(super) fn run_hooks(self: &Arc<Self>) {
        let mut state = self.lock();
        let due = state.stack.hooks.take_due();
        // Each end of a call comes by here, and nearly none has any.
        if due.is_empty() {
            return;
        }
        // The session's own, because the request may end on a thread without
        // one (G11).
        let runtime = state.runtime.clone();
        drop(state);
        // A test runs them itself: all that its sessions commit is rolled back
        // in the end.
        let Some(due) = self.pool().keep_hooks(due) else {
            return;
        };
        let Some(runtime) = runtime.or_else(|| Handle::try_current().ok()) else {
            tracing::error!(target: "tower_sea_orm::session", "hooks did not run: no tokio runtime");
            return;
        };
        // Behind those of an earlier end, in one task: their order is a promise
        // (`without_a_transaction_hooks_run_in_order_as_well`).
        if self.lock().stack.hooks.enqueue(due) {
            runtime.spawn(run_queue(self.clone()));
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.turns.pass_on();
    }
}

/// Access to a session's state.
///
/// Hooks that will not run are dropped when the lock is free again: what they
/// captured may use the session in its own `Drop`, which would wait for the
/// lock for ever.
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
            // Taken and not dropped: that happens with the field, behind the
            // guard (`a_dropped_hook_may_use_the_session_in_its_drop`).
            self.discarded = Some(self.state.stack.hooks.take_discarded());
        }
    }
}

async fn run_queue(core: Arc<Core>) {
    while let Some(hook) = next(&core) {
        // In a separate task, so that its panic ends nothing else.
        if tokio::spawn(hook)
            .await
            .is_err_and(|error| error.is_panic())
        {
            tracing::error!(target: "tower_sea_orm::session", "a hook panicked; the hooks after it still run");
        }
    }
}

// A function, because in the head of a `while let` the lock would be held until
// the end of its body.
fn next(core: &Core) -> Option<Hook> {
    core.lock().stack.hooks.next()
}
