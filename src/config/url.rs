//! [`DatabaseUrl`]: a URL that shows no password.

use std::fmt;

use percent_encoding::percent_decode_str;
use sea_orm::{ConnectOptions, DbBackend};
use url::Url;

use super::ConfigError;

/// A database's URL: whole for the driver, without its password for everybody else.
#[derive(Clone)]
pub(super) struct DatabaseUrl {
    whole: String,
    /// Without a password, wherever it stood.
    bare: String,
    password: Option<String>,
    shown: String,
    backend: DbBackend,
}

impl DatabaseUrl {
    /// Takes the URL apart. No error shows anything of it but its scheme.
    pub(super) fn parse(key: &str, text: &str) -> Result<Self, ConfigError> {
        let refused = |why: &str| Err(ConfigError::new(key, why));
        let text = text.trim();
        let Ok(mut url) = Url::parse(text) else {
            return refused(
                "no URL: write `postgres://user:password@host/database`, with `/`, `?`, `#`, `@` and `%` in user and \
                 password as `%2F`, `%3F`, `%23`, `%40` and `%25`",
            );
        };
        let backend = backend(key, url.scheme())?;
        let shown = shown(&url);
        let mut password = match url.password().map(|password| percent_decode_str(password).decode_utf8()) {
            Some(Ok(password)) => Some(password.into_owned()),
            Some(Err(_)) => return refused("the password in it is not UTF-8 when its `%` escapes are undone"),
            None => None,
        };
        if backend == DbBackend::Sqlite {
            if password.is_some() || url.query_pairs().any(|(name, _)| is_secret(&name)) {
                return refused("an SQLite URL has no password");
            }
            return Ok(Self { whole: text.to_owned(), bare: text.to_owned(), password, shown, backend });
        }
        if url.cannot_be_a_base() {
            return refused("`//` is missing after the scheme: write `postgres://user:password@host/database`");
        }
        if has_stray_sign(&url) {
            return refused(
                "an `@` or `#` stands where none can be: write `/`, `?`, `#` and `@` in user, password, database and \
                 parameters as `%2F`, `%3F`, `%23` and `%40`",
            );
        }
        if url.password().is_some() && url.set_password(None).is_err() {
            return refused("there is a password but no host");
        }
        let (secrets, rest): (Vec<_>, Vec<_>) = url.query_pairs().into_owned().partition(|(name, _)| is_secret(name));
        if secrets.iter().any(|(name, _)| backend != DbBackend::Postgres || name != "password") {
            return refused(
                "there is a password among its parameters that the driver does not read: write it before the host",
            );
        }
        // Like sqlx: the last one counts.
        if let Some((_, last)) = secrets.into_iter().next_back() {
            password = Some(last);
            url.query_pairs_mut().clear().extend_pairs(rest);
        }
        Ok(Self { whole: text.to_owned(), bare: url.into(), password, shown, backend })
    }

    pub(super) fn backend(&self) -> DbBackend {
        self.backend
    }

    /// SeaORM's options for this URL, password included: their `Debug` shows it.
    pub(super) fn options(&self) -> ConnectOptions {
        ConnectOptions::new(&self.whole)
    }

    /// SeaORM's options for this URL, with the password where neither `Debug` nor SeaORM's spans see it.
    pub(super) fn guarded_options(&self) -> ConnectOptions {
        #[cfg_attr(not(any(feature = "sqlx-postgres", feature = "sqlx-mysql")), allow(unused_mut))]
        let mut options = ConnectOptions::new(&self.bare);
        match (&self.password, self.backend) {
            #[cfg(feature = "sqlx-postgres")]
            (Some(password), DbBackend::Postgres) => {
                let password = password.clone();
                options.map_sqlx_postgres_opts(move |options| options.password(&password));
            }
            #[cfg(feature = "sqlx-mysql")]
            (Some(password), DbBackend::MySql) => {
                let password = password.clone();
                options.map_sqlx_mysql_opts(move |options| options.password(&password));
            }
            _ => {}
        }
        options
    }
}

impl PartialEq for DatabaseUrl {
    fn eq(&self, other: &Self) -> bool {
        self.whole == other.whole
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// The driver for `scheme`, if it is built in.
fn backend(key: &str, scheme: &str) -> Result<DbBackend, ConfigError> {
    let (backend, built_in, feature) = match scheme {
        "postgres" | "postgresql" => (DbBackend::Postgres, cfg!(feature = "sqlx-postgres"), "sqlx-postgres"),
        "mysql" => (DbBackend::MySql, cfg!(feature = "sqlx-mysql"), "sqlx-mysql"),
        "sqlite" => (DbBackend::Sqlite, cfg!(feature = "sqlx-sqlite"), "sqlx-sqlite"),
        "mariadb" => return Err(ConfigError::new(key, "MariaDB's scheme is `mysql` here: write `mysql://…`")),
        _ => {
            // What follows a `+` names SQLAlchemy's driver.
            let known = ["postgresql", "mysql", "mariadb", "sqlite"];
            let python = scheme.split_once('+').filter(|(dialect, _)| known.contains(dialect));
            let why = match python {
                Some((dialect, _)) => {
                    let scheme = if dialect == "mariadb" { "mysql" } else { dialect };
                    format!("the part after `+` names a driver of Python's: write `{scheme}://…`")
                }
                None => "no database of this crate's: write `postgres://…`, `mysql://…` or `sqlite://…`".to_owned(),
            };
            return Err(ConfigError::new(key, why));
        }
    };
    if built_in {
        return Ok(backend);
    }
    let why = format!("its driver is not built in: enable the feature `{feature}` of tower-sea-orm");
    Err(ConfigError::new(key, why))
}

/// Whether a part of the URL has a sign that a password may have brought there: a `/`, `?` or `#` in it
/// that is not escaped makes the host of its first half, and the `@` that was to follow comes later.
fn has_stray_sign(url: &Url) -> bool {
    url.fragment().is_some() || url.path().contains('@') || url.query().is_some_and(|query| query.contains('@'))
}

fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["pass", "pwd", "secret", "token", "credential"].iter().any(|part| name.contains(part))
}

/// What may be shown: never a password, no query, and nothing of what looks ill-formed.
fn shown(url: &Url) -> String {
    let scheme = url.scheme();
    if has_stray_sign(url) {
        return format!("{scheme}:…");
    }
    let query = if url.query().is_some() { "?…" } else { "" };
    if url.cannot_be_a_base() {
        // Only SQLite's: what follows is a file's name.
        return format!("{scheme}:{}{query}", url.path());
    }
    let user = match (url.username(), url.password()) {
        ("", None) => String::new(),
        (user, None) => format!("{user}@"),
        (user, Some(_)) => format!("{user}:***@"),
    };
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{scheme}://{user}{}{port}{}{query}", url.host_str().unwrap_or_default(), url.path())
}
