//! Connecting, and waiting for a server that is not available yet.

#[cfg(feature = "_sqlx")]
use std::io::ErrorKind;
use std::time::{Duration, Instant};

use sea_orm::{ConnAcquireErr, ConnectOptions, Database, DatabaseConnection, DbBackend, DbErr};
#[cfg(feature = "_sqlx")]
use sea_orm::{RuntimeErr, sqlx};
use tokio::time::{sleep, timeout};

use super::url::DatabaseUrl;
#[cfg(feature = "sqlx-sqlite")]
use crate::error::missing_file;
use crate::{
    SessionPool,
    error::{Error, Kind, server},
};

const TARGET: &str = "tower_sea_orm::pool";

/// The driver's own default.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

const FIRST_PAUSE: Duration = Duration::from_millis(50);
// A longer one would keep a service from a server that is up.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Connects by SeaORM, to a server that is tried until it accepts a connection,
/// or `startup` is over.
///
/// # Errors
///
/// The error of the last attempt, or the first that another attempt cannot
/// cure.
pub(super) async fn connect(
    url: &DatabaseUrl,
    options: ConnectOptions,
    startup: Duration,
) -> Result<DatabaseConnection, DbErr> {
    // SQLite has no server, and a lazy pool shows a wrong URL at its first
    // session.
    if url.backend == DbBackend::Sqlite || options.get_connect_lazy() {
        let url = options.get_url().to_owned();
        let connected = Database::connect(options).await;
        return connected.map_err(|error| explained(&url, error));
    }
    let mut server = Server::of(url, &options, startup).await?;
    server.wait(startup).await?;
    server.open(options).await
}

/// Says what to do about an error of connecting, where that is known.
#[cfg_attr(not(feature = "sqlx-sqlite"), allow(unused_variables))]
fn explained(url: &str, error: DbErr) -> DbErr {
    #[cfg(feature = "sqlx-sqlite")]
    let error = missing_file::explained_at(url, error);
    error
}

/// The server that is connected to.
struct Server<'u> {
    url: &'u DatabaseUrl,
    /// A lazy one, beside which connections are opened.
    pool: SessionPool,
    /// How long a log-in may take.
    patience: Duration,
    /// How long sqlx takes to open its pool at most.
    drivers: Duration,
    /// It has answered that it takes no more connections.
    is_full: bool,
}

impl<'u> Server<'u> {
    async fn of(
        url: &'u DatabaseUrl,
        options: &ConnectOptions,
        startup: Duration,
    ) -> Result<Self, DbErr> {
        let mut lazy = options.clone();
        // A pool that connects at once would try a refused connection again by
        // itself, and lose the reason. sqlx opens `min_connections` in a task
        // of its own, lazy or not.
        lazy.connect_lazy(true).min_connections(0);
        let pool = SessionPool::try_new(Database::connect(lazy).await?)?;
        let given = options
            .get_acquire_timeout()
            .or(options.get_connect_timeout());
        let patience = given.unwrap_or_else(|| match startup {
            // No longer than a session of the pool would wait.
            Duration::ZERO => pool.inner().settings().acquire_timeout,
            // A server that is being woken may keep a log-in waiting.
            _ => CONNECT_TIMEOUT,
        });
        Ok(Self {
            url,
            pool,
            patience,
            drivers: given.unwrap_or(CONNECT_TIMEOUT),
            is_full: false,
        })
    }

    /// Tries to connect until that works, or `startup` is over.
    async fn wait(&mut self, startup: Duration) -> Result<(), DbErr> {
        let (started, mut pause) = (Instant::now(), FIRST_PAUSE);
        let left = || startup.saturating_sub(started.elapsed());
        let (url, patience) = (self.url, self.patience);
        // The last attempt has some time even if it begins at the end. Without
        // a `startup_timeout`, there is only one.
        let bound = || match startup {
            Duration::ZERO => patience,
            _ => patience.min(left().max(FIRST_PAUSE)),
        };
        while let Some(error) = self.attempt(bound()).await? {
            // Behind an attempt and not before it: there is always one.
            if left().is_zero() {
                return Err(error);
            }
            // Once, since each attempt would repeat it.
            if pause == FIRST_PAUSE {
                // INFO, not WARN: a service often starts together with its
                // database.
                tracing::info!(target: TARGET, %url, %error, "the database is not available yet; retrying");
            }
            // No longer than what is left: the last attempt comes at the end of
            // it.
            sleep(jittered(pause).min(left())).await;
            // Doubled: many instances that wait for one server must not keep it
            // from starting.
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        // Only if the log has said before that it was not.
        if pause > FIRST_PAUSE {
            tracing::info!(target: TARGET, %url, "the database is available");
        }
        Ok(())
    }

    /// Tries to connect once. Returns the error as a value if another attempt
    /// may cure it.
    async fn attempt(&mut self, bound: Duration) -> Result<Option<DbErr>, DbErr> {
        // Past the driver's pool, whose time-out would take the place of the
        // reason (H25).
        match timeout(bound, self.pool.inner().connect_once()).await {
            Ok(Ok(())) => Ok(None),
            Ok(Err(error)) if Error::of(&error).is_some_and(|known| known.is_exhausted()) => {
                self.is_full = true;
                Ok(None)
            }
            Ok(Err(error)) if is_not_available_yet(&error) => Ok(Some(error)),
            Ok(Err(error)) => Err(error),
            // A server behind a firewall that drops packets looks so while it
            // starts.
            Err(_) => Ok(Some(self.silent(bound))),
        }
    }

    /// Opens the pool's first connections.
    async fn open(&self, options: ConnectOptions) -> Result<DatabaseConnection, DbErr> {
        // sqlx opens them one after the other.
        let log_ins = options.get_min_connections().unwrap_or_default().max(1);
        let bound = self.drivers.min(self.patience.saturating_mul(log_ins));
        let opening = Database::connect(options);
        // There sqlx waits for a place, and says so at the end of its time.
        if self.is_full {
            return opening.await;
        }
        // Behind a name that leads to several servers, one may be silent
        // although another one has answered.
        match timeout(bound, opening).await {
            Ok(Err(error)) if is_time_out(&error) => Err(self.silent(bound)),
            Ok(opened) => opened,
            Err(_) => Err(self.silent(bound)),
        }
    }

    /// The error of a server that does not answer, which is logged.
    fn silent(&self, bound: Duration) -> DbErr {
        let url = self.url;
        tracing::warn!(target: TARGET, %url, "no answer from the database within {bound:?}");
        let address = self.pool.inner().driver().address();
        // Not the URL, which has the user as well.
        let address = address.unwrap_or_else(|| "the database".to_owned());
        Kind::Down.into_db_err_with(&format!("no answer from {address} within {bound:?}"))
    }
}

/// Returns whether sqlx has run out of time.
fn is_time_out(error: &DbErr) -> bool {
    #[cfg(feature = "_sqlx")]
    if let DbErr::Conn(RuntimeErr::SqlxError(cause)) = error {
        return matches!(**cause, sqlx::Error::PoolTimedOut);
    }
    matches!(error, DbErr::ConnectionAcquire(ConnAcquireErr::Timeout))
}

/// Returns whether another attempt may help while the server is being started.
fn is_not_available_yet(error: &DbErr) -> bool {
    #[cfg(feature = "_sqlx")]
    if let DbErr::Conn(RuntimeErr::SqlxError(cause)) = error
        && let sqlx::Error::Io(error) = &**cause
    {
        use ErrorKind::*;
        // Also connections that are accepted and then broken off: a container's
        // port proxy does so while its server is not up yet.
        #[rustfmt::skip]
        let kinds = [
            ConnectionRefused, ConnectionReset, ConnectionAborted, UnexpectedEof, BrokenPipe,
            TimedOut, HostUnreachable, NetworkUnreachable,
        ];
        // std has no kind for names that cannot be resolved.
        let unresolved = "failed to lookup address information";
        return kinds.contains(&error.kind()) || error.to_string().starts_with(unresolved);
    }
    // Nothing else: waiting mends no password, and the log should say so at
    // once.
    server::is_starting_up(error)
}

/// Returns between half of `pause` and all of it, so that many instances do not
/// connect at the same moment.
fn jittered(pause: Duration) -> Duration {
    use std::hash::{BuildHasher, Hasher, RandomState};
    let thousandths = 500 + RandomState::new().build_hasher().finish() % 501;
    pause.mul_f64(Duration::from_millis(thousandths).as_secs_f64())
}
