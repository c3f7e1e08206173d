//! What a session asks of its connection, and what it gets.

use futures_util::future::BoxFuture;
use sea_orm::{DbErr, ExecResult, QueryResult, Statement, TransactionOptions};

#[cfg(feature = "stream")]
use super::Rows;
use super::{Driver, text};

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

impl Operation {
    pub(super) fn may_leave_transaction(&self) -> bool {
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
