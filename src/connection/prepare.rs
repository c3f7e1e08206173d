//! All that comes before the operation of a call: rollbacks, set-ups, the
//! session's own BEGIN, and statements that are prepared anew.

use sea_orm::{DbErr, Statement};

use super::{
    PinnedConnection,
    cancel::Peer,
    link::Around,
    operation::{Operation, Output},
    primary::Refusal,
    settings::Settings,
    task::{Begin, Task},
};
use crate::{
    error::{Error, Kind, server},
    sql::{Change, Effect, classify},
    telemetry::Throttle,
};

/// Behind a proxy, each transaction asks anew, and a server that does not say
/// does so each time.
static UNIDENTIFIED: Throttle = Throttle::new();

impl PinnedConnection {
    /// Makes the connection ready for the operation of `task`. `stray` says
    /// that a transaction may be open that neither the session nor the driver
    /// knows of.
    pub(super) async fn prepare(
        &mut self,
        stray: bool,
        change: Change,
        task: &mut Task,
    ) -> Result<(), DbErr> {
        // First: handles that were dropped have left transactions open, and
        // what follows belongs to the one around them (G12).
        let depth = task.depth + usize::from(self.is_begun(change, task));
        self.clear(stray, depth).await?;
        self.refuse_after_test(task)?;
        if !self.link.is_autocommit_proven {
            // Before the session's own BEGIN, which the ROLLBACK in its text
            // would undo.
            Box::pin(self.link.prove_autocommit()).await?;
        }
        // Before anything of the session runs: its settings would be recorded
        // as those from before.
        self.session_state
            .note_change(
                &mut self.link,
                &mut self.transaction,
                change,
                task.begin.as_ref(),
            )
            .await?;
        if self.timeline.is_doubtful() && self.may_prove_primary(task) {
            // Before anything of the session runs or is committed, and boxed:
            // it is rare.
            Box::pin(self.prove_primary()).await?;
        }
        if let Some(statements) = &task.on_acquire {
            // Outside any transaction, since its effects outlive them.
            self.set_up_connection(statements).await?;
        }
        // Before BEGIN if it can be: the first query freezes what a transaction
        // sees of the server's state.
        self.identify(task.identify).await?;
        self.begin_if_due(task).await?;
        if task.is(|operation| matches!(operation, Operation::Raw(_))) {
            // Such code sees sqlx's count.
            Box::pin(self.link.recount()).await?;
        }
        Ok(())
    }

    /// Returns whether the server can be asked, and its answer decides about
    /// something.
    fn may_prove_primary(&self, task: &Task) -> bool {
        let commits = task.depth == 1 && task.is(Operation::is_commit);
        task.depth == 0 || commits && !self.transaction.has_failed()
    }

    /// Refuses a server that was the primary before a fail-over. What it
    /// commits is lost.
    async fn prove_primary(&mut self) -> Result<(), DbErr> {
        let proven = self.timeline.prove(&mut self.link).await;
        let is_former = |error: &DbErr| Error::of(error).is_some_and(|known| known.is_read_only());
        if proven.as_ref().is_err_and(is_former) {
            // As for a server that refuses writes: its other connections lead
            // to the same one (H33;
            // `g18_of_two_primaries_only_the_later_one_serves`).
            self.refusal = Refusal::Server;
            self.link.give_up();
        }
        proven
    }

    /// Returns whether the transaction that `task` is to begin was begun with
    /// the last COMMIT.
    fn is_begun(&self, change: Change, task: &Task) -> bool {
        let chained = self.chain().map(|chain| chain.options);
        let due = task.begin.as_ref().map(|begin| begin.options);
        let settings = task.begin.as_ref().and_then(Begin::settings);
        // It has no place for anything that has to be done before BEGIN, or in
        // its text.
        chained.is_some()
            && chained == due
            && settings.is_none_or(Settings::is_empty)
            && task
                .begin
                .as_ref()
                .is_none_or(|begin| begin.demand().is_none())
            && change == Change::None
            && task.on_acquire.is_none()
            && !self.is_to_identify(task.identify)
    }

    fn is_to_identify(&self, peer: Option<Peer>) -> bool {
        let handle = self.cancel_handle.as_ref();
        peer.is_some_and(|peer| handle.is_none_or(|handle| handle.backend_id(peer).is_none()))
    }

    async fn begin_if_due(&mut self, task: &mut Task) -> Result<(), DbErr> {
        let Some(begin) = &task.begin else {
            return Ok(());
        };
        // Stored code that `on_begin` has called may have done more than its
        // text says, and makes the whole call doubtful (G7).
        task.doubtful |= self.begin_session(begin, task.depth).await?;
        // Once more: behind a proxy, the process is this connection's from
        // BEGIN on, and only until the transaction's end (H29).
        self.identify(task.identify).await
    }

    /// Refuses work once the transaction around a test is gone: it would be
    /// committed for good. COMMIT and ROLLBACK still go through, so that the
    /// session's own end is in order.
    fn refuse_after_test(&self, task: &Task) -> Result<(), DbErr> {
        if self.link.around == Around::EndedTest && task.depth == 0 && task.is(Operation::is_work) {
            return Err(Kind::TestEnded.into_db_err());
        }
        Ok(())
    }

    /// Rolls back what is open beyond `depth`.
    async fn clear(&mut self, stray: bool, depth: usize) -> Result<(), DbErr> {
        let mut cleared = self.roll_back_to(depth).await;
        if cleared.is_ok() && stray {
            // Raw code may have left a transaction open, and what follows is to
            // commit by itself.
            cleared = Box::pin(self.link.end_stray()).await;
        }
        if cleared.is_err() {
            self.link.give_up();
        }
        cleared
    }

    /// Learns how to stop the connection's statements, if that may be wanted.
    async fn identify(&mut self, peer: Option<Peer>) -> Result<(), DbErr> {
        let (Some(peer), Some(handle)) = (peer, &self.cancel_handle) else {
            return Ok(());
        };
        let Err(error) = handle.identify(peer, &mut self.link).await else {
            return Ok(());
        };
        // A server that does not say costs the cancel requests (G9), not the
        // request.
        if server::is_fatal(&error) {
            return Err(error);
        }
        if let Some(suppressed) = UNIDENTIFIED.next_line("unidentified", 1) {
            tracing::warn!(target: "tower_sea_orm::pool", suppressed, "statements on this connection cannot be cancelled: the server did not report the connection's process id: {error}");
        }
        if self.link.counted() > 0 {
            let depth = self.link.depth();
            // PostgreSQL has aborted the transaction by the failed question.
            self.transaction
                .note_failure(&self.link, &error, depth, false);
        }
        Ok(())
    }

    /// Begins the session's own transaction. Says what [`set_up`](Self::set_up)
    /// says.
    async fn begin_session(&mut self, begin: &Begin, depth: usize) -> Result<bool, DbErr> {
        let mut begun = self.begin_once(begin).await;
        // One of `on_begin`'s statements may find its plan stale, which outside
        // a transaction is prepared anew.
        if begun.as_ref().is_err_and(server::is_stale) && self.roll_back_to(depth).await.is_ok() {
            // Nothing of the session's own has run in it.
            begun = self.begin_once(begin).await;
        }
        // A BEGIN whose set-up has failed is not the session's: the handler may
        // go on and try again.
        if begun.is_err() && self.roll_back_to(depth).await.is_err() {
            self.link.give_up();
        }
        begun
    }

    async fn roll_back_to(&mut self, depth: usize) -> Result<(), DbErr> {
        if self.link.depth() <= depth {
            return Ok(());
        }
        // Boxed: few calls have something to roll back, and each would have
        // room for it.
        Box::pin(self.transaction.roll_back_to(&mut self.link, depth)).await
    }

    async fn begin_once(&mut self, begin: &Begin) -> Result<bool, DbErr> {
        if self.transaction.chain.take().is_some() {
            // One that is not what the session wants has been rolled back.
            self.transaction.note_options(begin.options, 0);
        } else {
            let (link, settings) = (&mut self.link, begin.settings());
            let begun = self
                .transaction
                .begin(link, begin.options, settings, begin.demand());
            // Boxed, since few calls begin a transaction and all have room for
            // it.
            Box::pin(begun).await?;
        }
        self.set_up(begin.statements()).await
    }

    async fn set_up_connection(&mut self, statements: &[Statement]) -> Result<(), DbErr> {
        let mut done = self.set_up(statements).await;
        // Stored code may have left a transaction open, in which all that
        // follows would be lost with it.
        if let Ok(true) = done {
            done = Box::pin(self.link.end_stray()).await.map(|()| true);
        }
        if done.is_err() {
            // Half set up, it must serve no session.
            self.link.give_up();
        }
        done.map(drop)
    }

    /// Runs statements that prepare a connection or a transaction, which are
    /// vetted as a handler's are. Says whether one of them may have done more
    /// than its text says.
    async fn set_up(&mut self, statements: &[Statement]) -> Result<bool, DbErr> {
        let depth = self.link.counted();
        let mut any_doubtful = false;
        for statement in statements {
            // DDL here would have MySQL commit the transaction before its first
            // statement, and the rollback behind a 4xx would undo nothing (M4,
            // G8). Shown by `set_up_statements_are_vetted_like_a_handlers`.
            let text = classify(self.link.backend, &statement.sql);
            match text.effect {
                Effect::Control(control) => return Err(Kind::Control(control).into_db_err()),
                Effect::CommitsImplicitly if depth > 0 => {
                    return Err(Kind::CommitsImplicitly.into_db_err());
                }
                Effect::None | Effect::Unknown | Effect::CommitsImplicitly => {}
            }
            let mut task = Task::set_up(statement.clone(), depth, text);
            Box::pin(self.perform_honestly(&mut task)).await?;
            // A `CALL` that commits succeeds: the session must not go on as if
            // its transaction were there (G7).
            if let Some(kind) = self.transaction.ended() {
                return Err(kind.into_db_err());
            }
            any_doubtful |= text.is_doubtful();
        }
        Ok(any_doubtful)
    }

    /// After the task's statement found its plan stale: has all statements
    /// prepared anew, and runs this one, since nothing of it has run.
    async fn prepare_anew(&mut self, error: DbErr, task: &mut Task) -> Result<Output, DbErr> {
        // Even where it is not run again: otherwise it would fail for as long
        // as the connection lives. Shown by
        // `a_stale_plan_in_a_transaction_costs_one_request`.
        self.link.driver.forget_statements().await?;
        let (operation, may_be_stale) = (task.operation.as_ref(), self.link.may_be_stale());
        let again = operation.filter(|_| may_be_stale && server::has_not_run(&error));
        let Some(mut again) = again.and_then(Operation::copy_of_prepared) else {
            return Err(error);
        };
        tracing::debug!(target: "tower_sea_orm::session", "a prepared statement was stale and is run again: {error}");
        let (link, transaction) = (&mut self.link, &mut self.transaction);
        let output = again.perform(link, transaction, task.text.reads_only).await;
        if output.as_ref().is_err_and(server::is_stale) && !self.link.in_memory {
            // More than this statement is stale on this connection.
            self.session_state.give_up();
        }
        output
    }

    /// Behind DDL, has the connection prepare all statements anew. In a
    /// transaction of PostgreSQL, the next one that no longer fits its tables
    /// would abort it, and in each further attempt as well (G20); on SQLite,
    /// rows would be lost with a panic of sqlx's. Shown by
    /// `a_request_may_change_the_tables_that_it_reads`.
    pub(super) async fn forget_outdated(&mut self) -> Result<(), DbErr> {
        self.transaction.note_outdated();
        self.link.driver.forget_statements().await
    }

    /// After an error that may not be what it looks like.
    pub(super) async fn look_into(
        &mut self,
        error: DbErr,
        task: &mut Task,
    ) -> Result<Output, DbErr> {
        if server::is_stale(&error) {
            self.prepare_anew(error, task).await
        } else {
            Err(self.unless_lost(error).await)
        }
    }

    /// After an error with the code of a connection's end, which a stored
    /// program may have raised: whether the connection answers decides.
    async fn unless_lost(&mut self, error: DbErr) -> DbErr {
        match self.is_alive().await {
            true => server::raised(error),
            false => error,
        }
    }
}
