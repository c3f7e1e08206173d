//! What a session's transaction has to do with [positions](Position): a read on
//! a replica waits for one, a write on the primary makes one.

use std::{borrow::Cow, sync::Arc, time::Duration};

use sea_orm::{AccessMode, DbBackend, DbErr, IsolationLevel, TransactionOptions};
use tokio::time::{Instant, sleep, timeout};

use super::{begin::BeginStatement, link::Link};
use crate::{
    error::{Kind, server},
    position::{Committed, Gtid, Lsn, Place, Position, gtids},
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
    /// What it has to have replayed.
    pub(crate) at_least: Option<Position>,
    /// For how long it may take to get there.
    pub(crate) wait: Duration,
    /// For how long BEGIN's answer is waited for.
    pub(crate) patience: Duration,
}

/// Reads the position of what was committed.
///
/// What is inserted counts, because with `synchronous_commit` off, which a
/// transaction may set for itself, the answer is ahead of the flush. The
/// timeline is in the name of the log's file
/// (<https://www.postgresql.org/docs/current/wal-internals.html>).
const POSTGRES_POSITION: &str = "SELECT pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_flush_lsn()), 8) \
     || '/' || pg_catalog.pg_current_wal_insert_lsn()";

/// The same on MariaDB. Not `@@last_gtid`: the session may have written on
/// another connection, and a transaction that has written nothing leaves the
/// one before.
const MARIADB_POSITION: &str = "SELECT CAST(@@global.gtid_binlog_pos AS CHAR)";

/// The same, or on a node of a Galera cluster what that has committed, as
/// `UUID:number`. Not every server knows these variables by `@@`.
///
/// The number is the same on each node, unlike what `WSREP_LAST_WRITTEN_GTID()`
/// counts, and is counted when the transaction can be seen (MariaDB 10.11,
/// `storage/innobase/trx/trx0trx.cc`, `commit_in_memory`). `GROUP_CONCAT` would
/// cut it where `group_concat_max_len` is small.
const MARIADB_OR_GALERA_POSITION: &str = "SELECT CAST(COALESCE(\
     (SELECT CONCAT(MAX(IF(variable_name = 'WSREP_LOCAL_STATE_UUID', variable_value, NULL)), ':', \
     MAX(IF(variable_name = 'WSREP_LAST_COMMITTED', variable_value, NULL))) \
     FROM information_schema.global_status WHERE variable_name LIKE 'WSREP%' \
     AND EXISTS (SELECT 1 FROM information_schema.global_variables \
     WHERE variable_name = 'WSREP_ON' AND variable_value <> 'OFF')), \
     @@global.gtid_binlog_pos) AS CHAR)";

/// Has a node count what it has acknowledged before it tells the number (H37).
const SYNC_WAIT: &str = "SET STATEMENT wsrep_sync_wait = 1 FOR ";

/// Whether a server is a node of a Galera cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Galera {
    Unknown,
    No,
    Node,
}

/// Returns what reads the position of what was committed. Where it is unknown
/// whether the server is a node, the answer tells, but is no position of a
/// node's.
pub(crate) fn read_position(backend: DbBackend, galera: Galera) -> Cow<'static, str> {
    match (backend, galera) {
        (DbBackend::MySql, Galera::No) => MARIADB_POSITION.into(),
        (DbBackend::MySql, Galera::Unknown) => MARIADB_OR_GALERA_POSITION.into(),
        (DbBackend::MySql, Galera::Node) => {
            format!("{SYNC_WAIT}{MARIADB_OR_GALERA_POSITION}").into()
        }
        _ => POSTGRES_POSITION.into(),
    }
}

/// Returns whether an answer to [`read_position`] is a node's.
pub(super) fn is_of_node(answer: &str) -> bool {
    answer.contains(':')
}

/// Reads the answer to [`read_position`].
pub(crate) fn parse_position(backend: DbBackend, text: &str) -> Option<Position> {
    match backend {
        DbBackend::MySql if is_of_node(text) => text.parse().ok(),
        DbBackend::MySql => match *gtids(text).ok()? {
            [only] => Some(Position::of(only)),
            // Without a binary log there is none. Of several domains, any one
            // may have the write.
            _ => None,
        },
        _ => parse_log_position(text),
    }
}

/// The size of a page of the log, and of the header that all of them have but a
/// file's first.
const PAGE: u64 = 8192;
const HEADER: u64 = 24;

fn parse_log_position(text: &str) -> Option<Position> {
    let (timeline, lsn) = text.split_once('/')?;
    let timeline = u32::from_str_radix(timeline, 16).ok()?;
    let Lsn(lsn) = lsn.parse().ok()?;
    // Behind a record that has filled its page, the next one will begin behind
    // a header. Until it is written, no replica comes that far, and would be
    // waited for in vain. Shown by
    // `g19_a_commit_that_fills_its_page_is_not_waited_for_in_vain`.
    let lsn = if lsn % PAGE == HEADER {
        lsn - HEADER
    } else {
        lsn
    };
    Some(Position::at(timeline, lsn))
}

/// The first wait for a replica that is behind, which doubles from then on.
const FIRST_WAIT: Duration = Duration::from_millis(1);

const LONGEST_WAIT: Duration = Duration::from_secs(3600);

impl ReadDemand {
    /// Begins a transaction that reads on a replica, once the replica is there.
    pub(super) async fn begin(&self, link: &mut Link, begin: BeginStatement) -> Result<(), DbErr> {
        let begin = begin.statement;
        let wait = match self.server_waits() {
            true => Duration::ZERO,
            false => self.wait,
        };
        let (until, mut pause) = (Instant::now() + wait, FIRST_WAIT);
        loop {
            let begun = self.begin_once(link, begin.clone()).await;
            if !begun.as_ref().is_err_and(server::is_failed_check) {
                return begun;
            }
            if link.backend == DbBackend::Postgres {
                // The failed check has left a transaction behind that sqlx does
                // not count. As text, since sqlx's own would send nothing.
                link.run("ROLLBACK").await?;
            }
            if Instant::now() + pause > until {
                // The session goes to the primary with this, and the replica
                // serves others meanwhile
                // (`a_client_that_waits_for_its_write_leaves_the_replicas_to_others`).
                return Err(Kind::ReplicaBehind.into_db_err());
            }
            sleep(pause).await;
            pause *= 2;
        }
    }

    async fn begin_once(&self, link: &mut Link, text: Option<String>) -> Result<(), DbErr> {
        let patience = match self.server_waits() {
            true => self.patience.saturating_add(self.wait),
            false => self.patience,
        };
        // Nothing has happened yet, so that it may be given up for one on
        // another server.
        let answered = timeout(patience, link.begin(text)).await;
        let begun = answered.unwrap_or_else(|_| {
            link.lose();
            Err(server::unanswered())
        });
        if begun
            .as_ref()
            .is_err_and(|error| !server::is_failed_check(error))
            && link.backend == DbBackend::MySql
        {
            // The first half may have taken effect, as in
            // `BeginStatement::send`.
            link.give_up();
        }
        begun
    }

    /// Returns whether the check itself waits, as MariaDB's does.
    fn server_waits(&self) -> bool {
        let place = self.at_least.map(Position::place);
        matches!(place, Some(Place::Gtid(_)))
    }

    /// Has BEGIN check that the server is there, as an error if it is not: one
    /// round trip for both.
    pub(super) fn check(&self, begin: &mut BeginStatement, options: TransactionOptions) {
        let text = begin.statement.take();
        let text = text.unwrap_or_else(|| "BEGIN READ ONLY".to_owned());
        let text = match self.at_least.map(Position::place) {
            Some(Place::Log { lsn, .. }) => with_log_check(&text, lsn, options),
            Some(Place::Gtid(gtid)) => with_gtid_check(&text, gtid, self.wait),
            Some(Place::Galera(committed)) => with_galera_check(&text, committed),
            // Such a read is the primary's.
            Some(Place::Primary) | None => text,
        };
        begin.statement = Some(text);
    }
}

fn with_log_check(begin: &str, lsn: u64, options: TransactionOptions) -> String {
    // Without COALESCE, a server that has never replayed anything would pass.
    // As an error, which ends the text: an answer would have to be looked at
    // before the next statement is sent, and BEGIN would cost a round trip more
    // (`g19_positions_cost_no_round_trip`).
    let check = format!(
        "SELECT 1 / COALESCE(pg_catalog.pg_last_wal_replay_lsn() >= '{}'::pg_catalog.pg_lsn, false)::pg_catalog.int4",
        Lsn(lsn)
    );
    let is_read_committed = matches!(
        options.isolation_level,
        Some(IsolationLevel::ReadCommitted | IsolationLevel::ReadUncommitted)
    );
    if is_read_committed {
        // Each statement has a snapshot of its own: what comes next sees all
        // that the check has seen.
        format!("{begin}; {check}")
    } else {
        // Its snapshot may be taken before the check looks: what is replayed in
        // between would pass and not be seen. The level is the server's default
        // where none is given. Shown by
        // `g19_a_client_reads_its_own_writes_while_replicas_are_paused`.
        format!("BEGIN READ ONLY; {check}; COMMIT; {begin}")
    }
}

/// The check comes before BEGIN: where it fails, the rest of the text is not
/// run, and no transaction is left behind.
///
/// MariaDB compares domains and sequence numbers only. Behind a fail-over,
/// these may count what another server has written: the replica's last
/// transaction has to be the same server's. Asked anew once it has waited,
/// since a variable may have been read before.
fn with_gtid_check(begin: &str, gtid: Gtid, wait: Duration) -> String {
    // MariaDB takes a number that is too large for no limit.
    let wait = wait.min(LONGEST_WAIT).as_secs_f64();
    // After a fail-over, two servers have counted on from the same number
    // (`g18_mariadb_a_number_that_two_servers_have_used_is_not_taken_for_the_other_one`).
    let (domain, server) = (gtid.domain, gtid.server);
    format!(
        "BEGIN NOT ATOMIC DO MASTER_GTID_WAIT('{gtid}', {wait:.6}); \
         IF MASTER_GTID_WAIT('{gtid}', 0) <> 0 \
         OR CONCAT(',', @@global.gtid_slave_pos) NOT LIKE '%,{domain}-{server}-%' \
         THEN SIGNAL SQLSTATE '{}' SET MESSAGE_TEXT = 'the replica is behind'; END IF; END; {begin}",
        server::FAILED_CHECK
    )
}

/// As [`with_gtid_check`], for a node of a Galera cluster. That it takes part
/// in the cluster is checked as well: one that has lost it keeps its number.
///
/// Not `WSREP_SYNC_WAIT_UPTO_GTID()`, which looks at the last part of its GTID
/// only: another cluster's would do.
fn with_galera_check(begin: &str, committed: Committed) -> String {
    let Committed { sequence, .. } = committed;
    let text = committed.to_string();
    let cluster = text.split_once(':').map_or("", |(uuid, _)| uuid);
    format!(
        "BEGIN NOT ATOMIC IF (SELECT COUNT(*) FROM information_schema.global_status \
         WHERE variable_name = 'WSREP_LAST_COMMITTED' AND CAST(variable_value AS SIGNED) >= {sequence} \
         OR variable_name = 'WSREP_LOCAL_STATE_UUID' AND variable_value = '{cluster}' \
         OR variable_name = 'WSREP_READY' AND variable_value = 'ON') <> 3 \
         THEN SIGNAL SQLSTATE '{}' SET MESSAGE_TEXT = 'the node is behind'; END IF; END; {begin}",
        server::FAILED_CHECK
    )
}

impl Demand {
    /// Returns the options of a transaction that has to do with this: on a
    /// replica, it reads only.
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
