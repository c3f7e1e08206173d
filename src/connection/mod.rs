//! [`PinnedConnection`]: one connection, checked out of the driver's pool, that knows its state.
//!
//! Dropped without having been handed back, it closes itself, on whatever thread that happens.

mod begin;
#[cfg(feature = "_sqlx")]
mod driver;
#[cfg(not(feature = "_sqlx"))]
#[path = "no_driver.rs"]
mod driver;
mod operation;
mod text;

use sea_orm::{DbBackend, DbErr, TransactionOptions};
use tokio::runtime::Handle;

use self::begin::begin_statement;
#[cfg(feature = "stream")]
pub(crate) use self::driver::Rows;
#[cfg(feature = "_sqlx")]
pub(crate) use self::operation::Raw;
pub(crate) use self::{
    driver::Driver,
    operation::{Operation, Output},
};

use crate::error::Kind;

/// One checked-out driver connection.
pub(crate) struct PinnedConnection {
    driver: Driver,
    backend: DbBackend,
    /// The runtime whose I/O driver serves the connection; `Drop` may run outside of it.
    runtime: Handle,
    /// Closing the connection would destroy its database.
    in_memory: bool,
    state: State,
    /// The depth of the transaction that the server gave up after a failed statement.
    aborted: Option<usize>,
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
    pub(crate) fn new(driver: Driver, backend: DbBackend, runtime: Handle, in_memory: bool) -> Self {
        Self { driver, backend, runtime, in_memory, state: State::Known, aborted: None }
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

    /// Rolls back to `depth` open transactions, then runs `operation`, then reads all there is.
    pub(crate) async fn call(&mut self, depth: usize, operation: Operation) -> Result<Output, DbErr> {
        self.state = if self.state == State::Known { State::Busy } else { self.state };
        let suspect = self.state == State::Suspect || operation.may_leave_transaction();
        let mut output = match self.roll_back_to(depth).await {
            Ok(()) => self.perform_honestly(operation).await,
            Err(error) => {
                self.state = State::Broken;
                Err(error)
            }
        };
        let fatal = output.as_ref().err().is_some_and(driver::is_fatal);
        if fatal && !self.in_memory {
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
        output
    }

    /// Performs `operation` unless it would pretend that a transaction goes on which the server has
    /// given up: sqlx does not tell that a COMMIT was answered with ROLLBACK.
    async fn perform_honestly(&mut self, operation: Operation) -> Result<Output, DbErr> {
        let refused = match operation {
            Operation::Commit => self.aborted.is_some(),
            Operation::Rollback | Operation::Settle | Operation::Ping => false,
            // PostgreSQL refuses by itself; the others would autocommit.
            _ => self.aborted.is_some() && self.backend != DbBackend::Postgres,
        };
        if refused {
            return Err(Kind::Aborted.into_db_err());
        }
        let depth = self.depth();
        let output = self.perform(operation).await;
        if depth > 0 && output.as_ref().is_err_and(|error| driver::aborts(self.backend, error)) {
            // PostgreSQL loses the innermost level, the others the whole transaction.
            let lost = if self.backend == DbBackend::Postgres { depth } else { 1 };
            self.aborted = Some(self.aborted.unwrap_or(lost));
        }
        output
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
        if self.aborted.is_some() && self.backend != DbBackend::Postgres {
            self.reopen(depth).await;
        }
        self.driver.rollback().await?;
        self.aborted = self.aborted.filter(|aborted| *aborted < depth);
        if depth > 1 && self.backend != DbBackend::MySql {
            let release = format!("RELEASE SAVEPOINT _sqlx_savepoint_{}", depth - 1);
            self.driver.execute_unprepared(release).await?;
        }
        Ok(())
    }

    /// Gives a transaction that the server ended by itself a shape that sqlx's count can be rolled
    /// back by.
    async fn reopen(&mut self, depth: usize) {
        let savepoints = (1..depth).map(|level| format!("; SAVEPOINT _sqlx_savepoint_{level}"));
        let text = std::iter::once("BEGIN".to_owned()).chain(savepoints).collect();
        // SQLite may not have ended it after all, and says so.
        let _ = self.driver.execute_unprepared(text).await;
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

    /// Gives a clean connection back to sqlx's pool, through its ping.
    pub(crate) async fn return_to_driver(&mut self) {
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
