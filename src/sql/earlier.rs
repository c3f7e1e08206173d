//! [`EarlierReader`]: statements whose answer is about an earlier statement of the same connection: the last identifier, the
//! number of rows it changed, its warnings. And those that such questions are
//! about.

use sea_orm::{
    DatabaseBackend::{MySql, Postgres, Sqlite},
    DbBackend,
};

use super::{
    classified::Earlier,
    lexer::{Lexer, Token, is_one_of},
};

/// Functions without an argument that ask about an earlier statement.
// Facts of a connection, which another session may have had in between
// (<https://www.postgresql.org/docs/current/functions-sequence.html>,
// <https://dev.mysql.com/doc/refman/8.4/en/information-functions.html>).
const CALLS: [(DbBackend, &str, Earlier); 8] = [
    (Postgres, "lastval", Earlier::Insert),
    (MySql, "last_insert_id", Earlier::Insert),
    (MySql, "found_rows", Earlier::Any),
    (MySql, "row_count", Earlier::Any),
    (Sqlite, "last_insert_rowid", Earlier::Insert),
    (Sqlite, "changes", Earlier::Write),
    (Sqlite, "total_changes", Earlier::Write),
    // Only its change says something, which another session may have caused.
    (Sqlite, "data_version", Earlier::Any),
];

/// Functions that name a sequence; the second one is MariaDB's.
// These, too, answer for the connection alone
// (<https://mariadb.com/kb/en/previous-value-for-sequence_name/>).
const CALLS_OF_SEQUENCES: [(DbBackend, &str); 2] = [(Postgres, "currval"), (MySql, "lastval")];

/// MySQL's system variables that say the same.
// `identity` is another name of `last_insert_id`; `last_gtid` is MariaDB's, for
// the last transaction of this connection (<https://mariadb.com/kb/en/gtid/>).
const VARIABLES: [(&str, Earlier); 5] = [
    ("identity", Earlier::Insert),
    ("last_insert_id", Earlier::Insert),
    ("warning_count", Earlier::Any),
    ("error_count", Earlier::Any),
    ("last_gtid", Earlier::Any),
];

/// Words behind which a name with parentheses is no call.
// A table may be called `changes`: `INSERT INTO changes (id)` asks nothing.
const NAMING: [&str; 6] = ["into", "table", "on", "references", "with", "exists"];

/// Reads one text to its end.
#[derive(Debug)]
pub(super) struct EarlierReader<'a> {
    backend: DbBackend,
    asks: Earlier,
    /// What is asked from here on and is answered by the text itself.
    own: Earlier,
    /// What can be asked about the statements that were read.
    is: Earlier,
    /// One of them runs code that is not read.
    runs_code: bool,
    /// What can be asked about the one that is being read.
    current: Earlier,
    /// `None` before the statement's first word.
    first: Option<Token<'a>>,
    previous: Token<'a>,
}

impl<'a> EarlierReader<'a> {
    pub(super) fn new(backend: DbBackend) -> Self {
        Self {
            backend,
            asks: Earlier::None,
            own: Earlier::None,
            is: Earlier::None,
            runs_code: false,
            current: Earlier::None,
            first: None,
            previous: Token::Symbol(b';'),
        }
    }

    /// Returns what the text asks about that is not part of it.
    pub(super) fn asks(&self) -> Earlier {
        self.asks
    }

    /// Returns what can be asked about the text.
    pub(super) fn is(&self) -> Earlier {
        self.is.max(self.current)
    }

    /// Returns whether the text runs code that may ask: `DO $$ … lastval() …
    /// $$`. One that `is_doubtful` may run any.
    pub(super) fn may_ask_in_code(&self, sql: &str, is_doubtful: bool) -> bool {
        if !self.runs_code && !is_doubtful {
            return false;
        }
        let names = CALLS
            .iter()
            .map(|(backend, name, _)| (backend, name))
            .chain(
                CALLS_OF_SEQUENCES
                    .iter()
                    .map(|(backend, name)| (backend, name)),
            );
        let mut names = names.filter(|(backend, _)| **backend == self.backend);
        // What inserts first asks about that.
        self.is() < Earlier::Insert
            && names.any(|(_, name)| {
                // Also inside strings, which is where such code stands: `DO
                // 'BEGIN …'`.
                let mut words = sql.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
                words.any(|word| word.eq_ignore_ascii_case(name))
            })
    }

    pub(super) fn see(&mut self, token: Token<'a>, rest: Lexer<'a>) {
        match token {
            Token::Symbol(b';') => {
                self.is = self.is();
                // A later statement of the same text asks about this one on the
                // same connection, whoever had that before.
                self.own = self.own.max(self.is);
                (self.first, self.current) = (None, Earlier::None);
            }
            // No word begins or ends here: what an executable comment holds is
            // read as part of its statement.
            Token::Seam => {}
            _ => {
                let asks = if self.first.is_none() {
                    (self.first, self.current) = (Some(token), Earlier::Any);
                    self.runs_code |= token.is_one_of(&["do", "call", "execute"]);
                    self.command(token, rest)
                } else {
                    self.word(token, rest)
                };
                if asks > self.own {
                    self.asks = self.asks.max(asks);
                }
                self.current = self.current.max(self.is_about(token, rest));
            }
        }
        self.previous = token;
    }

    /// What a statement asks about by its first word.
    fn command(&self, word: Token<'_>, mut rest: Lexer<'_>) -> Earlier {
        let words: &[&str] = match self.backend {
            // `SHOW COUNT(*) WARNINGS` as well.
            MySql if word.is_word("show") => {
                &["warnings", "errors", "profile", "profiles", "count"]
            }
            MySql if word.is_word("get") => &["diagnostics", "current", "stacked"],
            Sqlite if word.is_word("pragma") => &["data_version"],
            _ => &[],
        };
        if rest.next().is_some_and(|next| next.is_one_of(words)) {
            Earlier::Any
        } else {
            Earlier::None
        }
    }

    /// What a statement asks about by a word inside it.
    fn word(&mut self, token: Token<'_>, mut rest: Lexer<'_>) -> Earlier {
        // A definition asks when it is used, which cannot be seen.
        let defines = |first: Token<'_>| first.is_one_of(&["create", "alter"]);
        if self.first.is_some_and(defines) {
            return Earlier::None;
        }
        if token.is_one_of(&["nextval", "setval", "returning"])
            || self.previous.is_word("next") && token.is_word("value")
        {
            // From here on, the statement asks about itself.
            self.own = Earlier::Insert;
        }
        let asks = match token {
            Token::Word(name) | Token::Name(name) => self.call(name, rest),
            Token::Symbol(b'@') if self.previous == token && self.backend == MySql => {
                variable(rest)
            }
            _ => Earlier::None,
        };
        let is_previous_value = self.previous.is_word("previous") && token.is_word("value");
        if is_previous_value && rest.next().is_some_and(|next| next.is_word("for")) {
            Earlier::Insert
        } else {
            asks
        }
    }

    fn call(&self, name: &str, mut rest: Lexer<'_>) -> Earlier {
        if rest.next() != Some(Token::Symbol(b'(')) || self.previous.is_one_of(&NAMING) {
            return Earlier::None;
        }
        let is_empty = rest.next() == Some(Token::Symbol(b')'));
        let is = |known: &str| known.eq_ignore_ascii_case(name);
        let call = CALLS
            .iter()
            .find(|(backend, known, _)| *backend == self.backend && is(known));
        let of_sequence = CALLS_OF_SEQUENCES
            .iter()
            .any(|(backend, known)| *backend == self.backend && is(known));
        match call {
            // `LAST_INSERT_ID(expr)` sets what it returns. And a table may have
            // such a name: `changes (id, …)`.
            Some((_, _, asks)) if is_empty => *asks,
            _ if of_sequence && !is_empty => Earlier::Insert,
            _ => Earlier::None,
        }
    }

    /// What can be asked about a statement with this word.
    fn is_about(&self, token: Token<'_>, rest: Lexer<'_>) -> Earlier {
        const INSERTS: [&str; 4] = ["insert", "replace", "merge", "nextval"];
        // COPY … FROM and LOAD DATA insert. Further in, the words are names of
        // columns.
        if token.is_one_of(&["copy", "load"]) && self.first == Some(token) {
            return Earlier::Insert;
        }
        let is_call = || rest.peek() == Some(Token::Symbol(b'('));
        match token {
            // `replace(...)` and MySQL's `insert(...)` work on strings.
            Token::Word(word) if is_one_of(word, &["insert", "replace"]) && is_call() => {
                Earlier::Any
            }
            Token::Word(word) if is_one_of(word, &INSERTS) => Earlier::Insert,
            Token::Word(word) if is_one_of(word, &["update", "delete"]) => Earlier::Write,
            _ => Earlier::Any,
        }
    }
}

/// What `rest` asks about if it begins with a system variable, perhaps behind
/// its scope.
fn variable(mut rest: Lexer<'_>) -> Earlier {
    let mut name = rest.next();
    // Not `global`, which says nothing of this connection.
    let is_scope = |name: Token<'_>| name.is_one_of(&["session", "local"]);
    if name.is_some_and(is_scope) && rest.next() == Some(Token::Symbol(b'.')) {
        name = rest.next();
    }
    let Some(Token::Word(name) | Token::Name(name)) = name else {
        return Earlier::None;
    };
    let known = VARIABLES
        .iter()
        .find(|(known, _)| known.eq_ignore_ascii_case(name));
    known.map_or(Earlier::None, |(_, asks)| *asks)
}
