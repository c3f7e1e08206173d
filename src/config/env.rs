//! Settings from the environment.

use std::env;

use super::{
    ConfigError, PoolConfig, TARGET,
    names::{self, Meaning},
    settings::{Settings, misspelt},
};

const PREFIX: &str = "DB_";
const URL: &str = "DATABASE_URL";

impl PoolConfig {
    /// Reads `DATABASE_URL` and the variables that begin with `DB_` from the environment.
    ///
    /// Each setting can be given under any of its names: `DB_POOL_SIZE`, `DB_MAX_CONNECTIONS`, …
    /// (`DB_URL` is `DATABASE_URL`). An empty variable counts as not set, so that
    /// `DB_POOL_SIZE=${DB_POOL_SIZE:-}` works.
    ///
    /// A `DB_` variable that is almost a setting's name is refused, because it is probably a typo; so is
    /// one whose name differs only in case or separators (`db_pool_size`, `DATABASE-URL`). Other `DB_`
    /// variables belong to other programs, and one log line, at WARN, names them: variables for the parts
    /// of a URL (`DB_HOST`, `DB_PASSWORD`, …), and those that Kubernetes and Docker inject beside a
    /// service called `db` (`DB_SERVICE_HOST`, `DB_PORT_5432_TCP`, …).
    ///
    /// # Errors
    ///
    /// If a setting is misspelt or impossible, contradicts another one, or is not UTF-8, or if there is
    /// no URL.
    pub fn from_env() -> Result<Self, ConfigError> {
        let ours = Variables::new(PREFIX, URL);
        let mut vars = Vec::new();
        for (key, value) in env::vars_os() {
            let Ok(key) = key.into_string() else { continue };
            match value.into_string() {
                Ok(value) => vars.push((key, value)),
                Err(_) if ours.reads(&key) => return Err(ConfigError::new(key, "not UTF-8")),
                Err(_) => vars.push((key, String::new())),
            }
        }
        ours.read(vars)
    }

    /// [`from_env`](Self::from_env) with these variables in place of the environment's. Variables whose
    /// names are not even close to `DATABASE_URL` or to a name that begins with `DB_` are ignored.
    ///
    /// ```
    /// use tower_sea_orm::PoolConfig;
    ///
    /// # if cfg!(feature = "sqlx-postgres") {
    /// let vars = [("DATABASE_URL", "postgres://app:secret@localhost/shop"), ("DB_POOL_TIMEOUT", "3"), ("LANG", "C")];
    /// let config = PoolConfig::from_vars(vars).unwrap();
    /// assert_eq!(config.to_string(), "postgres://app:***@localhost/shop");
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`from_env`](Self::from_env).
    pub fn from_vars<K: AsRef<str>, V: AsRef<str>>(
        vars: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Self, ConfigError> {
        Variables::new(PREFIX, URL).read(vars)
    }

    /// Reads the variables that begin with `prefix`: for a second database, or if `DB_` belongs to
    /// another program. The URL's variable is the prefix followed by `URL`; a variable that is almost
    /// a setting's name is refused, as by [`from_env`](Self::from_env).
    ///
    /// ```
    /// use tower_sea_orm::PoolConfig;
    ///
    /// # if cfg!(feature = "sqlx-sqlite") {
    /// # let env = [("STOCK_DB_URL", "sqlite::memory:"), ("STOCK_DB_POOL_SIZE", "1"), ("STOCK_DB_MAX_OVERFLOW", "0")];
    /// // with `std::env::vars()` in place of `env`:
    /// let config = PoolConfig::from_prefixed_vars("STOCK_DB_", env)?;
    /// assert_eq!(config.connect_options().get_max_connections(), Some(1));
    /// # }
    /// # Ok::<(), tower_sea_orm::ConfigError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// If a setting is misspelt or impossible, or contradicts another one, or if there is no URL.
    pub fn from_prefixed_vars<K: AsRef<str>, V: AsRef<str>>(
        prefix: &str,
        vars: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Self, ConfigError> {
        Variables::new(prefix, &format!("{prefix}URL")).read(vars)
    }
}

/// The variables of one prefix.
struct Variables<'p> {
    prefix: &'p str,
    /// The variable with the URL, if it is not the prefix and `URL`.
    url: &'p str,
    settings: Settings,
    foreign: Vec<String>,
    /// Those of `foreign` that look like a part of a URL.
    parts: Vec<String>,
}

impl<'p> Variables<'p> {
    fn new(prefix: &'p str, url: &'p str) -> Self {
        Self {
            prefix,
            url,
            settings: Settings::default(),
            foreign: Vec::new(),
            parts: Vec::new(),
        }
    }

    fn read<K: AsRef<str>, V: AsRef<str>>(
        mut self,
        vars: impl IntoIterator<Item = (K, V)>,
    ) -> Result<PoolConfig, ConfigError> {
        for (key, value) in vars {
            let (key, value) = (key.as_ref(), value.as_ref());
            match key.strip_prefix(self.prefix) {
                _ if key == self.url => self.set("url", key, value)?,
                Some(name) => self.set(&name.to_ascii_lowercase(), key, value)?,
                None => self
                    .meant(key)
                    .map_or(Ok(()), |meant| Err(misspelt(key, &meant)))?,
            }
        }
        self.foreign.sort();
        self.parts.sort();
        if !self.foreign.is_empty() {
            let variables = self.foreign.join(", ");
            tracing::warn!(target: TARGET, variables, "these variables are no settings of the pool and are not read");
        }
        let hint = match self.parts.as_slice() {
            [] => String::new(),
            parts => format!(
                "; {} are not read, put what they say into the URL",
                parts.join(", ")
            ),
        };
        self.settings.finish(self.url, &hint)
    }

    /// Whether the value of this variable is one of the settings.
    fn reads(&self, key: &str) -> bool {
        let name = key.strip_prefix(self.prefix);
        key == self.url || name.is_some_and(|name| names::meaning(name) == Meaning::Setting)
    }

    /// The variable whose name is `key` but for case and separators, where the prefix is not as it should be.
    fn meant(&self, key: &str) -> Option<String> {
        let plain = names::plain(key);
        if plain == names::plain(self.url) {
            return Some(self.url.to_owned());
        }
        let name = names::alike(plain.strip_prefix(&names::plain(self.prefix))?)?;
        Some(if name == "url" {
            self.url.to_owned()
        } else {
            format!("{}{}", self.prefix, name.to_uppercase())
        })
    }

    fn set(&mut self, name: &str, key: &str, value: &str) -> Result<(), ConfigError> {
        match names::meaning(name) {
            Meaning::Setting if value.trim().is_empty() => Ok(()),
            Meaning::Setting | Meaning::Misspelt(_) => self.settings.set(name, key, value),
            Meaning::Foreign => {
                if names::is_part_of_a_url(name) {
                    self.parts.push(format!("`{key}`"));
                }
                self.foreign.push(key.to_owned());
                Ok(())
            }
        }
    }
}
