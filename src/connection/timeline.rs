//! [`Timeline`]: whether a connection leads to the primary, or to one from before a fail-over that still takes writes.
//!
//! Each promotion begins a timeline
//! (<https://www.postgresql.org/docs/current/continuous-archiving.html#BACKUP-TIMELINES>), so the later one is the primary's.

use sea_orm::DbErr;

use super::link::Link;
use crate::error::{Kind, server};

/// Reads the timeline that a server writes. One in recovery writes none, and refuses writes by itself.
const READ_TIMELINE: &str = "SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN 0 \
     ELSE ('x' || pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_flush_lsn()), 8))::pg_catalog.bit(32)::pg_catalog.int4 END";

/// What is known of a connection's server. Behind one connection, a server stays the same.
#[derive(Default)]
pub(super) struct Timeline {
    /// The cluster's latest.
    latest: u32,
    /// The server was on this one, so it is on no earlier one.
    proven: u32,
}

impl Timeline {
    /// Notes the cluster's latest.
    pub(super) fn note_latest(&mut self, latest: u32) {
        self.latest = self.latest.max(latest);
    }

    /// Returns whether the server may be one from before a fail-over. Before the first one, there is none.
    pub(super) fn is_doubtful(&self) -> bool {
        self.latest > self.proven.max(1)
    }

    /// Asks the server for its timeline; an error if that is not the cluster's latest.
    pub(super) async fn prove(&mut self, link: &mut Link) -> Result<(), DbErr> {
        let row = link
            .driver
            .query_unprepared(READ_TIMELINE.to_owned())
            .await?;
        link.driver.drain().await?;
        let row = row.ok_or_else(server::unanswered)?;
        let timeline = row.try_get_by_index::<i32>(0)?.cast_unsigned();
        if timeline != 0 && timeline < self.latest {
            return Err(Kind::FormerPrimary.into_db_err());
        }
        self.proven = timeline;
        Ok(())
    }
}
