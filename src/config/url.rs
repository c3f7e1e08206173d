//! [`DatabaseUrl`]: a URL that shows no password.

#[cfg(feature = "sqlx-sqlite")]
use std::str::FromStr;
use std::{borrow::Cow, fmt};

use percent_encoding::percent_decode_str;
#[cfg(feature = "sqlx-sqlite")]
use sea_orm::sqlx::sqlite::SqliteConnectOptions;
use sea_orm::{ConnectOptions, DbBackend};
use url::{Url, form_urlencoded};

use super::{
    mistake::{has_stray_sign, ill_formed, misplaced},
    parameters,
    scheme::backend,
};
#[cfg(feature = "sqlx-sqlite")]
use crate::pool::Memory;

/// How many statements each connection of MySQL keeps prepared unless the URL
/// says it: a text more than sqlx's own 100 costs the next statement 40 ms (see
/// `cheap_statements`), while the server has room for 16 382 in all
/// (`max_prepared_stmt_count`).
#[cfg(feature = "sqlx-mysql")]
const MYSQL_STATEMENTS: usize = 300;

/// A database's URL: whole for the driver, without its password in everything
/// that is shown.
#[derive(Clone, PartialEq)]
pub(super) struct DatabaseUrl {
    whole: String,
    /// Without a password, wherever it stood.
    bare: String,
    password: Option<String>,
    /// The host, if it is an IPv6 address.
    #[cfg_attr(not(feature = "_sqlx"), allow(dead_code))] // a URL for a driver
    address: Option<String>,
    shown: String,
    pub(super) backend: DbBackend,
}

impl DatabaseUrl {
    /// Takes the URL apart. An error shows nothing of it but its scheme and the
    /// names of its parameters.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        // A secret that comes from a file ends with a newline.
        let text = text.trim();
        // By the crate that sqlx uses, so that both see the same parts.
        let url = Url::parse(text).map_err(|_| ill_formed(text))?;
        match backend(url.scheme())? {
            DbBackend::Sqlite => Self::sqlite(text, &url),
            backend => Self::server(url, backend),
        }
    }

    fn sqlite(text: &str, url: &Url) -> Result<Self, String> {
        // It would be a part of the file's name, and shown.
        if url.password().is_some() || url.query_pairs().any(|(name, _)| is_secret(&name)) {
            return Err("an SQLite URL has no password".to_owned());
        }
        // sqlx takes all that follows the first `?` for parameters, a fragment
        // included.
        let query = text.split_once('?').map_or("", |(_, query)| query);
        let query = form_urlencoded::parse(query.as_bytes());
        parameters::check(DbBackend::Sqlite, query)?;
        Ok(Self {
            whole: text.to_owned(),
            bare: text.to_owned(),
            password: None,
            address: None,
            shown: shown(url),
            backend: DbBackend::Sqlite,
        })
    }

    fn server(mut url: Url, backend: DbBackend) -> Result<Self, String> {
        // Before anything is taken out of it: the parts of such a URL are not
        // where they seem to be.
        if let Some(why) = misplaced(&url) {
            return Err(why);
        }
        // Before the password is taken out.
        let (shown, address) = (shown(&url), ipv6(&url));
        let pairs = url.query_pairs().into_owned();
        let (secrets, others): (Vec<_>, Vec<_>) = pairs.partition(|(name, _)| is_secret(name));
        // sqlx reads this one for PostgreSQL, and no other.
        let is_read = |name: &str| backend == DbBackend::Postgres && name == "password";
        // It would do nothing there, and SeaORM's spans would show it.
        if secrets.iter().any(|(name, _)| !is_read(name)) {
            return Err("it has a password among its parameters that the driver does not read: write it before the host".to_owned());
        }
        parameters::check(backend, url.query_pairs())?;
        // With the password: for `connect_options`, which users may change and
        // connect with themselves.
        let whole = with_address(&url, backend, address.as_deref());
        // sqlx decodes them as well, and would fail at the first connection.
        decoded("user name", url.username())?;
        decoded("database's name", url.path())?;
        let password = url.password().map(|text| decoded("password", text));
        let mut password = password.transpose()?;
        // Nothing but the password's own field may have it: SeaORM's spans show
        // the URL that it connects with.
        if password.is_some() && url.set_password(None).is_err() {
            return Err("it has a password but no host".to_owned());
        }
        // As for sqlx, the last one among the parameters counts.
        if let Some((_, last)) = secrets.into_iter().next_back() {
            password = Some(last);
            // Written anew only then: a URL without a secret stays byte for
            // byte as it was given.
            url.query_pairs_mut().clear().extend_pairs(others);
        }
        Ok(Self {
            whole,
            bare: with_address(&url, backend, address.as_deref()),
            password,
            address,
            shown,
            backend,
        })
    }

    /// Returns whether each connection has a database in memory of its own,
    /// which is gone with it.
    pub(super) fn is_of_one_connection(&self) -> bool {
        #[cfg(feature = "sqlx-sqlite")]
        if self.backend == DbBackend::Sqlite
            && let Ok(options) = SqliteConnectOptions::from_str(&self.whole)
        {
            return Memory::of(&options) == Some(Memory::Private);
        }
        false
    }

    /// SeaORM's options for this URL, password included: their `Debug` shows
    /// it.
    pub(super) fn options(&self) -> ConnectOptions {
        self.completed(ConnectOptions::new(&self.whole), None)
    }

    /// SeaORM's options for this URL, with the password where neither `Debug`
    /// nor SeaORM's spans see it.
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
                // On sqlx's own options, which neither `Debug` nor a span of
                // SeaORM's shows (G15).
                if let Some(password) = password {
                    options.map_sqlx_postgres_opts(move |options| options.password(&password));
                }
            }
            #[cfg(feature = "sqlx-mysql")]
            DbBackend::MySql => {
                let address = self.address.clone();
                // `=0` is for proxies that do not translate names of
                // statements, and has to stay.
                let is_given = self.bare.contains("statement-cache-capacity=");
                // All in one closure: SeaORM keeps the last one only.
                options.map_sqlx_mysql_opts(move |mut options| {
                    if !is_given {
                        options = options.statement_cache_capacity(MYSQL_STATEMENTS);
                    }
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

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

// By hand, since a derived one would show `whole` (G15).
impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// Returns the host if it is an IPv6 address, without its brackets: sqlx 0.9.0
/// keeps them, and looks for a host of that name
/// (<https://github.com/SeaQL/sea-orm/issues/2579>).
fn ipv6(url: &Url) -> Option<String> {
    let host = url.host_str()?;
    Some(host.strip_prefix('[')?.strip_suffix(']')?.to_owned())
}

/// Returns the URL with the IPv6 address as a parameter, which PostgreSQL's
/// driver reads. A `host` among the URL's own parameters comes later, and
/// counts.
fn with_address(url: &Url, backend: DbBackend, address: Option<&str>) -> String {
    let mut url = url.clone();
    if let (DbBackend::Postgres, Some(address)) = (backend, address) {
        let others = url.query().map(|query| format!("&{query}"));
        let others = others.unwrap_or_default();
        url.set_query(Some(&format!("hostaddr={address}{others}")));
    }
    url.into()
}

/// Returns a part of the URL as sqlx reads it.
fn decoded(name: &str, part: &str) -> Result<String, String> {
    // As sqlx does it: what it would send has to be what is taken out.
    let decoded = percent_decode_str(part).decode_utf8();
    decoded
        .map(Cow::into_owned)
        .map_err(|_| format!("its {name} is not UTF-8 once the `%` escapes are decoded"))
}

/// Returns whether the parameter is a password, or looks like one that another
/// driver reads.
fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    // It has the path of a file, and `parameters` says what to do about it.
    name != "passfile"
        // By parts of names: another driver's `sslpassword` is a secret, too,
        // and would be shown.
        && ["pass", "pwd", "secret", "token", "credential"]
            .iter()
            .any(|part| name.contains(part))
}

/// Returns what may be shown: never a password, no query, and nothing of what
/// looks ill-formed.
fn shown(url: &Url) -> String {
    let mut shown = url.clone();
    shown.set_query(None);
    let is_hidden = url.password().is_none() || shown.set_password(Some("***")).is_ok();
    // Nothing of it at all: the password of such a URL may stand anywhere
    // (G15).
    if has_stray_sign(url) || !is_hidden {
        return format!("{}:…", url.scheme());
    }
    let query = if url.query().is_some() { "?…" } else { "" };
    format!("{shown}{query}")
}
