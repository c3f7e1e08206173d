//! [`CancelQueue`]: cancel requests, and questions what the server is at work for, on their way to it.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{runtime::Handle, sync::oneshot, time::timeout};

use super::{
    batch::{Activity, Fault, Outcome, Pool, Subject},
    worker::CancelWorker,
};
use crate::{
    connection::{BackendId, Peer},
    pool::{background::Background, driver_pool::DriverPool},
};

/// The longest time that opening the side connection may take.
pub(super) const BOUND: Duration = Duration::from_secs(2);

/// The next attempt to open it is made this long after a failure.
const RETRY: Duration = Duration::from_secs(1);

/// Requests and questions to the server, and what is known of the way to it.
pub(crate) struct CancelQueue {
    pub(super) driver: DriverPool,
    /// Statements are cancelled; otherwise the server is only asked about them.
    // A pool without `cancel_running` has no worker until an answer seems to be
    // lost.
    cancels: bool,
    state: Mutex<Asked>,
    pub(super) worker: Arc<Background>,
}

#[derive(Default)]
struct Asked {
    requests: Vec<CancelRequest>,
    questions: Vec<Question>,
    /// Names the next request.
    next_id: u64,
    route: Option<Peer>,
    /// The time at which the side connection could not be opened.
    failed: Option<Instant>,
    /// The log says that the server does not cancel.
    is_refused: bool,
}

pub(super) struct CancelRequest {
    id: u64,
    /// `None`: only the route is of interest.
    pub(super) target: Option<BackendId>,
    pub(super) reply: oneshot::Sender<Outcome>,
}

/// Asks whether the server is at work for `subject`.
pub(super) struct Question {
    pub(super) subject: Subject,
    pub(super) reply: oneshot::Sender<Option<Activity>>,
}

impl CancelQueue {
    pub(in crate::pool) fn new(driver: DriverPool, cancels: bool) -> Arc<Self> {
        Arc::new(Self {
            driver,
            cancels,
            state: Mutex::default(),
            worker: Arc::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Asked> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns what is between the pool and the server; a proxy, as long as it
    /// is not known.
    pub(crate) fn route(&self) -> Peer {
        // Unknown counts as a proxy: a cancel request then goes out only where
        // it can hit no stranger (H29).
        self.lock().route.unwrap_or(Peer::Proxy)
    }

    /// Asks the server to cancel a connection's statement; the number withdraws
    /// the request.
    pub(super) fn request(
        self: &Arc<Self>,
        target: Option<BackendId>,
        runtime: &Handle,
    ) -> (u64, oneshot::Receiver<Outcome>) {
        let (reply, receiver) = oneshot::channel();
        let mut asked = self.lock();
        asked.next_id += 1;
        let id = asked.next_id;
        asked.requests.push(CancelRequest { id, target, reply });
        // The worker that is woken takes this lock.
        drop(asked);
        self.wake_worker(runtime);
        (id, receiver)
    }

    /// Takes a request back; false if it is under way.
    pub(super) fn withdraw(&self, id: u64) -> bool {
        let mut asked = self.lock();
        // Under the lock of `take`: a request is still here, and was never
        // sent, or it is the worker's and counts as sent.
        let before = asked.requests.len();
        asked.requests.retain(|request| request.id != id);
        asked.requests.len() < before
    }

    /// Has the server end the process of a lost connection, which keeps the
    /// locks of its transaction until then. A proxy's process may serve another
    /// client by now.
    pub(in crate::pool) fn end(self: &Arc<Self>, orphan: BackendId, runtime: &Handle) {
        if self.route() == Peer::Server {
            drop(self.ask(Subject::Orphan(orphan), runtime));
        }
    }

    /// Asks the server whether it is at work for `subject`; `None` if it cannot
    /// say.
    pub(in crate::pool) fn ask(
        self: &Arc<Self>,
        subject: Subject,
        runtime: &Handle,
    ) -> oneshot::Receiver<Option<Activity>> {
        let (reply, receiver) = oneshot::channel();
        self.lock().questions.push(Question { subject, reply });
        self.wake_worker(runtime);
        receiver
    }

    /// All connections that this process has to the server.
    pub(in crate::pool) fn all_connections(&self, active_within: Duration) -> Subject {
        Subject::All(Pool {
            connections: self.driver.size(),
            active_within,
        })
    }

    fn wake_worker(self: &Arc<Self>, runtime: &Handle) {
        // The task looks for itself when it starts; one that runs may be
        // waiting for the bell.
        if !self.worker.start(runtime, || CancelWorker::of(self)) {
            self.worker.ring();
        }
    }

    /// Finds out, once, what is between the pool and the server.
    pub(in crate::pool) async fn explore(self: &Arc<Self>, runtime: &Handle) {
        let is_known = self.lock().route.is_some();
        // Without `cancel_running` nothing depends on it, and a pool that is
        // never stuck opens no connection beside.
        if !self.cancels || !self.driver.has_server() || is_known || self.has_failed() {
            return;
        }
        let (_, reply) = self.request(None, runtime);
        // Bounded, because a fetch waits for it, and a proxy is assumed until
        // it is known.
        let _ = timeout(BOUND, reply).await;
    }

    /// Takes all that was asked for, so that what comes in while the server
    /// answers is asked for together.
    pub(super) fn take(&self) -> (Vec<CancelRequest>, Vec<Question>) {
        let mut asked = self.lock();
        let asked = &mut *asked;
        (
            std::mem::take(&mut asked.requests),
            std::mem::take(&mut asked.questions),
        )
    }

    pub(super) fn is_empty(&self) -> bool {
        let asked = self.lock();
        asked.requests.is_empty() && asked.questions.is_empty()
    }

    pub(super) fn has_failed(&self) -> bool {
        self.lock()
            .failed
            .is_some_and(|failed| failed.elapsed() < RETRY)
    }

    /// Notes that the side connection is open, and what it runs through.
    pub(super) fn opened(&self, route: Peer) {
        let mut asked = self.lock();
        asked.failed = None;
        let before = asked.route.replace(route);
        // The log's subscriber is foreign code.
        drop(asked);
        if self.cancels && route == Peer::Proxy && before != Some(route) {
            tracing::warn!(target: "tower_sea_orm::pool", "there is a proxy in front of the server: statements outside a transaction are not cancelled");
        }
    }

    /// Notes that the side connection could not be opened, and logs it once.
    pub(super) fn failed(&self, fault: &Fault) {
        // Once, until it works again: a server without a place for it would
        // fill the log.
        let is_logged = self.lock().failed.replace(Instant::now()).is_some();
        if !is_logged {
            tracing::warn!(target: "tower_sea_orm::pool", "could not open a side connection to the server; waiting for statements to finish: {fault}");
        }
    }

    /// Notes whether the server did as asked, and logs when it does so no more.
    pub(super) fn obeyed(&self, fault: Option<&Fault>) {
        let is_logged = std::mem::replace(&mut self.lock().is_refused, fault.is_some());
        if let Some(fault) = fault.filter(|_| !is_logged) {
            tracing::warn!(target: "tower_sea_orm::pool", "statements could not be cancelled: {fault}");
        }
    }
}
