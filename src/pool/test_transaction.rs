//! [`TestTransaction`]: the transaction around all sessions of a test's pool.

use std::{
    sync::{Mutex, MutexGuard, PoisonError, Weak},
    thread::{self, ThreadId},
};

use futures_util::future::BoxFuture;
use sea_orm::{DatabaseConnection, DbErr};
use tokio::{runtime::Handle, task};

use super::holder::{Grip, Holder};
use crate::{connection::PinnedConnection, error::Kind};

/// Code that runs after a transaction's end.
pub(crate) type Hook = BoxFuture<'static, ()>;

/// The one connection of a test's pool, inside a transaction that is never
/// committed.
pub(crate) struct TestTransaction {
    kept: Mutex<Kept>,
    /// Stands for the database, whose own statements would not be part of the
    /// test.
    stand_in: DatabaseConnection,
}

#[derive(Default)]
struct Kept {
    /// `None` while a session has it, or when it is lost.
    connection: Option<PinnedConnection>,
    hooks: Vec<Hook>,
    /// The session that the test itself has opened last, and where.
    own: Option<(Weak<dyn Holder>, Place)>,
    /// The test is over: the connection goes back to where it came from.
    is_over: bool,
}

impl TestTransaction {
    pub(super) fn over(connection: PinnedConnection, stand_in: DatabaseConnection) -> Self {
        let kept = Kept {
            connection: Some(connection),
            ..Kept::default()
        };
        Self {
            kept: Mutex::new(kept),
            stand_in,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn stand_in(&self) -> &DatabaseConnection {
        &self.stand_in
    }

    pub(super) fn take(&self) -> Result<PinnedConnection, DbErr> {
        self.lock()
            .connection
            .take()
            .ok_or_else(|| Kind::ConnectionLost.into_db_err())
    }

    pub(super) fn put(&self, connection: PinnedConnection) {
        let mut kept = self.lock();
        // The test has ended while one of its sessions still had the
        // connection.
        if kept.is_over {
            drop(kept);
            return_in_task(connection);
        } else {
            kept.connection = Some(connection);
        }
    }

    /// Rolls the transaction back, now or when its last session ends.
    pub(crate) fn end(&self) {
        let mut kept = self.lock();
        kept.is_over = true;
        let connection = kept.connection.take();
        // Not under the lock: this spawns.
        drop(kept);
        if let Some(connection) = connection {
            return_in_task(connection);
        }
    }

    /// Keeps hooks that would run now.
    pub(super) fn keep(&self, hooks: Vec<Hook>) {
        self.lock().hooks.extend(hooks);
    }

    /// Returns how many hooks are kept.
    pub(crate) fn hooks(&self) -> usize {
        self.lock().hooks.len()
    }

    pub(crate) fn take_hooks(&self) -> Vec<Hook> {
        std::mem::take(&mut self.lock().hooks)
    }

    /// Notes a session that the test itself has opened, here and now.
    pub(crate) fn note_own(&self, holder: Weak<dyn Holder>) {
        self.lock().own = Some((holder, Place::current()));
    }

    /// Returns whether the test's own session has the connection, and the test
    /// cannot come to its end before the caller does: that is in the test's own
    /// task, or a request.
    pub(super) fn is_held_by_test(&self, is_request: impl FnOnce() -> bool) -> bool {
        // Cloned out of the lock: `grip` takes the session's, and what is
        // upgraded here may be that one's last handle.
        let own = self.lock().own.clone();
        let Some((holder, place)) = own else {
            return false;
        };
        let holds = holder
            .upgrade()
            .is_some_and(|holder| holder.grip() != Grip::None);
        // From elsewhere a wait may still end: the test drops its session while
        // the other task waits.
        holds && (place == Place::current() || is_request())
    }
}

/// A task, or what a thread does outside any.
#[derive(Clone, PartialEq, Eq)]
// By the task, since a task's thread changes from one await to the next.
enum Place {
    Task(task::Id),
    Thread(ThreadId),
}

impl Place {
    fn current() -> Self {
        task::try_id().map_or_else(|| Self::Thread(thread::current().id()), Self::Task)
    }
}

/// Without a runtime, or when it ends first, the connection is closed and the
/// server rolls back.
fn return_in_task(mut connection: PinnedConnection) {
    let runtime: Handle = connection.runtime().clone();
    // Both callers may be a `Drop`, which waits for nothing (G11).
    runtime.spawn(async move {
        if connection.end_outer().await.is_ok() {
            connection.return_to_driver().await;
        }
    });
}
