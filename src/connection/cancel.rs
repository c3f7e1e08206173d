//! [`CancelHandle`]: what has to be known of a connection so that the server can be told to stop its statement.
//!
//! Only a statement is ever stopped, never what the session does around it, and never a COMMIT. Whoever
//! has it stopped still owns the connection, waits for the answer and for the statement's end, and then
//! has the connection [absorb](super::PinnedConnection::absorb) what came too late.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Wake, Waker},
};

use futures_util::task::AtomicWaker;
use sea_orm::{DbBackend, DbErr};
use tokio::sync::Notify;

use super::{PinnedConnection, State, backend_id::BackendId};
use crate::error::server;

/// What is between this side and the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    /// Nothing: the process that serves a connection does so for the connection's life.
    Server,
    /// A proxy, or that cannot be told: the process is the connection's own for one transaction.
    Proxy,
}

/// How a statement is stopped.
#[derive(Debug)]
pub(crate) enum CancelTarget {
    /// By another connection.
    Server(BackendId),
    /// By SQLite's progress handler, which is told already.
    Sqlite,
}

/// A connection whose running statement may have to be stopped.
#[derive(Default)]
pub(crate) struct CancelHandle {
    state: Mutex<Known>,
    /// Has SQLite stop at the next look.
    interrupt: Arc<AtomicBool>,
    /// Names the call that runs, or ran last.
    turn: AtomicU64,
    /// How often calls were woken: each part of an answer that arrives does that, and polling them does not.
    wakes: AtomicU64,
    /// The task that polls the running call.
    waker: AtomicWaker,
    /// The call that was running at the last check for stalled statements.
    seen: AtomicU64,
    /// The call whose answer will not arrive.
    lost: AtomicU64,
    told: Notify,
}

#[derive(Default)]
struct Known {
    /// Nobody wants the running call any more.
    unwanted: bool,
    /// The call has come to its statement.
    working: bool,
    reach: Reach,
}

#[derive(Default)]
enum Reach {
    #[default]
    Unknown,
    Server {
        identity: BackendId,
        /// Known since the open transaction has begun.
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

    /// A call begins, and somebody waits for it.
    pub(crate) fn prepare(&self) {
        self.lock().unwanted = false;
    }

    /// Nobody waits for the running call any more, and it may be stopped.
    pub(crate) fn abandon(&self) {
        self.lock().unwanted = true;
        self.told.notify_one();
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.lock().unwanted
    }

    /// Waits until the running call may be stopped.
    pub(crate) async fn abandoned(&self) {
        // A call from before may have left its notice.
        while !self.is_abandoned() {
            self.told.notified().await;
        }
    }

    /// How to stop the statement that runs right now; `None` if none does, or if it cannot be.
    pub(crate) fn target(&self, route: Peer) -> Option<CancelTarget> {
        let known = self.lock();
        if !known.working {
            return None;
        }
        match &known.reach {
            Reach::Sqlite => {
                self.interrupt.store(true, Ordering::Relaxed);
                Some(CancelTarget::Sqlite)
            }
            Reach::Server { identity, inside } if route == Peer::Server || *inside => {
                Some(CancelTarget::Server(identity.clone()))
            }
            _ => None,
        }
    }

    /// Who serves the connection, whatever runs on it.
    pub(crate) fn backend_id(&self, route: Peer) -> Option<BackendId> {
        match &self.lock().reach {
            Reach::Server { identity, inside } if route == Peer::Server || *inside => {
                Some(identity.clone())
            }
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

    /// Whether this call was already running the last time this was asked.
    pub(crate) fn was_at(&self, turn: u64) -> bool {
        self.seen.swap(turn, Ordering::Relaxed) == turn
    }

    /// The answer of this call will not arrive: if it still runs, it ends when it is polled next.
    pub(crate) fn lose(&self, turn: u64) {
        self.lost.store(turn, Ordering::Relaxed);
    }

    /// Another call runs.
    pub(super) fn next_turn(&self) -> u64 {
        self.turn.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(super) fn is_lost(&self, turn: u64) -> bool {
        self.lost.load(Ordering::Relaxed) == turn
    }

    /// A waker for the running call that counts its wakes and passes them to `waker`.
    pub(super) fn count_wakes(self: &Arc<Self>, waker: &Waker) -> Waker {
        self.waker.register(waker);
        Waker::from(self.clone())
    }

    /// Lets go of the task that polled a call which has ended.
    pub(super) fn forget_waker(&self) {
        drop(self.waker.take());
    }

    pub(super) fn works(&self, working: bool) {
        self.lock().working = working;
    }

    /// No transaction is open: behind a proxy, the process may serve somebody else.
    pub(super) fn outside(&self) {
        let mut known = self.lock();
        if matches!(known.reach, Reach::Server { inside: true, .. }) {
            known.reach = Reach::Unknown;
        }
    }

    /// Whether it is time to ask who serves the connection.
    fn is_unknown(&self, route: Peer, backend: DbBackend, inside: bool) -> bool {
        let proxied = route == Peer::Proxy && backend != DbBackend::Sqlite;
        match &self.lock().reach {
            // A proxy for MySQL has numbers of its own.
            Reach::Unknown => !proxied || inside && backend == DbBackend::Postgres,
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
        self.wakes.fetch_add(1, Ordering::Relaxed);
        self.waker.wake();
    }
}

impl PinnedConnection {
    /// What stops this connection's statements.
    pub(crate) fn cancel_handle(&mut self) -> &Arc<CancelHandle> {
        self.victim.get_or_insert_default()
    }

    /// Closes the connection; what stops its statements goes to another one, for whoever holds it.
    pub(crate) fn into_cancel_handle(mut self) -> Option<Arc<CancelHandle>> {
        self.victim.take()
    }

    /// Lets `victim`, which somebody may hold already, stop this connection's statements from here on.
    pub(crate) fn adopt(&mut self, victim: Arc<CancelHandle>) {
        let own = self.victim.replace(victim.clone());
        let known = own.map(|own| std::mem::take(&mut own.lock().reach));
        // SQLite's handler looks at the other one's flag: it is set anew.
        victim.lock().reach = known
            .filter(|reach| !matches!(reach, Reach::Sqlite))
            .unwrap_or_default();
    }

    /// Learns how to stop this connection's statements, if it is not known: one round trip.
    pub(super) async fn identify(&mut self, route: Peer) -> Result<(), DbErr> {
        let inside = self.driver.depth() > 0;
        let Some(victim) = self
            .victim
            .clone()
            .filter(|victim| victim.is_unknown(route, self.backend, inside))
        else {
            return Ok(());
        };
        let reach = if self.backend == DbBackend::Sqlite {
            self.driver
                .watch(victim.interrupt.clone())
                .await
                .map(|()| Reach::Sqlite)
        } else {
            let identity = self.driver.backend_id().await;
            identity.map(|found| {
                found.map_or(Reach::None, |identity| Reach::Server { identity, inside })
            })
        };
        let reach = match reach {
            Ok(reach) => reach,
            Err(error) if server::is_fatal(&error) => return Err(error),
            Err(error) => {
                tracing::warn!(target: "tower_sea_orm::pool", "statements of this connection cannot be cancelled: the server does not tell who serves it: {error}");
                if inside {
                    self.note_failure(&error, self.depth(), false);
                }
                Reach::None
            }
        };
        victim.lock().reach = reach;
        Ok(())
    }

    /// Lets a cancel that came too late hit nobody: once its answer is there and the connection has
    /// run something, none can be on its way any more.
    ///
    /// The answer is what counts. MariaDB forgets what was killed before a statement arrives, and PostgreSQL
    /// what was cancelled before. MySQL does while it waits for a statement, but one that is killed between its
    /// end and that may leave it to the next, which is this one.
    pub(crate) async fn absorb(&mut self) {
        if let Some(victim) = &self.victim {
            victim.interrupt.store(false, Ordering::Relaxed);
        }
        if self.is_broken() {
            return;
        }
        for _ in 0..3 {
            let absorbed = match self.backend {
                // No statement: in an aborted transaction one would fail.
                DbBackend::Postgres => self.driver.ping().await,
                DbBackend::MySql => self
                    .driver
                    .execute_unprepared("DO 0".to_owned())
                    .await
                    .map(drop),
                _ => return,
            };
            match absorbed {
                Ok(()) => return,
                Err(error) if server::is_fatal(&error) => break,
                Err(_) => {}
            }
        }
        self.give_up();
    }

    /// The connection must serve nobody any more.
    pub(crate) fn give_up(&mut self) {
        self.state = State::Broken;
    }

    /// Takes back what was put on the connection.
    pub(super) async fn forget_cancel_handle(&mut self) {
        let Some(victim) = self.victim.take() else {
            return;
        };
        if matches!(victim.lock().reach, Reach::Sqlite) && self.driver.unwatch().await.is_err() {
            self.give_up();
        }
    }
}
