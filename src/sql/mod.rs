//! [`classify`]: the kind of a statement, by its text.
//!
//! A session keeps the count of its transactions; SQL that begins or ends one
//! behind its back is found here, before it is sent. This is no parser: a text
//! is split into statements, and each is judged by its first words and by a few
//! words inside it. The quoting is read as the servers do by default. With
//! MySQL's `NO_BACKSLASH_ESCAPES` or `ANSI_QUOTES`, or without PostgreSQL's
//! `standard_conforming_strings`, a text can be written that reads differently.

mod calls;
mod classified;
mod earlier;
mod known;
mod lexer;
mod locks;
mod plain;
mod reads;
mod redact;
mod rules;
mod session_state;
#[cfg(test)]
mod tests;
mod transaction_control;

use sea_orm::DbBackend;

pub(crate) use self::{
    classified::Change,
    classified::Classified,
    classified::{Earlier, Effect, TransactionControl},
    known::KnownTexts,
    redact::Redacted,
};
use self::{
    earlier::EarlierReader, lexer::Lexer, locks::LockReader, plain::Glance, reads::ReadReader,
    session_state::ChangeReader, transaction_control::EffectReader,
};

/// Reads `sql` once, without allocating, in time linear in its length.
pub(crate) fn classify(backend: DbBackend, sql: &str) -> Classified {
    // Enough for nearly every statement, and cheaper than the lexer: all of
    // them come through here.
    let plain = Glance::of(backend, sql);
    if let Some(glance) = plain.as_ref().filter(|glance| glance.is_clear()) {
        return Classified::plain(glance.reads, glance.is());
    }
    let mut lexer = Lexer::new(backend, sql);
    // One pass for all questions: to cut the text into tokens is what costs.
    let mut effect = EffectReader::new(backend);
    let mut change = ChangeReader::new(backend);
    let mut reads = ReadReader::default();
    let mut locks = LockReader::new(backend);
    let mut earlier = EarlierReader::new(backend);
    while let Some(token) = lexer.next() {
        // Each may look ahead, by its own copy of the lexer.
        effect.see(token, lexer);
        change.see(token, lexer);
        reads.see(token, lexer);
        locks.see(token, lexer);
        earlier.see(token, lexer);
    }
    let outdates = change.outdates() || backend != DbBackend::MySql && lexer.is_doubtful();
    let (mut effect, mut change, mut asks) = (effect.found(), change.found(), earlier.asks());
    if lexer.is_doubtful() {
        // The server may read something else there.
        effect = effect.max(Effect::Unknown);
        change = change.max(Change::Session);
    }
    // The strictest: which question such code asks cannot be told.
    if earlier.may_ask_in_code(sql, effect == Effect::Unknown) {
        asks = Earlier::Insert;
    }
    // A statement that begins so controls nothing, even if its quotes read
    // differently on the server.
    effect = plain.as_ref().map_or(effect, |_| Effect::None);
    // Likewise: no name by which a session is changed stands anywhere in its
    // bytes.
    if plain.is_some_and(|glance| !glance.may_change) {
        change = Change::None;
    }
    Classified {
        effect,
        change,
        // What is taken for a read may be cancelled, and run only in part on
        // SQLite: in doubt it is a write (G9, H23).
        reads_only: reads.reads_only() && !lexer.is_doubtful(),
        outdates,
        needs_transaction: locks.needs_transaction(),
        asks,
        is: earlier.is(),
    }
}
