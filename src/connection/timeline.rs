//! [`Timeline`]: whether a connection leads to the primary, or to one from before a fail-over that still takes writes.
//!
//! On PostgreSQL, each promotion begins a timeline
//! (<https://www.postgresql.org/docs/current/continuous-archiving.html#BACKUP-TIMELINES>), so the later one is the primary's. On
//! MariaDB, a [`Promotion`] tells.

use std::sync::Arc;

use sea_orm::{DbBackend, DbErr, QueryResult};

use super::{
    link::Link,
    promotion::{History, Promotion, READ_HISTORY},
};
use crate::error::{Kind, server};

/// Reads the timeline that a server writes. One in recovery writes none, and refuses writes by itself.
const READ_TIMELINE: &str = "SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN 0 \
     ELSE ('x' || pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_flush_lsn()), 8))::pg_catalog.bit(32)::pg_catalog.int4 END";

/// What is known of a connection's server. Behind one connection, a server stays the same.
#[derive(Default)]
pub(super) struct Timeline {
    /// The cluster's latest. On MariaDB, the number of the promotion.
    latest: u32,
    /// MariaDB's.
    promotion: Option<Arc<Promotion>>,
    /// The server was on this one, so it is on no earlier one.
    proven: u32,
}

impl Timeline {
    /// Returns the latest that was noted.
    pub(super) fn latest(&self) -> u32 {
        self.latest
    }

    /// Notes the cluster's latest, and the promotion that began it on MariaDB.
    pub(super) fn note_latest(&mut self, latest: u32, promotion: Option<Arc<Promotion>>) {
        if self.latest < latest {
            self.latest = latest;
            self.promotion = promotion;
        }
    }

    /// Returns whether the server may be one from before a fail-over. Before the first one, there is none.
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
            let row = ask(link, format!("SELECT {READ_HISTORY}")).await?;
            let history = History::parse(&row.try_get_by_index::<String>(0)?);
            if history
                .as_ref()
                .is_ok_and(|history| promotion.supersedes(history))
            {
                return Ok(true);
            }
            // One that takes no writes may take them later on.
            if history.is_ok_and(|history| !history.is_primary) {
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
