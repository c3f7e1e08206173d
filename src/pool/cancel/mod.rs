//! Server-side cancel: the last that a call hears whose request has gone.

use std::{future::Future, time::Duration};

use futures_util::future::{Either, select};
use tokio::{runtime::Handle, time::sleep};

mod side_connection;
mod worker;

use self::worker::Reply;
pub(super) use self::worker::{Control, Subject};
use super::{Finished, SessionPool};
use crate::connection::{BackendId, CancelHandle, CancelTarget};

/// How long a statement may still end by itself.
const GRACE: Duration = Duration::from_millis(3);

/// How long a statement has to end when the server was told to stop it, before it is told again; at
/// first, and at last.
const PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(320);

impl SessionPool {
    /// Runs a call that nobody waits for to its end. Once it may be, its statement is stopped.
    ///
    /// Its connection is kept: with each one closed, a storm of clients that leave would empty the pool
    /// (<https://github.com/authzed/spicedb/pull/3176>).
    pub(crate) async fn see_off<F>(
        &self,
        mut call: F,
        victim: &CancelHandle,
        runtime: &Handle,
    ) -> Finished
    where
        F: Future<Output = Finished> + Unpin,
    {
        let abandoned = Box::pin(victim.abandoned());
        if let Either::Left((finished, _)) = select(&mut call, abandoned).await {
            return finished;
        }
        let mut late = Late::default();
        let mut pause = GRACE;
        let finished = loop {
            if let Either::Left((finished, _)) = select(&mut call, Box::pin(sleep(pause))).await {
                break finished;
            }
            pause = (pause * 2).clamp(PAUSE, LONGEST_PAUSE);
            match victim.target(self.shared.control.route()) {
                None => {}
                Some(CancelTarget::Sqlite) => late.possible = true,
                Some(CancelTarget::Server(target)) => {
                    if let Some(finished) = self.stop(&mut call, target, &mut late, runtime).await {
                        break finished;
                    }
                    if late.unanswered {
                        // Those that were asked for with it come first: it may keep them waiting again.
                        pause = LONGEST_PAUSE;
                    }
                }
            }
        };
        late.over(finished).await
    }

    /// Asks the server to stop what `call` runs, and waits for the answer, whatever becomes of the call.
    async fn stop<F>(
        &self,
        call: &mut F,
        target: BackendId,
        late: &mut Late,
        runtime: &Handle,
    ) -> Option<Finished>
    where
        F: Future<Output = Finished> + Unpin,
    {
        tracing::debug!(target: "tower_sea_orm::pool", ?target, "asks the server to stop a statement that nobody waits for");
        let (id, reply) = self.request(Some(target), runtime);
        let (finished, reply) = match select(call, reply).await {
            Either::Right((reply, _)) => (None, reply.ok()),
            Either::Left((finished, _)) if self.shared.control.withdraw(id) => {
                return Some(finished);
            }
            // It is under way, and may be carried out after the statement's end. The next one would be hit:
            // https://github.com/pgbouncer/pgbouncer/issues/245
            Either::Left((finished, reply)) => (Some(finished), reply.await.ok()),
        };
        tracing::debug!(target: "tower_sea_orm::pool", ?reply, ended = finished.is_some(), "asked the server to stop a statement");
        match reply {
            Some(Reply::Unsent) => {}
            Some(Reply::Answered) => late.possible = true,
            None => late.unanswered = true,
        }
        finished
    }
}

/// What may still come for a connection whose statement has ended.
#[derive(Default)]
struct Late {
    /// A cancel that was answered for, and found the statement ended.
    possible: bool,
    /// One that may come at any time.
    unanswered: bool,
}

impl Late {
    /// Makes sure that the connection's next statement is safe.
    async fn over(self, mut finished: Finished) -> Finished {
        if self.unanswered {
            tracing::warn!(target: "tower_sea_orm::pool", "closed a connection whose cancel was not answered");
            finished.connection.give_up();
        } else if self.possible {
            finished.connection.absorb().await;
        }
        finished
    }
}
