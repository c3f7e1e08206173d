//! What a text of SQL may do to the transaction around it.
//!
//! A session keeps the count of its transactions; SQL that begins or ends one behind its back is found
//! here, before it is sent. Not a parser: statements are told apart, and each is judged by its first words.
//! The quoting is read as the servers do by default. Whoever switches to MySQL's `NO_BACKSLASH_ESCAPES` or
//! `ANSI_QUOTES`, or switches off PostgreSQL's `standard_conforming_strings`, can write texts that read differently.

mod lexer;
mod locks;
mod mysql;
mod postgres;
mod read;
mod redact;
mod sqlite;
mod state;
#[cfg(test)]
mod steps;
#[cfg(test)]
mod tests;

use sea_orm::DbBackend;

use self::lexer::{Lexer, Token};
#[cfg(feature = "_sqlx")]
pub(crate) use self::read::is_sqlite_read;
pub(crate) use self::{
    locks::needs_transaction,
    read::is_read,
    redact::Redacted,
    state::{Change, change},
};

/// What a text of SQL may do to the transaction around it; the worst of its statements counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Effect {
    /// None of its statements touches transactions.
    None,
    /// It cannot be told: stored code or an unknown statement of MySQL, a text that ends inside of a quote.
    Unknown,
    /// A statement that commits what came before by itself (MySQL, MariaDB only).
    CommitsImplicitly,
    /// Transaction control, to be refused always.
    Control(Control),
}

/// What a statement asks for that is the session's to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Control {
    Begin,
    Commit,
    Rollback,
    /// To set one, to roll back to it or to release it.
    Savepoint,
    /// The next transaction's properties, or whether statements have one of their own.
    SetTransaction,
    /// A transaction that outlives the connection.
    TwoPhase,
}

/// What `sql` may do to the transaction around it, without allocating, in time linear in its length.
pub(crate) fn effect(backend: DbBackend, sql: &str) -> Effect {
    if is_plain(backend, sql) {
        return Effect::None;
    }
    let mut lexer = Lexer::new(backend, sql);
    let found = match backend {
        DbBackend::MySql => mysql::effect(&mut lexer),
        DbBackend::Postgres => postgres::effect(&mut lexer),
        DbBackend::Sqlite => sqlite::effect(&mut lexer),
        _ => Effect::Unknown,
    };
    if lexer.is_doubtful() {
        found.max(Effect::Unknown)
    } else {
        found
    }
}

/// Whether `sql` is one statement of the kind that nearly all are.
fn is_plain(backend: DbBackend, sql: &str) -> bool {
    let sql = sql
        .trim_ascii_start()
        .trim_end_matches(|c: char| c == ';' || c.is_ascii_whitespace());
    let end = sql
        .bytes()
        .position(|byte| !byte.is_ascii_alphabetic())
        .unwrap_or(sql.len());
    let (word, rest) = sql.split_at(end);
    if !is_one_of(
        word,
        &["select", "insert", "update", "delete", "with", "values"],
    ) {
        return false;
    }
    if rest.contains(';') {
        return false;
    }
    // `/*!` and `/*M!` hold SQL.
    backend != DbBackend::MySql
        || !rest.contains('!')
        || !(rest.contains("/*!") || rest.contains("/*M!"))
}

fn is_one_of(word: &str, words: &[&str]) -> bool {
    words.iter().any(|known| known.eq_ignore_ascii_case(word))
}

/// The first word of the next statement, if there is one; what begins otherwise is passed over.
fn first_word<'a>(lexer: &mut Lexer<'a>) -> Option<&'a str> {
    loop {
        match lexer.next()? {
            Token::Word(word) if !word.is_empty() => return Some(word),
            Token::Word(_) | Token::Symbol(b';' | b'(') => {}
            _ => lexer.skip_statement(),
        }
    }
}

/// Whether a `ROLLBACK`, of which `lexer` has the rest, is one to a savepoint.
fn is_to_savepoint(mut lexer: Lexer<'_>) -> bool {
    // In between may be WORK or, on SQLite, TRANSACTION and a name.
    lexer
        .by_ref()
        .take(3)
        .take_while(|token| *token != Token::Symbol(b';'))
        .any(|token| token.is_word("to"))
}
