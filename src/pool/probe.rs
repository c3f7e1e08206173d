//! [`Probe`]: asks the server beside the pool, for health checks and to tell *down* from *exhausted*.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use sea_orm::{DatabaseConnection, DbErr};
use tokio::{runtime::Handle, sync::Mutex, task::JoinHandle, time::timeout};

use super::driver_pool::DriverPool;
use crate::error::{Error, Kind};

/// The longest time that an attempt may take, and the time for which its result
/// holds.
pub(super) const PROBE: Duration = Duration::from_secs(1);

/// The last attempt to connect. A caller that comes while one is under way
/// waits for its result.
#[derive(Default)]
pub(super) struct Probe(Arc<Mutex<Option<Attempt>>>);

struct Attempt {
    at: Instant,
    failure: Option<Error>,
}

impl Probe {
    /// Asks the server beside the pool.
    pub(super) async fn ping(
        &self,
        driver: &DriverPool,
        database: &DatabaseConnection,
    ) -> Result<(), Error> {
        if driver.is_closed() {
            return Err(Kind::Closing.into());
        }
        if driver.is_direct() {
            let answer = database.ping().await;
            return answer.map_err(|error| Error::with_source(Kind::Down, error));
        }
        if driver.is_in_memory() {
            return Ok(());
        }
        let runtime = Handle::try_current().map_err(|_| Kind::NoRuntime)?;
        // Not by a connection of the pool: a health check that waits behind
        // requests fails just under load, and the service is restarted when it
        // is needed most.
        let attempt = self.start(driver, &runtime).await;
        match attempt.ok().flatten() {
            // A server that is full has answered.
            Some(error) if !error.is_exhausted() => Err(error),
            _ => Ok(()),
        }
    }

    /// Finds out whether a connection can be made to a server that is ready,
    /// and if not, why, which sqlx's pool does not tell
    /// (<https://github.com/launchbadge/sqlx/issues/744>). One attempt at a
    /// time, whose result holds for a while. In a task, so that it ends and
    /// leaves its result even if its caller stops waiting.
    pub(super) fn start(&self, driver: &DriverPool, runtime: &Handle) -> JoinHandle<Option<Error>> {
        let (last, driver) = (self.0.clone(), driver.clone());
        runtime.spawn(async move {
            // Held across the attempt on purpose: that is how a second caller
            // waits for the first one's result.
            let mut last = last.lock().await;
            // Health checks, and requests that give up by the hundred, would
            // each log in otherwise
            // (`many_pings_at_once_are_few_log_ins_for_the_server`).
            if let Some(attempt) = last.as_ref().filter(|last| last.at.elapsed() < PROBE) {
                return attempt.failure.clone();
            }
            let failure = attempt(&driver).await;
            *last = Some(Attempt {
                at: Instant::now(),
                failure: failure.clone(),
            });
            failure
        })
    }
}

// Beside sqlx's pool, which repeats a refused connect until its deadline, and
// then says what it says of a full pool (H25).
async fn attempt(driver: &DriverPool) -> Option<Error> {
    match timeout(PROBE, driver.probe_once()).await {
        Ok(Ok(())) => None,
        Ok(Err(error)) if is_full(&error) => Some(Error::with_source(Kind::ServerFull, error)),
        Ok(Err(error)) => Some(Error::with_source(Kind::Down, error)),
        // Without a cause: by that, a silence is known from a refusal.
        Err(_) => Some(Kind::Down.into()),
    }
}

/// Returns whether the server has no place for another connection.
pub(super) fn is_full(error: &DbErr) -> bool {
    Error::of(error).is_some_and(|error| error.is_exhausted())
}
