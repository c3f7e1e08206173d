use sea_orm::{
    DatabaseBackend::{MySql, Postgres, Sqlite},
    DbBackend,
};

use crate::sql::classify;

fn needs_transaction(backend: DbBackend, sql: &str) -> bool {
    classify(backend, sql).needs_transaction
}

#[test]
fn what_ends_with_its_transaction_is_known() {
    for sql in [
        "SELECT * FROM item WHERE id = $1 FOR UPDATE",
        "select * from item for update skip locked",
        "SELECT * FROM item For  Update NOWAIT;",
        "SELECT * FROM item FOR /* all */ SHARE",
        "(SELECT * FROM item FOR UPDATE)",
        "SELECT * FROM (SELECT * FROM item FOR UPDATE) AS locked",
        "WITH a AS (SELECT * FROM item FOR UPDATE) SELECT * FROM a",
        "SELECT * FROM item FOR UPDATE OF item LIMIT 1",
    ] {
        assert!(needs_transaction(MySql, sql), "{sql}");
        assert!(needs_transaction(Postgres, sql), "{sql}");
    }
    for sql in [
        "SELECT * FROM item FOR NO KEY UPDATE",
        "SELECT * FROM item FOR KEY SHARE",
        "SET LOCAL statement_timeout = 100",
        "set local role app",
        "SET CONSTRAINTS ALL DEFERRED",
        "set constraints item_fk immediate",
        "SET TRANSACTION READ ONLY",
        "SELECT set_config('app.tenant', $1, true)",
        "SELECT pg_catalog.set_config('app.tenant', coalesce($1, ''), TRUE)",
        "LOCK TABLE item IN EXCLUSIVE MODE",
        "DECLARE c CURSOR FOR SELECT 1",
    ] {
        assert!(needs_transaction(Postgres, sql), "{sql}");
    }
    assert!(needs_transaction(
        MySql,
        "SELECT * FROM item LOCK IN SHARE MODE"
    ));
    assert!(needs_transaction(
        MySql,
        "SELECT * FROM item FOR UPDATE WAIT 5"
    ));
}

#[test]
fn what_works_without_a_transaction_is_left_alone() {
    for sql in [
        "SELECT 1",
        "SELECT 'FOR UPDATE', \"for\" FROM item",
        "SELECT format, locked, local FROM item -- FOR UPDATE",
        "UPDATE item SET hits = 1 WHERE id = (SELECT id FROM item FOR UPDATE SKIP LOCKED LIMIT 1) RETURNING id",
        "WITH a AS (SELECT * FROM item FOR UPDATE) UPDATE item SET hits = 1",
        "WITH a AS (SELECT * FROM item FOR NO KEY UPDATE) DELETE FROM item",
        "INSERT INTO item SELECT * FROM other FOR UPDATE",
        "SELECT substring(name from 1 for 3) FROM item",
        "SELECT set_config('app.tenant', $1, false)",
        "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
        "SELECT * FROM item FOR UPDATE; UPDATE item SET hits = 1",
        "SET LOCAL statement_timeout = 100; SELECT 1",
        "CREATE POLICY p ON item FOR UPDATE USING (true)",
        "SET statement_timeout = 100",
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
        "SET CONSTRAINTS ALL DEFERRED; INSERT INTO item VALUES (1)",
    ] {
        assert!(!needs_transaction(Postgres, sql), "{sql}");
    }
    assert!(!needs_transaction(MySql, "LOCK TABLES item WRITE"));
    // It is about the next transaction there.
    assert!(!needs_transaction(MySql, "SET TRANSACTION READ ONLY"));
    assert!(!needs_transaction(Sqlite, "SELECT * FROM item FOR UPDATE"));
}
