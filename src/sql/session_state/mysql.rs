//! MySQL and MariaDB: sqlx cannot reset a connection there, so only locks can be released.

use crate::sql::{
    classified::Change,
    lexer::{Lexer, Token, is_one_of, starts_with},
};

/// First words of statements that leave nothing behind but data, unless a word inside says otherwise.
#[rustfmt::skip]
const HARMLESS: [&str; 46] = [
    "select", "insert", "update", "delete", "with", "values", "table", "replace", "show",
    "explain", "describe", "desc", "do", "help", "load", "checksum", "signal", "resignal",
    "analyze", "alter", "create", "drop", "truncate", "rename", "grant", "revoke", "check",
    "optimize", "repair", "cache", "install", "uninstall", "stop", "reset", "change",
    "shutdown", "import", "clone", "start", "kill", "purge", "commit", "rollback", "savepoint",
    "release", "xa",
];

/// First words of statements that are sure to leave something behind.
#[rustfmt::skip]
const STATEFUL: [&str; 9] = [
    "set", "use", "prepare", "deallocate", "execute", "call", "handler", "get", "backup",
];

const LOCKING: [&str; 3] = ["lock", "unlock", "flush"];

/// Returns whether the word begins a statement that leaves something behind.
pub(super) fn is_known(word: &str) -> bool {
    is_one_of(word, &STATEFUL) || is_one_of(word, &LOCKING)
}

/// The change that a statement makes by its first word.
pub(super) fn statement(word: &str) -> Change {
    match word {
        _ if is_one_of(word, &HARMLESS) => Change::None,
        _ if is_one_of(word, &LOCKING) => Change::Locks,
        _ => Change::Beyond,
    }
}

pub(super) fn inside(
    token: Token<'_>,
    previous: Token<'_>,
    first: Token<'_>,
    rest: Lexer<'_>,
) -> Change {
    match token {
        Token::Word(name) | Token::Name(name) if name.eq_ignore_ascii_case("get_lock") => {
            Change::Locks
        }
        // The locking service of a plugin.
        Token::Word(name) | Token::Name(name) if starts_with(name, "service_get_") => {
            Change::Beyond
        }
        // Words in between may stand in a comment that the server skips.
        Token::Word(_) if token.is_word("temporary") => {
            let made = previous.is_one_of(&["create", "replace", "drop"])
                || first.is_one_of(&["create", "drop"]);
            if made { Change::Beyond } else { Change::None }
        }
        Token::Word(_) if token.is_word("prepare") && previous.is_word("drop") => Change::Beyond,
        // `@a := 1`, `INTO @a`, and LOAD DATA ... (@a).
        Token::Symbol(b':') if rest.peek() == Some(Token::Symbol(b'=')) => Change::Beyond,
        Token::Symbol(b'@') if previous.is_word("into") || first.is_word("load") => Change::Beyond,
        _ => Change::None,
    }
}
