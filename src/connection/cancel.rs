//! [`CancelHandle`]: all that is needed to have the server stop a connection's statement.
//!
//! Only a statement is ever stopped, never what the session does around it, and
//! never a COMMIT. The task that has it stopped still owns the connection,
//! waits for the answer and for the statement's end, and then has the
//! connection [absorb] a cancel that came too late.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

use futures_util::task::AtomicWaker;
use sea_orm::{DbBackend, DbErr};
use tokio::{sync::Notify, time::timeout};

use super::{
    driver::BackendId,
    link::{Link, SET_UP},
};
use crate::error::server;

/// How many bytes a slow network brings to the server before the server is
/// asked about a statement, and how many a second after that.
const SENT_AT_ONCE: usize = 16 * 1024;
const SENT_A_SECOND: usize = 8 * 1024;

/// The other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    /// The server: one process serves a connection for the connection's life.
    Server,
    /// A proxy, or unknown: a process serves the connection for one
    /// transaction. Before and after that it may serve another client
    /// (<https://github.com/pgbouncer/pgbouncer/issues/245>).
    Proxy,
}

/// The way to stop a statement.
#[derive(Debug)]
pub(crate) enum CancelTarget {
    /// A request to the server, on another connection.
    Server(BackendId),
    /// SQLite's progress handler, which has its signal already.
    Sqlite,
}

/// A connection whose running statement may have to be stopped.
#[derive(Default)]
pub(crate) struct CancelHandle {
    state: Mutex<Known>,
    /// Has SQLite stop at the next look.
    // The numbers below are compared with one another only, so that `Relaxed`
    // is enough.
    interrupt: Arc<AtomicBool>,
    /// Names the call that runs, or ran last.
    turn: AtomicU64,
    /// Counts the wakes of calls: each part of an answer that arrives wakes its
    /// call, and polling does not.
    wakes: AtomicU64,
    /// The task that polls the running call.
    waker: AtomicWaker,
    /// The call that was running at the last check for stalled statements.
    seen: AtomicU64,
    /// The call whose answer will not arrive.
    // By the call's number, so that the verdict is never a later call's.
    lost: AtomicU64,
    /// The running call is so large that sending it may take long.
    // Beside the time, which is under a lock: nearly no call is large, and no
    // other one takes it.
    is_large: AtomicBool,
    /// Until when a large call may be on its way.
    sending_until: Mutex<Option<Instant>>,
    told: Notify,
}

#[derive(Default)]
struct Known {
    /// The running call has lost its request.
    abandoned: bool,
    /// The call has come to its statement.
    working: bool,
    reach: Reach,
}

#[derive(Default)]
enum Reach {
    #[default]
    Unknown,
    Server {
        id: BackendId,
        /// Asked in the transaction that is open.
        inside: bool,
    },
    Sqlite,
    /// The server would not say.
    None,
}

impl CancelHandle {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call begins, and its request waits for it.
    pub(crate) fn prepare(&self) {
        self.lock().abandoned = false;
    }

    /// The running call has lost its request, and may be stopped.
    pub(crate) fn abandon(&self) {
        self.lock().abandoned = true;
        // It keeps the notice for a task that does not wait yet.
        self.told.notify_one();
    }

    fn is_abandoned(&self) -> bool {
        self.lock().abandoned
    }

    /// Waits until the running call may be stopped.
    pub(crate) async fn abandoned(&self) {
        // A call from before may have left its notice.
        while !self.is_abandoned() {
            self.told.notified().await;
        }
    }

    /// The way to stop the statement that runs right now; `None` if none does,
    /// or if it cannot be stopped.
    pub(crate) fn target(&self, peer: Peer) -> Option<CancelTarget> {
        let known = self.lock();
        if !known.working {
            return None;
        }
        match &known.reach {
            Reach::Sqlite => {
                // Still under the lock: the flag is for the statement that was
                // seen, not for one that begins meanwhile (G9).
                self.interrupt.store(true, Ordering::Relaxed);
                Some(CancelTarget::Sqlite)
            }
            // Behind a proxy, the process is another client's as soon as the
            // transaction has ended (H29;
            // `behind_a_sharing_proxy_no_innocent_statement_is_hit`).
            Reach::Server { id, inside } if peer == Peer::Server || *inside => {
                Some(CancelTarget::Server(id.clone()))
            }
            _ => None,
        }
    }

    /// The process that serves the connection, whatever runs on it.
    pub(crate) fn backend_id(&self, peer: Peer) -> Option<BackendId> {
        match &self.lock().reach {
            Reach::Server { id, inside } if peer == Peer::Server || *inside => Some(id.clone()),
            _ => None,
        }
    }

    /// The call that runs, or ran last.
    pub(crate) fn turn(&self) -> u64 {
        self.turn.load(Ordering::Relaxed)
    }

    pub(crate) fn wakes(&self) -> u64 {
        self.wakes.load(Ordering::Relaxed)
    }

    /// Returns whether this call was already running the last time this was
    /// asked.
    pub(crate) fn was_at(&self, turn: u64) -> bool {
        self.seen.swap(turn, Ordering::Relaxed) == turn
    }

    /// The answer of this call will not arrive: if it still runs, it ends when
    /// it is polled next. Returns whether that is news.
    pub(crate) fn lose(&self, turn: u64) -> bool {
        self.lost.swap(turn, Ordering::Relaxed) != turn
    }

    /// Returns whether the running call may still be on its way to the server,
    /// which then has nothing to do.
    pub(crate) fn may_be_sending(&self) -> bool {
        let is_sending = |until: Option<Instant>| until.is_none_or(|until| Instant::now() < until);
        self.is_large.load(Ordering::Relaxed) && is_sending(*self.sending())
    }

    fn sending(&self) -> MutexGuard<'_, Option<Instant>> {
        self.sending_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a call, which sends so many bytes, to its end; `None` if its answer
    /// is known to be lost.
    pub(super) fn unless_lost<F: Future>(
        self: Arc<Self>,
        mut call: Pin<&mut F>,
        size: usize,
    ) -> impl Future<Output = Option<F::Output>> {
        let is_large = size > SENT_AT_ONCE;
        if is_large {
            // While the server still receives, it says that it is idle, and
            // would be taken for one whose answer is lost (G17).
            let time = Duration::from_secs((size / SENT_A_SECOND) as u64);
            *self.sending() = Instant::now().checked_add(time);
        }
        self.is_large.store(is_large, Ordering::Relaxed);
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) + 1;
        // No `async` block: it would have room for all of this twice.
        poll_fn(move |cx| {
            // Before the poll: a wake during it must find the task.
            self.waker.register(cx.waker());
            let waker = Waker::from(self.clone());
            let ended = match call.as_mut().poll(&mut Context::from_waker(&waker)) {
                Poll::Ready(ended) => Some(ended),
                // Not before: an answer that has arrived is not lost.
                Poll::Pending if self.lost.load(Ordering::Relaxed) == turn => None,
                Poll::Pending => return Poll::Pending,
            };
            // Until the next call, the waker would keep the memory of the task
            // that has polled this one.
            drop(self.waker.take());
            Poll::Ready(ended)
        })
    }

    /// The running call has come to its statement, which may be stopped from
    /// here on. False if the call has lost its request already.
    pub(super) fn start_work(&self) -> bool {
        let mut known = self.lock();
        // Under one lock with `abandoned`, so that a call whose request has
        // gone meanwhile does not begin.
        known.working = !known.abandoned;
        known.working
    }

    pub(super) fn end_work(&self) {
        self.lock().working = false;
    }

    /// No transaction is open: behind a proxy, the process may serve another
    /// client.
    fn outside(&self) {
        let mut known = self.lock();
        if matches!(known.reach, Reach::Server { inside: true, .. }) {
            known.reach = Reach::Unknown;
        }
    }

    /// Returns whether the server is to be asked which process serves the
    /// connection.
    fn is_unknown(&self, peer: Peer, backend: DbBackend, inside: bool) -> bool {
        let proxied = peer == Peer::Proxy && backend != DbBackend::Sqlite;
        match &self.lock().reach {
            // A proxy for MySQL makes its clients' numbers up.
            Reach::Unknown => !proxied || inside && backend == DbBackend::Postgres,
            // An id from before the transaction is that of a process which may
            // serve another client by now (H29).
            Reach::Server { inside: false, .. } => {
                proxied && inside && backend == DbBackend::Postgres
            }
            _ => false,
        }
    }
}

impl Wake for CancelHandle {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Counted here and not in the poll: a heartbeat by `select!` polls all
        // the time, and nothing has arrived for it
        // (`a_statement_whose_answer_is_lost_is_an_error_that_closes`).
        self.wakes.fetch_add(1, Ordering::Relaxed);
        self.waker.wake();
    }
}

impl CancelHandle {
    /// Learns how to stop the connection's statements, if it is not known: one
    /// round trip.
    pub(super) async fn identify(&self, peer: Peer, link: &mut Link) -> Result<(), DbErr> {
        let inside = link.counted() > 0;
        if !inside {
            self.outside();
        }
        if !self.is_unknown(peer, link.backend, inside) {
            return Ok(());
        }
        let reach = if link.backend == DbBackend::Sqlite {
            let watched = link.driver.watch(self.interrupt.clone()).await;
            watched.map(|()| Reach::Sqlite)
        } else {
            // Until its process is known, the server cannot be asked whether it
            // still works: a bound of time is all there is. Shown by
            // `a_connection_whose_process_id_never_arrives_is_closed`.
            let Ok(found) = timeout(SET_UP, link.driver.backend_id()).await else {
                return Err(server::unanswered());
            };
            found.map(|id| id.map_or(Reach::None, |id| Reach::Server { id, inside }))
        };
        let (reach, result) = match reach {
            Ok(reach) => (reach, Ok(())),
            Err(error) => (Reach::None, Err(error)),
        };
        // Not noted then: the connection that takes this one's place is asked
        // anew.
        if result.as_ref().is_err_and(server::is_fatal) {
            return result;
        }
        self.lock().reach = reach;
        result
    }

    /// Goes on to stop the statements of another connection, whose own handle
    /// is `other`.
    pub(super) fn succeed(&self, other: Option<Arc<Self>>) {
        // One lock at a time: two threads that swap the same two handles must
        // not wait for each other.
        let known = other.map(|other| std::mem::take(&mut other.lock().reach));
        // SQLite's handler looks at the other one's flag: it is set anew.
        self.lock().reach = known
            .filter(|reach| !matches!(reach, Reach::Sqlite))
            .unwrap_or_default();
    }

    /// Forgets an interrupt that SQLite has not seen.
    pub(super) fn withdraw_interrupt(&self) {
        // SQLite would see it in what comes next, which is the rollback.
        self.interrupt.store(false, Ordering::Relaxed);
    }

    /// Returns whether SQLite's progress handler was put on the connection.
    pub(super) fn is_on_sqlite(&self) -> bool {
        matches!(self.lock().reach, Reach::Sqlite)
    }
}

/// Absorbs a cancel that arrives after its statement has ended: once its answer
/// is there and the connection has run something, none can be on its way any
/// more.
///
/// The answer is what counts. MariaDB forgets what was killed before a
/// statement arrives, and PostgreSQL what was cancelled before. MySQL does
/// while it waits for a statement, but one that is killed between its end and
/// that may leave it to the next, which is this one.
pub(super) async fn absorb(link: &mut Link) {
    // A late cancel may hit what absorbs it: then it has arrived, and the next
    // one succeeds. Shown by
    // `after_a_late_cancel_a_connection_runs_something_of_its_own_first`.
    for _ in 0..3 {
        let absorbed = match link.backend {
            // No statement: in an aborted transaction one would fail.
            DbBackend::Postgres => link.driver.ping().await,
            DbBackend::MySql => link.run("DO 0").await,
            _ => return,
        };
        match absorbed {
            Ok(()) => return,
            Err(error) if server::is_fatal(&error) => break,
            Err(_) => {}
        }
    }
    link.give_up();
}
