//! Closing a pool: no new sessions, some time for those that are there, then an
//! end.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{runtime::Handle, time::timeout};

use super::{inner::PoolInner, log::log_session};
use crate::error::Kind;

/// It looks this often whether a COMMIT that had to be completed has ended.
const TICK: Duration = Duration::from_millis(20);

/// Closes `pool`, whose sessions may go on for at most `within`; returns how
/// many had to be cut off.
pub(super) async fn close(pool: &Arc<PoolInner>, within: Duration) -> usize {
    // Before all else: from here on, no session begins that would have to be
    // waited for.
    pool.closing.begin();
    if Handle::try_current().is_err() {
        // Without a runtime nothing can be waited for, so that the sessions are
        // cut off at once.
        pool.closing.shut();
        let cut = cut_once(pool);
        pool.return_idle();
        // Nothing more can be closed here: sqlx's goodbyes are tasks, and
        // without a runtime spawning one panics (H6).
        pool.driver.close_without_waiting();
        pool.anchor.let_go();
        return cut;
    }
    let is_in_time = timeout(within, pool.closing.last_session()).await.is_ok();
    // Not before: sessions that are given time may acquire connections in it.
    pool.closing.shut();
    let cut = if is_in_time { 0 } else { cut_off(pool).await };
    close_driver(pool).await;
    pool.anchor.let_go();
    cut
}

/// Takes away the connections that are still out, and waits until they are back
/// or closed.
async fn cut_off(pool: &PoolInner) -> usize {
    // `None`: for as long as it takes. Checked, since every `Duration` is
    // allowed, and the longest no clock can show
    // (`every_duration_is_fine_for_every_setting_and_for_close`).
    let until = Instant::now().checked_add(pool.settings.release_timeout);
    let mut cut = 0;
    // Again and again: a COMMIT that was sent is completed first, and its
    // session can be cut off only then. Shown by
    // `a_commit_that_was_sent_is_seen_through_by_a_closing_pool`.
    loop {
        cut += cut_once(pool);
        let is_over = pool.is_direct() || pool.registry.len() == 0;
        if is_over || until.is_some_and(|until| Instant::now() >= until) {
            return cut;
        }
        pool.closing.change(TICK).await;
    }
}

/// Cuts off those that can be cut off now, and returns how many there were.
fn cut_once(pool: &PoolInner) -> usize {
    // The lock is free when they are answered, which wakes tasks.
    let waiters = pool.ledger().waiters.take_all().into_iter();
    let refused = waiters.filter_map(|waiter| waiter.answer(Err(Kind::Closing.into())).ok());
    let mut cut = refused.count();
    for holder in pool.registry.all() {
        let label = holder.label();
        if holder.cut(Kind::Closing) {
            cut += 1;
            log_session!(
                warn,
                label,
                "a session did not end before the pool closed: it was cut off",
            );
        }
    }
    cut
}

/// Closes the driver's pool, if its connections come back in time.
async fn close_driver(pool: &Arc<PoolInner>) {
    if pool.is_test() {
        // The database is the test's.
        return;
    }
    // sqlx's `close()` waits for them (H26):
    // https://github.com/launchbadge/sqlx/issues/1773
    pool.return_idle();
    // Before the wait for the rest, for which sqlx would keep its idle
    // connections open.
    pool.driver.close_now();
    let database = pool.database.clone();
    // In a task, so that it goes on if this future is dropped.
    let closed = tokio::spawn(async move { database.close_by_ref().await });
    match timeout(pool.settings.release_timeout, closed).await {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(error))) => {
            tracing::warn!(target: "tower_sea_orm::pool", "the driver's pool could not be closed: {error}");
        }
        Ok(Err(_)) | Err(_) => {
            tracing::warn!(
                target: "tower_sea_orm::pool",
                "the driver's pool is closed, but not all of its connections came back within the release timeout",
            );
        }
    }
}
