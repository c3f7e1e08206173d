//! [`TestTransaction`]: the transaction around all sessions of a test's pool.

use std::{
    sync::{Mutex, MutexGuard, PoisonError, Weak},
    thread::{self, ThreadId},
};

use futures_util::future::BoxFuture;
use sea_orm::{DatabaseConnection, DbErr};
use tokio::{runtime::Handle, task};

use super::{CheckedOut, Grip, Holder, SessionPool, SessionPoolBuilder, driver_pool::DriverPool};
use crate::{
    connection::PinnedConnection,
    error::{Error, Kind},
};

/// Code that runs after a transaction's end.
pub(crate) type Hook = BoxFuture<'static, ()>;

/// The one connection of a test's pool, inside of a transaction that is never committed.
pub(super) struct TestTransaction {
    state: Mutex<State>,
    /// Stands for the database, which would do outside of the transaction what is to be part of the test.
    stand_in: DatabaseConnection,
}

#[derive(Default)]
struct State {
    /// `None` while a session has it, or when it is lost.
    connection: Option<PinnedConnection>,
    hooks: Vec<Hook>,
    /// The session that the test itself has opened last, and where.
    own: Option<(Weak<dyn Holder>, Place)>,
    /// The test is over: the connection goes back to where it came from.
    over: bool,
}

impl TestTransaction {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
        let mut state = self.lock();
        if state.over {
            drop(state);
            return_in_task(connection);
        } else {
            state.connection = Some(connection);
        }
    }

    pub(super) fn keep(&self, hooks: Vec<Hook>) {
        self.lock().hooks.extend(hooks);
    }

    /// Whether the test's own session has the connection, and the test cannot come to its end before the caller
    /// does: that is in the test's own task, or a request.
    pub(super) fn is_held_by_test(&self, is_request: impl FnOnce() -> bool) -> bool {
        let own = self.lock().own.clone();
        let Some((holder, place)) = own else {
            return false;
        };
        let holds = holder
            .upgrade()
            .is_some_and(|holder| holder.grip() != Grip::None);
        holds && (place == Place::current() || is_request())
    }
}

/// A task, or what a thread does outside of any.
#[derive(Clone, PartialEq, Eq)]
enum Place {
    Task(task::Id),
    Thread(ThreadId),
}

impl Place {
    fn current() -> Self {
        task::try_id().map_or_else(|| Self::Thread(thread::current().id()), Self::Task)
    }
}

impl SessionPool {
    /// A pool whose sessions all run inside of one transaction on one connection of its database.
    pub(crate) async fn inside_a_transaction(builder: SessionPoolBuilder) -> Result<Self, Error> {
        let database = builder.database();
        let outside = Self::try_new(database.clone())?;
        if outside.is_direct() {
            return Err(Kind::NothingToRollBack.into());
        }
        let lease = outside.acquire().await?;
        let connection = lease
            .into_connection()
            .and_then(CheckedOut::into_connection);
        let mut connection = connection.ok_or(Kind::ConnectionLost)?;
        connection
            .begin_outer()
            .await
            .map_err(|error| Error::with_source(Kind::ConnectionLost, error))?;
        let source = DriverPool::of(database)?;
        let outer = TestTransaction {
            state: Mutex::default(),
            stand_in: source.closed_stand_in(),
        };
        outer.put(connection);
        builder.build_over(source, Some(outer))
    }

    /// Whether its sessions live inside of a test's transaction.
    pub(crate) fn is_test(&self) -> bool {
        self.shared.outer.is_some()
    }

    /// Notes a session that the test itself has opened, here and now.
    pub(crate) fn note_own(&self, holder: Weak<dyn Holder>) {
        if let Some(outer) = &self.shared.outer {
            outer.lock().own = Some((holder, Place::current()));
        }
    }

    /// Keeps a session's hooks for a test, or gives them back to be run.
    pub(crate) fn keep_hooks(&self, hooks: Vec<Hook>) -> Option<Vec<Hook>> {
        match &self.shared.outer {
            Some(outer) => {
                outer.keep(hooks);
                None
            }
            None => Some(hooks),
        }
    }

    pub(crate) fn kept_hooks(&self) -> usize {
        self.shared
            .outer
            .as_ref()
            .map_or(0, |outer| outer.lock().hooks.len())
    }

    pub(crate) fn take_hooks(&self) -> Vec<Hook> {
        self.shared
            .outer
            .as_ref()
            .map(|outer| std::mem::take(&mut outer.lock().hooks))
            .unwrap_or_default()
    }

    /// Rolls the test's transaction back, now or when its last session ends.
    pub(crate) fn end_outer(&self) {
        let Some(outer) = &self.shared.outer else {
            return;
        };
        let mut state = outer.lock();
        state.over = true;
        let connection = state.connection.take();
        drop(state);
        if let Some(connection) = connection {
            return_in_task(connection);
        }
    }

    /// Waits for the connection, rolls the test's transaction back and returns it.
    pub(crate) async fn roll_back_outer(&self) -> Result<(), Error> {
        self.refuse_hopeless(|| false)?;
        let connection = self
            .acquire()
            .await?
            .into_connection()
            .and_then(CheckedOut::into_connection);
        let mut connection = connection.ok_or(Kind::ConnectionLost)?;
        let was_ended = connection.is_base_ended();
        let rolled_back =
            tokio::time::timeout(self.settings().release_timeout, connection.end_outer()).await;
        match rolled_back {
            Ok(Ok(())) => connection.return_to_driver().await,
            Ok(Err(error)) => return Err(Error::with_source(Kind::ConnectionLost, error)),
            Err(_) => return Err(Kind::ConnectionLost.into()),
        }
        if was_ended {
            Err(Kind::TestEnded.into())
        } else {
            Ok(())
        }
    }
}

/// Without a runtime, or when it ends first, the connection is closed and the server rolls back.
fn return_in_task(mut connection: PinnedConnection) {
    let runtime: Handle = connection.runtime().clone();
    runtime.spawn(async move {
        if connection.end_outer().await.is_ok() {
            connection.return_to_driver().await;
        }
    });
}
