//! Waiting for a server that is not available yet.

#[cfg(feature = "_sqlx")]
use std::io::ErrorKind;
use std::time::{Duration, Instant};

use sea_orm::{ConnectOptions, Database, DatabaseConnection, DbErr};
#[cfg(feature = "_sqlx")]
use sea_orm::{RuntimeErr, sqlx};
use tokio::time::{sleep, timeout};

use super::url::DatabaseUrl;
#[cfg(feature = "sqlx-sqlite")]
use crate::error::missing_file;
use crate::{
    SessionPool,
    error::{Kind, server},
};

const TARGET: &str = "tower_sea_orm::pool";

/// The driver's own default.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

const FIRST_PAUSE: Duration = Duration::from_millis(50);
// A longer one would keep a service from a server that is up.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Tries to connect until the server accepts a connection, or `startup` is
/// over.
///
/// # Errors
///
/// The error of the last attempt, or the first that another attempt cannot
/// cure.
pub(super) async fn wait_for_server(
    url: &DatabaseUrl,
    options: &ConnectOptions,
    startup: Duration,
) -> Result<(), DbErr> {
    let pool = lazy_pool(options).await?;
    let own = options
        .get_acquire_timeout()
        .or(options.get_connect_timeout());
    let own = own.unwrap_or(CONNECT_TIMEOUT);
    let (started, mut pause) = (Instant::now(), FIRST_PAUSE);
    let left = || startup.saturating_sub(started.elapsed());
    // The last attempt has some time even if it begins at the end. Without a
    // `startup_timeout` there is only one, which has as long as the pool itself
    // would take.
    let bound = || match startup {
        Duration::ZERO => own,
        _ => own.min(left().max(FIRST_PAUSE)),
    };
    while let Some(error) = attempt(&pool, url, bound()).await? {
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
        // No longer than what is left: the last attempt comes at the end of it.
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

/// Connects by SeaORM.
pub(super) async fn open(options: ConnectOptions) -> Result<DatabaseConnection, DbErr> {
    let url = options.get_url().to_owned();
    let connected = Database::connect(options).await;
    connected.map_err(|error| explained(&url, error))
}

/// Says what to do about an error of connecting, where that is known.
#[cfg_attr(not(feature = "sqlx-sqlite"), allow(unused_variables))]
fn explained(url: &str, error: DbErr) -> DbErr {
    #[cfg(feature = "sqlx-sqlite")]
    let error = missing_file::explained_at(url, error);
    error
}

/// A pool that connects at once would try a refused connection again by itself,
/// and lose the reason.
async fn lazy_pool(options: &ConnectOptions) -> Result<SessionPool, DbErr> {
    let mut lazy = options.clone();
    // sqlx opens `min_connections` in a task of its own, lazy or not.
    lazy.connect_lazy(true).min_connections(0);
    Ok(SessionPool::try_new(Database::connect(lazy).await?)?)
}

/// Tries to connect once. Returns the error as a value if another attempt may
/// cure it.
async fn attempt(
    pool: &SessionPool,
    url: &DatabaseUrl,
    bound: Duration,
) -> Result<Option<DbErr>, DbErr> {
    // Past the driver's pool, whose time-out would take the place of the reason
    // (H25).
    match timeout(bound, pool.inner().connect_once()).await {
        Ok(Ok(())) => Ok(None),
        Ok(Err(error)) if is_not_available_yet(&error) => Ok(Some(error)),
        Ok(Err(error)) => Err(error),
        // A server behind a firewall that drops packets looks so while it
        // starts.
        Err(_) => {
            tracing::warn!(target: TARGET, %url, "no answer from the database within {bound:?}");
            Ok(Some(Kind::Down.into_db_err()))
        }
    }
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
