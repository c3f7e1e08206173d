//! The text that opens a transaction with its options in one round trip.

use sea_orm::{AccessMode, DbBackend, DbErr, TransactionOptions};

use crate::error::Kind;

/// The text that opens a transaction, or `None` for the driver's own `BEGIN` or `SAVEPOINT`.
pub(super) fn begin_statement(
    backend: DbBackend,
    options: TransactionOptions,
    depth: usize,
) -> Result<Option<String>, DbErr> {
    let TransactionOptions { isolation_level, access_mode, sqlite_transaction_mode } = options;
    if backend == DbBackend::Sqlite {
        if isolation_level.is_some() || access_mode.is_some() {
            tracing::warn!(target: "tower_sea_orm::session", "SQLite has no isolation levels and no access modes: ignored");
        }
        let mode = sqlite_transaction_mode.filter(|_| depth == 0);
        return Ok(mode.map(|mode| format!("BEGIN {}", mode.sqlite_keyword())));
    }
    if isolation_level.is_none() && access_mode.is_none() {
        return Ok(None);
    }
    if depth > 0 {
        return Err(Kind::NestedOptions.into_db_err());
    }
    let isolation = isolation_level.map(|level| format!(" ISOLATION LEVEL {level}"));
    let access = access_mode.map(|mode| match mode {
        AccessMode::ReadOnly => " READ ONLY",
        AccessMode::ReadWrite => " READ WRITE",
    });
    let (isolation, access) = (isolation.unwrap_or_default(), access.unwrap_or_default());
    Ok(Some(match backend {
        DbBackend::MySql if isolation.is_empty() => format!("START TRANSACTION{access}"),
        DbBackend::MySql => format!("SET TRANSACTION{isolation}; START TRANSACTION{access}"),
        _ => format!("BEGIN{isolation}{access}"),
    }))
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
        let text = |backend| begin_statement(backend, options, 0).ok().flatten().unwrap_or_default();
        assert_eq!(text(DbBackend::Postgres), "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY");
        assert_eq!(text(DbBackend::MySql), "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE; START TRANSACTION READ ONLY");
        assert_eq!(text(DbBackend::Sqlite), "");
    }

    #[test]
    fn a_savepoint_refuses_options_of_its_own() {
        let options = TransactionOptions { isolation_level: Some(IsolationLevel::Serializable), ..Default::default() };
        assert!(begin_statement(DbBackend::Postgres, options, 1).is_err());
    }
}
