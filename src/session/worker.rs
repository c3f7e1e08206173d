//! [`Worker`]: the task that keeps a session going while one of its futures waits for another.
//!
//! It polls the running call, whose own future may not be polled any more, and then does the pending jobs, one
//! after the other. A session whose futures never wait for one another has none.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use super::{
    call::return_call,
    core::Core,
    finish::{finish, lose},
    slot::{CallKind, PolledBy, Slot},
    turns::Head,
};
use crate::pool;

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
        // Before the look at what there is to do, so that what comes after the look wakes it.
        core.turns.register_worker(cx.waker().clone());
        loop {
            // The call first: a job waits for its turn, which the call has.
            let progress = drive_call(&core, cx);
            if matches!(progress, Progress::Ended) {
                continue;
            }
            match core.turns.head() {
                Some(head) => ready!(poll_head(&core, head, cx)),
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

/// Polls the running call in its future's place. A stream is made by its reader alone.
fn drive_call(core: &Arc<Core>, cx: &mut Context<'_>) -> Progress {
    let mut state = core.lock();
    let Slot::Running(running) = &mut state.slot else {
        return Progress::None;
    };
    // Driven from here, a stream would fill its buffer and wait for its reader all the same.
    if running.kind == CallKind::Stream || running.polled_by == PolledBy::Task {
        return Progress::None;
    }
    let Some(mut future) = running.future.take() else {
        // Its own future polls it on another thread at this moment, and wakes the worker if it is not done.
        running.polled_by = PolledBy::Owner { is_wanted: true };
        return Progress::Pending;
    };
    // Said under the lock: its own future, polled from here on, leaves a waker instead of looking for the call.
    running.polled_by = PolledBy::Worker { is_left: false };
    drop(state);
    // Under no lock: raw code is user code, and may use the session.
    match future.as_mut().poll(cx) {
        Poll::Ready(finished) => {
            // Its output is kept for its own future, or dropped if that is gone.
            finish(core, finished);
            Progress::Ended
        }
        Poll::Pending => {
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
    // The values that the job has captured are dropped in the name of its request, too.
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
    // Its own future polls it again, wherever that is.
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
