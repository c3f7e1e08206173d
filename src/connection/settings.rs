//! [`Settings`]: what BEGIN sets until the end of its transaction, in its own text.

use std::{borrow::Cow, time::Duration};

use sea_orm::DbBackend;

use crate::error::Kind;

/// Settings of a transaction. They travel with BEGIN, so that they cost no
/// round trip.
#[derive(Clone, Default)]
pub(crate) struct Settings {
    /// Zero: no limit.
    statement_timeout: Option<Duration>,
    /// Zero: no limit.
    pub(super) lock_timeout: Option<Duration>,
    /// Names and values of PostgreSQL's parameters, each name once.
    parameters: Vec<(Cow<'static, str>, String)>,
    /// For `pg_stat_activity`; unlike a parameter, nothing depends on it.
    application_name: Option<String>,
}

impl Settings {
    pub(crate) fn timeouts(statement: Option<Duration>, lock: Option<Duration>) -> Self {
        Self {
            statement_timeout: statement,
            lock_timeout: lock,
            ..Self::default()
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        !self.is_required() && self.application_name.is_none()
    }

    /// Returns whether there are any that what runs depends on.
    pub(crate) fn is_required(&self) -> bool {
        self.has_timeouts() || !self.parameters.is_empty()
    }

    fn has_timeouts(&self) -> bool {
        self.statement_timeout.is_some() || self.lock_timeout.is_some()
    }

    pub(crate) fn set(&mut self, name: Cow<'static, str>, value: String) {
        // PostgreSQL does not distinguish them by case.
        self.parameters
            .retain(|(known, _)| !known.eq_ignore_ascii_case(&name));
        self.parameters.push((name, value));
    }

    pub(crate) fn name(&mut self, application: &str) {
        self.application_name = Some(shown_name(application));
    }

    /// Adds the settings of a layer further in, which count where both have
    /// one.
    pub(crate) fn add(&mut self, inner: Self) {
        self.statement_timeout = inner.statement_timeout.or(self.statement_timeout);
        self.lock_timeout = inner.lock_timeout.or(self.lock_timeout);
        self.application_name = inner.application_name.or(self.application_name.take());
        for (name, value) in inner.parameters {
            self.set(name, value);
        }
    }

    /// Checks that a transaction of `backend` can have them.
    pub(crate) fn check(&self, backend: DbBackend) -> Result<(), Kind> {
        let is_local = self.application_name.is_some() || !self.parameters.is_empty();
        // Refused and not passed over: a tenant's setting that does nothing
        // shows another one's rows (`what_a_database_cannot_do_is_refused`).
        if backend != DbBackend::Postgres && is_local {
            return Err(Kind::NoLocalSettings);
        }
        if backend == DbBackend::Sqlite && self.statement_timeout.is_some() {
            return Err(Kind::NoStatementTimeout);
        }
        Ok(())
    }

    /// Returns the text that sets them, unless there is none.
    pub(crate) fn text(&self, backend: DbBackend) -> Result<Option<String>, Kind> {
        match backend {
            _ if self.is_empty() => Ok(None),
            DbBackend::Postgres => self.postgres_text().map(Some),
            DbBackend::MySql => Ok(Some(self.mysql_text())),
            // SQLite's `busy_timeout` is read and set by two statements.
            _ => Ok(None),
        }
    }

    fn postgres_text(&self) -> Result<String, Kind> {
        let mut text = String::from("SELECT");
        let mut separator = ' ';
        let mut set = |name: &str, value: &str| {
            text.push(separator);
            separator = ',';
            // `true`: until the end of the transaction.
            text.push_str("pg_catalog.set_config('");
            text.push_str(name);
            text.push_str("',");
            push_literal(&mut text, value)?;
            text.push_str(",true)");
            Ok(())
        };
        // First, so that a parameter of the same name counts.
        if let Some(name) = &self.application_name {
            set("application_name", name)?;
        }
        for (name, value) in &self.parameters {
            set(name, value)?;
        }
        let timeouts = [
            ("statement_timeout", self.statement_timeout),
            ("lock_timeout", self.lock_timeout),
        ];
        for (name, timeout) in timeouts {
            if let Some(timeout) = timeout {
                // 0 is no limit, and stands for times that are longer than the
                // server counts.
                set(name, &milliseconds(timeout).unwrap_or(0).to_string())?;
            }
        }
        Ok(text)
    }

    /// MySQL and MariaDB have no settings that end with a transaction: these
    /// are the connection's, and are [put back](MYSQL_PUT_BACK).
    ///
    /// The comments are parts of the text for one of the two servers: `/*M!`
    /// for MariaDB, and `/*!50708` for MySQL, since MariaDB skips MySQL's
    /// versions from 5.7 on (<https://mariadb.com/kb/en/comment-syntax/>).
    fn mysql_text(&self) -> String {
        // Kept in user variables: to read them first would be a round trip.
        let mut text = String::from(
            "SET @tower_sea_orm_rows = @@innodb_lock_wait_timeout, @tower_sea_orm_tables = @@lock_wait_timeout \
             /*M!100101 , @tower_sea_orm_time = @@max_statement_time */ \
             /*!50708 , @tower_sea_orm_time = @@max_execution_time */; SET @tower_sea_orm_set = 1",
        );
        if let Some(timeout) = self.lock_timeout {
            // In whole seconds, and no more than the servers take
            // (`time_outs_mean_what_they_say_and_end_with_their_transaction`).
            let seconds = seconds(timeout);
            let rows = seconds.unwrap_or(NO_LIMIT).min(NO_LIMIT);
            let tables = seconds.unwrap_or(A_YEAR).min(A_YEAR);
            text.push_str(&format!(
                ", innodb_lock_wait_timeout = {rows}, lock_wait_timeout = {tables}"
            ));
        }
        if let Some(timeout) = self.statement_timeout {
            // `max_statement_time` takes a year at most; 0 is no limit.
            let micros = timeout.as_nanos().div_ceil(1000);
            let micros = if micros > u128::from(A_YEAR) * 1_000_000 {
                0
            } else {
                micros
            };
            let (seconds, micros) = (micros / 1_000_000, micros % 1_000_000);
            let mysql = milliseconds(timeout).unwrap_or(0);
            text.push_str(&format!(
                " /*M!100101 , max_statement_time = {seconds}.{micros:06} */ /*!50708 , max_execution_time = {mysql} */"
            ));
        }
        text
    }
}

/// Returns what PostgreSQL shows of a name: printable ASCII, and 63 bytes of it
/// (<https://www.postgresql.org/docs/current/runtime-config-logging.html#GUC-APPLICATION-NAME>).
fn shown_name(name: &str) -> String {
    const LENGTH: usize = 63;
    // Replaced here, as PostgreSQL 15 does: later ones write several characters
    // for one.
    let shown = name.chars().map(|c| match c {
        ' '..='~' => c,
        _ => '?',
    });
    shown.take(LENGTH).collect()
}

/// As many seconds as InnoDB takes for no limit at all.
const NO_LIMIT: u64 = 100_000_000;

/// The most seconds that `lock_wait_timeout` and `max_statement_time` take.
const A_YEAR: u64 = 31_536_000;

/// Gives a connection of MySQL the time-outs that it had before its
/// transaction.
pub(super) const MYSQL_PUT_BACK: &str = "SET innodb_lock_wait_timeout = @tower_sea_orm_rows, lock_wait_timeout = @tower_sea_orm_tables \
     /*M!100101 , max_statement_time = @tower_sea_orm_time */ \
     /*!50708 , max_execution_time = @tower_sea_orm_time */";

/// Returns whole milliseconds, rounded up, since 0 means something else; `None`
/// for no limit.
pub(super) fn milliseconds(timeout: Duration) -> Option<i32> {
    let millis = timeout.as_nanos().div_ceil(1_000_000);
    // A time that is longer than the servers can count does not end either.
    i32::try_from(millis).ok().filter(|millis| *millis > 0)
}

/// The same in seconds.
fn seconds(timeout: Duration) -> Option<u64> {
    let millis = timeout.as_millis().div_ceil(1000);
    let seconds = u64::try_from(millis).unwrap_or(u64::MAX);
    (!timeout.is_zero()).then_some(seconds.max(1))
}

/// Writes `value` as a literal that PostgreSQL reads alike with
/// `standard_conforming_strings` on and off.
fn push_literal(text: &mut String, value: &str) -> Result<(), Kind> {
    if value.contains('\0') {
        // The text would end there.
        return Err(Kind::SettingWithNul);
    }
    // With an E, a backslash is always an escape. Shown by
    // `any_value_arrives_as_it_is_whatever_the_servers_quoting`.
    text.push_str("E'");
    for c in value.chars() {
        if matches!(c, '\'' | '\\') {
            text.push(c);
        }
        text.push(c);
    }
    text.push('\'');
    Ok(())
}

/// Writes a list of schemas as the value of PostgreSQL's `search_path`.
pub(crate) fn search_path(schemas: &[String]) -> String {
    let quoted = schemas
        .iter()
        .map(|schema| format!("\"{}\"", schema.replace('"', "\"\"")));
    quoted.collect::<Vec<_>>().join(",")
}

/// Checks the name of one of PostgreSQL's parameters: identifiers, with dots
/// between them. It stands in BEGIN's text as it is.
pub(crate) fn check_name(name: &str) -> Result<(), Kind> {
    const TRANSACTION: [&str; 3] = [
        "transaction_isolation",
        "transaction_read_only",
        "transaction_deferrable",
    ];
    let is_identifier = |part: &str| {
        let mut chars = part.chars();
        chars
            .next()
            .is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
            && chars.all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '$'))
    };
    // By these, the transaction would become another one than the session knows
    // of.
    if TRANSACTION
        .iter()
        .any(|known| name.eq_ignore_ascii_case(known))
    {
        return Err(Kind::Control(
            crate::sql::TransactionControl::SetTransaction,
        ));
    }
    if name.split('.').all(is_identifier) {
        Ok(())
    } else {
        Err(Kind::InvalidSettingName)
    }
}
