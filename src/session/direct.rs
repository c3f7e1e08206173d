//! Sessions that pass their statements through (mock, proxy, plain handles): their transaction is
//! one of SeaORM's own.

use std::sync::Arc;

use sea_orm::{ConnectionTrait, DatabaseTransaction, DbErr, TransactionTrait};

use super::{core::Core, plan::Mode, slot::Who};
use crate::error::{Error, Kind};

impl Core {
    /// The session's own transaction, begun if it has not been; `None` in autocommit.
    pub(super) async fn direct_transaction(self: &Arc<Self>) -> Result<Option<Arc<DatabaseTransaction>>, DbErr> {
        if !self.lock().is_transactional() {
            self.check_open()?;
            self.lock().committed = true;
            return Ok(None);
        }
        let _turn = self.take_turn().await?;
        let (options, set_up) = {
            let mut state = self.lock();
            state.admit(Who::Session).map_err(Kind::into_db_err)?;
            if let Some(transaction) = &state.direct {
                return Ok(Some(transaction.clone()));
            }
            let Mode::Transaction(options) = state.rules.mode else { return Ok(None) };
            (options, state.rules.on_begin.clone())
        };
        let transaction = self.pool().database().begin_with_options(options).await?;
        for statement in set_up.iter().flat_map(|set_up| set_up.iter()) {
            self.vet(Who::Session, &statement.sql)?;
            transaction.execute_raw(statement.clone()).await?;
        }
        let transaction = Arc::new(transaction);
        self.lock().open_own(transaction.clone());
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
        self.run_hooks();
        ended
    }
}
