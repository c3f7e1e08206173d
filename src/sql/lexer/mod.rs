//! Cuts a text into what matters of it, as the server would.

mod comments;
mod literals;
#[cfg(test)]
pub(super) mod steps;

use sea_orm::{
    DatabaseBackend::{MySql, Postgres, Sqlite},
    DbBackend,
};

use super::words::is_one_of;

/// One piece of a text; comments and spaces are none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token<'a> {
    /// A keyword or a plain identifier.
    Word(&'a str),
    /// What stands between backticks or, but for MySQL, double quotes.
    Name(&'a str),
    /// A string, a number or a placeholder.
    Literal,
    Symbol(u8),
    /// The begin or the end of a comment that some servers execute and others skip.
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

/// The tokens of a text. A copy reads ahead.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lexer<'a> {
    sql: &'a str,
    at: usize,
    backend: DbBackend,
    /// Inside of `/*! ... */`.
    executable: bool,
    /// The text has more than one reading, or ends inside of something.
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

    /// How many bytes were read.
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

    /// Goes on while `part` holds; says what it went over.
    fn advance(&mut self, part: impl Fn(u8) -> bool) -> &'a str {
        let start = self.at;
        while self.byte(0).is_some_and(&part) {
            self.at += 1;
        }
        self.sql.get(start..self.at).unwrap_or_default()
    }

    /// Goes on behind the next `end`; without one, to the end of the text.
    fn skip_past(&mut self, end: &str) -> bool {
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
        let _ = start;
        token
    }
}

impl<'a> Lexer<'a> {
    fn token(&mut self) -> Option<Token<'a>> {
        loop {
            let byte = self.byte(0)?;
            return Some(match (byte, self.backend) {
                (byte, _) if is_space(byte) => {
                    self.at += 1;
                    continue;
                }
                (0xef, Sqlite) if self.starts_with("\u{feff}") => {
                    self.at += '\u{feff}'.len_utf8();
                    continue;
                }
                (b'-' | b'#', _) if self.is_line_comment() => {
                    self.skip_line();
                    continue;
                }
                (b'/', _) if self.starts_with("/*") => match self.comment() {
                    true => Token::Seam,
                    false => continue,
                },
                (b'*', _) if self.executable && self.starts_with("*/") => {
                    self.at += 2;
                    self.executable = false;
                    Token::Seam
                }
                (b'\'', _) | (b'"', MySql) => {
                    self.quoted(byte, self.backend == MySql);
                    Token::Literal
                }
                (b'"', _) | (b'`', MySql | Sqlite) => Token::Name(self.quoted(byte, false)),
                (b'[', Sqlite) => {
                    self.doubtful |= !self.skip_past("]");
                    Token::Literal
                }
                (b'$', Postgres) => {
                    self.dollar();
                    Token::Literal
                }
                (b'$' | b'@' | b':' | b'#', Sqlite) => {
                    self.variable();
                    Token::Literal
                }
                // A word may follow at once: before version 15, PostgreSQL reads `1e'\''` as two literals.
                (b'0'..=b'9', _) => {
                    self.advance(|byte| byte.is_ascii_digit());
                    Token::Literal
                }
                (byte, _) if is_word_part(byte) => {
                    let word = self.advance(is_word_part);
                    if self.backend == Postgres
                        && word.eq_ignore_ascii_case("e")
                        && self.byte(0) == Some(b'\'')
                    {
                        self.escape_string();
                        Token::Literal
                    } else {
                        // No server takes these for spaces; were one to, the word would still be known.
                        Token::Word(
                            word.trim_matches(|c: char| c.is_whitespace() || c == '\u{feff}'),
                        )
                    }
                }
                _ => {
                    self.at += 1;
                    Token::Symbol(byte)
                }
            });
        }
    }
}

/// More than any server skips; what is none there ends in an error there.
fn is_space(byte: u8) -> bool {
    byte <= b' ' || byte == 0x7f
}

pub(super) fn is_word_part(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | 0x80..)
}
