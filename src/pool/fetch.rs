//! Fetching: one task for each connection that is taken from the driver's pool.

use std::{pin::pin, sync::Arc, time::Instant};

use futures_util::future::{Either, join, select};
use sea_orm::{ConnAcquireErr, DbErr};
use tokio::{
    runtime::Handle,
    time::{sleep, timeout},
};

use super::{
    checked_out::CheckedOut, fetches::AfterFailure, inner::PoolInner, probe::is_full,
    slot::FetchGuard,
};
use crate::{
    connection::{Driver, PinnedConnection, SILENCE},
    error::{Error, Kind},
};

/// Runs the driver's `acquire()` to its end and gives the connection to the
/// first waiter. Dropped half-way, sqlx would close a connection that is idle
/// (<https://github.com/launchbadge/sqlx/issues/1869>).
pub(super) async fn fetch(mut guard: FetchGuard, runtime: Handle) {
    // If the task is dropped before this line, its runtime is shutting down,
    // and the guard drops its waiter. If it is dropped later, the guard starts
    // another fetch.
    guard.begin();
    // The time of the call and not of its answer: a connection that was evicted
    // in between may be of before the eviction.
    let (pool, began) = (guard.pool().clone(), Instant::now());
    let fetched = match pool.test() {
        Some(test) => test.take(),
        None => take_from_driver(&mut guard, &pool, &runtime)
            .await
            .map(|driver| {
                PinnedConnection::new(driver, pool.backend(), runtime, pool.is_in_memory())
                    .unnamed(pool.is_unnamed)
            }),
    };
    match fetched {
        // Evicted on its way: dropping both closes it and sends for another
        // one.
        Ok(connection) if pool.is_evicted(began) && !pool.is_test() => drop(connection),
        Ok(connection) => pool.hand_over(CheckedOut::new(connection, began, guard.into_slot())),
        // The driver says so whether the pool is empty or the server is down
        // (https://github.com/launchbadge/sqlx/issues/3808). Those who still
        // wait have time left: dropping the guard sends for another one.
        Err(DbErr::ConnectionAcquire(ConnAcquireErr::Timeout)) => {}
        Err(DbErr::ConnectionAcquire(ConnAcquireErr::ConnectionClosed)) => {
            refuse(&pool, Kind::Closing.into());
        }
        Err(error) => failed(&pool, error).await,
    }
}

/// Takes a connection of the driver's pool. sqlx bounds a connect only by its
/// own `acquire_timeout`, and goes on with it when the pool is closed. A
/// server's that takes too long is given up here: only a log-in has been sent
/// on it.
async fn take_from_driver(
    guard: &mut FetchGuard,
    pool: &Arc<PoolInner>,
    runtime: &Handle,
) -> Result<Driver, DbErr> {
    let driver = &pool.driver;
    // Before the connection: a pool that was built without a runtime has none
    // that keeps its database.
    pool.anchor.hold(driver).await;
    // Side by side: finding out the route takes a log-in of its own, and the
    // first request would wait for one after the other.
    let mut acquiring = pin!(join(driver.acquire(), pool.cancels.explore(runtime)));
    if let Ok((connection, ())) = timeout(SILENCE, acquiring.as_mut()).await {
        return connection;
    }
    // Before anything is given up: another fetch may find an idle connection
    // meanwhile. Shown by
    // `connects_that_the_driver_repeats_do_not_hide_idle_connections`.
    guard.become_slow();
    // SQLite opens files: nothing gets lost on the way, and giving up an
    // in-memory one would lose the database.
    if !driver.has_server() {
        return acquiring.await.0;
    }
    // Read after the silence: the fetches that began before may have changed
    // it.
    let patience = pool.ledger().fetches.patience();
    match select(acquiring, pin!(timeout(patience, driver.closed()))).await {
        Either::Left(((connection, ()), _)) => connection,
        Either::Right((Ok(()), _)) => {
            Err(DbErr::ConnectionAcquire(ConnAcquireErr::ConnectionClosed))
        }
        Either::Right((Err(_), _)) => {
            tracing::info!(target: "tower_sea_orm::pool", timeout = ?patience, "gave up on a connection attempt");
            // A server that logs in more slowly than this would never be
            // reached, if each further attempt had no more time.
            pool.ledger().fetches.give_up(patience);
            Err(DbErr::ConnectionAcquire(ConnAcquireErr::Timeout))
        }
    }
}

/// Gives the first waiter the reason why it gets no connection.
fn refuse(pool: &PoolInner, error: Error) {
    let first = pool.ledger().waiters.pop();
    if let Some(waiter) = first {
        // One that has given up meanwhile needs no reason any more.
        let _ = waiter.answer(Err(error));
    }
}

/// Waits before the next fetch after one has failed with `error`, or gives
/// those who wait the error.
async fn failed(pool: &PoolInner, error: DbErr) {
    // A server that is full may have a place at any moment, and those who wait
    // have time left.
    let full = is_full(&error);
    let follows = {
        let mut ledger = pool.ledger();
        let out = ledger.out();
        ledger.fetches.fail(out, full)
    };
    match follows {
        AfterFailure::GoOn => {}
        AfterFailure::Rest(pause) => {
            // One line for each pause, because only one of those that fail
            // rests.
            let status = pool.status();
            let (used, pending) = (status.used, status.pending);
            tracing::warn!(target: "tower_sea_orm::pool", used, pending, "no further connection can be opened; waiting requests keep waiting: {error}");
            sleep(pause).await;
            pool.ledger().fetches.end_pause();
        }
        AfterFailure::Refuse(count) => {
            let error = Error::with_source(Kind::Down, error);
            (0..count).for_each(|_| refuse(pool, error.clone()));
        }
    }
}
