//! [`Driver`]: the three sqlx drivers behind one set of calls.
//!
//! Without any of them there is only [`Driver::Gone`], and no connection to
//! call.

mod backend_id;
#[cfg(feature = "_sqlx")]
mod results;
mod transactions;
mod worker;

#[cfg(all(feature = "_sqlx", feature = "stream"))]
use std::mem;

#[cfg(all(feature = "_sqlx", feature = "stream"))]
use futures_util::StreamExt;
#[cfg(all(feature = "_sqlx", feature = "stream"))]
use sea_orm::sqlx::Either;
#[cfg(feature = "sqlx-mysql")]
use sea_orm::sqlx::SqlSafeStr;
#[cfg(feature = "_sqlx")]
use sea_orm::sqlx::{self, AssertSqlSafe, Connection, Executor, pool::PoolConnection};
use sea_orm::{DbErr, ExecResult, QueryResult, Statement};

pub(crate) use self::backend_id::BackendId;
#[cfg(feature = "sqlx-postgres")]
pub(crate) use self::backend_id::POSTGRES_PLACE;
#[cfg(feature = "sqlx-mysql")]
pub(crate) use self::backend_id::{MYSQL_SERVER, PROCESSES};
#[cfg(feature = "_sqlx")]
use self::results::{
    LOOK, connection_error, exec_error, looks_first, may_fetch_one, query, query_error, read,
    unread_error,
};
#[cfg(all(feature = "_sqlx", feature = "stream"))]
use self::results::{breathe, may_stop_early};
use crate::error::Kind;

/// A connection checked out of one of sqlx's pools.
// Not SeaORM's own connection and transaction: these end the innermost level
// whichever handle asks (H4), and panic in `Drop` beside a running query (H16).
pub(crate) enum Driver {
    #[cfg(feature = "sqlx-postgres")]
    Postgres(PoolConnection<sqlx::Postgres>),
    #[cfg(feature = "sqlx-mysql")]
    MySql(PoolConnection<sqlx::MySql>),
    #[cfg(feature = "sqlx-sqlite")]
    Sqlite(PoolConnection<sqlx::Sqlite>),
    /// Handed back to its pool, or given to the task that closes it.
    Gone,
}

/// Runs `$body` with `$c` bound to the driver's own connection and `$DB` to its
/// database type.
// A macro, because each arm has a connection of another type.
macro_rules! dispatch {
    ($driver:expr, $DB:ident, $c:ident => $body:expr, gone => $gone:expr) => {
        match $driver {
            #[cfg(feature = "sqlx-postgres")]
            Driver::Postgres($c) => dispatch!(sqlx::Postgres, $DB, $body),
            #[cfg(feature = "sqlx-mysql")]
            Driver::MySql($c) => dispatch!(sqlx::MySql, $DB, $body),
            #[cfg(feature = "sqlx-sqlite")]
            Driver::Sqlite($c) => dispatch!(sqlx::Sqlite, $DB, $body),
            Driver::Gone => $gone,
        }
    };
    ($type:ty, $DB:ident, $body:expr) => {{
        #[allow(dead_code)]
        type $DB = $type;
        $body
    }};
}

use dispatch;

#[cfg_attr(
    not(feature = "_sqlx"),
    allow(unused_variables, unused_mut, reason = "nothing but `Gone` is left")
)]
impl Driver {
    pub(crate) async fn execute(
        &mut self,
        statement: &mut Statement,
        named: bool,
    ) -> Result<ExecResult, DbErr> {
        let done = dispatch!(self, DB, c => {
            // Not by sqlx's `execute`, which lets no other task run while a
            // long result comes
            // (<https://github.com/launchbadge/sqlx/issues/2834>).
            let looks = looks_first::<DB>(&statement.sql);
            let results = (&mut **c).fetch_many(query::<DB>(statement, named));
            read::<DB>(results, looks, drop).await.map_err(exec_error)?.map(ExecResult::from)
        }, gone => None);
        match done {
            Some(done) => Ok(done),
            None => Box::pin(self.execute_nothing()).await,
        }
    }

    pub(crate) async fn execute_unprepared(
        &mut self,
        mut sql: String,
    ) -> Result<ExecResult, DbErr> {
        let done = dispatch!(self, DB, c => {
            let looks = looks_first::<DB>(&sql);
            if looks {
                sql.insert_str(0, LOOK);
            }
            let results = (&mut **c).fetch_many(AssertSqlSafe(sql));
            read::<DB>(results, looks, drop).await.map_err(exec_error)?.map(ExecResult::from)
        }, gone => None);
        match done {
            Some(done) => Ok(done),
            None => Box::pin(self.execute_nothing()).await,
        }
    }

    /// The result of a text that seems to have no statement.
    async fn execute_nothing(&mut self) -> Result<ExecResult, DbErr> {
        self.check_worker().await?;
        dispatch!(self, DB, _c => Ok(<DB as sqlx::Database>::QueryResult::default().into()), gone => Err(lost()))
    }

    pub(crate) async fn query_one(
        &mut self,
        statement: &mut Statement,
        named: bool,
        reads_only: bool,
    ) -> Result<Option<QueryResult>, DbErr> {
        let (row, has_ended) = dispatch!(self, DB, c => {
            // An error behind the first row would be lost, and the write with
            // it, behind an `Ok` (G7). Shown by
            // `an_error_after_the_first_row_is_that_statements_error`.
            let is_heard = may_fetch_one::<DB>(statement, reads_only);
            let looks = looks_first::<DB>(&statement.sql);
            let query = query::<DB>(statement, named);
            if is_heard {
                let row = (&mut **c).fetch_optional(query).await.map_err(query_error)?;
                // Of no row, sqlx does not say by what the result has ended.
                (row.map(QueryResult::from), false)
            } else {
                let mut first = None;
                let results = (&mut **c).fetch_many(query);
                let read = read::<DB>(results, looks, |row| _ = first.get_or_insert(row)).await;
                let has_ended = read.map_err(query_error)?.is_some();
                (first.map(QueryResult::from), has_ended)
            }
        }, gone => (None, false));
        if row.is_none() && !has_ended {
            Box::pin(self.check_worker()).await?;
        }
        Ok(row)
    }

    pub(crate) async fn query_all(
        &mut self,
        statement: &mut Statement,
        named: bool,
    ) -> Result<Vec<QueryResult>, DbErr> {
        let mut rows = Vec::new();
        let done: Option<()> = dispatch!(self, DB, c => {
            let looks = looks_first::<DB>(&statement.sql);
            let results = (&mut **c).fetch_many(query::<DB>(statement, named));
            read::<DB>(results, looks, |row| rows.push(row.into())).await.map_err(query_error)?.map(drop)
        }, gone => None);
        if done.is_none() {
            Box::pin(self.check_worker()).await?;
        }
        Ok(rows)
    }

    /// The first row of a text without values, in one round trip even if it was
    /// never sent before.
    pub(crate) async fn query_unprepared(
        &mut self,
        sql: String,
    ) -> Result<Option<QueryResult>, DbErr> {
        dispatch!(self, DB, c => {
            // On MySQL it stops at the first row (H23,
            // <https://github.com/launchbadge/sqlx/pull/2913>): a question has one, and the rest of
            // its answer is drained by the callers.
            let row = (&mut **c).fetch_optional(AssertSqlSafe(sql)).await.map_err(query_error)?;
            Ok(row.map(QueryResult::from))
        }, gone => Err(lost()))
    }

    /// Sends every row to `rows`. Once its reader is gone, the rest is read and
    /// dropped: it may hold the error by which the statement has failed. SQLite
    /// makes no more rows than are read, and a read ends there.
    #[cfg(feature = "stream")]
    pub(crate) async fn stream(
        &mut self,
        statement: &mut Statement,
        rows: &mut super::Rows,
        named: bool,
        reads_only: bool,
    ) -> Result<(), DbErr> {
        let mut has_ended = false;
        dispatch!(self, DB, c => {
            let may_stop = may_stop_early::<DB>(statement, reads_only);
            let mut looks = looks_first::<DB>(&statement.sql);
            let mut results = (&mut **c).fetch_many(query::<DB>(statement, named));
            let mut steps = 0;
            while let Some(step) = results.next().await {
                let step = step.map_err(query_error)?;
                has_ended = step.is_left() && !mem::take(&mut looks);
                let Either::Right(row) = step else { continue };
                if rows.is_gone() || !rows.send(row.into()).await {
                    if may_stop {
                        return Ok(());
                    }
                    steps += 1;
                    breathe(steps).await;
                }
            }
        }, gone => ());
        if !has_ended {
            Box::pin(self.check_worker()).await?;
        }
        Ok(())
    }

    /// Returns whether this connection is seen for the first time, as far as
    /// that is known without asking the server: one that was seen before keeps
    /// a statement prepared by which it is known again.
    #[cfg_attr(not(feature = "sqlx-mysql"), allow(clippy::unused_async))]
    pub(crate) async fn is_new(&mut self) -> Result<bool, DbErr> {
        match self {
            #[cfg(feature = "sqlx-mysql")]
            Self::MySql(c) => {
                let before = c.cached_statements_size();
                let sql = "DO /* tower-sea-orm */ 0".into_sql_str();
                if let Err(error) = (&mut **c).prepare(sql).await.map_err(query_error) {
                    return if crate::error::server::is_fatal(&error) {
                        Err(error)
                    } else {
                        Ok(true)
                    };
                }
                let after = c.cached_statements_size();
                // With a cache of no statements, every connection looks new:
                // then each is set right.
                Ok(after != before || after == 0)
            }
            _ => Ok(false),
        }
    }

    /// Reads what the server has sent for a call that ended early, without
    /// another round trip.
    ///
    /// An error left unread belongs to the call that ended. It is no failure to
    /// reach the end, but may have cost the transaction: the first one is
    /// returned.
    pub(crate) async fn drain(&mut self) -> Result<Option<DbErr>, DbErr> {
        let mut unread = None;
        // Each failing read takes one message, and a call leaves only a few.
        for _ in 0..8 {
            match self.flush().await {
                Ok(()) => return Ok(unread),
                // The server's answer. Any other error says that the protocol
                // is out of order.
                Err(error @ DbErr::Query(_)) => _ = unread.get_or_insert(error),
                Err(error) => return Err(error),
            }
        }
        Err(lost())
    }

    /// Reads what is left, up to an error: the server's own is a `Query`.
    async fn flush(&mut self) -> Result<(), DbErr> {
        let flushed = match self {
            #[cfg(feature = "sqlx-postgres")]
            Self::Postgres(c) => c.flush().await,
            // Boxed: its future is three times as large as the others', and
            // each call would have room for it.
            #[cfg(feature = "sqlx-mysql")]
            Self::MySql(c) => Box::pin(c.flush()).await,
            #[cfg(feature = "sqlx-sqlite")]
            Self::Sqlite(c) => c.flush().await,
            Self::Gone => return Err(lost()),
        };
        #[cfg(feature = "_sqlx")]
        return flushed.map_err(unread_error);
    }

    /// Forgets every prepared statement, here and on the server, and the types
    /// of their values.
    pub(crate) async fn forget_statements(&mut self) -> Result<(), DbErr> {
        dispatch!(self, DB, c => c.clear_cached_statements().await.map_err(connection_error), gone => Err(lost()))
    }

    pub(crate) async fn ping(&mut self) -> Result<(), DbErr> {
        dispatch!(self, DB, c => c.ping().await.map_err(connection_error), gone => Err(lost()))
    }

    /// Gives the connection back to sqlx's pool, through its ping.
    pub(crate) async fn return_to_pool(&mut self) {
        // The future that sqlx's own `Drop` would spawn: the connection is in
        // it, and is closed if it is dropped.
        dispatch!(self, DB, c => c.return_to_pool().await, gone => ());
    }

    /// Has sqlx say goodbye to the server in a task, and free the slot after
    /// that.
    pub(crate) fn close(mut self) {
        dispatch!(&mut self, DB, c => c.close_on_drop(), gone => ());
    }

    /// Frees the slot, and closes the socket without a goodbye.
    pub(crate) fn abandon(self) {
        dispatch!(self, DB, c => drop(c.detach()), gone => ());
    }
}

fn lost() -> DbErr {
    Kind::ConnectionLost.into_db_err()
}
