use std::time::Duration;

use sea_orm::{AccessMode, DbBackend, IsolationLevel, TransactionOptions};

use crate::connection::{Settings, begin::begin_statement};

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
fn begin_carries_its_settings_in_the_same_text() {
    let second = Some(Duration::from_secs(1));
    let mut settings = Settings::timeouts(second, None);
    settings.set("app.tenant".into(), "o'\\hara".to_owned());
    let text = |backend, depth| {
        let begin = begin_statement(backend, TransactionOptions::default(), depth);
        begin
            .and_then(|begin| begin.with(&settings, backend, depth))
            .unwrap_or_default()
    };
    let set = "SELECT pg_catalog.set_config('app.tenant',E'o''\\\\hara',true),\
               pg_catalog.set_config('statement_timeout',E'1000',true)";
    assert_eq!(
        text(DbBackend::Postgres, 0).statement.as_deref(),
        Some(&*format!("BEGIN; {set}"))
    );
    // The transaction of a test is around it.
    let inside = text(DbBackend::Postgres, 1);
    assert_eq!((inside.statement, inside.set.as_deref()), (None, Some(set)));
    let mysql = text(DbBackend::MySql, 0).statement.unwrap_or_default();
    assert!(
        mysql.starts_with("SET @tower_sea_orm_") && mysql.ends_with("; BEGIN"),
        "{mysql}"
    );
    assert_eq!(text(DbBackend::Sqlite, 0).statement, None);
}

#[test]
fn a_savepoint_refuses_options_of_its_own() {
    let options = TransactionOptions {
        isolation_level: Some(IsolationLevel::Serializable),
        ..Default::default()
    };
    assert!(begin_statement(DbBackend::Postgres, options, 1).is_err());
}
