//! PostgreSQL: its set of control statements is closed, and stored code cannot end the transaction around it.

use super::savepoint::is_to_savepoint;
use crate::sql::{
    effect::TransactionControl,
    lexer::{Lexer, Token},
    words::is_one_of,
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

/// The body of the function or procedure that a statement makes, if it is one in plain SQL: between BEGIN ATOMIC and
/// END.
pub(super) fn body_of_routine<'a>(word: &str, mut rest: Lexer<'a>) -> Option<Lexer<'a>> {
    if !word.eq_ignore_ascii_case("create") {
        return None;
    }
    let routine = rest
        .by_ref()
        .find(|token| !token.is_one_of(&["or", "replace"]))?;
    if !routine.is_one_of(&["function", "procedure"]) {
        return None;
    }
    // In parentheses, these words are a parameter's name.
    let mut depth = 0_usize;
    while let Some(token) = rest.next() {
        match token {
            Token::Symbol(b';') => break,
            Token::Symbol(b'(') => depth += 1,
            Token::Symbol(b')') => depth = depth.saturating_sub(1),
            _ if depth == 0
                && token.is_word("begin")
                && rest.peek().is_some_and(|next| next.is_word("atomic")) =>
            {
                rest.next();
                return Some(rest);
            }
            _ => {}
        }
    }
    None
}
