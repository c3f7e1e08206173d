//! SeaORM's traits for sessions and their transactions.

use std::{fmt, future::Future, pin::Pin};

use async_trait::async_trait;
use sea_orm::{
    AccessMode, ConnectionTrait, DbBackend, DbErr, ExecResult, IsolationLevel, QueryResult,
    Statement, TransactionError, TransactionOptions, TransactionSession, TransactionTrait,
};

use super::{
    db_session::DbSession, pass_through, pool_session::PoolSession, statement,
    transaction::SessionTransaction, tx::DbTx,
};
use crate::{
    connection::{Operation, Output},
    error::Kind,
};

/// Runs an operation, and returns its output of the kind that belongs to it.
macro_rules! run {
    ($self:ident, $operation:expr, $output:ident) => {{
        let handle = $self.handle();
        let done = if handle.core.pool().is_direct() {
            // Boxed, so that a statement on a real connection does not carry
            // the room for it.
            Box::pin(pass_through::run(handle, $operation)).await?
        } else {
            statement::run(handle.core, handle.caller, $operation).await?
        };
        match done {
            Output::$output(output) => Ok(output),
            // Cannot be: each operation has one kind of output. An error is
            // better than a panic in a handler.
            _ => Err(Kind::ConnectionLost.into_db_err()),
        }
    }};
}

// A macro, because the orphan rule forbids one implementation of SeaORM's
// traits for all types of a trait of ours.
macro_rules! connection_trait {
    ($type:ty $(, $param:ident)?) => {
        #[async_trait]
        impl$(<$param>)? ConnectionTrait for $type {
            fn get_database_backend(&self) -> DbBackend {
                self.backend()
            }

            async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
                run!(self, Operation::Execute(statement), Executed)
            }

            async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
                run!(self, Operation::Unprepared(sql.to_owned()), Executed)
            }

            async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
                run!(self, Operation::One(statement), Row)
            }

            async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
                run!(self, Operation::All(statement), Rows)
            }

            fn support_returning(&self) -> bool {
                self.pool().database().support_returning()
            }

            fn is_mock_connection(&self) -> bool {
                self.pool().database().is_mock_connection()
            }
        }

        #[async_trait]
        impl$(<$param>)? TransactionTrait for $type {
            type Transaction = SessionTransaction;

            async fn begin(&self) -> Result<SessionTransaction, DbErr> {
                self.begin_with_options(TransactionOptions::default()).await
            }

            async fn begin_with_config(
                &self,
                isolation_level: Option<IsolationLevel>,
                access_mode: Option<AccessMode>,
            ) -> Result<SessionTransaction, DbErr> {
                let options = TransactionOptions { isolation_level, access_mode, sqlite_transaction_mode: None };
                self.begin_with_options(options).await
            }

            async fn begin_with_options(&self, options: TransactionOptions) -> Result<SessionTransaction, DbErr> {
                SessionTransaction::open(self.handle(), options).await
            }

            async fn transaction<F, T, E>(&self, callback: F) -> Result<T, TransactionError<E>>
            where
                F: for<'c> FnOnce(
                        &'c SessionTransaction,
                    ) -> Pin<Box<dyn Future<Output = Result<T, E>> + Send + 'c>>
                    + Send,
                T: Send,
                E: fmt::Display + fmt::Debug + Send,
            {
                self.transaction_with_config(callback, None, None).await
            }

            async fn transaction_with_config<F, T, E>(
                &self,
                callback: F,
                isolation_level: Option<IsolationLevel>,
                access_mode: Option<AccessMode>,
            ) -> Result<T, TransactionError<E>>
            where
                F: for<'c> FnOnce(
                        &'c SessionTransaction,
                    ) -> Pin<Box<dyn Future<Output = Result<T, E>> + Send + 'c>>
                    + Send,
                T: Send,
                E: fmt::Display + fmt::Debug + Send,
            {
                let transaction = self.begin_with_config(isolation_level, access_mode).await?;
                let outcome = callback(&transaction).await;
                transaction.end_with(outcome).await
            }
        }

        #[cfg(feature = "stream")]
        impl$(<$param: 'static>)? sea_orm::StreamTrait for $type {
            type Stream<'a> = super::SessionStream<'a>;

            fn get_database_backend(&self) -> DbBackend {
                self.backend()
            }

            fn stream_raw<'a>(
                &'a self,
                statement: Statement,
            ) -> Pin<Box<dyn Future<Output = Result<Self::Stream<'a>, DbErr>> + 'a + Send>> {
                Box::pin(super::SessionStream::open(self.handle(), statement))
            }
        }};
}

connection_trait!(DbSession<Tag>, Tag);
connection_trait!(DbTx<Tag>, Tag);
connection_trait!(PoolSession);
connection_trait!(SessionTransaction);

#[async_trait]
impl TransactionSession for SessionTransaction {
    async fn commit(self) -> Result<(), DbErr> {
        self.commit().await
    }

    async fn rollback(self) -> Result<(), DbErr> {
        self.rollback().await
    }
}
