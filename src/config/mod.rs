//! [`PoolConfig`]: the pool's settings from the environment or a file.

mod advice;
mod de;
mod env;
mod error;
mod names;
mod parameters;
mod settings;
mod startup;
#[cfg(test)]
mod tests;
mod url;
mod value;

use std::{fmt, time::Duration};

use log::LevelFilter;
use sea_orm::{ConnectOptions, DatabaseConnection};

pub use self::error::ConfigError;
use self::url::DatabaseUrl;
#[cfg(doc)]
use crate::SessionPoolBuilder;
use crate::{Error, Reset, SessionPool};

/// Where the log has what is to be said about settings.
const TARGET: &str = "tower_sea_orm::pool";

/// The settings of a database's pool, under SeaORM's names and SQLAlchemy's, read from the
/// environment ([`from_env`](Self::from_env)) or, by serde, from a file in any format.
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
/// In the environment, each name is in capitals and prefixed with `DB_`: `DB_POOL_SIZE`. Settings
/// that are not given keep their defaults.
///
/// | setting | SQLAlchemy's name | value | default | what |
/// |---|---|---|---|---|
/// | `url` | the first argument | URL | – | `DATABASE_URL` or `DB_URL` in the environment. |
/// | `min_connections` | `pool_size` | number | 0 | Connections that are opened at startup and kept open; SQLAlchemy opens them on demand. |
/// | `max_connections` | `pool_size` + `max_overflow` | number | 10; SQLite: 1 | The limit. |
/// | `acquire_timeout` | `pool_timeout` | time | 5 s (SQLAlchemy: 30 s) | How long a session waits for its connection. Also applies to the driver's pool, whose own default is 30 s. |
/// | `connect_timeout` | | time | | The driver pool's acquire timeout, if `acquire_timeout` is not given. |
/// | `idle_timeout` | | time, `never` | 10 min | After this time, an unused connection above `min_connections` is closed. |
/// | `max_lifetime` | `pool_recycle` | time, `never` or `-1` | 30 min (SQLAlchemy: never) | The age at which an unused connection is closed. |
/// | `test_before_acquire` | `pool_pre_ping` | switch | true (SQLAlchemy: false) | Ping a connection of the driver's pool before it is used. A connection that goes straight from one session to the next is not pinged; see `direct_handoff`. |
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
/// | `max_pending` | | number | by the pace, at least 20 × `max_connections` | [`SessionPoolBuilder::max_pending`] |
/// | `direct_handoff` | | switch | true | [`SessionPoolBuilder::direct_handoff`] |
/// | `reset` | `pool_reset_on_return`: `rollback` or `none` | `none`, `rollback_only`, `session_state`, `session_state_always` | `rollback_only` | [`SessionPoolBuilder::reset`] |
/// | `cancel_running` | | switch | false | [`SessionPoolBuilder::cancel_running`] |
/// | `hold_slow_threshold` | | time, `never` or `-1` | 10 s | [`SessionPoolBuilder::hold_slow_threshold`] |
/// | `hold_timeout` | | time, `never` or `-1` | never | [`SessionPoolBuilder::hold_timeout`] |
/// | `body_timeout` | | time, `never` or `-1` | 30 s | [`SessionPoolBuilder::body_timeout`] |
/// | `startup_timeout` | | time, or 0 | 0 | How long [`connect`](Self::connect) waits for a server that is not available yet. |
///
/// A **time** is in seconds, as in SQLAlchemy (`30`, `0.5`), or has a unit: `250ms`, `30s`, `5min`,
/// `1h`, `1d`. A **switch** is `true` or `false` (also `1`, `yes`, `on`, `0`, `no`, `off`). A **level** is
/// `off`, `error`, `warn`, `info`, `debug` or `trace`.
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
/// `Debug` and `Display` show scheme, user, host and database of the URL, but never its password, and
/// nothing of its query. Errors show nothing of a URL. [`connect_options`](Self::connect_options)
/// returns SeaORM's type, whose `Debug` shows the complete URL. The error of a file format's parser may
/// quote the line in question; log only its message if that line may contain the URL.
#[derive(Clone, PartialEq)]
pub struct PoolConfig {
    url: DatabaseUrl,
    /// Whether a part of `max_connections` is SQLAlchemy's overflow.
    overflows: bool,
    options: Options,
}

/// What may be given or not.
#[derive(Debug, Clone, Default, PartialEq)]
struct Options {
    max_connections: Option<u32>,
    min_connections: Option<u32>,
    connect_timeout: Option<Duration>,
    acquire_timeout: Option<Duration>,
    idle_timeout: Option<Option<Duration>>,
    max_lifetime: Option<Option<Duration>>,
    test_before_acquire: Option<bool>,
    connect_lazy: Option<bool>,
    sqlx_logging: Option<bool>,
    sqlx_logging_level: Option<LevelFilter>,
    slow_level: Option<LevelFilter>,
    slow_threshold: Option<Duration>,
    schema_search_path: Option<String>,
    application_name: Option<String>,
    statement_timeout: Option<Duration>,
    reserved_connections: Option<u32>,
    max_pending: Option<u32>,
    release_timeout: Option<Duration>,
    direct_handoff: Option<bool>,
    reset: Option<Reset>,
    cancel_running: Option<bool>,
    hold_slow_threshold: Option<Duration>,
    hold_timeout: Option<Duration>,
    body_timeout: Option<Duration>,
    startup_timeout: Option<Duration>,
}

impl PoolConfig {
    /// Returns SeaORM's options, so that you can change those that have no setting here.
    /// [`session_pool`](Self::session_pool) then makes the pool of sessions.
    ///
    /// An IPv6 address in a MySQL URL is corrected by `map_sqlx_mysql_opts`, which holds a single function: if
    /// you call it yourself, you replace that function and have to set the `host`.
    ///
    /// The options contain the complete URL: their `Debug` shows its password, and so do SeaORM's
    /// spans (at the level TRACE) when you connect with them.
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

    /// Builds a pool of sessions over `database`, with this configuration's values for [`SessionPool`]'s own
    /// settings: `acquire_timeout`, `release_timeout`, `reserved_connections` and those below it in the table.
    ///
    /// # Errors
    ///
    /// Those of [`SessionPoolBuilder::build`](crate::SessionPoolBuilder::build).
    pub fn session_pool(&self, database: DatabaseConnection) -> Result<SessionPool, Error> {
        /// Calls the setter for what was given.
        macro_rules! set {
            ($builder:ident: $($name:ident),* $(,)?) => {
                $(if let Some(value) = self.options.$name { $builder = $builder.$name(value); })*
            };
        }
        let mut builder = SessionPool::builder(database);
        set!(builder: acquire_timeout, release_timeout, reserved_connections, max_pending, reset, hold_slow_threshold, hold_timeout, body_timeout, direct_handoff);
        if self.options.cancel_running == Some(true) {
            builder = builder.cancel_running();
        }
        builder.build()
    }

    fn with_settings(&self, mut options: ConnectOptions) -> ConnectOptions {
        /// Calls the setter for what was given.
        macro_rules! set {
            ($($name:ident => $setter:ident),* $(,)?) => {
                $(if let Some(value) = &self.options.$name { options.$setter(value.clone()); })*
            };
        }
        set! {
            max_connections => max_connections,
            min_connections => min_connections,
            connect_timeout => connect_timeout,
            acquire_timeout => acquire_timeout,
            idle_timeout => idle_timeout,
            max_lifetime => max_lifetime,
            test_before_acquire => test_before_acquire,
            connect_lazy => connect_lazy,
            sqlx_logging => sqlx_logging,
            sqlx_logging_level => sqlx_logging_level,
            schema_search_path => set_schema_search_path,
            application_name => set_application_name,
            statement_timeout => statement_timeout,
        }
        let (level, threshold) = options.get_sqlx_slow_statements_logging_settings();
        let level = match (self.options.slow_level, self.options.slow_threshold) {
            (Some(level), _) => level,
            (None, Some(_)) => LevelFilter::Warn,
            (None, None) => level,
        };
        options.sqlx_slow_statements_logging_settings(
            level,
            self.options.slow_threshold.unwrap_or(threshold),
        );
        options
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
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}
