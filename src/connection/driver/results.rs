//! Statements into sqlx, and results and errors out of it.
//!
//! Values go in through `sea-query-sqlx`, rows come out through SeaORM's public
//! `From` conversions, and errors are wrapped as SeaORM wraps them.

use std::{mem, sync::Arc};

use futures_util::{StreamExt, stream::BoxStream};
use sea_orm::{
    DbErr, RuntimeErr, Statement, Value,
    sea_query::Values,
    sqlx::{self, AssertSqlSafe, Either, query::Query},
};
use sea_query_sqlx::SqlxValues;
use sqlx_core::database::HasStatementCache;

/// The end of one statement of a text, or a row.
type Step<DB> = Either<<DB as sqlx::Database>::QueryResult, <DB as sqlx::Database>::Row>;

/// Makes a query of the text and the values of `statement`, and leaves it
/// empty.
// By reference, since the future of a call would have room for each place to
// which a statement is moved.
pub(super) fn query<DB: sqlx::Database + HasStatementCache>(
    statement: &mut Statement,
    named: bool,
) -> Query<'static, DB, SqlxValues>
where
    SqlxValues: sqlx::IntoArguments<DB>,
{
    // One that is not persistent has no name on the server, where another
    // client of a proxy may have taken it
    // (https://github.com/launchbadge/sqlx/issues/67).
    let (sql, values) = (mem::take(&mut statement.sql), statement.values.take());
    sqlx::query_with(AssertSqlSafe(sql), to_sqlx(values)).persistent(named)
}

/// Reads a result to its end, since a statement may fail after its first row.
/// On MySQL, sqlx itself stops there
/// (<https://github.com/launchbadge/sqlx/pull/2913>).
pub(super) async fn read<DB: sqlx::Database>(
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

/// Lets others have the thread now and then: as long as the server sends faster
/// than it is read, sqlx does not
/// (<https://github.com/launchbadge/sqlx/issues/2834>), and a time-out that
/// wants the call to end would not be heard.
pub(super) async fn breathe(steps: usize) {
    if steps.is_multiple_of(64) {
        tokio::task::yield_now().await;
    }
}

/// Returns whether nothing is lost by not reading all rows: SQLite makes no
/// more rows than are read, and its SELECT writes nothing, whatever is in it.
/// Only a write has to run to its end.
pub(super) fn may_stop_early<DB: sqlx::Database>(statement: &Statement, reads_only: bool) -> bool {
    let sql = &statement.sql;
    let is_select = || {
        let word = sql.as_bytes().get(.."select ".len());
        word.is_some_and(|word| word.eq_ignore_ascii_case(b"select ")) && !sql.contains(';')
    };
    // The others send all rows anyway, and an error may come last (H23).
    DB::NAME == "SQLite" && (reads_only || is_select())
}

/// Returns whether PostgreSQL is asked for one row at most, as by SeaORM's
/// `one`. There, sqlx's `fetch_optional` reads on behind the first row, for the
/// errors of deferred constraints, and spares the channel of a stream; but it
/// would [not breathe](breathe) in a long result.
pub(super) fn is_single_row<DB: sqlx::Database>(statement: &Statement) -> bool {
    let Some(Values(values)) = statement
        .values
        .as_ref()
        .filter(|_| DB::NAME == "PostgreSQL")
    else {
        return false;
    };
    // From the end, where it stands: a search through the text would cost more
    // than all else that is asked here.
    let digits = |c: char| c.is_ascii_digit();
    let text = statement.sql.trim_end_matches(digits);
    let number = statement.sql[text.len()..].parse();
    // A limit that ends the text is that of the whole statement. SeaORM binds
    // the limit of `one` as an unsigned number.
    matches!(values.last(), Some(Value::BigUnsigned(Some(1))))
        && text.ends_with(" LIMIT $")
        && number == Ok(values.len())
}

fn to_sqlx(values: Option<Values>) -> SqlxValues {
    SqlxValues(values.unwrap_or_else(|| Values(Vec::new())))
}

pub(super) fn exec_error(error: sqlx::Error) -> DbErr {
    DbErr::Exec(RuntimeErr::SqlxError(Arc::new(error)))
}

pub(super) fn query_error(error: sqlx::Error) -> DbErr {
    DbErr::Query(RuntimeErr::SqlxError(Arc::new(error)))
}

/// An error that was left unread. The server's own belongs to a statement; any
/// other says that the protocol is out of order.
pub(super) fn unread_error(error: sqlx::Error) -> DbErr {
    match error {
        sqlx::Error::Database(_) => query_error(error),
        _ => connection_error(error),
    }
}

pub(super) fn connection_error(error: sqlx::Error) -> DbErr {
    DbErr::Conn(RuntimeErr::SqlxError(Arc::new(error)))
}
