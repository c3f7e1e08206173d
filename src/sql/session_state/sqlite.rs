//! SQLite: temporary objects and attached databases can be put back, PRAGMAs
//! cannot.

use crate::sql::{
    classified::Change,
    lexer::{Lexer, Token, is_one_of},
};

/// First words of statements that leave nothing behind but data, unless a word
/// inside says otherwise.
#[rustfmt::skip]
const HARMLESS: [&str; 19] = [
    "select", "insert", "update", "delete", "replace", "with", "values", "create", "drop",
    "alter", "analyze", "reindex", "vacuum", "begin", "commit", "end", "rollback", "savepoint",
    "release",
];

/// PRAGMAs that only report something, or work on the file, whatever their
/// argument.
#[rustfmt::skip]
// By <https://sqlite.org/pragma.html>. One that is missing here costs a
// connection, one too many leaks a setting (G13).
const TELLING: [&str; 20] = [
    "table_info", "table_xinfo", "table_list", "index_list", "index_info", "index_xinfo",
    "foreign_key_list", "foreign_key_check", "database_list", "collation_list", "function_list",
    "module_list", "pragma_list", "compile_options", "integrity_check", "quick_check",
    "optimize", "wal_checkpoint", "incremental_vacuum", "user_version",
];

/// The change that a statement makes by its first word; `None` if the statement
/// proper is still to come.
pub(super) fn statement(word: &str, rest: Lexer<'_>) -> Option<Change> {
    if is_one_of(word, &["explain", "query", "plan"]) {
        // Some PRAGMAs do their work while they are prepared, which EXPLAIN
        // does not keep them from (<https://sqlite.org/lang_explain.html>).
        return None;
    }
    Some(if is_one_of(word, &HARMLESS) {
        Change::None
    } else if word.eq_ignore_ascii_case("pragma") {
        pragma(rest)
    } else {
        Change::Session
    })
}

fn pragma(mut rest: Lexer<'_>) -> Change {
    let Some(Token::Word(mut name)) = rest.next() else {
        return Change::Session;
    };
    if rest.peek() == Some(Token::Symbol(b'.')) {
        rest.next();
        let Some(Token::Word(found)) = rest.next() else {
            return Change::Session;
        };
        name = found;
    }
    match rest.next() {
        // Without an argument it only reports.
        None | Some(Token::Symbol(b';')) => Change::None,
        _ if is_one_of(name, &TELLING) => Change::None,
        _ => Change::Session,
    }
}

pub(super) fn inside(token: Token<'_>, previous: Token<'_>, rest: Lexer<'_>) -> Change {
    const TEMPORARY: [&str; 2] = ["temp", "temporary"];
    let is_schema = || rest.peek() == Some(Token::Symbol(b'.'));
    let changes = match token {
        Token::Word(name) | Token::Name(name) => {
            is_one_of(name, &TEMPORARY) && is_schema()
                || token.is_one_of(&TEMPORARY) && previous.is_word("create")
                || name.eq_ignore_ascii_case("load_extension")
        }
        // `CREATE TABLE [temp].t`, where any quotes do.
        Token::Literal => {
            previous.is_one_of(&["table", "view", "index", "trigger", "exists"]) && is_schema()
        }
        _ => false,
    };
    if changes {
        Change::Session
    } else {
        Change::None
    }
}
