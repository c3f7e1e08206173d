//! [`Control`]: one connection beside the driver's pool, by which statements are cancelled on the server, and the
//! server is asked what it is at.
//!
//! A task has it: opened when there is something to do, closed when there was nothing for a while. What
//! comes in while the server answers is asked for together, next.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use futures_util::future::{BoxFuture, Either, select};
use tokio::{
    runtime::Handle,
    sync::{Notify, oneshot},
    time::{sleep, timeout},
};

use super::{
    super::{SessionPool, Shared},
    side_connection::{Batch, Fate, Fault, SideConnection},
};
use crate::connection::{BackendId, Peer};

/// How long the connection is kept without use.
const IDLE: Duration = Duration::from_secs(5);

/// How long opening the connection may take.
const BOUND: Duration = Duration::from_secs(2);

/// How long after a failure to open the connection the next one is tried.
const RETRY: Duration = Duration::from_secs(1);

/// Requests to cancel, and what is known of the way to the server.
#[derive(Default)]
pub(crate) struct Control {
    state: Mutex<State>,
    rung: Arc<Notify>,
}

#[derive(Default)]
struct State {
    requests: Vec<Request>,
    questions: Vec<Question>,
    /// Names the next request.
    next: u64,
    route: Option<Peer>,
    /// A task serves the requests.
    is_served: bool,
    /// When the connection could not be opened.
    failed: Option<Instant>,
    /// The log knows that the server does not do as told.
    refused: bool,
}

struct Request {
    id: u64,
    /// `None`: only the route is of interest.
    target: Option<BackendId>,
    reply: oneshot::Sender<Reply>,
}

/// Whether the server is at work for `subject`.
struct Question {
    subject: Subject,
    reply: oneshot::Sender<Option<bool>>,
}

/// For whom the server may be at work.
pub(crate) enum Subject {
    One(BackendId),
    /// All connections of this client's, of which the server has at least so many.
    All(u32),
}

/// What became of a request. If there is none, it may be carried out at any time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reply {
    /// The server has answered: it will not act on it from here on, or has acted already.
    Answered,
    /// Nothing was sent.
    Unsent,
}

impl Control {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is between; a proxy, as long as it is not known.
    pub(super) fn route(&self) -> Peer {
        self.lock().route.unwrap_or(Peer::Proxy)
    }

    /// Takes a request back; false if it is under way.
    pub(super) fn withdraw(&self, id: u64) -> bool {
        let mut state = self.lock();
        let before = state.requests.len();
        state.requests.retain(|request| request.id != id);
        state.requests.len() < before
    }

    fn take(&self) -> (Vec<Request>, Vec<Question>) {
        let mut state = self.lock();
        (
            std::mem::take(&mut state.requests),
            std::mem::take(&mut state.questions),
        )
    }

    /// Whether the task may end; then the next request starts another.
    fn rest(&self) -> bool {
        let mut state = self.lock();
        state.is_served = !state.requests.is_empty() || !state.questions.is_empty();
        !state.is_served
    }

    fn has_failed(&self) -> bool {
        self.lock()
            .failed
            .is_some_and(|failed| failed.elapsed() < RETRY)
    }

    fn opened(&self, route: Peer, cancels: bool) {
        let before = {
            let mut state = self.lock();
            state.failed = None;
            state.route.replace(route)
        };
        if cancels && route == Peer::Proxy && before != Some(route) {
            tracing::warn!(target: "tower_sea_orm::pool", "a proxy stands before the server: statements outside of a transaction are not cancelled");
        }
    }

    /// The connection could not be opened; tells the log unless it knows.
    fn failed(&self, fault: &Fault) {
        let told = self.lock().failed.replace(Instant::now()).is_some();
        if !told {
            tracing::warn!(target: "tower_sea_orm::pool", "no connection beside the pool to ask the server by, so statements are waited for: {fault}");
        }
    }

    /// Whether the server did as told; tells the log when it does so no more.
    fn obeyed(&self, fault: Option<&Fault>) {
        let told = std::mem::replace(&mut self.lock().refused, fault.is_some());
        if let Some(fault) = fault.filter(|_| !told) {
            tracing::warn!(target: "tower_sea_orm::pool", "statements could not be cancelled: {fault}");
        }
    }
}

impl SessionPool {
    /// Has the server stop a connection's statement; the number withdraws the request.
    pub(super) fn request(
        &self,
        target: Option<BackendId>,
        runtime: &Handle,
    ) -> (u64, oneshot::Receiver<Reply>) {
        let control = &self.shared.control;
        let (reply, receiver) = oneshot::channel();
        let mut state = control.lock();
        state.next += 1;
        let id = state.next;
        state.requests.push(Request { id, target, reply });
        self.ring(state, runtime);
        (id, receiver)
    }

    /// Asks the server whether it is at work for `subject`; `None` if it cannot say.
    pub(crate) fn ask(
        &self,
        subject: Subject,
        runtime: &Handle,
    ) -> oneshot::Receiver<Option<bool>> {
        let (reply, receiver) = oneshot::channel();
        let mut state = self.shared.control.lock();
        state.questions.push(Question { subject, reply });
        self.ring(state, runtime);
        receiver
    }

    /// Has the task look at what has come in, or starts it.
    fn ring(&self, mut state: MutexGuard<'_, State>, runtime: &Handle) {
        let rung = &self.shared.control.rung;
        let is_served = std::mem::replace(&mut state.is_served, true);
        drop(state);
        if is_served {
            rung.notify_one();
        } else {
            let operator = Operator {
                pool: Arc::downgrade(&self.shared),
                rung: rung.clone(),
            };
            runtime.spawn(operator.serve());
        }
    }

    pub(crate) fn route(&self) -> Peer {
        self.shared.control.route()
    }

    /// Finds out, once, what is between the pool and the server.
    pub(crate) async fn explore(&self, runtime: &Handle) {
        let control = &self.shared.control;
        if !self.settings().cancel_running
            || !self.has_server()
            || control.lock().route.is_some()
            || control.has_failed()
        {
            return;
        }
        let (_, reply) = self.request(None, runtime);
        let _ = timeout(BOUND, reply).await;
    }
}

/// Serves the requests. Dropped with its runtime, it turns those away that wait; having ended, it has
/// no pool any more.
struct Operator {
    pool: Weak<Shared>,
    rung: Arc<Notify>,
}

impl Operator {
    async fn serve(mut self) {
        let Some(mut closed) = self.pool.upgrade().map(|shared| shared.source.closed()) else {
            return;
        };
        let mut line = None;
        while self.turn(&mut line, &mut closed).await {}
        if let Some(line) = line {
            let _ = timeout(BOUND, line.close()).await;
        }
    }

    /// Answers what has come in, or waits for more; false if nothing came for long enough.
    async fn turn(
        &mut self,
        line: &mut Option<SideConnection>,
        closed: &mut BoxFuture<'static, ()>,
    ) -> bool {
        {
            let Some(shared) = self.pool.upgrade() else {
                return false;
            };
            let (requests, questions) = shared.control.take();
            if !requests.is_empty() || !questions.is_empty() {
                shared.answer(line, requests).await;
                shared.look(line, questions).await;
                return true;
            }
        }
        let rest = select(Box::pin(sleep(IDLE)), closed);
        let rested = matches!(
            select(Box::pin(self.rung.notified()), rest).await,
            Either::Right(_)
        );
        let is_over = self
            .pool
            .upgrade()
            .is_none_or(|shared| rested && shared.control.rest());
        if is_over {
            self.pool = Weak::new();
        }
        !is_over
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        let Some(shared) = self.pool.upgrade() else {
            return;
        };
        let (requests, _unanswered) = {
            let mut state = shared.control.lock();
            state.is_served = false;
            (
                std::mem::take(&mut state.requests),
                std::mem::take(&mut state.questions),
            )
        };
        for request in requests {
            let _ = request.reply.send(Reply::Unsent);
        }
    }
}

impl Shared {
    /// Answers `requests`, with a new line if there is none.
    async fn answer(&self, line: &mut Option<SideConnection>, requests: Vec<Request>) {
        let mut batch = Batch::new(
            requests
                .iter()
                .filter_map(|request| request.target.as_ref()),
        );
        let rested = line.is_some();
        let fault = self.send(line, &mut batch).await;
        if rested && fault.is_some_and(|fault| fault.is_over(&batch)) {
            // The server has closed it since its last use.
            self.send(line, &mut batch).await;
        }
        let mut fates: VecDeque<Fate> = batch.errands.iter().map(|errand| errand.fate).collect();
        for request in requests {
            let fate = request.target.and_then(|_| fates.pop_front());
            let reply = match fate.unwrap_or(Fate::Untouched) {
                Fate::Answered => Reply::Answered,
                Fate::Untouched => Reply::Unsent,
                // Without a reply, nobody may take it for certain that nothing comes of it.
                Fate::InDoubt => continue,
            };
            let _ = request.reply.send(reply);
        }
    }

    /// Answers `questions`, with a new line if there is none or the server has closed it since its last use.
    async fn look(&self, line: &mut Option<SideConnection>, questions: Vec<Question>) {
        for Question { subject, reply } in questions {
            let mut nothing = Batch::new(std::iter::empty());
            for _ in 0..2 {
                self.send(line, &mut nothing).await;
                let Some(open) = line else { break };
                let is_busy = match &subject {
                    Subject::One(target) => open.is_busy(target).await,
                    // What a proxy keeps waiting is nobody's work yet.
                    Subject::All(_) if self.control.route() == Peer::Proxy => Ok(None),
                    Subject::All(count) => open.is_busy_at_all(*count).await,
                };
                match is_busy {
                    Ok(is_busy) => {
                        let _ = reply.send(is_busy);
                        break;
                    }
                    Err(fault) if fault.is_fatal() => *line = None,
                    Err(_) => break,
                }
            }
        }
    }

    /// Sends `batch`, whose fates tell how far that came; returns what broke the line.
    async fn send(
        &self,
        line: &mut Option<SideConnection>,
        batch: &mut Batch<'_>,
    ) -> Option<Fault> {
        if line.is_none() && !self.control.has_failed() {
            match timeout(BOUND, SideConnection::open(&self.source)).await {
                Ok(Ok((opened, route))) => {
                    self.control.opened(route, self.settings.cancel_running);
                    *line = Some(opened);
                }
                Ok(Err(fault)) => self.control.failed(&fault),
                Err(_) => self.control.failed(&Fault::Silent),
            }
        }
        let fault = line.as_mut()?.cancel(batch).await.err();
        self.control.obeyed(fault.as_ref());
        let fault = fault.filter(Fault::is_fatal)?;
        *line = None;
        Some(fault)
    }
}
