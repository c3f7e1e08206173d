//! SQLite: its set of control statements is closed; a text's statements run one after the other, always.

use super::savepoint::is_to_savepoint;
use crate::sql::{
    classified::TransactionControl,
    lexer::{Lexer, is_one_of},
};

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
