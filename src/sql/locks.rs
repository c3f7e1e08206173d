//! Statements whose effect ends with their transaction, so that they do nothing outside of one: locks,
//! settings for a transaction, cursors.

use sea_orm::DbBackend;

use super::{
    lexer::{Lexer, Token},
    words::is_one_of,
};

/// Whether `sql` does nothing lasting unless a transaction is open.
pub(crate) fn needs_transaction(backend: DbBackend, sql: &str) -> bool {
    // SQLite locks by itself, and knows none of these.
    if backend == DbBackend::Sqlite || !mentions(backend, sql) {
        return false;
    }
    let mut lexer = Lexer::new(backend, sql);
    let Some(Token::Word(first)) = lexer.find(|token| *token != Token::Symbol(b'(')) else {
        return false;
    };
    let found = match backend {
        DbBackend::Postgres if is_one_of(first, &["lock", "declare"]) => {
            rest_of(lexer).all(|token| !token.is_word("hold"))
        }
        DbBackend::Postgres if first.eq_ignore_ascii_case("set") => {
            lexer.peek().is_some_and(|next| next.is_word("local"))
        }
        _ => is_one_of(first, &["select", "with", "values", "table"]) && locks(backend, lexer),
    };
    // Several statements in one text are one transaction to PostgreSQL.
    let is_alone = || {
        lexer
            .skip_while(|token| *token != Token::Symbol(b';'))
            .nth(1)
            .is_none()
    };
    found && (backend != DbBackend::Postgres || is_alone())
}

/// Whether `sql` has a word at all that may make it so: nearly none has.
fn mentions(backend: DbBackend, sql: &str) -> bool {
    let (sql, is_postgres) = (sql.as_bytes(), backend == DbBackend::Postgres);
    sql.iter().enumerate().any(|(at, byte)| {
        // Lower case of letters; what becomes none of these was none before.
        let words: &[&str] = match byte | 0x20 {
            b'f' => &["for"],
            b'l' if is_postgres => &["lock", "local"],
            b'l' => &["lock"],
            b's' if is_postgres => &["set_config"],
            b'd' if is_postgres => &["declare"],
            _ => return false,
        };
        let before = at.checked_sub(1).and_then(|before| sql.get(before));
        let begins = before
            .is_none_or(|byte| !(byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$')));
        let is = |word: &&str| {
            sql.get(at..at + word.len())
                .is_some_and(|part| part.eq_ignore_ascii_case(word.as_bytes()))
        };
        begins && words.iter().any(is)
    })
}

fn rest_of(lexer: Lexer<'_>) -> impl Iterator<Item = Token<'_>> {
    lexer.take_while(|token| *token != Token::Symbol(b';'))
}

/// Whether a query takes locks, or sets something, for its transaction alone. One that also writes is done
/// with them at its end.
fn locks(backend: DbBackend, rest: Lexer<'_>) -> bool {
    let (mut locks, mut previous) = (false, Token::Symbol(b';'));
    let mut call: Option<Call> = None;
    for token in rest_of(rest) {
        let writes = ["insert", "update", "delete", "merge"]
            .iter()
            .any(|word| token.is_word(word));
        let is_lock = ["update", "share", "key", "no"]
            .iter()
            .any(|word| token.is_word(word))
            && previous.is_word("for");
        let in_share_mode = token.is_word("in") && previous.is_word("lock");
        match &mut call {
            Some(open) => {
                locks |= open.is_local_at(token);
                if open.depth == 0 {
                    call = None;
                }
            }
            None if backend == DbBackend::Postgres && token.is_word("set_config") => {
                call = Some(Call::default())
            }
            None => {}
        }
        locks |= is_lock || in_share_mode;
        // In `FOR NO KEY UPDATE` as well.
        if writes && !is_lock && !previous.is_word("key") {
            return false;
        }
        previous = token;
    }
    locks
}

/// A call of `set_config` on its way.
#[derive(Default)]
struct Call {
    depth: usize,
    commas: usize,
}

impl Call {
    /// Whether `token` is the argument that makes a setting the transaction's own.
    fn is_local_at(&mut self, token: Token<'_>) -> bool {
        match token {
            Token::Symbol(b'(' | b'[') => self.depth += 1,
            Token::Symbol(b')' | b']') => self.depth = self.depth.saturating_sub(1),
            Token::Symbol(b',') if self.depth == 1 => self.commas += 1,
            _ => return self.depth == 1 && self.commas == 2 && token.is_word("true"),
        }
        false
    }
}
