//! [`Settings`]: how a pool behaves, set once before it is shared; and [`PoolMode`], the one that users name.

use std::time::Duration;

use super::{
    admission::Admission, driver_pool::DriverPool, ledger::Ledger, plain_share::PlainShare,
};
use crate::{
    connection::Reset,
    error::{Error, Kind},
};

/// The longest wait for a connection unless the driver's own time-out is
/// shorter.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);
// Longer than for a clean-up: a COMMIT that is given up is an unknown outcome,
// although it mostly takes effect (G7).
const COMMIT_TIMEOUT: Duration = Duration::from_secs(30);
const HOLD_SLOW_THRESHOLD: Duration = Duration::from_secs(10);
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
const TEST_BEFORE_ACQUIRE_IF_IDLE_FOR: Duration = Duration::from_secs(30);

const N_PLUS_ONE_THRESHOLD: u32 = 10;

/// This many may wait for each connection, however slow they are.
const WAITING_PER_CONNECTION: u32 = 20;

/// Short, since a connection is unused meanwhile. Where many requests take a
/// second session, each renews it; where few do, a deadlock is found, and costs
/// one of them.
const KEEPS_LAST_FOR: Duration = Duration::from_millis(500);

/// Beyond these, a request may wait if it can expect a connection within this
/// time.
// With a fixed number alone, 1000 clients of a pool of 10 that did not heed
// `Retry-After` had the processors busy with refusals: a fifth of the answers
// were left.
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
    /// Connections are lent although nothing waits, and used in turn: for
    /// tests.
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
    /// Makes the ledger of a pool over `driver`.
    pub(super) fn ledger<T, C>(&self, driver: &DriverPool, is_test: bool) -> Ledger<T, C> {
        // All sessions of a test run on the connection that has its transaction
        // open.
        let limit = if is_test { 1 } else { self.limit(driver) };
        let mut ledger = Ledger::new(
            limit,
            self.admission(driver),
            PlainShare::new(driver.acquire_timeout()),
            self.fresh_for(driver),
            self.keeps_last_for(),
        );
        ledger.idle.rotates = self.rotates;
        ledger
    }

    /// Returns how many connections sessions may hold at the same time.
    fn limit(&self, driver: &DriverPool) -> u32 {
        // A mock or a plain handle has no bound. At least one, or the pool
        // would serve nobody.
        let max = driver.max_connections().unwrap_or(u32::MAX);
        max.saturating_sub(self.reserved_connections).max(1)
    }

    /// Returns for how long sessions keep an idle connection from the driver's
    /// pool, which closes what has been idle for too long or is too old: it
    /// learns of either late by a fraction of that time.
    fn fresh_for(&self, driver: &DriverPool) -> Duration {
        let idle = driver.idle_timeout().map(|timeout| timeout / 10);
        let age = driver.max_lifetime().map(|lifetime| lifetime / 4);
        let bounds = idle.into_iter().chain(age);
        bounds.fold(self.test_before_acquire_if_idle_for, Duration::min)
    }

    /// Returns for how long the last free connection is kept for requests that
    /// hold one, after one of them took a second.
    fn keeps_last_for(&self) -> Duration {
        // Others wait meanwhile, and must not be refused for it (G17).
        KEEPS_LAST_FOR.min(self.acquire_timeout / 8)
    }

    /// Returns who may wait besides those for whom a connection can still be
    /// opened.
    fn admission(&self, driver: &DriverPool) -> Admission {
        if let Some(waiting) = self.max_pending {
            return Admission::new(waiting as usize, Duration::ZERO);
        }
        let max = driver.max_connections().unwrap_or(u32::MAX);
        let guaranteed = max.saturating_mul(WAITING_PER_CONNECTION) as usize;
        // A wait of more than half the time-out would often end by it.
        Admission::new(guaranteed, PATIENCE.min(self.acquire_timeout / 2))
    }

    /// Returns an error if sessions could not lend their connections between
    /// statements.
    pub(super) fn check_lending(&self, driver: &DriverPool) -> Result<(), Error> {
        if driver.is_proxy() {
            return Err(Kind::NothingToLend.into());
        }
        // It takes each statement for one that leaves state behind, and state
        // keeps the connection: nothing would ever be lent
        // (`a_reset_after_every_statement_is_refused`).
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
        // At zero, each session would be logged or cut off as soon as it has
        // its connection (`a_hold_of_zero_is_refused_when_the_pool_is_built`).
        if self.hold_slow_threshold.is_zero()
            || self.hold_timeout.is_zero()
            || self.body_timeout.is_zero()
        {
            return Err(Kind::InvalidHold.into());
        }
        // Here and not at the first session: a setting that does nothing must
        // not start a service.
        if self.reset.is_of_session() && driver.is_proxy() {
            return Err(Kind::NothingToReset.into());
        }
        match self.pool_mode {
            PoolMode::Session => Ok(()),
            PoolMode::Transaction => self.check_lending(driver),
        }
    }
}

/// Determines for how long a session keeps its connection, in PgBouncer's
/// words.
///
/// A handler that waits for something else between two statements, another
/// service or a slow client, keeps a connection from the requests that wait for
/// one. In transaction mode it does not.
///
/// # Transaction mode
///
/// Outside a transaction, a session lends its connection to what waits for one
/// as soon as its handler waits for something else. If nothing waits, it keeps
/// the connection, and lends it when something does: the session that has been
/// idle longest is the first. Statements that follow one another directly keep
/// their connection. A session that has lent its connection acquires another
/// one with its next statement, first come, first served. It is not turned away
/// by [`max_pending`](crate::SessionPoolBuilder::max_pending), and its waits
/// share one [`acquire_timeout`](crate::SessionPoolBuilder::acquire_timeout),
/// which it regains with the time between them.
///
/// A transaction keeps its connection until its end, in both modes. So do
/// streams until they are dropped.
///
/// # Which one to choose
///
/// `Session`, the default, promises most: all statements of a request run on
/// one connection, and code that relies on that works, whether it says so or
/// not. It serves well where handlers do little but talk to the database, or
/// call [`release`](crate::DbSession::release) before they do something else.
///
/// `Transaction` is for services whose handlers wait between statements outside
/// transactions: for other services, for clients that send slowly, or for the
/// next event of a stream that lives as long as its body. With it, a slow route
/// does not take the connections of the fast ones, and a session store on the
/// same pool does not wait for the request that it serves. Behind PgBouncer in
/// transaction mode it costs nothing, because there connections change between
/// statements anyway. It does not help a request that waits inside a
/// transaction: keep transactions short.
///
/// Two things to look at before you choose it. Under a load that the database
/// cannot bear for longer than the `acquire_timeout`, session mode refuses
/// requests at their start, and transaction mode those with many statements in
/// their middle, because each statement after a wait queues again: limit how
/// many requests are let in. And a handler that holds a mutex while it runs
/// statements outside a transaction may wait for a request that waits for the
/// mutex inside one.
///
/// # What stays on the connection
///
/// From the first statement that leaves session state behind, the session keeps
/// its connection until its end or its [`release`](crate::DbSession::release):
/// `SET`, `set_config(…, false)`, temporary objects, session locks, `LISTEN`,
/// `DECLARE … WITH HOLD`, `PREPARE`, `setseed`, user variables of MySQL,
/// `PRAGMA … = …`, `ATTACH`, raw code, and `on_acquire`. They are found by the
/// text of the statement, as for [`Reset`](crate::Reset).
/// [`pin`](crate::DbSession::pin) does the same by hand; a function of your own
/// that changes session state needs it.
///
/// The mode implies [`Reset::SessionState`](crate::Reset::SessionState), for
/// every session of the pool: what one of them has set must not appear between
/// two statements of another. State that it does not reset (a PRAGMA of an
/// in-memory SQLite database, the effects of functions that it does not know)
/// does appear.
///
/// # What is refused
///
/// A statement that asks about an earlier one of its connection could get
/// another session's answer. It is refused with an error that says what to do,
/// with and without load alike, unless the earlier one is part of the same
/// transaction, or has run since the connection was pinned: `lastval()` and
/// `currval()` of PostgreSQL; `LAST_INSERT_ID()`, `@@identity`, `LASTVAL(s)`,
/// `FOUND_ROWS()`, `ROW_COUNT()`, `SHOW WARNINGS`, `SHOW ERRORS`, `SHOW
/// PROFILE`, `@@warning_count`, `@@error_count` and `GET DIAGNOSTICS` of MySQL
/// and MariaDB; `last_insert_rowid()`, `changes()` and `total_changes()` and
/// `PRAGMA data_version` of SQLite. In one text with the statement that it asks
/// about, it is not refused. Such questions are found by the text: those in
/// functions, views, defaults and triggers of your own are not, and which
/// sequence or table an INSERT has used is not known. `pg_backend_pid()` and
/// `CONNECTION_ID()` are answered, by the connection of that statement.
/// SeaORM's `last_insert_id` and `rows_affected` come with the result of the
/// statement itself and are always right.
///
/// | | `Session` | `Transaction` |
/// |---|---|---|
/// | all statements of a request see | one connection | one connection for each transaction, and from the first session state on |
/// | a handler that waits between statements | keeps its connection | lends it |
/// | `lastval()` and the like, in autocommit | the session's own | refused, unless pinned |
/// | [`reset`](crate::SessionPoolBuilder::reset) | as set | at least `SessionState` |
///
/// ```
/// # #[cfg(feature = "sqlx-sqlite")]
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// use sea_orm::{ConnectionTrait, Database};
/// use tower_sea_orm::{DbSessionLayer, PoolMode, SessionPool};
///
/// let db = Database::connect("sqlite::memory:").await?;
/// let pool = SessionPool::builder(db).pool_mode(PoolMode::Transaction).build()?;
///
/// let session = pool.session().await?;
/// session.execute_unprepared("CREATE TABLE item (id integer PRIMARY KEY)").await?;
/// session.execute_unprepared("INSERT INTO item DEFAULT VALUES").await?;
/// let last = session.execute_unprepared("SELECT last_insert_rowid()").await;
/// assert!(last.is_err()); // another session may have had the connection
///
/// let pin = session.pin();
/// session.execute_unprepared("INSERT INTO item DEFAULT VALUES").await?;
/// session.execute_unprepared("SELECT last_insert_rowid()").await?;
/// drop(pin);
/// # drop(session);
/// // Routes that need session mode get a layer with it.
/// let routes = DbSessionLayer::new(pool.clone()).pool_mode(PoolMode::Session);
/// # let _ = routes;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum PoolMode {
    /// A session keeps its connection from its first statement to its end.
    /// Before the first statement, a request's session lends it.
    #[default]
    Session,
    /// A session keeps its connection for a transaction, and lends it between
    /// statements outside one.
    Transaction,
}
