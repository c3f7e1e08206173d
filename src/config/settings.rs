//! [`Settings`]: what was given, under whichever of its names, until it is a [`PoolConfig`].

use std::{collections::BTreeMap, time::Duration};

use sea_orm::DbBackend;

use super::{ConfigError, Options, PoolConfig, names, url::DatabaseUrl, value};

/// SQLAlchemy's defaults, for the one of the two that is not given.
const POOL_SIZE: u32 = 5;
const MAX_OVERFLOW: u32 = 10;

/// What was given so far.
#[derive(Default)]
pub(super) struct Settings {
    url: Option<DatabaseUrl>,
    pool_size: Option<u32>,
    max_overflow: Option<u32>,
    options: Options,
    /// The key that each setting came with.
    keys: Keys,
}

type Keys = BTreeMap<&'static str, String>;

impl Settings {
    /// Takes the value of the setting `name`, which was written as `key`.
    pub(super) fn set(&mut self, name: &str, key: &str, text: &str) -> Result<(), ConfigError> {
        let (options, keys) = (&mut self.options, &mut self.keys);
        match name {
            "url" => put(
                keys,
                &mut self.url,
                "url",
                key,
                DatabaseUrl::parse(key, text)?,
            ),
            "test_before_acquire" | "pool_pre_ping" => put(
                keys,
                &mut options.test_before_acquire,
                "test_before_acquire",
                key,
                value::switch(key, text)?,
            ),
            "connect_lazy" => put(
                keys,
                &mut options.connect_lazy,
                "connect_lazy",
                key,
                value::switch(key, text)?,
            ),
            "sqlx_logging" | "echo" => put(
                keys,
                &mut options.sqlx_logging,
                "sqlx_logging",
                key,
                value::switch(key, text)?,
            ),
            "direct_handoff" => put(
                keys,
                &mut options.direct_handoff,
                "direct_handoff",
                key,
                value::switch(key, text)?,
            ),
            "cancel_running" => put(
                keys,
                &mut options.cancel_running,
                "cancel_running",
                key,
                value::switch(key, text)?,
            ),
            "reset" => put(
                keys,
                &mut options.reset,
                "reset",
                key,
                value::reset(key, text)?,
            ),
            "pool_reset_on_return" => put(
                keys,
                &mut options.reset,
                "reset",
                key,
                value::reset_on_return(key, text)?,
            ),
            "sqlx_logging_level" => put(
                keys,
                &mut options.sqlx_logging_level,
                "sqlx_logging_level",
                key,
                value::level(key, text)?,
            ),
            "sqlx_slow_statements_logging_level" => put(
                keys,
                &mut options.slow_level,
                "slow_level",
                key,
                value::level(key, text)?,
            ),
            "schema_search_path" => put(
                keys,
                &mut options.schema_search_path,
                "schema_search_path",
                key,
                text.to_owned(),
            ),
            "application_name" => put(
                keys,
                &mut options.application_name,
                "application_name",
                key,
                text.to_owned(),
            ),
            _ => self.set_size(name, key, text),
        }
    }

    fn set_size(&mut self, name: &str, key: &str, text: &str) -> Result<(), ConfigError> {
        let (options, keys) = (&mut self.options, &mut self.keys);
        match name {
            "max_connections" => put(
                keys,
                &mut options.max_connections,
                "max_connections",
                key,
                value::count(key, text, 1)?,
            ),
            "min_connections" => put(
                keys,
                &mut options.min_connections,
                "min_connections",
                key,
                value::count(key, text, 0)?,
            ),
            "pool_size" => {
                let size = value::pool_size(key, text)?;
                put(keys, &mut self.pool_size, "pool_size", key, size)?;
                put(
                    keys,
                    &mut options.min_connections,
                    "min_connections",
                    key,
                    size,
                )
            }
            "max_overflow" => put(
                keys,
                &mut self.max_overflow,
                "max_overflow",
                key,
                value::max_overflow(key, text)?,
            ),
            "max_pending" => put(
                keys,
                &mut options.max_pending,
                "max_pending",
                key,
                value::count(key, text, 0)?,
            ),
            "reserved_connections" => put(
                keys,
                &mut options.reserved_connections,
                "reserved_connections",
                key,
                value::count(key, text, 0)?,
            ),
            _ => self.set_time(name, key, text),
        }
    }

    fn set_time(&mut self, name: &str, key: &str, text: &str) -> Result<(), ConfigError> {
        let (options, keys) = (&mut self.options, &mut self.keys);
        let (slot, canonical) = match name {
            "connect_timeout" => (&mut options.connect_timeout, "connect_timeout"),
            "acquire_timeout" | "pool_timeout" => (&mut options.acquire_timeout, "acquire_timeout"),
            "statement_timeout" => (&mut options.statement_timeout, "statement_timeout"),
            "release_timeout" => (&mut options.release_timeout, "release_timeout"),
            "idle_timeout" => {
                let time = value::time_or_never(key, text)?;
                return put(keys, &mut options.idle_timeout, "idle_timeout", key, time);
            }
            "hold_slow_threshold" => {
                let time = value::time_or_never(key, text)?;
                return put(
                    keys,
                    &mut options.hold_slow_threshold,
                    "hold_slow_threshold",
                    key,
                    time.unwrap_or(Duration::MAX),
                );
            }
            "hold_timeout" => {
                let time = value::time_or_never(key, text)?;
                return put(
                    keys,
                    &mut options.hold_timeout,
                    "hold_timeout",
                    key,
                    time.unwrap_or(Duration::MAX),
                );
            }
            "body_timeout" => {
                let time = value::time_or_never(key, text)?;
                return put(
                    keys,
                    &mut options.body_timeout,
                    "body_timeout",
                    key,
                    time.unwrap_or(Duration::MAX),
                );
            }
            "max_lifetime" | "pool_recycle" => {
                let time = value::time_or_never(key, text)?;
                return put(keys, &mut options.max_lifetime, "max_lifetime", key, time);
            }
            "sqlx_slow_statements_logging_threshold" => {
                let time = value::time_or_zero(key, text)?;
                return put(
                    keys,
                    &mut options.slow_threshold,
                    "slow_threshold",
                    key,
                    time,
                );
            }
            "startup_timeout" => {
                let time = value::time_or_zero(key, text)?;
                return put(
                    keys,
                    &mut options.startup_timeout,
                    "startup_timeout",
                    key,
                    time,
                );
            }
            _ => return Err(unknown(name, key)),
        };
        put(keys, slot, canonical, key, value::time(key, text)?)
    }

    /// All that was given, if it fits together. `url_key` is where a URL was looked for.
    pub(super) fn finish(mut self, url_key: &str, hint: &str) -> Result<PoolConfig, ConfigError> {
        let overflows = self.resolve_overflow()?;
        let Some(url) = self.url else {
            return Err(ConfigError::new(
                url_key,
                format!("not set: write `postgres://user@host/database`{hint}"),
            ));
        };
        let default = if url.backend() == DbBackend::Sqlite {
            1
        } else {
            10
        };
        let (max, is_default) = match self.options.max_connections {
            Some(max) => (max, ""),
            None => (default, " (the default)"),
        };
        let key = |name: &str| self.keys.get(name).cloned().unwrap_or_default();
        if let Some(min) = self.options.min_connections.filter(|min| *min > max) {
            let why = format!("{min} is more than `max_connections`, {max}{is_default}");
            return Err(ConfigError::new(key("min_connections"), why));
        }
        if let Some(reserve) = self
            .options
            .reserved_connections
            .filter(|reserve| *reserve >= max)
        {
            let why = format!(
                "{reserve} leaves no connection to sessions: write less than `max_connections`, {max}{is_default}"
            );
            return Err(ConfigError::new(key("reserved_connections"), why));
        }
        Ok(PoolConfig {
            url,
            overflows,
            options: self.options,
        })
    }

    /// Makes `min_connections` and `max_connections` of `pool_size` and `max_overflow`.
    fn resolve_overflow(&mut self) -> Result<bool, ConfigError> {
        let (given, max) = (
            self.pool_size.or(self.max_overflow).is_some(),
            self.options.max_connections,
        );
        if !given || (self.max_overflow.is_none() && max.is_some()) {
            return Ok(false);
        }
        let size = *self.options.min_connections.get_or_insert(POOL_SIZE);
        let overflow = self.max_overflow.unwrap_or(MAX_OVERFLOW);
        let key = self
            .keys
            .get("max_overflow")
            .or(self.keys.get("pool_size"))
            .cloned()
            .unwrap_or_default();
        let Some(sum) = size.checked_add(overflow) else {
            return Err(ConfigError::new(
                key,
                "too many connections together with `pool_size`",
            ));
        };
        if max.is_some_and(|max| max != sum) {
            let other = self
                .keys
                .get("max_connections")
                .cloned()
                .unwrap_or_default();
            let why = format!(
                "{size} and {overflow} more are {sum}, and `{other}` says otherwise: keep one of the two"
            );
            return Err(ConfigError::new(key, why));
        }
        self.keys.entry("min_connections").or_insert(key);
        self.options.max_connections = Some(sum);
        Ok(overflow > 0)
    }
}

/// Puts `value` where it belongs, unless another name of the same setting has put another one there.
fn put<T: PartialEq>(
    keys: &mut Keys,
    slot: &mut Option<T>,
    name: &'static str,
    key: &str,
    value: T,
) -> Result<(), ConfigError> {
    if slot.as_ref().is_some_and(|before| *before != value) {
        let before = keys.get(name).map_or(name, String::as_str);
        let why = format!(
            "`{before}` is another name of the same setting and says otherwise: keep one of the two"
        );
        return Err(ConfigError::new(key, why));
    }
    *slot = Some(value);
    keys.insert(name, key.to_owned());
    Ok(())
}

fn unknown(name: &str, key: &str) -> ConfigError {
    // As the key was written: `DB_POOL_SIZE`, or `pool_size`.
    let prefix = key
        .get(..key.len().saturating_sub(name.len()))
        .unwrap_or_default();
    let written = |name: &str| {
        if prefix.is_empty() {
            name.to_owned()
        } else {
            format!("{prefix}{}", name.to_uppercase())
        }
    };
    let mut why = "no such setting".to_owned();
    if names::is_part_of_a_url(name) {
        why += &format!(
            ": a connection is one URL, write it to `{}`",
            written("url")
        );
    } else if let Some(name) = names::alike(name).or_else(|| names::nearest(name, names::NAMES)) {
        why += &format!(": did you mean `{}`?", written(name));
    } else {
        why += &format!("; there are {}", names::NAMES.map(written).join(", "));
    }
    if !prefix.is_empty() {
        why += OWN_PREFIX;
    }
    ConfigError::new(key, why)
}

/// A variable that is not the one that was `meant`.
pub(super) fn misspelt(key: &str, meant: &str) -> ConfigError {
    ConfigError::new(
        key,
        format!("no such setting: did you mean `{meant}`?{OWN_PREFIX}"),
    )
}

const OWN_PREFIX: &str = " (if it is another program's, read these from a prefix of their own: `PoolConfig::from_prefixed_vars`)";
