use sea_orm::{
    DatabaseBackend::{MySql, Postgres, Sqlite},
    DbBackend,
};

use crate::sql::{calls::calls_nothing_unknown, classify};

fn is_read(backend: DbBackend, sql: &str) -> bool {
    classify(backend, sql).reads_only
}

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

#[test]
fn only_what_calls_nothing_unknown_may_run_twice() {
    for backend in [Postgres, MySql, Sqlite] {
        for sql in [
            "SELECT 1",
            "SELECT id FROM item WHERE id IN (1, 2) AND (a = 1 OR NOT (b = 2))",
            "SELECT COUNT(*) AS n FROM (SELECT id FROM item) AS sub",
            "WITH a AS (SELECT 1) SELECT max(id), coalesce(lower(name), '(x)') FROM a WHERE EXISTS (SELECT 1)",
            "SELECT CAST(a AS decimal(10, 2)), sum(b) OVER (PARTITION BY c) FROM item -- f(x)",
            "SELECT (1), ((2)) FROM item JOIN other USING (id) LIMIT (3)",
            "SELECT name FROM item WHERE name = 'f(x)'",
        ] {
            assert!(calls_nothing_unknown(backend, sql), "{backend:?}: {sql}");
        }
        for sql in [
            "SELECT f()",
            "SELECT f (1) FROM item",
            "SELECT count(*) FROM item WHERE pay(id) > 0",
            "SELECT own.count(*) FROM item",
            "SELECT * FROM f(1)",
            "SELECT \"count\"(1)",
            "SELECT pg_notify('a', 'b')",
        ] {
            assert!(!calls_nothing_unknown(backend, sql), "{backend:?}: {sql}");
        }
    }
    assert!(!calls_nothing_unknown(Postgres, "SELECT U&\"f\"(1)"));
    assert!(!calls_nothing_unknown(MySql, "SELECT `f`(1)"));
    assert!(!calls_nothing_unknown(MySql, "SELECT f/*! */(1)"));
}
