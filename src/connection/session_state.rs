//! [`SessionState`]: what a session has changed of its connection, to be put back before another one gets it; and
//! [`Reset`]: how much of it.

use sea_orm::{DbBackend, DbErr, Statement};

use super::{
    link::{Condition, Link},
    task::{Begin, Task},
    transaction::Transaction,
};
use crate::{
    error::server,
    sql::{Change, classify},
};

/// Determines how a connection is cleaned up when a session gives it back,
/// beyond the rollback of the session's transactions, which always happens.
///
/// Session state outlives a transaction: settings (`SET`, `set_config(…,
/// false)`), the role, advisory locks, temporary tables, `LISTEN`, cursors
/// `WITH HOLD`. Unless it is reset, the next request on the same connection
/// finds the state that this one left behind.
///
/// | | sent when a session ends |
/// |---|---|
/// | [`None`](Self::None) | nothing |
/// | [`RollbackOnly`](Self::RollbackOnly), the default | a ROLLBACK where raw code may have left a transaction open |
/// | [`SessionState`](Self::SessionState) | one more round trip, but only after statements that may have changed session state |
/// | [`SessionStateAlways`](Self::SessionStateAlways) | one round trip for each session that used its connection |
///
/// The reset is part of giving the connection back: no session gets the
/// connection before it is done, it is bounded by
/// [`release_timeout`](crate::SessionPoolBuilder::release_timeout), and if it
/// fails the connection is closed. Responses do not wait for it. With
/// `SessionState`, a session that changed nothing costs nothing.
///
/// # What is reset
///
/// - **PostgreSQL**: settings, role and session authorization, advisory locks, `LISTEN`, cursors,
///   temporary objects. The memory of sequences (`lastval`) is reset along with these, but does not
///   trigger a reset, because every INSERT would. The driver's prepared statements stay. Values set by
///   `schema_search_path` and `after_connect` are read before the first change (one round trip for each
///   connection that comes from the driver's pool, and only if a change is about to be made) and
///   restored. PostgreSQL does not list parameters with a dot in their name: set those as start-up
///   options or by `ALTER ROLE … SET`, so that they are defaults, to which a reset returns. After a
///   `PREPARE`, `DEALLOCATE`, `DISCARD ALL`, `LOAD` or a named `dblink` connection, the connection is
///   closed.
/// - **MySQL and MariaDB**: locks of `GET_LOCK` and `LOCK TABLES`. sqlx cannot reset such a
///   connection as a whole, so after any other change (`SET`, a user variable, `USE`, a temporary
///   table, `PREPARE`, `CALL`) it is closed.
/// - **SQLite**: the connection is closed after a PRAGMA that sets something, `ATTACH` and temporary
///   objects. The connection of an in-memory database is never closed: temporary objects are dropped and
///   databases detached, but PRAGMA settings stay.
/// - **Raw code** (`with_postgres`, …) may have done anything: on PostgreSQL the session is reset
///   (statements that the code prepared by `PREPARE` stay); on the others the connection is closed.
///
/// # What is detected
///
/// Changes are detected by the text of statements, also inside a batch, and by
/// the built-in functions they name. A statement that failed or was cancelled
/// counts as well. A function or trigger of your own that changes session state
/// is not detected: use `SessionStateAlways` for those (on PostgreSQL; on MySQL
/// it frees locks). State that users of the plain `DatabaseConnection` leave
/// behind is not reset: a session finds it, and a reset returns to it.
///
/// Behind a proxy that pools per transaction (PgBouncer), session state belongs
/// to the proxy: do not use session state there at all.
///
/// ```
/// # #[cfg(feature = "sqlx-sqlite")]
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// use sea_orm::{ConnectionTrait, Database};
/// use tower_sea_orm::{Reset, SessionPool};
///
/// let db = Database::connect("sqlite::memory:").await?;
/// let pool = SessionPool::builder(db).reset(Reset::SessionState).build()?;
/// let session = pool.session().await?;
/// session.execute_unprepared("CREATE TEMPORARY TABLE basket (item integer)").await?;
/// drop(session);
///
/// let next = pool.session().await?;
/// assert!(next.execute_unprepared("SELECT * FROM basket").await.is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reset {
    /// Nothing is sent. A connection on which raw code may have left a
    /// transaction open is closed instead.
    None,
    /// A transaction that raw code may have left open is rolled back.
    #[default]
    RollbackOnly,
    /// Session state is reset after statements that may have changed it.
    SessionState,
    /// Session state is reset after every session that used its connection.
    SessionStateAlways,
}

impl Reset {
    pub(crate) fn is_of_session(self) -> bool {
        matches!(self, Self::SessionState | Self::SessionStateAlways)
    }
}

#[derive(Default)]
pub(super) struct SessionState {
    /// As the last call's session wants it.
    pub(super) reset: Reset,
    /// The worst change since the connection was last as before.
    change: Change,
    /// The statements by which the connection is as before again, if they are
    /// known.
    baseline: Option<Vec<String>>,
    /// The open transaction has settings that end with it, which would be taken
    /// for those from before.
    is_set_locally: bool,
}

impl SessionState {
    pub(super) fn is_clean(&self) -> bool {
        self.change == Change::None
    }

    /// Nothing puts it back.
    pub(super) fn give_up(&mut self) {
        self.change = Change::Beyond;
    }

    /// The session has made later transactions READ ONLY. Without a reset,
    /// later sessions could not write.
    pub(super) fn read_only_by_default(&mut self) {
        if !self.reset.is_of_session() {
            self.give_up();
        }
    }

    /// Forgets settings that have ended with their transaction.
    pub(super) fn forget_beyond(&mut self, depth: usize) {
        self.is_set_locally &= depth > 0;
    }

    /// Returns whether the connection has to be closed once nothing is open on
    /// it.
    pub(super) fn must_close(&self, link: &Link) -> bool {
        let stray =
            // With `None` nothing is sent that could end a stray transaction:
            // closing the connection does.
            link.condition == Condition::Suspect && self.reset == Reset::None && !link.in_memory;
        self.change == Change::Beyond || stray
    }

    /// Notes a change that is about to come, and records what there was before
    /// it.
    pub(super) async fn note_change(
        &mut self,
        link: &mut Link,
        transaction: &mut Transaction,
        foreseen: Change,
        begin: Option<&Begin>,
    ) -> Result<(), DbErr> {
        let change = amounts_to(link, foreseen);
        if change == Change::None {
            return Ok(());
        }
        let begins = begin.is_some();
        // Unrecorded, it cannot be put back.
        let is_lost = !self.is_recorded(link, transaction, change, begins).await?;
        let kept = match change {
            Change::Session if is_lost => Change::Beyond,
            change => change,
        };
        // PostgreSQL shows a setting of the transaction as it shows one of the
        // session (`settings_of_a_transaction_are_not_the_connections_own`).
        self.is_set_locally |= change == Change::Transaction && link.backend == DbBackend::Postgres;
        // Settings of the transaction end with it, whatever its end.
        if kept > Change::Transaction {
            self.change = self.change.max(kept);
        }
        Ok(())
    }

    /// Returns whether it is known what there was before a `change`, which is
    /// recorded now if it has to be.
    async fn is_recorded(
        &mut self,
        link: &mut Link,
        transaction: &mut Transaction,
        change: Change,
        begins: bool,
    ) -> Result<bool, DbErr> {
        // Only once: later, what sessions have changed since would be recorded
        // as well. Of MySQL's locks none is to stay.
        if self.baseline.is_some() || link.backend == DbBackend::MySql {
            return Ok(true);
        }
        // Settings of a transaction look like those from before. So a
        // transaction that begins with a set-up is looked at before.
        let early = change == Change::Transaction && begins;
        Ok((early || change == Change::Session) && self.record(link, transaction).await?)
    }

    /// Records what the connection is like, unless that cannot be known now.
    async fn record(
        &mut self,
        link: &mut Link,
        transaction: &mut Transaction,
    ) -> Result<bool, DbErr> {
        // PostgreSQL answers nothing in a transaction that has failed, and
        // local settings would be recorded as those from before.
        if transaction.has_failed() || self.is_set_locally {
            return Ok(link.in_memory);
        }
        let recorded = match link.backend {
            DbBackend::Postgres => settings(link).await,
            _ => extras(link).await,
        };
        match recorded {
            Ok(baseline) => {
                self.baseline = Some(baseline);
                Ok(true)
            }
            Err(error) if server::is_fatal(&error) && !link.in_memory => {
                link.give_up();
                Err(error)
            }
            Err(error) => {
                let depth = link.depth();
                if depth > 0 {
                    // The question itself has aborted it.
                    transaction.note_failure(link, &error, depth, false);
                    Box::pin(transaction.note_if_vanished(link, &error)).await;
                }
                // As if it were recorded: the only other way is to close the
                // connection, and its database with it.
                Ok(link.in_memory)
            }
        }
    }

    /// Ends what may be open without the driver's knowledge, and puts back what
    /// has changed.
    pub(super) async fn put_back(&mut self, link: &mut Link) -> Result<(), DbErr> {
        let stray = link.condition != Condition::Known;
        if self.is_clean() {
            return if stray {
                link.end_stray().await
            } else {
                Ok(())
            };
        }
        // Both in one round trip
        // (`after_raw_code_rollback_and_reset_go_together`), the ROLLBACK
        // first: inside the stray transaction, the reset would be undone with
        // it.
        let reset = match link.backend {
            DbBackend::Postgres => {
                let baseline = self.baseline.iter().flatten().map(String::as_str);
                std::iter::once(TO_DEFAULTS).chain(baseline).collect()
            }
            _ => FREE_LOCKS.to_owned(),
        };
        match link.backend {
            DbBackend::Postgres | DbBackend::MySql if stray => {
                link.end_stray_and(&format!("; {reset}")).await?;
            }
            DbBackend::Postgres | DbBackend::MySql => link.run(reset).await?,
            _ => {
                if stray {
                    link.end_stray().await?;
                }
                self.remove_extras(link).await;
            }
        }
        // Behind the text: if it fails, the connection is closed.
        self.change = Change::None;
        link.driver.drain().await.map(drop)
    }

    /// Removes what was not there before. What cannot be removed stays: the
    /// only alternative is to close the connection, and its database with it.
    async fn remove_extras(&mut self, link: &mut Link) {
        let before = self.baseline.clone().unwrap_or_default();
        let mut now = extras(link).await.unwrap_or_default();
        // `after_connect` may have made some, which every session is to find.
        // Shown by `settings_of_an_in_memory_database_stay`.
        now.retain(|statement| !before.contains(statement));
        for statement in now {
            if let Err(error) = link.run(statement).await {
                tracing::warn!(target: "tower_sea_orm::session", "a temporary object could not be removed from an in-memory database: {error}");
            }
        }
    }
}

/// The change that a foreseen one amounts to on this connection, where not
/// everything can be put back.
fn amounts_to(link: &Link, foreseen: Change) -> Change {
    match (foreseen, link.backend) {
        // The database would die with its connection.
        (Change::Beyond, _) if link.in_memory => Change::Session,
        (Change::Session, DbBackend::Sqlite) if link.in_memory => Change::Session,
        // Neither has a command that puts all of it back (H7).
        (Change::Session, DbBackend::MySql | DbBackend::Sqlite) => Change::Beyond,
        (change, _) => change,
    }
}

/// The worst that `task` may change beyond its transaction.
pub(super) fn foresee(link: &Link, task: &Task) -> Change {
    if link.is_test() {
        // The sessions of a test share what surrounds them.
        return Change::None;
    }
    let sets_up = task.on_acquire.is_some();
    match task.reset.is_of_session() {
        // Nothing would put back what `on_acquire` has set: the connection is
        // closed behind the session.
        false if sets_up => return Change::Beyond,
        false => return Change::None,
        true => {}
    }
    // The statements of `on_acquire` are not looked into: they are there to set
    // something.
    let around = if sets_up {
        Change::Session
    } else {
        at_least(link, task.reset)
    };
    let begin = task.begin.as_ref();
    let set_up = begin.map_or(&[][..], Begin::statements);
    let set = match begin.and_then(Begin::settings) {
        // On the others, they are put back when the transaction ends.
        Some(settings) if link.backend == DbBackend::Postgres && !settings.is_empty() => {
            Change::Transaction
        }
        _ => Change::None,
    };
    set_up
        .iter()
        .map(|statement| classify(link.backend, &statement.sql).change)
        .fold(task.text.change.max(around).max(set), Change::max)
}

/// The change that any call counts as.
fn at_least(link: &Link, reset: Reset) -> Change {
    match link.backend {
        _ if reset != Reset::SessionStateAlways => Change::None,
        // Without stored code, SQLite does nothing that its text does not say.
        DbBackend::Sqlite if !link.in_memory => Change::None,
        // More would have each connection closed behind each session.
        DbBackend::MySql => Change::Locks,
        _ => Change::Session,
    }
}

/// The statements that give a connection of PostgreSQL the settings it has.
async fn settings(link: &mut Link) -> Result<Vec<String>, DbErr> {
    let row = link.driver.query_unprepared(SETTINGS.to_owned()).await?;
    let text = row
        .ok_or(DbErr::RecordNotFound(String::new()))?
        .try_get_by_index::<String>(0)?;
    Ok(vec![text])
}

/// The statements that remove what a connection of SQLite has beside its
/// database.
async fn extras(link: &mut Link) -> Result<Vec<String>, DbErr> {
    let mut statement = Statement::from_string(link.backend, EXTRAS);
    let rows = link.driver.query_all(&mut statement, link.named).await?;
    rows.iter()
        .map(|row| row.try_get_by_index::<String>(0))
        .collect()
}

/// Asks PostgreSQL for statements that give a connection the settings it has
/// now. Values travel as hexadecimal digits, which no quoting and no encoding
/// can change. The role comes last, because it may not do what went before.
const SETTINGS: &str = "SELECT pg_catalog.concat(\
     (SELECT pg_catalog.string_agg(pg_catalog.concat('; SELECT pg_catalog.set_config(', \
      pg_catalog.quote_literal(name), ', pg_catalog.convert_from(pg_catalog.decode(''', \
      pg_catalog.encode(pg_catalog.convert_to(setting, 'UTF8'), 'hex'), ''', ''hex''), ''UTF8''), false)'), '') \
      FROM pg_catalog.pg_settings WHERE source = 'session' AND name NOT LIKE 'transaction\\_%'), \
     (SELECT pg_catalog.string_agg(pg_catalog.concat('; SELECT CASE WHEN pg_catalog.current_setting(''', name, \
      ''') <> v.value THEN pg_catalog.set_config(''', name, ''', v.value, false) END \
      FROM (VALUES (pg_catalog.convert_from(pg_catalog.decode(''', \
      pg_catalog.encode(pg_catalog.convert_to(pg_catalog.current_setting(name), 'UTF8'), 'hex'), \
      ''', ''hex''), ''UTF8''))) AS v (value)'), '' ORDER BY place) \
      FROM (VALUES (1, 'session_authorization'), (2, 'role')) AS special (place, name)))";

/// Does what DISCARD ALL does
/// (<https://www.postgresql.org/docs/current/sql-discard.html>), except for
/// prepared statements and plans, which sqlx relies on.
const TO_DEFAULTS: &str = "SET SESSION AUTHORIZATION DEFAULT; RESET ROLE; CLOSE ALL; UNLISTEN *; RESET ALL; \
     SELECT pg_catalog.pg_advisory_unlock_all(); DISCARD TEMP; DISCARD SEQUENCES";

const FREE_LOCKS: &str = "DO RELEASE_ALL_LOCKS(); UNLOCK TABLES";

/// Asks SQLite for statements that remove temporary objects and attached
/// databases; objects that depend on others go first.
const EXTRAS: &str = "SELECT 'DROP ' || type || ' IF EXISTS temp.\"' || replace(name, '\"', '\"\"') || '\"' \
     FROM (SELECT type, name FROM sqlite_temp_master \
      WHERE type IN ('table', 'view', 'trigger') AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' \
      ORDER BY CASE type WHEN 'trigger' THEN 0 WHEN 'view' THEN 1 ELSE 2 END) \
     UNION ALL SELECT 'DETACH \"' || replace(name, '\"', '\"\"') || '\"' \
     FROM pragma_database_list WHERE name NOT IN ('main', 'temp')";
