//! [`Settings`]: everything that can be set.

use sea_orm::DbBackend;
use serde::Deserialize;

use super::{
    error::ConfigError,
    given::Given,
    value::{
        Count, Level, Positive, ResetOf, ResetOnReturn, Switch, Time, TimeOrMax, TimeOrNever,
        TimeOrZero,
    },
};

/// SQLAlchemy's default of `pool_size`, if only `max_overflow` is given.
const POOL_SIZE: u32 = 5;
/// SQLAlchemy's default of `max_overflow`, if only `pool_size` is given.
const MAX_OVERFLOW: u32 = 10;

/// The settings that were given. Their names are those of the fields.
///
/// SQLAlchemy's names are fields and not aliases: for serde, an alias beside its name is a duplicate,
/// even if both say the same.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Settings {
    /// Read as a [`DatabaseUrl`](super::url::DatabaseUrl), and taken out before anything is shown.
    pub(super) url: Option<String>,
    pub(super) max_connections: Option<Positive>,
    pub(super) min_connections: Option<Count>,
    pool_size: Option<Positive>,
    max_overflow: Option<Count>,
    pub(super) connect_timeout: Option<Time>,
    pub(super) acquire_timeout: Option<Time>,
    pool_timeout: Option<Time>,
    pub(super) idle_timeout: Option<TimeOrNever>,
    pub(super) max_lifetime: Option<TimeOrNever>,
    pool_recycle: Option<TimeOrNever>,
    pub(super) test_before_acquire: Option<Switch>,
    pool_pre_ping: Option<Switch>,
    pub(super) connect_lazy: Option<Switch>,
    pub(super) sqlx_logging: Option<Switch>,
    echo: Option<Switch>,
    pub(super) sqlx_logging_level: Option<Level>,
    pub(super) sqlx_slow_statements_logging_level: Option<Level>,
    pub(super) sqlx_slow_statements_logging_threshold: Option<TimeOrZero>,
    pub(super) schema_search_path: Option<String>,
    pub(super) application_name: Option<String>,
    pub(super) statement_timeout: Option<Time>,
    pub(super) reserved_connections: Option<Count>,
    pub(super) max_pending: Option<Count>,
    pub(super) release_timeout: Option<Time>,
    pub(super) direct_handoff: Option<Switch>,
    pub(super) reset: Option<ResetOf>,
    pool_reset_on_return: Option<ResetOnReturn>,
    pub(super) cancel_running: Option<Switch>,
    pub(super) hold_slow_threshold: Option<TimeOrMax>,
    pub(super) hold_timeout: Option<TimeOrMax>,
    pub(super) body_timeout: Option<TimeOrMax>,
    pub(super) startup_timeout: Option<TimeOrZero>,
}

impl Settings {
    /// Replaces SQLAlchemy's names by SeaORM's. Returns whether a part of `max_connections` is an overflow.
    pub(super) fn unite(&mut self, given: &Given<'_>) -> Result<bool, ConfigError> {
        /// Moves the value of the second name to the first one.
        macro_rules! unite {
            ($($name:ident = $other:ident),* $(,)?) => {
                $(unite(
                    given,
                    (stringify!($name), &mut self.$name),
                    (stringify!($other), self.$other.take()),
                )?;)*
            };
        }
        let (pool_size, max_overflow) = (self.pool_size, self.max_overflow.take());
        unite! {
            min_connections = pool_size,
            acquire_timeout = pool_timeout,
            max_lifetime = pool_recycle,
            test_before_acquire = pool_pre_ping,
            sqlx_logging = echo,
            reset = pool_reset_on_return,
        }
        match max_overflow.map(|Count(overflow)| overflow) {
            None if pool_size.is_none() || self.max_connections.is_some() => Ok(false),
            overflow => self.add_overflow(overflow.unwrap_or(MAX_OVERFLOW), given),
        }
    }

    /// Makes `max_connections` of the least number of connections and the overflow.
    fn add_overflow(&mut self, overflow: u32, given: &Given<'_>) -> Result<bool, ConfigError> {
        let Count(size) = *self.min_connections.get_or_insert(Count(POOL_SIZE));
        let refused = |why: &str| ConfigError::new(given.key(&["max_overflow", "pool_size"]), why);
        let Some(sum) = size.checked_add(overflow) else {
            return Err(refused("too many connections together with `pool_size`"));
        };
        match self.max_connections.replace(Positive(sum)) {
            Some(Positive(max)) if max != sum => {
                let other = given.key(&["max_connections"]);
                Err(refused(&format!(
                    "{size} plus {overflow} is {sum}, but `{other}` has another value: keep one of the two"
                )))
            }
            _ => Ok(overflow > 0),
        }
    }

    /// Checks the numbers of connections against the limit.
    pub(super) fn check(&self, backend: DbBackend, given: &Given<'_>) -> Result<(), ConfigError> {
        // SeaORM passes only what is given to sqlx: these are the defaults of the drivers, which a test compares.
        let (max, note) = match (self.max_connections, backend) {
            (Some(Positive(max)), _) => (max, ""),
            (None, DbBackend::Sqlite) => (1, " (the default)"),
            (None, _) => (10, " (the default)"),
        };
        if let Some(Count(min)) = self.min_connections.filter(|Count(min)| *min > max) {
            let key = given.key(&["min_connections", "pool_size", "max_overflow"]);
            let why = format!("{min} is more than `max_connections`, {max}{note}");
            return Err(ConfigError::new(key, why));
        }
        if let Some(Count(reserved)) = self.reserved_connections.filter(|Count(n)| *n >= max) {
            let why = format!(
                "{reserved} leaves no connection for sessions: write less than `max_connections`, {max}{note}"
            );
            return Err(ConfigError::new(given.key(&["reserved_connections"]), why));
        }
        Ok(())
    }
}

/// Moves the value of another name to `setting`, unless the two disagree.
fn unite<T: PartialEq, U: Into<T>>(
    given: &Given<'_>,
    (name, setting): (&str, &mut Option<T>),
    (other_name, other): (&str, Option<U>),
) -> Result<(), ConfigError> {
    let other = other.map(Into::into);
    match (&setting, &other) {
        (Some(value), Some(other)) if value != other => {
            return Err(given.disagreement(given.key(&[name]), other_name));
        }
        (None, Some(_)) => *setting = other,
        _ => {}
    }
    Ok(())
}
