//! Statements of the kind that nearly all are.

use sea_orm::DbBackend;

use super::words::is_one_of;

/// Whether `sql` is one statement of the kind that nearly all are.
pub(super) fn is_plain(backend: DbBackend, sql: &str) -> bool {
    let sql = sql
        .trim_ascii_start()
        .trim_end_matches(|c: char| c == ';' || c.is_ascii_whitespace());
    let end = sql
        .bytes()
        .position(|byte| !byte.is_ascii_alphabetic())
        .unwrap_or(sql.len());
    let (word, rest) = sql.split_at(end);
    if !is_one_of(
        word,
        &["select", "insert", "update", "delete", "with", "values"],
    ) {
        return false;
    }
    if rest.contains(';') {
        return false;
    }
    // `/*!` and `/*M!` hold SQL.
    backend != DbBackend::MySql
        || !rest.contains('!')
        || !(rest.contains("/*!") || rest.contains("/*M!"))
}
