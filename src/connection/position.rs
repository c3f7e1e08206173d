//! What a session's transaction has to do with [positions](Position): a read on a replica waits for one, a write on the
//! primary makes one.

use std::{sync::Arc, time::Duration};

use sea_orm::{AccessMode, DbErr, IsolationLevel, TransactionOptions};
use tokio::time::{Instant, sleep, timeout};

use super::{begin::BeginStatement, link::Link};
use crate::{
    error::{Kind, server},
    position::{Lsn, Position},
};

/// What a transaction has to do with positions.
#[derive(Clone, Default)]
pub(crate) enum Demand {
    #[default]
    None,
    /// Its COMMIT says which position it has made.
    Track,
    /// It reads on a replica.
    Read(Arc<ReadDemand>),
}

/// What a replica has to fulfil for a transaction that reads there.
#[derive(Clone)]
pub(crate) struct ReadDemand {
    /// What it has to have replayed, as a log sequence number.
    pub(crate) at_least: Option<u64>,
    /// For how long it may take to get there.
    pub(crate) wait: Duration,
    /// For how long BEGIN's answer is waited for.
    pub(crate) patience: Duration,
}

/// Reads the position of what was committed.
///
/// What is inserted counts, because with `synchronous_commit` off, which a transaction may set for itself, the answer is
/// ahead of the flush.
/// The timeline is in the name of the log's file (<https://www.postgresql.org/docs/current/wal-internals.html>).
pub(crate) const READ_POSITION: &str = "SELECT pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_flush_lsn()), 8) \
     || '/' || pg_catalog.pg_current_wal_insert_lsn()";

/// The size of a page of the log, and of the header that all of them have but a file's first.
const PAGE: u64 = 8192;
const HEADER: u64 = 24;

/// Reads the answer to [`READ_POSITION`].
pub(crate) fn parse_position(text: &str) -> Option<Position> {
    let (timeline, lsn) = text.split_once('/')?;
    let timeline = u32::from_str_radix(timeline, 16).ok()?;
    let Lsn(lsn) = lsn.parse().ok()?;
    // Behind a record that has filled its page, the next one will begin behind a header. Until it is written, no replica
    // comes that far, and would be waited for in vain.
    let lsn = if lsn % PAGE == HEADER {
        lsn - HEADER
    } else {
        lsn
    };
    Some(Position::at(timeline, lsn))
}

/// The first wait for a replica that is behind, which doubles from then on.
const FIRST_WAIT: Duration = Duration::from_millis(1);

impl ReadDemand {
    /// Begins a transaction that reads on a replica, once the replica is there.
    pub(super) async fn begin(
        &self,
        link: &mut Link,
        begin: BeginStatement,
        options: TransactionOptions,
    ) -> Result<(), DbErr> {
        let text = begin
            .statement
            .unwrap_or_else(|| "BEGIN READ ONLY".to_owned());
        let text = self.text(&text, options);
        let (until, mut pause) = (Instant::now() + self.wait, FIRST_WAIT);
        loop {
            let begun = self.begin_once(link, text.clone()).await;
            let is_behind = begun.as_ref().is_err_and(server::is_division_by_zero);
            if !is_behind {
                return begun;
            }
            // The failed check has left a transaction behind that sqlx does not count.
            link.run("ROLLBACK").await?;
            if Instant::now() + pause > until {
                return Err(Kind::ReplicaBehind.into_db_err());
            }
            sleep(pause).await;
            pause *= 2;
        }
    }

    async fn begin_once(&self, link: &mut Link, text: String) -> Result<(), DbErr> {
        // Nothing has happened yet, so that it may be given up for one on another server.
        let answered = timeout(self.patience, link.begin(Some(text))).await;
        answered.unwrap_or_else(|_| {
            link.lose();
            Err(server::unanswered())
        })
    }

    /// Puts the check behind BEGIN, as an error if it fails: one round trip for both.
    fn text(&self, begin: &str, options: TransactionOptions) -> String {
        let Some(lsn) = self.at_least else {
            return begin.to_owned();
        };
        // Without COALESCE, a server that has never replayed anything would pass.
        let check = format!(
            "SELECT 1 / COALESCE(pg_catalog.pg_last_wal_replay_lsn() >= '{}'::pg_catalog.pg_lsn, false)::pg_catalog.int4",
            Lsn(lsn)
        );
        let is_read_committed = matches!(
            options.isolation_level,
            Some(IsolationLevel::ReadCommitted | IsolationLevel::ReadUncommitted)
        );
        if !is_read_committed {
            // Its snapshot may be taken before the check looks: what is replayed in between would pass and not be seen.
            // The level is the server's default where none is given.
            format!("BEGIN READ ONLY; {check}; COMMIT; {begin}")
        } else {
            // Each statement has its own snapshot, so the check's is of before what comes next.
            match begin.split_once(';') {
                Some((begin, set_up)) => format!("{begin}; {check};{set_up}"),
                None => format!("{begin}; {check}"),
            }
        }
    }
}

impl Demand {
    /// Returns the options of a transaction that has to do with this: on a replica, it reads only.
    pub(crate) fn options(&self, options: TransactionOptions) -> TransactionOptions {
        match self {
            Self::Read(_) => TransactionOptions {
                access_mode: Some(AccessMode::ReadOnly),
                ..options
            },
            _ => options,
        }
    }

    pub(crate) fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }
}
