//! Ends the wait for a running call: the call moves to a task that runs it to its end.

use std::sync::Arc;

use tokio::time::timeout;

use super::{
    core::{Core, Locked},
    finish::{finish, lose},
    slot::{CallFuture, CallKind, Detached, Slot},
    stack::Purpose,
};
use crate::pool::finish_abandoned;

/// Moves the running call to a task, whatever polled it so far, and wakes the future that waited for it. Raw code
/// is dropped instead.
///
/// The call is `in_hand` if the caller has just polled it, and in its slot otherwise. False if it is in neither:
/// it is being polled, or in a task already.
pub(super) fn detach(core: &Arc<Core>, mut state: Locked<'_>, in_hand: Option<CallFuture>) -> bool {
    let Slot::Running(running) = &mut state.slot else {
        return false;
    };
    let Some(future) = in_hand.or_else(|| running.future.take()) else {
        return false;
    };
    // The worker polls it no more, and may have nothing else to do: it has to look again.
    let purpose = running.purpose;
    let is_wanted = running.is_polled_by_worker() || running.take_wanted();
    // Woken below, without the lock: a waker is foreign code.
    let owner = running.waker.take();
    let call = running.detach(future);
    // Its end may come after the request's, and a COMMIT that was sent is seen through.
    if purpose == Purpose::Commit || purpose == Purpose::Work && state.stack.depth() == 0 {
        core.tell_request_doubt();
    }
    drop(state);
    if call.kind == CallKind::Raw {
        // User code is not carried on without its caller: it may wait for what has ended with that.
        drop(call);
        lose(core);
    } else {
        drain(core, call);
    }
    if is_wanted {
        core.turns.wake_worker();
    }
    // It finds the call gone, and returns an error instead of waiting for a task that it cannot see.
    if let Some(owner) = owner {
        owner.wake();
    }
    true
}

/// Runs a call to its end in a task: sqlx's calls must not be dropped half-way (H1, H3m)
/// (<https://github.com/launchbadge/sqlx/issues/4393>, <https://github.com/launchbadge/sqlx/issues/563>).
fn drain(core: &Arc<Core>, call: Detached) {
    let Detached {
        future,
        runtime,
        release_timeout,
        cancel_handle,
        ..
    } = call;
    // Made before the task, because a runtime that shuts down drops its tasks unrun.
    let mut unfinished = Unfinished(Some(core.clone()));
    let (pool, handle) = (core.pool().clone(), runtime.clone());
    // Its own runtime, whatever thread this is: `Drop` may run on one without any (G11).
    runtime.spawn(async move {
        let ending = async {
            match cancel_handle {
                None => future.await,
                Some(cancel) => finish_abandoned(&pool, future, &cancel, &handle).await,
            }
        };
        // Where the server does not answer, the slot in the pool must not be lost with it (G4, H3). Closing a database in
        // memory would destroy it, so there the call has as long as it takes.
        let finished = match release_timeout {
            None => Some(ending.await),
            Some(limit) => timeout(limit, ending).await.ok(),
        };
        match finished {
            Some(finished) => drop(unfinished.0.take().and_then(|core| finish(&core, finished))),
            None => {
                // One for each connection, as long as the server does not answer.
                let Some(suppressed) = pool.lines.next_line("did not end", 1) else {
                    return;
                };
                tracing::warn!(target: "tower_sea_orm::session", suppressed, "closed a connection whose statement did not end within the release timeout");
            }
        }
    });
}

/// Stands for a call in a task. Whatever ends that task early, the session must not wait for the call.
struct Unfinished(Option<Arc<Core>>);

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(core) = self.0.take() {
            lose(&core);
        }
    }
}
