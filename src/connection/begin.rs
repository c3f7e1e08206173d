//! The text that opens a transaction with its options in one round trip; and
//! [`Timeouts`]: those of a transaction that are settings of the connection, to
//! be put back after it.

use sea_orm::{AccessMode, DbBackend, DbErr, TransactionOptions};

use super::{
    link::Link,
    settings::{MYSQL_PUT_BACK, Settings, milliseconds},
};
use crate::error::Kind;

/// The way to open a transaction.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct BeginStatement {
    /// The text, or `None` for the driver's own `BEGIN` or `SAVEPOINT`.
    pub(super) statement: Option<String>,
    /// SQLite's transactions have no access mode: the connection gets one
    /// instead.
    pub(super) query_only: bool,
    /// Sets what BEGIN's text could not: a savepoint has none of its own.
    pub(super) set: Option<String>,
}

/// Returns how to open a transaction with `options` inside `depth` others.
///
/// SQLite has no isolation levels: its transactions are serializable, which is
/// as strict as any level that can be asked for.
pub(super) fn begin_statement(
    backend: DbBackend,
    options: TransactionOptions,
    depth: usize,
) -> Result<BeginStatement, DbErr> {
    let (isolation_level, access_mode) = (options.isolation_level, options.access_mode);
    let has_none = isolation_level.is_none() && access_mode.is_none();
    // Not on SQLite: its options may name a mode (DEFERRED, IMMEDIATE,
    // EXCLUSIVE), which is neither of the two.
    if has_none && (depth > 0 || backend != DbBackend::Sqlite) {
        return Ok(BeginStatement::default());
    }
    // A savepoint has the level and the mode of the transaction around it: to
    // pass over what was asked for would be silent.
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
        // MySQL's BEGIN takes no access mode
        // (<https://dev.mysql.com/doc/refman/8.4/en/commit.html>).
        DbBackend::MySql if isolation.is_empty() => format!("START TRANSACTION{access}"),
        // There the level is a statement of its own, and counts for the next
        // transaction only. One text for both: one round trip, and no other
        // transaction can be the next one.
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
            // PostgreSQL's are local to the transaction, so they come after it
            // has begun.
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
            // The first half may have taken effect: the next transaction must
            // not inherit it. PostgreSQL has aborted the transaction by it,
            // which is rolled back before anything else runs: the connection is
            // suspect.
            link.give_up();
        }
        begun?;
        match self.set {
            Some(set) => link.run(set).await,
            None => Ok(()),
        }
    }
}

/// Whose time-outs a connection has.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Timeouts {
    /// Its own. PostgreSQL's transactions have theirs beside them, which end
    /// with the transaction.
    #[default]
    Own,
    /// A transaction's, on MySQL, which keeps those from before itself.
    MySql,
    /// A transaction's, on SQLite, which waited for so many milliseconds
    /// before.
    Sqlite(i32),
}

impl Timeouts {
    /// The next transaction has those of `settings`.
    pub(super) async fn set(&mut self, link: &mut Link, settings: &Settings) -> Result<(), DbErr> {
        match (link.backend, settings.lock_timeout) {
            // They come with BEGIN's text. Noted before it is sent: its answer
            // may be lost.
            (DbBackend::MySql, _) if !settings.is_empty() => *self = Self::MySql,
            (DbBackend::Sqlite, Some(timeout)) => {
                let question = "PRAGMA busy_timeout".to_owned();
                let row = link.driver.query_unprepared(question).await?;
                let before = row.ok_or(DbErr::RecordNotFound(String::new()))?;
                *self = Self::Sqlite(before.try_get_by_index(0)?);
                // Zero would be not to wait at all.
                let millis = milliseconds(timeout).unwrap_or(i32::MAX);
                link.run(format!("PRAGMA busy_timeout = {millis}")).await?;
            }
            _ => {}
        }
        Ok(())
    }

    /// The transaction has ended.
    pub(super) async fn put_back(&mut self, link: &mut Link) -> Result<(), DbErr> {
        let put_back = match self {
            Self::Own => return Ok(()),
            Self::MySql => link.run(MYSQL_PUT_BACK).await,
            Self::Sqlite(before) => link.run(format!("PRAGMA busy_timeout = {before}")).await,
        };
        match put_back {
            Ok(()) => *self = Self::Own,
            // Left on the connection, they would hold for the next session as
            // well (G13).
            Err(_) => link.give_up(),
        }
        put_back
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use sea_orm::IsolationLevel;

    use super::*;

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
}
