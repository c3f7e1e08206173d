//! Calls whose request has gone: their statements are cancelled on the server.

use std::{future::Future, sync::Arc, time::Duration};

use futures_util::future::{Either, select};
use tokio::{runtime::Handle, time::sleep};

use super::queue::{CancelQueue, Reply};
use crate::connection::{BackendId, CancelHandle, CancelTarget};

/// How long a statement may still end by itself.
const GRACE: Duration = Duration::from_millis(3);

/// How long a statement has to end when the server was asked to cancel it, before that is repeated; at
/// first, and at most.
const PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(320);

/// What may still come for a connection whose statement has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::pool) enum Late {
    Nothing,
    /// A cancellation that the server has acted on, perhaps after the statement's end.
    Possible,
    /// One that may come at any time.
    Unanswered,
}

/// Runs an abandoned call to its end. Once its statement may be cancelled, the server is asked to, again and again.
///
/// Its connection is kept: with each one closed, a storm of clients that leave would empty the pool
/// (<https://github.com/authzed/spicedb/pull/3176>).
pub(in crate::pool) async fn finish_abandoned<F>(
    queue: &Arc<CancelQueue>,
    mut call: F,
    victim: &CancelHandle,
    runtime: &Handle,
) -> (F::Output, Late)
where
    F: Future + Unpin,
{
    let abandoned = Box::pin(victim.abandoned());
    if let Either::Left((finished, _)) = select(&mut call, abandoned).await {
        return (finished, Late::Nothing);
    }
    let (mut late, mut pause) = (Late::Nothing, GRACE);
    loop {
        if let Either::Left((finished, _)) = select(&mut call, Box::pin(sleep(pause))).await {
            return (finished, late);
        }
        pause = (pause * 2).clamp(PAUSE, LONGEST_PAUSE);
        match victim.target(queue.route()) {
            None => {}
            Some(CancelTarget::Sqlite) => late = late.or(Late::Possible),
            Some(CancelTarget::Server(target)) => {
                let (finished, reply) = cancel(queue, &mut call, target, runtime).await;
                late = match reply {
                    Some(Reply::Unsent) => late,
                    Some(Reply::Answered) => late.or(Late::Possible),
                    None => Late::Unanswered,
                };
                if let Some(finished) = finished {
                    return (finished, late);
                }
                if late == Late::Unanswered {
                    // Those that were asked for with it come first: it may keep them waiting again.
                    pause = LONGEST_PAUSE;
                }
            }
        }
    }
}

/// Asks the server to cancel what `call` runs, and waits for the answer, whatever becomes of the call.
async fn cancel<F>(
    queue: &Arc<CancelQueue>,
    call: &mut F,
    target: BackendId,
    runtime: &Handle,
) -> (Option<F::Output>, Option<Reply>)
where
    F: Future + Unpin,
{
    tracing::debug!(target: "tower_sea_orm::pool", ?target, "asks the server to stop an abandoned statement");
    let (id, reply) = queue.request(Some(target), runtime);
    let (finished, reply) = match select(call, reply).await {
        Either::Right((reply, _)) => (None, reply.ok()),
        Either::Left((finished, _)) if queue.withdraw(id) => (Some(finished), Some(Reply::Unsent)),
        // It is under way, and may be carried out after the statement's end. The next one would be hit:
        // https://github.com/pgbouncer/pgbouncer/issues/245
        Either::Left((finished, reply)) => (Some(finished), reply.await.ok()),
    };
    tracing::debug!(target: "tower_sea_orm::pool", ?reply, ended = finished.is_some(), "asked the server to stop a statement");
    (finished, reply)
}

impl Late {
    fn or(self, other: Self) -> Self {
        if self == Self::Nothing { other } else { self }
    }
}
