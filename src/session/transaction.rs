//! [`SessionTransaction`]: a transaction begun by the handler, or a savepoint inside one.

use std::{fmt, future::Future, sync::Arc};

use sea_orm::{
    AccessMode, DatabaseTransaction, DbBackend, DbErr, IsolationLevel, Schema, SchemaBuilder,
    TransactionError, TransactionOptions, TransactionTrait,
};

use super::{
    core::Core,
    early_end::answered,
    end,
    guard::SessionGuard,
    hooks::After,
    pass_through,
    stack::{Caller, TransactionId},
    statement::{CallRequest, Handle, start},
};
use crate::{connection::Operation, pool::SessionPool};

/// A transaction of a session, from [`TransactionTrait::begin`] or
/// `transaction`.
///
/// Transactions of one session form a stack: while one is open, only the
/// innermost handle runs statements, and only that one can be ended; anything
/// else returns an error. A transaction begun inside another is a savepoint.
///
/// It is rolled back if it is dropped without `commit()`.
#[must_use = "a transaction is rolled back when it is dropped"]
pub struct SessionTransaction {
    // Owned and not borrowed: a handler may move it into a task, where it is
    // dead once the request has ended
    // (`a_transaction_held_by_a_task_is_rolled_back_with_the_request`).
    core: Arc<Core>,
    // Not the depth: a handle that is kept must not mean a later transaction at
    // the same depth (G12).
    id: TransactionId,
    /// SeaORM's own, if the session has no connection; `None` when it has
    /// ended.
    // Out of the handle before it ends: SeaORM ends a transaction by value.
    through: Option<DatabaseTransaction>,
    /// BEGIN has been answered.
    has_begun: bool,
    /// The guard of a session that was opened for it alone. Declared last: the
    /// transaction ends before its session.
    own: Option<Box<SessionGuard>>,
}

impl SessionTransaction {
    /// Commits the transaction, or releases the savepoint.
    ///
    /// # Errors
    ///
    /// If the server refuses, if it has aborted the transaction after a failed
    /// statement ([`is_aborted`](crate::Error::is_aborted)), if a transaction
    /// begun inside this one is still open, or if one around it has ended. In
    /// each case this transaction is rolled back.
    /// [`is_outcome_unknown`](crate::Error::is_outcome_unknown) if the
    /// connection was lost meanwhile, or the server did not answer within the
    /// [`commit_timeout`](crate::SessionPoolBuilder::commit_timeout): the
    /// transaction may then be committed or not.
    ///
    /// # Cancel safety
    ///
    /// Once sent, a COMMIT runs to completion even if this future is dropped.
    pub async fn commit(self) -> Result<(), DbErr> {
        self.end(true).await
    }

    /// Rolls the transaction back, or rolls back to the savepoint and releases
    /// it.
    ///
    /// # Errors
    ///
    /// If a transaction begun inside this one is still open, if one around it
    /// has ended, or if the server reports an error. This transaction is rolled
    /// back nevertheless.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped at any point, the transaction is rolled back.
    pub async fn rollback(self) -> Result<(), DbErr> {
        let core = self.core.clone();
        self.end(false).await?;
        // The handler says that it goes on without this part, so a conflict in
        // it is no answer for the request any more. Shown by
        // `a_conflict_that_was_retried_keeps_the_handlers_response`.
        core.lock().went_back();
        Ok(())
    }

    /// Runs `callback` in a transaction inside this one.
    ///
    /// # Errors
    ///
    /// The callback's own error, or the error of the savepoint's statements.
    pub async fn transaction_async<F, T, E>(&self, callback: F) -> Result<T, TransactionError<E>>
    where
        F: for<'c> AsyncFnOnce(&'c Self) -> Result<T, E> + Send,
        T: Send,
        E: fmt::Display + fmt::Debug + Send,
    {
        self.transaction_with_config_async(callback, None, None)
            .await
    }

    /// [`transaction_async`](Self::transaction_async) with an isolation level
    /// and access mode, which a savepoint cannot have: it returns an error if
    /// the server distinguishes them.
    ///
    /// # Errors
    ///
    /// As [`transaction_async`](Self::transaction_async).
    pub async fn transaction_with_config_async<F, T, E>(
        &self,
        callback: F,
        isolation_level: Option<IsolationLevel>,
        access_mode: Option<AccessMode>,
    ) -> Result<T, TransactionError<E>>
    where
        F: for<'c> AsyncFnOnce(&'c Self) -> Result<T, E> + Send,
        T: Send,
        E: fmt::Display + fmt::Debug + Send,
    {
        let transaction = self.begin_with_config(isolation_level, access_mode).await?;
        transaction.run_async(callback).await
    }

    /// Runs `hook` after the session's whole transaction was committed, as
    /// [`DbSession::after_commit`](crate::DbSession::after_commit) does. It
    /// does not run if this transaction, or a savepoint around it, is rolled
    /// back.
    ///
    /// # Errors
    ///
    /// If the transaction or the request has ended.
    pub fn after_commit(
        &self,
        hook: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), DbErr> {
        // By the depth of this transaction: rolled back, it takes the hook
        // along (`the_hooks_of_a_nested_transaction_are_dropped_with_it`).
        self.core.register(self.caller(), After::Commit, hook)
    }

    /// Runs `hook` after the session's whole transaction was rolled back, as
    /// [`DbSession::after_rollback`](crate::DbSession::after_rollback) does. It
    /// does not run if only a savepoint is rolled back.
    ///
    /// # Errors
    ///
    /// If the transaction or the request has ended.
    pub fn after_rollback(
        &self,
        hook: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), DbErr> {
        self.core.register(self.caller(), After::Rollback, hook)
    }

    /// Returns the pool that the session comes from.
    pub fn pool(&self) -> &SessionPool {
        self.core.session_pool()
    }

    /// Returns the database's kind.
    pub fn backend(&self) -> DbBackend {
        self.core.pool().backend()
    }

    /// Returns the database's kind; the method has the name that SeaORM's own
    /// types use.
    pub fn get_database_backend(&self) -> DbBackend {
        self.backend()
    }

    /// Returns a builder for schema statements in the database's dialect.
    pub fn get_schema_builder(&self) -> SchemaBuilder {
        Schema::new(self.backend()).builder()
    }

    pub(super) async fn open(
        handle: Handle<'_>,
        options: TransactionOptions,
    ) -> Result<Self, DbErr> {
        let core = handle.core.clone();
        if core.pool().is_direct() {
            // Boxed, because the second path would otherwise make room for
            // itself in every future of the first.
            let (id, transaction) = Box::pin(pass_through::begin(handle, options)).await?;
            return Ok(Self {
                core,
                id,
                through: Some(transaction),
                has_begun: true,
                own: None,
            });
        }
        // The handle is there before BEGIN is sent (H1, H5b): dropped
        // meanwhile, it rolls back. sqlx leaves the transaction open then:
        // https://github.com/launchbadge/sqlx/issues/4385 Shown by
        // `h1_a_request_cancelled_around_begin_never_poisons_the_pool`.
        let id = core.lock().new_id();
        let mut transaction = Self {
            core,
            id,
            through: None,
            has_begun: false,
            own: None,
        };
        let request = CallRequest {
            opens: Some(id),
            ..CallRequest::new(handle.caller, Operation::Begin(options))
        };
        start(&transaction.core, request).await?.await?;
        transaction.has_begun = true;
        Ok(transaction)
    }

    /// Has it end the session that was opened for it, if there is one.
    pub(super) fn keeping(mut self, own: Option<Box<SessionGuard>>) -> Self {
        self.own = own;
        self
    }

    pub(super) fn handle(&self) -> Handle<'_> {
        Handle {
            core: &self.core,
            caller: self.caller(),
            through: self.through.as_ref(),
        }
    }

    fn caller(&self) -> Caller {
        Caller::Transaction(self.id)
    }

    async fn end(mut self, commits: bool) -> Result<(), DbErr> {
        let Self {
            core, id, through, ..
        } = &mut self;
        if core.pool().is_direct() {
            return Box::pin(pass_through::end(core, *id, through, commits)).await;
        }
        let request = CallRequest::end(Caller::Transaction(*id), commits);
        // `self` lives until the answer: dropped before that, it abandons what
        // `start` has not sent.
        let call = start(core, request).await?;
        answered(core, commits, call).await.map(drop)
    }

    pub(super) async fn run_async<F, T, E>(self, callback: F) -> Result<T, TransactionError<E>>
    where
        F: for<'c> AsyncFnOnce(&'c Self) -> Result<T, E> + Send,
        E: fmt::Display + fmt::Debug,
    {
        let outcome = callback(&self).await;
        self.end_with(outcome).await
    }

    /// Commits what succeeded, rolls back what failed.
    pub(super) async fn end_with<T, E>(
        self,
        outcome: Result<T, E>,
    ) -> Result<T, TransactionError<E>>
    where
        E: fmt::Display + fmt::Debug,
    {
        // Not `rollback`, by which a handler says that it goes on.
        self.end(outcome.is_ok()).await?;
        outcome.map_err(TransactionError::Transaction)
    }
}

impl Drop for SessionTransaction {
    fn drop(&mut self) {
        // Also after `commit()`: by then it is not among the open ones, and
        // nothing happens.
        if let Some(transaction) = self.through.take() {
            pass_through::abandon(&self.core, self.id, transaction);
        } else if !self.core.pool().is_direct() {
            // Only marked here: SeaORM's own `Drop` panics where a query has
            // the connection's lock, and aborts the process in an unwind (H16;
            // `h16_transactions_may_be_dropped_in_any_order_while_a_query_runs`).
            end::abandon(&self.core, self.id, self.has_begun);
        }
    }
}

impl fmt::Debug for SessionTransaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionTransaction").finish_non_exhaustive()
    }
}
