use sea_orm::DatabaseBackend::{MySql, Postgres, Sqlite};

use crate::sql::classify;

#[test]
fn what_changes_a_table_outdates_prepared_statements() {
    for sql in [
        "ALTER TABLE item ADD COLUMN more integer",
        "alter type mood add value 'sad'",
        "DROP TABLE item",
        "CREATE OR REPLACE VIEW seen AS SELECT 1",
        "SELECT 1; /* then */ ALTER TABLE item DROP COLUMN more",
        "SELECT setseed(0.5); ALTER TABLE item DROP COLUMN more",
        "SELECT 'unfinished",
    ] {
        assert!(classify(Postgres, sql).outdates, "{sql}");
        assert!(!classify(MySql, sql).outdates, "{sql}");
    }
    assert!(classify(Postgres, "DEALLOCATE ALL").outdates);
    assert!(classify(Postgres, "DISCARD ALL").outdates);
    assert!(classify(Sqlite, "ALTER TABLE item ADD COLUMN more integer").outdates);
}

#[test]
fn other_statements_leave_prepared_ones_as_they_are() {
    for sql in [
        "SELECT 1",
        "INSERT INTO item (name) VALUES ('alter; drop')",
        "UPDATE item SET hits = 1",
        "SELECT \"drop\" FROM item",
        "CREATE TEMPORARY TABLE basket (item integer)",
        "CREATE INDEX item_hits ON item (hits)",
        "SET search_path = other",
    ] {
        for backend in [Postgres, MySql, Sqlite] {
            assert!(!classify(backend, sql).outdates, "{backend:?} {sql}");
        }
    }
}
