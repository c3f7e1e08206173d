//! What a text of SQL may do to the transaction around it.

mod mysql;
mod postgres;
mod sqlite;
mod statement;

use sea_orm::DbBackend;

pub(super) use self::mysql::skip_set_statement;
use super::{effect::Effect, lexer::Lexer, plain::is_plain};

/// What `sql` may do to the transaction around it, without allocating, in time linear in its length.
pub(crate) fn effect(backend: DbBackend, sql: &str) -> Effect {
    if is_plain(backend, sql) {
        return Effect::None;
    }
    let mut lexer = Lexer::new(backend, sql);
    let found = match backend {
        DbBackend::MySql => mysql::effect(&mut lexer),
        DbBackend::Postgres => postgres::effect(&mut lexer),
        DbBackend::Sqlite => sqlite::effect(&mut lexer),
        _ => Effect::Unknown,
    };
    if lexer.is_doubtful() {
        found.max(Effect::Unknown)
    } else {
        found
    }
}
