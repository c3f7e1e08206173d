//! Settings from the environment.

use std::env;

use super::{
    ConfigError, PoolConfig,
    names::{NAMES, PARTS_OF_A_URL},
    settings::Settings,
};

const PREFIX: &str = "DB_";
const URL: &str = "DATABASE_URL";

impl PoolConfig {
    /// Reads `DATABASE_URL` and the variables that begin with `DB_` from the environment.
    ///
    /// Each setting goes by each of its names: `DB_POOL_SIZE`, `DB_MAX_CONNECTIONS`, … (`DB_URL` is
    /// `DATABASE_URL`). A variable that is empty counts as not set, so that
    /// `DB_POOL_SIZE=${DB_POOL_SIZE:-}` works.
    ///
    /// A `DB_` variable that is none of them is refused, because it may be a typing error. What other
    /// programs call the parts of their URL is left alone (`DB_HOST`, `DB_PORT`, `DB_USER`,
    /// `DB_PASSWORD`, `DB_NAME` and the like); for the rest there is
    /// [`from_prefixed_vars`](Self::from_prefixed_vars).
    ///
    /// # Errors
    ///
    /// If a setting is unknown or impossible, contradicts another one, or is not UTF-8, or if there is
    /// no URL.
    pub fn from_env() -> Result<Self, ConfigError> {
        let mut vars = Vec::new();
        for (key, value) in env::vars_os() {
            let Some(key) = key.to_str().filter(|key| key.starts_with(PREFIX) || *key == URL) else { continue };
            let is_part = key.strip_prefix(PREFIX).is_some_and(is_part_of_a_url);
            match value.into_string() {
                Ok(value) => vars.push((key.to_owned(), value)),
                Err(_) if is_part => {}
                Err(_) => return Err(ConfigError::new(key, "not UTF-8")),
            }
        }
        Self::from_vars(vars)
    }

    /// [`from_env`](Self::from_env) with these variables in place of the environment's. Variables
    /// that do not begin with `DB_` are passed over.
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
        let (mut settings, mut parts) = (Settings::default(), Vec::new());
        for (key, value) in vars {
            let (key, value) = (key.as_ref(), value.as_ref());
            match key.strip_prefix(PREFIX) {
                Some(name) if is_part_of_a_url(name) => parts.push(format!("`{key}`")),
                Some(name) => set(&mut settings, name, key, value)?,
                None if key == URL => set(&mut settings, "url", key, value)?,
                None => {}
            }
        }
        parts.sort();
        let hint = match parts.as_slice() {
            [] => String::new(),
            parts => format!("; {} are not read, put what they say into the URL", parts.join(", ")),
        };
        settings.finish(URL, &hint)
    }

    /// Reads the variables that begin with `prefix`: for a second database, or where `DB_` is another
    /// program's. The URL is the prefix and `URL`; all that begins with the prefix has to be a setting.
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
    /// If a setting is unknown or impossible, or contradicts another one, or if there is no URL.
    pub fn from_prefixed_vars<K: AsRef<str>, V: AsRef<str>>(
        prefix: &str,
        vars: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Self, ConfigError> {
        let mut settings = Settings::default();
        for (key, value) in vars {
            let (key, value) = (key.as_ref(), value.as_ref());
            if let Some(name) = key.strip_prefix(prefix) {
                set(&mut settings, name, key, value)?;
            }
        }
        settings.finish(&format!("{prefix}URL"), "")
    }
}

fn is_part_of_a_url(name: &str) -> bool {
    PARTS_OF_A_URL.contains(&name.to_ascii_lowercase().as_str())
}

fn set(settings: &mut Settings, name: &str, key: &str, value: &str) -> Result<(), ConfigError> {
    let name = name.to_ascii_lowercase();
    if value.trim().is_empty() && NAMES.contains(&name.as_str()) {
        return Ok(());
    }
    settings.set(&name, key, value)
}
