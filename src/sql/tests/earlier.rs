use sea_orm::{
    DatabaseBackend::{MySql, Postgres, Sqlite},
    DbBackend,
};

use crate::sql::{Change, Earlier, classify};

fn reads_earlier(backend: DbBackend, sql: &str) -> bool {
    classify(backend, sql).asks > Earlier::None
}

#[test]
fn what_asks_about_an_earlier_statement_is_found() {
    for (backend, texts) in [
        (
            Postgres,
            &[
                "SELECT lastval()",
                "SELECT pg_catalog.LASTVAL ()",
                "SELECT \"currval\"('item_id_seq')",
                "INSERT INTO line (item) VALUES (currval('item_id_seq'))",
                "UPDATE item SET parent = lastval() RETURNING id",
                "WITH a AS (SELECT currval('s')) SELECT * FROM a",
                "SELECT 1; SELECT lastval()",
                "DELETE FROM item; SELECT lastval()",
                "DO $$ BEGIN PERFORM lastval(); END $$",
                "/* c */ SELECT lastval() -- c",
            ][..],
        ),
        (
            MySql,
            &[
                "SELECT LAST_INSERT_ID()",
                "INSERT INTO line VALUES (last_insert_id( ))",
                "SELECT @@identity",
                "SELECT @@session.last_insert_id, 1",
                "SELECT FOUND_ROWS()",
                "SELECT ROW_COUNT()",
                "SELECT lastval(s)",
                "SELECT PREVIOUS VALUE FOR s",
                "SHOW WARNINGS",
                "show count(*) errors",
                "SHOW PROFILES",
                "SELECT @@warning_count",
                "GET DIAGNOSTICS @n = NUMBER",
                "SET @a = 1; SELECT LAST_INSERT_ID()",
                "EXECUTE IMMEDIATE 'SELECT LAST_INSERT_ID()'",
                "SELECT /*!999999 ' */ LAST_INSERT_ID() /*!999999 ' */",
            ],
        ),
        (
            Sqlite,
            &[
                "SELECT last_insert_rowid()",
                "SELECT changes()",
                "SELECT Total_Changes ( )",
                "INSERT INTO line VALUES (last_insert_rowid())",
                "PRAGMA data_version",
            ],
        ),
    ] {
        for sql in texts {
            assert!(reads_earlier(backend, sql), "{backend:?}: {sql}");
        }
    }
}

#[test]
fn what_asks_about_itself_or_nothing_is_not() {
    for (backend, texts) in [
        (
            Postgres,
            &[
                "INSERT INTO item DEFAULT VALUES; SELECT lastval()",
                "INSERT INTO item DEFAULT VALUES RETURNING currval('item_id_seq')",
                "SELECT nextval('s'), currval('s')",
                "SELECT setval('s', 1); SELECT currval('s')",
                "SELECT lastval FROM item",
                "SELECT 'lastval()'",
                "CREATE VIEW last AS SELECT lastval()",
                "INSERT INTO currval (id) VALUES (1)",
                "ALTER TABLE item ALTER COLUMN id SET DEFAULT currval('s')",
                "SELECT changes(), last_insert_id()",
                "SELECT 1",
            ][..],
        ),
        (
            MySql,
            &[
                "INSERT INTO item VALUES (1); SELECT LAST_INSERT_ID()",
                "UPDATE item SET id = LAST_INSERT_ID(id + 1)",
                "SELECT SQL_CALC_FOUND_ROWS * FROM item; SELECT FOUND_ROWS()",
                "SELECT NEXT VALUE FOR s, LASTVAL(s)",
                "SHOW TABLES",
                "SHOW COLUMNS FROM item",
                "SELECT @@sql_mode, @identity",
                "SELECT row_count FROM item",
                "SELECT `found_rows` FROM item",
                "DELETE FROM item; SHOW WARNINGS",
            ],
        ),
        (
            Sqlite,
            &[
                "INSERT INTO item VALUES (1); SELECT last_insert_rowid()",
                "SELECT changes FROM item",
                "INSERT INTO \"changes\" (\"id\") VALUES (1)",
                "CREATE TABLE changes (id integer)",
                "WITH changes (n) AS (SELECT 1) SELECT n FROM changes",
                "SELECT lastval()",
            ],
        ),
    ] {
        for sql in texts {
            assert!(!reads_earlier(backend, sql), "{backend:?}: {sql}");
        }
    }
}

#[test]
fn a_seed_is_nothing_that_a_reset_takes_back() {
    assert_eq!(
        classify(Postgres, "SELECT setseed(0.5)").change,
        Change::Beyond
    );
}

#[test]
fn what_can_be_asked_about_a_statement_is_known() {
    for (sql, is) in [
        ("SELECT 1", Earlier::Any),
        ("INSERT INTO item VALUES (1)", Earlier::Insert),
        (
            "WITH a AS (SELECT 1) INSERT INTO item SELECT * FROM a",
            Earlier::Insert,
        ),
        ("SELECT nextval('s')", Earlier::Insert),
        (
            "UPDATE item SET copy = replace(name, 'a', 'b')",
            Earlier::Write,
        ),
        ("DELETE FROM item", Earlier::Write),
        ("SELECT 1; INSERT INTO item VALUES (1)", Earlier::Insert),
        ("SET x = 1", Earlier::Any),
    ] {
        for backend in [Postgres, MySql, Sqlite] {
            assert_eq!(classify(backend, sql).is, is, "{backend:?}: {sql}");
        }
    }
}
