//! PostgreSQL and SQLite, whose sets of control statements are closed.

use sea_orm::DbBackend;

use super::{postgres, sqlite};
use crate::sql::{
    effect::{Effect, TransactionControl},
    lexer::{Lexer, Token},
};

#[derive(Debug)]
pub(crate) struct ClosedReader {
    is_postgres: bool,
    found: Option<TransactionControl>,
    /// The beginning of the statement has passed.
    is_inside: bool,
    /// In the body of a function or trigger, up to its END. No control statements stand there.
    in_body: bool,
    /// Tokens up to here were read ahead.
    read_ahead: usize,
}

impl ClosedReader {
    pub(super) fn new(backend: DbBackend) -> Self {
        Self {
            is_postgres: backend == DbBackend::Postgres,
            found: None,
            is_inside: false,
            in_body: false,
            read_ahead: 0,
        }
    }

    pub(super) fn found(&self) -> Effect {
        self.found.map_or(Effect::None, Effect::Control)
    }

    pub(super) fn see(&mut self, token: Token<'_>, rest: Lexer<'_>) {
        if self.found.is_some() || rest.position() <= self.read_ahead {
            return;
        }
        match token {
            Token::Symbol(b';') => self.is_inside = false,
            _ if self.is_inside => {}
            Token::Word("") | Token::Symbol(b'(') => {}
            Token::Word(word) => {
                self.is_inside = true;
                self.statement(word, rest);
            }
            _ => self.is_inside = true,
        }
    }

    fn statement(&mut self, word: &str, rest: Lexer<'_>) {
        if self.in_body && word.eq_ignore_ascii_case("end") {
            self.in_body = false;
        } else if !self.is_postgres {
            self.found = sqlite::control(word, rest);
            self.in_body |= sqlite::is_trigger(word, rest);
        } else if let Some(body) = postgres::body_of_routine(word, rest) {
            self.in_body = true;
            self.is_inside = false;
            self.read_ahead = body.position();
        } else {
            self.found = postgres::control(word, rest);
        }
    }
}
