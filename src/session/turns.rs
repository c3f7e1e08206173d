//! [`Turns`]: the queue for the session's connection.
//!
//! A future that has to wait is not given the turn, since it may never be
//! polled again. Its work becomes a job, and a worker carries the jobs out in
//! order, whether their futures are polled or not.

use std::{
    collections::VecDeque,
    future::Future,
    mem,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Poll, Waker},
};

use crate::pool::{self, Holder};

/// The queue for the session's connection: one user at a time, the others in
/// the order of their first polls.
///
/// Its lock may be taken while the session's own is held, never the other way
/// round.
// Not tokio's semaphore: its permit is assigned to the first waiter, which may
// never be polled again (G16).
#[derive(Default)]
pub(super) struct Turns(Mutex<State>);

#[derive(Default)]
struct State {
    is_taken: bool,
    is_closed: bool,
    /// `None` until something has to wait.
    // Boxed, because statements that run one after the other never need it.
    waiting: Option<Box<Waiting>>,
}

/// The waiting futures and jobs, and their worker.
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

/// The work of a future of the session, to be done when its turn comes.
struct Job {
    id: u64,
    /// `None` while the worker polls it.
    work: Option<Work>,
    /// The request that was polled when the job joined the line.
    request: Option<Arc<dyn Holder>>,
}

pub(super) type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The first job, taken out to be polled by the worker.
pub(super) struct Head {
    pub(super) id: u64,
    pub(super) work: Work,
    pub(super) request: Option<Arc<dyn Holder>>,
}

impl Turns {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the queue: jobs are dropped, and waiting futures are woken to see
    /// that.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        // Under the lock of `join`: a job either is dropped here or does not
        // join.
        state.is_closed = true;
        let Some(waiting) = &mut state.waiting else {
            return;
        };
        let (jobs, wakers) = (
            mem::take(&mut waiting.jobs),
            mem::take(&mut waiting.awaiting_turn),
        );
        // Cloned, not taken: the worker still has to see that there is nothing
        // left, and to go.
        let worker = waiting.worker.clone();
        drop(state);
        // User code, which may use the session as it is dropped.
        drop(jobs);
        wakers.into_iter().chain(worker).for_each(Waker::wake);
    }

    pub(super) fn pass_on(&self) {
        let mut state = self.lock();
        state.is_taken = false;
        // All of them: one that was woken alone, and is not polled any more,
        // would keep the turn from the others.
        let wakers = state.take_wakers();
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Wakes the futures that wait for the turn, to check whether they still
    /// may.
    pub(super) fn look_again(&self) {
        let wakers = self.lock().take_wakers();
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Takes the turn if it is free and no job waits for it.
    pub(super) fn try_take(&self) -> bool {
        // A job that waits is older than a caller that has just come: it would
        // starve behind new ones.
        self.take_if(|state| !state.is_any_job())
    }

    /// Takes the turn if it is free, for a job or for the end of the request,
    /// before the jobs that wait.
    pub(super) fn try_take_before_jobs(&self) -> bool {
        // A job is in the line itself, and would wait behind itself.
        self.take_if(|_| true)
    }

    fn take_if(&self, may_take: impl FnOnce(&State) -> bool) -> bool {
        let mut state = self.lock();
        let is_free = !state.is_taken && !state.is_closed && may_take(&state);
        state.is_taken |= is_free;
        is_free
    }

    /// Takes the turn, or has `waker` woken when it is free.
    pub(super) fn take_or_wait(&self, waker: Waker) -> Poll<Result<(), Closed>> {
        let mut state = self.lock();
        if state.is_closed {
            return Poll::Ready(Err(Closed));
        }
        if !state.is_taken {
            state.is_taken = true;
            return Poll::Ready(Ok(()));
        }
        // A future is polled for other reasons as well, and would leave a waker
        // behind each time.
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
            // Cloned, and woken without the lock: a waker is the runtime's
            // code.
            .and_then(|waiting| waiting.worker.clone());
        if let Some(worker) = worker {
            worker.wake();
        }
    }

    pub(super) fn register_worker(&self, waker: Waker) {
        // Taken out of the lock to be dropped: a waker is the runtime's code.
        let before = self.lock().waiting().worker.replace(waker);
        drop(before);
    }

    /// Takes the first job out, to be polled by the worker.
    pub(super) fn head(&self) -> Option<Head> {
        let mut state = self.lock();
        let Job { id, work, request } = state.waiting.as_mut()?.jobs.front_mut()?;
        Some(Head {
            id: *id,
            // It leaves the lock to be polled, and its entry keeps its place in
            // the line.
            work: work.take()?,
            request: request.clone(),
        })
    }

    /// Puts a job back that is not done; returns it if it has been removed
    /// meanwhile.
    pub(super) fn return_job(&self, id: u64, work: Work) -> Option<Work> {
        let mut state = self.lock();
        let Some(job) = state.waiting().jobs.iter_mut().find(|job| job.id == id) else {
            // Its future was dropped while the worker polled it. The caller
            // drops it, under no lock.
            return Some(work);
        };
        job.work = Some(work);
        None
    }

    pub(super) fn remove(&self, id: u64) {
        let mut state = self.lock();
        let waiting = state.waiting();
        let position = waiting.jobs.iter().position(|job| job.id == id);
        // Its turn has not come, so that nothing of it is sent
        // (`a_statement_dropped_before_its_turn_is_not_sent`).
        let job = position.and_then(|position| waiting.jobs.remove(position));
        // The job behind it may be the first now. Of a job that is gone
        // already, the worker knows.
        let worker = waiting.worker.clone().filter(|_| job.is_some());
        drop(state);
        drop(job);
        if let Some(worker) = worker {
            worker.wake();
        }
    }

    /// Returns whether a worker has to be started; from then on there is one.
    pub(super) fn needs_worker(&self) -> bool {
        let mut state = self.lock();
        // Said before the task is there: of two callers at the same time, one
        // starts it.
        !state.is_closed && !mem::replace(&mut state.waiting().has_worker, true)
    }

    /// Lets the worker go if there is nothing to do.
    pub(super) fn rest(&self) -> bool {
        // Looked at and said under one lock: a job that joins afterwards finds
        // no worker, and starts another one.
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

    /// Drops the jobs of a worker that was dropped before its end, for example
    /// with its runtime.
    pub(super) fn lose_worker(&self) {
        let mut state = self.lock();
        let waiting = state.waiting();
        waiting.has_worker = false;
        // Nothing would poll them any more; their futures see the closed
        // channel, and return an error.
        let (jobs, waker) = (mem::take(&mut waiting.jobs), waiting.worker.take());
        drop(state);
        drop((jobs, waker));
    }

    /// Puts `work` behind what is there, in the name of the request that is
    /// being polled; `None` if there are no more turns.
    pub(super) fn join(&self, work: Work) -> Option<u64> {
        // Kept, because the worker's task belongs to no request: what the job
        // opens has to be attributed to this one.
        let request = pool::current();
        let mut state = self.lock();
        if state.is_closed {
            return None;
        }
        let waiting = state.waiting();
        waiting.next += 1;
        let id = waiting.next;
        // In the order of the first polls: a handler that makes two statements
        // and awaits them in turn has them run in that order
        // (`statements_of_a_session_run_in_the_order_of_their_first_polls`).
        waiting.jobs.push_back(Job {
            id,
            work: Some(work),
            request,
        });
        Some(id)
    }
}

/// There are no more turns.
pub(super) struct Closed;

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
            .map(|waiting| mem::take(&mut waiting.awaiting_turn))
            .unwrap_or_default()
    }
}
