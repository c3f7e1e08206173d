//! [`Operation`] and [`Output`]: what a session asks of its connection.

use std::{
    fmt::{self, Write},
    mem,
    sync::Arc,
};

use futures_util::future::BoxFuture;
use sea_orm::{DbErr, ExecResult, QueryResult, Statement, TransactionOptions, Value};
use tokio::{sync::Notify, time::timeout};

#[cfg(feature = "stream")]
use super::Rows;
use super::{
    Chain, Demand, Driver, SILENCE, failure::Failure, link::Link, transaction::Transaction,
};
use crate::error::Kind;

/// Up to how many bytes a value is counted.
// Only whether a statement is large counts, so that a huge array is not
// formatted to its end for that.
const A_LOT: usize = 1 << 20;

/// A session's request to its connection.
#[cfg_attr(not(feature = "_sqlx"), allow(dead_code))] // raw access needs a driver
pub(crate) enum Operation {
    Execute(Statement),
    Unprepared(String),
    One(Statement),
    All(Statement),
    #[cfg(feature = "stream")]
    Stream(Statement, Rows),
    Begin(TransactionOptions),
    /// May begin the next session's transaction as well.
    Commit(Option<Chain>),
    Rollback,
    Ping,
    /// No more than the rollback of abandoned transactions, which precedes
    /// every operation.
    Settle,
    /// User code on the driver's connection; its value leaves through a
    /// channel.
    Raw(Option<Raw>),
}

/// User code that runs on the driver's own connection.
pub(crate) type Raw =
    Box<dyn for<'c> FnOnce(&'c mut Driver) -> BoxFuture<'c, Result<(), DbErr>> + Send>;

/// The result of an [`Operation`].
pub(crate) enum Output {
    Executed(ExecResult),
    Row(Option<QueryResult>),
    Rows(Vec<QueryResult>),
    Done,
}

impl Operation {
    /// Runs the operation, and leaves it empty. The futures of rare operations
    /// are boxed, so that a call's future is small.
    pub(super) async fn perform(
        &mut self,
        link: &mut Link,
        transaction: &mut Transaction,
        reads_only: bool,
    ) -> Result<Output, DbErr> {
        let (named, driver) = (link.named, &mut link.driver);
        match self {
            Self::Execute(statement) => {
                let done = driver.execute(statement, named).await;
                done.map(Output::Executed)
            }
            Self::Unprepared(sql) => {
                let done = driver.execute_unprepared(mem::take(sql)).await;
                done.map(Output::Executed)
            }
            Self::One(statement) => {
                let row = driver.query_one(statement, named, reads_only).await;
                row.map(Output::Row)
            }
            Self::All(statement) => driver.query_all(statement, named).await.map(Output::Rows),
            // Each transaction has one: boxed, as the rare ones are, it would
            // cost an allocation.
            Self::Commit(None) => transaction.commit(link).await.map(|()| Output::Done),
            // A `Settle` is for the rollbacks that come before it, in
            // `prepare`.
            Self::Settle | Self::Raw(None) => Ok(Output::Done),
            rare => {
                let done = Box::pin(rare.perform_rare(link, transaction, reads_only));
                done.await.map(|()| Output::Done)
            }
        }
    }

    #[cfg_attr(not(feature = "stream"), allow(unused_variables))]
    async fn perform_rare(
        &mut self,
        link: &mut Link,
        transaction: &mut Transaction,
        reads_only: bool,
    ) -> Result<(), DbErr> {
        match self {
            #[cfg(feature = "stream")]
            Self::Stream(statement, rows) => {
                let (named, driver) = (link.named, &mut link.driver);
                driver.stream(statement, rows, named, reads_only).await
            }
            Self::Begin(options) => {
                let demand = &Demand::None;
                transaction.begin(link, *options, None, demand).await
            }
            Self::Commit(chain) => match chain.take() {
                Some(chain) => chain.commit_and_begin(link, transaction).await,
                None => transaction.commit(link).await,
            },
            Self::Rollback => transaction.rollback(link).await,
            Self::Ping => link.driver.ping().await,
            Self::Raw(code) => match code.take() {
                Some(code) => {
                    code(&mut link.driver).await?;
                    // What the code has read may be less than there is. What it
                    // has left running is not waited for.
                    let checked = timeout(SILENCE, link.driver.check_worker()).await;
                    checked.unwrap_or(Ok(()))
                }
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// Returns about how many bytes it sends.
    pub(super) fn size(&self) -> usize {
        match self {
            Self::Execute(statement) | Self::One(statement) | Self::All(statement) => {
                let values = statement.values.iter().flat_map(|values| values.iter());
                statement.sql.len() + values.map(size_of_value).sum::<usize>()
            }
            Self::Unprepared(sql) => sql.len(),
            // A COMMIT and its like are short, and the server is never asked
            // about a stream or raw code.
            _ => 0,
        }
    }

    /// The user's SQL, unless it is another operation.
    pub(crate) fn text(&self) -> Option<&str> {
        match self {
            Self::Execute(statement) | Self::One(statement) | Self::All(statement) => {
                Some(&statement.sql)
            }
            #[cfg(feature = "stream")]
            Self::Stream(statement, _) => Some(&statement.sql),
            Self::Unprepared(sql) => Some(sql),
            _ => None,
        }
    }

    /// Stops a stream whose reader reads nothing.
    pub(crate) fn reader(&self) -> Option<Arc<Notify>> {
        match self {
            #[cfg(feature = "stream")]
            Self::Stream(_, rows) => Some(rows.stop()),
            _ => None,
        }
    }

    /// Returns whether it is user's work, which belongs into the session's
    /// transaction.
    pub(crate) fn is_work(&self) -> bool {
        !matches!(
            self,
            Self::Commit(_) | Self::Rollback | Self::Ping | Self::Settle
        )
    }

    /// The same statement once more, if it is one: sqlx keeps the one that it
    /// is given.
    pub(super) fn copy(&self) -> Option<Self> {
        match self {
            Self::Execute(statement) => Some(Self::Execute(statement.clone())),
            Self::Unprepared(sql) => Some(Self::Unprepared(sql.clone())),
            Self::One(statement) => Some(Self::One(statement.clone())),
            Self::All(statement) => Some(Self::All(statement.clone())),
            #[cfg(feature = "stream")]
            Self::Stream(statement, rows) => Some(Self::Stream(statement.clone(), rows.clone())),
            _ => None,
        }
    }

    /// The same statement once more, if it is one that is prepared.
    pub(super) fn copy_of_prepared(&self) -> Option<Self> {
        match self {
            Self::Unprepared(_) => None,
            operation => operation.copy(),
        }
    }

    /// The error instead of it, if it must not be sent in a transaction that
    /// has failed so.
    pub(super) fn refused_after(&self, failure: Failure) -> Option<Kind> {
        match (self, failure) {
            // A rollback is the way out of each of them; the other two are no
            // statements.
            (Self::Rollback | Self::Settle | Self::Ping, _) => None,
            (_, Failure::Ended(kind)) => Some(kind),
            // Where a SAVEPOINT fails, sqlx rolls back the transaction around
            // it (H5b). Shown by
            // `h8_a_savepoint_in_an_aborted_transaction_harms_nothing_else`.
            (Self::Commit(_) | Self::Begin(_), _) => Some(Kind::Aborted),
            // PostgreSQL refuses by itself.
            (_, Failure::Aborted(_) | Failure::Unheard { .. }) => None,
        }
    }

    pub(super) fn is_commit(&self) -> bool {
        matches!(self, Self::Commit(_))
    }

    pub(super) fn is_stream(&self) -> bool {
        self.reader().is_some()
    }

    pub(super) fn is_text(&self) -> bool {
        self.text().is_some()
    }

    pub(super) fn is_statement(&self) -> bool {
        self.is_text() || matches!(self, Self::Raw(_))
    }
}

/// Returns about how many bytes a value takes on its way; numbers count as
/// none.
fn size_of_value(value: &Value) -> usize {
    match value {
        Value::String(text) => text.as_ref().map_or(0, String::len),
        Value::Bytes(bytes) => bytes.as_ref().map_or(0, Vec::len),
        #[rustfmt::skip]
        Value::Bool(_) | Value::TinyInt(_) | Value::SmallInt(_) | Value::Int(_) | Value::BigInt(_)
        | Value::TinyUnsigned(_) | Value::SmallUnsigned(_) | Value::Unsigned(_)
        | Value::BigUnsigned(_) | Value::Float(_) | Value::Double(_) | Value::Char(_) => 0,
        // JSON and arrays among them. Which others there are depends on
        // SeaORM's features.
        other => {
            let mut size = Size(0);
            let _ = write!(size, "{other:?}");
            size.0
        }
    }
}

/// Counts what is written to it, until that is a lot.
struct Size(usize);

impl Write for Size {
    // An error ends the formatting: nothing is written, and of a huge value
    // most is not even looked at.
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0 += text.len();
        if self.0 < A_LOT {
            Ok(())
        } else {
            Err(fmt::Error)
        }
    }
}
