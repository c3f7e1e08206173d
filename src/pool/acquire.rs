//! Acquiring: waiting in the queue, fetching from the driver, and telling why it failed.

use std::{
    error::Error as _,
    pin::pin,
    time::{Duration, Instant},
};

use futures_util::{
    FutureExt,
    future::{Either, join, select},
};
use sea_orm::{ConnAcquireErr, DbErr};
use tokio::{
    runtime::Handle,
    sync::oneshot,
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::{
    SessionPool, checked_out::CheckedOut, current_request::current, driver_pool::SILENCE,
    ledger::AfterFailure, probe::PROBE, registry::Wait, slot::FetchGuard,
};
use crate::{
    connection::{Driver, PinnedConnection},
    error::{Error, Kind},
};

/// A connection on its way to a session; dropped before it arrives, it goes back clean.
pub(crate) struct Lease(Option<CheckedOut>);

impl Lease {
    pub(super) fn new(connection: CheckedOut) -> Self {
        Self(Some(connection))
    }

    pub(crate) fn into_connection(mut self) -> Option<CheckedOut> {
        self.0.take()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            connection.put_back();
        }
    }
}

impl SessionPool {
    /// Waits for a connection, at most `acquire_timeout`.
    pub(crate) async fn acquire(&self) -> Result<Lease, Error> {
        self.wait_for_one(false).await
    }

    /// [`acquire`](Self::acquire) for a session that has had a connection, and goes on with `another`.
    pub(super) async fn wait_for_one(&self, another: bool) -> Result<Lease, Error> {
        if self.is_shut() {
            return Err(self.fail(Kind::Closing.into(), Duration::ZERO));
        }
        if let Some(lease) = self.try_acquire() {
            return Ok(lease);
        }
        let runtime = Handle::try_current().map_err(|_| Kind::NoRuntime)?;
        let started = Instant::now();
        let request = current();
        let second = request
            .clone()
            .filter(|request| !another && self.holds_one(request));
        if second.is_some() {
            self.shared.queue.expect_seconds();
        }
        let holds = another || second.is_some();
        let Some(receiver) = self
            .shared
            .queue
            .join(self, runtime, request.clone(), holds)
        else {
            return Err(self.fail(Kind::Crowded.into(), Duration::ZERO));
        };
        let mut waiting = Waiting {
            receiver,
            pool: self,
            done: false,
            _wait: Wait::of(request),
        };
        if let Some(request) = second {
            self.look_for_deadlock(&request);
        }
        let result = self.answer(&mut waiting.receiver).await;
        waiting.done = matches!(result, Ok(Ok(_)));
        drop(waiting);
        match result {
            Ok(Ok(Ok(_))) if self.is_shut() => {
                Err(self.fail(Kind::Closing.into(), started.elapsed()))
            }
            Ok(Ok(Ok(lease))) => {
                self.pressure().relieved();
                Ok(lease)
            }
            Ok(Ok(Err(error))) if error.is_pool_deadlock() => Err(error),
            Ok(Ok(Err(error))) => Err(self.fail(error, started.elapsed())),
            // The waiter was dropped unanswered: its runtime is shutting down.
            Ok(Err(_)) => Err(self.fail(Kind::Closing.into(), started.elapsed())),
            Err(error) => Err(self.fail(error, started.elapsed())),
        }
    }

    /// Waits for what the queue gives, for the `acquire_timeout` in all. Where connections are still being opened
    /// shortly before that is over, the server is tried, so that the reason is known in time.
    async fn answer<T>(
        &self,
        receiver: &mut (impl Future<Output = T> + Unpin),
    ) -> Result<T, Error> {
        let all = self.settings().acquire_timeout;
        let ahead = PROBE.min(all / 2);
        if let Ok(answer) = timeout(all - ahead, &mut *receiver).await {
            return Ok(answer);
        }
        let is_opening = !self.is_test() && self.status().acquiring > 0;
        let runtime = Handle::try_current().ok().filter(|_| is_opening);
        let probe = runtime.map(|runtime| self.start_probe(&runtime));
        timeout(ahead, receiver)
            .await
            .map_err(|_| self.diagnose(probe, ahead))
    }

    /// An error where nothing but the caller could end the wait: a test's own session has the one connection of
    /// its pool, and it is a request of the service, or the test itself, that wants it.
    pub(crate) fn refuse_hopeless(&self, is_request: impl FnOnce() -> bool) -> Result<(), Error> {
        let is_hopeless = self
            .shared
            .outer
            .as_ref()
            .is_some_and(|outer| outer.is_held_by_test(is_request));
        if is_hopeless {
            Err(self.fail(Kind::TestConnectionHeld.into(), Duration::ZERO))
        } else {
            Ok(())
        }
    }

    /// Opens one connection beside the pool and closes it again.
    #[cfg(feature = "config")]
    pub(crate) async fn probe(&self) -> Result<(), DbErr> {
        // A server that is full answers: there is nothing to wait for.
        self.shared
            .source
            .connect_once()
            .await
            .or_else(|error| if is_full(&error) { Ok(()) } else { Err(error) })
    }

    pub(super) fn fail(&self, error: Error, waited: Duration) -> Error {
        self.pressure().failed(&error, || self.status(), waited);
        error
    }

    /// Why no connection came: *down* if one cannot be made at all, *exhausted* otherwise. The `probe` had this time
    /// and gets no more; it is `None` where every connection was in a session's hands.
    fn diagnose(&self, probe: Option<JoinHandle<Option<Error>>>, time: Duration) -> Error {
        if self.is_shut() {
            return Kind::Closing.into();
        }
        if self.is_test() {
            return Kind::TestConnectionHeld.into();
        }
        let status = self.status();
        let Some(probe) = probe.filter(|_| status.acquiring > 0) else {
            return Kind::Exhausted.into();
        };
        let failure: Option<Error> = match probe.now_or_never() {
            Some(ended) => ended.ok().flatten(),
            None => (time >= PROBE).then(|| Kind::Down.into()),
        };
        let is_any_used = status.used > 0 || self.shared.source.is_used(status.acquiring);
        // Without a cause it is silence, which may be a slow log-in.
        let is_slow =
            |error: &Error| error.source().is_none() && self.shared.queue.logs_in_slowly();
        match failure {
            Some(error) if error.is_unreachable() && !is_slow(&error) => error,
            Some(error) if error.is_exhausted() && !is_any_used => error,
            _ if is_any_used => Kind::Exhausted.into(),
            _ => Kind::NotOpened.into(),
        }
    }

    /// A fetch has failed with `error`: waits before the next one, or tells those who wait.
    async fn fetch_failed(&self, error: DbErr) {
        let full = is_full(&error);
        match self.shared.queue.fetch_failed(full) {
            AfterFailure::GoOn => {}
            AfterFailure::Rest(pause) => {
                let status = self.status();
                let (used, pending) = (status.used, status.pending);
                tracing::warn!(target: "tower_sea_orm::pool", used, pending, "no further connection can be opened, those who wait go on waiting: {error}");
                sleep(pause).await;
                self.shared.queue.rested();
            }
            AfterFailure::Refuse(count) => {
                let error = Error::with_source(Kind::Down, error);
                (0..count).for_each(|_| self.shared.queue.refuse(error.clone()));
            }
        }
    }
}

/// A place in the queue.
struct Waiting<'p> {
    receiver: oneshot::Receiver<Result<Lease, Error>>,
    pool: &'p SessionPool,
    done: bool,
    _wait: Wait,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.receiver.close();
            self.pool.shared.queue.leave();
        }
    }
}

/// Runs the driver's `acquire()` to its end and gives the connection to the oldest waiter. Dropped half-way, sqlx would
/// close a connection that is idle (<https://github.com/launchbadge/sqlx/issues/1869>).
pub(super) async fn fetch(mut ticket: FetchGuard, runtime: Handle) {
    ticket.begin();
    let (pool, began) = (ticket.pool().clone(), Instant::now());
    let fetched = match &pool.shared.outer {
        Some(outer) => outer.take(),
        None => take_from_driver(&mut ticket, &pool, &runtime)
            .await
            .map(|driver| {
                PinnedConnection::new(driver, pool.backend(), runtime, pool.is_in_memory())
                    .unnamed(pool.shared.unnamed)
            }),
    };
    match fetched {
        // Evicted on its way: dropping both closes it and sends for another one.
        Ok(connection) if pool.is_evicted(began) && !pool.is_test() => drop(connection),
        Ok(connection) => {
            let connection = CheckedOut::new(connection, ticket.redeem(), began);
            if let Some(connection) = pool.shared.queue.hand_over(connection) {
                connection.put_back();
            }
        }
        // The driver says so whether the pool is empty or the server is down
        // (https://github.com/launchbadge/sqlx/issues/3808). Those who still wait have time left: dropping the
        // ticket sends for another one.
        Err(DbErr::ConnectionAcquire(ConnAcquireErr::Timeout)) => {}
        Err(DbErr::ConnectionAcquire(ConnAcquireErr::ConnectionClosed)) => {
            pool.shared.queue.refuse(Kind::Closing.into());
        }
        Err(error) => pool.fetch_failed(error).await,
    }
}

/// A connection of the driver's pool. sqlx bounds a connect only by its own `acquire_timeout`, and goes on with it when
/// the pool is closed. A server's that takes too long is given up here: nothing has been sent on it but a log-in.
async fn take_from_driver(
    ticket: &mut FetchGuard,
    pool: &SessionPool,
    runtime: &Handle,
) -> Result<Driver, DbErr> {
    let (source, queue) = (&pool.shared.source, &pool.shared.queue);
    let mut acquiring = pin!(join(source.acquire(), pool.explore(runtime)));
    if let Ok((driver, ())) = timeout(SILENCE, acquiring.as_mut()).await {
        return driver;
    }
    ticket.take_long();
    if !source.has_server() {
        return acquiring.await.0;
    }
    let patience = queue.patience();
    match select(acquiring, pin!(timeout(patience, source.closed()))).await {
        Either::Left(((driver, ()), _)) => driver,
        Either::Right((Ok(()), _)) => {
            Err(DbErr::ConnectionAcquire(ConnAcquireErr::ConnectionClosed))
        }
        Either::Right((Err(_), _)) => {
            tracing::info!(target: "tower_sea_orm::pool", ?patience, "gave up a connection that took too long to open");
            queue.gave_up(patience);
            Err(DbErr::ConnectionAcquire(ConnAcquireErr::Timeout))
        }
    }
}

/// Whether the server has no place for another connection.
pub(super) fn is_full(error: &DbErr) -> bool {
    Error::of(error).is_some_and(|error| error.is_exhausted())
}
