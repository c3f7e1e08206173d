//! What statements of several servers have in common.

use crate::sql::lexer::{Lexer, Token};

/// The first word of the next statement, if there is one; what begins otherwise is passed over.
pub(super) fn first_word<'a>(lexer: &mut Lexer<'a>) -> Option<&'a str> {
    loop {
        match lexer.next()? {
            Token::Word(word) if !word.is_empty() => return Some(word),
            Token::Word(_) | Token::Symbol(b';' | b'(') => {}
            _ => lexer.skip_statement(),
        }
    }
}

/// Whether a `ROLLBACK`, of which `lexer` has the rest, is one to a savepoint.
pub(super) fn is_to_savepoint(mut lexer: Lexer<'_>) -> bool {
    // In between may be WORK or, on SQLite, TRANSACTION and a name.
    lexer
        .by_ref()
        .take(3)
        .take_while(|token| *token != Token::Symbol(b';'))
        .any(|token| token.is_word("to"))
}
