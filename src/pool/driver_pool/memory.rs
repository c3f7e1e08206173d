//! [`Memory`]: whether an SQLite database is in memory, and whose.

#[cfg(feature = "sqlx-sqlite")]
use sea_orm::sqlx::sqlite::SqliteConnectOptions;

/// A database that is gone with its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(
    not(feature = "sqlx-sqlite"),
    allow(dead_code, reason = "only SQLite's are in memory")
)]
pub(crate) enum Memory {
    /// One for all connections that have its name: gone with the last of them.
    Shared,
    /// One for each connection.
    Private,
}

impl Memory {
    /// Returns `None` for a file.
    #[cfg(feature = "sqlx-sqlite")]
    pub(crate) fn of(options: &SqliteConnectOptions) -> Option<Self> {
        let name = options.get_filename().to_string_lossy();
        let shown = flags(options);
        let has = |flag: &str| shown.split(", ").any(|shown| shown == flag);
        // The first is the name that sqlx gives to one without a name.
        let is_named = ["sqlx-in-memory", ":memory:", "mode=memory"]
            .iter()
            .any(|mark| name.contains(mark));
        // Without a name, SQLite makes a file that it removes again.
        let is_in_memory = has("in_memory: true") || is_named || name.is_empty();
        // What the name says goes before the flag.
        let is_shared = has("shared_cache: true") && !name.contains("cache=private")
            || name.contains("cache=shared");
        is_in_memory.then_some(if is_shared && !name.is_empty() {
            Self::Shared
        } else {
            Self::Private
        })
    }
}

/// Returns the first fields behind the name, as `Debug` shows them.
// sqlx gives them out in no other way but a URL, and panics where it makes that
// of a name such as `file:shop`. Shown by
// `sqlx_still_shows_whether_a_database_is_in_memory`.
#[cfg(feature = "sqlx-sqlite")]
fn flags(options: &SqliteConnectOptions) -> String {
    let shown = format!("{options:?}");
    let name = format!("{:?}, ", options.get_filename());
    let behind = shown.split_once(&name).map_or("", |(_, behind)| behind);
    let fields: Vec<&str> = behind.split(", ").take(4).collect();
    fields.join(", ")
}

#[cfg(all(test, feature = "sqlx-sqlite"))]
mod tests {
    #![allow(clippy::unwrap_used)] // a test may panic

    use std::str::FromStr;

    use super::*;

    #[test]
    fn sqlx_still_shows_whether_a_database_is_in_memory() {
        for (url, expected) in [
            ("sqlite::memory:", Some(Memory::Shared)),
            ("sqlite://:memory:", Some(Memory::Shared)),
            ("sqlite::memory:?cache=private", Some(Memory::Private)),
            ("sqlite://shop?mode=memory", Some(Memory::Shared)),
            (
                "sqlite://shop?mode=memory&cache=private",
                Some(Memory::Private),
            ),
            (
                "sqlite://file:shop?mode=memory&cache=shared",
                Some(Memory::Shared),
            ),
            ("sqlite:", Some(Memory::Private)),
            ("sqlite://shop.db", None),
            ("sqlite://shop.db?mode=rwc&cache=shared", None),
        ] {
            let options = SqliteConnectOptions::from_str(url).unwrap();
            assert_eq!(Memory::of(&options), expected, "{url}");
        }
        let named = |name: &str| Memory::of(&SqliteConnectOptions::new().filename(name));
        assert_eq!(named("file::memory:"), Some(Memory::Private));
        assert_eq!(named("file::memory:?cache=shared"), Some(Memory::Shared));
        assert_eq!(named("file:shop?mode=memory"), Some(Memory::Private));
        assert_eq!(
            Memory::of(&SqliteConnectOptions::new()),
            Some(Memory::Private)
        );
        assert_eq!(named("shop.db"), None);
    }
}
