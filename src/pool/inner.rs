//! [`PoolInner`]: what the clones of a pool share.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use sea_orm::{DatabaseConnection, DbBackend};

use super::{
    anchor::Anchor,
    background::Background,
    cancel::CancelQueue,
    checked_out::{CheckedOut, Lease, Parts},
    closing::{Closing, CountedSession},
    cluster::Cluster,
    driver_pool::DriverPool,
    eviction::Eviction,
    ledger::{Ledger, Locked, Status},
    log::Pressure,
    observer::{Observers, WeakSessionPool},
    options::{PoolMode, Settings},
    probe::Probe,
    registry::Registry,
    test_transaction::{Hook, TestTransaction},
    waiters::Waiter,
};
use crate::{
    connection::Reset,
    error::{Error, Kind},
    sql::KnownTexts,
    telemetry::Throttle,
};

pub(crate) struct PoolInner {
    pub(super) database: DatabaseConnection,
    pub(super) driver: DriverPool,
    pub(super) settings: Settings,
    /// Some of its sessions lend their connection between statements.
    has_lenders: AtomicBool,
    /// Prepared statements are not kept.
    pub(super) is_unnamed: bool,
    ledger: Mutex<Ledger<Lease, Box<Parts>>>,
    /// Returns idle connections to the driver's pool.
    pub(super) reaper: Arc<Background>,
    pub(super) registry: Registry,
    pub(super) hold_watch: Arc<Background>,
    pub(super) second_window: Arc<Background>,
    /// Throttles the lines that a fault could make each request write.
    // One for all of them, keyed by the line: a fault that lasts, such as a
    // former primary's, is met by each request
    // (`g15_a_fault_that_lasts_does_not_log_each_request`).
    pub(crate) lines: Throttle,
    pub(super) cancels: Arc<CancelQueue>,
    pub(super) pressure: Pressure,
    pub(super) probe: Probe,
    pub(super) eviction: Arc<Eviction>,
    pub(super) closing: Closing,
    /// Keeps a database in memory.
    pub(super) anchor: Anchor,
    pub(crate) observers: Observers,
    /// The statements that its sessions have run.
    pub(crate) known_texts: KnownTexts,
    /// Empty without replicas.
    pub(crate) cluster: Cluster,
    /// Only a test's pool has one.
    test: Option<TestTransaction>,
}

impl PoolInner {
    pub(super) fn new(
        database: DatabaseConnection,
        driver: DriverPool,
        settings: Settings,
        observers: Observers,
        test: Option<TestTransaction>,
    ) -> Arc<Self> {
        let ledger = settings.ledger(&driver, test.is_some());
        let pool = Arc::new(Self {
            // Asked once: sqlx gives it out in a URL only, which has to be
            // written and read for it.
            is_unnamed: driver.keeps_no_statements(),
            has_lenders: AtomicBool::new(settings.pool_mode == PoolMode::Transaction),
            // The standard library's mutex: `Drop` takes it, on any thread
            // (G11), and no await is under it.
            ledger: Mutex::new(ledger),
            reaper: Arc::default(),
            registry: Registry::default(),
            hold_watch: Arc::default(),
            second_window: Arc::default(),
            lines: Throttle::new(),
            // Without `cancel_running` as well: by it the server is asked about
            // statements whose answers may be lost (G17).
            cancels: CancelQueue::new(driver.clone(), settings.cancel_running),
            pressure: Pressure::default(),
            probe: Probe::default(),
            eviction: Eviction::new(driver.clone()),
            closing: Closing::default(),
            // A test's database is the test's, and so is its connection.
            anchor: if test.is_some() {
                Anchor::none()
            } else {
                Anchor::of(&driver)
            },
            known_texts: known_texts(&driver, database.get_database_backend()),
            cluster: Cluster::default(),
            test,
            database,
            driver,
            settings,
            observers,
        });
        // Last, because an observer may ask the pool at once.
        let weak = WeakSessionPool::of(&pool);
        pool.observers.tell(|observer| observer.attached(&weak));
        pool
    }

    /// Locks the ledger: not to be held across an await, nor while a waiter is
    /// answered.
    pub(super) fn ledger(&self) -> Locked<'_, Lease, Box<Parts>> {
        Locked::of(&self.ledger)
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(crate) fn status(&self) -> Status {
        // Before the ledger is locked and not meanwhile: the pool takes no lock
        // under another one.
        let lendable = self.registry.offers();
        Status {
            lendable,
            ..self.ledger().status()
        }
    }

    /// Has some of its sessions lend their connection between statements.
    ///
    /// # Errors
    ///
    /// If there are no connections to lend, or none ever may be.
    pub(crate) fn allow_lending(&self) -> Result<(), Error> {
        self.settings.check_lending(&self.driver)?;
        // Looked at first, since a layer that picks its pool asks with each
        // request.
        if !self.has_lenders.load(Ordering::Relaxed) {
            self.has_lenders.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Returns an error if a connection could not be closed after its session,
    /// as `on_acquire` may ask for.
    pub(crate) fn check_on_acquire(&self) -> Result<(), Error> {
        if self.is_in_memory() || self.driver.is_proxy() {
            return Err(Kind::CannotClose.into());
        }
        Ok(())
    }

    /// Returns what is reset on a connection that a session gives back.
    pub(crate) fn reset(&self) -> Reset {
        let reset = self.settings.reset;
        // Otherwise what one session has set would appear between two
        // statements of another, which has got its connection. Shown by
        // `g13_session_state_pins_and_leaks_nowhere`.
        if self.has_lenders.load(Ordering::Relaxed) && !reset.is_of_session() {
            Reset::SessionState
        } else {
            reset
        }
    }

    /// Returns the connection for code that must have one: a closed one where
    /// the true one's statements would not be part of a test.
    pub(crate) fn database(&self) -> &DatabaseConnection {
        self.test
            .as_ref()
            .map_or(&self.database, TestTransaction::stand_in)
    }

    pub(crate) fn driver(&self) -> &DriverPool {
        &self.driver
    }

    pub(crate) fn backend(&self) -> DbBackend {
        self.database.get_database_backend()
    }

    /// Returns whether sessions pass their statements through (mock, proxy,
    /// plain handles).
    pub(crate) fn is_direct(&self) -> bool {
        self.driver.is_direct()
    }

    pub(crate) fn is_in_memory(&self) -> bool {
        self.driver.is_in_memory()
    }

    /// Returns whether statements run on a server that can be asked about them
    /// by another connection.
    pub(crate) fn has_server(&self) -> bool {
        // A test's one connection runs all of its sessions: an answer about its
        // process would be about any of them.
        !self.is_test() && self.driver.has_server()
    }

    /// Returns the queue of requests to cancel statements on the server.
    pub(crate) fn cancels(&self) -> &CancelQueue {
        &self.cancels
    }

    pub(crate) fn test(&self) -> Option<&TestTransaction> {
        self.test.as_ref()
    }

    /// Returns whether its sessions live inside a test's transaction.
    pub(crate) fn is_test(&self) -> bool {
        self.test.is_some()
    }

    /// Keeps a session's hooks for a test, or gives them back to be run.
    pub(crate) fn keep_hooks(&self, hooks: Vec<Hook>) -> Option<Vec<Hook>> {
        let Some(test) = &self.test else {
            return Some(hooks);
        };
        test.keep(hooks);
        None
    }

    /// Returns how long a call that has lost its caller may still run before
    /// its connection is closed.
    ///
    /// `None`, without a bound, where closing it would destroy an in-memory
    /// database.
    pub(crate) fn release_bound(&self) -> Option<Duration> {
        (!self.is_in_memory()).then_some(self.settings.release_timeout)
    }

    /// Returns whether new sessions are refused.
    pub(super) fn is_closed(&self) -> bool {
        self.closing.has_begun() || self.is_shut()
    }

    /// Returns whether no session gets a connection any more.
    pub(crate) fn is_shut(&self) -> bool {
        // Any code that has the `DatabaseConnection` can close it, without a
        // word to this pool.
        self.closing.is_shut() || self.driver.is_closed()
    }

    /// Counts a session from here on, unless the pool takes no new ones.
    pub(crate) fn count_session(&self) -> Result<CountedSession<'_>, Error> {
        self.try_count_session()
            .ok_or_else(|| self.fail(Kind::Closing.into(), Duration::ZERO))
    }

    /// [`count_session`](Self::count_session) without a log line.
    pub(crate) fn try_count_session(&self) -> Option<CountedSession<'_>> {
        self.closing.count()
    }

    /// Notes that a session which [has begun](CountedSession::begin) has ended.
    pub(crate) fn session_ended(&self) {
        self.closing.session_ended();
    }

    /// Logs and counts why a connection was not acquired.
    pub(crate) fn fail(&self, error: Error, waited: Duration) -> Error {
        self.pressure.failed(&error, || self.status(), waited);
        error
    }

    /// Returns an error where nothing but the caller could end the wait: a
    /// test's own session has the one connection of its pool, and a request of
    /// the service, or the test itself, wants it.
    pub(crate) fn refuse_hopeless(&self, is_request: impl FnOnce() -> bool) -> Result<(), Error> {
        let is_hopeless = self
            .test
            .as_ref()
            .is_some_and(|test| test.is_held_by_test(is_request));
        if is_hopeless {
            Err(self.fail(Kind::TestConnectionHeld.into(), Duration::ZERO))
        } else {
            Ok(())
        }
    }

    /// Opens one connection beside the pool and closes it again.
    #[cfg(feature = "config")]
    pub(crate) async fn connect_once(&self) -> Result<(), sea_orm::DbErr> {
        self.driver.connect_once().await
    }

    /// Gives `waiter` a connection, or that back if it has gone. Wakes its
    /// task: not to be called under a lock.
    pub(super) fn give(waiter: Waiter<Lease>, connection: CheckedOut) -> Option<CheckedOut> {
        match waiter.answer(Ok(Lease::new(connection))) {
            Err(Ok(lease)) => lease.into_connection(),
            _ => None,
        }
    }
}

impl Drop for PoolInner {
    fn drop(&mut self) {
        // It finds the pool gone and ends; otherwise it would notice only at
        // its next look, up to a second later. The other tasks end by
        // themselves soon.
        self.hold_watch.ring();
        // They are the driver's pool's, which lives on.
        let ledger = self.ledger.get_mut();
        let idle = ledger
            .unwrap_or_else(PoisonError::into_inner)
            .idle
            .take_all();
        let bound = self.release_bound();
        for idle in idle {
            idle.outlive_pool(bound);
        }
    }
}

/// The memory of statements that sessions over `driver` begin with.
fn known_texts(driver: &DriverPool, backend: DbBackend) -> KnownTexts {
    if driver.is_direct() {
        // A plain handle has a pool of its own and may be made for each
        // request, which would pay for an empty table.
        KnownTexts::none(backend)
    } else {
        KnownTexts::new(backend).with_prepared(driver.cheap_statements())
    }
}
