//! The three sqlx drivers behind one set of calls.
//!
//! Values go in through `sea-query-sqlx`, rows come out through SeaORM's public `From`
//! conversions, and errors are wrapped as SeaORM wraps them.

use futures_util::StreamExt;
use sea_orm::{DbBackend, DbErr, ExecResult, QueryResult, RuntimeErr, Statement, sqlx};
use sea_orm::{
    sea_query::Values,
    sqlx::{AssertSqlSafe, Connection, Executor, SqlSafeStr, SqlStr, pool::PoolConnection},
};
use sea_query_sqlx::SqlxValues;
use sqlx_core::transaction::TransactionManager;
use std::sync::Arc;

use crate::error::{Kind, Trouble, ends_connection};

/// A connection checked out of one of sqlx's pools.
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

/// Runs `$body` with `$c` bound to the driver's own connection and `$DB` to its database type.
macro_rules! dispatch {
    ($driver:expr, $DB:ident, $c:ident => $body:expr, gone => $gone:expr) => {
        match $driver {
            #[cfg(feature = "sqlx-postgres")]
            Driver::Postgres($c) => {
                #[allow(dead_code)]
                type $DB = sqlx::Postgres;
                $body
            }
            #[cfg(feature = "sqlx-mysql")]
            Driver::MySql($c) => {
                #[allow(dead_code)]
                type $DB = sqlx::MySql;
                $body
            }
            #[cfg(feature = "sqlx-sqlite")]
            Driver::Sqlite($c) => {
                #[allow(dead_code)]
                type $DB = sqlx::Sqlite;
                $body
            }
            Driver::Gone => $gone,
        }
    };
}

/// The transaction manager of a database.
type Transactions<DB> = <DB as sqlx::Database>::TransactionManager;

impl Driver {
    pub(crate) async fn execute(&mut self, statement: Statement, named: bool) -> Result<ExecResult, DbErr> {
        dispatch!(self, DB, c => {
            let query = sqlx::query_with::<DB, _>(AssertSqlSafe(statement.sql), values(statement.values)).persistent(named);
            query.execute(&mut **c).await.map(ExecResult::from).map_err(exec_error)
        }, gone => Err(lost()))
    }

    pub(crate) async fn execute_unprepared(&mut self, sql: String) -> Result<ExecResult, DbErr> {
        dispatch!(self, DB, c => {
            (&mut **c).execute(AssertSqlSafe(sql)).await.map(ExecResult::from).map_err(exec_error)
        }, gone => Err(lost()))
    }

    pub(crate) async fn query_one(&mut self, statement: Statement, named: bool) -> Result<Option<QueryResult>, DbErr> {
        dispatch!(self, DB, c => {
            let query = sqlx::query_with::<DB, _>(AssertSqlSafe(statement.sql), values(statement.values)).persistent(named);
            match query.fetch_one(&mut **c).await {
                Ok(row) => Ok(Some(QueryResult::from(row))),
                Err(sqlx::Error::RowNotFound) => Ok(None),
                Err(error) => Err(query_error(error)),
            }
        }, gone => Err(lost()))
    }

    pub(crate) async fn query_all(&mut self, statement: Statement, named: bool) -> Result<Vec<QueryResult>, DbErr> {
        dispatch!(self, DB, c => {
            let query = sqlx::query_with::<DB, _>(AssertSqlSafe(statement.sql), values(statement.values)).persistent(named);
            let (mut results, mut rows) = (query.fetch(&mut **c), Vec::new());
            while let Some(row) = results.next().await {
                rows.push(QueryResult::from(row.map_err(query_error)?));
                breathe(rows.len()).await;
            }
            Ok(rows)
        }, gone => Err(lost()))
    }

    /// The first row of a text without values, in one round trip even if it was never sent before.
    pub(crate) async fn query_unprepared(&mut self, sql: String) -> Result<Option<QueryResult>, DbErr> {
        dispatch!(self, DB, c => {
            let row = (&mut **c).fetch_optional(AssertSqlSafe(sql)).await.map_err(query_error)?;
            Ok(row.map(QueryResult::from))
        }, gone => Err(lost()))
    }

    /// Sends every row to `rows` until the result ends or nobody listens any more. Then it `reads_on` if
    /// the server may be told to stop meanwhile; that is slower than a drain.
    #[cfg(feature = "stream")]
    pub(crate) async fn stream(
        &mut self,
        statement: Statement,
        rows: &super::Rows,
        named: bool,
        reads_on: bool,
    ) -> Result<(), DbErr> {
        dispatch!(self, DB, c => {
            let query = sqlx::query_with::<DB, _>(AssertSqlSafe(statement.sql), values(statement.values)).persistent(named);
            let mut results = query.fetch(&mut **c);
            let mut unheard = 0;
            while let Some(row) = results.next().await {
                let row = row.map_err(query_error)?;
                if unheard > 0 || !rows.send(row.into()).await {
                    if !reads_on || <DB as sqlx::Database>::NAME == "SQLite" {
                        // SQLite makes no more rows than are read, and a drain skips them.
                        break;
                    }
                    unheard += 1;
                    breathe(unheard).await;
                }
            }
            Ok(())
        }, gone => Err(lost()))
    }

    /// Reads what the server has sent for a call that ended early, without a round trip of its own.
    ///
    /// An error left unread belongs to the call that ended. It is no failure to reach the end, but may
    /// have cost the transaction: the first one is returned.
    pub(crate) async fn drain(&mut self) -> Result<Option<DbErr>, DbErr> {
        let mut unread = None;
        // Each failing read takes one message, and a call leaves only a few.
        for _ in 0..8 {
            let drained = dispatch!(self, DB, c => c.flush().await, gone => return Err(lost()));
            match drained {
                Ok(()) => return Ok(unread),
                Err(error @ sqlx::Error::Database(_)) => {
                    unread.get_or_insert_with(|| query_error(error));
                }
                Err(error) => return Err(connection_error(error)),
            }
        }
        Err(lost())
    }

    pub(crate) async fn ping(&mut self) -> Result<(), DbErr> {
        dispatch!(self, DB, c => c.ping().await.map_err(connection_error), gone => Err(lost()))
    }

    /// Opens a transaction with `statement` (`BEGIN` if none), or a savepoint inside of one.
    pub(crate) async fn begin(&mut self, statement: Option<String>) -> Result<(), DbErr> {
        let statement: Option<SqlStr> = statement.map(|sql| AssertSqlSafe(sql).into_sql_str());
        dispatch!(self, DB, c => Transactions::<DB>::begin(c, statement).await.map_err(query_error), gone => Err(lost()))
    }

    pub(crate) async fn commit(&mut self) -> Result<(), DbErr> {
        dispatch!(self, DB, c => Transactions::<DB>::commit(c).await.map_err(query_error), gone => Err(lost()))
    }

    pub(crate) async fn rollback(&mut self) -> Result<(), DbErr> {
        dispatch!(self, DB, c => Transactions::<DB>::rollback(c).await.map_err(query_error), gone => Err(lost()))
    }

    /// How many transactions (the outermost and its savepoints) are open by sqlx's count.
    pub(crate) fn depth(&self) -> usize {
        dispatch!(self, DB, c => Transactions::<DB>::get_transaction_depth(c), gone => 0)
    }

    /// Gives the connection back to sqlx's pool, through its ping.
    pub(crate) async fn return_to_pool(&mut self) {
        dispatch!(self, DB, c => c.return_to_pool().await, gone => ());
    }

    /// Has sqlx close the connection and free its slot when this value is dropped.
    pub(crate) fn close_on_drop(&mut self) {
        dispatch!(self, DB, c => c.close_on_drop(), gone => ());
    }
}

/// Lets others have the thread now and then: as long as the server sends faster than it is read, sqlx
/// does not, and whoever wants the call to end would not be heard.
async fn breathe(rows: usize) {
    if rows.is_multiple_of(256) {
        tokio::task::yield_now().await;
    }
}

fn values(values: Option<Values>) -> SqlxValues {
    SqlxValues(values.unwrap_or_else(|| Values(Vec::new())))
}

fn exec_error(error: sqlx::Error) -> DbErr {
    DbErr::Exec(RuntimeErr::SqlxError(Arc::new(error)))
}

fn query_error(error: sqlx::Error) -> DbErr {
    DbErr::Query(RuntimeErr::SqlxError(Arc::new(error)))
}

fn connection_error(error: sqlx::Error) -> DbErr {
    DbErr::Conn(RuntimeErr::SqlxError(Arc::new(error)))
}

fn lost() -> DbErr {
    Kind::ConnectionLost.into_db_err()
}

/// Whether an error says that the connection itself can no longer be used.
///
/// What the server or the conversion of a value said leaves the protocol in order; everything
/// else, an error of input and output above all, does not.
pub(crate) fn is_fatal(error: &DbErr) -> bool {
    let (DbErr::Conn(RuntimeErr::SqlxError(error))
    | DbErr::Exec(RuntimeErr::SqlxError(error))
    | DbErr::Query(RuntimeErr::SqlxError(error))) = error
    else {
        return false;
    };
    if let sqlx::Error::Database(error) = &**error {
        return ends_connection(&**error);
    }
    !matches!(
        **error,
        sqlx::Error::RowNotFound
            | sqlx::Error::Encode(_)
            | sqlx::Error::Decode(_)
            | sqlx::Error::ColumnDecode { .. }
            | sqlx::Error::TypeNotFound { .. }
            | sqlx::Error::ColumnNotFound(_)
            | sqlx::Error::InvalidSavePointStatement
            | sqlx::Error::BeginFailed
    )
}

/// Whether PostgreSQL refused a statement because an earlier one had failed.
pub(crate) fn is_aborted(error: &DbErr) -> bool {
    Trouble::of(error) == Some(Trouble::TransactionAborted)
}

/// Whether a statement did not get a lock in time.
pub(crate) fn is_lock_timeout(error: &DbErr) -> bool {
    Trouble::of(error) == Some(Trouble::LockNotAvailable)
}

/// Whether the server has given up the open transaction, or a part of it, with this error.
pub(crate) fn aborts(backend: DbBackend, error: &DbErr) -> bool {
    match backend {
        // Every error of the server, until a rollback to a savepoint from before.
        DbBackend::Postgres => matches!(
            error,
            DbErr::Exec(RuntimeErr::SqlxError(error)) | DbErr::Query(RuntimeErr::SqlxError(error))
                if error.as_database_error().is_some()
        ),
        // The whole transaction is gone, and what follows would autocommit.
        DbBackend::MySql => {
            let ends = [Trouble::Serialization, Trouble::Deadlock, Trouble::TransactionEnded];
            Trouble::of(error).is_some_and(|trouble| ends.contains(&trouble))
        }
        _ => Trouble::of(error) == Some(Trouble::TransactionEnded),
    }
}
