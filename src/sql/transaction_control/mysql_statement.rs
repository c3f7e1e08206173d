//! Statements of MySQL and MariaDB by their first words.

use super::savepoint::is_to_savepoint;
use crate::sql::{
    classified::{Effect, TransactionControl},
    lexer::{Lexer, Token, is_one_of},
};

/// First words of statements that leave transactions alone. PREPARE only parses: what was prepared runs
/// by EXECUTE, which is not here. A function that DO or SELECT calls may not commit.
#[rustfmt::skip]
const HARMLESS: [&str; 24] = [
    "select", "insert", "update", "delete", "with", "values", "table", "replace", "show",
    "explain", "describe", "desc", "do", "handler", "help", "use", "load", "checksum", "signal",
    "resignal", "get", "prepare", "deallocate", "analyze",
];

/// First words of statements that commit what came before, by the manual of MySQL 8
/// (<https://dev.mysql.com/doc/refman/8.4/en/implicit-commit.html>) or of MariaDB
/// (<https://mariadb.com/kb/en/sql-statements-that-cause-an-implicit-commit/>).
///
/// MariaDB 10.11 commits even if such a statement fails, but not at CACHE INDEX, LOAD INDEX, CHANGE
/// MASTER, and at UNLOCK TABLES just with tables locked.
#[rustfmt::skip]
const COMMITTING: [&str; 23] = [
    "alter", "create", "drop", "truncate", "rename", "grant", "revoke", "lock", "unlock",
    "flush", "check", "optimize", "repair", "cache", "install", "uninstall", "stop", "reset",
    "change", "backup", "shutdown", "import", "clone",
];

/// The effect of a statement that begins with `word` and goes on with `rest`.
pub(super) fn statement(word: &str, rest: Lexer<'_>) -> Effect {
    let is = |known: &str| word.eq_ignore_ascii_case(known);
    if let Some(control) = control(word, rest) {
        return Effect::Control(control);
    }
    match word {
        _ if is("set") && is_next(rest, &["password", "default"]) => Effect::CommitsImplicitly,
        _ if is("set") => assignments(rest),
        // MariaDB's ANALYZE with a query is an EXPLAIN.
        _ if is("analyze")
            && is_next(rest, &["table", "tables", "local", "no_write_to_binlog"]) =>
        {
            Effect::CommitsImplicitly
        }
        _ if is("load") && is_next(rest, &["index"]) => Effect::CommitsImplicitly,
        _ if is_temporary(word, rest) || is_one_of(word, &HARMLESS) => Effect::None,
        _ if is_one_of(word, &COMMITTING) || is("start") => Effect::CommitsImplicitly,
        _ => Effect::Unknown,
    }
}

fn control(word: &str, rest: Lexer<'_>) -> Option<TransactionControl> {
    let is = |known: &str| word.eq_ignore_ascii_case(known);
    Some(match word {
        _ if is("begin") => TransactionControl::Begin,
        _ if is("start") && is_next(rest, &["transaction"]) => TransactionControl::Begin,
        _ if is("commit") => TransactionControl::Commit,
        _ if is("rollback") && is_to_savepoint(rest) => TransactionControl::Savepoint,
        _ if is("rollback") => TransactionControl::Rollback,
        _ if is("savepoint") || is("release") => TransactionControl::Savepoint,
        _ if is("xa") => TransactionControl::TwoPhase,
        _ if is("set") && is_next(rest, &["transaction"]) => TransactionControl::SetTransaction,
        _ => return None,
    })
}

/// Returns whether one of `words` comes next, or a seam, behind which it may stand.
fn is_next(rest: Lexer<'_>, words: &[&str]) -> bool {
    rest.peek()
        .is_some_and(|next| next == Token::Seam || next.is_one_of(words))
}

/// Returns whether a statement makes or drops what is of this connection only, which commits nothing.
///
/// MariaDB 10.11 commits at CREATE TEMPORARY SEQUENCE, and not at DROP TEMPORARY SEQUENCE.
fn is_temporary(word: &str, mut rest: Lexer<'_>) -> bool {
    let drop = word.eq_ignore_ascii_case("drop");
    if !drop && !word.eq_ignore_ascii_case("create") {
        return false;
    }
    match rest.find(|token| drop || !token.is_one_of(&["or", "replace"])) {
        Some(token) if token.is_word("prepare") => drop,
        Some(token) if token.is_word("temporary") => rest.next().is_some_and(|what| {
            what.is_word("table") || drop && what.is_one_of(&["tables", "sequence"])
        }),
        _ => false,
    }
}

/// Behind MariaDB's `SET STATEMENT ... FOR`, whose SET is followed by `rest`: the statement proper.
pub(crate) fn behind_settings(mut rest: Lexer<'_>) -> Option<Lexer<'_>> {
    if !rest.next()?.is_word("statement") {
        return None;
    }
    let mut depth = 0_usize;
    while let Some(token) = rest.next() {
        match token {
            Token::Symbol(b';') | Token::Seam => return None,
            Token::Symbol(b'(') => depth += 1,
            Token::Symbol(b')') => depth = depth.saturating_sub(1),
            _ if depth == 0 && token.is_word("for") => return Some(rest),
            _ => {}
        }
    }
    None
}

/// The effect of a SET that assigns variables.
fn assignments(mut rest: Lexer<'_>) -> Effect {
    let mut target = Target::default();
    let mut depth = 0_usize;
    while let Some(token) = rest.next() {
        match token {
            Token::Symbol(b';') => break,
            Token::Seam if matches!(rest.peek(), None | Some(Token::Symbol(b';'))) => break,
            Token::Symbol(b'(') => depth += 1,
            Token::Symbol(b')') => depth = depth.saturating_sub(1),
            Token::Symbol(b',') if depth == 0 => target = Target::default(),
            Token::Symbol(b'@') => target.at_signs += 1,
            Token::Symbol(b'=') if target.is_of_transactions() => {
                return Effect::Control(TransactionControl::SetTransaction);
            }
            Token::Symbol(b'=') => target.assigned = true,
            Token::Word(name) | Token::Name(name) if !target.assigned => {
                target.words += 1;
                target.name = name;
            }
            // With and without what stands in the comment, it may assign to different variables.
            Token::Seam => return Effect::Unknown,
            _ => {}
        }
    }
    Effect::None
}

/// The left side of an assignment.
#[derive(Default)]
struct Target<'a> {
    at_signs: usize,
    words: usize,
    name: &'a str,
    assigned: bool,
}

impl Target<'_> {
    fn is_of_transactions(&self) -> bool {
        let next_only = [
            "transaction_isolation",
            "transaction_read_only",
            "tx_isolation",
            "tx_read_only",
        ];
        // `@name` is the user's own; `@@name` without a scope is that of the next transaction alone.
        !self.assigned
            && self.at_signs != 1
            && (is_one_of(self.name, &["autocommit", "completion_type"])
                || self.at_signs == 2 && self.words == 1 && is_one_of(self.name, &next_only))
    }
}
