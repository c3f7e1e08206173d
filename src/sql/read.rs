//! Whether a text only reads, so that nothing is lost if the server stops half-way.

use sea_orm::DbBackend;

use super::{
    lexer::{Lexer, Token},
    words::is_one_of,
};

/// First words of statements that read, unless something in them writes.
const READS: [&str; 8] = [
    "select", "values", "table", "with", "show", "describe", "desc", "explain",
];

/// Words that make a statement more than a read, wherever they stand: a column of such a name costs
/// the statement no more than its being finished.
const WRITES: [&str; 17] = [
    "insert",
    "update",
    "delete",
    "merge",
    "replace",
    "into",
    // Locking reads.
    "share",
    "lock",
    "call",
    "procedure",
    // EXPLAIN with these runs the statement.
    "analyze",
    "analyse",
    // Functions.
    "nextval",
    "setval",
    "pg_notify",
    "dblink",
    "dblink_exec",
];

/// Whether `sql` is one statement that only reads; in doubt it is not.
pub(crate) fn is_read(backend: DbBackend, sql: &str) -> bool {
    let mut lexer = Lexer::new(backend, sql);
    let first = lexer.find(|token| *token != Token::Symbol(b'('));
    if !matches!(first, Some(Token::Word(word)) if is_one_of(word, &READS)) {
        return false;
    }
    while let Some(token) = lexer.next() {
        match token {
            Token::Seam => return false,
            Token::Symbol(b';') if lexer.next().is_some() => return false,
            Token::Word(word) if is_one_of(word, &WRITES) && !is_function(word, &lexer) => {
                return false;
            }
            _ => {}
        }
    }
    !lexer.is_doubtful()
}

/// Whether SQLite may stop `sql` after any row: nothing is lost by that.
#[cfg_attr(not(feature = "_sqlx"), allow(dead_code))] // a statement needs a driver
pub(crate) fn is_sqlite_read(sql: &str) -> bool {
    // A SELECT writes nothing there, whatever is in it.
    let word = sql.as_bytes().get(.."select ".len());
    let is_select =
        word.is_some_and(|word| word.eq_ignore_ascii_case(b"select ")) && !sql.contains(';');
    is_select || is_read(DbBackend::Sqlite, sql)
}

/// `replace(...)` and MySQL's `insert(...)` work on strings.
fn is_function(word: &str, rest: &Lexer<'_>) -> bool {
    is_one_of(word, &["insert", "replace"]) && rest.peek() == Some(Token::Symbol(b'('))
}
