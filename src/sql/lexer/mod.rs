//! Cuts a text into what matters of it, as the server would.

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

    fn is_line_comment(&self) -> bool {
        match self.backend {
            MySql if self.byte(0) == Some(b'#') => true,
            // Without a space it is twice a minus.
            MySql => self.starts_with("--") && self.byte(2).is_none_or(is_space),
            _ => self.starts_with("--"),
        }
    }

    fn skip_line(&mut self) {
        let start = self.at;
        let postgres = self.backend == Postgres;
        self.advance(|byte| byte != b'\n' && !(postgres && byte == b'\r'));
        self.look_for_other_end(start);
    }

    /// Whether the comment that begins here is executable.
    fn comment(&mut self) -> bool {
        if self.backend == MySql {
            let executable = ["/*!", "/*M!"]
                .into_iter()
                .find(|begin| self.starts_with(begin));
            if let Some(begin) = executable {
                self.doubtful |= self.executable;
                self.executable = true;
                self.at += begin.len();
                self.advance(|byte| byte.is_ascii_digit());
                return true;
            }
        }
        self.at += 2;
        if self.backend == Postgres {
            self.nested_comment();
        } else if !self.skip_past("*/") {
            // SQLite closes it at the text's end.
            self.doubtful |= self.backend != Sqlite;
        }
        // A server that skips the comment around this one might take this end for its own.
        self.executable
    }

    fn nested_comment(&mut self) {
        let mut depth = 1_usize;
        while depth > 0 {
            self.advance(|byte| byte != b'*' && byte != b'/');
            if self.starts_with("/*") {
                depth += 1;
                self.at += 2;
            } else if self.starts_with("*/") {
                depth -= 1;
                self.at += 2;
            } else if self.byte(0).is_some() {
                self.at += 1;
            } else {
                self.doubtful = true;
                return;
            }
        }
    }

    /// What stands in the quotes that begin here.
    fn quoted(&mut self, quote: u8, backslash: bool) -> &'a str {
        self.at += 1;
        let start = self.at;
        loop {
            self.advance(|byte| byte != quote && byte != b'\\');
            self.at += match self.byte(0) {
                None => {
                    self.doubtful = true;
                    break;
                }
                Some(b'\\') => 1 + usize::from(backslash),
                Some(_) if self.byte(1) == Some(quote) => 2,
                Some(_) => {
                    self.at += 1;
                    break;
                }
            };
        }
        self.look_for_other_end(start);
        self.sql
            .get(start..self.at.saturating_sub(1))
            .unwrap_or_default()
    }

    /// `E'...'` of PostgreSQL; what follows it on other lines continues it.
    fn escape_string(&mut self) {
        loop {
            self.quoted(b'\'', true);
            let mut ahead = *self;
            let mut newline = false;
            loop {
                newline |= ahead.advance(is_space).contains(['\n', '\r']);
                if !ahead.is_line_comment() {
                    break;
                }
                ahead.skip_line();
            }
            if !newline || ahead.byte(0) != Some(b'\'') {
                return;
            }
            *self = ahead;
        }
    }

    /// `$1`, `$$...$$` or `$tag$...$tag$`.
    fn dollar(&mut self) {
        let start = self.at;
        self.at += 1;
        if !self.byte(0).is_some_and(|byte| byte.is_ascii_digit()) {
            let mut tag = *self;
            tag.advance(|byte| is_word_part(byte) && byte != b'$');
            if tag.byte(0) == Some(b'$') {
                self.at = tag.at + 1;
                let delimiter = self.sql.get(start..self.at).unwrap_or_default();
                self.doubtful |= !self.skip_past(delimiter);
            }
        }
    }

    /// A placeholder of SQLite; a parenthesis at its end may hold anything, quotes as well.
    fn variable(&mut self) {
        self.at += 1;
        let mut named = false;
        loop {
            named |= !self.advance(is_word_part).is_empty();
            if self.starts_with("::") {
                self.at += 2;
            } else {
                break;
            }
        }
        if named && self.byte(0) == Some(b'(') {
            self.advance(|byte| {
                byte != b')' && byte != 0 && !byte.is_ascii_whitespace() && byte != 0x0b
            });
        }
    }

    /// A server that skips an executable comment ends it at the first `*/`, in quotes or not.
    fn look_for_other_end(&mut self, start: usize) {
        self.doubtful |= self.executable
            && self
                .sql
                .get(start..self.at)
                .is_none_or(|text| text.contains("*/"));
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
