//! [`Worker`]: the task that keeps a session going while one of its futures waits for another.
//!
//! It polls the running call, whose own future may not be polled any more, and then does what is in the
//! line, job by job. A session whose futures never wait for one another has none.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use super::{
    core::Core,
    running::Manner,
    slot::Slot,
    turn::{Head, Work},
};
use crate::pool;

pub(super) struct Worker {
    core: Arc<Core>,
    done: bool,
}

/// How the running call stands.
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
        core.line().register_worker(cx.waker().clone());
        loop {
            let progress = core.drive_call(cx);
            if matches!(progress, Progress::Ended) {
                continue;
            }
            match core.line().head() {
                Some(head) => ready!(core.poll_head(head, cx)),
                None if matches!(progress, Progress::Pending) => return Poll::Pending,
                None if core.line().rest() => {
                    self.done = true;
                    return Poll::Ready(());
                }
                None => {}
            }
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if !self.done {
            self.core.line().lose_worker();
            self.core.release_call();
        }
    }
}

impl Core {
    /// Polls the running call in its future's place. A stream is made by its reader alone.
    fn drive_call(self: &Arc<Self>, cx: &mut Context<'_>) -> Progress {
        let mut state = self.lock();
        let Slot::Running(running) = &mut state.slot else {
            return Progress::None;
        };
        if !matches!(running.manner, Manner::Statement | Manner::Raw) {
            return Progress::None;
        }
        let Some(mut future) = running.future.take() else {
            // Its own future polls it at this moment.
            running.is_wanted = true;
            return Progress::Pending;
        };
        running.is_driven = true;
        drop(state);
        match future.as_mut().poll(cx) {
            Poll::Ready(finished) => {
                self.finish(finished);
                Progress::Ended
            }
            Poll::Pending => {
                self.put_back(future, None);
                Progress::Pending
            }
        }
    }

    /// Polls the first job, in the name of its request.
    fn poll_head(&self, head: Head, cx: &mut Context<'_>) -> Poll<()> {
        let Head { id, work, request } = head;
        let mut work: Work = work;
        let entered = request.map(pool::enter);
        let polled = work.as_mut().poll(cx);
        let left = match polled {
            Poll::Ready(()) => {
                self.line().remove(id);
                Some(work)
            }
            Poll::Pending => self.line().put_back(id, work),
        };
        let gone = left.is_some();
        drop(left);
        drop(entered);
        if gone { Poll::Ready(()) } else { Poll::Pending }
    }

    /// The worker has gone before its time: the call is its own future's again.
    fn release_call(self: &Arc<Self>) {
        let mut state = self.lock();
        let Slot::Running(running) = &mut state.slot else {
            return;
        };
        if !std::mem::take(&mut running.is_driven) {
            return;
        }
        let waker = running.waker.take();
        let is_lost = running.future.is_none();
        drop(state);
        if is_lost {
            // Polling it panicked.
            self.break_running();
        }
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}
