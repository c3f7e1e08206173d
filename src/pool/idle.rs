//! [`IdleConnections`]: connections that came back clean a moment ago, for the next session as they are.
//!
//! The driver's pool pings a connection when it comes back and again when it goes out. One that was in use within the
//! last second needs neither. Those that no session has taken by then go back to the driver's pool.

use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::driver_pool::SILENCE;
use crate::{connection::PinnedConnection, sql::Redacted};

/// A connection counts as alive for this long after its last use.
const FRESH: Duration = Duration::from_secs(1);

/// A connection that no session uses. It has no slot: it gets one when it is taken out of the list.
pub(super) struct IdleConnection {
    pub(super) connection: PinnedConnection,
    /// The time at which the driver's pool was asked for it.
    pub(super) fetched: Instant,
    /// For the next session's last statement: its memory is used again.
    pub(super) text: Redacted,
    since: Instant,
}

impl IdleConnection {
    pub(super) fn new(connection: PinnedConnection, fetched: Instant, text: Redacted) -> Self {
        Self {
            connection,
            fetched,
            text,
            since: Instant::now(),
        }
    }

    /// Gives it to sqlx's pool, within `bound` if there is one.
    pub(super) async fn return_to_driver(mut self, bound: Option<Duration>) {
        return_within(&mut self.connection, bound).await;
    }

    fn is_fresh(&self) -> bool {
        self.since.elapsed() < FRESH
    }
}

/// The most recently used one is the last.
#[derive(Default)]
pub(super) struct IdleConnections(Vec<IdleConnection>);

impl IdleConnections {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn push(&mut self, connection: IdleConnection) {
        self.0.push(connection);
    }

    /// Takes the most recently used one, if it is still fresh.
    pub(super) fn pop(&mut self) -> Option<IdleConnection> {
        // The newest first: the others grow old together and go back to the driver, which closes what is too much.
        self.0.pop_if(|idle| idle.is_fresh())
    }

    /// Takes those that are no longer fresh, and at least `least` of the oldest.
    pub(super) fn take_stale(&mut self, least: usize) -> Vec<IdleConnection> {
        let stale = self.0.iter().take_while(|idle| !idle.is_fresh()).count();
        let taken = stale.max(least).min(self.0.len());
        self.0.drain(..taken).collect()
    }

    pub(super) fn take_all(&mut self) -> Vec<IdleConnection> {
        std::mem::take(&mut self.0)
    }
}

/// Gives a clean connection to sqlx's pool, within `bound` if there is one.
///
/// sqlx waits for its ping without a bound (<https://github.com/launchbadge/sqlx/issues/4349>). One that is not answered
/// for so long will not be.
pub(super) async fn return_within(connection: &mut PinnedConnection, bound: Option<Duration>) {
    let Some(bound) = bound.map(|bound| bound.min(SILENCE)) else {
        return connection.return_to_driver().await;
    };
    if timeout(bound, connection.return_to_driver()).await.is_err() {
        tracing::warn!(target: "tower_sea_orm::pool", "closed a connection that could not be returned: its ping was not answered");
    }
}
