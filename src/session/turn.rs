//! [`Turn`]: the right to use the session's connection, and [`Line`]: those who wait for it.
//!
//! A future that has to wait is not given the turn, since it may never be polled again. Its work moves
//! into the line, and a [`Worker`] carries it out in order, whether the future is polled or not.

use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use futures_util::future::BoxFuture;
use sea_orm::DbErr;
use tokio::{runtime::Handle, sync::oneshot};

use super::{core::Core, stack::Who, worker::Worker};
use crate::{
    error::Kind,
    pool::{self, Holder},
};

/// Whose turn it is. Dropped, the turn passes on.
pub(super) struct Turn(Arc<Core>);

/// Who has the turn, and who comes next.
///
/// Its lock may be taken while the session's own is held, never the other way round.
#[derive(Default)]
pub(super) struct Line(Mutex<State>);

#[derive(Default)]
struct State {
    is_taken: bool,
    is_closed: bool,
    /// `None` until something has to wait.
    waiting: Option<Box<Waiting>>,
}

/// What waits, and who sees to it.
#[derive(Default)]
struct Waiting {
    /// Woken when the turn is free.
    awaiting_turn: Vec<Waker>,
    jobs: VecDeque<Job>,
    next: u64,
    /// There is a worker, which is woken when something has changed.
    has_worker: bool,
    worker: Option<Waker>,
}

/// What a future of the session has to do when its turn comes.
struct Job {
    id: u64,
    /// `None` while the worker polls it.
    work: Option<Work>,
    /// The request that was polled when the job joined the line.
    request: Option<Arc<dyn Holder>>,
}

pub(super) type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The first job, in the worker's hands.
pub(super) struct Head {
    pub(super) id: u64,
    pub(super) work: Work,
    pub(super) request: Option<Arc<dyn Holder>>,
}

/// A job's place in the line. Dropped, the job leaves it.
struct Place {
    core: Arc<Core>,
    id: u64,
}

impl Line {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// No more turns: what is in the line is dropped, and those who wait hear of it.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.is_closed = true;
        let Some(waiting) = &mut state.waiting else {
            return;
        };
        let (jobs, wakers) = (
            std::mem::take(&mut waiting.jobs),
            std::mem::take(&mut waiting.awaiting_turn),
        );
        let worker = waiting.worker.clone();
        drop(state);
        drop(jobs);
        wakers.into_iter().chain(worker).for_each(Waker::wake);
    }

    fn pass_on(&self) {
        let mut state = self.lock();
        state.is_taken = false;
        let wakers = state.take_wakers();
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Has those who wait for the turn look whether they still may.
    pub(super) fn look_again(&self) {
        let wakers = self.lock().take_wakers();
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Takes the turn if it is free. One that does not `wait_in_line` lets those pass who do.
    fn try_take(&self, waits_in_line: bool) -> bool {
        let mut state = self.lock();
        let is_free = !state.is_taken && !state.is_closed && (waits_in_line || !state.is_any_job());
        state.is_taken |= is_free;
        is_free
    }

    /// Takes the turn, or has `waker` woken when it is free.
    fn take_or_wait(&self, waker: Waker) -> Poll<Result<(), Kind>> {
        let mut state = self.lock();
        if state.is_closed {
            return Poll::Ready(Err(Kind::SessionClosed));
        }
        if !state.is_taken {
            state.is_taken = true;
            return Poll::Ready(Ok(()));
        }
        let awaiting_turn = &mut state.waiting().awaiting_turn;
        if !awaiting_turn.iter().any(|known| known.will_wake(&waker)) {
            awaiting_turn.push(waker);
        }
        Poll::Pending
    }

    /// Wakes the worker, if there is one.
    pub(super) fn wake_worker(&self) {
        let worker = self
            .lock()
            .waiting
            .as_ref()
            .and_then(|waiting| waiting.worker.clone());
        if let Some(worker) = worker {
            worker.wake();
        }
    }

    pub(super) fn register_worker(&self, waker: Waker) {
        let before = self.lock().waiting().worker.replace(waker);
        drop(before);
    }

    /// The first job, to be polled by the worker.
    pub(super) fn head(&self) -> Option<Head> {
        let mut state = self.lock();
        let Job { id, work, request } = state.waiting.as_mut()?.jobs.front_mut()?;
        Some(Head {
            id: *id,
            work: work.take()?,
            request: request.clone(),
        })
    }

    /// The worker has polled a job that is not done; one that has left the line comes back.
    pub(super) fn put_back(&self, id: u64, work: Work) -> Option<Work> {
        let mut state = self.lock();
        let Some(job) = state.waiting().jobs.iter_mut().find(|job| job.id == id) else {
            return Some(work);
        };
        job.work = Some(work);
        None
    }

    pub(super) fn remove(&self, id: u64) {
        let mut state = self.lock();
        let waiting = state.waiting();
        let position = waiting.jobs.iter().position(|job| job.id == id);
        let job = position.and_then(|position| waiting.jobs.remove(position));
        let worker = waiting.worker.clone().filter(|_| job.is_some());
        drop(state);
        drop(job);
        if let Some(worker) = worker {
            worker.wake();
        }
    }

    /// Whether a worker has to be started; from then on there is one.
    pub(super) fn needs_worker(&self) -> bool {
        let mut state = self.lock();
        !state.is_closed && !std::mem::replace(&mut state.waiting().has_worker, true)
    }

    /// Lets the worker go if there is nothing to do.
    pub(super) fn rest(&self) -> bool {
        let mut state = self.lock();
        if state.is_any_job() {
            return false;
        }
        let waiting = state.waiting();
        waiting.has_worker = false;
        let waker = waiting.worker.take();
        drop(state);
        drop(waker);
        true
    }

    /// The worker has gone before its time: nobody does what waits.
    pub(super) fn lose_worker(&self) {
        let mut state = self.lock();
        let waiting = state.waiting();
        waiting.has_worker = false;
        let (jobs, waker) = (std::mem::take(&mut waiting.jobs), waiting.worker.take());
        drop(state);
        drop((jobs, waker));
    }

    fn join(&self, work: Work) -> Option<u64> {
        let request = pool::current();
        let mut state = self.lock();
        if state.is_closed {
            return None;
        }
        let waiting = state.waiting();
        waiting.next += 1;
        let id = waiting.next;
        waiting.jobs.push_back(Job {
            id,
            work: Some(work),
            request,
        });
        Some(id)
    }
}

impl State {
    fn waiting(&mut self) -> &mut Waiting {
        self.waiting.get_or_insert_default()
    }

    fn is_any_job(&self) -> bool {
        self.waiting
            .as_ref()
            .is_some_and(|waiting| !waiting.jobs.is_empty())
    }

    fn take_wakers(&mut self) -> Vec<Waker> {
        self.waiting
            .as_mut()
            .map(|waiting| std::mem::take(&mut waiting.awaiting_turn))
            .unwrap_or_default()
    }
}

impl Core {
    /// The turn, if it is free and nothing is in the line.
    pub(super) fn try_turn(self: &Arc<Self>) -> Option<Turn> {
        self.line().try_take(false).then(|| Turn(self.clone()))
    }

    /// Waits for the turn: for the first job in the line, and for the end of the request.
    pub(super) async fn turn(self: &Arc<Self>, who: Who) -> Result<Turn, DbErr> {
        poll_fn(|cx| self.poll_turn(who, cx)).await
    }

    fn poll_turn(self: &Arc<Self>, who: Who, cx: &mut Context<'_>) -> Poll<Result<Turn, DbErr>> {
        if self.line().try_take(true) {
            return Poll::Ready(Ok(Turn(self.clone())));
        }
        match self.line().take_or_wait(cx.waker().clone()) {
            Poll::Ready(Ok(())) => return Poll::Ready(Ok(Turn(self.clone()))),
            Poll::Ready(Err(_)) => return Poll::Ready(Err(self.closed())),
            Poll::Pending => {}
        }
        // After the waker is in its place: whoever changes one of these wakes it.
        let mut state = self.lock();
        let refused = match who {
            Who::Settlement => None,
            _ if !state.phase.is_open() => Some(state.closed()),
            _ => state.streaming.then_some(Kind::StreamOpen),
        };
        drop(state);
        refused.map_or(Poll::Pending, |kind| Poll::Ready(Err(kind.into_db_err())))
    }

    /// Does `work` in a turn: now, or by the worker in the order of the first polls.
    pub(super) async fn in_turn<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Arc<Self>, Turn) -> Result<T, DbErr> + Send + 'static,
    ) -> Result<T, DbErr> {
        if let Some(turn) = self.try_turn() {
            return work(self, turn);
        }
        let core = self.clone();
        self.enqueue(async move {
            let turn = core.turn(Who::Session).await?;
            work(&core, turn)
        })
        .await
    }

    /// Puts `work` into the line, behind what is there. The returned future only waits for its result.
    pub(super) fn enqueue<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl Future<Output = Result<T, DbErr>> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, DbErr>> {
        #[cfg(feature = "_sqlx")]
        if super::raw::is_polled_for(self) {
            // The turn is the code's own until it ends.
            return Box::pin(std::future::ready(Err(Kind::RawRunning.into_db_err())));
        }
        let Some(runtime) = self.runtime() else {
            // No task can be had. That is so with a mock only, whose work is done at the first poll.
            return Box::pin(work);
        };
        let (sender, receiver) = oneshot::channel();
        let job: Work = Box::pin(async move {
            let _ = sender.send(work.await);
        });
        let place = self.line().join(job).map(|id| Place {
            core: self.clone(),
            id,
        });
        self.start_worker(&runtime);
        let core = self.clone();
        Box::pin(async move {
            let result = receiver.await;
            drop(place);
            result.unwrap_or_else(|_| Err(core.closed()))
        })
    }

    /// Puts `work` into the line that nothing waits for.
    pub(super) fn enqueue_detached(
        self: &Arc<Self>,
        work: impl Future<Output = ()> + Send + 'static,
    ) {
        let Some(runtime) = self.runtime() else {
            return;
        };
        if self.line().join(Box::pin(work)).is_some() {
            self.start_worker(&runtime);
        }
    }

    fn start_worker(self: &Arc<Self>, runtime: &Handle) {
        if self.line().needs_worker() {
            runtime.spawn(Worker::new(self.clone()));
        } else {
            self.line().wake_worker();
        }
    }

    /// Has a worker poll the running call, whose own future may not be polled any more.
    pub(super) fn drive(self: &Arc<Self>) {
        if let Some(runtime) = self.runtime() {
            self.start_worker(&runtime);
        }
    }

    fn runtime(&self) -> Option<Handle> {
        Handle::try_current()
            .ok()
            .or_else(|| self.lock().runtime.clone())
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.line().pass_on();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.core.line().remove(self.id);
    }
}
