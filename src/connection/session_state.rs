//! Putting back what a session has changed of its connection, before anybody else gets it.

use sea_orm::{DbBackend, DbErr, Statement};

use super::{Begin, PinnedConnection, Reset, State, Task};
use crate::{
    error::server,
    sql::{Change, classify},
};

impl PinnedConnection {
    /// What `task` may change beyond its transaction.
    pub(super) fn foresee(&self, task: &Task) -> Change {
        if self.base > 0 {
            // The sessions of a test share what surrounds them.
            return Change::None;
        }
        if !task.reset.is_of_session() {
            return if task.on_acquire.is_some() {
                Change::Beyond
            } else {
                Change::None
            };
        }
        let set_up = task.begin.iter().flat_map(|begin| begin.set_up.iter());
        let around = if task.on_acquire.is_some() {
            Change::Session
        } else {
            self.at_least(task.reset)
        };
        set_up
            .map(|statement| classify(self.backend, &statement.sql).change)
            .fold(task.text.change.max(around), Change::max)
    }

    /// What counts as changed by any call.
    fn at_least(&self, reset: Reset) -> Change {
        match self.backend {
            _ if reset != Reset::SessionStateAlways => Change::None,
            // Without stored code, SQLite does nothing that its text does not say.
            DbBackend::Sqlite if !self.in_memory => Change::None,
            DbBackend::MySql => Change::Locks,
            _ => Change::Session,
        }
    }

    /// Notes a change that is about to come, and what there was before it.
    pub(super) async fn note_change(
        &mut self,
        foreseen: Change,
        begin: Option<&Begin>,
    ) -> Result<(), DbErr> {
        let change = match (foreseen, self.backend) {
            (Change::None, _) => return Ok(()),
            (Change::Session, DbBackend::MySql) => Change::Beyond,
            (Change::Session, DbBackend::Sqlite) if !self.in_memory => Change::Beyond,
            // It would die with its connection.
            (Change::Beyond, _) if self.in_memory => Change::Session,
            (change, _) => change,
        };
        // What a transaction sets for itself looks like what was there before. So a transaction that
        // begins with a set-up is looked at before.
        let early = change == Change::Transaction && begin.is_some();
        let missing = self.baseline.is_none()
            && matches!(self.backend, DbBackend::Postgres | DbBackend::Sqlite);
        let recorded = !missing || (early || change == Change::Session) && self.record().await?;
        // Otherwise nobody knows what to put back.
        let kept = if change == Change::Session && !recorded {
            Change::Beyond
        } else {
            change
        };
        self.is_set_locally |= change == Change::Transaction && self.backend == DbBackend::Postgres;
        if kept > Change::Transaction {
            self.change = self.change.max(kept);
        }
        Ok(())
    }

    /// Records what the connection is like, unless that cannot be told now.
    async fn record(&mut self) -> Result<bool, DbErr> {
        if self.failed.is_some() || self.is_set_locally {
            return Ok(self.in_memory);
        }
        let recorded = match self.backend {
            DbBackend::Postgres => self.settings().await,
            _ => self.extras().await,
        };
        match recorded {
            Ok(baseline) => {
                self.baseline = Some(baseline);
                Ok(true)
            }
            Err(error) if server::is_fatal(&error) && !self.in_memory => {
                self.state = State::Broken;
                Err(error)
            }
            Err(error) => {
                if self.depth() > 0 {
                    self.note_failure(&error, self.depth(), false);
                }
                Ok(self.in_memory)
            }
        }
    }

    /// The statements that give a connection of PostgreSQL the settings it has.
    async fn settings(&mut self) -> Result<Vec<String>, DbErr> {
        let row = self.driver.query_unprepared(SETTINGS.to_owned()).await?;
        let text = row
            .ok_or(DbErr::RecordNotFound(String::new()))?
            .try_get_by_index::<String>(0)?;
        Ok(vec![text])
    }

    /// The statements that remove what a connection of SQLite has beside its database.
    async fn extras(&mut self) -> Result<Vec<String>, DbErr> {
        let rows = self
            .driver
            .query_all(Statement::from_string(self.backend, EXTRAS), self.named)
            .await?;
        rows.iter()
            .map(|row| row.try_get_by_index::<String>(0))
            .collect()
    }

    /// Whether the connection has to be closed once nothing is open on it.
    pub(crate) fn must_close(&self) -> bool {
        let stray = self.state == State::Suspect && self.reset == Reset::None && !self.in_memory;
        self.change == Change::Beyond || stray
    }

    /// Ends what may be open without the driver's knowledge, and puts back what has changed.
    pub(super) async fn put_back(&mut self) -> Result<(), DbErr> {
        let stray = self.state != State::Known;
        if self.change == Change::None {
            return if stray {
                self.end_stray().await
            } else {
                Ok(())
            };
        }
        let rollback = if stray {
            format!("{}; ", self.stray_rollback())
        } else {
            String::new()
        };
        match self.backend {
            DbBackend::Postgres => {
                let baseline = self.baseline.iter().flatten().map(String::as_str);
                let text: String = [rollback.as_str(), TO_DEFAULTS]
                    .into_iter()
                    .chain(baseline)
                    .collect();
                self.driver.execute_unprepared(text).await?;
            }
            DbBackend::MySql => {
                self.driver
                    .execute_unprepared(format!("{rollback}{FREE_LOCKS}"))
                    .await?;
            }
            _ => {
                if stray {
                    self.end_stray().await?;
                }
                self.remove_extras().await;
            }
        }
        self.change = Change::None;
        self.driver.drain().await.map(drop)
    }

    /// Removes what was not there before. What cannot be removed stays: the only alternative is to
    /// close the connection, and its database with it.
    async fn remove_extras(&mut self) {
        let before = self.baseline.clone().unwrap_or_default();
        let now = self.extras().await.unwrap_or_default();
        for statement in now
            .into_iter()
            .filter(|statement| !before.contains(statement))
        {
            if let Err(error) = self.driver.execute_unprepared(statement).await {
                tracing::warn!(target: "tower_sea_orm::session", "a temporary object could not be removed from an in-memory database: {error}");
            }
        }
    }
}

/// Asks PostgreSQL for statements that give a connection the settings it has now. Values travel as
/// hexadecimal digits, which no quoting and no encoding can change. The role comes last, because it may
/// not do what went before.
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

/// What DISCARD ALL does, but for prepared statements and plans, which sqlx relies on.
const TO_DEFAULTS: &str = "SET SESSION AUTHORIZATION DEFAULT; RESET ROLE; CLOSE ALL; UNLISTEN *; RESET ALL; \
     SELECT pg_catalog.pg_advisory_unlock_all(); DISCARD TEMP; DISCARD SEQUENCES";

const FREE_LOCKS: &str = "DO RELEASE_ALL_LOCKS(); UNLOCK TABLES";

/// Asks SQLite for statements that remove what a connection has of its own; of an object, what
/// depends on it goes first.
const EXTRAS: &str = "SELECT 'DROP ' || type || ' IF EXISTS temp.\"' || replace(name, '\"', '\"\"') || '\"' \
     FROM (SELECT type, name FROM sqlite_temp_master \
      WHERE type IN ('table', 'view', 'trigger') AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' \
      ORDER BY CASE type WHEN 'trigger' THEN 0 WHEN 'view' THEN 1 ELSE 2 END) \
     UNION ALL SELECT 'DETACH \"' || replace(name, '\"', '\"\"') || '\"' \
     FROM pragma_database_list WHERE name NOT IN ('main', 'temp')";
