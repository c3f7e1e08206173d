//! What a text of SQL may change beyond the transaction it runs in.
//!
//! A statement is known by its first word, and a few more by words inside of it: `TEMPORARY`, a user
//! variable, a function that takes a lock or sets something. What a function of the user's own does
//! cannot be seen. What cannot be told counts as changed.

mod mysql;
mod postgres;
mod sqlite;
mod token;

use sea_orm::{
    DatabaseBackend::{MySql, Postgres, Sqlite},
    DbBackend,
};

use super::{
    change::Change,
    lexer::{Lexer, Token},
    plain::is_plain,
};

/// What `sql` may leave behind, without allocating, in time linear in its length.
pub(crate) fn change(backend: DbBackend, sql: &str) -> Change {
    if is_plain(backend, sql) && !mentions(backend, sql) {
        return Change::None;
    }
    let mut scan = Scan {
        lexer: Lexer::new(backend, sql),
        previous: END,
        first: END,
        begins: true,
    };
    let found = scan.run(backend);
    if scan.lexer.is_doubtful() {
        found.max(Change::Session)
    } else {
        found
    }
}

/// Whether a statement of the usual kind has to be looked at more closely: it has a part of a name that
/// tells.
fn mentions(backend: DbBackend, sql: &str) -> bool {
    let bytes = sql.as_bytes();
    let after = |at: usize, word: &str| {
        bytes
            .get(at..at + word.len())
            .is_some_and(|part| part.eq_ignore_ascii_case(word.as_bytes()))
    };
    let is_after = |at: usize, word: &str| {
        at.checked_sub(word.len())
            .is_some_and(|before| after(before, word))
    };
    bytes.iter().enumerate().any(|(at, byte)| match byte {
        b'_' => {
            TELLING.iter().any(|word| after(at + 1, word))
                || is_after(at, "dblink")
                || is_after(at, "ts") && (after(at + 1, "stat") || after(at + 1, "rewrite"))
        }
        b't' | b'T' => backend == Postgres && after(at + 1, "emp"),
        b'&' => backend == Postgres && after(at + 1, "\""),
        b'@' => backend == MySql,
        b':' => backend == MySql && after(at + 1, "="),
        _ => false,
    })
}

/// What follows the underscore in names of functions that change a session: `set_config`,
/// `pg_try_advisory_lock`, `pg_temp`, `..._origin_session_setup`, `get_lock`, `service_get_..._locks`,
/// `load_extension`, `query_to_xml`; and of the view `pg_settings`.
const TELLING: [&str; 9] = [
    "config",
    "advisory_",
    "temp",
    "origin_session",
    "lock",
    "get_",
    "extension",
    "settings",
    "to_xml",
];

/// What stands before a statement.
const END: Token<'static> = Token::Symbol(b';');

/// A text on its way.
#[derive(Debug)]
struct Scan<'a> {
    lexer: Lexer<'a>,
    /// Seams are passed over.
    previous: Token<'a>,
    /// The statement's first word.
    first: Token<'a>,
    /// The statement has had no word yet.
    begins: bool,
}

impl<'a> Scan<'a> {
    fn run(&mut self, backend: DbBackend) -> Change {
        let mut worst = Change::None;
        let mut behind_seam = false;
        while let Some(token) = self.lexer.next() {
            let found = match token {
                Token::Seam => {
                    behind_seam = true;
                    continue;
                }
                Token::Symbol(b';') => {
                    (self.begins, self.first) = (true, END);
                    Change::None
                }
                Token::Word("") => continue,
                Token::Word(word) if self.begins => {
                    (self.begins, self.first) = (false, token);
                    self.statement(backend, word)
                        .max(self.inside(backend, token))
                }
                // What stands in the comment may be nothing to the server.
                Token::Word(word) if behind_seam => {
                    let found = if mysql::is_known(word) {
                        self.statement(backend, word)
                    } else {
                        Change::None
                    };
                    found.max(self.inside(backend, token))
                }
                token => self.inside(backend, token),
            };
            worst = worst.max(found);
            if worst == Change::Beyond {
                return worst;
            }
            behind_seam = false;
            self.previous = token;
        }
        worst
    }

    /// What a statement leaves behind by its kind.
    fn statement(&mut self, backend: DbBackend, word: &str) -> Change {
        match backend {
            Postgres => postgres::statement(word, self.lexer),
            MySql => match mysql::statement(word, &mut self.lexer) {
                Some(change) => change,
                // The statement proper follows.
                None => {
                    self.begins = true;
                    Change::None
                }
            },
            Sqlite => match sqlite::statement(word, self.lexer) {
                Some(change) => change,
                None => {
                    self.begins = true;
                    Change::None
                }
            },
            _ => Change::Session,
        }
    }

    /// What a statement leaves behind by a word in it.
    fn inside(&self, backend: DbBackend, token: Token<'a>) -> Change {
        match backend {
            Postgres => postgres::inside(token, self.previous, self.lexer),
            MySql => mysql::inside(token, self.previous, self.first, self.lexer),
            Sqlite => sqlite::inside(token, self.previous, self.lexer),
            _ => Change::Session,
        }
    }
}
