//! Calls whose request has gone: their statements are cancelled on the server.

use std::{future::Future, sync::Arc, time::Duration};

use futures_util::future::{Either, select};
use tokio::{runtime::Handle, time::sleep};

use super::{batch::Outcome, queue::CancelQueue};
use crate::connection::{BackendId, CancelHandle, CancelTarget};

/// A statement may still end by itself for this long.
const GRACE: Duration = Duration::from_millis(3);

/// The time that a statement has to end after a cancel request, before that is
/// repeated; at first, and at most.
const PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(320);

/// The cancellations that may still reach a connection whose statement has
/// ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::pool) enum Late {
    Nothing,
    /// A cancellation that the server has acted on, perhaps after the
    /// statement's end.
    Possible,
    /// One that may come at any time.
    Unanswered,
}

/// Runs an abandoned call to its end. Once its statement may be cancelled, the
/// server is asked to, again and again.
///
/// Its connection is kept: with each one closed, a storm of clients that leave
/// would empty the pool (<https://github.com/authzed/spicedb/pull/3176>).
pub(in crate::pool) async fn finish_abandoned<F>(
    queue: &Arc<CancelQueue>,
    mut call: F,
    handle: &CancelHandle,
    runtime: &Handle,
) -> (F::Output, Late)
where
    F: Future + Unpin,
{
    let abandoned = Box::pin(handle.abandoned());
    if let Either::Left((finished, _)) = select(&mut call, abandoned).await {
        return (finished, Late::Nothing);
    }
    // Not at once: most statements are over sooner than a cancel request could
    // arrive, and one that comes late costs the connection another round trip.
    let (mut late, mut pause) = (Late::Nothing, GRACE);
    loop {
        if let Either::Left((finished, _)) = select(&mut call, Box::pin(sleep(pause))).await {
            return (finished, late);
        }
        // Again, because PostgreSQL forgets a cancel request that arrives
        // between two statements of one call.
        pause = (pause * 2).clamp(PAUSE, LONGEST_PAUSE);
        // Asked anew each time: the call may have come to its statement, or
        // past it, since.
        match handle.target(queue.route()) {
            None => {}
            Some(CancelTarget::Sqlite) => late = late.max(Late::Possible),
            Some(CancelTarget::Server(target)) => {
                let (finished, outcome) = cancel(queue, &mut call, target, runtime).await;
                late = match outcome {
                    Outcome::Untouched => late,
                    // The worst so far: that this one was answered says nothing
                    // of one before it that was not.
                    Outcome::Answered => late.max(Late::Possible),
                    Outcome::InDoubt => Late::Unanswered,
                };
                if let Some(finished) = finished {
                    return (finished, late);
                }
                if late == Late::Unanswered {
                    // It may have kept the other requests of its batch waiting:
                    // they come first.
                    pause = LONGEST_PAUSE;
                }
            }
        }
    }
}

/// Asks the server to cancel what `call` runs, and waits for the answer,
/// whatever becomes of the call.
async fn cancel<F>(
    queue: &Arc<CancelQueue>,
    call: &mut F,
    target: BackendId,
    runtime: &Handle,
) -> (Option<F::Output>, Outcome)
where
    F: Future + Unpin,
{
    tracing::debug!(target: "tower_sea_orm::pool", ?target, "asking the server to cancel an abandoned statement");
    let (id, reply) = queue.request(Some(target), runtime);
    let (finished, outcome) = match select(call, reply).await {
        Either::Right((reply, _)) => (None, reply),
        Either::Left((finished, _)) if queue.withdraw(id) => {
            (Some(finished), Ok(Outcome::Untouched))
        }
        // It is under way, and may be carried out after the statement's end.
        // The next one would be hit:
        // https://github.com/pgbouncer/pgbouncer/issues/245 Shown by
        // `a_connection_is_not_reused_until_its_cancel_is_answered`.
        Either::Left((finished, reply)) => (Some(finished), reply.await),
    };
    // Without a reply the worker has gone, perhaps with the request on its way.
    let outcome = outcome.unwrap_or(Outcome::InDoubt);
    tracing::debug!(target: "tower_sea_orm::pool", ?outcome, ended = finished.is_some(), "asked the server to cancel a statement");
    (finished, outcome)
}
