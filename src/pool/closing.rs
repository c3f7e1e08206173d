//! Closing the pool: no new sessions, some time for those that are there, then an end.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use tokio::{runtime::Handle, sync::Notify, time::timeout};

use super::SessionPool;
use crate::error::{Error, Kind};

/// How often it looks whether a COMMIT that was seen through has ended.
const TICK: Duration = Duration::from_millis(20);

/// How far the pool has closed.
#[derive(Default)]
pub(super) struct Closing {
    /// New sessions are refused.
    begun: AtomicBool,
    /// Nobody gets a connection any more.
    shut: AtomicBool,
    /// Sessions that have begun and not ended, those that wait for their connection included.
    sessions: AtomicUsize,
    /// A session has ended, or a connection is back.
    changed: Notify,
}

impl Closing {
    /// Resolves when there is no session any more.
    async fn last_session(&self) {
        loop {
            let changed = self.changed.notified();
            if self.sessions.load(Ordering::SeqCst) == 0 {
                return;
            }
            changed.await;
        }
    }

    pub(super) fn changed(&self) {
        if self.begun.load(Ordering::SeqCst) {
            self.changed.notify_waiters();
        }
    }
}

impl SessionPool {
    /// Closes the pool. New sessions, including those of new requests, are refused at once with
    /// [`is_closing`](Error::is_closing), and the layer answers 503 without calling the handler. Sessions that have
    /// begun, including those waiting for their connection, may go on for at most `within`. The rest are then cut off,
    /// as by [`hold_timeout`](crate::SessionPoolBuilder::hold_timeout), with the same error. Finally the driver's pool is
    /// closed, for users of the plain `DatabaseConnection` as well.
    ///
    /// It takes at most three [`release_timeout`](crate::SessionPoolBuilder::release_timeout)s beyond `within`. Returns
    /// how many sessions had to be cut off: their connection was taken away, or their wait for one ended. A transaction
    /// that was cut off is rolled back, and its request never gets a response below 400.
    ///
    /// Call it when the service is asked to stop, and stop the server when it returns: see the
    /// example `graceful_shutdown`. Calling it again is harmless.
    ///
    /// ```
    /// # #[cfg(feature = "sqlx-sqlite")]
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// use std::time::Duration;
    ///
    /// use sea_orm::Database;
    /// use tower_sea_orm::SessionPool;
    ///
    /// let pool = SessionPool::new(Database::connect("sqlite::memory:").await?);
    /// assert_eq!(pool.close(Duration::from_secs(10)).await, 0);
    /// assert!(pool.session().await.unwrap_err().is_closing());
    /// # Ok::<(), sea_orm::DbErr>(())
    /// # }).unwrap();
    /// ```
    ///
    /// Outside a tokio runtime, it does not wait: sessions that are still open are cut off at once.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped half-way, new sessions are still refused, but nothing more is cut off or
    /// closed: call it again.
    pub async fn close(&self, within: Duration) -> usize {
        let closing = &self.shared.closing;
        closing.begun.store(true, Ordering::SeqCst);
        if Handle::try_current().is_err() {
            // Nothing can be waited for.
            closing.shut.store(true, Ordering::SeqCst);
            let cut = self.cut_once();
            self.cool_down();
            self.shared.source.close_without_waiting();
            return cut;
        }
        let in_time = timeout(within, closing.last_session()).await.is_ok();
        closing.shut.store(true, Ordering::SeqCst);
        let cut = if in_time { 0 } else { self.cut_off().await };
        self.close_driver().await;
        cut
    }

    /// Returns whether new sessions are refused: [`close`](Self::close) was called, or the driver's pool
    /// was closed.
    pub fn is_closed(&self) -> bool {
        self.shared.closing.begun.load(Ordering::SeqCst) || self.is_shut()
    }

    /// Whether nobody gets a connection any more.
    pub(crate) fn is_shut(&self) -> bool {
        self.shared.closing.shut.load(Ordering::SeqCst) || self.shared.source.is_closed()
    }

    /// Counts a session from here on, unless the pool takes no new ones.
    pub(crate) fn admit(&self) -> Result<Admission<'_>, Error> {
        self.try_admit()
            .ok_or_else(|| self.fail(Kind::Closing.into(), Duration::ZERO))
    }

    /// [`admit`](Self::admit), without a word to the log.
    pub(crate) fn try_admit(&self) -> Option<Admission<'_>> {
        let admission = Admission::of(self);
        // Only when it was counted: either it is refused, or `close` waits for it.
        let is_closing = self.shared.closing.begun.load(Ordering::SeqCst);
        (!is_closing).then_some(admission)
    }

    /// A session that was [passed on](Admission::pass_on) has ended.
    pub(crate) fn session_ended(&self) {
        self.shared.closing.sessions.fetch_sub(1, Ordering::SeqCst);
        self.shared.closing.changed();
    }

    /// Sessions that have begun and not ended.
    pub(super) fn open_sessions(&self) -> usize {
        self.shared.closing.sessions.load(Ordering::SeqCst)
    }

    /// Takes away what is still out, and waits until it is back or closed.
    async fn cut_off(&self) -> usize {
        let closing = &self.shared.closing;
        // `None`: for as long as it takes.
        let until = Instant::now().checked_add(self.settings().release_timeout);
        let mut cut = 0;
        loop {
            cut += self.cut_once();
            let is_over = self.is_direct() || self.shared.holders.len() == 0;
            if is_over || until.is_some_and(|until| Instant::now() >= until) {
                return cut;
            }
            let _ = timeout(TICK, closing.changed.notified()).await;
        }
    }

    /// Cuts off those that can be cut off now, and returns how many there were.
    fn cut_once(&self) -> usize {
        let mut cut = self.shared.queue.refuse_all(Kind::Closing);
        for holder in self.shared.holders.all() {
            let label = holder.label();
            if holder.cut(Kind::Closing) {
                cut += 1;
                tracing::warn!(
                    target: "tower_sea_orm::pool",
                    method = label.as_ref().map(|label| label.method.as_str()),
                    path = label.as_ref().map(|label| label.uri.path()),
                    "a session did not end before the pool closed: it was cut off",
                );
            }
        }
        cut
    }

    /// Closes the driver's pool, if its connections come back in time.
    async fn close_driver(&self) {
        if self.is_test() {
            // The database is the test's.
            return;
        }
        self.cool_down();
        self.shared.source.close_now();
        let database = self.shared.database.clone();
        let closed = tokio::spawn(async move { database.close_by_ref().await });
        match timeout(self.settings().release_timeout, closed).await {
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
}

/// A session that is about to begin; dropped, it counts no more.
#[must_use = "the session counts as long as this lives"]
pub(crate) struct Admission<'p>(Option<&'p SessionPool>);

impl<'p> Admission<'p> {
    fn of(pool: &'p SessionPool) -> Self {
        pool.shared.closing.sessions.fetch_add(1, Ordering::SeqCst);
        Self(Some(pool))
    }

    /// It has begun: whoever has it tells of its end.
    pub(crate) fn pass_on(mut self) {
        self.0 = None;
    }
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        if let Some(pool) = self.0 {
            pool.session_ended();
        }
    }
}
