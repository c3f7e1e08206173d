//! Raw access: a closure on the driver's own connection.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use sea_orm::DbErr;
use tokio::sync::oneshot;

use super::{
    core::Core,
    polled::{address, polled_for},
    stack::Caller,
    statement::run,
};
use crate::{
    connection::{Driver, Operation, Raw},
    error::Kind,
};

/// A method of [`DbSession`](super::DbSession): the same for each driver, with
/// a connection of another type.
macro_rules! raw_access {
    ($(#[$attribute:meta])* $method:ident, $variant:ident, $connection:ty, $name:literal) => {
        #[doc = concat!("Runs `code` on the session's own ", $name, " connection, for what SeaORM has no words for.")]
        ///
        /// The session does not see what the code does: afterwards a
        /// transaction that the code left open is rolled back, and a ROLLBACK
        /// is sent before the connection goes back. Inside a transaction, the
        /// code runs between a savepoint and its release (two more round
        /// trips): if the code ended the transaction, no further statement runs
        /// in it and it cannot be committed.
        ///
        /// On PostgreSQL, end each COPY by `finish()` or `abort()`: sqlx leaves
        /// the answer of one that is dropped unread, so the connection is
        /// closed, what was open on it is rolled back, and later statements
        /// of the session return an error that says so.
        ///
        /// # Errors
        ///
        /// If the session's database is of another kind, or no connection can
        /// be acquired, or if the connection is found to be lost behind the code.
        /// The code's own errors are part of `T`: one of the driver's is known
        /// to [`Error::of`](crate::Error::of) as a
        /// `DbErr::Query(RuntimeErr::SqlxError(…))`. A statement of the same
        /// session within the code returns an error, because the code has the
        /// connection.
        ///
        /// # Cancel safety
        ///
        /// If the future is dropped, the code is dropped as well, and the
        /// connection is closed (an in-memory SQLite database keeps its
        /// connection).
        $(#[$attribute])*
        pub async fn $method<T, F>(&self, code: F) -> Result<T, DbErr>
        where
            F: for<'c> FnOnce(&'c mut $connection) -> ::futures_util::future::BoxFuture<'c, T> + Send + 'static,
            T: Send + 'static,
        {
            $crate::session::raw::run_raw(&self.core, move |driver| match driver {
                $crate::connection::Driver::$variant(connection) => Some(code(connection)),
                #[allow(unreachable_patterns)]
                _ => None,
            })
            .await
        }
    };
}
pub(super) use raw_access;

/// Runs `code` on the session's connection; it returns `None` if that is of
/// another driver.
pub(super) async fn run_raw<T: Send + 'static>(
    core: &Arc<Core>,
    code: impl for<'c> FnOnce(&'c mut Driver) -> Option<BoxFuture<'c, T>> + Send + 'static,
) -> Result<T, DbErr> {
    // A mock has no driver's connection, and a proxy none that it could show.
    if core.pool().is_direct() {
        return Err(Kind::WrongDriver.into_db_err());
    }
    let (sender, receiver) = oneshot::channel();
    // The code's value comes back by a channel, because the session stores the
    // call without its type.
    let session = address(core);
    let raw: Raw = Box::new(move |driver| {
        Box::pin(async move {
            let code = code(driver).ok_or_else(|| Kind::WrongDriver.into_db_err())?;
            // In the session's name: a statement of the same session within the
            // code would wait for its own end
            // (`raw_code_that_uses_its_own_session_gets_an_error`).
            let _ = sender.send(polled_for(session, code).await);
            Ok(())
        })
    });
    run(core, Caller::Session, Operation::Raw(Some(raw))).await?;
    // Closed without a value if the connection was lost around the code.
    receiver
        .await
        .map_err(|_| Kind::ConnectionLost.into_db_err())
}
