//! [`LockReader`]: statements whose effect ends with their transaction, so that they do nothing outside one: locks,
//! settings for a transaction, cursors.

use sea_orm::{
    DatabaseBackend::{Postgres, Sqlite},
    DbBackend,
};

use super::{
    lexer::{Lexer, Token},
    session_state::is_local,
};

/// Reads one text to its end.
#[derive(Debug)]
pub(super) struct LockReader<'a> {
    backend: DbBackend,
    place: Place,
    /// A lock, a cursor or a local setting was found.
    found: bool,
    previous: Token<'a>,
}

#[derive(Debug, Clone, Copy)]
enum Place {
    /// Before the first word.
    Start,
    /// In a query, which locks by words inside it.
    Query,
    /// In a LOCK or DECLARE.
    Command,
    /// In a SET LOCAL, or a SET of the transaction's mode or constraints.
    Setting,
    /// Behind the first statement.
    Ended,
    /// In a text that works without a transaction.
    Works,
}

impl<'a> LockReader<'a> {
    pub(super) fn new(backend: DbBackend) -> Self {
        Self {
            backend,
            // SQLite locks by itself, and knows none of these.
            place: if backend == Sqlite {
                Place::Works
            } else {
                Place::Start
            },
            found: false,
            previous: Token::Symbol(b';'),
        }
    }

    /// Returns whether the text does nothing lasting unless a transaction is
    /// open.
    pub(super) fn needs_transaction(&self) -> bool {
        self.found && !matches!(self.place, Place::Works)
    }

    pub(super) fn see(&mut self, token: Token<'a>, rest: Lexer<'a>) {
        self.place = match (self.place, token) {
            (Place::Works, _) => return,
            // `(SELECT ...) UNION ...` is a query as well.
            (Place::Start, Token::Symbol(b'(')) => Place::Start,
            (Place::Start, first) => self.first(first, rest),
            // Several statements in one text are one transaction to PostgreSQL
            // (<https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-MULTI-STATEMENT>).
            // On MySQL, each commits by itself.
            (Place::Ended, _) if self.backend == Postgres => Place::Works,
            (_, Token::Symbol(b';')) => Place::Ended,
            (Place::Query, token) => self.query(token, rest),
            // A cursor WITH HOLD outlives its transaction.
            (Place::Command, token) if token.is_word("hold") => Place::Works,
            (place, _) => place,
        };
    }

    fn first(&mut self, word: Token<'_>, rest: Lexer<'_>) -> Place {
        if word.is_one_of(&["select", "with", "values", "table"]) {
            return Place::Query;
        }
        // `SET SESSION CHARACTERISTICS` is the session's.
        let is_of_transaction = || {
            rest.peek()
                .is_some_and(|next| next.is_one_of(&["local", "constraints", "transaction"]))
        };
        let place = match self.backend {
            // MySQL's LOCK TABLES is the session's, and lasts without a
            // transaction
            // (<https://dev.mysql.com/doc/refman/8.4/en/lock-tables.html>).
            Postgres if word.is_one_of(&["lock", "declare"]) => Place::Command,
            Postgres if word.is_word("set") && is_of_transaction() => Place::Setting,
            _ => Place::Works,
        };
        // It counts only if the place stays one that needs a transaction.
        self.found = true;
        place
    }

    /// A query may take locks, or set something, for its transaction alone. One
    /// that also writes is done with them at its end.
    fn query(&mut self, token: Token<'a>, rest: Lexer<'a>) -> Place {
        let previous = std::mem::replace(&mut self.previous, token);
        let is_lock = token.is_one_of(&["update", "share", "key", "no"]) && previous.is_word("for");
        let in_share_mode = token.is_word("in") && previous.is_word("lock");
        let sets_locally =
            self.backend == Postgres && token.is_word("set_config") && is_local(rest);
        self.found |= is_lock || in_share_mode || sets_locally;
        // In `FOR NO KEY UPDATE` as well.
        let is_of_lock = is_lock || previous.is_word("key");
        if token.is_one_of(&["insert", "update", "delete", "merge"]) && !is_of_lock {
            Place::Works
        } else {
            Place::Query
        }
    }
}
