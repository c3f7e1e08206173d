//! [`EffectReader`]: finds the effect of a text on the transaction around it.

mod closed;
mod mysql;
mod mysql_statement;

use sea_orm::{
    DatabaseBackend::{MySql, Postgres, Sqlite},
    DbBackend,
};

pub(super) use self::mysql_statement::behind_settings;
use self::{closed::ClosedReader, mysql::MySqlReader};
use super::{
    classified::Effect,
    lexer::{Lexer, Token},
};

/// Reads one text to its end.
#[derive(Debug)]
pub(super) enum EffectReader<'a> {
    Closed(ClosedReader),
    MySql(MySqlReader<'a>),
    Other,
}

impl<'a> EffectReader<'a> {
    pub(super) fn new(backend: DbBackend) -> Self {
        match backend {
            Postgres | Sqlite => Self::Closed(ClosedReader::new(backend)),
            MySql => Self::MySql(MySqlReader::default()),
            _ => Self::Other,
        }
    }

    /// Takes the next token, which is followed by `rest`.
    pub(super) fn see(&mut self, token: Token<'a>, rest: Lexer<'a>) {
        match self {
            Self::Closed(reader) => reader.see(token, rest),
            Self::MySql(reader) => reader.see(token, rest),
            Self::Other => {}
        }
    }

    /// The effect of the worst statement so far.
    pub(super) fn found(&self) -> Effect {
        match self {
            Self::Closed(reader) => reader.found(),
            Self::MySql(reader) => reader.found(),
            // `DbBackend` may grow: nothing is known of such a server's
            // statements.
            Self::Other => Effect::Unknown,
        }
    }
}
