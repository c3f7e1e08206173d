//! [`Background`]: a task that runs only while there is something to do.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::{runtime::Handle, sync::Notify};

/// The work of a background task.
pub(super) trait Work: Send + 'static {
    /// Does what is due, then waits until more may be due. Returns false when
    /// nothing is left to do.
    fn step(&mut self) -> impl Future<Output = bool> + Send;

    /// Returns whether something has been left to do since the last step.
    fn is_pending(&self) -> bool;

    /// Cleans up after the task's runtime has shut down half-way.
    fn abandon(&mut self);
}

/// At most one running task, started by the first caller that needs it.
#[derive(Default)]
pub(super) struct Background {
    // Sequentially consistent everywhere: the task says that it rests and then
    // looks for work, others add work and then look here. With less, both could
    // miss the other.
    is_running: AtomicBool,
    bell: Notify,
}

impl Background {
    /// Starts the task on `runtime`, and returns false if it is running
    /// already. Leave it something to do *before* this call: the task looks
    /// once more after it has said that it rests.
    pub(super) fn start<W: Work>(
        self: &Arc<Self>,
        runtime: &Handle,
        work: impl FnOnce() -> W,
    ) -> bool {
        // A load before the swap: every session takes this path, and a swap
        // would move the cache line between processors.
        if self.is_running.load(Ordering::SeqCst) || self.is_running.swap(true, Ordering::SeqCst) {
            return false;
        }
        // Made before the task: a runtime that is shutting down drops the task
        // unpolled, and only what exists by then is dropped with it. Shown by
        // `another_watcher_begins_where_the_last_one_ended_with_its_runtime`.
        let task = Task {
            background: self.clone(),
            work: work(),
            is_done: false,
        };
        runtime.spawn(task.run());
        true
    }

    /// Wakes the task, or lets its next wait for the bell end at once.
    pub(super) fn ring(&self) {
        // `notify_one` keeps its permit, so that a ring between a look and the
        // wait is not lost.
        self.bell.notify_one();
    }

    /// Waits for [`ring`](Self::ring).
    pub(super) async fn rung(&self) {
        self.bell.notified().await;
    }
}

struct Task<W: Work> {
    background: Arc<Background>,
    work: W,
    is_done: bool,
}

impl<W: Work> Task<W> {
    async fn run(mut self) {
        let is_running = &self.background.is_running;
        loop {
            while self.work.step().await {}
            is_running.store(false, Ordering::SeqCst);
            // Work left before the store was left to this task, unless another
            // task has been started since.
            if !self.work.is_pending() || is_running.swap(true, Ordering::SeqCst) {
                break;
            }
        }
        self.is_done = true;
    }
}

impl<W: Work> Drop for Task<W> {
    fn drop(&mut self) {
        if !self.is_done {
            // First, so that what is left from here on starts another task.
            self.background.is_running.store(false, Ordering::SeqCst);
            self.work.abandon();
        }
    }
}
