//! A call on a connection, which begins again on another one where that is dead and nothing has happened yet.
//!
//! A connection that was idle is not pinged before it is used: most are alive. A session's first call finds out, so it
//! depends on that call what comes before it and after it.

use std::{pin::pin, time::Instant};

use futures_util::future::{Either, select};
use sea_orm::DbErr;

use super::{
    checked_out::{CheckedOut, Finished},
    lost_statements::lose_if_forgotten,
    waiters::Claim,
};
use crate::{
    connection::{Output, Rest, SILENCE, Task},
    error::{Error, server},
};

/// A transaction may try to begin on this many more connections.
const BEGIN_AGAIN: u32 = 3;

impl CheckedOut {
    /// Runs `task` to its end. Where BEGIN finds the connection dead, the transaction begins on another
    /// one, and so does a first statement that the server says it had no connection for any more: nothing has
    /// happened yet that could happen twice. So does a first statement that only reads.
    #[allow(
        clippy::manual_async_fn,
        reason = "an `async fn` has room for its arguments twice"
    )]
    pub(crate) fn call(mut self, mut task: Task) -> impl Future<Output = Finished> + Send {
        async move {
            // One that may begin elsewhere loses no time with another connection to the same server.
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
                // Boxed: it is rare, and inline it would enlarge the future of every call. One future for both, which
                // leaves the compiler its overlap with the first call's.
                Box::pin(finished.begin_on_another(task)).await;
            }
            finished.connection.leave_read_only();
            finished
        }
    }

    /// Runs the first call on a connection that has rested.
    async fn call_rested(&mut self, task: &mut Task) -> Result<Output, DbErr> {
        if task.may_run_twice(self.pool().backend()) {
            return self.read(task).await;
        }
        if task.rest == Rest::Long
            && let Some(connection) = &mut self.parts.connection
        {
            // G17: of anything else but a BEGIN, the answer may never come, and it may have been done nevertheless (G20).
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
        // Later on, the read itself may be what the server has died of, or what its operator has ended. Or the network was
        // lost meanwhile, and the next connection may be as lost: then the place is for another request (G17).
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

    pub(super) async fn call_once(&mut self, task: &mut Task) -> Result<Output, DbErr> {
        let pool = self.pool();
        let latest_timeline = pool.latest_timeline();
        let connection = self.parts.connection.as_ref();
        let is_news = connection.is_some_and(|one| one.latest_timeline() < latest_timeline);
        let promotion = is_news.then(|| pool.promotion()).flatten();
        match &mut self.parts.connection {
            Some(connection) => {
                if is_news {
                    connection.note_latest_timeline(latest_timeline, promotion);
                }
                connection.call(task).await
            }
            None => Ok(Output::Done),
        }
    }

    /// Closes a broken connection and takes another one.
    async fn exchange(&mut self) -> Result<(), Error> {
        let pool = self.pool().clone();
        tracing::debug!(target: "tower_sea_orm::pool", "a connection was dead when a session began on it: the session uses another one");
        // The cause of its death may have killed the others.
        pool.return_idle();
        self.parts.end_orphan();
        let dead = self.parts.connection.take();
        let handle = dead.and_then(|mut dead| dead.take_cancel_handle());
        // Before the wait: in a pool of one, nothing else could end it.
        self.parts.free_slot();
        if let Some(mut next) = pool.acquire(Claim::Another).await?.into_connection() {
            if let (Some(connection), Some(handle)) = (&mut next.parts.connection, handle) {
                // The session has handed it out already: from here on, it cancels what runs on the new connection.
                connection.adopt(handle);
            }
            // Its place in the registry goes along, and with it the time since which the session holds a connection.
            next.parts.holder = self.parts.holder.take();
            *self = next;
        }
        Ok(())
    }
}

impl Finished {
    fn may_begin_again(&self, task: &Task) -> bool {
        let Err(error) = &self.output else {
            return false;
        };
        // G20: only where it is known that nothing has happened. BEGIN alone does nothing, and a server that was closing the
        // connection has not read the statement.
        let is_undone = task.opens() && server::is_fatal(error) || server::came_too_late(error);
        let connection = &self.connection;
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

    pub(super) async fn begin_again(&mut self, mut task: Task) {
        // Bounded, because each of the driver's idle connections may be as dead as the first.
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
}
