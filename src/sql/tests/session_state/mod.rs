mod mysql;
mod postgres;
mod property;
mod sqlite;

use sea_orm::{
    DatabaseBackend::{MySql, Postgres, Sqlite},
    DbBackend,
};

use crate::sql::{
    Change::{self, Beyond, Locks, Session, Transaction},
    classify,
};

fn change(backend: DbBackend, sql: &str) -> Change {
    classify(backend, sql).change
}

/// What stands around a statement and changes nothing.
fn dressed(backend: DbBackend, sql: &str) -> Vec<String> {
    let mut texts = vec![
        sql.to_owned(),
        sql.to_uppercase(),
        format!("  {sql} ; "),
        format!("\r\n\t{sql}\r\n"),
        format!(";;; {sql}"),
        format!("SELECT 1; {sql}; SELECT 2"),
        format!("{sql}; INSERT INTO t VALUES ('it''s')"),
        format!("/* it's */ {sql} -- \" done"),
        format!("INSERT INTO t VALUES ('/*'); {sql}; -- '*/"),
    ];
    if backend == MySql {
        texts.extend([
            format!("/*!50000 {sql} */"),
            format!("/*M! {sql} */; SELECT 1"),
        ]);
    }
    texts
}

fn assert_changes(backend: DbBackend, expected: Change, texts: &[&str]) {
    for sql in texts {
        for text in dressed(backend, sql) {
            assert_eq!(change(backend, &text), expected, "{backend:?}: {text}");
        }
    }
}

#[test]
fn what_cannot_be_read_counts_as_changed() {
    for (backend, sql) in [
        (Postgres, "truncate t; select 'a"),
        (Postgres, "analyze /* t"),
        (MySql, "truncate t; select `a"),
        (MySql, "select 1 /*!999999 ' */; -- '"),
        (Sqlite, "drop table [t"),
    ] {
        assert!(change(backend, sql) >= Session, "{backend:?}: {sql}");
    }
}
