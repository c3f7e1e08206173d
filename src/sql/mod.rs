//! [`classify`]: the kind of a statement, by its text.
//!
//! A session keeps the count of its transactions; SQL that begins or ends one behind its back is found
//! here, before it is sent. This is no parser: a text is split into statements, and each is judged by its first words and
//! by a few words inside it.
//! The quoting is read as the servers do by default. With MySQL's `NO_BACKSLASH_ESCAPES` or `ANSI_QUOTES`, or without
//! PostgreSQL's `standard_conforming_strings`, a text can be written that reads differently.

mod classified;
mod lexer;
mod locks;
mod plain;
mod reads;
mod redact;
mod session_state;
#[cfg(test)]
mod tests;
mod transaction_control;

use sea_orm::DbBackend;

pub(crate) use self::{
    classified::Change,
    classified::Classified,
    classified::{Effect, TransactionControl},
    redact::Redacted,
};
use self::{
    lexer::Lexer, locks::LockReader, plain::Glance, reads::ReadReader, session_state::ChangeReader,
    transaction_control::EffectReader,
};

/// Reads `sql` once, without allocating, in time linear in its length.
pub(crate) fn classify(backend: DbBackend, sql: &str) -> Classified {
    let plain = Glance::of(backend, sql);
    if let Some(glance) = plain.as_ref().filter(|glance| glance.is_clear()) {
        return Classified::plain(glance.reads);
    }
    let mut lexer = Lexer::new(backend, sql);
    let mut effect = EffectReader::new(backend);
    let mut change = ChangeReader::new(backend);
    let mut reads = ReadReader::default();
    let mut locks = LockReader::new(backend);
    while let Some(token) = lexer.next() {
        // Each may look ahead, by its own copy of the lexer.
        effect.see(token, lexer);
        change.see(token, lexer);
        reads.see(token, lexer);
        locks.see(token, lexer);
    }
    let doubtful = lexer.is_doubtful();
    let (is_plain, may_change) = plain.map_or((false, true), |glance| (true, glance.may_change));
    Classified {
        effect: match effect.found() {
            // A statement that begins so controls nothing, even if its quotes read differently on the server.
            _ if is_plain => Effect::None,
            found if doubtful => found.max(Effect::Unknown),
            found => found,
        },
        change: match change.found() {
            _ if !may_change => Change::None,
            found if doubtful => found.max(Change::Session),
            found => found,
        },
        reads_only: reads.reads_only() && !doubtful,
        needs_transaction: locks.needs_transaction(),
    }
}
