//! MySQL and MariaDB: sqlx cannot reset a connection there, so only locks can
//! be released.

use crate::sql::{
    classified::Change,
    lexer::{Lexer, Token, is_one_of, starts_with},
};

/// First words of statements that leave nothing behind but data, unless a word
/// inside says otherwise.
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
// An unknown word counts as such as well. These are named for seams, behind
// which only a word that can begin a statement is taken for one.
const STATEFUL: [&str; 9] = [
    "set", "use", "prepare", "deallocate", "execute", "call", "handler", "get", "backup",
];

// `FLUSH TABLES … WITH READ LOCK` holds its lock until UNLOCK TABLES
// (<https://dev.mysql.com/doc/refman/8.4/en/lock-tables.html>).
const LOCKING: [&str; 3] = ["lock", "unlock", "flush"];

/// Returns whether the word begins a statement that leaves something behind.
pub(super) fn is_known(word: &str) -> bool {
    is_one_of(word, &STATEFUL) || is_one_of(word, &LOCKING)
}

/// The change that a statement makes by its first word.
pub(super) fn statement(word: &str) -> Change {
    if is_one_of(word, &HARMLESS) {
        Change::None
    } else if is_one_of(word, &LOCKING) {
        Change::Locks
    } else {
        // Those that are not known as well: whatever a later server adds counts
        // as a change.
        Change::Beyond
    }
}

pub(super) fn inside(
    token: Token<'_>,
    previous: Token<'_>,
    first: Token<'_>,
    rest: Lexer<'_>,
) -> Change {
    let is_beyond = match token {
        Token::Word(name) | Token::Name(name) => {
            // RELEASE_ALL_LOCKS() frees them without their names
            // (<https://dev.mysql.com/doc/refman/8.4/en/locking-functions.html>),
            // so that the connection can be kept.
            if name.eq_ignore_ascii_case("get_lock") {
                return Change::Locks;
            }
            // The locking service of a plugin, whose locks only its own
            // function releases
            // (<https://dev.mysql.com/doc/refman/8.4/en/locking-service.html>).
            starts_with(name, "service_get_")
                // DROP PREPARE, another name of DEALLOCATE PREPARE.
                || token.is_word("prepare") && previous.is_word("drop")
                || token.is_word("temporary") && is_made(previous, first)
        }
        _ => assigns(token, previous, first, rest),
    };
    if is_beyond {
        Change::Beyond
    } else {
        Change::None
    }
}

/// Returns whether a user variable is assigned to: `@a := 1`, `INTO @a`, and
/// LOAD DATA ... (@a).
fn assigns(token: Token<'_>, previous: Token<'_>, first: Token<'_>, rest: Lexer<'_>) -> bool {
    match token {
        Token::Symbol(b':') => rest.peek() == Some(Token::Symbol(b'=')),
        Token::Symbol(b'@') => previous.is_word("into") || first.is_word("load"),
        _ => false,
    }
}

/// Returns whether a statement makes or drops what is temporary. Words in
/// between may stand in a comment that the server skips.
fn is_made(previous: Token<'_>, first: Token<'_>) -> bool {
    previous.is_one_of(&["create", "replace", "drop"]) || first.is_one_of(&["create", "drop"])
}
