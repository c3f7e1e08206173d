//! Work that waits for its turn, as a job; and [`Worker`]: the task that keeps
//! a session going while one of its futures waits for another.
//!
//! It polls the running call, whose own future may not be polled any more, and
//! then does the pending jobs, one after the other. A session whose futures
//! never wait for one another has none.

use std::{
    future::{Future, ready},
    pin::Pin,
    sync::Arc,
    task::{self, Context, Poll},
};

use futures_util::future::BoxFuture;
use sea_orm::DbErr;
use tokio::{runtime::Handle, sync::oneshot};

use super::{
    call::return_call,
    core::{Core, Turn},
    finish::{finish, lose},
    slot::{CallKind, PolledBy, Slot},
    stack::Caller,
    turns::{Head, Work},
};
use crate::pool;

/// A job's place in the line. Dropped, the job leaves it.
struct Queued {
    core: Arc<Core>,
    id: u64,
}

/// Does `work` in a turn: now, or by the worker in the order of the first
/// polls.
pub(super) async fn in_turn<T: Send + 'static>(
    core: &Arc<Core>,
    work: impl FnOnce(&Arc<Core>, Turn) -> Result<T, DbErr> + Send + 'static,
) -> Result<T, DbErr> {
    if let Some(turn) = core.try_turn() {
        // Nothing waits, which is the rule: no task, no channel, no allocation.
        return work(core, turn);
    }
    enqueue(core, Caller::Session, |core, turn| ready(work(&core, turn))).await
}

/// Puts `work` behind what waits, to be begun in a turn of `caller`. The
/// returned future only waits for its result.
pub(super) fn enqueue<T, F>(
    core: &Arc<Core>,
    caller: Caller,
    work: impl FnOnce(Arc<Core>, Turn) -> F + Send + 'static,
) -> BoxFuture<'static, Result<T, DbErr>>
where
    T: Send + 'static,
    F: Future<Output = Result<T, DbErr>> + Send + 'static,
{
    #[cfg(feature = "_sqlx")]
    if super::polled::is_polled_for(core) {
        // The turn belongs to that code until it ends.
        let error = crate::error::Kind::RawRunning.into_db_err();
        return Box::pin(ready(Err(error)));
    }
    let this = core.clone();
    let work = async move {
        let turn = this.turn(caller).await?;
        work(this, turn).await
    };
    let Some(runtime) = core.runtime() else {
        // There can be no task. That is so with a mock only, whose work is done
        // at the first poll.
        return Box::pin(work);
    };
    // A job rather than a future that waits here: this one may be kept and
    // never polled again, and whatever came behind it would wait for ever.
    // Shown by `an_unpolled_first_statement_does_not_block_the_session`.
    let (sender, receiver) = oneshot::channel();
    let job: Work = Box::pin(async move {
        // The receiver is gone if the future was dropped while its job was at
        // work; the result's own `Drop` then does what is due, as for a `Call`.
        let _ = sender.send(work.await);
    });
    let queued = core.turns.join(job).map(|id| Queued {
        core: core.clone(),
        id,
    });
    start_worker(core, &runtime);
    let core = core.clone();
    Box::pin(async move {
        let result = receiver.await;
        // Not before: dropped with this future, it takes back a job whose turn
        // has not come.
        drop(queued);
        // Jobs are dropped undone when the session ends, or when their runtime
        // does.
        result.unwrap_or_else(|_| Err(core.closed_error()))
    })
}

/// Puts `work` behind what waits, without a future that waits for it.
pub(super) fn enqueue_detached(core: &Arc<Core>, work: impl Future<Output = ()> + Send + 'static) {
    let Some(runtime) = core.runtime() else {
        // The next statement does it first, or the end of the session.
        return;
    };
    if core.turns.join(Box::pin(work)).is_some() {
        start_worker(core, &runtime);
    }
}

/// Has the worker poll the running call, whose own future may not be polled any
/// more.
pub(super) fn drive(core: &Arc<Core>) {
    if let Some(runtime) = core.runtime() {
        start_worker(core, &runtime);
    }
}

fn start_worker(core: &Arc<Core>, runtime: &Handle) {
    if core.turns.needs_worker() {
        runtime.spawn(Worker::new(core.clone()));
    } else {
        core.turns.wake_worker();
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.core.turns.remove(self.id);
    }
}

pub(super) struct Worker {
    core: Arc<Core>,
    done: bool,
}

/// The result of polling the running call.
enum Progress {
    /// There is none for the worker.
    None,
    Pending,
    Ended,
}

impl Worker {
    pub(super) fn new(core: Arc<Core>) -> Self {
        Self { core, done: false }
    }
}

impl Future for Worker {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let core = self.core.clone();
        // Before the look at what there is to do, so that what comes after the
        // look wakes it.
        core.turns.register_worker(cx.waker().clone());
        loop {
            // The call first: a job waits for its turn, which the call has.
            let progress = drive_call(&core, cx);
            if matches!(progress, Progress::Ended) {
                continue;
            }
            match core.turns.head() {
                Some(head) => task::ready!(poll_head(&core, head, cx)),
                None if matches!(progress, Progress::Pending) => return Poll::Pending,
                None if core.turns.rest() => {
                    self.done = true;
                    return Poll::Ready(());
                }
                // A job has joined since the look.
                None => {}
            }
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Its runtime shuts down, or a job has panicked.
        if !self.done {
            self.core.turns.lose_worker();
            let_go(&self.core);
        }
    }
}

/// Polls the running call in its future's place. A stream is made by its reader
/// alone.
fn drive_call(core: &Arc<Core>, cx: &mut Context<'_>) -> Progress {
    let mut state = core.lock();
    let Slot::Running(running) = &mut state.slot else {
        return Progress::None;
    };
    // Driven from here, a stream would fill its buffer and wait for its reader
    // all the same.
    if running.kind == CallKind::Stream || running.polled_by == PolledBy::Task {
        return Progress::None;
    }
    let Some(mut future) = running.future.take() else {
        // Its own future polls it on another thread at this moment, and wakes
        // the worker if it is not done.
        running.polled_by = PolledBy::Owner { is_wanted: true };
        return Progress::Pending;
    };
    // Said under the lock: its own future, polled from here on, leaves a waker
    // instead of looking for the call. Shown by
    // `a_heartbeat_runs_while_a_statement_is_selected_by_reference`.
    running.polled_by = PolledBy::Worker { is_left: false };
    drop(state);
    // Under no lock: raw code is user code, and may use the session.
    match future.as_mut().poll(cx) {
        Poll::Ready(finished) => {
            // Its output is kept for its own future, or dropped if that is
            // gone.
            finish(core, finished);
            Progress::Ended
        }
        Poll::Pending => {
            // Without a waker of its own: the future that waits for it has left
            // one, and the task is polled by its context's.
            return_call(core, future, None);
            Progress::Pending
        }
    }
}

/// Polls the first job, in the name of its request.
fn poll_head(core: &Core, head: Head, cx: &mut Context<'_>) -> Poll<()> {
    let Head {
        id,
        mut work,
        request,
    } = head;
    let entered = request.map(pool::enter);
    let polled = work.as_mut().poll(cx);
    let left = match polled {
        Poll::Ready(()) => {
            core.turns.remove(id);
            Some(work)
        }
        Poll::Pending => core.turns.return_job(id, work),
    };
    let is_gone = left.is_some();
    // The values that the job has captured are dropped in the name of its
    // request, too.
    drop(left);
    drop(entered);
    if is_gone {
        Poll::Ready(())
    } else {
        Poll::Pending
    }
}

/// Returns the call to its own future when the worker goes before its time.
fn let_go(core: &Arc<Core>) {
    let mut state = core.lock();
    let Slot::Running(running) = &mut state.slot else {
        return;
    };
    if !running.is_polled_by_worker() {
        return;
    }
    running.polled_by = PolledBy::Owner { is_wanted: false };
    let waker = running.waker.take();
    let is_lost = running.future.is_none();
    drop(state);
    if is_lost {
        // Polling it panicked.
        lose(core);
    }
    if let Some(waker) = waker {
        waker.wake();
    }
}
