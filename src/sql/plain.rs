//! [`Glance`]: a look at the bytes of a statement, which is enough for nearly all.
//!
//! It may send a statement to the lexer in vain, but never spare one that the
//! lexer would judge differently; a test compares the two.

use sea_orm::{
    DatabaseBackend::{MySql, Postgres, Sqlite},
    DbBackend,
};

use super::{
    classified::Earlier,
    lexer::{is_one_of, is_word_part},
    reads::words_of_writes,
};

/// The answers that the bytes of an ordinary statement give.
#[derive(Debug, Default)]
pub(super) struct Glance {
    /// It is a query that writes nothing, unless a closer look says otherwise.
    pub(super) reads: bool,
    /// It inserts.
    inserts: bool,
    /// It has a part of a name by which a session is changed, or an earlier
    /// statement asked about.
    pub(super) may_change: bool,
    /// A query has a word or quotes that only the lexer can judge.
    is_unclear: bool,
    double_quotes: usize,
    backticks: usize,
}

impl Glance {
    /// Looks at `sql`; `None` unless it is one statement of the kind that
    /// nearly all are.
    pub(super) fn of(backend: DbBackend, sql: &str) -> Option<Self> {
        let sql = sql
            .trim_ascii_start()
            // Any other `;` may begin a second statement, and is the lexer's.
            .trim_end_matches(|c: char| c == ';' || c.is_ascii_whitespace());
        // The first word is all letters. What follows at once may make another
        // word of it: see `is_unclear`.
        let end = sql
            .bytes()
            .position(|byte| !byte.is_ascii_alphabetic())
            .unwrap_or(sql.len());
        let (word, rest) = sql.split_at(end);
        // WITH may head a write: the words of one are looked for below.
        let reads = is_one_of(word, &["select", "with", "values"]);
        if !reads && !is_one_of(word, &["insert", "update", "delete"]) || rest.contains(';') {
            return None;
        }
        // `/*!` and `/*M!` hold SQL. The single byte is searched first, which
        // is faster and nearly always says no.
        if backend == MySql && rest.contains('!') && (rest.contains("/*!") || rest.contains("/*M!"))
        {
            return None;
        }
        let mut glance = Self {
            reads,
            inserts: is_one_of(word, &["insert"]),
            is_unclear: rest.bytes().next().is_some_and(is_word_part),
            ..Self::default()
        };
        glance.look(backend, rest.as_bytes());
        Some(glance)
    }

    /// Returns what it is to a later statement that asks about it.
    pub(super) fn is(&self) -> Earlier {
        match (self.reads, self.inserts) {
            (true, _) => Earlier::Any,
            (false, false) => Earlier::Write,
            (false, true) => Earlier::Insert,
        }
    }

    /// Returns whether no closer look is needed. Names in quotes end, unless
    /// quotes of two kinds stand in one another.
    pub(super) fn is_clear(&self) -> bool {
        let (double, back) = (self.double_quotes, self.backticks);
        let ends = double % 2 == 0 && back % 2 == 0 && (double == 0 || back == 0);
        !self.may_change && (!self.reads || !self.is_unclear && ends)
    }

    fn look(&mut self, backend: DbBackend, bytes: &[u8]) {
        // The first byte follows the first word.
        let mut in_word = true;
        for (at, &byte) in bytes.iter().enumerate() {
            let behind = || bytes.get(at + 1).copied().unwrap_or_default();
            // Also in strings and comments: a look that is too careful costs
            // only the lexer's time.
            match byte {
                // Most bytes of a statement are such: no more is asked of them.
                b'a'..=b'z' | b'A'..=b'Z' if in_word => continue,
                b'a'..=b'z' | b'A'..=b'Z' => {
                    self.may_change |= may_change(backend, byte, bytes, at);
                    // Only a query is asked whether it also writes.
                    self.is_unclear |= self.reads && is_telling(byte, bytes, at);
                    in_word = true;
                    continue;
                }
                b'_' => {
                    self.may_change |= is_telling_underscore(bytes, at);
                    in_word = true;
                    continue;
                }
                // `U&"…"` may spell any name in escapes
                // (<https://www.postgresql.org/docs/current/sql-syntax-lexical.html#SQL-SYNTAX-IDENTIFIERS>).
                b'&' => self.may_change |= backend == Postgres && behind() == b'"',
                // A user variable, which stays with the connection, or a
                // question such as `@@warning_count`.
                b'@' => self.may_change |= backend == MySql,
                b':' => self.may_change |= backend == MySql && behind() == b'=',
                b'"' => self.double_quotes += 1,
                b'`' => self.backticks += 1,
                // Strings, comments and placeholders of some server: what they
                // hold is none of the statement's words.
                b'\'' | b'\\' | b'[' | b'#' => self.is_unclear = true,
                b'-' => self.is_unclear |= behind() == b'-',
                b'/' => self.is_unclear |= behind() == b'*',
                // `$1` is what SeaORM sends.
                b'$' => self.is_unclear |= !behind().is_ascii_digit(),
                _ => {}
            }
            // Also behind a digit or a letter beyond ASCII, where no word
            // begins: looking for one is safe.
            in_word = false;
        }
    }
}

/// Returns whether a word begins at `at` by which a query may write or lock.
fn is_telling(first: u8, bytes: &[u8], at: usize) -> bool {
    // Whole words only: a column called `updated_at` would send every query
    // that names it to the lexer.
    let is = |word: &&str| {
        is_at(bytes, at, word)
            && bytes
                .get(at + word.len())
                .is_none_or(|byte| !(byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$')))
    };
    words_of_writes(first).iter().any(is) || is(&"for")
}

/// Returns whether a word begins at `at` as only those do by which a session is
/// changed.
fn may_change(backend: DbBackend, first: u8, bytes: &[u8], at: usize) -> bool {
    match first {
        // `SELECT … INTO TEMP t` makes a table that outlives the statement;
        // CREATE is the lexer's anyway.
        b't' | b'T' => backend == Postgres && is_at(bytes, at + 1, "emp"),
        // What asks about an earlier statement, and PostgreSQL's `setseed`.
        b'l' | b'L' => backend != Sqlite && is_at(bytes, at + 1, "astval"),
        b'c' | b'C' => {
            is_at(bytes, at + 1, "urrval") || backend == Sqlite && is_at(bytes, at + 1, "hanges")
        }
        b's' | b'S' => backend == Postgres && is_at(bytes, at + 1, "etseed"),
        // MariaDB's `PREVIOUS VALUE FOR`.
        b'p' | b'P' => backend == MySql && is_at(bytes, at + 1, "revious"),
        _ => false,
    }
}

fn is_telling_underscore(bytes: &[u8], at: usize) -> bool {
    let is_behind = |word: &&str| is_at(bytes, at + 1, word);
    let is_before = |word: &str| {
        at.checked_sub(word.len())
            .is_some_and(|start| is_at(bytes, start, word))
    };
    BEHIND_UNDERSCORES.iter().any(is_behind)
        // `dblink_connect` and its like.
        || is_before("dblink")
        || is_before("ts") && ["stat", "rewrite"].iter().any(is_behind)
        || is_before("row") && is_behind(&"count")
        || is_before("found") && is_behind(&"rows")
}

fn is_at(bytes: &[u8], at: usize, word: &str) -> bool {
    bytes
        .get(at..at + word.len())
        .is_some_and(|part| part.eq_ignore_ascii_case(word.as_bytes()))
}

/// The text behind an underscore in names of functions that change a session:
/// `set_config`, `pg_try_advisory_lock`, `pg_temp`, `..._origin_session_setup`,
/// `get_lock`, `service_get_..._locks`, `load_extension`, `query_to_xml`,
/// `last_insert_id`, `last_insert_rowid`, `total_changes`; and of the view
/// `pg_settings`.
#[rustfmt::skip]
// A name that `session_state` or `earlier` learns needs a part here or in
// `may_change`: without one, the lexer never gets to see it.
const BEHIND_UNDERSCORES: [&str; 11] = [
    "config", "advisory_", "temp", "origin_session", "lock", "get_", "extension", "settings",
    "to_xml", "insert_", "changes",
];
