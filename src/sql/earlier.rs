//! [`EarlierReader`]: statements whose answer is about an earlier statement of the same connection: the last identifier, the
//! number of rows it changed, its warnings.

use sea_orm::{
    DatabaseBackend::{MySql, Postgres, Sqlite},
    DbBackend,
};

use super::lexer::{Lexer, Token, is_one_of};

/// The text of a call or a variable by which something is asked about an earlier statement.
fn names(backend: DbBackend) -> &'static [&'static str] {
    match backend {
        Postgres => &["lastval", "currval"],
        // The second one is MariaDB's.
        MySql => &["last_insert_id", "lastval", "found_rows", "row_count"],
        Sqlite => &["last_insert_rowid", "changes", "total_changes"],
        _ => &[],
    }
}

/// MySQL's system variables that say the same.
const VARIABLES: [&str; 4] = ["identity", "last_insert_id", "warning_count", "error_count"];

/// Words behind which a text asks about itself.
const OWN: [&str; 4] = ["nextval", "setval", "returning", "sql_calc_found_rows"];

/// Reads one text to its end.
#[derive(Debug)]
pub(super) struct EarlierReader<'a> {
    backend: DbBackend,
    found: bool,
    /// What is asked from here on is about a statement of this text.
    is_own: bool,
    first: Token<'a>,
    previous: Token<'a>,
}

impl<'a> EarlierReader<'a> {
    pub(super) fn new(backend: DbBackend) -> Self {
        Self {
            backend,
            found: false,
            is_own: false,
            first: Token::Symbol(b';'),
            previous: Token::Symbol(b';'),
        }
    }

    /// Returns whether the text asks about a statement that is not part of it.
    pub(super) fn found(&self) -> bool {
        self.found
    }

    pub(super) fn see(&mut self, token: Token<'a>, rest: Lexer<'a>) {
        if self.found || self.is_own {
            return;
        }
        match token {
            // A query leaves the last identifier as it is, so a reader behind it still asks about what was before the text.
            Token::Symbol(b';') if !self.first.is_one_of(&["select", "values", "table"]) => {
                self.is_own = self.first != Token::Symbol(b';');
            }
            Token::Symbol(b';') => self.first = token,
            _ if self.first == Token::Symbol(b';') => {
                self.first = token;
                self.found = self.backend == MySql && is_about_earlier(token, rest);
            }
            _ if self.is_maker(token, rest) => self.is_own = true,
            _ => self.found = self.asks(token, rest),
        }
        self.previous = token;
    }

    /// Returns whether a `token` says that the text makes itself what it asks for.
    fn is_maker(&self, token: Token<'_>, mut rest: Lexer<'_>) -> bool {
        if token.is_one_of(&OWN) {
            return true;
        }
        // MariaDB's `NEXT VALUE FOR`. And `LAST_INSERT_ID(expr)` sets what it returns.
        self.backend == MySql
            && (self.previous.is_word("next") && token.is_word("value")
                || is_name(token, &["last_insert_id"])
                    && rest.next() == Some(Token::Symbol(b'('))
                    && rest.next() != Some(Token::Symbol(b')')))
    }

    fn asks(&self, token: Token<'_>, rest: Lexer<'_>) -> bool {
        let is_call = || rest.peek() == Some(Token::Symbol(b'('));
        is_name(token, names(self.backend)) && is_call()
            || self.backend == MySql
                && (self.previous.is_word("previous") && token.is_word("value")
                    || token == Token::Symbol(b'@')
                        && self.previous == Token::Symbol(b'@')
                        && is_variable(rest))
    }
}

fn is_name(token: Token<'_>, names: &[&str]) -> bool {
    matches!(token, Token::Word(name) | Token::Name(name) if is_one_of(name, names))
}

/// Returns whether `rest` begins with one of the system variables, perhaps behind its scope.
fn is_variable(mut rest: Lexer<'_>) -> bool {
    let mut name = rest.next();
    let is_scope = |name: Token<'_>| name.is_one_of(&["session", "local"]);
    if name.is_some_and(is_scope) && rest.next() == Some(Token::Symbol(b'.')) {
        name = rest.next();
    }
    name.is_some_and(|name| is_name(name, &VARIABLES))
}

/// Returns whether MySQL's statement that begins with `word` is about the one before it.
fn is_about_earlier(word: Token<'_>, rest: Lexer<'_>) -> bool {
    let next = rest.peek();
    let is_next = |words: &[&str]| next.is_some_and(|next| next.is_one_of(words));
    if word.is_word("show") {
        // `SHOW COUNT(*) WARNINGS` as well.
        return is_next(&["warnings", "errors", "profile", "profiles", "count"]);
    }
    word.is_word("get") && is_next(&["diagnostics", "current", "stacked"])
}
