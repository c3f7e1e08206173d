//! Whether a connection leads to the primary: [`Refusal`] for writes that were
//! refused as read-only, and [`Timeline`] for a server from before a fail-over
//! that still takes writes.
//!
//! A handler may have its transaction or session take no writes, and a function
//! may raise the same error. Only the server knows whether it is itself, so it
//! is asked, after the error and never before. sqlx does not ask for a server's
//! role when it connects (<https://github.com/launchbadge/sqlx/issues/179>).
//!
//! On PostgreSQL, each promotion begins a timeline
//! (<https://www.postgresql.org/docs/current/continuous-archiving.html#BACKUP-TIMELINES>),
//! so the later one is the primary's. On MariaDB, a [`Promotion`] tells.

use std::sync::Arc;

use sea_orm::{DbBackend, DbErr, QueryResult};

use super::{
    link::{Condition, Link},
    promotion::{History, Promotion},
    session_state::SessionState,
    transaction::Transaction,
};
use crate::error::{Kind, server};

/// A write that the last call was refused, unless its transaction was begun
/// READ ONLY.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    None,
    /// The server has not been asked yet: PostgreSQL answers nothing in a
    /// transaction that has failed.
    Unasked,
    /// The server takes no writes, whatever the session does.
    Server,
}

/// 2 if it is the server, the database or the role, whatever the session has
/// set; 1 if the session has set it for later transactions as well.
const POSTGRES: &str = "SELECT CASE WHEN pg_catalog.pg_is_in_recovery() OR reset_val = 'on' THEN 2 \
     WHEN setting = 'on' THEN 1 ELSE 0 END FROM pg_catalog.pg_settings WHERE name = 'default_transaction_read_only'";

/// The same. `super_read_only` implies `read_only`, which is a word from
/// MariaDB 12 on. Each of the two servers reads one of the comments.
const MYSQL: &str = "SELECT CASE WHEN CONCAT(@@global.read_only) NOT IN ('0', 'OFF') OR @@global.innodb_read_only \
     THEN 2 WHEN /*!50720 @@session.transaction_read_only */ /*M! @@session.tx_read_only */ THEN 1 ELSE 0 END";

impl Refusal {
    /// A new call may find that the server takes writes again.
    pub(super) fn forget_answer(&mut self) {
        if *self == Self::Server {
            *self = Self::None;
        }
    }

    /// Notes whether a call was refused as a write. In a transaction that was
    /// begun READ ONLY it says nothing of the server, and SQLite has none.
    pub(super) fn note(&mut self, link: &Link, transaction: &Transaction, error: &DbErr) {
        let asked_for = transaction.is_read_only() || link.backend == DbBackend::Sqlite;
        // A test's one connection is not replaced, whatever its server is.
        if link.is_test() || asked_for {
            return;
        }
        // A Galera node says so of itself: there is nothing to ask.
        if server::is_without_quorum(error) {
            *self = Self::Server;
        } else if server::is_read_only(error) {
            *self = Self::Unasked;
        }
    }

    /// Asks the server whether it takes no writes, once it can answer.
    pub(super) async fn ask(
        &mut self,
        link: &mut Link,
        state: &mut SessionState,
    ) -> Result<(), DbErr> {
        let (sql, answers) = match link.backend {
            // MySQL answers inside a transaction as well; PostgreSQL does not
            // in one that has failed.
            DbBackend::MySql => (MYSQL, !link.is_broken()),
            _ => (
                POSTGRES,
                link.condition == Condition::Known && link.counted() == 0,
            ),
        };
        if !answers {
            return Ok(());
        }
        let answer = link.driver.query_unprepared(sql.to_owned()).await;
        // The next call would take the rest for its own answer (H23).
        link.driver.drain().await?;
        if answer.as_ref().is_err_and(server::is_fatal) {
            return answer.map(drop);
        }
        let row = answer.ok().flatten();
        let answer = row.and_then(|row| row.try_get_by_index::<i32>(0).ok());
        // A server that cannot say is left: staying with one that takes no
        // writes costs more.
        *self = match answer {
            Some(0 | 1) => Self::None,
            _ => Self::Server,
        };
        if answer == Some(1) {
            state.read_only_by_default();
        }
        Ok(())
    }
}

/// Reads the timeline that a server writes. One in recovery writes none, and
/// refuses writes by itself.
const READ_TIMELINE: &str = "SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN 0 \
     ELSE ('x' || pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_flush_lsn()), 8))::pg_catalog.bit(32)::pg_catalog.int4 END";

/// What is known of a connection's server. Behind one connection, a server
/// stays the same.
#[derive(Default)]
pub(crate) struct Timeline {
    /// The cluster's latest. On MariaDB, the number of the promotion.
    latest: u32,
    /// MariaDB's.
    promotion: Option<Arc<Promotion>>,
    /// The server was on this one, so it is on no earlier one.
    proven: u32,
}

impl Timeline {
    /// Notes the cluster's latest, and the promotion that began it on MariaDB,
    /// which is asked for only if it is news.
    pub(crate) fn note_latest(
        &mut self,
        latest: u32,
        promotion: impl FnOnce() -> Option<Arc<Promotion>>,
    ) {
        if self.latest < latest {
            self.latest = latest;
            self.promotion = promotion();
        }
    }

    /// Returns whether the server may be one from before a fail-over. Before
    /// the first one, there is none.
    pub(super) fn is_doubtful(&self) -> bool {
        self.latest > self.proven.max(1)
    }

    /// Asks the server; an error if it was the primary before a fail-over.
    pub(super) async fn prove(&mut self, link: &mut Link) -> Result<(), DbErr> {
        let is_former = match link.backend {
            DbBackend::MySql => self.is_left_behind(link).await?,
            _ => self.is_on_earlier_one(link).await?,
        };
        if is_former {
            return Err(Kind::FormerPrimary.into_db_err());
        }
        Ok(())
    }

    async fn is_on_earlier_one(&mut self, link: &mut Link) -> Result<bool, DbErr> {
        let row = ask(link, READ_TIMELINE.to_owned()).await?;
        let timeline = row.try_get_by_index::<i32>(0)?.cast_unsigned();
        self.proven = timeline;
        Ok(timeline != 0 && timeline < self.latest)
    }

    async fn is_left_behind(&mut self, link: &mut Link) -> Result<bool, DbErr> {
        if let Some(promotion) = &self.promotion {
            let row = ask(link, format!("SELECT {}", History::READ)).await?;
            let history = History::parse(&row.try_get_by_index::<String>(0)?);
            if history
                .as_ref()
                .is_some_and(|history| promotion.supersedes(history))
            {
                return Ok(true);
            }
            // One that takes no writes may take them later on.
            if history.is_some_and(|history| !history.is_primary) {
                return Ok(false);
            }
        }
        self.proven = self.latest;
        Ok(false)
    }
}

async fn ask(link: &mut Link, question: String) -> Result<QueryResult, DbErr> {
    let row = link.driver.query_unprepared(question).await?;
    link.driver.drain().await?;
    row.ok_or_else(server::unanswered)
}
