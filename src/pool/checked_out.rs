//! [`CheckedOut`]: a pinned connection together with its slot in the session pool.

use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use sea_orm::DbErr;
use tokio::{runtime::Handle, time::timeout};

use super::{Holder, SessionPool, driver_pool::SILENCE, slot::SlotGuard};
use crate::{
    connection::{CancelHandle, Output, PinnedConnection, Task},
    error::{Error, server},
    sql::Redacted,
};

/// How long a connection may go from session to session before the driver's pool sees it again.
const VISIT: Duration = Duration::from_secs(10);

/// On how many more connections a transaction may try to begin.
const BEGIN_AGAIN: u32 = 3;

/// A connection in a session's hands.
///
/// It moves by value: a running call owns it and gives it back with the result. Dropped on the way,
/// it closes the connection and frees the slot. In a box, which every statement moves several times.
pub(crate) struct CheckedOut(Box<Parts>);

struct Parts {
    /// `None` once it has moved on. Before `slot`, so that the slot is freed last.
    connection: Option<PinnedConnection>,
    /// The runtime that serves the connection.
    runtime: Handle,
    /// When the driver's pool saw it last.
    fetched: Instant,
    /// The session's last statement.
    text: Redacted,
    slot: SlotGuard,
}

/// A call's end: the connection comes back with the result.
pub(crate) struct Finished {
    pub(crate) connection: CheckedOut,
    pub(crate) output: Result<Output, DbErr>,
}

impl CheckedOut {
    /// A connection that the driver's pool was asked for at the time `fetched`.
    pub(super) fn new(connection: PinnedConnection, slot: SlotGuard, fetched: Instant) -> Self {
        let runtime = connection.runtime().clone();
        let (connection, text) = (Some(connection), Redacted::default());
        Self(Box::new(Parts {
            connection,
            runtime,
            fetched,
            text,
            slot,
        }))
    }

    /// A session of `pool`, and of `request`, holds the connection from now on, until it is back.
    pub(crate) fn hold(
        &mut self,
        pool: &SessionPool,
        holder: Weak<dyn Holder>,
        request: Option<Weak<dyn Holder>>,
    ) {
        self.0.text.clear();
        self.0
            .slot
            .hold(pool.note_holder(holder, request, &self.0.runtime));
    }

    /// The session's last statement.
    pub(crate) fn text(&mut self) -> &mut Redacted {
        &mut self.0.text
    }

    /// Runs `task` to its end. Where BEGIN finds the connection dead, the transaction begins on another
    /// one, and so does a first statement that the server says it had no connection for any more: nothing has
    /// happened yet that could happen twice.
    #[allow(
        clippy::manual_async_fn,
        reason = "an `async fn` has room for its arguments twice"
    )]
    pub(crate) fn call(mut self, mut task: Task) -> impl Future<Output = Finished> + Send {
        async move {
            let mut output = self.call_once(&mut task).await;
            if self.may_begin_again(&output, &task) {
                output = Box::pin(self.begin_again(output, &mut task)).await;
            }
            self.leave_read_only();
            Finished {
                connection: self,
                output,
            }
        }
    }

    fn may_begin_again(&self, output: &Result<Output, DbErr>, task: &Task) -> bool {
        let Err(error) = output else { return false };
        let is_undone = task.opens() && server::is_fatal(error) || server::came_too_late(error);
        self.is_broken() && is_undone && task.is_whole() && !self.0.slot.pool().is_test()
    }

    async fn begin_again(
        &mut self,
        mut output: Result<Output, DbErr>,
        task: &mut Task,
    ) -> Result<Output, DbErr> {
        for _ in 0..BEGIN_AGAIN {
            if !self.may_begin_again(&output, task) {
                break;
            }
            self.exchange().await.map_err(|error| error.to_db_err())?;
            output = self.call_once(task).await;
        }
        output
    }

    async fn call_once(&mut self, task: &mut Task) -> Result<Output, DbErr> {
        match &mut self.0.connection {
            Some(connection) => connection.call(task).await,
            None => Ok(Output::Done),
        }
    }

    /// Closes a broken connection and takes another one.
    async fn exchange(&mut self) -> Result<(), Error> {
        let pool = self.0.slot.pool().clone();
        tracing::debug!(target: "tower_sea_orm::pool", "a connection was dead when a session began on it: it begins on another one");
        // What killed it may have killed the others.
        pool.cool_down();
        let victim = self
            .0
            .connection
            .take()
            .and_then(|dead| dead.into_cancel_handle());
        self.0.slot.free();
        if let Some(mut next) = pool.wait_for_one(true).await?.into_connection() {
            if let (Some(connection), Some(victim)) = (&mut next.0.connection, victim) {
                connection.adopt(victim);
            }
            next.0.slot.succeed(&mut self.0.slot);
            *self = next;
        }
        Ok(())
    }

    /// It was warm, and goes back to the driver's pool.
    pub(super) fn cool(&mut self) {
        self.0.slot.cool();
    }

    /// Takes the connection out of the pool's hands; the slot is free.
    pub(super) fn into_connection(mut self) -> Option<PinnedConnection> {
        self.0.connection.take()
    }

    /// What stops its statements.
    pub(crate) fn cancel_handle(&mut self) -> Option<Arc<CancelHandle>> {
        self.0
            .connection
            .as_mut()
            .map(|connection| connection.cancel_handle().clone())
    }

    /// Lets a cancel that came too late hit nobody.
    pub(super) async fn absorb(&mut self) {
        if let Some(connection) = &mut self.0.connection {
            connection.absorb().await;
        }
    }

    /// It must serve nobody any more.
    pub(super) fn give_up(&mut self) {
        if let Some(connection) = &mut self.0.connection {
            connection.give_up();
        }
    }

    pub(crate) fn depth(&self) -> usize {
        self.0
            .connection
            .as_ref()
            .map_or(0, PinnedConnection::depth)
    }

    /// Whether the open transaction has failed.
    pub(crate) fn has_failed(&self) -> bool {
        self.0
            .connection
            .as_ref()
            .is_some_and(PinnedConnection::has_failed)
    }

    /// The reader of the stream that has failed knows it now.
    #[cfg(feature = "stream")]
    pub(crate) fn was_heard(&mut self) {
        if let Some(connection) = &mut self.0.connection {
            connection.was_heard();
        }
    }

    /// Whether a transaction was ended behind the session's back since this was last asked.
    pub(crate) fn take_ended_elsewhere(&mut self) -> bool {
        self.0
            .connection
            .as_mut()
            .is_some_and(PinnedConnection::take_ended_elsewhere)
    }

    /// Whether its server has refused a write, and may have another one in its place.
    pub(crate) fn may_be_demoted(&self) -> bool {
        self.0
            .connection
            .as_ref()
            .is_some_and(PinnedConnection::may_be_demoted)
    }

    /// Has all leave a server that takes no writes.
    fn leave_read_only(&self) {
        if self
            .0
            .connection
            .as_ref()
            .is_some_and(PinnedConnection::is_demoted)
        {
            self.0.slot.pool().leave_server(self.0.fetched);
        }
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.0
            .connection
            .as_ref()
            .is_none_or(PinnedConnection::is_broken)
    }

    /// The runtime that serves the connection.
    pub(crate) fn runtime(&self) -> &Handle {
        &self.0.runtime
    }

    /// How long a call that nobody waits for may still run before the connection is closed.
    ///
    /// `None`, without a bound, where closing it would destroy an in-memory database.
    pub(crate) fn patience(&self) -> Option<Duration> {
        let pool = self.0.slot.pool();
        (!pool.is_in_memory()).then(|| pool.settings().release_timeout)
    }

    /// Takes a session's connection back: at once if it is clean, after cleaning it in a task if
    /// not, never if it is broken. `then` runs when it has left.
    pub(crate) fn give_back(mut self, then: impl FnOnce() + Send + 'static) {
        let Some(connection) = &self.0.connection else {
            return then();
        };
        if connection.is_broken() {
            // What killed it may have killed the others.
            self.0.slot.pool().cool_down();
            drop(self);
            then();
        } else if connection.is_clean() {
            self.put_back();
            then();
        } else {
            let runtime = self.0.runtime.clone();
            runtime.spawn(async move {
                if self.clean().await {
                    self.leave_read_only();
                    match &self.0.connection {
                        // It is this session's own by now: nobody else may have it.
                        Some(connection) if connection.must_close() => {
                            tracing::debug!(target: "tower_sea_orm::session", "closed a connection whose session state cannot be put back");
                            drop(self);
                        }
                        _ => self.put_back(),
                    }
                } else {
                    tracing::warn!(target: "tower_sea_orm::session", "closed a connection that could not be rolled back or reset within the release timeout");
                    drop(self);
                }
                then();
            });
        }
    }

    async fn clean(&mut self) -> bool {
        let patience = self.patience();
        let Some(connection) = &mut self.0.connection else {
            return false;
        };
        match patience {
            None => connection.clean().await.is_ok(),
            Some(bound) => matches!(timeout(bound, connection.clean()).await, Ok(Ok(()))),
        }
    }

    /// Hands a clean connection to the next waiter, keeps it warm, or returns it to the driver's pool.
    pub(super) fn put_back(mut self) {
        let pool = self.0.slot.pool().clone();
        if pool.is_evicted(self.0.fetched) {
            return;
        }
        self.0.slot.leave();
        if let Some(left) = pool.place(self) {
            left.return_to_driver();
        }
    }

    /// Whether the driver's pool should see the connection again, to look at its age for example.
    pub(super) fn is_due(&self, max_lifetime: Option<Duration>) -> bool {
        self.0.fetched.elapsed() >= max_lifetime.map_or(VISIT, |lifetime| lifetime.min(VISIT))
    }

    /// Gives a clean connection to sqlx's pool, and frees the slot when sqlx has it.
    pub(super) fn return_to_driver(mut self) {
        if let Some(outer) = &self.0.slot.pool().clone().shared.outer {
            if let Some(connection) = self.0.connection.take() {
                outer.put(connection);
            }
            return;
        }
        let runtime = self.0.runtime.clone();
        runtime.spawn(async move {
            // sqlx waits for its ping without a bound: https://github.com/launchbadge/sqlx/issues/4349
            // One that is not answered for so long will not be.
            let patience = self.patience().map(|bound| bound.min(SILENCE));
            let pool = self.0.slot.pool().clone();
            let Some(connection) = &mut self.0.connection else { return };
            match patience {
                None => connection.return_to_driver().await,
                Some(bound) => {
                    if timeout(bound, connection.return_to_driver()).await.is_err() {
                        tracing::warn!(target: "tower_sea_orm::pool", "closed a connection that could not be returned: its ping was not answered");
                    }
                }
            }
            pool.has_returned(self.0.fetched);
            // Before the slot is free: what sessions wait for must not be taken for a plain user.
            pool.shared.queue.returned(pool.shared.source.has_idle());
        });
    }
}

impl Drop for CheckedOut {
    fn drop(&mut self) {
        if !self
            .0
            .connection
            .as_ref()
            .is_some_and(PinnedConnection::survives_cancel)
        {
            return;
        }
        let Some(connection) = self.0.connection.take() else {
            return;
        };
        let runtime = self.0.runtime.clone();
        let mut survivor = Survivor(Some(Self::new(
            connection,
            self.0.slot.take(),
            self.0.fetched,
        )));
        runtime.spawn(async move {
            if let Some(checked_out) = &mut survivor.0
                && checked_out.clean().await
                && let Some(clean) = survivor.0.take()
            {
                clean.put_back();
            }
        });
    }
}

/// An in-memory connection being cleaned. Its runtime may drop it unrun: then nothing can save it.
struct Survivor(Option<CheckedOut>);

impl Drop for Survivor {
    fn drop(&mut self) {
        if let Some(mut lost) = self.0.take() {
            drop(lost.0.connection.take());
        }
    }
}
