//! [`Call`]: a running driver call, seen from the handler that waits for it.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use sea_orm::DbErr;

use super::{
    core::Core,
    running::{CallFuture, Manner},
    slot::Slot,
};
use crate::{connection::Output, telemetry};

/// Polls the session's running call. The call itself lives in the session's slot, so that the end of the
/// request can take it away, and so that it goes on when its handler has stopped polling.
pub(super) struct Call {
    core: Arc<Core>,
    id: u64,
    done: bool,
    streams: bool,
    #[cfg_attr(not(feature = "stream"), allow(dead_code))] // only a stream has one
    open: Option<OpenStream>,
}

/// Stands for a stream that may still be read; other statements are refused meanwhile.
pub(super) struct OpenStream(pub(super) Arc<Core>);

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.lock().streaming = false;
    }
}

/// Where the call is.
enum Whereabouts {
    /// In the slot, to be polled here.
    Here(CallFuture),
    /// The session's worker polls it.
    Driven,
    /// It has ended.
    Ended(Result<Output, DbErr>),
    /// The request has ended, or the connection was taken away, and the call went along.
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

    /// What keeps others out while a stream's reader may have rows to read, also after the call's end.
    #[cfg(feature = "stream")]
    pub(super) fn take_open(&mut self) -> Option<OpenStream> {
        self.open.take()
    }

    fn look(&self) -> Whereabouts {
        let mut state = self.core.lock();
        match &mut state.slot {
            Slot::Running(running) if running.call == self.id && running.is_driven => {
                Whereabouts::Driven
            }
            Slot::Running(running) if running.call == self.id => running
                .future
                .take()
                .map_or(Whereabouts::Gone, Whereabouts::Here),
            _ => state
                .take_output(self.id)
                .map_or(Whereabouts::Gone, Whereabouts::Ended),
        }
    }

    /// Has the worker wake `waker` at the call's end; false if the worker does not poll it any more.
    fn wait_for_worker(&self, waker: Waker) -> bool {
        let mut state = self.core.lock();
        let Slot::Running(running) = &mut state.slot else {
            return false;
        };
        if running.call != self.id || !running.is_driven {
            return false;
        }
        let before = running.waker.replace(waker);
        drop(state);
        drop(before);
        true
    }
}

impl Future for Call {
    type Output = Result<Output, DbErr>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let result = loop {
            match self.look() {
                Whereabouts::Driven if self.wait_for_worker(cx.waker().clone()) => {
                    return Poll::Pending;
                }
                Whereabouts::Driven => {}
                Whereabouts::Ended(output) => break Some(output),
                Whereabouts::Gone => break None,
                // If this poll panics, the future unwinds with the connection in it, and `Drop` finds the slot
                // without a future.
                Whereabouts::Here(mut future) => match future.as_mut().poll(cx) {
                    Poll::Ready(finished) => break self.core.finish(finished),
                    Poll::Pending if self.core.put_back(future, Some(cx.waker().clone())) => {
                        return Poll::Pending;
                    }
                    Poll::Pending => break None,
                },
            }
        };
        self.done = true;
        Poll::Ready(result.unwrap_or_else(|| Err(self.core.closed())))
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let mut state = self.core.lock();
        if let Some(output) = state.take_output(self.id) {
            drop(state);
            if let Err(error) = output
                && self.streams
            {
                telemetry::stream_failed_unheard(&error);
            }
            return;
        }
        let Slot::Running(running) = &mut state.slot else {
            return;
        };
        if running.call != self.id || running.manner == Manner::Draining {
            return;
        }
        if let Some(stop) = &running.stop {
            stop.when_dropped();
        }
        if running.is_driven && running.future.is_none() {
            // The worker polls it at this moment, and leaves it behind afterwards.
            running.is_left = true;
            return;
        }
        let was_driven = running.is_driven;
        let leave = running.leave();
        let future = running.future.take();
        drop(state);
        if was_driven {
            self.core.line().wake_worker();
        }
        match future {
            Some(future) => self.core.leave_behind(future, leave),
            // Polling it panicked: the connection went with it.
            None => self.core.break_running(),
        }
    }
}

impl Core {
    /// Puts a call that is not done back into the slot; false if it was left behind instead, because the
    /// session is over or its own future was dropped meanwhile.
    pub(super) fn put_back(self: &Arc<Self>, future: CallFuture, mut waker: Option<Waker>) -> bool {
        let mut state = self.lock();
        let is_over = state.phase.is_over();
        let Slot::Running(running) = &mut state.slot else {
            return false;
        };
        if is_over || running.is_left {
            let leave = running.leave();
            let owner = running.waker.take();
            drop(state);
            self.leave_behind(future, leave);
            if let Some(owner) = owner {
                owner.wake();
            }
            return false;
        }
        running.future = Some(future);
        if waker.is_some() {
            std::mem::swap(&mut running.waker, &mut waker);
        }
        let is_wanted = std::mem::take(&mut running.is_wanted);
        drop(state);
        if is_wanted {
            self.line().wake_worker();
        }
        true
    }
}
