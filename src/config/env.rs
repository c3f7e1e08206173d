//! Settings from environment variables.

use std::ffi::OsString;

use super::{
    error::ConfigError,
    given::Given,
    settings::{NAMES, alike, is_foreign, plain},
};

impl<'p> Given<'p> {
    /// Reads the settings among `vars`, whose names begin with `prefix`; the
    /// URL is in the variable `url`.
    pub(super) fn of_variables(
        prefix: &'p str,
        url: &'p str,
        vars: impl IntoIterator<Item = (String, OsString)>,
    ) -> Result<Self, ConfigError> {
        let mut given = Self::nothing(prefix, url);
        for (key, value) in vars {
            let Some(name) = given.setting(&key)? else {
                continue;
            };
            if is_foreign(&name) {
                // Refused, it would keep a service from starting beside a
                // Kubernetes Service that is called `db`.
                given.foreign.push(key);
                continue;
            }
            // Only now that it is one of ours: another program's variable may
            // hold any bytes.
            let Ok(text) = value.into_string() else {
                return Err(ConfigError::new(key, "not UTF-8"));
            };
            // An empty one is not set, so that `DB_POOL_SIZE=${DB_POOL_SIZE:-}`
            // works. A misspelt one is an error even so.
            if !text.trim().is_empty() || !NAMES.contains(&&*name) {
                given.add(&name, &key, text)?;
            }
        }
        // The order of the environment is not defined; the log line's is.
        given.foreign.sort();
        if !given.foreign.is_empty() {
            let variables = given.foreign.join(", ");
            tracing::warn!(target: "tower_sea_orm::pool", variables, "these variables are not pool settings and are ignored");
        }
        Ok(given)
    }

    /// Returns the variable's name without the prefix, if it has the prefix.
    fn setting(&self, key: &str) -> Result<Option<String>, ConfigError> {
        // `DATABASE_URL` has no prefix: it is the name that platforms give it.
        if key == self.url {
            return Ok(Some("url".to_owned()));
        }
        match (key.strip_prefix(self.prefix), self.meant(key)) {
            (Some(name), _) => Ok(Some(name.to_ascii_lowercase())),
            // Passed over, a `db_pool_size` would leave the pool at its default
            // without a word.
            (None, Some(meant)) => Err(self.misspelt(key, &meant)),
            (None, None) => Ok(None),
        }
    }

    /// Returns the variable whose name differs from `key` in case and
    /// separators only. For keys without the prefix.
    fn meant(&self, key: &str) -> Option<String> {
        let key = plain(key);
        if key == plain(self.url) {
            return Some(self.url.to_owned());
        }
        Some(match alike(key.strip_prefix(&plain(self.prefix))?)? {
            "url" => self.url.to_owned(),
            name => self.written(name),
        })
    }
}
