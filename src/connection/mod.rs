//! [`PinnedConnection`]: one connection, checked out of the driver's pool, that knows its state.
//!
//! It moves by value: a running call owns it and gives it back with the result. Dropped without
//! having been proven clean, it closes itself and frees its slot, on whatever thread that happens.

#[cfg(feature = "_sqlx")]
mod driver;
#[cfg(not(feature = "_sqlx"))]
#[path = "no_driver.rs"]
mod driver;
mod text;

use std::time::Duration;

use futures_util::future::BoxFuture;
use sea_orm::{AccessMode, DbBackend, DbErr, ExecResult, QueryResult, Statement, TransactionOptions};
use tokio::runtime::Handle;

pub(crate) use self::driver::Driver;
#[cfg(feature = "stream")]
pub(crate) use self::driver::Rows;
use crate::{
    error::Kind,
    pool::{SessionPool, SlotGuard},
};

/// What a session asks of its connection.
#[cfg_attr(not(feature = "_sqlx"), allow(dead_code))] // raw access needs a driver
pub(crate) enum Operation {
    Execute(Statement),
    Unprepared(String),
    One(Statement),
    All(Statement),
    #[cfg(feature = "stream")]
    Stream(Statement, Rows),
    Begin(TransactionOptions),
    Commit,
    Rollback,
    Ping,
    /// Nothing of its own: rolls back what is abandoned.
    Settle,
    /// User code on the driver's connection; its value leaves through a channel of its own.
    Raw(Raw),
}

/// User code that runs on the driver's own connection.
pub(crate) type Raw = Box<dyn for<'c> FnOnce(&'c mut Driver) -> BoxFuture<'c, Result<(), DbErr>> + Send>;

/// What an [`Operation`] yields.
pub(crate) enum Output {
    Executed(ExecResult),
    Row(Option<QueryResult>),
    Rows(Vec<QueryResult>),
    Done,
}

/// A call's end: the connection comes back with the result.
pub(crate) struct Finished {
    pub(crate) connection: PinnedConnection,
    pub(crate) output: Result<Output, DbErr>,
}

/// One checked-out driver connection.
pub(crate) struct PinnedConnection {
    driver: Driver,
    backend: DbBackend,
    /// The runtime whose I/O driver serves the connection; `Drop` may run outside of it.
    runtime: Handle,
    /// The slot of the session pool. After `driver`, so that it is freed last.
    slot: SlotGuard,
    state: State,
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

impl PinnedConnection {
    pub(crate) fn new(driver: Driver, runtime: Handle, slot: SlotGuard) -> Self {
        let backend = slot.pool().backend();
        Self { driver, backend, runtime, slot, state: State::Known }
    }

    pub(crate) fn pool(&self) -> &SessionPool {
        self.slot.pool()
    }

    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    pub(crate) fn depth(&self) -> usize {
        self.driver.depth()
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.state == State::Broken
    }

    /// Whether the connection may go to another request as it is.
    pub(crate) fn is_clean(&self) -> bool {
        self.state == State::Known && self.depth() == 0
    }

    /// How long a call that nobody waits for may still run before the connection is closed.
    ///
    /// `None`, without a bound, where closing it would destroy an in-memory database.
    pub(crate) fn patience(&self) -> Option<Duration> {
        (!self.pool().is_in_memory()).then(|| self.pool().settings().release_timeout)
    }

    /// Rolls back to `depth` open transactions, then runs `operation`, then reads all there is.
    pub(crate) async fn call(mut self, depth: usize, operation: Operation) -> Finished {
        self.state = if self.state == State::Known { State::Busy } else { self.state };
        let suspect = self.state == State::Suspect || operation.may_leave_transaction();
        let mut output = match self.roll_back_to(depth).await {
            Ok(()) => self.perform(operation).await,
            Err(error) => {
                self.state = State::Broken;
                Err(error)
            }
        };
        let fatal = output.as_ref().err().is_some_and(driver::is_fatal);
        if fatal && !self.pool().is_in_memory() {
            self.state = State::Broken;
        }
        if self.state != State::Broken {
            match self.driver.drain().await {
                Ok(()) => self.state = if suspect { State::Suspect } else { State::Known },
                Err(error) => {
                    self.state = State::Broken;
                    output = output.and(Err(error));
                }
            }
        }
        Finished { connection: self, output }
    }

    async fn perform(&mut self, operation: Operation) -> Result<Output, DbErr> {
        match operation {
            Operation::Execute(statement) => self.driver.execute(statement).await.map(Output::Executed),
            Operation::Unprepared(sql) => self.driver.execute_unprepared(sql).await.map(Output::Executed),
            Operation::One(statement) => self.driver.query_one(statement).await.map(Output::Row),
            Operation::All(statement) => self.driver.query_all(statement).await.map(Output::Rows),
            #[cfg(feature = "stream")]
            Operation::Stream(statement, rows) => self.driver.stream(statement, &rows).await.map(|()| Output::Done),
            Operation::Begin(options) => self.begin(options).await.map(|()| Output::Done),
            Operation::Commit => self.driver.commit().await.map(|()| Output::Done),
            Operation::Rollback => self.roll_back_one().await.map(|()| Output::Done),
            Operation::Ping => self.driver.ping().await.map(|()| Output::Done),
            Operation::Settle => Ok(Output::Done),
            Operation::Raw(code) => code(&mut self.driver).await.map(|()| Output::Done),
        }
    }

    async fn begin(&mut self, options: TransactionOptions) -> Result<(), DbErr> {
        let statement = begin_statement(self.backend, options, self.depth())?;
        let several = statement.as_ref().is_some_and(|sql| sql.contains(';'));
        let begun = self.driver.begin(statement).await;
        if begun.is_err() && several {
            // The first half may have taken effect: the next transaction must not inherit it.
            self.state = State::Broken;
        }
        begun
    }

    /// Rolls back the innermost transaction. A savepoint is released as well: rolled back only, it
    /// would stay, and a loop would pile them up. MySQL replaces a savepoint of the same name.
    async fn roll_back_one(&mut self) -> Result<(), DbErr> {
        let depth = self.depth();
        self.driver.rollback().await?;
        if depth > 1 && self.backend != DbBackend::MySql {
            let release = format!("RELEASE SAVEPOINT _sqlx_savepoint_{}", depth - 1);
            self.driver.execute_unprepared(release).await?;
        }
        Ok(())
    }

    async fn roll_back_to(&mut self, depth: usize) -> Result<(), DbErr> {
        while self.depth() > depth {
            self.roll_back_one().await?;
        }
        Ok(())
    }

    /// Proves the connection clean: reads what is unread, rolls back what is open.
    pub(crate) async fn clean(&mut self) -> Result<(), DbErr> {
        self.driver.drain().await?;
        self.roll_back_to(0).await?;
        if self.state != State::Known {
            let rolled_back = self.driver.execute_unprepared("ROLLBACK".to_owned()).await;
            // SQLite calls a ROLLBACK without a transaction an error; the others only warn.
            if self.backend != DbBackend::Sqlite {
                rolled_back?;
            }
            self.driver.drain().await?;
        }
        self.state = State::Known;
        Ok(())
    }

    /// Gives a clean connection back to sqlx's pool and frees the slot when sqlx has it.
    pub(crate) fn return_to_driver(mut self) {
        let runtime = self.runtime.clone();
        runtime.spawn(async move {
            let patience = self.patience();
            let returning = self.driver.return_to_pool();
            let returned = match patience {
                Some(bound) => tokio::time::timeout(bound, returning).await.is_ok(),
                None => {
                    returning.await;
                    true
                }
            };
            if !returned {
                tracing::warn!(target: "tower_sea_orm::pool", "closed a connection that could not be returned within the release timeout");
            }
            self.driver.discard_empty();
        });
    }
}

impl Driver {
    /// Drops the shell that is left when the connection itself has gone back.
    fn discard_empty(&mut self) {
        drop(std::mem::replace(self, Self::Gone));
    }
}

impl Operation {
    fn may_leave_transaction(&self) -> bool {
        match self {
            Self::Execute(statement) | Self::One(statement) | Self::All(statement) => {
                text::may_leave_transaction(&statement.sql)
            }
            #[cfg(feature = "stream")]
            Self::Stream(statement, _) => text::may_leave_transaction(&statement.sql),
            Self::Unprepared(sql) => text::may_leave_transaction(sql),
            Self::Raw(_) => true,
            Self::Begin(_) | Self::Commit | Self::Rollback | Self::Ping | Self::Settle => false,
        }
    }
}

impl Drop for PinnedConnection {
    fn drop(&mut self) {
        let mut driver = std::mem::replace(&mut self.driver, Driver::Gone);
        if matches!(driver, Driver::Gone) {
            return;
        }
        if self.pool().is_in_memory() && !self.is_broken() {
            // A call was dropped inside of its future. SQLite's worker is safe against that, and
            // closing the connection would destroy the database: clean it instead, and only once.
            let slot = self.slot.take();
            let mut survivor =
                Self { driver, backend: self.backend, runtime: self.runtime.clone(), slot, state: State::Broken };
            self.runtime.spawn(async move {
                if survivor.clean().await.is_ok() {
                    survivor.slot.pool().clone().put_back(survivor);
                }
            });
            return;
        }
        driver.close_on_drop();
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

/// The text that opens a transaction, or `None` for the driver's own `BEGIN` or `SAVEPOINT`.
fn begin_statement(backend: DbBackend, options: TransactionOptions, depth: usize) -> Result<Option<String>, DbErr> {
    let TransactionOptions { isolation_level, access_mode, sqlite_transaction_mode } = options;
    if backend == DbBackend::Sqlite {
        if isolation_level.is_some() || access_mode.is_some() {
            tracing::warn!(target: "tower_sea_orm::session", "SQLite has no isolation levels and no access modes: ignored");
        }
        let mode = sqlite_transaction_mode.filter(|_| depth == 0);
        return Ok(mode.map(|mode| format!("BEGIN {}", mode.sqlite_keyword())));
    }
    if isolation_level.is_none() && access_mode.is_none() {
        return Ok(None);
    }
    if depth > 0 {
        return Err(Kind::NestedOptions.into_db_err());
    }
    let isolation = isolation_level.map(|level| format!(" ISOLATION LEVEL {level}"));
    let access = access_mode.map(|mode| match mode {
        AccessMode::ReadOnly => " READ ONLY",
        AccessMode::ReadWrite => " READ WRITE",
    });
    let (isolation, access) = (isolation.unwrap_or_default(), access.unwrap_or_default());
    Ok(Some(match backend {
        DbBackend::MySql if isolation.is_empty() => format!("START TRANSACTION{access}"),
        DbBackend::MySql => format!("SET TRANSACTION{isolation}; START TRANSACTION{access}"),
        _ => format!("BEGIN{isolation}{access}"),
    }))
}

#[cfg(test)]
mod tests {
    use sea_orm::{AccessMode, DbBackend, IsolationLevel, TransactionOptions};

    use super::begin_statement;

    #[test]
    fn begin_carries_its_options_in_one_text() {
        let options = TransactionOptions {
            isolation_level: Some(IsolationLevel::Serializable),
            access_mode: Some(AccessMode::ReadOnly),
            sqlite_transaction_mode: None,
        };
        let text = |backend| begin_statement(backend, options, 0).ok().flatten().unwrap_or_default();
        assert_eq!(text(DbBackend::Postgres), "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY");
        assert_eq!(text(DbBackend::MySql), "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE; START TRANSACTION READ ONLY");
        assert_eq!(text(DbBackend::Sqlite), "");
    }

    #[test]
    fn a_savepoint_refuses_options_of_its_own() {
        let options = TransactionOptions { isolation_level: Some(IsolationLevel::Serializable), ..Default::default() };
        assert!(begin_statement(DbBackend::Postgres, options, 1).is_err());
    }
}
