//! SQLite: its set of control statements is closed; a text's statements run one after the other, always.

use super::statement::{first_word, is_to_savepoint};
use crate::sql::{
    effect::{Control, Effect},
    lexer::Lexer,
    words::is_one_of,
};

pub(super) fn effect(lexer: &mut Lexer<'_>) -> Effect {
    // Of a trigger, to the END that every trigger has; no control statements there.
    let mut body = false;
    while let Some(word) = first_word(lexer) {
        if body && word.eq_ignore_ascii_case("end") {
            body = false;
        } else if let Some(control) = control(word, lexer) {
            return Effect::Control(control);
        } else {
            // EXPLAIN runs nothing; a trigger's body is one nonetheless.
            body |= is_one_of(word, &["create", "explain"]) && is_trigger(*lexer);
        }
        lexer.skip_statement();
    }
    Effect::None
}

fn control(word: &str, lexer: &Lexer<'_>) -> Option<Control> {
    Some(match word {
        _ if word.eq_ignore_ascii_case("begin") => Control::Begin,
        _ if is_one_of(word, &["commit", "end"]) => Control::Commit,
        _ if word.eq_ignore_ascii_case("rollback") && is_to_savepoint(*lexer) => Control::Savepoint,
        _ if word.eq_ignore_ascii_case("rollback") => Control::Rollback,
        _ if is_one_of(word, &["savepoint", "release"]) => Control::Savepoint,
        _ => return None,
    })
}

fn is_trigger(lexer: Lexer<'_>) -> bool {
    let between = ["query", "plan", "create", "temp", "temporary"];
    let mut words = lexer.skip_while(|token| between.iter().any(|word| token.is_word(word)));
    words.next().is_some_and(|token| token.is_word("trigger"))
}
