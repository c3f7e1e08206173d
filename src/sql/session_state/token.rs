//! A question about tokens that two servers have in common.

use crate::sql::lexer::Token;

/// Returns whether a token makes the object that is being created a temporary one.
pub(super) fn is_temporary(token: Token<'_>, previous: Token<'_>, before: &[&str]) -> bool {
    token.is_one_of(&["temp", "temporary"]) && previous.is_one_of(before)
}
