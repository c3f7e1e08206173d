//! PostgreSQL: settings, role, advisory locks, temporary objects, LISTEN and cursors can be put back.

use super::token::is_temporary;
use crate::sql::{
    classified::Change,
    lexer::{Lexer, Token, is_one_of, starts_with},
};

/// First words of statements that leave nothing behind but data, unless a word inside says otherwise.
#[rustfmt::skip]
const HARMLESS: [&str; 45] = [
    "select", "insert", "update", "delete", "with", "values", "merge", "table", "create",
    "alter", "drop", "truncate", "grant", "revoke", "comment", "analyze", "analyse", "vacuum",
    "explain", "show", "copy", "fetch", "move", "close", "lock", "notify", "reindex", "cluster",
    "checkpoint", "refresh", "import", "security", "reassign", "declare", "begin", "start",
    "commit", "end", "rollback", "abort", "savepoint", "release", "repack", "wait", "return",
];

pub(super) fn statement(word: &str, rest: Lexer<'_>) -> Change {
    let is_next = |words: &[&str]| rest.peek().is_some_and(|next| next.is_one_of(words));
    match word {
        _ if is_one_of(word, &HARMLESS) => Change::None,
        _ if word.eq_ignore_ascii_case("set") && is_next(&["local"]) => Change::Transaction,
        _ if word.eq_ignore_ascii_case("set") && is_next(&["transaction", "constraints"]) => {
            Change::None
        }
        // The prepared statements of sqlx must stay, and a library cannot be unloaded.
        _ if is_one_of(word, &["prepare", "deallocate", "load"]) => Change::Beyond,
        _ if word.eq_ignore_ascii_case("discard") && is_next(&["all"]) => Change::Beyond,
        _ => Change::Session,
    }
}

pub(super) fn inside(token: Token<'_>, previous: Token<'_>, rest: Lexer<'_>) -> Change {
    let name = match token {
        Token::Word(name) => name,
        // With escapes, it may be any name.
        Token::Name(_) if previous == Token::Symbol(b'&') => return Change::Session,
        Token::Name(name) => name,
        _ => return Change::None,
    };
    match name {
        _ if name.len() < 4 => Change::None,
        _ if name.eq_ignore_ascii_case("set_config") && is_local(rest) => Change::Transaction,
        _ if name.eq_ignore_ascii_case("set_config") => Change::Session,
        _ if starts_with(name, "pg_") => server_function(name),
        // These run a text that may be any statement.
        _ if starts_with(name, "query_to_xml") || is_one_of(name, &["ts_stat", "ts_rewrite"]) => {
            Change::Session
        }
        // A connection to another server, known by its name.
        _ if starts_with(name, "dblink_") => Change::Beyond,
        _ if is_temporary(
            token,
            previous,
            &["create", "replace", "local", "global", "into"],
        ) =>
        {
            Change::Session
        }
        _ if token.is_word("hold") && previous.is_word("with") => Change::Session,
        _ => Change::None,
    }
}

fn server_function(name: &str) -> Change {
    let is_xact = || name.to_ascii_lowercase().contains("xact");
    match name {
        _ if starts_with(name, "pg_advisory_") || starts_with(name, "pg_try_advisory_") => {
            if is_xact() {
                Change::None
            } else {
                Change::Session
            }
        }
        _ if starts_with(name, "pg_temp") => Change::Session,
        // An UPDATE of this view is a SET.
        _ if name.eq_ignore_ascii_case("pg_settings") => Change::Session,
        _ if starts_with(name, "pg_replication_origin_session_") => Change::Beyond,
        _ => Change::None,
    }
}

/// The number of tokens of a call that are read: with calls inside calls, reading on would make a long text quadratic.
const LOOKED_AT: usize = 64;

/// Returns whether the third argument of the call of which `rest` has the rest is the word `true`; in a long call
/// it is not looked for, and counts as absent.
fn is_local(mut rest: Lexer<'_>) -> bool {
    if rest.next() != Some(Token::Symbol(b'(')) {
        return false;
    }
    let (mut depth, mut commas) = (1_usize, 0);
    for _ in 0..LOOKED_AT {
        let Some(token) = rest.next() else { break };
        match token {
            Token::Symbol(b'(' | b'[') => depth += 1,
            Token::Symbol(b')' | b']') if depth == 1 => return false,
            Token::Symbol(b')' | b']') => depth -= 1,
            Token::Symbol(b',') if depth == 1 => {
                commas += 1;
                if commas == 2 {
                    return rest.next().is_some_and(|last| last.is_word("true"))
                        && rest.next() == Some(Token::Symbol(b')'));
                }
            }
            _ => {}
        }
    }
    false
}
