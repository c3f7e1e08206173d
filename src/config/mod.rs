//! [`PoolConfig`]: the pool's settings from the environment or a file.

mod env;
mod error;
mod file;
mod given;
mod mistake;
mod parameters;
mod scheme;
mod settings;
mod startup;
#[cfg(test)]
mod tests;
mod url;
mod value;

use std::{env::vars_os, ffi::OsString, fmt};

use log::LevelFilter;
use sea_orm::{ConnectOptions, DatabaseConnection, DbErr};
use serde::{Deserialize, Deserializer, de::Error as _};

pub use self::error::ConfigError;
use self::{given::Given, settings::Settings, startup::connect, url::DatabaseUrl};
use crate::{Error, SessionPool, SessionPoolBuilder};

// `DATABASE_URL` is also where the command-line tools of sqlx and SeaORM look,
// and what platforms set.
const PREFIX: &str = "DB_";
const URL: &str = "DATABASE_URL";

/// Calls the setter for each of these settings that was given.
macro_rules! set {
    ($target:ident, $settings:expr; $($name:ident)*) => {
        $(if let Some(value) = $settings.$name { $target = $target.$name(value); })*
    };
    // SeaORM's options are set by reference, the builder's by value.
    (&mut $target:ident, $settings:expr; $($name:ident)*) => {
        $(if let Some(value) = $settings.$name { $target.$name(value); })*
    };
}

/// The settings of a database's pool, under SeaORM's names and SQLAlchemy's,
/// read from the environment ([`from_env`](Self::from_env)) or, by serde, from
/// a file in any format.
///
/// ```
/// use std::time::Duration;
/// use tower_sea_orm::PoolConfig;
///
/// # if cfg!(feature = "sqlx-postgres") {
/// let config: PoolConfig = serde_json::from_str(r#"{
///     "url": "postgres://app:secret@localhost/shop",
///     "pool_size": 10,
///     "max_overflow": 5,
///     "pool_timeout": 3,
///     "pool_recycle": "30min",
///     "echo": false,
///     "startup_timeout": "30s"
/// }"#)?;
///
/// let options = config.connect_options();
/// assert_eq!((options.get_min_connections(), options.get_max_connections()), (Some(10), Some(15)));
/// assert_eq!(options.get_acquire_timeout(), Some(Duration::from_secs(3)));
/// assert_eq!(options.get_max_lifetime(), Some(Some(Duration::from_secs(1800))));
/// assert!(!options.get_sqlx_logging());
/// // let pool: SessionPool = config.connect().await?;
///
/// let no_limit = r#"{ "url": "postgres://localhost/shop", "max_overflow": -1 }"#;
/// let error = serde_json::from_str::<PoolConfig>(no_limit).unwrap_err();
/// assert!(error.to_string().starts_with("`max_overflow`: \"-1\" is refused: no limit in SQLAlchemy"));
/// # }
/// # Ok::<(), serde_json::Error>(())
/// ```
///
/// # The settings
///
/// In the environment, each name is in capitals and prefixed with `DB_`:
/// `DB_POOL_SIZE`. Settings that are not given keep their defaults.
///
/// | setting | SQLAlchemy's name | value | default | what |
/// |---|---|---|---|---|
/// | `url` | the first argument | URL | – | `DATABASE_URL` or `DB_URL` in the environment. |
/// | `min_connections` | `pool_size` | number | 0 | Connections that are opened at startup and kept open; SQLAlchemy opens them on demand. |
/// | `max_connections` | `pool_size` + `max_overflow` | number | 10; SQLite: 1 | The limit. |
/// | `acquire_timeout` | `pool_timeout` | time | 5 s (SQLAlchemy: 30 s) | How long a session waits for its connection. Also applies to the driver's pool, whose own default is 30 s. |
/// | `connect_timeout` | | time | | The driver pool's acquire timeout, if `acquire_timeout` is not given. |
/// | `idle_timeout` | | time, `never` | 10 min; never for SQLite in memory with `cache=private` | After this time, an unused connection above `min_connections` is closed. |
/// | `max_lifetime` | `pool_recycle` | time, `never` or `-1` | 30 min (SQLAlchemy: never); never for SQLite in memory with `cache=private` | The age at which an unused connection is closed. |
/// | `test_before_acquire` | `pool_pre_ping` | switch | true (SQLAlchemy: false) | Ping a connection of the driver's pool before it is used. A connection that goes straight from one session to the next is not pinged; see `direct_handoff` and `test_before_acquire_if_idle_for`. |
/// | `connect_lazy` | | switch | false | Connect at the first session, as SQLAlchemy always does. |
/// | `sqlx_logging` | `echo` | switch | true (SQLAlchemy: false) | Log statements under the target `sqlx::query`, without their values. |
/// | `sqlx_logging_level` | | level | info | The level at which statements are logged. |
/// | `sqlx_slow_statements_logging_level` | | level | off; warn if the next setting is given | The level at which slow statements are logged. |
/// | `sqlx_slow_statements_logging_threshold` | | time | 1 s | The time from which a statement counts as slow. |
/// | `schema_search_path` | | text | | PostgreSQL only, like the next two; without effect elsewhere. |
/// | `application_name` | | text | | The name shown in `pg_stat_activity`. |
/// | `statement_timeout` | | time | | The time after which the server stops a statement. |
/// | `reserved_connections` | | number | 0 | [`SessionPoolBuilder::reserved_connections`] |
/// | `release_timeout` | | time | 5 s | [`SessionPoolBuilder::release_timeout`] |
/// | `commit_timeout` | | time | 30 s | [`SessionPoolBuilder::commit_timeout`] |
/// | `max_pending` | | number | by the pace, at least 20 × `max_connections` | [`SessionPoolBuilder::max_pending`] |
/// | `direct_handoff` | | switch | true | [`SessionPoolBuilder::direct_handoff`] |
/// | `test_before_acquire_if_idle_for` | | time | 30 s | [`SessionPoolBuilder::test_before_acquire_if_idle_for`] |
/// | `reset` | `pool_reset_on_return`: `rollback` or `none` | `none`, `rollback_only`, `session_state`, `session_state_always` | `rollback_only` | [`SessionPoolBuilder::reset`] |
/// | `pool_mode` | | `session`, `transaction` | `session` | [`SessionPoolBuilder::pool_mode`] |
/// | `cancel_running` | | switch | false | [`SessionPoolBuilder::cancel_running`] |
/// | `hold_slow_threshold` | | time, `never` or `-1` | 10 s | [`SessionPoolBuilder::hold_slow_threshold`] |
/// | `hold_timeout` | | time, `never` or `-1` | never | [`SessionPoolBuilder::hold_timeout`] |
/// | `body_timeout` | | time, `never` or `-1` | 30 s | [`SessionPoolBuilder::body_timeout`] |
/// | `startup_timeout` | | time, or 0 | 0 | How long [`connect`](Self::connect) waits for a server that is not available yet. |
///
/// A **time** is in seconds, as in SQLAlchemy (`30`, `0.5`), or has a unit:
/// `250ms`, `30s`, `5min`, `1h`, `1d`. A **switch** is `true` or `false` (also
/// `1`, `yes`, `on`, `0`, `no`, `off`). A **level** is `off`, `error`, `warn`,
/// `info`, `debug` or `trace`.
///
/// Differences from SQLAlchemy:
///
/// - `pool_size` without `max_overflow` has SQLAlchemy's overflow of 10, and `max_overflow` without
///   `pool_size` its size of 5. Give `max_connections` with `pool_size` to set the limit itself.
/// - SQLAlchemy closes an overflow connection as soon as it is returned. Here it is closed once it
///   has been idle for the `idle_timeout`.
/// - `pool_size=0` and `max_overflow=-1`, which mean no limit, are refused: no server accepts
///   unlimited connections. So is `pool_reset_on_return=commit`: work that a handler has not
///   committed is never committed.
/// - A URL names no driver: `postgresql://`, not `postgresql+asyncpg://`. The path in
///   `sqlite:///path` is absolute; the one in `sqlite://path` is relative.
///
/// # What is refused
///
/// - An unknown name; the error suggests the nearest known one. Environment variables may belong to another
///   program, so among them only a name that is almost a setting's, or differs from one in case and
///   separators (`db_pool_size`), is refused; one log line names the others that begin with the prefix.
/// - A value that cannot be parsed or is out of range, and two names of one setting that disagree.
/// - `min_connections` above `max_connections`, and a `reserved_connections` that leaves no connection for
///   sessions.
/// - An `idle_timeout` or a `max_lifetime` for SQLite in memory with `cache=private`: such a database is gone
///   with its connection.
/// - A URL for a driver that is not built in.
/// - A URL parameter that sqlx does not read, or a parameter value that it does not accept: `ssl=true`
///   (`sslmode=require`), `schema=…` (`options[search_path]=…`), `serverTimezone=…`. sqlx itself ignores
///   them. Also an `sslrootcert` or `ssl-ca` without a mode that checks the certificate.
/// - A list of hosts, and `target_session_attrs`: sqlx connects to one host and does not ask for its role.
///
/// [`ConfigError`] names the setting and says what to write instead.
///
/// # Secrets
///
/// `Debug` and `Display` show scheme, user, host and database of the URL, but
/// never its password, and nothing of its query. Errors show nothing of a URL.
/// [`connect_options`](Self::connect_options) returns SeaORM's type, whose
/// `Debug` shows the complete URL. The error of a file format's parser may
/// quote the line in question; log only its message if that line may contain
/// the URL.
#[derive(Clone, PartialEq)]
pub struct PoolConfig {
    url: DatabaseUrl,
    /// Whether a part of `max_connections` is SQLAlchemy's overflow.
    overflows: bool,
    settings: Settings,
}

impl PoolConfig {
    /// Reads `DATABASE_URL` and the variables that begin with `DB_` from the
    /// environment.
    ///
    /// Each setting can be given under any of its names: `DB_POOL_SIZE`,
    /// `DB_MAX_CONNECTIONS`, … (`DB_URL` is `DATABASE_URL`). An empty variable
    /// counts as not set, so that `DB_POOL_SIZE=${DB_POOL_SIZE:-}` works.
    ///
    /// A `DB_` variable that is almost a setting's name is refused, because it
    /// is probably a typo; so is one whose name differs only in case or
    /// separators (`db_pool_size`, `DATABASE-URL`). Other `DB_` variables
    /// belong to other programs, and one log line, at WARN, names them:
    /// variables for the parts of a URL (`DB_HOST`, `DB_PASSWORD`, …), and
    /// those that Kubernetes and Docker inject beside a service called `db`
    /// (`DB_SERVICE_HOST`, `DB_PORT_5432_TCP`, …).
    ///
    /// # Errors
    ///
    /// If a setting is misspelt or impossible, contradicts another one, or is
    /// not UTF-8, or if there is no URL.
    pub fn from_env() -> Result<Self, ConfigError> {
        // A key that is not UTF-8 is no name of ours. Not `vars`, which panics
        // at the first variable that is not UTF-8, even another program's
        // (<https://doc.rust-lang.org/std/env/fn.vars.html>).
        let vars = vars_os().filter_map(|(key, value)| Some((key.into_string().ok()?, value)));
        Self::from_given(&Given::of_variables(PREFIX, URL, vars)?)
    }

    /// [`from_env`](Self::from_env) with these variables in place of the
    /// environment's. Variables whose names are not even close to
    /// `DATABASE_URL` or to a name that begins with `DB_` are ignored.
    ///
    /// ```
    /// use tower_sea_orm::PoolConfig;
    ///
    /// # if cfg!(feature = "sqlx-postgres") {
    /// let vars = [("DATABASE_URL", "postgres://app:secret@localhost/shop"), ("DB_POOL_TIMEOUT", "3"), ("LANG", "C")];
    /// let config = PoolConfig::from_vars(vars).unwrap();
    /// assert_eq!(config.to_string(), "postgres://app:***@localhost/shop");
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`from_env`](Self::from_env).
    pub fn from_vars<K: AsRef<str>, V: AsRef<str>>(
        vars: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Self, ConfigError> {
        Self::from_given(&Given::of_variables(PREFIX, URL, owned(vars))?)
    }

    /// Reads the variables that begin with `prefix`: for a second database, or
    /// if `DB_` belongs to another program. The URL's variable is the prefix
    /// followed by `URL`; a variable that is almost a setting's name is
    /// refused, as by [`from_env`](Self::from_env).
    ///
    /// ```
    /// use tower_sea_orm::PoolConfig;
    ///
    /// # if cfg!(feature = "sqlx-sqlite") {
    /// # let env = [("STOCK_DB_URL", "sqlite::memory:"), ("STOCK_DB_POOL_SIZE", "1"), ("STOCK_DB_MAX_OVERFLOW", "0")];
    /// // with `std::env::vars()` in place of `env`:
    /// let config = PoolConfig::from_prefixed_vars("STOCK_DB_", env)?;
    /// assert_eq!(config.connect_options().get_max_connections(), Some(1));
    /// # }
    /// # Ok::<(), tower_sea_orm::ConfigError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// If a setting is misspelt or impossible, or contradicts another one, or
    /// if there is no URL.
    pub fn from_prefixed_vars<K: AsRef<str>, V: AsRef<str>>(
        prefix: &str,
        vars: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Self, ConfigError> {
        let url = &format!("{prefix}URL");
        Self::from_given(&Given::of_variables(prefix, url, owned(vars))?)
    }

    fn from_given(given: &Given<'_>) -> Result<Self, ConfigError> {
        let (mut settings, overflows) = given.read()?;
        // Out of the settings, whose `Debug` would show its password.
        let url = settings.url.take().ok_or_else(|| given.no_url())?;
        let url =
            DatabaseUrl::parse(&url).map_err(|why| ConfigError::new(given.key(&["url"]), why))?;
        // Behind the URL, since SQLite's defaults are others.
        given.check(&settings, url.backend)?;
        if url.is_of_one_connection() {
            given.check_limits(&settings)?;
        }
        Ok(Self {
            url,
            overflows,
            settings,
        })
    }

    /// Returns SeaORM's options, so that you can change those that have no
    /// setting here. [`session_pool`](Self::session_pool) then makes the pool
    /// of sessions.
    ///
    /// An IPv6 address in a MySQL URL is corrected by `map_sqlx_mysql_opts`,
    /// which holds a single function: if you call it yourself, you replace that
    /// function and have to set the `host`.
    ///
    /// The options contain the complete URL: their `Debug` shows its password,
    /// and so do SeaORM's spans (at the level TRACE) when you connect with
    /// them.
    ///
    /// ```
    /// use sea_orm::Database;
    /// use tower_sea_orm::PoolConfig;
    ///
    /// # if cfg!(feature = "sqlx-sqlite") {
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// let config = PoolConfig::from_vars([("DATABASE_URL", "sqlite::memory:"), ("DB_ECHO", "false")])?;
    /// let mut options = config.connect_options();
    /// options.after_connect(|db| Box::pin(async move { db.ping().await }));
    /// let pool = config.session_pool(Database::connect(options).await?)?;
    /// assert_eq!(pool.status().max, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// # }
    /// # Ok::<(), tower_sea_orm::ConfigError>(())
    /// ```
    pub fn connect_options(&self) -> ConnectOptions {
        self.with_settings(self.url.options())
    }

    /// Builds a pool of sessions over `database`, with this configuration's
    /// values for [`SessionPool`]'s own settings: `acquire_timeout`,
    /// `release_timeout`, `reserved_connections` and those below it in the
    /// table.
    ///
    /// # Errors
    ///
    /// Those of [`SessionPoolBuilder::build`].
    pub fn session_pool(&self, database: DatabaseConnection) -> Result<SessionPool, Error> {
        self.session_pool_builder(database).build()
    }

    fn session_pool_builder(&self, database: DatabaseConnection) -> SessionPoolBuilder {
        let mut builder = SessionPool::builder(database);
        set! { builder, self.settings; acquire_timeout release_timeout commit_timeout }
        set! { builder, self.settings; reserved_connections max_pending reset pool_mode }
        set! { builder, self.settings; hold_slow_threshold hold_timeout body_timeout direct_handoff }
        set! { builder, self.settings; test_before_acquire_if_idle_for }
        // The builder has no way to turn it off again: it is off by default.
        if self.settings.cancel_running == Some(true) {
            builder = builder.cancel_running();
        }
        builder
    }

    /// Connects, and builds a pool of sessions with these settings.
    ///
    /// With a `startup_timeout`, a server that is not available yet is tried
    /// again until that time has passed, with pauses that grow from 50 ms to 2
    /// s. *Not available yet* means: connection refused, or closed before the
    /// server sent anything (as the port forwarders of containers do), no
    /// answer in time, a host name that cannot be resolved, PostgreSQL's
    /// `57P03` (starting up). A refusal by the server itself (a wrong password,
    /// an unknown database) and a wrong certificate fail at once. Without a
    /// `startup_timeout`, every failure does.
    ///
    /// A server that accepts the connection and then does not answer is given
    /// up after the `acquire_timeout` (or `connect_timeout`), or after 5 s if
    /// neither is given; with a `startup_timeout` and neither of them, after
    /// 30 s, or when that time has passed. The connections that are opened at
    /// startup (`min_connections`, or one) have as long once more; if no time
    /// is given, each has 5 s, and all of them 30 s. The error is
    /// [unreachable](Error::is_unreachable), and names host and port.
    ///
    /// With `connect_lazy`, and for SQLite, there is no server to wait for. The
    /// error of an SQLite file that does not exist says how it is created
    /// (`?mode=rwc`).
    ///
    /// Unlike those of [`connect_options`](Self::connect_options), the options
    /// passed to SeaORM here keep the password separate, so SeaORM's spans do
    /// not show it.
    ///
    /// # Errors
    ///
    /// The error of the last attempt.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the connections that it has opened.
    pub async fn connect(&self) -> Result<SessionPool, DbErr> {
        self.connect_with(|pool| pool).await
    }

    /// [`connect`](Self::connect), with settings of the pool that no variable
    /// has, such as an [`Observer`](crate::Observer). What `set` sets counts,
    /// whatever the configuration says.
    ///
    /// ```
    /// use tower_sea_orm::{Observer, PoolConfig};
    ///
    /// struct Metrics;
    /// impl Observer for Metrics {}
    ///
    /// # if cfg!(feature = "sqlx-sqlite") {
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// let config = PoolConfig::from_vars([("DATABASE_URL", "sqlite::memory:")])?;
    /// let pool = config.connect_with(|pool| pool.observe(Metrics)).await?;
    /// assert_eq!(pool.status().max, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// # }
    /// # Ok::<(), tower_sea_orm::ConfigError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`connect`](Self::connect).
    ///
    /// # Cancel safety
    ///
    /// As [`connect`](Self::connect).
    pub async fn connect_with(
        &self,
        set: impl FnOnce(SessionPoolBuilder) -> SessionPoolBuilder,
    ) -> Result<SessionPool, DbErr> {
        // Without the password: SeaORM's spans show the URL that it connects
        // with (G15).
        let options = self.with_settings(self.url.guarded_options());
        if self.overflows {
            tracing::info!(
                target: "tower_sea_orm::pool",
                min_connections = options.get_min_connections(),
                max_connections = options.get_max_connections(),
                "`max_overflow` is added to `max_connections`; overflow connections are closed after `idle_timeout`, not on return",
            );
        }
        let startup = self.settings.startup_timeout.unwrap_or_default();
        let database = connect(&self.url, options, startup).await?;
        // Only what was given is set below: the other defaults are the pool's,
        // and in one place.
        let builder = self.session_pool_builder(database);
        Ok(set(builder).build()?)
    }

    fn with_settings(&self, mut options: ConnectOptions) -> ConnectOptions {
        let settings = &self.settings;
        if self.url.is_of_one_connection() {
            // Closed by them, its connection would take the database along.
            options.idle_timeout(None).max_lifetime(None);
        }
        set! { &mut options, settings; max_connections min_connections connect_timeout acquire_timeout idle_timeout }
        set! { &mut options, settings; max_lifetime test_before_acquire connect_lazy statement_timeout }
        set! { &mut options, settings; sqlx_logging sqlx_logging_level }
        if let Some(path) = &settings.schema_search_path {
            options.set_schema_search_path(path);
        }
        if let Some(name) = &settings.application_name {
            options.set_application_name(name);
        }
        let (mut level, mut threshold) = options.get_sqlx_slow_statements_logging_settings();
        if let Some(given) = settings.sqlx_slow_statements_logging_threshold {
            // SeaORM's default level is off: a threshold alone would have no
            // effect.
            (level, threshold) = (LevelFilter::Warn, given);
        }
        if let Some(given) = settings.sqlx_slow_statements_logging_level {
            level = given;
        }
        // Both at once: SeaORM has one setter for the two, and one that is not
        // given must stay.
        options.sqlx_slow_statements_logging_settings(level, threshold);
        options
    }
}

/// Owns the variables, as the environment's are.
fn owned<K: AsRef<str>, V: AsRef<str>>(
    vars: impl IntoIterator<Item = (K, V)>,
) -> impl Iterator<Item = (String, OsString)> {
    vars.into_iter()
        .map(|(key, value)| (key.as_ref().to_owned(), value.as_ref().into()))
}

impl<'de> Deserialize<'de> for PoolConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // By serde's error, so that a file's reader adds the line.
        Self::from_given(&file::read(deserializer)?).map_err(D::Error::custom)
    }
}

/// Shows the URL in a form that is safe to log: without password and query.
impl fmt::Display for PoolConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.url.fmt(f)
    }
}

impl fmt::Debug for PoolConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolConfig")
            .field("url", &self.url)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}
