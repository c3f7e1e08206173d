//! [`Timeouts`]: time-outs of a transaction that are settings of the connection, to be put back after it.

use sea_orm::{DbBackend, DbErr};

use super::{
    link::Link,
    settings::{MYSQL_PUT_BACK, Settings, milliseconds},
};

/// Whose time-outs a connection has.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Timeouts {
    /// Its own. PostgreSQL's transactions have theirs beside them, which end with the transaction.
    #[default]
    Own,
    /// A transaction's, on MySQL, which keeps those from before itself.
    MySql,
    /// A transaction's, on SQLite, which waited for so many milliseconds before.
    Sqlite(i32),
}

impl Timeouts {
    /// The next transaction has those of `settings`.
    pub(super) async fn set(&mut self, link: &mut Link, settings: &Settings) -> Result<(), DbErr> {
        match (link.backend, settings.lock_timeout) {
            // They come with BEGIN's text. Noted before it is sent: its answer may be lost.
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
            // G13: no other session gets them.
            Err(_) => link.give_up(),
        }
        put_back
    }
}
