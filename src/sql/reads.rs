//! [`ReadReader`]: whether a text only reads, so that nothing is lost if the server stops half-way.

use super::lexer::{Lexer, Token, is_one_of};

/// First words of statements that read, unless something in them writes.
const READS: [&str; 8] = [
    "select", "values", "table", "with", "show", "describe", "desc", "explain",
];

/// Words, by their first letter, that make a statement more than a read,
/// wherever they stand: a column of such a name costs the statement no more
/// than its being finished.
pub(super) fn words_of_writes(first_letter: u8) -> &'static [&'static str] {
    match first_letter.to_ascii_lowercase() {
        // EXPLAIN with these runs the statement.
        b'a' => &["analyze", "analyse"],
        b'c' => &["call"],
        // These run SQL on another server, outside this transaction
        // (<https://www.postgresql.org/docs/current/dblink.html>).
        b'd' => &["delete", "dblink", "dblink_exec"],
        // SELECT … INTO makes a table on PostgreSQL, and a file or a variable
        // on MySQL.
        b'i' => &["insert", "into"],
        // With `share`, a locking read.
        b'l' => &["lock"],
        b'm' => &["merge"],
        // A sequence is never set back
        // (<https://www.postgresql.org/docs/current/functions-sequence.html>).
        b'n' => &["nextval"],
        // NOTIFY as a function
        // (<https://www.postgresql.org/docs/current/sql-notify.html>).
        b'p' => &["procedure", "pg_notify"],
        b'r' => &["replace"],
        b's' => &["share", "setval"],
        b'u' => &["update"],
        _ => &[],
    }
}

/// Reads one text to its end.
#[derive(Debug, Clone, Copy, Default)]
pub(super) enum ReadReader {
    /// Before the first word.
    #[default]
    Start,
    /// In a statement that has only read so far.
    Reading,
    /// Behind its `;`.
    Ended,
    /// It may write, or another statement follows.
    Writing,
}

impl ReadReader {
    pub(super) fn see(&mut self, token: Token<'_>, rest: Lexer<'_>) {
        *self = match (*self, token) {
            // `(SELECT …) UNION …` begins so.
            (Self::Start, Token::Symbol(b'(')) => Self::Start,
            // Unknown first words write: a read that is not stopped costs time,
            // a write that is stopped half-way in autocommit costs data (G9).
            (Self::Start, first) if first.is_one_of(&READS) => Self::Reading,
            (Self::Reading, Token::Symbol(b';')) => Self::Ended,
            // Some servers run what is in the comment.
            (Self::Reading, Token::Seam) => Self::Writing,
            (Self::Reading, Token::Word(word)) if is_write(word) && !is_function(word, rest) => {
                Self::Writing
            }
            (Self::Reading, _) => Self::Reading,
            // Also a second statement: stopped between the two, the first one
            // stands.
            _ => Self::Writing,
        };
    }

    pub(super) fn reads_only(self) -> bool {
        matches!(self, Self::Reading | Self::Ended)
    }
}

fn is_write(word: &str) -> bool {
    // By its first letter: this is asked for every word of a query.
    let first = word.bytes().next().unwrap_or_default();
    is_one_of(word, words_of_writes(first))
}

/// Returns whether it is `replace(...)` or MySQL's `insert(...)`, which work on
/// strings.
fn is_function(word: &str, rest: Lexer<'_>) -> bool {
    is_one_of(word, &["insert", "replace"]) && rest.peek() == Some(Token::Symbol(b'('))
}
