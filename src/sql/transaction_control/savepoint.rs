//! Savepoints, which all servers roll back to by the same words.

use crate::sql::lexer::{Lexer, Token};

/// Returns whether a `ROLLBACK`, followed by `rest`, is one to a savepoint.
pub(super) fn is_to_savepoint(mut rest: Lexer<'_>) -> bool {
    // In between may be WORK or, on SQLite, TRANSACTION and a name.
    rest.by_ref()
        .take(3)
        .take_while(|token| *token != Token::Symbol(b';'))
        .any(|token| token.is_word("to"))
}
