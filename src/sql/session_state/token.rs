//! Questions about tokens that the servers have in common.

use crate::sql::{lexer::Token, words::is_one_of};

pub(super) fn is_word_of(token: Token<'_>, words: &[&str]) -> bool {
    matches!(token, Token::Word(word) if is_one_of(word, words))
}

/// Whether a token makes the object that is being created a temporary one.
pub(super) fn is_temporary(token: Token<'_>, previous: Token<'_>, before: &[&str]) -> bool {
    is_word_of(token, &["temp", "temporary"]) && is_word_of(previous, before)
}
