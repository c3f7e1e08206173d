//! What a text of SQL may do to the transaction around it.
//!
//! A session keeps the count of its transactions; SQL that begins or ends one behind its back is found
//! here, before it is sent. Not a parser: statements are told apart, and each is judged by its first words.
//! The quoting is read as the servers do by default. Whoever switches to MySQL's `NO_BACKSLASH_ESCAPES` or
//! `ANSI_QUOTES`, or switches off PostgreSQL's `standard_conforming_strings`, can write texts that read differently.

mod change;
mod effect;
mod lexer;
mod locks;
mod plain;
mod read;
mod redact;
mod session_state;
#[cfg(test)]
mod tests;
mod transaction_control;
mod words;

#[cfg(feature = "_sqlx")]
pub(crate) use self::read::is_sqlite_read;
pub(crate) use self::{
    change::Change,
    effect::{Control, Effect},
    locks::needs_transaction,
    read::is_read,
    redact::Redacted,
    session_state::change,
    transaction_control::effect,
};
