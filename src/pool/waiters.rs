//! [`Waiters`]: the first-in-first-out queue of those who wait for a connection.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
};

use sea_orm::TransactionOptions;
use tokio::{runtime::Handle, sync::oneshot};

use super::holder::{Holder, identity};
use crate::error::Error;

/// The end of a waiter's channel at which it waits.
pub(super) type Receiver<T> = oneshot::Receiver<Result<T, Error>>;

/// A queue for values of type `T`.
pub(super) struct Waiters<T> {
    queue: VecDeque<Waiter<T>>,
    /// About how many in the queue have given up; they are swept out when they
    /// are the majority.
    gone: usize,
    /// The ones swept out. With a waiter goes the waker of its task, which may
    /// be user code: they must not be dropped under the lock that guards this
    /// queue.
    discarded: Vec<Waiter<T>>,
    next_id: u64,
}

/// The reason for which a session wants a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Claim {
    /// It has none.
    First,
    /// It has lent the one that it had: it is not turned away for want of room
    /// in the queue.
    Return,
    /// Its connection is lost, and it goes on with another, before those who
    /// have none.
    Another,
}

/// A request to wait.
pub(super) struct Applicant {
    pub(super) runtime: Handle,
    /// The request that waits, if it is one that has a session already.
    pub(super) request: Option<Arc<dyn Holder>>,
    /// The request holds a connection already.
    pub(super) holds: bool,
    /// It was let in before, and has lent its connection meanwhile.
    // Unlike one that `holds`, it goes before no other: it is only not turned
    // away.
    pub(super) returns: bool,
    /// The first that it does is to begin a transaction with these options.
    pub(super) begins: Option<TransactionOptions>,
}

pub(super) struct Waiter<T> {
    pub(super) id: u64,
    sender: oneshot::Sender<Result<T, Error>>,
    pub(super) applicant: Applicant,
}

// By hand, because a derived one would ask `T` to be `Default`.
impl<T> Default for Waiters<T> {
    fn default() -> Self {
        Self {
            queue: VecDeque::new(),
            gone: 0,
            discarded: Vec::new(),
            next_id: 0,
        }
    }
}

impl<T> Waiters<T> {
    /// Joins the queue at its end. A request that holds a connection goes
    /// before those that do not: behind them it would wait for newcomers that
    /// become the next holders.
    pub(super) fn join(&mut self, applicant: Applicant) -> Receiver<T> {
        // A lease is never lost between the two: one that is not taken any more
        // comes back as the error of `send`, and one that was sent gives itself
        // back when the channel drops it.
        let (sender, receiver) = oneshot::channel();
        // Behind those of its kind, who are served first come, first served
        // among themselves.
        let place = if applicant.holds {
            // Strictly first come, first served, each connection that comes
            // free would go to one that then waits for a second, until all of
            // them do (H11;
            // `a_session_store_on_the_same_pool_costs_no_request`).
            let newcomer = |waiter: &Waiter<T>| !waiter.applicant.holds;
            self.queue.iter().position(newcomer)
        } else {
            None
        };
        self.next_id += 1;
        let waiter = Waiter {
            id: self.next_id,
            sender,
            applicant,
        };
        self.queue.insert(place.unwrap_or(self.queue.len()), waiter);
        receiver
    }

    /// Returns those that still wait, the next one first.
    pub(super) fn live(&self) -> impl Iterator<Item = &Waiter<T>> {
        // Looked at and not kept as a number: a receiver may be dropped at any
        // moment, under no lock of this pool's.
        self.queue.iter().filter(|waiter| waiter.is_live())
    }

    /// Returns the newest that has ever joined.
    pub(super) fn newest(&self) -> u64 {
        self.next_id
    }

    pub(super) fn is_any(&self) -> bool {
        self.live().next().is_some()
    }

    /// Returns about how many wait, and exactly how many where `bound` decides.
    pub(super) fn count(&mut self, bound: usize) -> usize {
        let length = self.queue.len();
        // One that is far longer is swept by those who leave: a sweep at each
        // call would make a crowd quadratic.
        if self.gone > 0 && length >= bound && length <= bound.saturating_mul(2) {
            self.sweep();
        }
        self.queue.len().saturating_sub(self.gone)
    }

    /// Takes the first one that still waits.
    pub(super) fn pop(&mut self) -> Option<Waiter<T>> {
        // Those who gave up are still in it, because a receiver that is dropped
        // does not know its place.
        while let Some(waiter) = self.queue.pop_front() {
            if waiter.is_live() {
                return Some(waiter);
            }
            // `left` may not have been called for it yet and will count it
            // then, so `gone` is approximate.
            self.discarded.push(waiter);
            self.gone = self.gone.saturating_sub(1);
        }
        None
    }

    /// Notes that one has given up; its receiver is closed.
    pub(super) fn left(&mut self) {
        self.gone += 1;
        // Not each by itself: ten thousand that give up at once would each look
        // through all others.
        if self.gone * 2 > self.queue.len() {
            self.sweep();
        }
    }

    pub(super) fn remove(&mut self, id: u64) -> Option<Waiter<T>> {
        let position = self.queue.iter().position(|waiter| waiter.id == id)?;
        self.queue.remove(position)
    }

    /// Takes the newest that waits for one of `requests`, if something waits
    /// for each of them.
    pub(super) fn remove_newest_if_all_wait(
        &mut self,
        requests: &[Arc<dyn Holder>],
    ) -> Option<Waiter<T>> {
        let waiting: HashSet<_> = self.live().filter_map(Waiter::request).collect();
        let requests: HashSet<_> = requests.iter().map(identity).collect();
        // One that does not wait goes on by itself, and its connection comes
        // back.
        if !requests.is_subset(&waiting) {
            return None;
        }
        let is_of_one = |waiter: &Waiter<T>| {
            let request = waiter.request().filter(|_| waiter.is_live());
            request.is_some_and(|request| requests.contains(&request))
        };
        let newest = self.queue.iter().rposition(is_of_one)?;
        self.queue.remove(newest)
    }

    pub(super) fn take_all(&mut self) -> VecDeque<Waiter<T>> {
        std::mem::take(&mut self.queue)
    }

    /// Takes those that were swept out, to be dropped when the lock is free
    /// again.
    pub(super) fn take_discarded(&mut self) -> Vec<Waiter<T>> {
        std::mem::take(&mut self.discarded)
    }

    fn sweep(&mut self) {
        // Not `retain`, which drops what it removes, and that must not happen
        // under the lock.
        for _ in 0..self.queue.len() {
            let Some(waiter) = self.queue.pop_front() else {
                break;
            };
            if waiter.is_live() {
                self.queue.push_back(waiter);
            } else {
                self.discarded.push(waiter);
            }
        }
        self.gone = 0;
    }
}

impl<T> Waiter<T> {
    fn is_live(&self) -> bool {
        !self.sender.is_closed()
    }

    /// Returns what tells its request from others.
    fn request(&self) -> Option<usize> {
        self.applicant.request.as_ref().map(identity)
    }

    /// Answers it, and returns the answer if it has given up. Wakes its task:
    /// not to be called under a lock.
    pub(super) fn answer(self, answer: Result<T, Error>) -> Result<(), Result<T, Error>> {
        self.sender.send(answer)
    }
}
