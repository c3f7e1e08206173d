//! A `PoolConfig` made of names and values.

use tower_sea_orm::PoolConfig;

pub fn config(url: &str, settings: &[(&str, &str)]) -> PoolConfig {
    // So that a test which waits for the driver's pool to be whole does not wait for long.
    let name = "TEST_BEFORE_ACQUIRE_IF_IDLE_FOR";
    let is_given = settings.iter().any(|(given, _)| *given == name);
    let soon = (!is_given).then(|| (format!("DB_{name}"), "1".to_owned()));
    let url = ("DATABASE_URL".to_owned(), url.to_owned());
    let settings = settings
        .iter()
        .map(|(name, value)| (format!("DB_{name}"), (*value).to_owned()));
    PoolConfig::from_vars([url].into_iter().chain(soon).chain(settings)).unwrap()
}
