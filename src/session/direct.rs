//! Sessions that pass their statements through (mock, proxy, plain handles): their transaction is
//! one of SeaORM's own.

use std::sync::Arc;

use sea_orm::{ConnectionTrait, DatabaseTransaction, DbBackend, DbErr, TransactionTrait};

use super::{
    core::Core,
    plan::Mode,
    stack::{Level, Who},
    transaction::SessionTransaction,
    turn::Turn,
};
use crate::error::{Error, Kind, server};

impl Core {
    /// Whether `who` may run a statement now.
    pub(super) fn admit_direct(&self, who: Who) -> Result<(), DbErr> {
        self.check_open()?;
        let mut state = self.lock();
        state.admit(who).map_err(Kind::into_db_err)?;
        if state.through.is_any_parked() {
            return Err(Kind::NestedOpen.into_db_err());
        }
        // PostgreSQL refuses by itself; elsewhere, what follows would commit by itself.
        let is_given_up = state.through.is_given_up(state.stack.depth());
        if is_given_up && self.pool().backend() != DbBackend::Postgres {
            return Err(Kind::Aborted.into_db_err());
        }
        Ok(())
    }

    /// Whether `who` may begin a transaction now.
    pub(super) fn admit_begin(&self, who: Who) -> Result<(), DbErr> {
        self.admit_direct(who)?;
        let state = self.lock();
        if state.through.is_given_up(state.stack.depth()) {
            Err(Kind::Aborted.into_db_err())
        } else {
            Ok(())
        }
    }

    /// Whether `who` may end its transaction now.
    pub(super) fn admit_end(&self, who: Who) -> Result<(), DbErr> {
        let mut state = self.lock();
        state.admit(who).map_err(Kind::into_db_err)?;
        if state.through.is_any_parked() {
            Err(Kind::NestedOpen.into_db_err())
        } else {
            Ok(())
        }
    }

    /// Notes what a failed statement did to the transaction around it.
    pub(super) fn heed<T>(&self, result: Result<T, DbErr>) -> Result<T, DbErr> {
        let Err(error) = &result else { return result };
        let backend = self.pool().backend();
        // A mock's errors have no codes. On PostgreSQL none are needed.
        let is_mocked =
            backend == DbBackend::Postgres && self.pool().database().is_mock_connection();
        if server::aborts(backend, error) || is_mocked && Error::of(error).is_none() {
            let mut state = self.lock();
            let depth = state.stack.depth();
            state.through.give_up(depth, backend != DbBackend::Postgres);
        }
        result
    }

    /// The session's own transaction, begun if it has not been; `None` in autocommit.
    pub(super) async fn direct_transaction(
        self: &Arc<Self>,
    ) -> Result<Option<Arc<DatabaseTransaction>>, DbErr> {
        self.admit_direct(Who::Session)?;
        self.set_up_direct().await?;
        if !self.lock().is_transactional() {
            self.lock().stack.standing.stored();
            return Ok(None);
        }
        let open = self.lock().through.own().cloned();
        if let Some(transaction) = open {
            return Ok(Some(transaction));
        }
        let core = self.clone();
        self.enqueue(async move {
            let _turn = core.turn(Who::Session).await?;
            let begun = core.begin_direct().await;
            if let Err(error) = &begun {
                core.lock()
                    .stack
                    .failures
                    .not_begun(Error::of_begin(error.clone()));
            }
            begun
        })
        .await
    }

    async fn begin_direct(&self) -> Result<Option<Arc<DatabaseTransaction>>, DbErr> {
        self.admit_direct(Who::Session)?;
        let (mode, set_up) = {
            let state = self.lock();
            if let Some(transaction) = state.through.own() {
                return Ok(Some(transaction.clone()));
            }
            (state.rules.mode, state.rules.on_begin.clone())
        };
        let Mode::Transaction(options) = mode else {
            return Ok(None);
        };
        let begun = self.pool().database().begin_with_options(options).await;
        let transaction = begun.inspect_err(|error| self.lock().note_failure(error, 0, true))?;
        for statement in set_up.iter().flat_map(|set_up| set_up.iter()) {
            self.vet(Who::Session, &statement.sql)?;
            transaction.execute_raw(statement.clone()).await?;
        }
        let transaction = Arc::new(transaction);
        let mut state = self.lock();
        state.stack.failures.acquired();
        state.stack.failures.begun();
        state.begun(transaction.clone());
        Ok(Some(transaction))
    }

    /// There is no connection that has to be set up, but a test is to see the statements.
    async fn set_up_direct(self: &Arc<Self>) -> Result<(), DbErr> {
        if !self.lock().fresh {
            return Ok(());
        }
        let core = self.clone();
        self.enqueue(async move {
            let _turn = core.turn(Who::Session).await?;
            core.run_set_up_direct().await
        })
        .await
    }

    async fn run_set_up_direct(&self) -> Result<(), DbErr> {
        let set_up = {
            let state = self.lock();
            state.rules.on_acquire.clone().filter(|_| state.fresh)
        };
        for statement in set_up.iter().flat_map(|set_up| set_up.iter()) {
            self.vet(Who::Session, &statement.sql)?;
            self.pool()
                .database()
                .execute_raw(statement.clone())
                .await?;
        }
        self.lock().fresh = false;
        Ok(())
    }

    /// There is no connection to give back, but the same rule.
    pub(super) fn release_direct(&self) -> Result<(), DbErr> {
        self.admit_direct(Who::Session)?;
        let mut state = self.lock();
        if state.stack.depth() > 0 {
            return Err(Kind::TransactionOpen.into_db_err());
        }
        state.fresh = true;
        Ok(())
    }

    /// Ends the session's own transaction early.
    pub(super) async fn end_direct(
        self: &Arc<Self>,
        turn: Turn,
        transaction: Arc<DatabaseTransaction>,
        commits: bool,
    ) -> Result<(), DbErr> {
        let transaction =
            Arc::into_inner(transaction).ok_or_else(|| Kind::StillRunning.into_db_err())?;
        let ended = self.end_through(transaction, commits, 1).await;
        let mut state = self.lock();
        if commits {
            state
                .stack
                .own_committed(ended.clone().map_err(Error::of_commit));
        } else {
            state.stack.hooks.rolled_back_to(0);
        }
        drop(state);
        drop(turn);
        self.run_hooks();
        ended
    }

    /// Ends one of SeaORM's transactions, which is, or was, open at this depth.
    pub(super) async fn end_through(
        &self,
        transaction: DatabaseTransaction,
        commits: bool,
        depth: usize,
    ) -> Result<(), DbErr> {
        let given_up = self.lock().through.take_given_up(depth) && commits;
        if !commits {
            return transaction.rollback().await;
        }
        if !given_up {
            return transaction.commit().await.map_err(|error| {
                if depth > 1 || !server::is_fatal(&error) {
                    return error;
                }
                tracing::warn!(target: "tower_sea_orm::session", "the connection was lost while COMMIT was under way: {error}");
                Kind::OutcomeUnknown.into_db_err()
            });
        }
        // SeaORM would call it a success.
        let _ = transaction.rollback().await;
        Err(Kind::Aborted.into_db_err())
    }

    /// Opens a transaction of SeaORM's inside of what is open.
    pub(super) fn open_through(
        self: &Arc<Self>,
        transaction: DatabaseTransaction,
    ) -> SessionTransaction {
        let mut state = self.lock();
        let level = state.new_id();
        state.stack.open(level);
        state.through.opened(level);
        drop(state);
        SessionTransaction::direct(self.clone(), level, transaction)
    }

    /// Commits or rolls back a transaction that the handler began.
    pub(super) async fn end_level(
        self: &Arc<Self>,
        level: Level,
        transaction: DatabaseTransaction,
        commits: bool,
    ) -> Result<(), DbErr> {
        let depth = self.lock().stack.depth();
        let ended = self.end_through(transaction, commits, depth).await;
        self.close_through(level, commits && ended.is_ok());
        ended
    }

    /// A transaction that the handler began was dropped.
    pub(super) fn drop_through(self: &Arc<Self>, level: Level, transaction: DatabaseTransaction) {
        let mut state = self.lock();
        match state.through.park(level, transaction) {
            None => {
                state.stack.close(level, false);
                drop(state);
                self.run_hooks();
            }
            Some(transaction) => {
                drop(state);
                // SeaORM rolls it back.
                drop(transaction);
                self.close_through(level, false);
            }
        }
    }

    fn close_through(self: &Arc<Self>, level: Level, committed: bool) {
        let mut state = self.lock();
        state.stack.close(level, committed);
        let depth = state.stack.depth();
        state.through.forget_beyond(depth);
        let parked = state.through.unpark(level);
        drop(state);
        for transaction in parked {
            drop(transaction);
        }
        self.run_hooks();
    }
}
