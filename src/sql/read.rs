//! Whether a text only reads, so that nothing is lost if the server stops half-way.

use sea_orm::DbBackend;

use super::{
    is_one_of,
    lexer::{Lexer, Token},
};

/// First words of statements that read, unless something in them writes.
const READS: [&str; 8] = [
    "select", "values", "table", "with", "show", "describe", "desc", "explain",
];

/// Words that make a statement more than a read, wherever they stand: a column of such a name costs
/// the statement no more than its being finished.
const WRITES: [&str; 17] = [
    "insert",
    "update",
    "delete",
    "merge",
    "replace",
    "into",
    // Locking reads.
    "share",
    "lock",
    "call",
    "procedure",
    // EXPLAIN with these runs the statement.
    "analyze",
    "analyse",
    // Functions.
    "nextval",
    "setval",
    "pg_notify",
    "dblink",
    "dblink_exec",
];

/// Whether `sql` is one statement that only reads; in doubt it is not.
pub(crate) fn is_read(backend: DbBackend, sql: &str) -> bool {
    let mut lexer = Lexer::new(backend, sql);
    let first = lexer.find(|token| *token != Token::Symbol(b'('));
    if !matches!(first, Some(Token::Word(word)) if is_one_of(word, &READS)) {
        return false;
    }
    while let Some(token) = lexer.next() {
        match token {
            Token::Seam => return false,
            Token::Symbol(b';') if lexer.next().is_some() => return false,
            Token::Word(word) if is_one_of(word, &WRITES) && !is_function(word, &lexer) => {
                return false;
            }
            _ => {}
        }
    }
    !lexer.is_doubtful()
}

/// Whether SQLite may stop `sql` after any row: nothing is lost by that.
#[cfg_attr(not(feature = "_sqlx"), allow(dead_code))] // a statement needs a driver
pub(crate) fn is_sqlite_read(sql: &str) -> bool {
    // A SELECT writes nothing there, whatever is in it.
    let word = sql.as_bytes().get(.."select ".len());
    let is_select =
        word.is_some_and(|word| word.eq_ignore_ascii_case(b"select ")) && !sql.contains(';');
    is_select || is_read(DbBackend::Sqlite, sql)
}

/// `replace(...)` and MySQL's `insert(...)` work on strings.
fn is_function(word: &str, rest: &Lexer<'_>) -> bool {
    is_one_of(word, &["insert", "replace"]) && rest.peek() == Some(Token::Symbol(b'('))
}

#[cfg(test)]
mod tests {
    use sea_orm::DatabaseBackend::{MySql, Postgres, Sqlite};

    use super::is_read;

    #[test]
    fn reads_are_recognised() {
        for backend in [Postgres, MySql, Sqlite] {
            for sql in [
                "SELECT 1",
                "  select * from item where name = 'insert into; update'",
                "(SELECT 1) UNION (SELECT 2);",
                "VALUES (1)",
                "WITH a AS (SELECT 1) SELECT * FROM a",
                "/* update */ SELECT replace(name, 'a', 'b') FROM item -- delete",
                "EXPLAIN SELECT 1",
                "SELECT updated_at, deleted, inserted FROM item",
                "SELECT \"update\" FROM item",
            ] {
                assert!(is_read(backend, sql), "{backend:?}: {sql}");
            }
        }
        assert!(is_read(Postgres, "SHOW search_path"));
        assert!(is_read(Postgres, "TABLE item"));
        assert!(is_read(Postgres, "SELECT $$insert into$$"));
        assert!(is_read(MySql, "DESCRIBE item"));
        assert!(is_read(
            MySql,
            "SELECT INSERT(name, 1, 2, 'x'), `into` FROM item"
        ));
    }

    #[test]
    fn what_writes_or_may_write_is_no_read() {
        for backend in [Postgres, MySql, Sqlite] {
            for sql in [
                "",
                ";",
                "INSERT INTO item VALUES (1)",
                "UPDATE item SET hits = 1",
                "WITH a AS (INSERT INTO item VALUES (1) RETURNING id) SELECT * FROM a",
                "WITH a AS (SELECT 1) DELETE FROM item",
                "WITH a AS (SELECT 1) UPDATE item SET hits = 1",
                "SELECT * INTO copy FROM item",
                "SELECT * FROM item FOR UPDATE",
                "SELECT * FROM item FOR SHARE",
                "SELECT 1; DELETE FROM item",
                "SELECT 1; SELECT 2",
                "EXPLAIN ANALYZE DELETE FROM item",
                "EXPLAIN (ANALYZE) SELECT 1",
                "CALL work()",
                "DO 1",
                "SET x = 1",
                "PRAGMA user_version = 1",
                "SELECT nextval('item_id_seq')",
                "SELECT 'unfinished",
            ] {
                assert!(!is_read(backend, sql), "{backend:?}: {sql}");
            }
        }
        assert!(!is_read(MySql, "SELECT 1 /*!50000 INTO @x */"));
        assert!(!is_read(MySql, "/*! SELECT */ 1"));
        assert!(!is_read(MySql, "SELECT * FROM item LOCK IN SHARE MODE"));
        assert!(!is_read(Postgres, "DO $$ BEGIN PERFORM 1; END $$"));
    }
}
