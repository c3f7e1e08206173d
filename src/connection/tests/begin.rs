use sea_orm::{AccessMode, DbBackend, IsolationLevel, TransactionOptions};

use crate::connection::begin::begin_statement;

#[test]
fn begin_carries_its_options_in_one_text() {
    let options = TransactionOptions {
        isolation_level: Some(IsolationLevel::Serializable),
        access_mode: Some(AccessMode::ReadOnly),
        sqlite_transaction_mode: None,
    };
    let text = |backend| begin_statement(backend, options, 0).unwrap_or_default();
    let sql = |backend| text(backend).statement.unwrap_or_default();
    assert_eq!(
        sql(DbBackend::Postgres),
        "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY"
    );
    assert_eq!(
        sql(DbBackend::MySql),
        "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE; START TRANSACTION READ ONLY"
    );
    assert_eq!(sql(DbBackend::Sqlite), "");
    assert!(text(DbBackend::Sqlite).query_only);
}

#[test]
fn a_savepoint_refuses_options_of_its_own() {
    let options = TransactionOptions {
        isolation_level: Some(IsolationLevel::Serializable),
        ..Default::default()
    };
    assert!(begin_statement(DbBackend::Postgres, options, 1).is_err());
}
