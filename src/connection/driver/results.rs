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
    let looks = looks_first::<DB>(&statement.sql);
    let (mut sql, values) = (mem::take(&mut statement.sql), statement.values.take());
    if looks {
        sql.insert_str(0, LOOK);
    }
    sqlx::query_with(AssertSqlSafe(sql), to_sqlx(values)).persistent(named && !looks)
}

const SQLITE: &str = "SQLite";

/// Has SQLite look whether the schema has changed, that of any attached
/// database as well. It has no row, and locks no table.
pub(super) const LOOK: &str = "PRAGMA table_info(''); ";

/// Returns whether a text has other columns if a table has, and so has the
/// [`LOOK`] before it.
///
/// SQLite prepares a statement by the schema that it knows, and once more when
/// it runs it and finds that changed. sqlx goes on with the columns that it had
/// before, under their old names, and its thread panics at a row with more of
/// them. So SQLite has to know the schema first, and sqlx must not keep such a
/// statement (`g7_a_changed_schema_is_seen_by_every_way_to_read_on_sqlite`).
pub(super) fn looks_first<DB: sqlx::Database>(sql: &str) -> bool {
    // An asterisk in a product or a comment counts as well, which costs some
    // microseconds. SeaORM names all columns.
    let is_all = |(at, asterisk): (usize, &str)| {
        let is_count = sql[..at].ends_with('(') && sql[at + asterisk.len()..].starts_with(')');
        !is_count
    };
    DB::NAME == SQLITE && sql.match_indices('*').any(is_all)
}

/// Reads a result to its end, since a statement may fail after its first row.
/// On MySQL, sqlx itself stops there
/// (<https://github.com/launchbadge/sqlx/pull/2913>).
///
/// If it begins with a [look](LOOK), that is left out. Returns `None` if
/// nothing came at all: on SQLite, the thread that makes the
/// result may have died.
pub(super) async fn read<DB: sqlx::Database>(
    mut results: BoxStream<'_, Result<Step<DB>, sqlx::Error>>,
    mut looks: bool,
    mut each: impl FnMut(DB::Row),
) -> Result<Option<DB::QueryResult>, sqlx::Error> {
    let (mut total, mut steps) = (DB::QueryResult::default(), 0);
    let mut has_ended = false;
    while let Some(step) = results.next().await {
        let step = step?;
        if mem::take(&mut looks) {
            // The end of the look. Its count would be that of an earlier
            // statement.
            continue;
        }
        has_ended = step.is_left();
        match step {
            Either::Left(done) => total.extend([done]),
            Either::Right(row) => each(row),
        }
        steps += 1;
        breathe(steps).await;
    }
    // Behind its rows, each statement of SQLite's says that it is done.
    if DB::NAME == SQLITE && steps > 0 && !has_ended {
        return Err(sqlx::Error::WorkerCrashed);
    }
    Ok((steps > 0).then_some(total))
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
    DB::NAME == SQLITE && (reads_only || is_select())
}

/// Returns whether sqlx's `fetch_optional` may read the first row, which spares
/// the channel of a stream. On PostgreSQL, it reads on behind that, for the
/// errors of deferred constraints; but it would [not breathe](breathe) in a
/// long result. On SQLite, it says of no row only that none came: one that is
/// asked for at most can be read to its end as well.
pub(super) fn may_fetch_one<DB: sqlx::Database>(statement: &Statement, reads_only: bool) -> bool {
    match DB::NAME {
        "PostgreSQL" => is_single_row(statement, '$'),
        SQLITE => may_stop_early::<DB>(statement, reads_only) && !is_single_row(statement, '?'),
        _ => false,
    }
}

/// Returns whether one row is asked for at most, as by SeaORM's `one`.
fn is_single_row(statement: &Statement, placeholder: char) -> bool {
    let Some(Values(values)) = &statement.values else {
        return false;
    };
    // From the end, where it stands: a search through the text would cost more
    // than all else that is asked here.
    let digits = |c: char| c.is_ascii_digit();
    let text = statement.sql.trim_end_matches(digits);
    let number = &statement.sql[text.len()..];
    let is_last = number.is_empty() && placeholder == '?' || number.parse() == Ok(values.len());
    // A limit that ends the text is that of the whole statement. SeaORM binds
    // the limit of `one` as an unsigned number.
    matches!(values.last(), Some(Value::BigUnsigned(Some(1))))
        && is_last
        && text
            .strip_suffix(placeholder)
            .is_some_and(|text| text.ends_with(" LIMIT "))
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
