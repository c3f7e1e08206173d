//! [`ConfigError`]: which setting is wrong, and what is right.

use std::fmt;

/// A setting that a [`PoolConfig`](super::PoolConfig) refuses.
///
/// The text names the key as it was written, and the allowed values. It shows a
/// value only if that is harmless, and nothing of a URL.
///
/// ```
/// use tower_sea_orm::PoolConfig;
///
/// let error = PoolConfig::from_vars([("DB_POOL_SZIE", "10")]).unwrap_err();
/// assert_eq!(error.key(), "DB_POOL_SZIE");
/// assert!(error.to_string().contains("did you mean `DB_POOL_SIZE`?"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    key: String,
    // A text, and no kinds to match: it is for the person who wrote the
    // setting, and code can only stop.
    problem: String,
}

impl ConfigError {
    pub(super) fn new(key: impl Into<String>, problem: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            problem: problem.into(),
        }
    }

    /// Refuses the value `text`, and shows it if it can be no secret.
    pub(super) fn of_value(key: &str, text: &str, why: &str) -> Self {
        // A value in the wrong variable may be a password or a URL.
        let is_harmless = |c: char| c.is_ascii_alphanumeric() || " .+-_".contains(c);
        let shown = if text.len() <= 24 && text.chars().all(is_harmless) {
            format!("\"{text}\"")
        } else {
            "this value".to_owned()
        };
        Self::new(key, format!("{shown} is refused: {why}"))
    }

    /// Returns the key as it was written: `DB_POOL_SIZE`, or `pool_size` in a
    /// file.
    pub fn key(&self) -> &str {
        &self.key
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`: {}", self.key, self.problem)
    }
}

impl std::error::Error for ConfigError {}
