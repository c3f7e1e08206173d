//! The text that opens a transaction with its options in one round trip.

use sea_orm::{AccessMode, DbBackend, DbErr, TransactionOptions};

use crate::error::Kind;

/// The way to open a transaction.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct BeginStatement {
    /// The text, or `None` for the driver's own `BEGIN` or `SAVEPOINT`.
    pub(super) statement: Option<String>,
    /// SQLite's transactions have no access mode: the connection gets one instead.
    pub(super) query_only: bool,
}

/// Returns how to open a transaction with `options` inside `depth` others.
///
/// SQLite has no isolation levels: its transactions are serializable, which is as strict as any level that can be asked
/// for.
pub(super) fn begin_statement(
    backend: DbBackend,
    options: TransactionOptions,
    depth: usize,
) -> Result<BeginStatement, DbErr> {
    let (isolation_level, access_mode) = (options.isolation_level, options.access_mode);
    let has_none = isolation_level.is_none() && access_mode.is_none();
    // Not on SQLite: its options may name a mode (DEFERRED, IMMEDIATE, EXCLUSIVE), which is neither of the two.
    if has_none && (depth > 0 || backend != DbBackend::Sqlite) {
        return Ok(BeginStatement::default());
    }
    // A savepoint has the level and the mode of the transaction around it: to pass over what was asked for would be
    // silent.
    if depth > 0 {
        return Err(Kind::NestedOptions.into_db_err());
    }
    if backend == DbBackend::Sqlite {
        let mode = options.sqlite_transaction_mode;
        return Ok(BeginStatement {
            statement: mode.map(|mode| format!("BEGIN {}", mode.sqlite_keyword())),
            query_only: access_mode == Some(AccessMode::ReadOnly),
        });
    }
    let isolation = isolation_level.map(|level| format!(" ISOLATION LEVEL {level}"));
    let isolation = isolation.unwrap_or_default();
    let access = access_mode
        .map(|mode| format!(" {mode}"))
        .unwrap_or_default();
    let statement = match backend {
        DbBackend::MySql if isolation.is_empty() => format!("START TRANSACTION{access}"),
        // There the level is a statement of its own, and counts for the next transaction only. One text for both: one
        // round trip, and no other transaction can be the next one.
        DbBackend::MySql => format!("SET TRANSACTION{isolation}; START TRANSACTION{access}"),
        _ => format!("BEGIN{isolation}{access}"),
    };
    Ok(BeginStatement {
        statement: Some(statement),
        query_only: false,
    })
}
