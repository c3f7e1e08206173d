//! A call on a connection, which begins again on another one where that is dead
//! and nothing has happened yet, and elsewhere where its own pool's server
//! cannot begin its transaction.
//!
//! A connection that was idle is not pinged before it is used: most are alive.
//! A session's first call finds out, so it depends on that call what comes
//! before it and after it.

use std::{mem, pin::pin, sync::Arc, time::Instant};

use futures_util::future::{Either, select};
use sea_orm::{AccessMode, DbErr};
use tokio::runtime::Handle;

use super::{
    cancel::{self, Late},
    checked_out::CheckedOut,
    inner::PoolInner,
    lost_statements::lose_if_forgotten,
    waiters::Claim,
};
use crate::{
    connection::{CancelHandle, Demand, Output, Rest, SILENCE, Task},
    error::{Error, server},
};

/// A transaction may try to begin on this many more connections.
const BEGIN_AGAIN: u32 = 3;

impl CheckedOut {
    /// Runs `task` to its end. Where BEGIN finds the connection dead, the
    /// transaction begins on another one, and so does a first statement that
    /// the server says it had no connection for any more: nothing has happened
    /// yet that could happen twice. So does a first statement that only reads.
    #[allow(
        clippy::manual_async_fn,
        reason = "an `async fn` has room for its arguments twice"
    )]
    pub(crate) fn call(mut self, mut task: Task) -> impl Future<Output = Finished> + Send {
        async move {
            // One that may begin elsewhere loses no time with another
            // connection to the same server.
            let output = if task.rest == Rest::None || self.parts.elsewhere.is_some() {
                self.call_once(&mut task).await
            } else {
                // Boxed, as below.
                Box::pin(self.call_rested(&mut task)).await
            };
            let mut finished = Finished {
                connection: self,
                output,
            };
            if finished.may_begin_elsewhere(&task) || finished.may_begin_again(&task) {
                // Boxed: it is rare, and inline it would enlarge the future of
                // every call. One future for both ways, for which the compiler
                // uses the room of the first call's.
                Box::pin(finished.begin_on_another(task)).await;
            }
            // With each call and not at the return: until then, other requests
            // would be given the idle connections to the same read-only server
            // (G18).
            finished.connection.leave_read_only();
            finished
        }
    }

    /// Runs the first call on a connection that has rested.
    async fn call_rested(&mut self, task: &mut Task) -> Result<Output, DbErr> {
        // A read is never preceded by a ping, however long the connection has
        // rested: a service with few requests would pay a round trip for each
        // (`a_request_that_comes_seldom_pays_for_its_own_statements_only`).
        if task.may_run_twice() {
            return self.read(task).await;
        }
        if task.rest == Rest::Long
            && let Some(connection) = &mut self.parts.connection
        {
            // G17: of anything else but a BEGIN, the answer may never come, and
            // it may have been done nevertheless (G20).
            let is_safe = task.begins() && connection.doubt();
            if !is_safe && !connection.is_alive().await {
                self.exchange().await.map_err(|error| error.to_db_err())?;
            }
        }
        self.call_once(task).await
    }

    /// Runs a read, once more if it finds its connection dead.
    async fn read(&mut self, task: &mut Task) -> Result<Output, DbErr> {
        let began = Instant::now();
        let output = self.read_once(task).await;
        let Err(error) = &output else { return output };
        // Later on, the read itself may be what the server has died of, or what
        // its operator has ended. Or the network was lost meanwhile, and the
        // next connection may be as lost: then the place is for another request
        // (G17). Shown by
        // `a_read_that_the_server_ends_while_it_runs_is_not_run_again`.
        let was_forgotten = task.rest == Rest::Long && server::is_unanswered(error);
        let was_dead = began.elapsed() < SILENCE || was_forgotten;
        if !was_dead || !server::is_fatal(error) || !self.is_broken() || !task.is_whole() {
            return output;
        }
        self.exchange().await.map_err(|error| error.to_db_err())?;
        // Not a third time: those that were idle as well are pinged by now.
        task.rest = Rest::None;
        self.call_once(task).await
    }

    /// Runs a read to its end, or until the server says that it is not at it.
    async fn read_once(&mut self, task: &mut Task) -> Result<Output, DbErr> {
        // Only then: each read beside which a timer runs costs more, and a
        // network forgets what is idle, not what is in use.
        let handle = self.cancel_handle().filter(|_| task.rest == Rest::Long);
        let Some(handle) = handle else {
            return self.call_once(task).await;
        };
        let pool = self.pool().clone();
        let reading = pin!(self.call_once(task));
        match select(reading, pin!(lose_if_forgotten(&pool, &handle))).await {
            Either::Left((output, _)) => output,
            // It knows now that its answer is lost.
            Either::Right(((), reading)) => reading.await,
        }
    }

    async fn call_once(&mut self, task: &mut Task) -> Result<Output, DbErr> {
        let cluster = &self.pool.cluster;
        match &mut self.parts.connection {
            Some(connection) => {
                // With each call: a promotion may be seen while the session
                // holds its connection, and what a former primary takes from
                // then on is lost (H33;
                // `g18_of_two_primaries_only_the_later_one_serves`).
                let latest = cluster.latest_timeline();
                let timeline = connection.timeline();
                timeline.note_latest(latest, || cluster.promotion());
                connection.call(task).await
            }
            None => Ok(Output::Done),
        }
    }

    /// Closes a broken connection and takes another one.
    async fn exchange(&mut self) -> Result<(), Error> {
        let (pool, deadline) = (self.pool().clone(), self.parts.deadline);
        tracing::debug!(target: "tower_sea_orm::pool", "a connection was dead when a session began on it: the session uses another one");
        // The cause of its death may have killed the others.
        pool.return_idle();
        // While the connection is here: with it goes the only note of which
        // process serves it.
        self.parts.end_orphan();
        let dead = self.parts.connection.take();
        let handle = dead.and_then(|mut dead| dead.take_cancel_handle());
        // Before the wait: in a pool of one, nothing else could end it.
        self.parts.free_slot();
        let patience = pool.patience(deadline);
        let lease = pool.acquire(Claim::Another, None, patience).await?;
        if let Some(mut next) = lease.into_connection() {
            if let (Some(connection), Some(handle)) = (&mut next.parts.connection, handle) {
                // The session has handed it out already: from here on, it
                // cancels what runs on the new connection.
                connection.adopt(handle);
            }
            // Its place in the registry goes along, and with it the time since
            // which the session holds a connection.
            next.parts.holder = self.parts.holder.take();
            next.parts.deadline = deadline;
            *self = next;
        }
        Ok(())
    }

    /// Returns whether the connection was dead and no other could be acquired
    /// in its place: the call has done nothing.
    // An exchange comes only where nothing of the call can have happened, or
    // all that it does is to read.
    pub(crate) fn is_gone(&self) -> bool {
        self.parts.connection.is_none()
    }
}

/// A call's end: the connection comes back with the result.
pub(crate) struct Finished {
    pub(crate) connection: CheckedOut,
    pub(crate) output: Result<Output, DbErr>,
}

impl Finished {
    fn may_begin_again(&self, task: &Task) -> bool {
        let Err(error) = &self.output else {
            return false;
        };
        // G20: only where it is known that nothing has happened. BEGIN alone
        // does nothing, and a server that was closing the connection has not
        // read the statement. Shown by
        // `a_first_statement_on_a_connection_closed_as_idle_runs_on_another`.
        let is_undone = task.opens() && server::is_fatal(error) || server::came_too_late(error);
        let connection = &self.connection;
        // A test's rows are in the transaction of its one connection, and
        // nowhere else.
        connection.is_broken() && is_undone && task.is_whole() && !connection.pool().is_test()
    }

    /// Makes the call on another connection.
    async fn begin_on_another(&mut self, task: Task) {
        if self.may_begin_elsewhere(&task) {
            self.begin_elsewhere(task).await;
        } else {
            self.begin_again(task).await;
        }
    }

    async fn begin_again(&mut self, mut task: Task) {
        // Bounded, because each of the driver's idle connections may be as dead
        // as the first.
        for _ in 0..BEGIN_AGAIN {
            if !self.may_begin_again(&task) {
                break;
            }
            self.output = match self.connection.exchange().await {
                Ok(()) => self.connection.call_once(&mut task).await,
                Err(error) => return self.output = Err(error.to_db_err()),
            };
        }
    }

    /// Returns whether the call has failed in its BEGIN, which may be sent to
    /// another server.
    fn may_begin_elsewhere(&self, task: &Task) -> bool {
        // The operation is taken when what comes before it is done.
        self.output.is_err()
            && self.connection.parts.elsewhere.is_some()
            && task.is_whole()
            && task
                .begin
                .as_ref()
                .is_some_and(|begin| matches!(begin.demand(), Demand::Read(_)))
    }

    /// Makes the call on a connection of the other pool, and gives this one
    /// back.
    async fn begin_elsewhere(&mut self, mut task: Task) {
        let Some(elsewhere) = self.connection.parts.elsewhere.take() else {
            return;
        };
        let Err(error) = &self.output else { return };
        let deadline = self.connection.parts.deadline;
        let next = match elsewhere.way_out.take(error, deadline).await {
            Ok(lease) => lease.into_connection(),
            Err(error) => return self.output = Err(error.to_db_err()),
        };
        let Some(mut next) = next else { return };
        next.hold(elsewhere.holder, elsewhere.request);
        next.set_deadline(deadline);
        // A task that cancels may have the handle already: from here on it has
        // to mean the new connection (G9).
        next.adopt_handle_of(&mut self.connection);
        // Given back and not dropped: on a replica that was only behind, the
        // connection is as good as before.
        mem::replace(&mut self.connection, next).give_back(|| ());
        task.rest = Rest::None;
        if let Some(begin) = &mut task.begin {
            // The other server needs no position: it is the primary.
            if let Some(set_up) = &mut begin.set_up {
                Arc::make_mut(set_up).demand = Demand::None;
            }
            // The demand would have said so: a read must not be able to write
            // depending on which server it has met.
            begin.options.access_mode = Some(AccessMode::ReadOnly);
        }
        self.output = self.connection.call_once(&mut task).await;
        // The cause that has ended the first connection may have ended those
        // that are idle here.
        self.begin_again(task).await;
    }
}

/// Runs an abandoned call to its end, whose statement is cancelled on the
/// server once it may be.
pub(crate) async fn finish_abandoned<F>(
    pool: &PoolInner,
    call: F,
    handle: &CancelHandle,
    runtime: &Handle,
) -> Finished
where
    F: Future<Output = Finished> + Unpin,
{
    let (mut finished, late) = cancel::finish_abandoned(&pool.cancels, call, handle, runtime).await;
    if let Some(connection) = &mut finished.connection.parts.connection {
        // Its next statement must not be hit.
        match late {
            Late::Nothing => {}
            Late::Possible => connection.absorb().await,
            // Not fenced by a statement, as above: this cancel may come behind
            // any fence (H21;
            // `a_connection_whose_cancel_is_not_answered_is_not_reused`).
            Late::Unanswered => {
                if let Some(suppressed) = pool.lines.next_line("not cancelled", 1) {
                    tracing::warn!(target: "tower_sea_orm::pool", suppressed, "closed a connection whose cancel request was not answered");
                }
                connection.give_up();
            }
        }
    }
    finished
}
