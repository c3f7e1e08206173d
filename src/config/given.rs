//! [`Given`]: the settings as they were written, and what they say.

use sea_orm::DbBackend;

use super::{
    error::ConfigError,
    settings::{NAMES, Settings, is_part_of_a_url, meant},
};

/// SQLAlchemy's default of `pool_size`, if only `max_overflow` is given.
// See
// <https://docs.sqlalchemy.org/en/20/core/engines.html#sqlalchemy.create_engine.params.pool_size>.
const POOL_SIZE: u32 = 5;
/// SQLAlchemy's default of `max_overflow`, if only `pool_size` is given.
const MAX_OVERFLOW: u32 = 10;

const OWN_PREFIX: &str = " (if it belongs to another program, read these settings under another prefix: \
     `PoolConfig::from_prefixed_vars`)";

/// The settings that were written in one place.
pub(super) struct Given<'p> {
    /// The prefix of the environment's variables; empty for a file.
    pub(super) prefix: &'p str,
    /// The name under which the URL is looked for.
    pub(super) url: &'p str,
    settings: Vec<Setting>,
    /// Variables with the prefix that belong to another program.
    pub(super) foreign: Vec<String>,
}

struct Setting {
    name: String,
    /// The name as it was written.
    key: String,
    text: String,
}

impl Setting {
    /// Reads the value. Returns `false` if the setting has another value
    /// already.
    fn read_into(&self, settings: &mut Settings) -> Result<bool, ConfigError> {
        let read = settings.read(&self.name, &self.text);
        read.map_err(|why| ConfigError::of_value(&self.key, &self.text, &why))
    }
}

impl<'p> Given<'p> {
    pub(super) fn nothing(prefix: &'p str, url: &'p str) -> Self {
        Self {
            prefix,
            url,
            settings: Vec::new(),
            foreign: Vec::new(),
        }
    }

    /// Adds the setting `name`, written as `key`.
    pub(super) fn add(&mut self, name: &str, key: &str, text: String) -> Result<(), ConfigError> {
        if !NAMES.contains(&name) {
            return Err(self.no_such_setting(name, key));
        }
        let (name, key) = (name.to_owned(), key.to_owned());
        // Twice is no error by itself: a platform may set `DATABASE_URL` beside
        // a service's own `DB_URL`.
        self.settings.push(Setting { name, key, text });
        Ok(())
    }

    /// Reads the values of all settings. Returns as well whether a part of
    /// `max_connections` is an overflow.
    pub(super) fn read(&self) -> Result<(Settings, bool), ConfigError> {
        let mut settings = Settings::default();
        for setting in &self.settings {
            if !setting.read_into(&mut settings)? {
                return Err(self.disagreement(setting));
            }
        }
        let overflows = self.add_overflow(&mut settings)?;
        Ok((settings, overflows))
    }

    /// Makes `max_connections` of the least number of connections and the
    /// overflow, as SQLAlchemy's settings mean it.
    fn add_overflow(&self, settings: &mut Settings) -> Result<bool, ConfigError> {
        let is_limited = settings.max_connections.is_some() || self.find("pool_size").is_none();
        // Taken, so that two ways to write the same limit make the same
        // configuration.
        let overflow = match settings.max_overflow.take() {
            None if is_limited => return Ok(false),
            overflow => overflow.unwrap_or(MAX_OVERFLOW),
        };
        // As SQLAlchemy fills in the one that is missing.
        let size = *settings.min_connections.get_or_insert(POOL_SIZE);
        let refused = |why: &str| ConfigError::new(self.key(&["max_overflow", "pool_size"]), why);
        // Refused, and not cut off at the largest number: one of them may be
        // meant as "no limit".
        let Some(sum) = size.checked_add(overflow) else {
            return Err(refused("too many connections together with `pool_size`"));
        };
        match settings.max_connections.replace(sum) {
            Some(max) if max != sum => {
                let other = self.key(&["max_connections"]);
                Err(refused(&format!(
                    "{size} plus {overflow} is {sum}, but `{other}` has another value: keep one of the two"
                )))
            }
            _ => Ok(overflow > 0),
        }
    }

    /// Checks the numbers of connections against the limit.
    pub(super) fn check(&self, settings: &Settings, backend: DbBackend) -> Result<(), ConfigError> {
        // SeaORM passes only what is given to sqlx: these are the defaults of
        // the drivers, which a test compares.
        let default = if backend == DbBackend::Sqlite { 1 } else { 10 };
        let max = settings.max_connections.unwrap_or(default);
        let note = settings.max_connections.map_or(" (the default)", |_| "");
        // Here and not by the driver, which takes it and opens fewer without a
        // word.
        if let Some(min) = settings.min_connections.filter(|min| *min > max) {
            let key = self.key(&["min_connections", "pool_size", "max_overflow"]);
            let why = format!("{min} is more than `max_connections`, {max}{note}");
            return Err(ConfigError::new(key, why));
        }
        // As many as all would do the same as more: no session would ever have
        // a connection.
        if let Some(reserved) = settings.reserved_connections.filter(|n| *n >= max) {
            let why = format!(
                "{reserved} leaves no connection for sessions: write less than `max_connections`, {max}{note}"
            );
            return Err(ConfigError::new(self.key(&["reserved_connections"]), why));
        }
        Ok(())
    }

    /// Refuses limits that would end a database with its connection.
    pub(super) fn check_limits(&self, settings: &Settings) -> Result<(), ConfigError> {
        let names: &[&str] = if settings.idle_timeout.flatten().is_some() {
            &["idle_timeout"]
        } else if settings.max_lifetime.flatten().is_some() {
            &["max_lifetime", "pool_recycle"]
        } else {
            return Ok(());
        };
        Err(ConfigError::new(
            self.key(names),
            "a database in memory with `cache=private` is gone when its connection is closed: write `never`, \
             leave it out, or write `cache=shared` into the URL",
        ))
    }

    fn find(&self, name: &str) -> Option<&Setting> {
        self.settings.iter().find(|setting| setting.name == name)
    }

    /// Returns how the first of these settings that was given was written.
    pub(super) fn key<'a>(&'a self, names: &[&'a str]) -> &'a str {
        let given = names.iter().find_map(|name| self.find(name));
        given.map_or(names[0], |setting| &setting.key)
    }

    /// Returns the error for a setting that has another value under another
    /// name, `DATABASE_URL` and `DB_URL` for example.
    fn disagreement(&self, setting: &Setting) -> ConfigError {
        // With each alone, because only their values say that two names mean
        // the same setting.
        let disagrees = |other: &&Setting| {
            let mut alone = Settings::default();
            other.read_into(&mut alone).is_ok() && setting.read_into(&mut alone) == Ok(false)
        };
        let other = self.settings.iter().find(disagrees).unwrap_or(setting);
        let why =
            "is another name of the same setting, with a different value: keep one of the two";
        ConfigError::new(&setting.key, format!("`{}` {why}", other.key))
    }

    /// Returns the error for settings without the URL.
    pub(super) fn no_url(&self) -> ConfigError {
        let is_part =
            |key: &&String| is_part_of_a_url(&key[self.prefix.len()..].to_ascii_lowercase());
        // Of what was passed over, these alone explain why there is no URL.
        let parts = self.foreign.iter().filter(is_part);
        let parts: Vec<_> = parts.map(|key| format!("`{key}`")).collect();
        let hint = match parts.join(", ") {
            none if none.is_empty() => none,
            parts => format!("; {parts} are ignored: put their values into the URL"),
        };
        let why = format!("not set: write `postgres://user@host/database`{hint}");
        ConfigError::new(self.url, why)
    }

    /// Returns the error for a name that no setting has.
    fn no_such_setting(&self, name: &str, key: &str) -> ConfigError {
        let hint = if is_part_of_a_url(name) {
            let url = self.written("url");
            format!(": the whole connection is one URL: put it into `{url}`")
        } else if let Some(meant) = meant(name) {
            return self.misspelt(key, &self.written(meant));
        } else {
            // Far from all of them: only the whole list helps.
            let names: Vec<_> = NAMES.iter().map(|name| self.written(name)).collect();
            format!("; the settings are {}", names.join(", "))
        };
        self.refuse(key, &hint)
    }

    /// Returns the error for a key that was meant to be another one.
    pub(super) fn misspelt(&self, key: &str, meant: &str) -> ConfigError {
        self.refuse(key, &format!(": did you mean `{meant}`?"))
    }

    fn refuse(&self, key: &str, hint: &str) -> ConfigError {
        // In a file, the settings share no namespace with other programs.
        let own_prefix = if self.prefix.is_empty() {
            ""
        } else {
            OWN_PREFIX
        };
        ConfigError::new(key, format!("no such setting{hint}{own_prefix}"))
    }

    /// Returns the setting's name as it is written here.
    pub(super) fn written(&self, name: &str) -> String {
        match self.prefix {
            "" => name.to_owned(),
            prefix => format!("{prefix}{}", name.to_uppercase()),
        }
    }
}
