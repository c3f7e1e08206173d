//! [`Slot`]: the place of the session's connection; [`Running`]: the call that owns it meanwhile; and [`Cancel`]: the
//! permission to have the server stop that.

use std::{future::Future, mem, pin::Pin, sync::Arc, task::Waker, time::Duration};

use sea_orm::{DbBackend, DbErr};
use tokio::{runtime::Handle, sync::Notify};

use super::{core::Turn, observed::Observed, stack::Purpose};
use crate::{
    connection::{CancelHandle, Operation, Peer},
    pool::{CheckedOut, Finished, PoolInner},
    sql::{Classified, Redacted},
};

/// The place of the session's connection.
// One value and no flags beside it: where the connection is and whether there
// is one cannot disagree.
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

/// A driver call that owns its connection.
pub(super) type CallFuture = Pin<Box<dyn Future<Output = Finished> + Send>>;

/// A call on its way.
pub(super) struct Running {
    pub(super) id: u64,
    pub(super) kind: CallKind,
    pub(super) purpose: Purpose,
    pub(super) polled_by: PolledBy,
    /// `None` while it is being polled, and after it moved to a task.
    // Kept here and not in the `Call`, so that the worker and the end of the
    // request get at it.
    pub(super) future: Option<CallFuture>,
    /// Of the future that waits for the call.
    // Replaced with each poll: a future may move to another task between two of
    // them.
    pub(super) waker: Option<Waker>,
    // Known beforehand, because the call may be dropped outside any runtime,
    // and goes on in a task (G11).
    runtime: Handle,
    /// The time for which it may go on when nothing waits for it any more;
    /// `None` for as long as it takes.
    release_timeout: Option<Duration>,
    /// `None` if the call is to run to its end.
    pub(super) cancel: Option<Cancel>,
    /// Set if the server can be asked whether it still works for the call.
    pub(super) cancel_handle: Option<Arc<CancelHandle>>,
    /// Stops a stream whose reader reads nothing; `None` if it is no stream.
    reader: Option<Arc<Notify>>,
    /// The beginning of the statement, or of the one before.
    pub(super) text: Redacted,
    /// `None` if nothing wants to know of it.
    pub(super) observed: Option<Box<Observed>>,
    /// It may end the transaction around it, which only its own end shows.
    pub(super) is_doubtful: bool,
    /// Passes on when the connection is back in its place.
    _turn: Turn,
}

/// The kinds of calls, which differ in what becomes of them if they are ended
/// early.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum CallKind {
    /// It runs on in a task.
    Statement,
    /// It is read to its end in a task.
    Stream,
    /// User code, which may wait for anything: it is dropped and its connection
    /// closed.
    Raw,
}

/// The future that polls a running call.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum PolledBy {
    /// The future that waits for it.
    Owner {
        /// The session's worker found it being polled, and is to be woken after
        /// that.
        is_wanted: bool,
    },
    /// The session's worker, which keeps its output.
    Worker {
        /// The future that waited for it was dropped while the worker polled
        /// it.
        is_left: bool,
    },
    /// A task: nothing waits for the call any more.
    Task,
}

/// A call that has left its slot.
pub(super) struct Detached {
    pub(super) future: CallFuture,
    pub(super) kind: CallKind,
    pub(super) runtime: Handle,
    pub(super) release_timeout: Option<Duration>,
    /// Cancels its statement, where that may be cancelled.
    pub(super) cancels_by: Option<Arc<CancelHandle>>,
}

impl Slot {
    /// Returns what the running call does, if there is one.
    pub(super) fn purpose(&self) -> Option<Purpose> {
        Some(self.call()?.purpose)
    }

    pub(super) fn call(&self) -> Option<&Running> {
        match self {
            Self::Running(running) => Some(running),
            _ => None,
        }
    }

    /// Returns the call `id`, if that is still running.
    pub(super) fn running(&mut self, id: u64) -> Option<&mut Running> {
        match self {
            // By its number: the call in the slot may be a later one than that
            // of the future which asks.
            Self::Running(running) if running.id == id => Some(running),
            _ => None,
        }
    }
}

impl Running {
    /// A call of `operation` that is about to be made.
    // Made before the call's future, which takes the connection with it.
    pub(super) fn new(
        id: u64,
        operation: &Operation,
        purpose: Purpose,
        connection: &mut CheckedOut,
        turn: Turn,
    ) -> Self {
        // Kept beside the call, which is about to own the connection: the log
        // asks for it while the call runs. Taken and not made anew: the buffer
        // goes along with the connection from statement to statement.
        let mut text = mem::take(connection.text());
        match operation.text() {
            Some(sql) => text.keep(sql),
            None if matches!(operation, Operation::Raw(_)) => text.keep("raw code"),
            None => {}
        }
        Self {
            id,
            kind: CallKind::of(operation),
            purpose,
            polled_by: PolledBy::Owner { is_wanted: false },
            future: None,
            waker: None,
            runtime: connection.runtime().clone(),
            release_timeout: connection.pool().release_bound(),
            cancel: None,
            cancel_handle: None,
            reader: operation.reader(),
            text,
            observed: None,
            is_doubtful: false,
            _turn: turn,
        }
    }

    pub(super) fn is_polled_by_worker(&self) -> bool {
        matches!(self.polled_by, PolledBy::Worker { .. })
    }

    /// Returns whether the session's worker waits for something to change about
    /// the call.
    pub(super) fn take_wanted(&mut self) -> bool {
        // Cleared, so that the worker is woken once for each time that it
        // looked.
        let is_wanted = self.polled_by == PolledBy::Owner { is_wanted: true };
        if is_wanted {
            self.polled_by = PolledBy::Owner { is_wanted: false };
        }
        is_wanted
    }

    /// Gives `future` to a task. What is known of the call stays in the slot
    /// until it has ended.
    pub(super) fn detach(&mut self, future: CallFuture) -> Detached {
        // The slot stays taken: the next statement waits until the connection
        // is back, or closed.
        self.polled_by = PolledBy::Task;
        Detached {
            future,
            kind: self.kind,
            runtime: self.runtime.clone(),
            release_timeout: self.release_timeout,
            cancels_by: self.cancel.as_ref().map(Cancel::cancel_handle),
        }
    }

    /// Has a stream no longer wait for its reader.
    pub(super) fn stop_stream(&self) {
        // Not `notify_waiters`: the call may not wait for it yet, and finds the
        // notification when it does.
        if let Some(reader) = &self.reader {
            reader.notify_one();
        }
    }

    /// The session is over: the server is asked to stop the call, if it may be
    /// stopped.
    pub(super) fn session_ended(&self) {
        if let Some(cancel) = &self.cancel {
            cancel.session_ended();
        }
        self.stop_stream();
    }

    /// Returns the failure that the reader of a stream did not wait for. One
    /// that the server may have been told to stop fails by that, and is none.
    pub(super) fn unheard(&self, result: Result<(), &DbErr>) -> Option<DbErr> {
        let is_unheard = matches!(
            self.polled_by,
            PolledBy::Worker { is_left: true } | PolledBy::Task
        );
        result
            .err()
            .filter(|_| is_unheard && self.reader.is_some() && self.cancel.is_none())
            .cloned()
    }
}

impl CallKind {
    fn of(operation: &Operation) -> Self {
        match operation {
            #[cfg(feature = "stream")]
            Operation::Stream(..) => Self::Stream,
            Operation::Raw(_) => Self::Raw,
            _ => Self::Statement,
        }
    }
}

/// Permission to have the server stop a running call.
pub(super) struct Cancel {
    handle: Arc<CancelHandle>,
    /// Also while the session goes on, which does not depend on the call.
    at_any_time: bool,
}

impl Cancel {
    /// Returns whether `operation` may be stopped, and how its connection is to
    /// be identified for that.
    ///
    /// Outside a transaction only what reads: a write is finished. Inside,
    /// every statement, but only when the session ends: the handler's
    /// transaction is not to be aborted behind its back.
    pub(super) fn of(
        operation: &Operation,
        text: Classified,
        in_transaction: bool,
        pool: &PoolInner,
        connection: &mut CheckedOut,
    ) -> (Option<Self>, Option<Peer>) {
        // The connection of a test runs all of its sessions, inside one
        // transaction that a cancel would abort.
        if !pool.settings().cancel_running || pool.is_test() {
            return (None, None);
        }
        // The server's process is noted for statements that are never cancelled,
        // too: if an answer is lost, the process is asked about. A COMMIT needs
        // no note of its own, because its transaction's BEGIN has made one.
        let is_work = operation.text().is_some() || matches!(operation, Operation::Begin(_));
        let Some(handle) = connection.cancel_handle().filter(|_| is_work) else {
            return (None, None);
        };
        // SQLite has no server, so there can be no proxy in between.
        let route = match pool.backend() {
            DbBackend::Sqlite => Peer::Server,
            _ => pool.cancels().route(),
        };
        // Never BEGIN, COMMIT or ROLLBACK, which have no text: one that was
        // stopped half-way has an unknown outcome
        // (`a_commit_is_never_stopped`).
        let is_stoppable = operation.text().is_some() && (in_transaction || text.reads_only);
        let cancel = is_stoppable.then(|| {
            // An earlier statement's request to be stopped must not count for
            // this one.
            handle.prepare();
            Self {
                handle,
                at_any_time: !in_transaction,
            }
        });
        (cancel, Some(route))
    }

    /// The session has ended.
    pub(super) fn session_ended(&self) {
        self.handle.abandon();
    }

    /// The handler has dropped the statement, and may go on.
    pub(super) fn call_dropped(&self) {
        // In a transaction it runs on: stopped, it would abort what the handler
        // goes on with.
        if self.at_any_time {
            self.handle.abandon();
        }
    }

    pub(super) fn cancel_handle(&self) -> Arc<CancelHandle> {
        self.handle.clone()
    }
}
