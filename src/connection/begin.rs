//! The text that opens a transaction with its options in one round trip.

use sea_orm::{AccessMode, DbBackend, DbErr, TransactionOptions};

use super::{link::Link, settings::Settings};
use crate::error::Kind;

/// The way to open a transaction.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct BeginStatement {
    /// The text, or `None` for the driver's own `BEGIN` or `SAVEPOINT`.
    pub(super) statement: Option<String>,
    /// SQLite's transactions have no access mode: the connection gets one instead.
    pub(super) query_only: bool,
    /// Sets what BEGIN's text could not: a savepoint has none of its own.
    pub(super) set: Option<String>,
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
            ..BeginStatement::default()
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
        ..BeginStatement::default()
    })
}

impl BeginStatement {
    /// Has it set `settings` as well, in the same text.
    pub(super) fn with(
        mut self,
        settings: &Settings,
        backend: DbBackend,
        depth: usize,
    ) -> Result<Self, DbErr> {
        let Some(set) = settings.text(backend).map_err(Kind::into_db_err)? else {
            return Ok(self);
        };
        if depth > 0 {
            self.set = Some(set);
            return Ok(self);
        }
        let begin = self.statement.as_deref().unwrap_or("BEGIN");
        self.statement = Some(match backend {
            // PostgreSQL's are local to the transaction, so they come after it has begun.
            DbBackend::Postgres => format!("{begin}; {set}"),
            _ => format!("{set}; {begin}"),
        });
        Ok(self)
    }

    /// Opens the transaction.
    pub(super) async fn send(self, link: &mut Link) -> Result<(), DbErr> {
        let several = self.statement.as_ref().is_some_and(|sql| sql.contains(';'));
        let begun = link.begin(self.statement).await;
        if begun.is_err() && several && link.backend == DbBackend::MySql {
            // The first half may have taken effect: the next transaction must not inherit it. PostgreSQL has aborted the
            // transaction by it, which is rolled back before anything else runs: the connection is suspect.
            link.give_up();
        }
        begun?;
        match self.set {
            Some(set) => link.run(set).await,
            None => Ok(()),
        }
    }
}
