//! SeaORM's traits for the current session.

use std::{fmt, future::Future, pin::Pin};

use async_trait::async_trait;
use sea_orm::{
    AccessMode, ConnectionTrait, DbBackend, DbErr, ExecResult, IsolationLevel, QueryResult,
    Statement, TransactionError, TransactionOptions, TransactionTrait,
};

#[cfg(feature = "stream")]
use super::super::SessionStream;
use super::{
    super::{pass_through, statement, statement::Handle, transaction::SessionTransaction},
    CurrentSession,
};
use crate::{
    connection::{Operation, Output},
    error::Kind,
};

/// Runs an operation in the current session, and returns its output of the kind
/// that belongs to it.
macro_rules! run {
    ($self:ident, $operation:expr, $output:ident) => {{
        // With each call, at its first poll: a future may be made in one
        // request and polled elsewhere
        // (`a_future_made_in_a_request_and_polled_elsewhere_has_no_session`).
        let found = $self.find().await?;
        match run(found.handle(), $operation).await? {
            Output::$output(output) => Ok(output),
            // Cannot be: each operation has one kind of output. An error is
            // better than a panic in a handler.
            _ => Err(Kind::ConnectionLost.into_db_err()),
        }
    }};
}

async fn run(handle: Handle<'_>, operation: Operation) -> Result<Output, DbErr> {
    if handle.core.pool().is_direct() {
        // Boxed, so that a statement on a real connection does not carry the
        // room for it.
        return Box::pin(pass_through::run(handle, operation)).await;
    }
    statement::run(handle.core, handle.caller, operation).await
}

#[async_trait]
impl<Tag: 'static> ConnectionTrait for CurrentSession<Tag> {
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
        self.pool.database().support_returning()
    }

    fn is_mock_connection(&self) -> bool {
        self.pool.database().is_mock_connection()
    }
}

#[async_trait]
impl<Tag: 'static> TransactionTrait for CurrentSession<Tag> {
    type Transaction = SessionTransaction;

    async fn begin(&self) -> Result<SessionTransaction, DbErr> {
        self.begin_with_options(TransactionOptions::default()).await
    }

    async fn begin_with_config(
        &self,
        isolation_level: Option<IsolationLevel>,
        access_mode: Option<AccessMode>,
    ) -> Result<SessionTransaction, DbErr> {
        let options = TransactionOptions {
            isolation_level,
            access_mode,
            sqlite_transaction_mode: None,
        };
        self.begin_with_options(options).await
    }

    async fn begin_with_options(
        &self,
        options: TransactionOptions,
    ) -> Result<SessionTransaction, DbErr> {
        let found = self.find().await?;
        let transaction = SessionTransaction::open(found.handle(), options).await?;
        Ok(transaction.keeping(found.own))
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
impl<Tag: 'static> sea_orm::StreamTrait for CurrentSession<Tag> {
    type Stream<'a> = SessionStream<'a>;

    fn get_database_backend(&self) -> DbBackend {
        self.backend()
    }

    fn stream_raw<'a>(
        &'a self,
        statement: Statement,
    ) -> Pin<Box<dyn Future<Output = Result<Self::Stream<'a>, DbErr>> + 'a + Send>> {
        Box::pin(async move {
            let found = self.find().await?;
            let handle = found.handle();
            let stream = SessionStream::of_session(handle.core, handle.caller, statement).await?;
            Ok(stream.keeping(found.own))
        })
    }
}
