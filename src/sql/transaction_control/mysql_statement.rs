//! Statements of MySQL and MariaDB by their first words.

use crate::sql::{
    classified::{
        Effect::{self, CommitsImplicitly, Control},
        TransactionControl::{Begin, Commit, Rollback, Savepoint, SetTransaction, TwoPhase},
    },
    lexer::{Lexer, Token, is_one_of},
    rules::{
        Behind::{Anything, Next, To},
        Rule, meaning,
    },
};

/// First words of statements that leave transactions alone. PREPARE only
/// parses: what was prepared runs by EXECUTE, which is not here. A function
/// that DO or SELECT calls may not commit.
#[rustfmt::skip]
const HARMLESS: &[&str] = &[
    "select", "insert", "update", "delete", "with", "values", "table", "replace", "show",
    "explain", "describe", "desc", "do", "handler", "help", "use", "load", "checksum", "signal",
    "resignal", "get", "prepare", "deallocate", "analyze",
];

/// First words of statements that commit what came before, by the manual of
/// MySQL 8 (<https://dev.mysql.com/doc/refman/8.4/en/implicit-commit.html>) or
/// of MariaDB
/// (<https://mariadb.com/kb/en/sql-statements-that-cause-an-implicit-commit/>).
///
/// MariaDB 10.11 commits even if such a statement fails, but not at CACHE
/// INDEX, LOAD INDEX, CHANGE MASTER, and at UNLOCK TABLES just with tables
/// locked.
#[rustfmt::skip]
const COMMITTING: &[&str] = &[
    "alter", "create", "drop", "truncate", "rename", "grant", "revoke", "lock", "unlock",
    "flush", "check", "optimize", "repair", "cache", "install", "uninstall", "stop", "reset",
    "change", "backup", "shutdown", "import", "clone", "start",
];

#[rustfmt::skip]
const STATEMENTS: &[Rule<Effect>] = &[
    (&["begin"], Anything, Control(Begin)),
    (&["start"], Next(&["transaction"]), Control(Begin)),
    (&["commit"], Anything, Control(Commit)),
    (&["rollback"], To, Control(Savepoint)),
    (&["rollback"], Anything, Control(Rollback)),
    (&["savepoint", "release"], Anything, Control(Savepoint)),
    (&["xa"], Anything, Control(TwoPhase)),
    (&["set"], Next(&["transaction"]), Control(SetTransaction)),
    (&["set"], Next(&["password", "default"]), CommitsImplicitly),
    // MariaDB's ANALYZE with a query is an EXPLAIN.
    (&["analyze"], Next(&["table", "tables", "local", "no_write_to_binlog"]), CommitsImplicitly),
    (&["load"], Next(&["index"]), CommitsImplicitly),
    (HARMLESS, Anything, Effect::None),
    (COMMITTING, Anything, CommitsImplicitly),
];

/// The effect of a statement that begins with `word` and goes on with `rest`.
pub(super) fn statement(word: &str, rest: Lexer<'_>) -> Effect {
    // Before the table, in which CREATE and DROP commit.
    if is_temporary(word, rest) {
        return Effect::None;
    }
    match meaning(STATEMENTS, word, rest) {
        Some(effect) => effect,
        // A SET may assign to anything: it is harmless unless a variable says
        // otherwise.
        None if word.eq_ignore_ascii_case("set") => assignments(rest),
        // A CALL, or what a later server adds: let through, behind a guard that
        // notices a COMMIT in it (H15).
        None => Effect::Unknown,
    }
}

/// Returns whether a statement makes or drops what is of this connection only,
/// which commits nothing.
///
/// MariaDB 10.11 commits at CREATE TEMPORARY SEQUENCE, and not at DROP
/// TEMPORARY SEQUENCE.
fn is_temporary(word: &str, mut rest: Lexer<'_>) -> bool {
    let drop = word.eq_ignore_ascii_case("drop");
    if !drop && !word.eq_ignore_ascii_case("create") {
        return false;
    }
    // `CREATE OR REPLACE TEMPORARY TABLE` of MariaDB.
    match rest.find(|token| drop || !token.is_one_of(&["or", "replace"])) {
        Some(token) if token.is_word("prepare") => drop,
        Some(token) if token.is_word("temporary") => rest.next().is_some_and(|what| {
            what.is_word("table") || drop && what.is_one_of(&["tables", "sequence"])
        }),
        _ => false,
    }
}

/// The statement proper behind MariaDB's `SET STATEMENT ... FOR`, if a
/// statement begins so.
pub(crate) fn behind_settings<'a>(word: &str, mut rest: Lexer<'a>) -> Option<Lexer<'a>> {
    let is_proper =
        word.eq_ignore_ascii_case("set") && rest.next()?.is_word("statement") && rest.pass("for");
    is_proper.then_some(rest)
}

/// The effect of a SET that assigns variables.
fn assignments(mut rest: Lexer<'_>) -> Effect {
    let mut target = Target::default();
    while let Some(token) = rest.next() {
        match token {
            Token::Symbol(b';') => break,
            // The comment ends with the statement.
            Token::Seam if matches!(rest.peek(), None | Some(Token::Symbol(b';'))) => break,
            // With and without what stands in the comment, it may assign to
            // different variables.
            Token::Seam => return Effect::Unknown,
            Token::Symbol(b'=') if target.is_of_transactions() => return Control(SetTransaction),
            _ => target.see(token),
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
    /// The number of parentheses around, in which a comma begins no other
    /// assignment.
    depth: usize,
}

impl<'a> Target<'a> {
    fn see(&mut self, token: Token<'a>) {
        match token {
            Token::Symbol(b'(') => self.depth += 1,
            Token::Symbol(b')') => self.depth = self.depth.saturating_sub(1),
            Token::Symbol(b',') if self.depth == 0 => *self = Self::default(),
            Token::Symbol(b'@') => self.at_signs += 1,
            Token::Symbol(b'=') => self.assigned = true,
            Token::Word(name) | Token::Name(name) if !self.assigned => {
                self.words += 1;
                self.name = name;
            }
            _ => {}
        }
    }

    fn is_of_transactions(&self) -> bool {
        // With a scope, they are settings of the session or the server
        // (<https://dev.mysql.com/doc/refman/8.4/en/set-transaction.html#set-transaction-scope>).
        const NEXT_ONLY: [&str; 4] = [
            "transaction_isolation",
            "transaction_read_only",
            "tx_isolation",
            "tx_read_only",
        ];
        // `@name` is the user's own; `@@name` without a scope is that of the
        // next transaction alone.
        !self.assigned
            && self.at_signs != 1
            // `autocommit = 1` commits what is open
            // (<https://dev.mysql.com/doc/refman/8.4/en/implicit-commit.html>);
            // `completion_type` has each later COMMIT chain, or close the
            // connection (H35).
            && (is_one_of(self.name, &["autocommit", "completion_type"])
                || self.at_signs == 2 && self.words == 1 && is_one_of(self.name, &NEXT_ONLY))
    }
}
