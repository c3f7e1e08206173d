//! SQLite: its set of control statements is closed; a text's statements run one after the other, always.

use super::savepoint::is_to_savepoint;
use crate::sql::{effect::TransactionControl, lexer::Lexer, words::is_one_of};

pub(super) fn control(word: &str, rest: Lexer<'_>) -> Option<TransactionControl> {
    Some(match word {
        _ if word.eq_ignore_ascii_case("begin") => TransactionControl::Begin,
        _ if is_one_of(word, &["commit", "end"]) => TransactionControl::Commit,
        _ if word.eq_ignore_ascii_case("rollback") && is_to_savepoint(rest) => {
            TransactionControl::Savepoint
        }
        _ if word.eq_ignore_ascii_case("rollback") => TransactionControl::Rollback,
        _ if is_one_of(word, &["savepoint", "release"]) => TransactionControl::Savepoint,
        _ => return None,
    })
}

/// Returns whether a statement defines a trigger, whose body ends with END. EXPLAIN runs nothing, but the body is one
/// nonetheless.
pub(super) fn is_trigger(word: &str, rest: Lexer<'_>) -> bool {
    let between = ["query", "plan", "create", "temp", "temporary"];
    let mut words = rest.skip_while(|token| token.is_one_of(&between));
    is_one_of(word, &["create", "explain"])
        && words.next().is_some_and(|token| token.is_word("trigger"))
}
