//! BEGIN, COMMIT and ROLLBACK, by sqlx's own count.

#[cfg(feature = "_sqlx")]
use futures_util::StreamExt;
use sea_orm::DbErr;
#[cfg(feature = "_sqlx")]
use sea_orm::sqlx::{self, AssertSqlSafe, Either, Executor, Row, SqlSafeStr};
#[cfg(feature = "_sqlx")]
use sqlx_core::transaction::TransactionManager;

#[cfg(feature = "_sqlx")]
use super::results::query_error;
use super::{Driver, dispatch, lost};

/// The transaction manager of a database.
#[cfg(feature = "_sqlx")]
// Below sqlx's `Transaction`, which would borrow the connection: here it is
// owned, and moves (G5).
type Transactions<DB> = <DB as sqlx::Database>::TransactionManager;

#[cfg_attr(
    not(feature = "_sqlx"),
    allow(unused_variables, unused_mut, reason = "nothing but `Gone` is left")
)]
impl Driver {
    /// Runs a text, and returns how many of its statements have succeeded, with
    /// the error of the one behind them.
    pub(crate) async fn count_answers(&mut self, sql: String) -> (usize, Result<(), DbErr>) {
        dispatch!(self, DB, c => {
            let mut answers = (&mut **c).fetch_many(AssertSqlSafe(sql));
            let mut count = 0;
            while let Some(answer) = answers.next().await {
                match answer {
                    Ok(answer) => count += usize::from(answer.is_left()),
                    Err(error) => return (count, Err(query_error(error))),
                }
            }
            (count, Ok(()))
        }, gone => (0, Err(lost())))
    }

    /// Opens a transaction with `statement` (`BEGIN` if none), or a savepoint
    /// inside one.
    pub(crate) async fn begin(&mut self, statement: Option<String>) -> Result<(), DbErr> {
        dispatch!(self, DB, c => {
            let statement = statement.map(|sql| AssertSqlSafe(sql).into_sql_str());
            // By sqlx's own, whatever the text: its ROLLBACK and its pool go by
            // its count of transactions.
            Transactions::<DB>::begin(c, statement).await.map_err(query_error)
        }, gone => Err(lost()))
    }

    /// Returns whether a COMMIT and the BEGIN behind it may travel together.
    /// That costs SQLite no round trip. Until PostgreSQL 15, a NOTIFY was held
    /// back until its connection was outside of any transaction.
    pub(crate) fn may_chain(&self) -> bool {
        match self {
            #[cfg(feature = "sqlx-postgres")]
            Self::Postgres(c) => c.server_version_num() >= Some(150_000),
            #[cfg(feature = "sqlx-mysql")]
            Self::MySql(_) => true,
            _ => false,
        }
    }

    /// Commits, and has the server run `behind` in the same round trip: sqlx's
    /// count stays where it is. Returns the first value of the last row. The
    /// inner error is that of `behind`, after a COMMIT that has succeeded.
    pub(crate) async fn commit_with(
        &mut self,
        behind: &str,
    ) -> Result<Result<Option<String>, DbErr>, DbErr> {
        dispatch!(self, DB, c => {
            let mut answers = (&mut **c).fetch_many(AssertSqlSafe(format!("COMMIT; {behind}")));
            // Each statement has its answer, and the server does not run what
            // comes behind one that has failed: an error in the first answer is
            // COMMIT's, any later one is not.
            match answers.next().await {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(query_error(error)),
                None => return Err(lost()),
            }
            let mut value = None;
            while let Some(answer) = answers.next().await {
                match answer {
                    Ok(Either::Right(row)) => value = row.try_get(0).ok(),
                    Ok(Either::Left(_)) => {}
                    Err(error) => return Ok(Err(query_error(error))),
                }
            }
            Ok(Ok(value))
        }, gone => Err(lost()))
    }

    pub(crate) async fn commit(&mut self) -> Result<(), DbErr> {
        dispatch!(self, DB, c => Transactions::<DB>::commit(c).await.map_err(query_error), gone => Err(lost()))
    }

    pub(crate) async fn rollback(&mut self) -> Result<(), DbErr> {
        dispatch!(self, DB, c => Transactions::<DB>::rollback(c).await.map_err(query_error), gone => Err(lost()))
    }

    /// The number of transactions (the outermost and its savepoints) that are
    /// open by sqlx's count.
    pub(crate) fn depth(&self) -> usize {
        dispatch!(self, DB, c => Transactions::<DB>::get_transaction_depth(c), gone => 0)
    }
}
