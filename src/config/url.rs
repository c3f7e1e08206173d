//! [`DatabaseUrl`]: a URL that shows no password.

use std::{borrow::Cow, fmt};

use percent_encoding::percent_decode_str;
use sea_orm::{ConnectOptions, DbBackend};
use url::{Url, form_urlencoded};

use super::{ConfigError, parameters};

/// A database's URL: whole for the driver, without its password in everything that is shown.
#[derive(Clone)]
pub(super) struct DatabaseUrl {
    whole: String,
    /// Without a password, wherever it stood.
    bare: String,
    password: Option<String>,
    /// The host, if it is an IPv6 address.
    #[cfg_attr(not(feature = "_sqlx"), allow(dead_code))] // a URL for a driver
    address: Option<String>,
    shown: String,
    backend: DbBackend,
}

impl DatabaseUrl {
    /// Takes the URL apart. No error shows anything of it but its scheme and the names of its parameters.
    pub(super) fn parse(key: &str, text: &str) -> Result<Self, ConfigError> {
        let refused = |why: &str| ConfigError::new(key, why);
        let text = text.trim();
        let url = Url::parse(text).map_err(|_| refused(ill_formed(text)))?;
        let backend = backend(key, url.scheme())?;
        let password = url
            .password()
            .map(|password| percent_decode_str(password).decode_utf8());
        let password = password
            .transpose()
            .map_err(|_| {
                refused("the password in it is not UTF-8 when its `%` escapes are undone")
            })?
            .map(Cow::into_owned);
        if backend == DbBackend::Sqlite {
            return Self::sqlite(key, text, &url);
        }
        if let Some(why) = misplaced(&url) {
            return Err(refused(why));
        }
        Self::server(key, url, backend, password)
    }

    fn sqlite(key: &str, text: &str, url: &Url) -> Result<Self, ConfigError> {
        if url.password().is_some() || url.query_pairs().any(|(name, _)| is_secret(&name)) {
            return Err(ConfigError::new(key, "an SQLite URL has no password"));
        }
        // sqlx takes all that follows the first `?` for parameters.
        let query = text.split_once('?').map_or("", |(_, query)| query);
        parameters::check(
            key,
            DbBackend::Sqlite,
            form_urlencoded::parse(query.as_bytes()),
        )?;
        Ok(Self {
            whole: text.to_owned(),
            bare: text.to_owned(),
            password: None,
            address: None,
            shown: shown(url),
            backend: DbBackend::Sqlite,
        })
    }

    fn server(
        key: &str,
        mut url: Url,
        backend: DbBackend,
        mut password: Option<String>,
    ) -> Result<Self, ConfigError> {
        let refused = |why: &str| Err(ConfigError::new(key, why));
        let (shown, address) = (shown(&url), ipv6(&url));
        let (secrets, rest): (Vec<_>, Vec<_>) = url
            .query_pairs()
            .into_owned()
            .partition(|(name, _)| is_secret(name));
        if secrets
            .iter()
            .any(|(name, _)| backend != DbBackend::Postgres || name != "password")
        {
            return refused(
                "there is a password among its parameters that the driver does not read: write it before the host",
            );
        }
        parameters::check(key, backend, url.query_pairs())?;
        let addressed = |url: &Url| match backend {
            DbBackend::Postgres => with_address(url.clone(), address.as_deref()),
            _ => url.to_string(),
        };
        let whole = addressed(&url);
        if url.password().is_some() && url.set_password(None).is_err() {
            return refused("there is a password but no host");
        }
        // Like sqlx: the one among the parameters counts.
        if let Some((_, last)) = secrets.into_iter().next_back() {
            password = Some(last);
            url.query_pairs_mut().clear().extend_pairs(rest);
        }
        let bare = addressed(&url);
        Ok(Self {
            whole,
            bare,
            password,
            address,
            shown,
            backend,
        })
    }

    pub(super) fn backend(&self) -> DbBackend {
        self.backend
    }

    /// SeaORM's options for this URL, password included: their `Debug` shows it.
    pub(super) fn options(&self) -> ConnectOptions {
        self.completed(ConnectOptions::new(&self.whole), None)
    }

    /// SeaORM's options for this URL, with the password where neither `Debug` nor SeaORM's spans see it.
    pub(super) fn guarded_options(&self) -> ConnectOptions {
        self.completed(ConnectOptions::new(&self.bare), self.password.clone())
    }

    /// Adds what is not in the URL.
    #[cfg_attr(
        not(any(feature = "sqlx-postgres", feature = "sqlx-mysql")),
        allow(unused_mut, unused_variables)
    )]
    fn completed(&self, mut options: ConnectOptions, password: Option<String>) -> ConnectOptions {
        match self.backend {
            #[cfg(feature = "sqlx-postgres")]
            DbBackend::Postgres => {
                if let Some(password) = password {
                    options.map_sqlx_postgres_opts(move |options| options.password(&password));
                }
            }
            #[cfg(feature = "sqlx-mysql")]
            DbBackend::MySql if password.is_some() || self.address.is_some() => {
                let address = self.address.clone();
                options.map_sqlx_mysql_opts(move |mut options| {
                    if let Some(address) = &address {
                        options = options.host(address);
                    }
                    match &password {
                        Some(password) => options.password(password),
                        None => options,
                    }
                });
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

const SEVERAL_HOSTS: &str =
    "it names several hosts, and sqlx connects to one: write the name that leads to the primary";

/// What is wrong with a text that is no URL.
fn ill_formed(text: &str) -> &'static str {
    let authority = text.split_once("://").map_or("", |(_, rest)| rest);
    let authority = &authority[..authority.find(['/', '?', '#']).unwrap_or(authority.len())];
    let hosts = authority
        .rsplit_once('@')
        .map_or(authority, |(_, hosts)| hosts);
    if hosts.contains(',') {
        SEVERAL_HOSTS
    } else if hosts.matches(':').count() > 1 && !hosts.contains('[') {
        "an IPv6 address has brackets in a URL: write `postgres://user:password@[::1]:5432/database`"
    } else {
        "no URL: write `postgres://user:password@host/database`, with `/`, `?`, `#`, `@` and `%` in user and password \
         as `%2F`, `%3F`, `%23`, `%40` and `%25`"
    }
}

/// What stands in a server's URL where it cannot be.
fn misplaced(url: &Url) -> Option<&'static str> {
    if url.cannot_be_a_base() {
        Some("`//` is missing after the scheme: write `postgres://user:password@host/database`")
    } else if has_stray_sign(url) {
        Some(
            "an `@` or `#` stands where none can be: write `/`, `?`, `#` and `@` in user, password, database and \
             parameters as `%2F`, `%3F`, `%23` and `%40`",
        )
    } else if url.host_str().is_some_and(|host| host.contains(',')) {
        Some(SEVERAL_HOSTS)
    } else {
        None
    }
}

/// The host if it is an IPv6 address, without its brackets: sqlx 0.9.0 keeps them, and looks for a host of
/// that name (<https://github.com/SeaQL/sea-orm/issues/2579>).
fn ipv6(url: &Url) -> Option<String> {
    Some(
        url.host_str()?
            .strip_prefix('[')?
            .strip_suffix(']')?
            .to_owned(),
    )
}

/// Names the IPv6 address as a parameter as well. A `host` that the URL itself names comes later, and counts.
fn with_address(mut url: Url, address: Option<&str>) -> String {
    if let Some(address) = address {
        let rest = url
            .query()
            .map(|query| format!("&{query}"))
            .unwrap_or_default();
        url.set_query(Some(&format!("hostaddr={address}{rest}")));
    }
    url.into()
}

/// The driver for `scheme`, if it is built in.
fn backend(key: &str, scheme: &str) -> Result<DbBackend, ConfigError> {
    let (backend, built_in, feature) = match scheme {
        "postgres" | "postgresql" => (
            DbBackend::Postgres,
            cfg!(feature = "sqlx-postgres"),
            "sqlx-postgres",
        ),
        "mysql" => (DbBackend::MySql, cfg!(feature = "sqlx-mysql"), "sqlx-mysql"),
        "sqlite" => (
            DbBackend::Sqlite,
            cfg!(feature = "sqlx-sqlite"),
            "sqlx-sqlite",
        ),
        "mariadb" => {
            return Err(ConfigError::new(
                key,
                "MariaDB's scheme is `mysql` here: write `mysql://…`",
            ));
        }
        _ => {
            // What follows a `+` names SQLAlchemy's driver.
            let known = ["postgresql", "mysql", "mariadb", "sqlite"];
            let python = scheme
                .split_once('+')
                .filter(|(dialect, _)| known.contains(dialect));
            let why = match python {
                Some((dialect, _)) => {
                    let scheme = if dialect == "mariadb" {
                        "mysql"
                    } else {
                        dialect
                    };
                    format!("the part after `+` names a driver of Python's: write `{scheme}://…`")
                }
                None => {
                    "no database of this crate's: write `postgres://…`, `mysql://…` or `sqlite://…`"
                        .to_owned()
                }
            };
            return Err(ConfigError::new(key, why));
        }
    };
    if built_in {
        return Ok(backend);
    }
    let why =
        format!("its driver is not built in: enable the feature `{feature}` of tower-sea-orm");
    Err(ConfigError::new(key, why))
}

/// Whether a part of the URL has a sign that a password may have brought there: a `/`, `?` or `#` in it
/// that is not escaped makes the host of its first half, and the `@` that was to follow comes later.
fn has_stray_sign(url: &Url) -> bool {
    url.fragment().is_some()
        || url.path().contains('@')
        || url.query().is_some_and(|query| query.contains('@'))
}

fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name != "passfile"
        && ["pass", "pwd", "secret", "token", "credential"]
            .iter()
            .any(|part| name.contains(part))
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
    let port = url
        .port()
        .map(|port| format!(":{port}"))
        .unwrap_or_default();
    format!(
        "{scheme}://{user}{}{port}{}{query}",
        url.host_str().unwrap_or_default(),
        url.path()
    )
}
