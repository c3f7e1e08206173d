//! The three sqlx drivers behind one set of calls.
//!
//! Values go in through `sea-query-sqlx`, rows come out through SeaORM's public `From`
//! conversions, and errors are wrapped as SeaORM wraps them.

use futures_util::{StreamExt, stream::BoxStream};
use sea_orm::{DbBackend, DbErr, ExecResult, QueryResult, RuntimeErr, Statement, sqlx};
use sea_orm::{
    sea_query::Values,
    sqlx::{
        AssertSqlSafe, Connection, Either, Executor, SqlSafeStr, SqlStr, pool::PoolConnection,
        query::Query,
    },
};
use sea_query_sqlx::SqlxValues;
use sqlx_core::{database::HasStatementCache, transaction::TransactionManager};
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

/// The end of one statement of a text, or a row.
type Step<DB> = Either<<DB as sqlx::Database>::QueryResult, <DB as sqlx::Database>::Row>;

/// The transaction manager of a database.
type Transactions<DB> = <DB as sqlx::Database>::TransactionManager;

impl Driver {
    pub(crate) async fn execute(
        &mut self,
        statement: Statement,
        named: bool,
    ) -> Result<ExecResult, DbErr> {
        dispatch!(self, DB, c => {
            let results = (&mut **c).fetch_many(query::<DB>(statement, named));
            read::<DB>(results, drop).await.map(ExecResult::from).map_err(exec_error)
        }, gone => Err(lost()))
    }

    pub(crate) async fn execute_unprepared(&mut self, sql: String) -> Result<ExecResult, DbErr> {
        dispatch!(self, DB, c => {
            let results = (&mut **c).fetch_many(AssertSqlSafe(sql));
            read::<DB>(results, drop).await.map(ExecResult::from).map_err(exec_error)
        }, gone => Err(lost()))
    }

    pub(crate) async fn query_one(
        &mut self,
        statement: Statement,
        named: bool,
        reads_only: bool,
    ) -> Result<Option<QueryResult>, DbErr> {
        dispatch!(self, DB, c => {
            let may_stop = may_stop_early::<DB>(&statement, reads_only);
            let query = query::<DB>(statement, named);
            let row = if may_stop {
                (&mut **c).fetch_optional(query).await
            } else {
                let mut first = None;
                let results = (&mut **c).fetch_many(query);
                read::<DB>(results, |row| _ = first.get_or_insert(row)).await.map(|_| first)
            };
            row.map(|row| row.map(QueryResult::from)).map_err(query_error)
        }, gone => Err(lost()))
    }

    pub(crate) async fn query_all(
        &mut self,
        statement: Statement,
        named: bool,
    ) -> Result<Vec<QueryResult>, DbErr> {
        dispatch!(self, DB, c => {
            let mut rows = Vec::new();
            let results = (&mut **c).fetch_many(query::<DB>(statement, named));
            read::<DB>(results, |row| rows.push(row.into())).await.map_err(query_error)?;
            Ok(rows)
        }, gone => Err(lost()))
    }

    /// The first row of a text without values, in one round trip even if it was never sent before.
    pub(crate) async fn query_unprepared(
        &mut self,
        sql: String,
    ) -> Result<Option<QueryResult>, DbErr> {
        dispatch!(self, DB, c => {
            let row = (&mut **c).fetch_optional(AssertSqlSafe(sql)).await.map_err(query_error)?;
            Ok(row.map(QueryResult::from))
        }, gone => Err(lost()))
    }

    /// Sends every row to `rows`. Where nobody listens any more, the rest is read and dropped: it may hold
    /// the error by which the statement has failed. SQLite makes no more rows than are read, and a read
    /// ends there.
    #[cfg(feature = "stream")]
    pub(crate) async fn stream(
        &mut self,
        statement: Statement,
        rows: &mut super::Rows,
        named: bool,
        reads_only: bool,
    ) -> Result<(), DbErr> {
        dispatch!(self, DB, c => {
            let may_stop = may_stop_early::<DB>(&statement, reads_only);
            let mut results = (&mut **c).fetch_many(query::<DB>(statement, named));
            let mut steps = 0;
            while let Some(step) = results.next().await {
                let Either::Right(row) = step.map_err(query_error)? else { continue };
                if rows.is_gone() || !rows.send(row.into()).await {
                    if may_stop {
                        break;
                    }
                    steps += 1;
                    breathe(steps).await;
                }
            }
            Ok(())
        }, gone => Err(lost()))
    }

    /// Whether this connection is seen for the first time, as far as that can be told without asking the
    /// server: one that was seen before keeps a statement prepared by which it is known again.
    #[cfg_attr(not(feature = "sqlx-mysql"), allow(clippy::unused_async))]
    pub(crate) async fn is_new(&mut self) -> Result<bool, DbErr> {
        match self {
            #[cfg(feature = "sqlx-mysql")]
            Self::MySql(c) => {
                let before = c.cached_statements_size();
                match (&mut **c)
                    .prepare("DO /* tower-sea-orm */ 0".into_sql_str())
                    .await
                    .map_err(query_error)
                {
                    Ok(_) => {}
                    Err(error) if is_fatal(&error) => return Err(error),
                    Err(_) => return Ok(true),
                }
                let after = c.cached_statements_size();
                Ok(after != before || after == 0)
            }
            _ => Ok(false),
        }
    }

    /// Whether MySQL has a transaction open that sqlx did not begin; then sqlx counts it from here on.
    pub(crate) async fn adopts_transaction(&mut self) -> Result<bool, DbErr> {
        match self.begin(Some("DO 0".to_owned())).await {
            Ok(()) => Ok(true),
            Err(error) if is_fatal(&error) => Err(error),
            Err(_) => Ok(false),
        }
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

    /// Forgets every prepared statement, here and on the server, and the types of their values.
    pub(crate) async fn forget_statements(&mut self) -> Result<(), DbErr> {
        dispatch!(self, DB, c => c.clear_cached_statements().await.map_err(connection_error), gone => Err(lost()))
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

fn query<DB: sqlx::Database + HasStatementCache>(
    statement: Statement,
    named: bool,
) -> Query<'static, DB, SqlxValues>
where
    SqlxValues: sqlx::IntoArguments<DB>,
{
    sqlx::query_with(AssertSqlSafe(statement.sql), values(statement.values)).persistent(named)
}

/// Reads a result to its end, since a statement may fail after its first row. On MySQL, sqlx itself stops there
/// (<https://github.com/launchbadge/sqlx/pull/2913>).
async fn read<DB: sqlx::Database>(
    mut results: BoxStream<'_, Result<Step<DB>, sqlx::Error>>,
    mut each: impl FnMut(DB::Row),
) -> Result<DB::QueryResult, sqlx::Error> {
    let (mut total, mut steps) = (DB::QueryResult::default(), 0);
    while let Some(step) = results.next().await {
        match step? {
            Either::Left(done) => total.extend([done]),
            Either::Right(row) => each(row),
        }
        steps += 1;
        breathe(steps).await;
    }
    Ok(total)
}

/// Lets others have the thread now and then: as long as the server sends faster than it is read, sqlx
/// does not (<https://github.com/launchbadge/sqlx/issues/2834>), and a time-out that wants the call to end would not be
/// heard.
async fn breathe(steps: usize) {
    if steps.is_multiple_of(64) {
        tokio::task::yield_now().await;
    }
}

/// Whether nothing is lost by not reading all rows: SQLite makes no more rows than are read, and its SELECT writes
/// nothing, whatever is in it. Only a write has to run to its end.
fn may_stop_early<DB: sqlx::Database>(statement: &Statement, reads_only: bool) -> bool {
    let sql = &statement.sql;
    let is_select = || {
        let word = sql.as_bytes().get(.."select ".len());
        word.is_some_and(|word| word.eq_ignore_ascii_case(b"select ")) && !sql.contains(';')
    };
    DB::NAME == "SQLite" && (reads_only || is_select())
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

/// The server has ended a statement, and its answer has not arrived.
pub(crate) fn unanswered() -> DbErr {
    let error = std::io::Error::new(
        std::io::ErrorKind::TimedOut,
        "the server's answer was lost on its way",
    );
    DbErr::Conn(RuntimeErr::SqlxError(Arc::new(sqlx::Error::Io(error))))
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

/// Whether a prepared statement is gone, or does not fit its tables any more.
pub(crate) fn is_stale(error: &DbErr) -> bool {
    Trouble::of(error) == Some(Trouble::StalePlan)
}

/// Whether a stale plan was that of the statement itself, and not of one in a function that it called.
pub(crate) fn has_not_run(error: &DbErr) -> bool {
    #[cfg(feature = "sqlx-postgres")]
    if let DbErr::Exec(RuntimeErr::SqlxError(error)) | DbErr::Query(RuntimeErr::SqlxError(error)) =
        error
    {
        let error = error
            .as_database_error()
            .and_then(|error| error.try_downcast_ref::<sea_orm::SqlxPostgresError>());
        return error.is_some_and(|error| error.r#where().is_none());
    }
    let _ = error;
    false
}

/// Whether the server had closed the connection as idle, and so has never seen what was sent: both servers give
/// that up before they read the next command.
pub(crate) fn came_too_late(error: &DbErr) -> bool {
    Trouble::of(error) == Some(Trouble::IdleEnded)
}

/// Whether Galera takes no writes because the node has no quorum.
pub(crate) fn is_without_quorum(error: &DbErr) -> bool {
    Trouble::of(error) == Some(Trouble::NoQuorum)
}

/// Whether a write was refused because of a server or transaction that takes none.
pub(crate) fn is_read_only(error: &DbErr) -> bool {
    Trouble::of(error) == Some(Trouble::ReadOnly)
}

/// Whether PostgreSQL refused a statement because an earlier one had failed.
pub(crate) fn is_aborted(error: &DbErr) -> bool {
    Trouble::of(error) == Some(Trouble::TransactionAborted)
}

/// Whether the open transaction is certain to have survived this error. What is missing here costs a
/// round trip, with which the server is asked.
pub(crate) fn is_harmless(error: &DbErr) -> bool {
    !is_servers(error) || Trouble::of(error) == Some(Trouble::StatementRefused)
}

/// Whether the server refuses to begin, or to change, a transaction because one is open.
pub(crate) fn is_within_transaction(error: &DbErr) -> bool {
    Trouble::of(error) == Some(Trouble::TransactionOpen)
}

fn is_servers(error: &DbErr) -> bool {
    matches!(
        error,
        DbErr::Exec(RuntimeErr::SqlxError(error)) | DbErr::Query(RuntimeErr::SqlxError(error))
            if error.as_database_error().is_some()
    )
}

/// Whether the server has given up the open transaction, or a part of it, with this error.
pub(crate) fn aborts(backend: DbBackend, error: &DbErr) -> bool {
    match backend {
        // Every error of the server, until a rollback to a savepoint from before.
        DbBackend::Postgres => is_servers(error),
        // The whole transaction is gone, and what follows would autocommit.
        DbBackend::MySql => {
            let ends = [
                Trouble::Serialization,
                Trouble::Deadlock,
                Trouble::TransactionEnded,
            ];
            Trouble::of(error).is_some_and(|trouble| ends.contains(&trouble))
        }
        _ => Trouble::of(error) == Some(Trouble::TransactionEnded),
    }
}
