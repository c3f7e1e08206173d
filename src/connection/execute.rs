//! One call: what comes before the operation, the operation, and what its result means.

use std::{
    future::poll_fn,
    pin::pin,
    task::{Context, Poll},
};

use sea_orm::{AccessMode, DbBackend, DbErr, Statement, TransactionOptions};

use super::{
    Begin, Failed, Operation, Output, PinnedConnection, Refusal, State, Task,
    begin::begin_statement, driver,
};
use crate::{
    error::{Kind, server},
    sql::{Change, Effect, classify},
};

impl PinnedConnection {
    /// Rolls back to the task's depth, makes the connection ready, runs the operation, then reads
    /// all there is.
    pub(crate) async fn call(&mut self, task: &mut Task) -> Result<Output, DbErr> {
        let change = self.foresee(task);
        self.refusal = if self.refusal == Refusal::Servers {
            Refusal::None
        } else {
            self.refusal
        };
        self.reset = task.reset;
        let depth = task.depth;
        let commits = matches!(task.operation, Some(Operation::Commit)) && depth == 1;
        self.state = if self.state == State::Known {
            State::Busy
        } else {
            self.state
        };
        let stray = self.state == State::Suspect && depth == 0;
        let was_suspect = self.state == State::Suspect && !stray;
        let mut output = self.perform_unless_lost(stray, change, task).await;
        let fatal = output
            .as_ref()
            .err()
            .filter(|error| server::is_fatal(error));
        if let Some(error) = fatal {
            if commits {
                tracing::warn!(target: "tower_sea_orm::session", "the connection was lost while COMMIT was under way: {error}");
            }
            self.state = if self.in_memory {
                self.state
            } else {
                State::Broken
            };
            output = if commits {
                Err(Kind::OutcomeUnknown.into_db_err())
            } else {
                output
            };
        }
        if let Err(error) = &output {
            self.note_refusal(error);
        }
        self.forget_what_is_over();
        if output.is_err() {
            output = self.read_what_is_left(output, false).await;
        }
        if self.state != State::Broken {
            // A half of what was to be there before the operation may be.
            let half_begun = output.is_err() && task.begin.is_some() && task.operation.is_some();
            self.state = if was_suspect || task.doubtful || half_begun {
                State::Suspect
            } else {
                State::Known
            };
        }
        // Not before: of a stream that was dropped, the server may have had much left to send.
        if let Some(victim) = self.victim.as_ref().filter(|_| task.stoppable) {
            victim.works(false);
        }
        if self.refusal == Refusal::Unasked && Box::pin(self.ask_who_refuses()).await.is_err() {
            self.state = State::Broken;
        }
        output
    }

    /// Performs the operation, with what has to come before it. Where its answer is known to be lost, it has failed
    /// with its connection.
    async fn perform_unless_lost(
        &mut self,
        stray: bool,
        change: Change,
        task: &mut Task,
    ) -> Result<Output, DbErr> {
        let victim = self
            .victim
            .clone()
            .map(|victim| (victim.next_turn(), victim));
        let ended = {
            let mut performing = pin!(async {
                match self.arrange(stray, change, task).await {
                    Ok(()) if !self.is_wanted(task) => Err(Kind::SessionClosed.into_db_err()),
                    Ok(()) => self.perform_honestly(task).await,
                    Err(error) => Err(error),
                }
            });
            poll_fn(|cx| {
                let Some((turn, victim)) = &victim else {
                    return performing.as_mut().poll(cx).map(Some);
                };
                let waker = victim.count_wakes(cx.waker());
                match performing.as_mut().poll(&mut Context::from_waker(&waker)) {
                    Poll::Ready(ended) => Poll::Ready(Some(ended)),
                    // Only now: what has arrived is not lost.
                    Poll::Pending if victim.is_lost(*turn) => Poll::Ready(None),
                    Poll::Pending => Poll::Pending,
                }
            })
            .await
        };
        if let Some((_, victim)) = &victim {
            victim.forget_waker();
        }
        ended.unwrap_or_else(|| {
            if task.doubtful && self.depth() > 0 {
                // With the connection, the proof is lost as well.
                self.failed = Some(Failed::Ended(Kind::EndedElsewhere));
                self.ended_elsewhere = true;
            }
            Err(driver::unanswered())
        })
    }

    /// Everything that has to be there before the operation.
    async fn arrange(&mut self, stray: bool, change: Change, task: &mut Task) -> Result<(), DbErr> {
        let depth = task.depth;
        let mut cleared = self.roll_back_to(depth).await;
        if cleared.is_ok() && stray {
            // Raw code may have left a transaction open, and what follows is to commit by itself.
            cleared = Box::pin(self.end_stray()).await;
        }
        if let Err(error) = cleared {
            self.state = State::Broken;
            return Err(error);
        }
        if task.identify.is_some()
            && self.driver.depth() == 0
            && let Some(victim) = &self.victim
        {
            victim.outside();
        }
        if self.base_ended && depth == 0 && task.operation.as_ref().is_some_and(Operation::is_work)
        {
            return Err(Kind::TestEnded.into_db_err());
        }
        if !self.is_proven {
            Box::pin(self.prove()).await?;
        }
        self.note_change(change, task.begin.as_ref()).await?;
        if let Some(statements) = &task.on_acquire
            && let Err(error) = self.set_up_connection(statements).await
        {
            // Half set up, it must serve nobody.
            self.state = State::Broken;
            return Err(error);
        }
        // Before BEGIN if it can be: the first query freezes what a transaction sees of the server's state.
        if let Some(route) = task.identify {
            self.identify(route).await?;
        }
        if let Some(begin) = &task.begin {
            let mut prepared = self.begin_prepared(begin).await;
            if prepared.as_ref().is_err_and(server::is_stale)
                && self.roll_back_to(depth).await.is_ok()
            {
                // Nothing of the session's own has run in it.
                prepared = self.begin_prepared(begin).await;
            }
            match prepared {
                Ok(doubtful) => task.doubtful |= doubtful,
                Err(error) => {
                    if self.roll_back_to(depth).await.is_err() {
                        self.state = State::Broken;
                    }
                    return Err(error);
                }
            }
            if let Some(route) = task.identify {
                self.identify(route).await?;
            }
        }
        Ok(())
    }

    /// Begins the session's own transaction. Says what [`set_up`](Self::set_up) says.
    async fn begin_prepared(&mut self, begin: &Begin) -> Result<bool, DbErr> {
        self.begin(begin.options).await?;
        self.set_up(&begin.set_up).await
    }

    async fn set_up_connection(&mut self, statements: &[Statement]) -> Result<(), DbErr> {
        if self.set_up(statements).await? {
            Box::pin(self.end_stray()).await?;
        }
        Ok(())
    }

    /// Runs statements that prepare a connection or a transaction, which are vetted as a handler's are.
    /// Says whether one of them may have done more than its text tells.
    async fn set_up(&mut self, statements: &[Statement]) -> Result<bool, DbErr> {
        let depth = self.driver.depth();
        let mut any_doubtful = false;
        for statement in statements {
            let text = classify(self.backend, &statement.sql);
            match text.effect {
                Effect::Control(control) => return Err(Kind::Control(control).into_db_err()),
                Effect::CommitsImplicitly if depth > 0 => {
                    return Err(Kind::CommitsImplicitly.into_db_err());
                }
                Effect::None | Effect::Unknown | Effect::CommitsImplicitly => {}
            }
            let mut task = Task::set_up(statement.clone(), depth, text);
            Box::pin(self.perform_honestly(&mut task)).await?;
            if let Some(Failed::Ended(kind)) = self.failed {
                return Err(kind.into_db_err());
            }
            any_doubtful |= text.is_doubtful();
        }
        Ok(any_doubtful)
    }

    /// Whether anybody still wants what may be stopped; then it may be from here on.
    fn is_wanted(&mut self, task: &Task) -> bool {
        if !task.stoppable {
            return true;
        }
        let victim = self.cancel_handle();
        let is_wanted = !victim.is_abandoned();
        if is_wanted {
            victim.works(true);
        }
        is_wanted
    }

    /// Performs the operation unless it would pretend that a transaction goes on which the server has
    /// given up, and notes whether it has now.
    async fn perform_honestly(&mut self, task: &mut Task) -> Result<Output, DbErr> {
        let operation = task.operation.as_ref();
        if let Some(kind) = operation.and_then(|operation| self.refuses(operation)) {
            return Err(kind.into_db_err());
        }
        let depth = self.depth();
        let commits = matches!(operation, Some(Operation::Commit)) && depth == 1;
        let is_stream = operation.is_some_and(|operation| operation.reader().is_some());
        let is_text = operation.is_some_and(|operation| operation.text().is_some());
        // In a test's transaction a statement that fails must not spoil what surrounds it.
        let isolated =
            self.base > 0 && depth == 0 && operation.is_some_and(Operation::is_statement);
        if isolated {
            return Box::pin(self.perform_isolated(task)).await;
        }
        let guarded = task.doubtful && depth > 0;
        if guarded {
            Box::pin(self.release_leftover()).await;
            self.driver
                .execute_unprepared(format!("SAVEPOINT {GUARD}"))
                .await?;
        }
        let mut output = self.perform(task).await;
        output = self.read_what_is_left(output, commits).await;
        if let Err(error) = &output
            && depth > 0
        {
            self.note_failure(error, depth, commits);
            if self.failed.is_none() && !server::is_fatal(error) && self.has_vanished(error).await {
                self.failed = Some(Failed::Ended(Kind::Aborted));
            }
            if is_stream {
                self.may_be_heard = self.failed.is_none();
                self.failed.get_or_insert(Failed::Unheard(depth));
            }
        }
        // With the connection, the proof is lost as well.
        if guarded
            && (output.as_ref().is_err_and(server::is_fatal) || !self.is_guarded(depth).await)
        {
            self.failed = Some(Failed::Ended(Kind::EndedElsewhere));
            self.ended_elsewhere = true;
            self.base_ended |= self.base > 0;
        }
        let may_be_open = task.doubtful
            && is_text
            && depth == 0
            && self.base == 0
            && self.backend == DbBackend::MySql;
        if may_be_open && output.is_ok() && Box::pin(self.was_left_open()).await? {
            return Err(Kind::LeftOpenByCode.into_db_err());
        }
        output
    }

    /// Reads what the server has still to say of a call. An error in it is the call's own, unless that was a
    /// COMMIT: one that was acknowledged stays true.
    async fn read_what_is_left(
        &mut self,
        output: Result<Output, DbErr>,
        commits: bool,
    ) -> Result<Output, DbErr> {
        if self.state == State::Broken || output.as_ref().is_err_and(server::is_fatal) {
            return output;
        }
        let error = match self.driver.drain().await {
            Ok(None) => return output,
            Ok(Some(error)) => {
                // PostgreSQL has aborted the transaction by it, whatever came before.
                if self.depth() > 0 {
                    self.note_failure(&error, self.depth(), false);
                }
                error
            }
            Err(error) => {
                self.state = State::Broken;
                error
            }
        };
        if commits {
            output
        } else {
            output.and(Err(error))
        }
    }

    /// Whether the transaction that was open before an opaque operation is still the same: then the
    /// savepoint from before it is still there.
    async fn is_guarded(&mut self, depth: usize) -> bool {
        if self.depth() < depth || self.roll_back_to(depth).await.is_err() {
            self.state = State::Broken;
            return false;
        }
        let Err(error) = self
            .driver
            .execute_unprepared(format!("RELEASE SAVEPOINT {GUARD}"))
            .await
        else {
            return true;
        };
        if server::is_fatal(&error) {
            self.state = State::Broken;
        } else if server::is_aborted(&error) {
            self.failed.get_or_insert(Failed::Aborted(depth));
            return true;
        }
        false
    }

    async fn perform_isolated(&mut self, task: &mut Task) -> Result<Output, DbErr> {
        self.driver
            .execute_unprepared(format!("SAVEPOINT {GUARD}"))
            .await?;
        let mut output = self.perform(task).await;
        output = self.read_what_is_left(output, false).await;
        let mut released = self.release_guard(output.is_err()).await;
        if output.is_ok() && released.as_ref().is_err_and(server::is_aborted) {
            // Raw code has passed over a statement that failed.
            released = self.release_guard(true).await;
        }
        let Err(error) = released else { return output };
        if server::is_fatal(&error) {
            return output.and(Err(error));
        }
        self.base_ended = true;
        output.and(Err(Kind::TestEnded.into_db_err()))
    }

    async fn release_guard(&mut self, undo: bool) -> Result<(), DbErr> {
        if undo {
            self.driver
                .execute_unprepared(format!("ROLLBACK TO SAVEPOINT {GUARD}"))
                .await?;
        }
        self.driver
            .execute_unprepared(format!("RELEASE SAVEPOINT {GUARD}"))
            .await
            .map(drop)
    }

    async fn perform(&mut self, task: &mut Task) -> Result<Output, DbErr> {
        let operation = task.take_operation();
        let again = self.spare(&operation);
        let reads_only = task.text.reads_only;
        match self.perform_once(operation, reads_only).await {
            Err(error) if server::is_stale(&error) => {
                Box::pin(self.prepare_anew(error, again, reads_only)).await
            }
            output => output,
        }
    }

    /// What few calls need is boxed, so that the others fit into a small one.
    pub(super) async fn perform_once(
        &mut self,
        operation: Operation,
        reads_only: bool,
    ) -> Result<Output, DbErr> {
        match operation {
            Operation::Execute(statement) => self
                .driver
                .execute(statement, self.named)
                .await
                .map(Output::Executed),
            Operation::Unprepared(sql) => self
                .driver
                .execute_unprepared(sql)
                .await
                .map(Output::Executed),
            Operation::One(statement) => self
                .driver
                .query_one(statement, self.named, reads_only)
                .await
                .map(Output::Row),
            Operation::All(statement) => self
                .driver
                .query_all(statement, self.named)
                .await
                .map(Output::Rows),
            #[cfg(feature = "stream")]
            Operation::Stream(statement, mut rows) => Box::pin(
                self.driver
                    .stream(statement, &mut rows, self.named, reads_only),
            )
            .await
            .map(|()| Output::Done),
            Operation::Begin(options) => self.begin(options).await.map(|()| Output::Done),
            Operation::Commit => self.commit().await.map(|()| Output::Done),
            Operation::Rollback => {
                let came_too_late =
                    matches!(self.failed, Some(Failed::Ended(Kind::EndedElsewhere)));
                self.roll_back_one().await?;
                if came_too_late {
                    Err(Kind::EndedElsewhere.into_db_err())
                } else {
                    Ok(Output::Done)
                }
            }
            Operation::Ping => Box::pin(self.driver.ping()).await.map(|()| Output::Done),
            Operation::Settle => Ok(Output::Done),
            Operation::Raw(code) => code(&mut self.driver).await.map(|()| Output::Done),
        }
    }

    async fn begin(&mut self, options: TransactionOptions) -> Result<(), DbErr> {
        // A test's sessions have a savepoint where others have a transaction.
        let options = if self.base > 0 && self.depth() == 0 {
            TransactionOptions::default()
        } else {
            options
        };
        let reads_only = options.access_mode == Some(AccessMode::ReadOnly);
        let begin = begin_statement(self.backend, options, self.driver.depth())?;
        let several = begin
            .statement
            .as_ref()
            .is_some_and(|sql| sql.contains(';'));
        let begun = Box::pin(self.driver.begin(begin.statement)).await;
        if begun.is_err() && several {
            // The first half may have taken effect: the next transaction must not inherit it.
            self.state = State::Broken;
        }
        begun?;
        self.reads_only |= reads_only;
        if begin.query_only {
            self.query_only = true;
            self.driver
                .execute_unprepared("PRAGMA query_only = 1".to_owned())
                .await?;
        }
        Ok(())
    }

    async fn commit(&mut self) -> Result<(), DbErr> {
        if self.base > 0 && self.depth() == 1 && self.backend == DbBackend::Postgres {
            self.driver
                .execute_unprepared(CHECK_CONSTRAINTS.to_owned())
                .await?;
        }
        self.driver.commit().await?;
        if self.end_query_only().await.is_err() {
            // Committed it is nevertheless.
            self.state = State::Broken;
        }
        Ok(())
    }
}

/// Names the savepoint around code that cannot be looked into.
const GUARD: &str = "tower_sea_orm_guard";

/// Checks deferred constraints, as the COMMIT that a test's sessions do not send would, and leaves
/// them deferred.
const CHECK_CONSTRAINTS: &str = "SAVEPOINT tower_sea_orm_check; SET CONSTRAINTS ALL IMMEDIATE; \
     ROLLBACK TO SAVEPOINT tower_sea_orm_check; RELEASE SAVEPOINT tower_sea_orm_check";
