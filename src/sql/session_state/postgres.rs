//! PostgreSQL: settings, role, advisory locks, temporary objects, LISTEN and
//! cursors can be put back.

use crate::sql::{
    classified::Change,
    lexer::{Lexer, Token, is_one_of, starts_with},
    rules::{
        Behind::{Anything, Next},
        Rule, meaning,
    },
};

/// First words of statements that leave nothing behind but data, unless a word
/// inside says otherwise.
#[rustfmt::skip]
const HARMLESS: &[&str] = &[
    "select", "insert", "update", "delete", "with", "values", "merge", "table", "create",
    "alter", "drop", "truncate", "grant", "revoke", "comment", "analyze", "analyse", "vacuum",
    "explain", "show", "copy", "fetch", "move", "close", "lock", "notify", "reindex", "cluster",
    "checkpoint", "refresh", "import", "security", "reassign", "declare", "begin", "start",
    "commit", "end", "rollback", "abort", "savepoint", "release", "repack", "wait", "return",
];

const STATEMENTS: &[Rule<Change>] = &[
    // DECLARE is among them, since a cursor ends with its transaction unless it
    // is WITH HOLD, which `inside` finds.
    (HARMLESS, Anything, Change::None),
    (&["set"], Next(&["local"]), Change::Transaction),
    (
        &["set"],
        // Both end with the transaction
        // (<https://www.postgresql.org/docs/current/sql-set-constraints.html>).
        Next(&["transaction", "constraints"]),
        Change::None,
    ),
    // The prepared statements of sqlx must stay, and a library cannot be
    // unloaded.
    (&["prepare", "deallocate", "load"], Anything, Change::Beyond),
    // It deallocates sqlx's statements, whose names sqlx goes on to use
    // (<https://www.postgresql.org/docs/current/sql-discard.html>).
    (&["discard"], Next(&["all"]), Change::Beyond),
];

pub(super) fn statement(word: &str, rest: Lexer<'_>) -> Change {
    // An unknown one can be put back: the reset does all that DISCARD ALL does
    // but for prepared statements and plans (H7).
    meaning(STATEMENTS, word, rest).unwrap_or(Change::Session)
}

/// Functions that change settings or run a text that may be any statement, and
/// a view of which an UPDATE is a SET.
// See <https://www.postgresql.org/docs/current/view-pg-settings.html>.
const NAMES: [&str; 4] = ["set_config", "ts_stat", "ts_rewrite", "pg_settings"];

/// Beginnings of names; the first one that fits counts.
const BEGINNINGS: [(&str, Change); 9] = [
    // Locks that end with the transaction.
    ("pg_advisory_xact_", Change::None),
    ("pg_try_advisory_xact_", Change::None),
    ("pg_advisory_", Change::Session),
    ("pg_try_advisory_", Change::Session),
    // An object in this schema is temporary without the word
    // (<https://www.postgresql.org/docs/current/runtime-config-client.html#GUC-SEARCH-PATH>).
    ("pg_temp", Change::Session),
    // These run a text that may be any statement.
    ("query_to_xml", Change::Session),
    // DISCARD ALL leaves it
    // (<https://www.postgresql.org/docs/current/sql-discard.html>).
    ("pg_replication_origin_session_", Change::Beyond),
    // A RESET does not make `random()` random again.
    ("setseed", Change::Beyond),
    // A connection to another server, known by its name.
    ("dblink_", Change::Beyond),
];

pub(super) fn inside(token: Token<'_>, previous: Token<'_>, rest: Lexer<'_>) -> Change {
    let (Token::Word(name) | Token::Name(name)) = token else {
        return Change::None;
    };
    // With escapes, it may be any name.
    let is_escaped = matches!(token, Token::Name(_)) && previous == Token::Symbol(b'&');
    let is_temporary = token.is_one_of(&["temp", "temporary"])
        && previous.is_one_of(&["create", "replace", "local", "global", "into"]);
    if is_escaped || is_temporary || token.is_word("hold") && previous.is_word("with") {
        Change::Session
    } else if name.eq_ignore_ascii_case("set_config") && is_local(rest) {
        Change::Transaction
    } else if is_one_of(name, &NAMES) {
        Change::Session
    } else {
        let known = BEGINNINGS
            .iter()
            .find(|(known, _)| starts_with(name, known));
        known.map_or(Change::None, |(_, change)| *change)
    }
}

/// The number of tokens of a call that are read: with calls inside calls,
/// reading on would make a long text quadratic.
const LOOKED_AT: usize = 64;

/// Returns whether the third argument of the call of which `rest` has the rest
/// is the word `true`; in a long call it is not looked for, and counts as
/// absent.
pub(in crate::sql) fn is_local(mut rest: Lexer<'_>) -> bool {
    let (mut depth, mut commas) = (0_usize, 0);
    for token in rest.by_ref().take(LOOKED_AT) {
        match token {
            Token::Symbol(b'(' | b'[') => depth += 1,
            Token::Symbol(b')' | b']') => depth = depth.saturating_sub(1),
            Token::Symbol(b',') if depth == 1 => commas += 1,
            _ => {}
        }
        // The call has ended, or what follows is its third argument.
        if depth == 0 || commas == 2 {
            break;
        }
    }
    commas == 2
        && rest.next().is_some_and(|last| last.is_word("true"))
        && rest.next() == Some(Token::Symbol(b')'))
}
