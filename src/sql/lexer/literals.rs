//! Quotes and other literals.

use super::{Lexer, is_space, is_word_part};

impl<'a> Lexer<'a> {
    /// Takes the quotes that begin here, and returns their content.
    pub(super) fn quoted(&mut self, quote: u8, backslash: bool) -> &'a str {
        self.at += 1;
        let start = self.at;
        loop {
            self.advance(|byte| byte != quote && byte != b'\\');
            self.at += match self.byte(0) {
                None => {
                    self.doubtful = true;
                    break;
                }
                // Where it escapes, it takes the next byte along, a quote above
                // all.
                Some(b'\\') => 1 + usize::from(backslash),
                // A doubled quote stands for itself.
                Some(_) if self.byte(1) == Some(quote) => 2,
                Some(_) => {
                    self.at += 1;
                    break;
                }
            };
        }
        // A server that skips the comment around it sees no quotes.
        self.look_for_other_end(start);
        self.sql
            .get(start..self.at.saturating_sub(1))
            .unwrap_or_default()
    }

    /// `E'...'` of PostgreSQL; what follows it on other lines continues it.
    pub(super) fn escape_string(&mut self) {
        loop {
            self.quoted(b'\'', true);
            // A copy: what follows belongs to the literal only if a quote does.
            let mut ahead = *self;
            let mut newline = false;
            loop {
                newline |= ahead.advance(is_space).contains(['\n', '\r']);
                if !ahead.is_line_comment() {
                    break;
                }
                ahead.skip_line();
            }
            // On the same line it is a new literal, and without the E its
            // backslashes mean nothing
            // (<https://www.postgresql.org/docs/current/sql-syntax-lexical.html#SQL-SYNTAX-STRINGS>).
            if !newline || ahead.byte(0) != Some(b'\'') {
                return;
            }
            *self = ahead;
        }
    }

    /// `$1`, `$$...$$` or `$tag$...$tag$`.
    pub(super) fn dollar(&mut self) {
        let start = self.at;
        self.at += 1;
        // A tag begins as a name does: `$1` is a placeholder, and `$1$` no
        // quote.
        if !self.byte(0).is_some_and(|byte| byte.is_ascii_digit()) {
            let mut tag = *self;
            // Without a second dollar sign it is no quote, and nothing but the
            // sign was read.
            tag.advance(|byte| is_word_part(byte) && byte != b'$');
            if tag.byte(0) == Some(b'$') {
                self.at = tag.at + 1;
                let delimiter = self.sql.get(start..self.at).unwrap_or_default();
                self.doubtful |= !self.skip_past(delimiter);
            }
        }
    }

    /// A placeholder of SQLite; a parenthesis at its end may hold anything,
    /// quotes as well.
    pub(super) fn variable(&mut self) {
        self.at += 1;
        let mut named = false;
        loop {
            // SQLite allows `::` in names, for Tcl.
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
}
