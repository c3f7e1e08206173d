//! PostgreSQL: its set of control statements is closed, and stored code cannot end the transaction around it.

use super::savepoint::is_to_savepoint;
use crate::sql::{
    classified::TransactionControl,
    lexer::{Lexer, is_one_of},
};

pub(super) fn control(word: &str, rest: Lexer<'_>) -> Option<TransactionControl> {
    let is_next = |words| rest.peek().is_some_and(|next| next.is_one_of(words));
    Some(match word {
        _ if is_one_of(word, &["begin", "start"]) => TransactionControl::Begin,
        _ if is_one_of(word, &["commit", "rollback"]) && is_next(&["prepared"]) => {
            TransactionControl::TwoPhase
        }
        _ if is_one_of(word, &["commit", "end"]) => TransactionControl::Commit,
        _ if word.eq_ignore_ascii_case("rollback") && is_to_savepoint(rest) => {
            TransactionControl::Savepoint
        }
        _ if is_one_of(word, &["rollback", "abort"]) => TransactionControl::Rollback,
        _ if is_one_of(word, &["savepoint", "release"]) => TransactionControl::Savepoint,
        // Any other PREPARE names a query; the server takes no control statement there.
        _ if word.eq_ignore_ascii_case("prepare") && is_next(&["transaction"]) => {
            TransactionControl::TwoPhase
        }
        _ => return None,
    })
}
