//! [`Redacted`]: the beginning of a statement, for the log.

use sea_orm::DbBackend;

/// The number of bytes of a statement that are kept.
const KEPT: usize = 200;

/// The beginning of a statement. Its memory is used again.
#[derive(Debug, Clone, Default)]
pub(crate) struct Redacted(String);

impl Redacted {
    pub(crate) fn new(sql: &str) -> Self {
        let mut text = Self::default();
        text.keep(sql);
        text
    }

    pub(crate) fn keep(&mut self, sql: &str) {
        // Into the buffer that is there, since every statement comes by here.
        self.0.clear();
        // Whole characters: a slice that ends in one would panic.
        self.0.push_str(&sql[..sql.floor_char_boundary(KEPT)]);
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// The text without the values that stand in it. Text that might be a value
    /// is left out as well.
    pub(crate) fn without_values(&self, backend: DbBackend) -> String {
        let mut shown = String::with_capacity(self.0.len());
        let mut rest = self.0.as_str();
        while let Some(next) = rest.chars().next() {
            let length = match Part::beginning(rest, next, shown.ends_with(is_in_name), backend) {
                Part::Text(length) => {
                    shown.push_str(&rest[..length]);
                    length
                }
                Part::Value(Some(length)) => {
                    shown.push('?');
                    length
                }
                // What cannot be read may be a secret, and so may all that
                // follows it (G15).
                Part::Value(None) => {
                    shown.push('…');
                    return shown;
                }
            };
            rest = &rest[length..];
        }
        // A character has up to four bytes: from here on, some of the text may
        // be missing.
        if self.0.len() + 4 > KEPT {
            shown.push('…');
        }
        shown
    }
}

/// A piece of a statement.
enum Part {
    /// So many bytes to be shown.
    Text(usize),
    /// So many bytes of a value; `None` if its end is not certain.
    Value(Option<usize>),
}

impl Part {
    /// The part that `text` begins with, whose first character is `next`.
    /// `in_name` says that a name stands before it.
    fn beginning(text: &str, next: char, in_name: bool, backend: DbBackend) -> Self {
        let is_mysql = backend == DbBackend::MySql;
        if let Some(end) = end_of_name(next, backend) {
            return Self::name(text, end);
        }
        match next {
            // `t1` is a name, and so is `a$b`.
            '0'..='9' | '$' if in_name => Self::Text(1),
            '0'..='9' => Self::Value(Some(number(text))),
            '\'' => Self::Value(quoted(text, next)),
            '"' if is_mysql => Self::Value(quoted(text, next)),
            _ if begins_unclear(text, is_mysql) => Self::Value(None),
            _ => Self::Text(next.len_utf8()),
        }
    }

    /// The name in quotes that `text` begins with.
    fn name(text: &str, end: char) -> Self {
        // As a whole: an apostrophe in it begins no value, and what stands
        // between two of them would be shown as text.
        match text[1..].find(end) {
            Some(length) if !text[..=length].contains('\'') => Self::Text(length + 2),
            _ => Self::Value(None),
        }
    }
}

/// The quote that ends a name in quotes, if one begins with `quote`.
fn end_of_name(quote: char, backend: DbBackend) -> Option<char> {
    match (quote, backend) {
        ('"', DbBackend::Postgres | DbBackend::Sqlite) => Some('"'),
        ('`', DbBackend::MySql | DbBackend::Sqlite) => Some('`'),
        ('[', DbBackend::Sqlite) => Some(']'),
        _ => None,
    }
}

/// Returns whether a comment or a string in dollars begins here. It may hold
/// anything, and its end would have to be found as the server finds it.
fn begins_unclear(text: &str, is_mysql: bool) -> bool {
    let is_digit = |c: char| c.is_ascii_digit();
    text.starts_with("--")
        || text.starts_with("/*")
        || is_mysql && text.starts_with('#')
        || text
            .strip_prefix('$')
            .is_some_and(|rest| !rest.starts_with(is_digit))
}

/// A character before a digit or a dollar sign that belongs to a name or a
/// placeholder.
fn is_in_name(c: char) -> bool {
    // `?1`, `:1` and `@p1` are placeholders, whose digits say nothing.
    c.is_alphanumeric() || matches!(c, '_' | '$' | '"' | '`' | '?' | ':' | '@')
}

/// The length of a number at the beginning of `text`.
fn number(text: &str) -> usize {
    // Letters as well, as in `0x1F` and `1e5`: cut before them, the rest would
    // be shown as a name (G15).
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '.' | '_'));
    end.unwrap_or(text.len())
}

/// The length of a literal at the beginning of `text`; `None` if its end is not
/// certain. Of a doubled quote each half counts as a literal.
fn quoted(text: &str, quote: char) -> Option<usize> {
    let end = text[1..].find([quote, '\\'])? + 1;
    // A backslash may or may not escape, by the server's settings.
    text[end..].starts_with(quote).then_some(end + 1)
}

#[cfg(test)]
mod tests {
    use sea_orm::DbBackend;

    use super::{KEPT, Redacted};

    const POSTGRES: DbBackend = DbBackend::Postgres;
    const MYSQL: DbBackend = DbBackend::MySql;
    const SQLITE: DbBackend = DbBackend::Sqlite;

    fn shown(backend: DbBackend, sql: &str) -> String {
        Redacted::new(sql).without_values(backend)
    }

    #[test]
    fn placeholders_and_names_are_shown_and_values_are_not() {
        for (backend, sql, expected) in [
            (
                POSTGRES,
                "SELECT * FROM \"t1\" WHERE a = $1 AND b2 = 42",
                "SELECT * FROM \"t1\" WHERE a = $1 AND b2 = ?",
            ),
            (POSTGRES, "SELECT 'it''s', 1.5e3, x", "SELECT ??, ?, x"),
            (POSTGRES, "SELECT 1_000_777", "SELECT ?"),
            (
                SQLITE,
                "SELECT [t 1].a FROM [t 1]",
                "SELECT [t 1].a FROM [t 1]",
            ),
            (
                MYSQL,
                "SELECT `a1`, \"secret\", ? + 0x1F",
                "SELECT `a1`, ?, ? + ?",
            ),
            (
                SQLITE,
                "SELECT \"name\" FROM item LIMIT 10",
                "SELECT \"name\" FROM item LIMIT ?",
            ),
        ] {
            assert_eq!(shown(backend, sql), expected);
        }
    }

    #[test]
    fn what_is_not_certain_is_left_out() {
        for (backend, sql) in [
            (MYSQL, "SELECT 'it\\'s secret', 'secret'"),
            (POSTGRES, "SELECT $$secret$$"),
            (POSTGRES, "SELECT $a$secret$a$"),
            (POSTGRES, "SELECT -- it's\n 'secret'"),
            (POSTGRES, "SELECT /* it's */ 'secret'"),
            (MYSQL, "SELECT # it's\n 'secret'"),
            (SQLITE, "SELECT 'secret"),
            (POSTGRES, "SELECT \"a'b\", 'secret', 'secret'"),
            (SQLITE, "SELECT `it's`, 'secret', 'secret'"),
            (SQLITE, "SELECT [it's], 'secret', 'secret'"),
            (POSTGRES, "SELECT \"secret"),
        ] {
            assert_eq!(shown(backend, sql), "SELECT …", "{sql}");
        }
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let long = shown(POSTGRES, &format!("SELECT {}", "ä".repeat(KEPT)));
        assert!(long.ends_with("ä…"), "{long}");
        assert_eq!(shown(POSTGRES, ""), "");
    }
}
