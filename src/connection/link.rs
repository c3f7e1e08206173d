//! [`Link`]: the driver's connection, and what is known of it.

use sea_orm::{DbBackend, DbErr};

use super::driver::Driver;

pub(super) struct Link {
    pub(super) driver: Driver,
    pub(super) backend: DbBackend,
    /// Closing the connection would destroy its database.
    pub(super) in_memory: bool,
    /// Prepared statements are kept under a name. Behind a proxy that shares connections, another client may have
    /// taken it (<https://github.com/launchbadge/sqlx/issues/67>).
    pub(super) named: bool,
    pub(super) condition: Condition,
    pub(super) around: Around,
    /// Each statement commits by itself unless the session says otherwise. On MySQL, a setting from before this
    /// crate saw the connection may say so too.
    pub(super) is_autocommit_proven: bool,
}

/// The condition of a connection between two calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Condition {
    /// Nothing in flight, nothing unread, no transaction but those that the driver counts.
    Known,
    /// A transaction may be open that the driver knows nothing of.
    Suspect,
    /// A call is running, or ended without reading all there was.
    Busy,
    /// Not to be used again.
    Broken,
}

/// The transaction around all sessions, which none of them may end; only tests have one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Around {
    Nothing,
    Test,
    /// Code that cannot be looked into has ended it.
    EndedTest,
}

impl Link {
    pub(super) fn new(driver: Driver, backend: DbBackend, in_memory: bool) -> Self {
        Self {
            driver,
            backend,
            in_memory,
            named: true,
            condition: Condition::Known,
            around: Around::Nothing,
            is_autocommit_proven: backend != DbBackend::MySql,
        }
    }

    /// The number of transactions (the outermost and its savepoints) that the session has open.
    pub(super) fn depth(&self) -> usize {
        self.driver
            .depth()
            .saturating_sub(usize::from(self.is_test()))
    }

    pub(super) fn is_test(&self) -> bool {
        self.around != Around::Nothing
    }

    pub(super) fn is_broken(&self) -> bool {
        self.condition == Condition::Broken
    }

    /// The connection must serve no session any more.
    pub(super) fn give_up(&mut self) {
        self.condition = Condition::Broken;
    }

    /// Runs a text of this crate.
    pub(super) async fn run(&mut self, sql: impl Into<String>) -> Result<(), DbErr> {
        self.driver.execute_unprepared(sql.into()).await.map(drop)
    }
}
