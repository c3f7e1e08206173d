//! Writes that were refused as read-only, and whether it is the server that takes none.
//!
//! A handler may have its own transaction or session take no writes, and a function may raise the same error. Only
//! the server knows whether it is itself, so it is asked, after the error and never before. sqlx does not ask for a
//! server's role when it connects (<https://github.com/launchbadge/sqlx/issues/2290>).

use sea_orm::{DbBackend, DbErr};

use super::{PinnedConnection, State};
use crate::{error::server, sql::Change};

/// Whose refusal the last call has met.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    None,
    /// The server has not been asked yet: PostgreSQL answers nothing in a transaction that has failed.
    Unasked,
    /// The server's own, whatever the session does.
    Servers,
}

/// 2 if it is the server, the database or the role, whatever the session has set; 1 if the session has set it for
/// later transactions as well.
const POSTGRES: &str = "SELECT CASE WHEN pg_catalog.pg_is_in_recovery() OR reset_val = 'on' THEN 2 \
     WHEN setting = 'on' THEN 1 ELSE 0 END FROM pg_catalog.pg_settings WHERE name = 'default_transaction_read_only'";

/// The same. `super_read_only` implies `read_only`, which is a word from MariaDB 12 on. Each of the two servers reads
/// one of the comments.
const MYSQL: &str = "SELECT CASE WHEN CONCAT(@@global.read_only) NOT IN ('0', 'OFF') OR @@global.innodb_read_only \
     THEN 2 WHEN /*!50720 @@session.transaction_read_only */ /*M! @@session.tx_read_only */ THEN 1 ELSE 0 END";

impl PinnedConnection {
    /// Notes whether a call was refused as a write. In a transaction that was begun READ ONLY it says nothing of the
    /// server, and SQLite has none.
    pub(super) fn note_refusal(&mut self, error: &DbErr) {
        let asked_for = self.reads_only || self.query_only || self.backend == DbBackend::Sqlite;
        if self.base > 0 || asked_for {
            return;
        }
        if server::is_without_quorum(error) {
            self.refusal = Refusal::Servers;
        } else if server::is_read_only(error) {
            self.refusal = Refusal::Unasked;
        }
    }

    /// Asks the server whether it takes no writes, once it can answer.
    pub(super) async fn ask_who_refuses(&mut self) -> Result<(), DbErr> {
        let (sql, answers) = match self.backend {
            DbBackend::MySql => (MYSQL, self.state != State::Broken),
            _ => (
                POSTGRES,
                self.state == State::Known && self.driver.depth() == 0,
            ),
        };
        if !answers {
            return Ok(());
        }
        let answer = self.driver.query_unprepared(sql.to_owned()).await;
        self.driver.drain().await?;
        // A server that cannot say is left: staying with one that takes no writes costs more.
        let answer = match answer {
            Err(error) if server::is_fatal(&error) => return Err(error),
            Err(_) => None,
            Ok(row) => row.and_then(|row| row.try_get_by_index::<i32>(0).ok()),
        };
        self.refusal = if matches!(answer, Some(0 | 1)) {
            Refusal::None
        } else {
            Refusal::Servers
        };
        if answer == Some(1) && !self.reset.is_of_session() {
            // Nothing else would put it back, and the next sessions could not write.
            self.change = Change::Beyond;
        }
        Ok(())
    }

    /// Whether the server takes no writes, as the last call has shown.
    pub(crate) fn is_demoted(&self) -> bool {
        self.refusal == Refusal::Servers
    }

    /// The same, or it is not known yet.
    pub(crate) fn may_be_demoted(&self) -> bool {
        self.refusal != Refusal::None
    }
}
