//! Asking the server beside the pool, for health checks and to tell *down* from *exhausted*.

use std::time::{Duration, Instant};

use tokio::{runtime::Handle, sync::Mutex, task::JoinHandle, time::timeout};

use super::{SessionPool, acquire::is_full};
use crate::error::{Error, Kind};

/// How long an attempt may take, and how long its result holds.
pub(super) const PROBE: Duration = Duration::from_secs(1);

/// The last attempt to connect; whoever comes while one is under way waits for its result.
#[derive(Default)]
pub(super) struct Probes(Mutex<Option<Probe>>);

struct Probe {
    at: Instant,
    failure: Option<Error>,
}

impl SessionPool {
    /// Checks that the database can be reached, for a health check. It opens a separate connection outside
    /// the pool and closes it again, so it never waits behind requests, and a full pool is not a failure.
    ///
    /// The result is at most 1 s old, and takes at most about 1 s; however many callers there are, the
    /// server sees one log-in a second. A server at its connection limit counts as reached. SQLite in
    /// memory has no server to ask: it counts as reached as long as the pool is open.
    ///
    /// ```
    /// # #[cfg(feature = "sqlx-sqlite")]
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// use sea_orm::Database;
    /// use tower_sea_orm::SessionPool;
    ///
    /// let pool = SessionPool::new(Database::connect("sqlite::memory:").await?);
    /// assert!(pool.ping().await.is_ok());
    /// pool.database().clone().close().await?;
    /// assert!(pool.ping().await.unwrap_err().is_closing());
    /// # Ok::<(), sea_orm::DbErr>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// [`is_unreachable`](Error::is_unreachable), or [`is_closing`](Error::is_closing) if the pool is closed. Also if it is
    /// called outside a tokio runtime.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost: the attempt goes on in a task, and the next caller gets its result.
    pub async fn ping(&self) -> Result<(), Error> {
        if self.shared.source.is_closed() {
            return Err(Kind::Closing.into());
        }
        if self.is_direct() {
            let answer = self.shared.database.ping().await;
            return answer.map_err(|error| Error::with_source(Kind::Down, error));
        }
        if self.is_in_memory() {
            return Ok(());
        }
        // A server that is full has answered.
        self.try_server().await.or_else(|error| {
            if error.is_exhausted() {
                Ok(())
            } else {
                Err(error)
            }
        })
    }

    async fn try_server(&self) -> Result<(), Error> {
        let runtime = Handle::try_current().map_err(|_| Kind::NoRuntime)?;
        self.start_probe(&runtime)
            .await
            .ok()
            .flatten()
            .map_or(Ok(()), Err)
    }

    /// Finds out whether a connection can be made at all, and if not, why, which sqlx's pool does not tell
    /// (<https://github.com/launchbadge/sqlx/issues/744>). One attempt at a time, whose result holds
    /// for a while. In a task of its own, so that it ends and leaves its result even if its caller stops waiting.
    pub(super) fn start_probe(&self, runtime: &Handle) -> JoinHandle<Option<Error>> {
        let pool = self.clone();
        runtime.spawn(async move { pool.fresh_probe().await })
    }

    async fn fresh_probe(&self) -> Option<Error> {
        let mut last = self.shared.probe.0.lock().await;
        if let Some(probe) = last.as_ref().filter(|probe| probe.at.elapsed() < PROBE) {
            return probe.failure.clone();
        }
        let failure = match timeout(PROBE, self.shared.source.connect_once()).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => {
                let kind = if is_full(&error) {
                    Kind::ServerFull
                } else {
                    Kind::Down
                };
                Some(Error::with_source(kind, error))
            }
            Err(_) => Some(Kind::Down.into()),
        };
        *last = Some(Probe {
            at: Instant::now(),
            failure: failure.clone(),
        });
        failure
    }
}
