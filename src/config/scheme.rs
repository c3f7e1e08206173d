//! Schemes: the beginning of a URL, which says what drives the database.

use sea_orm::DbBackend;

/// Schemes, with their drivers, and the features that build these in.
#[rustfmt::skip]
const SCHEMES: [(&str, DbBackend, &str, bool); 4] = [
    ("postgres", DbBackend::Postgres, "sqlx-postgres", cfg!(feature = "sqlx-postgres")),
    ("postgresql", DbBackend::Postgres, "sqlx-postgres", cfg!(feature = "sqlx-postgres")),
    ("mysql", DbBackend::MySql, "sqlx-mysql", cfg!(feature = "sqlx-mysql")),
    ("sqlite", DbBackend::Sqlite, "sqlx-sqlite", cfg!(feature = "sqlx-sqlite")),
];

/// Returns the driver for `scheme`, if it is built in.
pub(super) fn backend(scheme: &str) -> Result<DbBackend, String> {
    let (dialect, right) = meaning(scheme);
    let known = SCHEMES.iter().find(|(scheme, ..)| *scheme == right);
    Err(match known {
        None => {
            "not a supported database: write `postgres://…`, `mysql://…` or `sqlite://…`".to_owned()
        }
        Some(_) if dialect != scheme => {
            format!("the part after `+` names a Python driver: write `{right}://…`")
        }
        Some(_) if dialect != right => {
            format!("MariaDB's scheme is `{right}` here: write `{right}://…`")
        }
        // Known here, so that it is no "unknown scheme" of SeaORM's at the
        // first connection.
        Some((_, _, feature, false)) => {
            format!("its driver is not built in: enable the feature `{feature}` of tower-sea-orm")
        }
        Some((_, backend, ..)) => return Ok(*backend),
    })
}

/// Returns the scheme that was meant by `scheme`, and what it is for.
pub(super) fn meant(scheme: &str) -> Option<(&'static str, DbBackend)> {
    let scheme = scheme.to_ascii_lowercase();
    let (_, right) = meaning(&scheme);
    let known = SCHEMES.iter().find(|(scheme, ..)| *scheme == right);
    known.map(|(scheme, backend, ..)| (*scheme, *backend))
}

/// Returns the database's name in `scheme`, and the one that it has here.
fn meaning(scheme: &str) -> (&str, &str) {
    // What follows a `+` names SQLAlchemy's driver.
    let dialect = scheme.split('+').next().unwrap_or_default();
    let right = if dialect == "mariadb" {
        "mysql"
    } else {
        dialect
    };
    (dialect, right)
}
