//! A `PoolConfig` made of names and values.

use tower_sea_orm::PoolConfig;

pub fn config(url: &str, settings: &[(&str, &str)]) -> PoolConfig {
    let settings = settings
        .iter()
        .map(|(name, value)| (format!("DB_{name}"), (*value).to_owned()));
    PoolConfig::from_vars(
        [("DATABASE_URL".to_owned(), url.to_owned())]
            .into_iter()
            .chain(settings),
    )
    .unwrap()
}
