//! Work that waits for its turn: a job of the session's [`Worker`].

use std::{
    future::{Future, ready},
    sync::Arc,
};

use futures_util::future::BoxFuture;
use sea_orm::DbErr;
use tokio::{runtime::Handle, sync::oneshot};

use super::{
    core::{Core, Turn},
    stack::Caller,
    turns::Work,
    worker::Worker,
};

/// A job's place in the line. Dropped, the job leaves it.
struct Queued {
    core: Arc<Core>,
    id: u64,
}

/// Does `work` in a turn: now, or by the worker in the order of the first polls.
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

/// Puts `work` behind what waits, to be begun in a turn of `caller`. The returned future only waits for its result.
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
        // There can be no task. That is so with a mock only, whose work is done at the first poll.
        return Box::pin(work);
    };
    // A job rather than a future that waits here: this one may be kept and never polled again, and whatever came
    // behind it would wait for ever.
    let (sender, receiver) = oneshot::channel();
    let job: Work = Box::pin(async move {
        // The receiver is gone if the future was dropped while its job was at work; the result's own `Drop` then does
        // what is due, as for a `Call`.
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
        // Not before: dropped with this future, it takes back a job whose turn has not come.
        drop(queued);
        // Jobs are dropped undone when the session ends, or when their runtime does.
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

/// Has the worker poll the running call, whose own future may not be polled any more.
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
