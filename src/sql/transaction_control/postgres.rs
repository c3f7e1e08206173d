//! PostgreSQL: its set of control statements is closed, and stored code cannot end the transaction around it.

use super::statement::{first_word, is_to_savepoint};
use crate::sql::{
    effect::{Control, Effect},
    lexer::{Lexer, Token},
    words::is_one_of,
};

pub(super) fn effect(lexer: &mut Lexer<'_>) -> Effect {
    // A body between BEGIN ATOMIC and END; the server takes no control statements there.
    let mut body = false;
    while let Some(word) = first_word(lexer) {
        if body && word.eq_ignore_ascii_case("end") {
            body = false;
        } else if let Some(control) = control(word, lexer) {
            return Effect::Control(control);
        } else if word.eq_ignore_ascii_case("create") && enters_body(lexer) {
            body = true;
            continue;
        }
        // With its last token taken, that of the statement after it would be lost.
        lexer.skip_statement();
    }
    Effect::None
}

fn control(word: &str, lexer: &Lexer<'_>) -> Option<Control> {
    let is_next = |words| matches!(lexer.peek(), Some(Token::Word(next)) if is_one_of(next, words));
    Some(match word {
        _ if is_one_of(word, &["begin", "start"]) => Control::Begin,
        _ if is_one_of(word, &["commit", "rollback"]) && is_next(&["prepared"]) => {
            Control::TwoPhase
        }
        _ if is_one_of(word, &["commit", "end"]) => Control::Commit,
        _ if word.eq_ignore_ascii_case("rollback") && is_to_savepoint(*lexer) => Control::Savepoint,
        _ if is_one_of(word, &["rollback", "abort"]) => Control::Rollback,
        _ if is_one_of(word, &["savepoint", "release"]) => Control::Savepoint,
        // Any other PREPARE names a query; the server takes no control statement there.
        _ if word.eq_ignore_ascii_case("prepare") && is_next(&["transaction"]) => Control::TwoPhase,
        _ => return None,
    })
}

/// Goes to the body of a function or procedure if it has one in plain SQL, otherwise to the statement's end.
fn enters_body(lexer: &mut Lexer<'_>) -> bool {
    let mut ahead = *lexer;
    let routine = ahead
        .by_ref()
        .find(|token| !token.is_word("or") && !token.is_word("replace"));
    if !routine.is_some_and(|token| token.is_word("function") || token.is_word("procedure")) {
        return false;
    }
    // A parameter can have these names.
    let mut depth = 0_usize;
    while let Some(token) = ahead.next() {
        match token {
            Token::Symbol(b';') => break,
            Token::Symbol(b'(') => depth += 1,
            Token::Symbol(b')') => depth = depth.saturating_sub(1),
            _ if depth == 0
                && token.is_word("begin")
                && ahead.peek().is_some_and(|next| next.is_word("atomic")) =>
            {
                ahead.next();
                *lexer = ahead;
                return true;
            }
            _ => {}
        }
    }
    false
}
