//! What a statement's text may do to the connection's transaction state.

/// Whether `sql` may leave a transaction open behind the driver's back.
///
/// Only a single `SELECT`, `INSERT`, `UPDATE`, `DELETE`, `WITH`, `VALUES`, `SHOW` or `EXPLAIN`
/// is known not to; everything else, and every text of several statements, earns the connection
/// a `ROLLBACK` before it goes back. A wrong `true` costs one round trip, a wrong `false` would
/// hand an open transaction to the next request, so doubt means `true`.
pub(crate) fn may_leave_transaction(sql: &str) -> bool {
    const HARMLESS: [&str; 8] = ["select", "insert", "update", "delete", "with", "values", "show", "explain"];
    let sql = sql.trim_end_matches(|c: char| c == ';' || c.is_whitespace());
    let word = sql.trim_start().split(|c: char| !c.is_ascii_alphabetic()).next().unwrap_or_default();
    sql.contains(';') || !HARMLESS.iter().any(|known| known.eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests {
    use super::may_leave_transaction;

    #[test]
    fn ordinary_statements_are_harmless() {
        for sql in ["SELECT 1", " insert into t values (1);\n", "WITH x AS (SELECT 1) SELECT * FROM x"] {
            assert!(!may_leave_transaction(sql), "{sql}");
        }
    }

    #[test]
    fn transaction_control_and_doubt_are_not() {
        for sql in ["BEGIN", "start transaction", "/* hi */ begin", "SELECT 1; BEGIN", "SET autocommit=0", "CALL p()"] {
            assert!(may_leave_transaction(sql), "{sql}");
        }
    }
}
