//! What a statement's text may do to the connection's transaction state.

/// First words of statements that neither open a transaction nor change how the next one opens.
const HARMLESS: [&str; 24] = [
    "select", "insert", "update", "delete", "with", "values", "show", "explain", "replace", "merge", "create", "alter",
    "drop", "truncate", "comment", "grant", "revoke", "analyze", "vacuum", "pragma", "reindex", "listen", "notify",
    "set",
];

/// Whether `sql` may leave a transaction open behind the driver's back.
///
/// It may unless each of its statements begins with a word known to be harmless; `SET` is, with
/// the exceptions below. What cannot be told apart (a comment in front, a `;` in a string) counts
/// as doubt. A wrong `true` costs a `ROLLBACK` before the connection goes back, a wrong `false` would
/// hand an open transaction to the next request, so doubt means `true`.
pub(crate) fn may_leave_transaction(sql: &str) -> bool {
    sql.split(';').map(str::trim).filter(|statement| !statement.is_empty()).any(|statement| {
        let word = statement.split(|c: char| !c.is_ascii_alphabetic()).next().unwrap_or_default();
        !HARMLESS.iter().any(|known| known.eq_ignore_ascii_case(word))
            || word.eq_ignore_ascii_case("set") && changes_transactions(statement)
    })
}

/// Whether a `SET` is one of those of MySQL and MariaDB that begin or chain transactions.
fn changes_transactions(set: &str) -> bool {
    let set = set.to_ascii_lowercase();
    ["autocommit", "completion_type", "statement"].iter().any(|word| set.contains(word))
}

#[cfg(test)]
mod tests {
    use super::may_leave_transaction;

    #[test]
    fn ordinary_statements_are_harmless() {
        for sql in [
            "SELECT 1",
            " insert into t values (1);\n",
            "WITH x AS (SELECT 1) SELECT * FROM x",
            "SET search_path = a; CREATE TABLE t (id int)",
        ] {
            assert!(!may_leave_transaction(sql), "{sql}");
        }
    }

    #[test]
    fn transaction_control_and_doubt_are_not() {
        for sql in [
            "BEGIN",
            "start transaction",
            "/* hi */ begin",
            "SELECT 1; BEGIN",
            "SET @@AutoCommit=0",
            "SET STATEMENT lock_wait_timeout=1 FOR BEGIN",
            "INSERT INTO t VALUES (1);begin",
            "CALL p()",
        ] {
            assert!(may_leave_transaction(sql), "{sql}");
        }
    }
}
