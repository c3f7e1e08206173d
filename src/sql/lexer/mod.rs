//! [`Lexer`]: cuts a text into tokens, as the server would: PostgreSQL by
//! <https://www.postgresql.org/docs/current/sql-syntax-lexical.html>, MySQL by
//! <https://dev.mysql.com/doc/refman/8.4/en/language-structure.html>, SQLite by its `tokenize.c`.

mod comments;
mod literals;

use sea_orm::{
    DatabaseBackend::{MySql, Postgres, Sqlite},
    DbBackend,
};

/// One piece of a text; comments and spaces are none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token<'a> {
    /// A keyword or a plain identifier.
    Word(&'a str),
    /// A name in backticks or, but for MySQL, in double quotes.
    Name(&'a str),
    /// A string, a number or a placeholder.
    Literal,
    Symbol(u8),
    /// The begin or the end of a comment that some servers execute and others
    /// skip.
    Seam,
}

impl Token<'_> {
    pub(super) fn is_word(&self, word: &str) -> bool {
        matches!(self, Self::Word(found) if found.eq_ignore_ascii_case(word))
    }

    pub(super) fn is_one_of(&self, words: &[&str]) -> bool {
        matches!(self, Self::Word(found) if is_one_of(found, words))
    }
}

/// The tokens of a text. A copy is used to read ahead.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lexer<'a> {
    sql: &'a str,
    at: usize,
    backend: DbBackend,
    /// Inside `/*! ... */`.
    executable: bool,
    /// The text has more than one reading, or ends inside quotes or a comment.
    doubtful: bool,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(backend: DbBackend, sql: &'a str) -> Self {
        Self {
            sql,
            at: 0,
            backend,
            executable: false,
            doubtful: false,
        }
    }

    pub(super) fn is_executable_comment(&self) -> bool {
        self.executable
    }

    pub(super) fn is_doubtful(&self) -> bool {
        self.doubtful || self.executable
    }

    /// The next token, without taking it.
    pub(super) fn peek(mut self) -> Option<Token<'a>> {
        self.next()
    }

    /// Goes on behind the next `word` of this statement that stands in no
    /// parentheses. False if there is none.
    pub(super) fn pass(&mut self, word: &str) -> bool {
        let mut depth = 0_usize;
        for token in self {
            match token {
                // Behind a seam, servers differ in what they read: nothing is
                // passed over there.
                Token::Symbol(b';') | Token::Seam => return false,
                Token::Symbol(b'(') => depth += 1,
                Token::Symbol(b')') => depth = depth.saturating_sub(1),
                _ if depth == 0 && token.is_word(word) => return true,
                _ => {}
            }
        }
        false
    }

    /// The number of bytes that were read.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    fn byte(&self, offset: usize) -> Option<u8> {
        self.sql.as_bytes().get(self.at + offset).copied()
    }

    fn starts_with(&self, text: &str) -> bool {
        self.sql
            .as_bytes()
            .get(self.at..)
            .is_some_and(|rest| rest.starts_with(text.as_bytes()))
    }

    /// Goes on while `part` holds, and returns the text in between.
    fn advance(&mut self, part: impl Fn(u8) -> bool) -> &'a str {
        let start = self.at;
        // By bytes: what ends a part is ASCII, and no byte of a longer
        // character is.
        while self.byte(0).is_some_and(&part) {
            self.at += 1;
        }
        self.sql.get(start..self.at).unwrap_or_default()
    }

    /// Goes on behind the next `end`; without one, to the end of the text.
    fn skip_past(&mut self, end: &str) -> bool {
        // Without one, what follows is part of it for the server as well.
        let found = self.sql.get(self.at..).and_then(|rest| rest.find(end));
        self.at = found.map_or(self.sql.len(), |offset| self.at + offset + end.len());
        found.is_some()
    }
}

impl<'a> Iterator for Lexer<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        let start = self.at;
        let token = self.token();
        #[cfg(test)]
        steps::count(self.at - start + 1);
        // Without tests, nothing reads it.
        let _ = start;
        token
    }
}

impl<'a> Lexer<'a> {
    /// The next token, behind spaces and comments.
    fn token(&mut self) -> Option<Token<'a>> {
        loop {
            let byte = self.byte(0)?;
            match byte {
                _ if is_space(byte) => self.at += 1,
                // SQLite skips a byte order mark wherever a token could begin.
                0xef if self.backend == Sqlite && self.starts_with("\u{feff}") => {
                    self.at += '\u{feff}'.len_utf8();
                }
                // Both are operators as well.
                b'-' | b'#' if self.is_line_comment() => self.skip_line(),
                b'/' if self.starts_with("/*") => {
                    if self.comment() {
                        return Some(Token::Seam);
                    }
                }
                // Elsewhere it is a multiplication and a division.
                b'*' if self.executable && self.starts_with("*/") => {
                    self.at += 2;
                    self.executable = false;
                    return Some(Token::Seam);
                }
                _ if is_word_part(byte) && !is_literal(byte, self.backend) => {
                    return Some(self.word());
                }
                _ => return Some(self.literal_or_symbol(byte)),
            }
        }
    }

    fn word(&mut self) -> Token<'a> {
        let word = self.advance(is_word_part);
        // Only a quote that follows at once belongs to it; `E` alone is a name.
        let is_escape = self.backend == Postgres && word.eq_ignore_ascii_case("e");
        if is_escape && self.byte(0) == Some(b'\'') {
            self.escape_string();
            return Token::Literal;
        }
        // No server takes these for spaces; were one to, the word would still
        // be known.
        Token::Word(word.trim_matches(|c: char| c.is_whitespace() || c == '\u{feff}'))
    }

    fn literal_or_symbol(&mut self, byte: u8) -> Token<'a> {
        match (byte, self.backend) {
            (b'\'', _) | (b'"', MySql) => _ = self.quoted(byte, self.backend == MySql),
            (b'"', _) | (b'`', MySql | Sqlite) => return Token::Name(self.quoted(byte, false)),
            // As in Microsoft's servers; it has no escapes.
            (b'[', Sqlite) => self.doubtful |= !self.skip_past("]"),
            (b'$', Postgres) => self.dollar(),
            (b'$' | b'@' | b':' | b'#', Sqlite) => self.variable(),
            // A word may follow at once: before version 15, PostgreSQL reads
            // `1e'\''` as two literals.
            (b'0'..=b'9', _) => _ = self.advance(|byte| byte.is_ascii_digit()),
            _ => {
                self.at += 1;
                return Token::Symbol(byte);
            }
        }
        Token::Literal
    }
}

/// Returns whether a byte that may be part of a word begins a literal where no
/// word goes before it.
fn is_literal(byte: u8, backend: DbBackend) -> bool {
    byte.is_ascii_digit() || byte == b'$' && matches!(backend, Postgres | Sqlite)
}

/// More bytes than any server takes for spaces. A server that does not take one
/// for a space refuses the text.
fn is_space(byte: u8) -> bool {
    byte <= b' ' || byte == 0x7f
}

pub(super) fn is_word_part(byte: u8) -> bool {
    // All servers allow `$` inside a name, and take what is beyond ASCII for
    // letters.
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | 0x80..)
}

pub(super) fn is_one_of(word: &str, words: &[&str]) -> bool {
    words.iter().any(|known| known.eq_ignore_ascii_case(word))
}

/// Returns whether `word` begins so, in whatever case.
pub(super) fn starts_with(word: &str, beginning: &str) -> bool {
    word.get(..beginning.len())
        .is_some_and(|found| found.eq_ignore_ascii_case(beginning))
}

#[cfg(test)]
pub(super) mod steps {
    //! Counts what the lexer goes over, for the test that its time is linear.

    use std::cell::Cell;

    thread_local! {
        static STEPS: Cell<usize> = const { Cell::new(0) };
    }

    /// A token was read that is so long.
    pub(super) fn count(bytes: usize) {
        STEPS.set(STEPS.get() + bytes);
    }

    pub(crate) fn reset() {
        STEPS.set(0);
    }

    pub(crate) fn count_so_far() -> usize {
        STEPS.get()
    }
}
