//! Settings from environment variables.

use std::ffi::OsString;

use super::{
    error::ConfigError,
    given::Given,
    settings::{NAMES, alike, is_foreign, is_part_of_a_url, plain},
};

/// The variables of one prefix.
pub(super) struct Variables<'p> {
    pub(super) prefix: &'p str,
    /// The variable with the URL.
    pub(super) url: &'p str,
}

impl<'p> Variables<'p> {
    pub(super) const DEFAULT: Self = Self {
        prefix: "DB_",
        url: "DATABASE_URL",
    };

    /// Reads the settings among `vars`, and the error to return if the URL is not among them.
    pub(super) fn read(
        &self,
        vars: impl IntoIterator<Item = (String, OsString)>,
    ) -> Result<(Given<'p>, ConfigError), ConfigError> {
        let mut given = Given::with_prefix(self.prefix);
        let mut foreign = Vec::new();
        for (key, value) in vars {
            let Some(name) = self.setting(&key, &given)? else {
                continue;
            };
            if is_foreign(&name) {
                // Refused, it would keep a service from starting beside a Kubernetes Service that is called `db`.
                foreign.push(key);
                continue;
            }
            let Ok(text) = value.into_string() else {
                return Err(ConfigError::new(key, "not UTF-8"));
            };
            // An empty one is not set, so that `DB_POOL_SIZE=${DB_POOL_SIZE:-}` works. A misspelt one is an error even so.
            if !text.trim().is_empty() || !NAMES.contains(&&*name) {
                given.add(&name, &key, text)?;
            }
        }
        // The order of the environment is not defined; the log line's is.
        foreign.sort();
        if !foreign.is_empty() {
            let variables = foreign.join(", ");
            tracing::warn!(target: "tower_sea_orm::pool", variables, "these variables are not pool settings and are ignored");
        }
        Ok((given, self.no_url(&foreign)))
    }

    /// Returns the variable's name without the prefix, if it has the prefix.
    fn setting(&self, key: &str, given: &Given<'_>) -> Result<Option<String>, ConfigError> {
        // `DATABASE_URL` has no prefix: it is the name that platforms give it.
        if key == self.url {
            return Ok(Some("url".to_owned()));
        }
        match (key.strip_prefix(self.prefix), self.meant(key, given)) {
            (Some(name), _) => Ok(Some(name.to_ascii_lowercase())),
            // Passed over, a `db_pool_size` would leave the pool at its default without a word.
            (None, Some(meant)) => Err(given.misspelt(key, &meant)),
            (None, None) => Ok(None),
        }
    }

    /// Returns the variable whose name differs from `key` in case and separators only. For keys without the prefix.
    fn meant(&self, key: &str, given: &Given<'_>) -> Option<String> {
        let key = plain(key);
        if key == plain(self.url) {
            return Some(self.url.to_owned());
        }
        Some(match alike(key.strip_prefix(&plain(self.prefix))?)? {
            "url" => self.url.to_owned(),
            name => given.written(name),
        })
    }

    fn no_url(&self, foreign: &[String]) -> ConfigError {
        let name = |key: &str| key[self.prefix.len()..].to_ascii_lowercase();
        let parts = foreign.iter().filter(|key| is_part_of_a_url(&name(key)));
        let parts: Vec<_> = parts.map(|key| format!("`{key}`")).collect();
        ConfigError::no_url(self.url, &parts.join(", "))
    }
}
