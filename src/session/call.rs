//! [`Call`]: a running driver call, seen from the handler that waits for it.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use sea_orm::DbErr;

use super::{core::Core, running::Manner, slot::Slot};
use crate::connection::Output;

/// Polls the session's running call. The call itself lives in the session's slot, so that the
/// end of the request can take it away from a handler that has stopped polling.
pub(super) struct Call {
    core: Arc<Core>,
    id: u64,
    done: bool,
}

impl Call {
    pub(super) fn new(core: Arc<Core>, id: u64) -> Self {
        Self { core, id, done: false }
    }
}

impl Future for Call {
    type Output = Result<Output, DbErr>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let future = match &mut self.core.lock().slot {
            Slot::Running(running) if running.call == self.id => running.future.take(),
            _ => None,
        };
        let Some(mut future) = future else {
            // The request has ended, or the connection was taken away, and the call went along.
            self.done = true;
            return Poll::Ready(Err(self.core.closed()));
        };
        // If this poll panics, the future unwinds with the connection in it, and `Drop` finds the
        // slot without a future.
        match future.as_mut().poll(cx) {
            Poll::Ready(finished) => {
                self.done = true;
                Poll::Ready(self.core.finish(finished))
            }
            Poll::Pending => {
                let mut state = self.core.lock();
                let over = state.is_over();
                if let Slot::Running(running) = &mut state.slot {
                    if over {
                        let leave = running.leave();
                        drop(state);
                        self.done = true;
                        self.core.leave_behind(future, leave);
                        return Poll::Ready(Err(self.core.closed()));
                    }
                    running.future = Some(future);
                    running.waker = Some(cx.waker().clone());
                }
                Poll::Pending
            }
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let mut state = self.core.lock();
        let Slot::Running(running) = &mut state.slot else { return };
        if running.call != self.id || running.manner == Manner::Draining {
            return;
        }
        if let Some(stop) = &running.stop {
            stop.when_dropped();
        }
        let leave = running.leave();
        let future = running.future.take();
        drop(state);
        match future {
            Some(future) => self.core.leave_behind(future, leave),
            // Polling it panicked: the connection went with it.
            None => self.core.break_running(),
        }
    }
}
