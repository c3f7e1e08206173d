//! Warm connections: released clean a moment ago, and handed to the next session as they are.
//!
//! The driver's pool pings a connection when it comes back and again when it goes out. One that was
//! in use within the last second needs neither. A keeper task returns those that nobody took.

use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use futures_util::future::{Either, select};

use super::{Lease, SessionPool, Shared, checked_out::CheckedOut, ledger::Placed};

/// How long a connection counts as alive after its last use.
const FRESH: Duration = Duration::from_secs(1);

/// How often the keeper looks, and how long users of the driver's pool may find nothing there when
/// the sessions are idle.
const TICK: Duration = Duration::from_millis(50);

/// The warm connections of a pool, the most recently used last.
#[derive(Default)]
pub(super) struct IdleConnections {
    connections: Vec<(CheckedOut, Instant)>,
    is_kept: bool,
}

impl IdleConnections {
    pub(super) fn len(&self) -> usize {
        self.connections.len()
    }

    /// Keeps a connection; true if nobody looks after them yet.
    pub(super) fn push(&mut self, connection: CheckedOut) -> bool {
        self.connections.push((connection, Instant::now()));
        !std::mem::replace(&mut self.is_kept, true)
    }

    /// Takes the most recently used one, if it is still fresh.
    pub(super) fn pop(&mut self) -> Option<CheckedOut> {
        let (connection, _) = self
            .connections
            .pop_if(|(_, since)| since.elapsed() < FRESH)?;
        Some(connection)
    }

    /// Takes those that are no longer fresh, and the oldest of all if it is `crowded`.
    pub(super) fn take_stale(&mut self, crowded: bool) -> Vec<CheckedOut> {
        let stale = self
            .connections
            .iter()
            .take_while(|(_, since)| since.elapsed() >= FRESH)
            .count();
        let taken = stale.max(usize::from(crowded)).min(self.connections.len());
        self.connections
            .drain(..taken)
            .map(|(connection, _)| connection)
            .collect()
    }

    pub(super) fn take_all(&mut self) -> Vec<CheckedOut> {
        self.connections
            .drain(..)
            .map(|(connection, _)| connection)
            .collect()
    }

    /// Whether there is nothing to look after; then the next one needs another keeper.
    pub(super) fn rest(&mut self) -> bool {
        self.is_kept = !self.connections.is_empty();
        !self.is_kept
    }
}

impl SessionPool {
    /// A warm connection, if there is one and nobody waits before.
    pub(crate) fn try_acquire(&self) -> Option<Lease> {
        if !self.settings().direct_handoff || self.is_shut() {
            return None;
        }
        let connection = self.shared.queue.pop_warm()?;
        self.pressure().relieved();
        Some(Lease::new(connection))
    }

    /// Hands a clean connection on, keeps it warm, or gives it back for the driver's pool.
    pub(super) fn place(&self, connection: CheckedOut) -> Option<CheckedOut> {
        let source = &self.shared.source;
        if !self.settings().direct_handoff
            || self.is_test()
            || source.is_closed()
            || connection.is_due(source.max_lifetime())
        {
            return Some(connection);
        }
        let runtime = connection.runtime().clone();
        match self
            .shared
            .queue
            .place(connection, source.max_connections().unwrap_or(0))
        {
            Placed::Left(connection) => return Some(connection),
            Placed::Warm { unkept: true } => {
                let keeper = Keeper(Arc::downgrade(&self.shared));
                runtime.spawn(keeper.keep());
            }
            Placed::Warm { unkept: false } | Placed::HandedOver => {}
        }
        None
    }

    /// Returns all warm connections to the driver's pool, which looks whether they are alive.
    pub(super) fn cool_down(&self) {
        self.shared.cool_down();
    }
}

impl Shared {
    fn cool_down(&self) {
        for connection in self.queue.take_warm() {
            connection.return_to_driver();
        }
    }
}

/// Looks after the warm connections. Dropped with its runtime, it closes them: nobody else would.
struct Keeper(Weak<Shared>);

impl Keeper {
    async fn keep(self) {
        let Some(mut closed) = self.0.upgrade().map(|shared| shared.source.closed()) else {
            return;
        };
        loop {
            let tick = Box::pin(tokio::time::sleep(TICK));
            let closing = matches!(select(tick, &mut closed).await, Either::Right(_));
            let Some(shared) = self.0.upgrade() else {
                return;
            };
            if closing {
                // sqlx's `close()` waits for them: https://github.com/launchbadge/sqlx/issues/1773
                shared.cool_down();
            }
            let (stale, over) = shared
                .queue
                .take_stale(shared.source.max_connections().unwrap_or(0));
            for connection in stale {
                connection.return_to_driver();
            }
            if over || closing {
                return;
            }
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // Regularly ended, it finds none.
        if let Some(shared) = self.0.upgrade() {
            drop(shared.queue.abandon_warm());
        }
    }
}
