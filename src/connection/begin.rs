//! The text that opens a transaction with its options in one round trip.

use sea_orm::{AccessMode, DbBackend, DbErr, TransactionOptions};

use crate::error::Kind;

/// How to open a transaction.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct BeginStatement {
    /// The text, or `None` for the driver's own `BEGIN` or `SAVEPOINT`.
    pub(super) statement: Option<String>,
    /// SQLite's transactions have no access mode: the connection gets one instead.
    pub(super) query_only: bool,
}

/// How to open a transaction with `options` inside of `depth` others.
///
/// SQLite has no isolation levels: its transactions are serializable, which is what any of them asks
/// for or more.
pub(super) fn begin_statement(
    backend: DbBackend,
    options: TransactionOptions,
    depth: usize,
) -> Result<BeginStatement, DbErr> {
    let TransactionOptions {
        isolation_level,
        access_mode,
        sqlite_transaction_mode,
    } = options;
    if depth > 0 {
        let has_own = isolation_level.is_some() || access_mode.is_some();
        return if has_own {
            Err(Kind::NestedOptions.into_db_err())
        } else {
            Ok(BeginStatement::default())
        };
    }
    if backend == DbBackend::Sqlite {
        return Ok(BeginStatement {
            statement: sqlite_transaction_mode
                .map(|mode| format!("BEGIN {}", mode.sqlite_keyword())),
            query_only: matches!(access_mode, Some(AccessMode::ReadOnly)),
        });
    }
    if isolation_level.is_none() && access_mode.is_none() {
        return Ok(BeginStatement::default());
    }
    let isolation = isolation_level
        .map(|level| format!(" ISOLATION LEVEL {level}"))
        .unwrap_or_default();
    let access = match access_mode {
        None => "",
        Some(AccessMode::ReadOnly) => " READ ONLY",
        Some(AccessMode::ReadWrite) => " READ WRITE",
    };
    let statement = match backend {
        DbBackend::MySql if isolation.is_empty() => format!("START TRANSACTION{access}"),
        DbBackend::MySql => format!("SET TRANSACTION{isolation}; START TRANSACTION{access}"),
        _ => format!("BEGIN{isolation}{access}"),
    };
    Ok(BeginStatement {
        statement: Some(statement),
        query_only: false,
    })
}

#[cfg(test)]
mod tests {
    use sea_orm::{AccessMode, DbBackend, IsolationLevel, TransactionOptions};

    use super::begin_statement;

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
}
