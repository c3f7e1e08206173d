//! [`Settings`]: how a pool behaves, set once before it is shared.

use std::time::Duration;

use super::{admission::Admission, driver_pool::DriverPool, pool_mode::PoolMode};
use crate::{
    connection::Reset,
    error::{Error, Kind},
};

/// The longest wait for a connection unless the driver's own time-out is shorter.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);
// Longer than for a clean-up: a COMMIT that is given up is an unknown outcome, although it mostly takes effect (G7).
const COMMIT_TIMEOUT: Duration = Duration::from_secs(30);
const HOLD_SLOW_THRESHOLD: Duration = Duration::from_secs(10);
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
const TEST_BEFORE_ACQUIRE_IF_IDLE_FOR: Duration = Duration::from_secs(30);

const N_PLUS_ONE_THRESHOLD: u32 = 10;

/// This many may wait for each connection, however slow they are.
const WAITING_PER_CONNECTION: u32 = 20;

/// Short, since a connection is unused meanwhile. Where many requests take a second session, each renews it; where few do, a
/// deadlock is found, and costs one of them.
const KEEPS_LAST_FOR: Duration = Duration::from_millis(500);

/// Beyond these, a request may wait if it can expect a connection within this time.
const PATIENCE: Duration = Duration::from_secs(1);

/// The settings of a pool, the same for all who share it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) acquire_timeout: Duration,
    pub(crate) release_timeout: Duration,
    pub(crate) commit_timeout: Duration,
    pub(crate) reserved_connections: u32,
    /// `None`: in proportion to the connections.
    pub(crate) max_pending: Option<u32>,
    pub(crate) direct_handoff: bool,
    pub(crate) test_before_acquire_if_idle_for: Duration,
    pub(crate) reset: Reset,
    pub(crate) pool_mode: PoolMode,
    /// Connections are lent although nothing waits, and used in turn: for tests.
    pub(crate) rotates: bool,
    pub(crate) cancel_running: bool,
    pub(crate) hold_slow_threshold: Duration,
    pub(crate) hold_timeout: Duration,
    pub(crate) body_timeout: Duration,
    /// A request that runs one statement more often is logged.
    pub(crate) n_plus_one_threshold: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            acquire_timeout: ACQUIRE_TIMEOUT,
            release_timeout: RELEASE_TIMEOUT,
            commit_timeout: COMMIT_TIMEOUT,
            reserved_connections: 0,
            max_pending: None,
            direct_handoff: true,
            test_before_acquire_if_idle_for: TEST_BEFORE_ACQUIRE_IF_IDLE_FOR,
            reset: Reset::default(),
            pool_mode: PoolMode::default(),
            rotates: false,
            cancel_running: false,
            hold_slow_threshold: HOLD_SLOW_THRESHOLD,
            hold_timeout: Duration::MAX,
            body_timeout: BODY_TIMEOUT,
            n_plus_one_threshold: N_PLUS_ONE_THRESHOLD,
        }
    }
}

impl Settings {
    /// Returns how many connections sessions may hold at the same time.
    pub(super) fn limit(&self, driver: &DriverPool) -> u32 {
        // A mock or a plain handle has no bound. At least one, or the pool would serve nobody.
        let max = driver.max_connections().unwrap_or(u32::MAX);
        max.saturating_sub(self.reserved_connections).max(1)
    }

    /// Returns for how long sessions keep an idle connection from the driver's pool, which closes what has been idle for
    /// too long or is too old: it learns of either late by a fraction of that time.
    pub(super) fn fresh_for(&self, driver: &DriverPool) -> Duration {
        let idle = driver.idle_timeout().map(|timeout| timeout / 10);
        let age = driver.max_lifetime().map(|lifetime| lifetime / 4);
        let bounds = idle.into_iter().chain(age);
        bounds.fold(self.test_before_acquire_if_idle_for, Duration::min)
    }

    /// Returns for how long the last free connection is kept for requests that hold one, after one of them took a second.
    pub(super) fn keeps_last_for(&self) -> Duration {
        // Others wait meanwhile, and must not be refused for it (G17).
        KEEPS_LAST_FOR.min(self.acquire_timeout / 8)
    }

    /// Returns who may wait besides those for whom a connection can still be opened.
    pub(super) fn admission(&self, driver: &DriverPool) -> Admission {
        if let Some(waiting) = self.max_pending {
            return Admission::new(waiting as usize, Duration::ZERO);
        }
        let max = driver.max_connections().unwrap_or(u32::MAX);
        let guaranteed = max.saturating_mul(WAITING_PER_CONNECTION) as usize;
        // A wait of more than half the time-out would often end by it.
        Admission::new(guaranteed, PATIENCE.min(self.acquire_timeout / 2))
    }

    /// Returns an error if sessions could not lend their connections between statements.
    pub(super) fn check_lending(&self, driver: &DriverPool) -> Result<(), Error> {
        if driver.is_proxy() {
            return Err(Kind::NothingToLend.into());
        }
        if self.reset == Reset::SessionStateAlways {
            return Err(Kind::NeverLent.into());
        }
        Ok(())
    }

    /// Returns an error if they contradict each other or the database.
    pub(super) fn check(&self, driver: &DriverPool) -> Result<(), Error> {
        if driver
            .max_connections()
            .is_some_and(|max| self.reserved_connections >= max)
        {
            return Err(Kind::InvalidReserve.into());
        }
        if self.hold_slow_threshold.is_zero()
            || self.hold_timeout.is_zero()
            || self.body_timeout.is_zero()
        {
            return Err(Kind::InvalidHold.into());
        }
        // Here and not at the first session: a setting that does nothing must not start a service.
        if self.reset.is_of_session() && driver.is_proxy() {
            return Err(Kind::NothingToReset.into());
        }
        match self.pool_mode {
            PoolMode::Session => Ok(()),
            PoolMode::Transaction => self.check_lending(driver),
        }
    }
}
