//! One call: what comes before the operation, the operation, and what its
//! result means.

use std::pin::pin;

use sea_orm::{DbBackend, DbErr, RuntimeErr};

use super::{
    PinnedConnection,
    link::Condition,
    operation::{Operation, Output},
    primary::Refusal,
    session_state::foresee,
    task::Task,
};
use crate::{
    error::{Kind, server},
    sql::Change,
};

impl PinnedConnection {
    /// Rolls back to the task's depth, makes the connection ready, runs the
    /// operation, then reads all there is.
    pub(crate) async fn call(&mut self, task: &mut Task) -> Result<Output, DbErr> {
        let change = foresee(&self.link, task);
        self.refusal.forget_answer();
        self.session_state.reset = task.reset;
        // Deeper, COMMIT is the release of a savepoint. Where its answer is
        // lost, so is the transaction, and nothing is unknown.
        let commits = task.depth == 1 && task.is(Operation::is_commit);
        let is_suspect = self.link.condition == Condition::Suspect;
        // Inside the session's own transaction, the ROLLBACK would end that:
        // the connection stays suspect until it is over.
        let stray = is_suspect && task.depth == 0;
        if self.link.condition == Condition::Known {
            // A call whose future is dropped leaves it so, and the connection
            // is never taken for a clean one.
            self.link.condition = Condition::Busy;
        }
        let output = self.perform_unless_lost(stray, change, task).await;
        let output = self.note_loss(output, commits);
        // Before the transaction is forgotten: one that was begun READ ONLY
        // refuses by itself.
        if let Err(error) = &output {
            self.refusal.note(&self.link, &self.transaction, error);
        }
        let depth = self.depth();
        self.transaction.forget_beyond(depth);
        self.session_state.forget_beyond(depth);
        // The BEGIN before the operation may have taken effect, although the
        // call has failed.
        let half_begun = output.is_err() && task.is_half_begun();
        let is_doubtful = is_suspect && !stray || task.doubtful || half_begun;
        // An earlier call may have been refused where the server did not answer
        // yet.
        if output.is_err() || self.refusal == Refusal::Unasked {
            // Boxed: it is rare, and all calls would have room for it.
            return Box::pin(self.conclude_failed(output, is_doubtful, task.stoppable)).await;
        }
        self.conclude(is_doubtful, task.stoppable);
        output
    }

    /// A call has failed, or an earlier one was refused.
    async fn conclude_failed(
        &mut self,
        mut output: Result<Output, DbErr>,
        is_doubtful: bool,
        stoppable: bool,
    ) -> Result<Output, DbErr> {
        if output.is_err() {
            // Where a step before the operation has failed, its answer is not
            // read to the end yet.
            self.read_what_is_left(&mut output, false, false).await;
        }
        self.conclude(is_doubtful, stoppable);
        // At once where it can be, so that the next request goes to the new
        // primary already (G18). Shown by
        // `g18_after_a_failover_every_way_to_write_reaches_the_other_server`.
        if self.refusal == Refusal::Unasked && self.ask_server().await.is_err() {
            self.give_up();
        }
        output
    }

    /// The call has ended.
    fn conclude(&mut self, is_doubtful: bool, stoppable: bool) {
        self.link.condition = match self.link.condition {
            unusable @ (Condition::Broken | Condition::Lost) => unusable,
            _ if is_doubtful => Condition::Suspect,
            _ => Condition::Known,
        };
        // Not before: of a stream that was dropped, the server may have had
        // much left to send.
        if let Some(handle) = self.cancel_handle.as_ref().filter(|_| stoppable) {
            handle.end_work();
        }
    }

    /// Performs the operation, with what has to come before it. Where its
    /// answer is known to be lost, it has failed with its connection.
    async fn perform_unless_lost(
        &mut self,
        stray: bool,
        change: Change,
        task: &mut Task,
    ) -> Result<Output, DbErr> {
        // The call borrows all of `self`.
        let handle = self.cancel_handle.clone();
        // Without a handle, nothing ever asks the server whether it still works
        // for the call.
        let size = if handle.is_some() { task.size() } else { 0 };
        let ended = {
            let mut performing = pin!(async {
                self.prepare(stray, change, task).await?;
                // Behind all preparations: nothing of them may be stopped, and
                // what is abandoned already is not begun.
                if task.stoppable && !self.cancel_handle().start_work() {
                    return Err(Kind::SessionClosed.into_db_err());
                }
                self.perform_honestly(task).await
            });
            match handle {
                Some(handle) => handle.unless_lost(performing.as_mut(), size).await,
                None => Some(performing.await),
            }
        };
        ended.unwrap_or_else(|| {
            self.link.lose();
            if task.doubtful && self.depth() > 0 {
                // With the connection, the proof is lost as well.
                self.transaction.end(Kind::EndedElsewhere);
            }
            Err(server::unanswered())
        })
    }

    /// Notes whether the connection was lost. With it, the answer to a COMMIT
    /// is.
    fn note_loss(&mut self, output: Result<Output, DbErr>, commits: bool) -> Result<Output, DbErr> {
        let Err(error) = &output else { return output };
        // Also where it did not outlive its answer: what comes in between may
        // have given that, and not the server.
        // Not where the crate itself has refused it, which closes the
        // connection to a former primary.
        let is_the_drivers = !matches!(error, DbErr::Conn(RuntimeErr::Internal(_)));
        let is_lost = self.is_broken() && is_the_drivers || server::is_fatal(error);
        if !is_lost && !server::is_commit_interrupted(error) {
            return output;
        }
        if server::is_worker_gone(error) {
            // Even in memory: with its thread, the connection is dead. Lost and
            // not broken, since nothing would ever answer sqlx's goodbye, and
            // the place in its pool stayed taken.
            self.link.lose();
        } else if !self.link.in_memory {
            // A database in memory would die with its connection, and has no
            // network to lose (H22).
            self.give_up();
        }
        // Without it, the server has rolled back.
        if !commits || server::was_not_read(error) {
            return output;
        }
        // It may have taken effect unheard: neither a success nor a rollback
        // may be told, and nothing is tried again (H17). Shown by
        // `a_backend_ended_in_the_midst_of_commit_is_unknown`.
        tracing::warn!(target: "tower_sea_orm::session", "COMMIT was lost or given up: {error}");
        Err(Kind::OutcomeUnknown.into_db_err())
    }

    /// Performs the operation unless it would pretend that a transaction goes
    /// on which the server has given up, and notes whether it has now.
    pub(super) async fn perform_honestly(&mut self, task: &mut Task) -> Result<Output, DbErr> {
        let operation = task.operation.as_ref();
        if let Some(kind) = operation.and_then(|operation| self.transaction.refuses(operation)) {
            // Sent all the same, MySQL and SQLite would run it outside any
            // transaction and commit it by itself (H8). Shown by
            // `h8_a_deadlocks_victim_on_mysql_neither_autocommits_nor_commits`.
            return Err(kind.into_db_err());
        }
        let depth = self.depth();
        // In a test's transaction a statement that fails must not spoil what
        // surrounds it.
        if self.link.is_test() && depth == 0 && task.is(Operation::is_statement) {
            return Box::pin(self.perform_isolated(task)).await;
        }
        if task.doubtful && depth > 0 {
            // It may be a `CALL` that commits: then what follows would commit
            // by itself (G7, H15).
            return Box::pin(self.perform_guarded(task, depth)).await;
        }
        if self.may_leave_open(task) {
            return Box::pin(self.perform_closed(task, depth)).await;
        }
        self.perform_noting(task, depth).await
    }

    /// Performs stored code outside a transaction, and fails if it leaves one
    /// open.
    async fn perform_closed(&mut self, task: &mut Task, depth: usize) -> Result<Output, DbErr> {
        let output = self.perform_noting(task, depth).await?;
        // In autocommit nothing would ever commit it, and later statements
        // would be lost with it
        // (`stored_code_that_leaves_a_transaction_open_has_failed`).
        if self.link.was_left_open().await? {
            return Err(Kind::LeftOpenByCode.into_db_err());
        }
        Ok(output)
    }

    /// Returns whether stored code that is called outside a transaction may
    /// leave one open, which nothing would commit. Raw code has no answer that
    /// could say so: its connection is suspect, and is cleaned.
    fn may_leave_open(&self, task: &Task) -> bool {
        self.link.backend == DbBackend::MySql
            && !self.link.is_test()
            && task.doubtful
            && task.is(Operation::is_text)
    }

    /// Performs an operation that may end the transaction around it, and finds
    /// out whether it has.
    async fn perform_guarded(&mut self, task: &mut Task, depth: usize) -> Result<Output, DbErr> {
        // First, since it bears a lower number: releasing it later would
        // release the guard as well.
        self.transaction.release_leftover(&mut self.link).await;
        // If it is gone behind the code, so is the transaction: that is the
        // proof (H15; `h15_stored_code_that_commits_is_noticed`).
        self.link.set_guard().await?;
        let output = self.perform_noting(task, depth).await;
        let is_lost = output.as_ref().is_err_and(server::is_fatal);
        if is_lost || !self.transaction.is_guarded(&mut self.link, depth).await {
            self.transaction.end(Kind::EndedElsewhere);
            self.link.end_test();
        }
        output
    }

    /// Performs the operation, reads its answer to the end, and notes what its
    /// failure did to the transaction of this `depth`.
    async fn perform_noting(&mut self, task: &mut Task, depth: usize) -> Result<Output, DbErr> {
        // Asked before the operation is taken.
        let commits = depth == 1 && task.is(Operation::is_commit);
        let is_stream = task.is(Operation::is_stream);
        // Matched where it arrives: kept as a whole, it would have room of its
        // own in the future of every call.
        let error = match self.perform_whole(task, commits).await {
            Ok(output) => return Ok(output),
            Err(error) => error,
        };
        if depth > 0 {
            // Behind the error itself: where that says that the transaction has
            // ended, no round trip is spent.
            let (link, transaction) = (&mut self.link, &mut self.transaction);
            transaction.note_failure(link, &error, depth, commits);
            Box::pin(transaction.note_if_vanished(link, &error)).await;
            if is_stream {
                transaction.note_unheard(depth);
            }
        }
        Err(error)
    }

    /// Performs the operation and reads its answer to the end.
    async fn perform_whole(&mut self, task: &mut Task, commits: bool) -> Result<Output, DbErr> {
        let output = self.perform(task).await;
        // Moved, and not bound as `mut` where it arrives: the future of every
        // call would have room for it.
        let mut output = output;
        self.read_what_is_left(&mut output, commits, task.text.outdates)
            .await;
        output
    }

    /// Reads what the server has still to say of a call. An error in it is the
    /// call's own, unless that was a COMMIT: one that was acknowledged stays
    /// true.
    async fn read_what_is_left(
        &mut self,
        output: &mut Result<Output, DbErr>,
        commits: bool,
        outdates: bool,
    ) {
        if self.is_broken() || output.as_ref().is_err_and(server::is_fatal) {
            return;
        }
        // On PostgreSQL, sqlx returns an error before the server says that it
        // is ready for the next query. What is left unread, the next call would
        // take for its answer. Shown by
        // `h23_every_request_gets_its_own_result`.
        let error = match self.link.driver.drain().await {
            Ok(None) if outdates && output.is_ok() => {
                // Boxed: DDL is rare, and all calls would have room for it.
                match Box::pin(self.forget_outdated()).await {
                    Ok(()) => return,
                    Err(error) => error,
                }
            }
            Ok(None) => return,
            Ok(Some(error)) => {
                // PostgreSQL has aborted the transaction by it, whatever came
                // before.
                let depth = self.depth();
                if depth > 0 {
                    self.transaction
                        .note_failure(&self.link, &error, depth, false);
                }
                error
            }
            Err(error) => {
                self.give_up();
                error
            }
        };
        if !commits && output.is_ok() {
            *output = Err(error);
        }
    }

    /// Performs a statement of a test behind a savepoint.
    async fn perform_isolated(&mut self, task: &mut Task) -> Result<Output, DbErr> {
        // PostgreSQL would abort the test's transaction by one statement that
        // fails, and refuse all that the test does afterwards. Shown by
        // `a_failed_statement_spoils_neither_the_session_nor_the_test`.
        self.link.set_guard().await?;
        let mut output = self.perform(task).await;
        self.read_what_is_left(&mut output, false, false).await;
        let released = match &output {
            // A dead thread would leave it without an answer.
            Err(error) if server::is_worker_gone(error) => return output,
            Err(_) => self.link.undo_guard().await,
            Ok(_) => match self.link.release_guard().await {
                // Raw code has passed over a statement that failed.
                Err(error) if server::is_aborted(&error) => self.link.undo_guard().await,
                released => released,
            },
        };
        let Err(error) = released else { return output };
        if server::is_fatal(&error) {
            return output.and(Err(error));
        }
        self.link.end_test();
        output.and(Err(Kind::TestEnded.into_db_err()))
    }

    async fn perform(&mut self, task: &mut Task) -> Result<Output, DbErr> {
        // Asked before the operation is taken.
        let is_text = task.is(Operation::is_text);
        let (link, transaction) = (&mut self.link, &mut self.transaction);
        let mut operation = task.take_operation(link.may_be_stale());
        let reads_only = task.text.reads_only;
        let error = match operation.perform(link, transaction, reads_only).await {
            Ok(output) => return Ok(output),
            Err(error) => error,
        };
        if server::is_stale(&error) || is_text && server::may_be_raised(&error) {
            // One call for both: with two, the error would have room of its own
            // in the future of every call.
            return Box::pin(self.look_into(error, task)).await;
        }
        Err(error)
    }
}
