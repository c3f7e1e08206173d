//! [`ChangeReader`]: finds the session state that a text of SQL may leave behind.
//!
//! A statement is known by its first word, and a few more by words inside it:
//! `TEMPORARY`, a user variable, a function that takes a lock or sets
//! something. A function of the user's own cannot be looked into. A statement
//! that is not known counts as a change.

mod mysql;
mod postgres;
mod sqlite;

use sea_orm::{
    DatabaseBackend::{MySql, Postgres, Sqlite},
    DbBackend,
};

pub(super) use self::postgres::is_local;
use super::{
    classified::Change,
    lexer::{Lexer, Token, is_one_of},
    transaction_control::behind_settings,
};

/// The token before a statement.
const END: Token<'static> = Token::Symbol(b';');

/// First words of statements after which prepared ones may not fit their tables
/// any more, or be gone.
const OUTDATING: [&str; 4] = ["alter", "drop", "deallocate", "discard"];

/// Reads one text to its end.
#[derive(Debug)]
pub(super) struct ChangeReader<'a> {
    backend: DbBackend,
    found: Change,
    /// One of its statements may outdate prepared ones.
    outdates: bool,
    /// Seams are passed over.
    previous: Token<'a>,
    /// The statement's first word.
    first: Token<'a>,
    /// The statement has had no word yet.
    begins: bool,
    behind_seam: bool,
    /// Tokens up to here were read ahead.
    read_ahead: usize,
}

impl<'a> ChangeReader<'a> {
    pub(super) fn new(backend: DbBackend) -> Self {
        Self {
            backend,
            found: Change::None,
            outdates: false,
            previous: END,
            first: END,
            begins: true,
            behind_seam: false,
            read_ahead: 0,
        }
    }

    pub(super) fn found(&self) -> Change {
        self.found
    }

    /// Returns whether statements that are prepared may not fit their tables
    /// any more, or be gone.
    pub(super) fn outdates(&self) -> bool {
        // Behind the worst change, no statement is looked at.
        self.backend != MySql && (self.outdates || self.found == Change::Beyond)
    }

    pub(super) fn see(&mut self, token: Token<'a>, rest: Lexer<'a>) {
        // Nothing is worse; and what was read ahead has been judged.
        if self.found == Change::Beyond || rest.position() <= self.read_ahead {
            return;
        }
        let found = match token {
            Token::Seam => {
                self.behind_seam = true;
                return;
            }
            // Nothing but a byte order mark or an odd space, which some server
            // might pass over.
            Token::Word("") => return,
            Token::Word(word) if self.begins => {
                // Later words are judged by `inside`.
                (self.begins, self.first) = (false, token);
                self.statement(word, rest)
            }
            // The comment may be one that the server skips.
            Token::Word(word) if self.behind_seam && mysql::is_known(word) => {
                self.statement(word, rest)
            }
            _ => Change::None,
        };
        if token == END {
            (self.begins, self.first) = (true, END);
        }
        self.found = self.found.max(found).max(self.inside(token, rest));
        // Seams are not noted as `previous`: words around one may follow each
        // other for the server.
        self.behind_seam = false;
        self.previous = token;
    }

    /// The change that a statement makes by its first word.
    fn statement(&mut self, word: &str, rest: Lexer<'a>) -> Change {
        self.outdates |= is_one_of(word, &OUTDATING)
            // CREATE OR REPLACE. A table that is new has no statement yet, and
            // a temporary one may be made with each request.
            || is_one_of(word, &["create"]) && rest.peek().is_some_and(|next| next.is_word("or"));
        let change = match self.backend {
            Postgres => Some(postgres::statement(word, rest)),
            MySql => match behind_settings(word, rest) {
                // MariaDB's settings for one statement
                // (<https://mariadb.com/kb/en/set-statement/>).
                Some(proper) => {
                    self.read_ahead = proper.position();
                    None
                }
                None => Some(mysql::statement(word)),
            },
            Sqlite => sqlite::statement(word, rest),
            // `DbBackend` may grow: of an unknown server, any statement may
            // change the session.
            _ => Some(Change::Session),
        };
        // Otherwise the statement proper follows.
        self.begins |= change.is_none();
        change.unwrap_or_default()
    }

    /// The change that a statement makes by a word inside it.
    fn inside(&self, token: Token<'a>, rest: Lexer<'a>) -> Change {
        match self.backend {
            Postgres => postgres::inside(token, self.previous, rest),
            MySql => mysql::inside(token, self.previous, self.first, rest),
            Sqlite => sqlite::inside(token, self.previous, rest),
            _ => Change::Session,
        }
    }
}
