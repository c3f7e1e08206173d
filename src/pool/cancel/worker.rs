//! [`CancelWorker`]: the task that has the [`SideConnection`], by which the server is asked beside the driver's pool.
//!
//! It is opened when there is something to ask, and closed when there was
//! nothing for a while.

use std::{
    collections::VecDeque,
    pin::pin,
    sync::{Arc, Weak},
    time::Duration,
};

use futures_util::future::{BoxFuture, Either, select};
use tokio::time::{sleep, timeout};

#[cfg(feature = "sqlx-mysql")]
use super::mysql::MySqlSide;
#[cfg(feature = "sqlx-postgres")]
use super::postgres::PostgresSide;
use super::{
    batch::{Activity, Batch, Fault, Outcome, Subject},
    queue::{BOUND, CancelQueue, CancelRequest, Question},
};
use crate::{
    connection::Peer,
    pool::{background::Work, driver_pool::DriverPool},
};

/// The side connection is kept without use for this long.
const IDLE: Duration = Duration::from_secs(5);

pub(super) struct CancelWorker {
    // Weak, because it is a task: a pool that goes takes its side connection
    // along.
    queue: Weak<CancelQueue>,
    /// Resolves when the driver's pool is closed.
    closed: BoxFuture<'static, ()>,
    connection: Option<SideConnection>,
}

impl CancelWorker {
    pub(super) fn of(queue: &Arc<CancelQueue>) -> Self {
        Self {
            queue: Arc::downgrade(queue),
            // Otherwise the server would see one more client for five seconds
            // after its pool was closed
            // (`the_cancel_connection_is_closed_with_the_pool`).
            closed: queue.driver.closed(),
            connection: None,
        }
    }

    async fn close(&mut self) {
        if let Some(connection) = self.connection.take() {
            // A goodbye waits for room in the send buffer, which a lost network
            // never makes.
            let _ = timeout(BOUND, connection.close()).await;
        }
    }

    /// Sends `requests`, and answers each.
    async fn cancel(&mut self, queue: &CancelQueue, requests: Vec<CancelRequest>) {
        let targets = requests
            .iter()
            .filter_map(|request| request.target.as_ref());
        let mut batch = Batch::new(targets);
        // Only for a connection that was there: a new one that breaks at once
        // would be opened in a loop.
        let has_rested = self.connection.is_some();
        let fault = self.send(queue, &mut batch).await;
        if has_rested && fault.is_some_and(|fault| fault.is_over(&batch)) {
            // The server has closed it since its last use.
            self.send(queue, &mut batch).await;
        }
        let mut outcomes: VecDeque<Outcome> = batch.outcomes().collect();
        for request in requests {
            // The batch has those with a target only, in this order.
            let outcome = request.target.and_then(|_| outcomes.pop_front());
            let _ = request.reply.send(outcome.unwrap_or(Outcome::Untouched));
        }
    }

    /// Answers `questions`, with a new connection if there is none or the
    /// server has closed it since its last use.
    async fn answer(&mut self, queue: &CancelQueue, questions: Vec<Question>) {
        for Question { subject, reply } in questions {
            let is_of_all = matches!(subject, Subject::All(_));
            if is_of_all {
                // Each time by a new connection, which shows whether the name
                // leads to several servers.
                self.close().await;
            }
            for _ in 0..2 {
                self.send(queue, &mut Batch::default()).await;
                let Some(connection) = &mut self.connection else {
                    break;
                };
                // A statement that a proxy keeps waiting is not the server's
                // work yet, and its process may serve another client.
                let is_known = matches!(subject, Subject::One(_)) || queue.route() == Peer::Server;
                let answer = if is_known {
                    connection.ask(&subject).await
                } else {
                    Ok(None)
                };
                match answer {
                    Ok(activity) => {
                        let _ = reply.send(activity);
                        break;
                    }
                    Err(fault) if fault.is_fatal() => self.connection = None,
                    Err(fault) => {
                        if matches!(subject, Subject::Orphan(_)) {
                            tracing::warn!(target: "tower_sea_orm::pool", "the process of a lost connection could not be ended, which may keep locks: {fault}");
                        }
                        break;
                    }
                }
            }
        }
    }

    /// Sends `batch`, with a new connection if there is none; its outcomes say
    /// how far that came. Returns what broke the connection.
    async fn send(&mut self, queue: &CancelQueue, batch: &mut Batch<'_>) -> Option<Fault> {
        // Not at once after a failure: a server without a place for it would be
        // connected to with every request.
        if self.connection.is_none() && !queue.has_failed() {
            match timeout(BOUND, SideConnection::open(&queue.driver)).await {
                Ok(Ok((connection, route))) => {
                    queue.opened(route);
                    self.connection = Some(connection);
                }
                Ok(Err(fault)) => queue.failed(&fault),
                Err(_) => queue.failed(&Fault::Silent),
            }
        }
        let fault = self.connection.as_mut()?.cancel(batch).await.err();
        queue.obeyed(fault.as_ref());
        let fault = fault.filter(Fault::is_fatal)?;
        self.connection = None;
        Some(fault)
    }
}

impl Work for CancelWorker {
    async fn step(&mut self) -> bool {
        let Some(queue) = self.queue.upgrade() else {
            self.close().await;
            return false;
        };
        // Each round takes all there is: while the server answers, a storm's
        // requests gather, and one statement cancels them together (H20;
        // `a_storm_of_leaving_clients_costs_no_connection`).
        let (requests, questions) = queue.take();
        if !requests.is_empty() || !questions.is_empty() {
            // First: a statement that is to stop costs the server, and
            // questions may have to open a connection.
            self.cancel(&queue, requests).await;
            self.answer(&queue, questions).await;
            return true;
        }
        let background = queue.worker.clone();
        // Not held while it waits: the pool may go.
        drop(queue);
        let rest = select(Box::pin(sleep(IDLE)), &mut self.closed);
        let has_rested = matches!(
            select(pin!(background.rung()), rest).await,
            Either::Right(_)
        );
        // A request may have come at the last moment, and the connection is
        // still open for it.
        if has_rested && !self.is_pending() {
            self.close().await;
            return false;
        }
        true
    }

    fn is_pending(&self) -> bool {
        self.queue.upgrade().is_some_and(|queue| !queue.is_empty())
    }

    /// Turns away those who wait for a reply.
    fn abandon(&mut self) {
        let Some(queue) = self.queue.upgrade() else {
            return;
        };
        let (requests, questions) = queue.take();
        // Without an answer nothing is concluded, and of the requests nothing
        // was sent.
        drop(questions);
        for request in requests {
            let _ = request.reply.send(Outcome::Untouched);
        }
    }
}

enum SideConnection {
    #[cfg(feature = "sqlx-postgres")]
    Postgres(PostgresSide),
    #[cfg(feature = "sqlx-mysql")]
    MySql(MySqlSide),
}

/// Runs `$body` with `$side` bound to the server's own kind of connection.
// A macro, because each arm has a side of another type.
macro_rules! dispatch {
    ($connection:expr, $side:ident => $body:expr, none => $none:expr) => {
        match $connection {
            #[cfg(feature = "sqlx-postgres")]
            SideConnection::Postgres($side) => $body,
            #[cfg(feature = "sqlx-mysql")]
            SideConnection::MySql($side) => $body,
            #[allow(unreachable_patterns)]
            _ => $none,
        }
    };
}

impl SideConnection {
    /// Opens one, and returns as well what it runs through.
    async fn open(driver: &DriverPool) -> Result<(Self, Peer), Fault> {
        match driver {
            #[cfg(feature = "sqlx-postgres")]
            // With the pool's own options: PostgreSQL lets a user cancel what
            // runs under its own role
            // (<https://www.postgresql.org/docs/current/functions-admin.html>).
            DriverPool::Postgres(pool) => {
                let (side, route) = PostgresSide::open(&pool.connect_options()).await?;
                Ok((Self::Postgres(side), route))
            }
            #[cfg(feature = "sqlx-mysql")]
            // As the pool's own user, who may kill its own threads without a
            // privilege (<https://mariadb.com/kb/en/kill/>).
            DriverPool::MySql(pool) => {
                let (side, route) = MySqlSide::open(&pool.connect_options()).await?;
                Ok((Self::MySql(side), route))
            }
            #[allow(unreachable_patterns)]
            _ => Err(Fault::Silent),
        }
    }

    /// Has the server cancel what the targets run; one that has gone or is idle
    /// is left alone.
    async fn cancel(&mut self, batch: &mut Batch<'_>) -> Result<(), Fault> {
        // A batch of no targets only has the connection opened, to find out the
        // route.
        if batch.items.is_empty() {
            return Ok(());
        }
        dispatch!(self, side => side.cancel(batch).await, none => Err(Fault::Silent))
    }

    /// Asks the server whether it is at work for `subject`. `None` if it does
    /// not say, or another server is asked: it knows fewer connections than
    /// there are. An orphan is ended.
    async fn ask(&mut self, subject: &Subject) -> Result<Option<Activity>, Fault> {
        dispatch!(self, side => match subject {
            Subject::One(target) => side.ask_about(target).await,
            Subject::All(pool) => side.ask_about_all(pool).await,
            Subject::Orphan(target) => side.end(target).await.map(|()| None),
        }, none => {
            let _ = subject;
            Err(Fault::Silent)
        })
    }

    async fn close(self) {
        dispatch!(self, side => side.close().await, none => ());
    }
}
