//! [`Call`]: a running driver call, seen from the handler that waits for it; and the end of that wait, by which the call moves
//! to a task that runs it to its end.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use sea_orm::DbErr;
use tokio::time::timeout;

use super::{
    core::{Core, Locked},
    finish::{finish, lose},
    lend,
    slot::{CallFuture, CallKind, Detached, PolledBy, Slot},
    stack::Purpose,
};
use crate::{connection::Output, pool::finish_abandoned, telemetry};

/// Polls the session's running call. The call itself lives in the session's
/// slot, so that the end of the request can take it away, and so that it goes
/// on when its handler has stopped polling.
pub(super) struct Call {
    core: Arc<Core>,
    id: u64,
    done: bool,
    streams: bool,
    #[cfg_attr(not(feature = "stream"), allow(dead_code))] // only a stream has one
    open: Option<OpenStream>,
}

/// Stands for a stream that may still be read; other statements are refused
/// meanwhile.
pub(super) struct OpenStream(pub(super) Arc<Core>);

/// A place where the call may be.
enum Whereabouts {
    /// In the slot, to be polled here.
    Here(CallFuture),
    /// The session's worker polls it.
    Driven,
    /// It has ended.
    Ended(Result<Output, DbErr>),
    /// The request has ended, or the connection was taken away, and the call
    /// went along.
    Gone,
}

impl Call {
    pub(super) fn new(core: Arc<Core>, id: u64, streams: bool) -> Self {
        let open = streams.then(|| OpenStream(core.clone()));
        Self {
            core,
            id,
            done: false,
            streams,
            open,
        }
    }

    /// Returns what keeps others out while a stream's reader may have rows to
    /// read, also after the call's end.
    #[cfg(feature = "stream")]
    pub(super) fn take_open(&mut self) -> Option<OpenStream> {
        self.open.take()
    }

    // The call is taken out to be polled, because the lock is not held across a
    // poll. Until it returns, the slot says by `PolledBy` and an empty `future`
    // that it is on its way here.
    fn look(&self) -> Whereabouts {
        let mut state = self.core.lock();
        match state.slot.running(self.id) {
            Some(running) if running.is_polled_by_worker() => Whereabouts::Driven,
            Some(running) => running
                .future
                .take()
                .map_or(Whereabouts::Gone, Whereabouts::Here),
            // Not in the slot any more: the worker has seen it to its end, or
            // it was lost.
            None => state
                .take_output(self.id)
                .map_or(Whereabouts::Gone, Whereabouts::Ended),
        }
    }

    /// Polls the call wherever it is; resolves to `None` if its output went
    /// elsewhere.
    fn advance(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Output, DbErr>>> {
        match self.look() {
            Whereabouts::Here(mut future) => match future.as_mut().poll(cx) {
                // If that poll panics, the future unwinds with the connection
                // in it, and `Drop` finds the slot without a future.
                Poll::Ready(finished) => Poll::Ready(finish(&self.core, finished)),
                Poll::Pending if return_call(&self.core, future, Some(cx.waker().clone())) => {
                    Poll::Pending
                }
                Poll::Pending => Poll::Ready(None),
            },
            Whereabouts::Driven if self.wait_for_worker(cx.waker().clone()) => Poll::Pending,
            // The worker has let go of it since the look.
            Whereabouts::Driven => self.advance(cx),
            Whereabouts::Ended(output) => Poll::Ready(Some(output)),
            Whereabouts::Gone => Poll::Ready(None),
        }
    }

    /// Has the worker wake `waker` at the call's end; false if the worker does
    /// not poll it any more.
    fn wait_for_worker(&self, waker: Waker) -> bool {
        let mut state = self.core.lock();
        let running = state.slot.running(self.id);
        let Some(running) = running.filter(|running| running.is_polled_by_worker()) else {
            return false;
        };
        let before = running.waker.replace(waker);
        drop(state);
        // A waker is foreign code, its `Drop` included, and never runs under
        // the lock.
        drop(before);
        true
    }

    /// Leaves a call that has not ended to a task, or to the worker that polls
    /// it at this moment.
    fn abandon(&self) {
        let mut state = self.core.lock();
        let Some(running) = state.slot.running(self.id) else {
            return;
        };
        if running.polled_by == PolledBy::Task {
            // Detached already, as by the end of the request.
            return;
        }
        if let Some(cancel) = &running.cancel {
            cancel.call_dropped();
        }
        if let PolledBy::Worker { is_left } = &mut running.polled_by
            && running.future.is_none()
        {
            // The worker has it in hand on another thread, and detaches it when
            // it returns it.
            *is_left = true;
            return;
        }
        // The future that waited for the call is being dropped: there is
        // nothing to wake.
        let waker = running.waker.take();
        if !detach(&self.core, state, None) {
            // Polling it panicked, and the connection went with it.
            lose(&self.core);
        }
        drop(waker);
    }
}

impl Future for Call {
    type Output = Result<Output, DbErr>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let output = ready!(self.advance(cx));
        self.done = true;
        Poll::Ready(output.unwrap_or_else(|| Err(self.core.closed_error())))
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        // Not left in the list: nothing would ever ask for it.
        let kept = self.core.lock().take_output(self.id);
        match kept {
            None => self.abandon(),
            // Its reader has gone, so that the log alone can say it
            // (`a_failure_after_its_stream_was_dropped_is_logged`).
            Some(Err(error)) if self.streams => telemetry::stream_failed_unheard(&error),
            Some(_) => {}
        }
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.lock().streaming = false;
        // Until now the stream has kept the connection, and no statement may
        // follow that would offer it.
        lend::offer_unless_polled(&self.0);
    }
}

/// Puts a call that is not done back into its slot; false if it was detached
/// instead, because the session is over or the future that waited for it was
/// dropped meanwhile.
pub(super) fn return_call(core: &Arc<Core>, future: CallFuture, waker: Option<Waker>) -> bool {
    let mut state = core.lock();
    let is_over = state.phase.is_over();
    let Slot::Running(running) = &mut state.slot else {
        return false;
    };
    // The end of the request, or the drop of the call's future, found it out of
    // its slot and could not detach it.
    if is_over || running.polled_by == (PolledBy::Worker { is_left: true }) {
        detach(core, state, Some(future));
        return false;
    }
    running.future = Some(future);
    let before = waker.and_then(|waker| running.waker.replace(waker));
    // The worker looked for the call while it was being polled here, and found
    // nothing.
    let is_wanted = running.take_wanted();
    drop(state);
    drop(before);
    if is_wanted {
        core.turns.wake_worker();
    }
    true
}

/// Moves the running call to a task, whatever polled it so far, and wakes the
/// future that waited for it. Raw code is dropped instead.
///
/// The call is `in_hand` if the caller has just polled it, and in its slot
/// otherwise. False if it is in neither: it is being polled, or in a task
/// already.
pub(super) fn detach(core: &Arc<Core>, mut state: Locked<'_>, in_hand: Option<CallFuture>) -> bool {
    let Slot::Running(running) = &mut state.slot else {
        return false;
    };
    let Some(future) = in_hand.or_else(|| running.future.take()) else {
        return false;
    };
    // The worker polls it no more, and may have nothing else to do: it has to
    // look again.
    let purpose = running.purpose;
    let is_wanted = running.is_polled_by_worker() || running.take_wanted();
    // Woken below, without the lock: a waker is foreign code.
    let owner = running.waker.take();
    let call = running.detach(future);
    // Its end may come after the request's, and a COMMIT that was sent is seen
    // through. Shown by
    // `g20_a_commit_beside_that_was_left_alone_forbids_a_retry`.
    if purpose == Purpose::Commit || purpose == Purpose::Work && state.stack.depth() == 0 {
        core.tell_request_doubt();
    }
    drop(state);
    if call.kind == CallKind::Raw {
        // User code is not carried on without its caller: it may wait for what
        // has ended with that. Shown by
        // `unpolled_raw_code_goes_on_and_is_dropped_with_its_future`.
        drop(call);
        lose(core);
    } else {
        // Not aborted and not dropped: on MariaDB, a statement that is dropped
        // while it is prepared costs sqlx's pool a permit for good (H3m;
        // `h3m_a_statement_dropped_after_any_number_of_polls_loses_no_permit`).
        run_out(core, call);
    }
    if is_wanted {
        core.turns.wake_worker();
    }
    // It finds the call gone, and returns an error instead of waiting for a
    // task that it cannot see.
    if let Some(owner) = owner {
        owner.wake();
    }
    true
}

/// Runs a call to its end in a task: sqlx's calls must not be dropped half-way
/// (H1, H3m) (<https://github.com/launchbadge/sqlx/issues/4393>,
/// <https://github.com/launchbadge/sqlx/issues/563>).
fn run_out(core: &Arc<Core>, call: Detached) {
    let Detached {
        future,
        runtime,
        release_timeout,
        cancels_by,
        ..
    } = call;
    // Made before the task, because a runtime that shuts down drops its tasks
    // unrun.
    let mut unfinished = Unfinished(Some(core.clone()));
    let (pool, task_runtime) = (core.pool().clone(), runtime.clone());
    // Its own runtime, whatever thread this is: `Drop` may run on one without
    // any (G11).
    runtime.spawn(async move {
        let ending = async {
            match cancels_by {
                None => future.await,
                Some(handle) => finish_abandoned(&pool, future, &handle, &task_runtime).await,
            }
        };
        // Where the server does not answer, the slot in the pool must not be
        // lost with it (G4, H3). Closing a database in memory would destroy it,
        // so there the call has as long as it takes. Shown by
        // `h3_a_transaction_dropped_in_a_long_statement_frees_its_slot_in_time`.
        let finished = match release_timeout {
            None => Some(ending.await),
            Some(limit) => timeout(limit, ending).await.ok(),
        };
        match finished {
            Some(finished) => drop(unfinished.0.take().and_then(|core| finish(&core, finished))),
            None => {
                // Otherwise a server that does not answer would have a line
                // written for each of its connections.
                let Some(suppressed) = pool.lines.next_line("did not end", 1) else {
                    return;
                };
                tracing::warn!(target: "tower_sea_orm::session", suppressed, "closed a connection whose statement did not end within the release timeout");
            }
        }
    });
}

/// Stands for a call in a task. Whatever ends that task early, the session must
/// not wait for the call.
struct Unfinished(Option<Arc<Core>>);

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(core) = self.0.take() {
            lose(&core);
        }
    }
}
