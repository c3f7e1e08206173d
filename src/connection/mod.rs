//! [`PinnedConnection`]: one connection, checked out of the driver's pool, that knows its state.
//!
//! Dropped instead of given back, it closes itself, on whatever thread that
//! happens.

mod begin;
mod cancel;
mod chain;
mod driver;
mod execute;
mod failure;
mod guard;
mod link;
mod operation;
mod position;
mod prepare;
mod primary;
mod promotion;
#[cfg(feature = "stream")]
mod rows;
mod session_state;
mod settings;
mod task;
mod transaction;

use std::sync::Arc;

use sea_orm::{DbBackend, DbErr, TransactionOptions};
use tokio::{runtime::Handle, time::timeout};

#[cfg(feature = "sqlx-postgres")]
pub(crate) use self::driver::POSTGRES_PLACE;
#[cfg(feature = "sqlx-mysql")]
pub(crate) use self::driver::{MYSQL_SERVER, PROCESSES};
#[cfg(feature = "_sqlx")]
pub(crate) use self::operation::Raw;
#[cfg(feature = "replicas")]
pub(crate) use self::promotion::History;
#[cfg(feature = "stream")]
pub(crate) use self::rows::Rows;
pub use self::session_state::Reset;
pub(crate) use self::{
    cancel::{CancelHandle, CancelTarget, Peer},
    chain::{Chain, Chains},
    driver::{BackendId, Driver},
    link::{Rest, SILENCE},
    operation::{Operation, Output},
    position::{Demand, Galera, ReadDemand, parse_position, read_position},
    promotion::Promotion,
    settings::{Settings, check_name, search_path},
    task::{Begin, BeginSetUp, Task},
};
use self::{
    link::{Around, Condition, Link},
    primary::{Refusal, Timeline},
    session_state::SessionState,
    transaction::Transaction,
};

/// One checked-out driver connection.
pub(crate) struct PinnedConnection {
    link: Link,
    /// The runtime whose I/O driver serves the connection; `Drop` may run
    /// outside it.
    runtime: Handle,
    pub(crate) transaction: Transaction,
    session_state: SessionState,
    refusal: Refusal,
    timeline: Timeline,
    /// Stops its statements, once that may be wanted.
    cancel_handle: Option<Arc<CancelHandle>>,
}

impl PinnedConnection {
    pub(crate) fn new(
        driver: Driver,
        backend: DbBackend,
        runtime: Handle,
        in_memory: bool,
    ) -> Self {
        Self {
            link: Link::new(driver, backend, in_memory),
            runtime,
            transaction: Transaction::default(),
            session_state: SessionState::default(),
            refusal: Refusal::None,
            timeline: Timeline::default(),
            cancel_handle: None,
        }
    }

    /// Gives prepared statements no names.
    pub(crate) fn unnamed(mut self, unnamed: bool) -> Self {
        self.link.named = !unnamed;
        self
    }

    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// The number of transactions (the outermost and its savepoints) that the
    /// session has open.
    pub(crate) fn depth(&self) -> usize {
        // One that was begun for the next session is none of this one's.
        self.link.depth() - usize::from(self.chain().is_some())
    }

    /// Returns the transaction that was begun with the last COMMIT, if no
    /// session has taken it yet.
    pub(crate) fn chain(&self) -> Option<&Chain> {
        self.transaction.chain.as_ref()
    }

    /// Returns whether the next COMMIT may begin a transaction for another
    /// session.
    pub(crate) fn may_chain(&self) -> bool {
        // All that is due at the session's end is due outside a transaction.
        self.link.condition == Condition::Known
            // Proven by the session's first statement, with a ROLLBACK in the
            // text: later, that would end the transaction which is begun here.
            && self.link.is_autocommit_proven
            && !self.link.is_test()
            && !self.transaction.has_failed()
            && self.transaction.is_clean()
            && self.session_state.is_clean()
            && self.refusal == Refusal::None
            && self.link.driver.may_chain()
    }

    /// Returns whether the next COMMIT may begin one with these options.
    pub(crate) fn may_continue_with(&self, options: TransactionOptions) -> bool {
        // On MySQL it begins a transaction with the options of the one before
        // (H36).
        self.link.backend != DbBackend::MySql || self.transaction.was_begun_with(options)
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.link.is_broken()
    }

    /// Returns whether raw code has left an answer unread of which the driver
    /// knows nothing.
    pub(crate) fn is_out_of_step(&self) -> bool {
        self.link.is_out_of_step
    }

    /// The connection must serve no session any more.
    pub(crate) fn give_up(&mut self) {
        self.link.give_up();
    }

    /// Pings it, and returns whether the server has answered soon. Otherwise it
    /// is not to be used again.
    pub(crate) async fn is_alive(&mut self) -> bool {
        let answered = timeout(SILENCE, self.link.driver.ping()).await;
        let is_alive = matches!(answered, Ok(Ok(())));
        if !is_alive {
            // Lost and not broken: a goodbye would be answered as little as the
            // ping.
            self.link.lose();
        }
        is_alive
    }

    /// Notes that the network may have forgotten the connection: a BEGIN that
    /// is not answered soon is lost. Returns false where another round trip
    /// would come before it.
    pub(crate) fn doubt(&mut self) -> bool {
        // One that was begun for the session already would show nothing.
        self.link.is_doubted = self.link.is_autocommit_proven && self.chain().is_none();
        self.link.is_doubted
    }

    /// What is known of whether its server is the primary.
    pub(crate) fn timeline(&mut self) -> &mut Timeline {
        &mut self.timeline
    }

    /// Returns whether the server takes no writes, as the last call has shown.
    pub(crate) fn is_demoted(&self) -> bool {
        self.refusal == Refusal::Server
    }

    /// Returns whether the server may take no writes: the same, or it could not
    /// be asked yet.
    pub(crate) fn may_be_demoted(&self) -> bool {
        self.refusal != Refusal::None
    }

    /// Returns whether the connection may go to another request as it is.
    pub(crate) fn is_clean(&self) -> bool {
        self.link.depth() == 0 && self.is_orderly()
    }

    /// Returns whether the connection may go, as it is, to a session that
    /// begins the transaction of its [`chain`](Self::chain).
    pub(crate) fn is_chained(&self) -> bool {
        self.chain().is_some() && self.link.depth() == 1 && self.is_orderly()
    }

    fn is_orderly(&self) -> bool {
        // G4: whatever is left here would be the next session's.
        self.link.condition == Condition::Known
            && self.transaction.is_clean()
            && self.session_state.is_clean()
            && self.refusal != Refusal::Unasked
    }

    /// Returns whether the connection has to be closed once nothing is open on
    /// it.
    pub(crate) fn must_close(&self) -> bool {
        self.session_state.must_close(&self.link)
    }

    /// Proves the connection clean: reads what is unread, rolls back what is
    /// open, puts back what has changed. One that [must be
    /// closed](Self::must_close) is only rolled back.
    pub(crate) async fn clean(&mut self) -> Result<(), DbErr> {
        // First: the ROLLBACK would take what is unread for its own answer
        // (H23).
        self.link.driver.drain().await?;
        self.transaction.roll_back_to(&mut self.link, 0).await?;
        // Not left to the next BEGIN: the next session may run in autocommit,
        // and on SQLite could not write
        // (`a_read_only_request_cannot_write_and_the_next_one_on_its_connection_can`).
        self.transaction.put_back(&mut self.link).await?;
        // Behind the rollback: inside a transaction that has failed a reset is
        // refused, and in any other the rollback would undo it.
        if !self.must_close() {
            self.session_state.put_back(&mut self.link).await?;
            self.link.condition = Condition::Known;
            if self.refusal == Refusal::Unasked {
                // PostgreSQL could not answer in the transaction. Whether this
                // is still the primary decides about all its connections (H33).
                self.ask_server().await?;
            }
        }
        Ok(())
    }

    /// Opens the transaction around a test's sessions.
    pub(crate) async fn begin_outer(&mut self) -> Result<(), DbErr> {
        Transaction::begin_around(&mut self.link).await
    }

    /// Rolls back everything, the transaction around a test's sessions
    /// included.
    pub(crate) async fn end_outer(&mut self) -> Result<(), DbErr> {
        self.transaction.end_around(&mut self.link);
        self.clean().await
    }

    /// Returns whether the transaction around a test's sessions was ended by
    /// what ran in it.
    pub(crate) fn is_outer_ended(&self) -> bool {
        self.link.around == Around::EndedTest
    }

    /// Gives a clean connection back to sqlx's pool, through its ping.
    pub(crate) async fn return_to_driver(&mut self) {
        let handle = self.cancel_handle.take();
        let is_watched = handle.is_some_and(|handle| handle.is_on_sqlite());
        // The progress handler would outlive the session, and another user of
        // the pool could be stopped by it.
        if is_watched && self.link.driver.unwatch().await.is_err() {
            self.give_up();
        }
        if !self.is_broken() && self.link.recount().await.is_err() {
            self.give_up();
        }
        if self.is_broken() {
            return;
        }
        // Awaited here and not left to sqlx's `Drop`, which spawns a task: the
        // slot is free when this has ended (H12).
        //
        // Taken out before: where this is dropped half-way, an empty shell is
        // left, which must not be closed once more. With `min_connections`,
        // sqlx spawns a task even when that is dropped (H28). Shown by
        // `h28_a_pool_with_min_connections_may_be_dropped_without_a_runtime`.
        let mut driver = std::mem::replace(&mut self.link.driver, Driver::Gone);
        driver.return_to_pool().await;
        drop(driver);
    }

    /// Returns whether a call that was dropped half-way leaves the connection
    /// usable, and must not close it: SQLite's worker is safe against that, and
    /// an in-memory database dies with its connection
    /// (<https://github.com/launchbadge/sqlx/issues/1869>).
    pub(crate) fn survives_cancel(&self) -> bool {
        // A broken one gains nothing by being kept: its worker thread may be
        // gone.
        self.link.in_memory && !self.is_broken() && !matches!(self.link.driver, Driver::Gone)
    }

    /// The handle that stops this connection's statements.
    pub(crate) fn cancel_handle(&mut self) -> &Arc<CancelHandle> {
        self.cancel_handle.get_or_insert_default()
    }

    /// Takes the cancel handle off a connection that another one takes the
    /// place of.
    pub(crate) fn take_cancel_handle(&mut self) -> Option<Arc<CancelHandle>> {
        self.cancel_handle.take()
    }

    /// Returns what serves the connection on the server, if it is lost.
    pub(crate) fn orphan(&self) -> Option<BackendId> {
        let handle = self.cancel_handle.as_ref();
        // Of any other one, the server notices by itself that its client has
        // gone.
        let lost = handle.filter(|_| self.link.is_lost())?;
        lost.backend_id(Peer::Server)
    }

    /// Has `handle`, of which the session may have a copy already, stop this
    /// connection's statements from here on.
    pub(crate) fn adopt(&mut self, handle: Arc<CancelHandle>) {
        let own = self.cancel_handle.replace(handle.clone());
        handle.succeed(own);
    }

    /// Absorbs a cancel that arrives after its statement has ended.
    pub(crate) async fn absorb(&mut self) {
        if let Some(handle) = &self.cancel_handle {
            handle.withdraw_interrupt();
        }
        if !self.is_broken() {
            cancel::absorb(&mut self.link).await;
        }
    }

    /// Asks the server whether it takes no writes.
    async fn ask_server(&mut self) -> Result<(), DbErr> {
        let (link, state) = (&mut self.link, &mut self.session_state);
        self.refusal.ask(link, state).await
    }
}

impl Drop for PinnedConnection {
    fn drop(&mut self) {
        // SQLite's thread may be in the midst of a statement, behind which
        // sqlx's goodbye waits for up to 5 s, and as long stays the place in
        // its pool taken. The thread ends by itself, with its transaction.
        // Shown by
        // `a_statement_that_goes_on_in_sqlites_thread_keeps_no_slot`.
        let is_at_work = self.link.backend == DbBackend::Sqlite && !self.is_clean();
        let driver = std::mem::replace(&mut self.link.driver, Driver::Gone);
        if matches!(driver, Driver::Gone) {
            return;
        }
        // Dropped, it would go back to sqlx's pool in whatever state it is in:
        // with an unread answer, in a transaction (H1). Of a lost connection,
        // sqlx's polite goodbye waits up to 5 s for a send buffer that nothing
        // empties any more, and the place in its pool stays taken for as long.
        // Shown by `an_upload_that_is_lost_half_way_frees_its_place_at_once`.
        let end: fn(Driver) = if self.link.is_lost() || is_at_work {
            Driver::abandon
        } else {
            Driver::close
        };
        // sqlx spawns a task for it, which panics without a runtime (H6):
        // https://github.com/tokio-rs/tokio/issues/3963 Shown by
        // `h6_dropping_anything_on_a_plain_thread_frees_the_slot_without_a_panic`.
        if Handle::try_current().is_err_and(|error| error.is_thread_local_destroyed()) {
            // No runtime can be entered while a thread's locals are torn down:
            // borrow a thread.
            let runtime = self.runtime.clone();
            std::thread::spawn(move || {
                let _entered = runtime.enter();
                end(driver);
            });
        } else {
            let _entered = self.runtime.enter();
            end(driver);
        }
    }
}
