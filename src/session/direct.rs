//! Sessions that pass their statements through (mock, proxy, plain handles): their transaction is
//! one of SeaORM's own.

use std::sync::Arc;

use sea_orm::{ConnectionTrait, DatabaseTransaction, DbErr, TransactionTrait};

use super::{core::Core, plan::Mode, slot::Who, turn::Turn};
use crate::error::{Error, Kind};

impl Core {
    /// The session's own transaction, begun if it has not been; `None` in autocommit.
    pub(super) async fn direct_transaction(self: &Arc<Self>) -> Result<Option<Arc<DatabaseTransaction>>, DbErr> {
        if !self.lock().is_transactional() {
            self.check_open()?;
            self.lock().committed = true;
            return Ok(None);
        }
        if let Some(transaction) = self.open_direct()? {
            return Ok(Some(transaction));
        }
        let core = self.clone();
        self.enqueue(async move {
            let _turn = core.turn(Who::Session).await?;
            core.begin_direct().await
        })
        .await
    }

    /// The transaction, if it has begun.
    fn open_direct(&self) -> Result<Option<Arc<DatabaseTransaction>>, DbErr> {
        let mut state = self.lock();
        state.admit(Who::Session).map_err(Kind::into_db_err)?;
        Ok(state.direct.clone())
    }

    async fn begin_direct(&self) -> Result<Option<Arc<DatabaseTransaction>>, DbErr> {
        if let Some(transaction) = self.open_direct()? {
            return Ok(Some(transaction));
        }
        let (mode, set_up) = {
            let state = self.lock();
            (state.rules.mode, state.rules.on_begin.clone())
        };
        let Mode::Transaction(options) = mode else { return Ok(None) };
        let begun = self.pool().database().begin_with_options(options).await;
        let transaction = begun.inspect_err(|error| self.lock().note_failure(error, 0, true))?;
        for statement in set_up.iter().flat_map(|set_up| set_up.iter()) {
            self.vet(Who::Session, &statement.sql)?;
            transaction.execute_raw(statement.clone()).await?;
        }
        let transaction = Arc::new(transaction);
        let mut state = self.lock();
        state.failures.acquired();
        state.open_own(transaction.clone());
        Ok(Some(transaction))
    }

    /// There is no connection to give back, but the same rule.
    pub(super) fn release_direct(&self) -> Result<(), DbErr> {
        self.check_open()?;
        let is_open = self.lock().direct.is_some();
        if is_open { Err(Kind::TransactionOpen.into_db_err()) } else { Ok(()) }
    }

    pub(super) async fn end_direct(
        self: &Arc<Self>,
        turn: Turn,
        transaction: Arc<DatabaseTransaction>,
        commits: bool,
    ) -> Result<(), DbErr> {
        let transaction = Arc::into_inner(transaction).ok_or_else(|| Kind::StillRunning.into_db_err())?;
        let ended = if commits { transaction.commit().await } else { transaction.rollback().await };
        let mut state = self.lock();
        match (&ended, commits) {
            (Ok(()), true) => {
                state.committed = true;
                state.unsettled = None;
                state.hooks.seal();
                state.hooks.committed(1);
            }
            (Err(error), true) => state.unsettled = Some(Error::of_commit(error.clone())),
            (_, false) => state.hooks.rolled_back_to(0),
        }
        drop(state);
        drop(turn);
        self.run_hooks();
        ended
    }
}
