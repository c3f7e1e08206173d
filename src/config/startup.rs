//! Connecting, and waiting for a server that is not there yet.

use std::time::{Duration, Instant};

use sea_orm::{Database, DbBackend, DbErr};
use tokio::time::{sleep, timeout};

use super::{PoolConfig, TARGET};
use crate::{SessionPool, error::Kind};

/// The driver's own default.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

impl PoolConfig {
    /// Connects, and builds a pool of sessions with these settings.
    ///
    /// With a `startup_timeout`, a server that is not available yet is tried again until that time has
    /// passed, with pauses that grow from 50 ms to 2 s. *Not available yet* means: connection refused,
    /// or closed before the server sent anything (as the port forwarders of containers do), no answer
    /// in time, a host name that cannot be resolved, PostgreSQL's `57P03` (starting up). A refusal by
    /// the server itself (a wrong password, an unknown database) and a wrong certificate fail at once.
    /// Without a `startup_timeout`, every failure does.
    ///
    /// With `connect_lazy`, and for SQLite, there is no server to wait for.
    ///
    /// Unlike those of [`connect_options`](Self::connect_options), the options passed to SeaORM here
    /// keep the password separate, so SeaORM's spans do not show it.
    ///
    /// # Errors
    ///
    /// The error of the last attempt.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the connections that it has opened.
    pub async fn connect(&self) -> Result<SessionPool, DbErr> {
        let mut options = self.with_settings(self.url.guarded_options());
        if self.overflows {
            tracing::info!(
                target: TARGET,
                min_connections = self.options.min_connections,
                max_connections = self.options.max_connections,
                "`max_overflow` is a part of `max_connections`: these connections are not closed as they come back, but after `idle_timeout`",
            );
        }
        if self.url.backend() != DbBackend::Sqlite && !options.get_connect_lazy() {
            // A pool would try a refused connection again by itself, without telling why.
            let mut probing = options.clone();
            probing.connect_lazy(true).min_connections(0);
            self.wait_for_server(&SessionPool::try_new(Database::connect(probing).await?)?)
                .await?;
            options.connect_lazy(false);
        }
        Ok(self.session_pool(Database::connect(options).await?)?)
    }

    async fn wait_for_server(&self, pool: &SessionPool) -> Result<(), DbErr> {
        let bound = self
            .options
            .acquire_timeout
            .or(self.options.connect_timeout)
            .unwrap_or(CONNECT_TIMEOUT);
        let startup = self.options.startup_timeout.unwrap_or_default();
        let (started, mut pause, mut has_failed) = (Instant::now(), FIRST_PAUSE, false);
        loop {
            let left = startup.saturating_sub(started.elapsed());
            let attempt = if startup.is_zero() {
                bound
            } else {
                bound.min(left.max(FIRST_PAUSE))
            };
            let error = match timeout(attempt, pool.probe()).await {
                Ok(Ok(())) => break,
                Ok(Err(error)) if !is_not_there_yet(&error) => return Err(error),
                Ok(Err(error)) => error,
                Err(_) => {
                    tracing::warn!(target: TARGET, url = %self.url, "no answer from the database within {attempt:?}");
                    Kind::Down.into_db_err()
                }
            };
            let left = startup.saturating_sub(started.elapsed());
            if left.is_zero() {
                return Err(error);
            }
            if !std::mem::replace(&mut has_failed, true) {
                tracing::info!(target: TARGET, url = %self.url, %error, "the database is not there yet: trying again");
            }
            sleep(jittered(pause).min(left)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        if has_failed {
            tracing::info!(target: TARGET, url = %self.url, "the database is there");
        }
        Ok(())
    }
}

/// Whether trying again may help while the server is being started.
#[cfg(feature = "_sqlx")]
fn is_not_there_yet(error: &DbErr) -> bool {
    use crate::error::server;
    use sea_orm::{RuntimeErr, sqlx};
    use std::io::ErrorKind;
    let DbErr::Conn(RuntimeErr::SqlxError(cause)) = error else {
        return false;
    };
    match &**cause {
        sqlx::Error::Io(error) => match error.kind() {
            ErrorKind::ConnectionRefused
            | ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::UnexpectedEof
            | ErrorKind::BrokenPipe
            | ErrorKind::TimedOut
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable => true,
            // std has no kind of its own for names that cannot be resolved.
            _ => error
                .to_string()
                .starts_with("failed to lookup address information"),
        },
        _ => server::is_starting_up(error),
    }
}

#[cfg(not(feature = "_sqlx"))]
fn is_not_there_yet(_: &DbErr) -> bool {
    false
}

/// Between half of `pause` and all of it, so that many instances do not come at once.
fn jittered(pause: Duration) -> Duration {
    use std::hash::{BuildHasher, Hasher, RandomState};
    let thousandths = 500 + RandomState::new().build_hasher().finish() % 501;
    pause.mul_f64(Duration::from_millis(thousandths).as_secs_f64())
}
