//! [`PinnedConnection`]: one connection, checked out of the driver's pool, that knows its state.
//!
//! Dropped without having been handed back, it closes itself, on whatever thread that happens.

mod backend_id;
mod begin;
mod cancel;
mod driver;
mod execute;
mod operation;
mod refusal;
mod reset;
#[cfg(feature = "stream")]
mod rows;
mod session_state;
mod stale;
mod transaction;

use std::sync::Arc;

use sea_orm::{DbBackend, DbErr};
use tokio::runtime::Handle;

#[cfg(feature = "sqlx-mysql")]
pub(crate) use self::driver::{MYSQL_SERVER, PROCESSES};
#[cfg(feature = "_sqlx")]
pub(crate) use self::operation::Raw;
use self::refusal::Refusal;
pub use self::reset::Reset;
#[cfg(feature = "stream")]
pub(crate) use self::rows::Rows;
pub(crate) use self::{
    backend_id::BackendId,
    cancel::{CancelHandle, CancelTarget, Peer},
    driver::Driver,
    operation::{Begin, Operation, Output, Task},
};
use crate::{error::Kind, sql::Change};

/// One checked-out driver connection.
pub(crate) struct PinnedConnection {
    driver: Driver,
    backend: DbBackend,
    /// The runtime whose I/O driver serves the connection; `Drop` may run outside of it.
    runtime: Handle,
    /// Closing the connection would destroy its database.
    in_memory: bool,
    /// Prepared statements are kept under a name. Behind a proxy that shares connections, somebody else may have
    /// taken it.
    named: bool,
    state: State,
    /// What became of the open transaction where sqlx does not tell.
    failed: Option<Failed>,
    /// A transaction was ended by something else than the session, which does not know it yet.
    ended_elsewhere: bool,
    /// The last stream's failure is the only one, so that all is well when its reader knows it.
    may_be_heard: bool,
    /// A savepoint may still be there that was rolled back to.
    leaves_savepoint: bool,
    /// Each statement commits by itself unless the session says otherwise, which MySQL's may have been told
    /// to do differently before this crate has seen them.
    is_proven: bool,
    /// SQLite's stand-in for a transaction that only reads.
    query_only: bool,
    /// The open transaction was begun READ ONLY.
    reads_only: bool,
    /// A write was refused, and not because its transaction was begun READ ONLY.
    refusal: Refusal,
    /// What is no longer as it was before the session.
    change: Change,
    /// How to make it so again, once that was looked at: statements.
    baseline: Option<Vec<String>>,
    /// The open transaction has settings of its own, which would be taken for those from before.
    is_set_locally: bool,
    reset: Reset,
    /// Transactions around all sessions, which none of them may end; only tests have one.
    base: usize,
    /// Code that cannot be looked into has ended them.
    base_ended: bool,
    /// What stops its statements, once somebody may want that.
    victim: Option<Arc<CancelHandle>>,
}

/// What is known of a connection between two calls.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing in flight, nothing unread, no transaction but those that the driver counts.
    Known,
    /// A transaction may be open that the driver knows nothing of.
    Suspect,
    /// A call is running, or ended without reading all there was.
    Busy,
    /// Not to be used again.
    Broken,
}

/// How the open transaction failed.
#[derive(Clone, Copy)]
enum Failed {
    /// PostgreSQL refuses everything until the transaction of this depth is rolled back.
    Aborted(usize),
    /// A stream of the transaction of this depth has failed, and its reader does not know it.
    Unheard(usize),
    /// All of it is gone from the server: what followed would commit by itself.
    Ended(Kind),
}

impl PinnedConnection {
    pub(crate) fn new(
        driver: Driver,
        backend: DbBackend,
        runtime: Handle,
        in_memory: bool,
    ) -> Self {
        Self {
            driver,
            backend,
            runtime,
            in_memory,
            named: true,
            state: State::Known,
            failed: None,
            ended_elsewhere: false,
            may_be_heard: false,
            leaves_savepoint: false,
            is_proven: backend != DbBackend::MySql,
            query_only: false,
            reads_only: false,
            refusal: Refusal::None,
            change: Change::None,
            baseline: None,
            is_set_locally: false,
            reset: Reset::default(),
            base: 0,
            base_ended: false,
            victim: None,
        }
    }

    /// Gives prepared statements no names.
    pub(crate) fn unnamed(mut self, unnamed: bool) -> Self {
        self.named = !unnamed;
        self
    }

    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// How many transactions (the outermost and its savepoints) the session has open.
    pub(crate) fn depth(&self) -> usize {
        self.driver.depth().saturating_sub(self.base)
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.state == State::Broken
    }

    /// Whether the open transaction has failed.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed.is_some()
    }

    /// The reader of the stream that has failed knows it now.
    #[cfg(feature = "stream")]
    pub(crate) fn was_heard(&mut self) {
        let is_only_one = self.may_be_heard;
        self.failed = self
            .failed
            .filter(|failed| !is_only_one || !matches!(failed, Failed::Unheard(_)));
    }

    /// Whether a transaction was ended behind the session's back since this was last asked.
    pub(crate) fn take_ended_elsewhere(&mut self) -> bool {
        std::mem::take(&mut self.ended_elsewhere)
    }

    /// Whether the connection may go to another request as it is.
    pub(crate) fn is_clean(&self) -> bool {
        let is_asked = self.refusal != Refusal::Unasked;
        self.state == State::Known
            && self.depth() == 0
            && !self.query_only
            && self.change == Change::None
            && is_asked
    }

    /// Proves the connection clean: reads what is unread, rolls back what is open, puts back what has
    /// changed. One that [must be closed](Self::must_close) is only rolled back.
    pub(crate) async fn clean(&mut self) -> Result<(), DbErr> {
        self.driver.drain().await?;
        self.roll_back_to(0).await?;
        if !self.must_close() {
            self.put_back().await?;
            self.state = State::Known;
            if self.refusal == Refusal::Unasked {
                self.ask_who_refuses().await?;
            }
        }
        Ok(())
    }

    /// Opens the transaction around a test's sessions.
    pub(crate) async fn begin_outer(&mut self) -> Result<(), DbErr> {
        self.prove().await?;
        self.driver.begin(None).await?;
        self.base = 1;
        Ok(())
    }

    /// Rolls back everything, the transaction around a test's sessions included.
    pub(crate) async fn end_outer(&mut self) -> Result<(), DbErr> {
        self.base = 0;
        if self.base_ended {
            self.failed = Some(Failed::Ended(Kind::TestEnded));
        }
        self.clean().await
    }

    /// Whether the transaction around a test's sessions was ended by what ran in it.
    pub(crate) fn is_base_ended(&self) -> bool {
        self.base_ended
    }

    /// Gives a clean connection back to sqlx's pool, through its ping.
    pub(crate) async fn return_to_driver(&mut self) {
        self.forget_cancel_handle().await;
        if self.is_broken() {
            return;
        }
        self.driver.return_to_pool().await;
        // What is left is the empty shell; sqlx may want a runtime even to drop that.
        drop(std::mem::replace(&mut self.driver, Driver::Gone));
    }

    /// Whether a call that was dropped half-way leaves the connection usable, and must not close it:
    /// SQLite's worker is safe against that, and an in-memory database dies with its connection.
    pub(crate) fn survives_cancel(&self) -> bool {
        self.in_memory && self.state != State::Broken && !matches!(self.driver, Driver::Gone)
    }
}

impl Drop for PinnedConnection {
    fn drop(&mut self) {
        let mut driver = std::mem::replace(&mut self.driver, Driver::Gone);
        if matches!(driver, Driver::Gone) {
            return;
        }
        driver.close_on_drop();
        // sqlx spawns a task for it, which panics outside of a runtime: https://github.com/tokio-rs/tokio/issues/3963
        if Handle::try_current().is_err_and(|error| error.is_thread_local_destroyed()) {
            // No runtime can be entered while a thread's locals are torn down: borrow a thread.
            let runtime = self.runtime.clone();
            std::thread::spawn(move || {
                let _entered = runtime.enter();
                drop(driver);
            });
        } else {
            let _entered = self.runtime.enter();
            drop(driver);
        }
    }
}
