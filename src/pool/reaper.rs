//! [`Reaper`]: returns to the driver's pool the idle connections that no session has taken.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use futures_util::future::{BoxFuture, Either, select};

use super::{background::Work, inner::PoolInner};

/// It looks this often, and users of the driver's pool may find nothing there
/// for as long while sessions are idle.
const TICK: Duration = Duration::from_millis(50);

pub(super) struct Reaper {
    // Weak, because it is a task: when the last handle goes, the pool goes, and
    // its connections return at once.
    pool: Weak<PoolInner>,
    /// Resolves when the driver's pool is closed.
    closed: BoxFuture<'static, ()>,
}

impl Reaper {
    pub(super) fn over(pool: &Arc<PoolInner>) -> Self {
        Self {
            pool: Arc::downgrade(pool),
            closed: pool.driver.closed(),
        }
    }
}

impl Work for Reaper {
    async fn step(&mut self) -> bool {
        let tick = Box::pin(tokio::time::sleep(TICK));
        let is_closing = matches!(select(tick, &mut self.closed).await, Either::Right(_));
        let Some(pool) = self.pool.upgrade() else {
            return false;
        };
        if is_closing {
            // sqlx's `close()` waits for them (H26;
            // `h26_the_drivers_pool_closes_while_connections_are_warm`).
            pool.return_idle();
            return false;
        }
        // Where the driver's pool has nothing left, one goes back if no session
        // has returned any since the last look, or a visit is due: users of the
        // plain `DatabaseConnection` get something while sessions rest. By
        // sqlx's count and not by ours, which does not know of the connections
        // that these users have.
        let nothing_left = !pool.driver.has_idle();
        let mut ledger = pool.ledger();
        let stale = ledger.take_stale(nothing_left);
        let is_any_left = ledger.idle.len() > 0;
        drop(ledger);
        // Without the lock: each return is a task.
        pool.return_all(stale);
        is_any_left
    }

    fn is_pending(&self) -> bool {
        self.pool
            .upgrade()
            .is_some_and(|pool| pool.ledger().idle.len() > 0)
    }

    /// Closes them: without a task, nothing would return them.
    fn abandon(&mut self) {
        if let Some(pool) = self.pool.upgrade() {
            let idle = pool.ledger().idle.take_all();
            drop(idle);
        }
    }
}
