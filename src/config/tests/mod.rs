#![allow(clippy::unwrap_used, clippy::expect_used)] // a test may panic

mod foreign;
mod keys;
mod parameters;
mod sizes;
mod urls;
mod values;

use super::{ConfigError, PoolConfig};

const URL: &str = if cfg!(feature = "sqlx-postgres") {
    "postgres://localhost/shop"
} else if cfg!(feature = "sqlx-mysql") {
    "mysql://localhost/shop"
} else {
    "sqlite://shop"
};

/// Reads these settings from variables.
fn env<'a>(
    settings: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<PoolConfig, ConfigError> {
    let settings = settings
        .into_iter()
        .map(|(name, value)| (format!("DB_{}", name.to_uppercase()), value.to_owned()));
    PoolConfig::from_vars(
        [("DATABASE_URL".to_owned(), URL.to_owned())]
            .into_iter()
            .chain(settings),
    )
}

/// Reads these settings from JSON.
fn json(settings: &str) -> Result<PoolConfig, serde_json::Error> {
    let comma = if settings.is_empty() { "" } else { "," };
    serde_json::from_str(&format!("{{\"url\": \"{URL}\"{comma} {settings}}}"))
}
