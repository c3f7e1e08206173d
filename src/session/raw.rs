//! Raw access: a closure on the driver's own connection.

use std::{cell::RefCell, future::poll_fn, sync::Arc};

use futures_util::future::BoxFuture;
use sea_orm::{DbErr, sqlx};
use tokio::sync::oneshot;

use super::{DbSession, core::Core, slot::Who};
use crate::{
    connection::{Driver, Operation, Raw},
    error::Kind,
};

macro_rules! raw_access {
    ($(#[$attribute:meta])* $method:ident, $variant:ident, $connection:ty, $name:literal) => {
        #[doc = concat!("Runs `code` on the session's own ", $name, " connection, for what SeaORM has no words for.")]
        ///
        /// The session does not see what the code does: afterwards a transaction that the code left
        /// open is rolled back, and a ROLLBACK is sent before the connection goes back. Inside a
        /// transaction, the code runs between a savepoint and its release (two more round trips):
        /// if the code ended the transaction, no further statement runs in it and it cannot be
        /// committed.
        ///
        /// # Errors
        ///
        /// If the session's database is of another kind, or no connection can be acquired. The code's own
        /// errors are part of `T`. A statement of the same session within the code returns an error, because
        /// the code has the connection.
        ///
        /// # Cancel safety
        ///
        /// If the future is dropped, the code is dropped as well, and the connection is closed (an
        /// in-memory SQLite database keeps its connection).
        $(#[$attribute])*
        pub async fn $method<T, F>(&self, code: F) -> Result<T, DbErr>
        where
            F: for<'c> FnOnce(&'c mut $connection) -> BoxFuture<'c, T> + Send + 'static,
            T: Send + 'static,
        {
            let (sender, receiver) = oneshot::channel();
            let session = Arc::as_ptr(&self.core).addr();
            let raw: Raw = Box::new(move |driver| {
                Box::pin(async move {
                    match driver {
                        Driver::$variant(connection) => {
                            let _ = sender.send(polled_for(session, code(connection)).await);
                            Ok(())
                        }
                        #[allow(unreachable_patterns)]
                        _ => Err(Kind::WrongDriver.into_db_err()),
                    }
                })
            });
            if self.pool().is_direct() {
                return Err(Kind::WrongDriver.into_db_err());
            }
            self.core.run(Who::Session, Operation::Raw(raw)).await?;
            receiver.await.map_err(|_| Kind::ConnectionLost.into_db_err())
        }
    };
}

impl<Tag> DbSession<Tag> {
    #[cfg(feature = "sqlx-postgres")]
    raw_access!(with_postgres, Postgres, sqlx::PgConnection, "PostgreSQL");
    #[cfg(feature = "sqlx-mysql")]
    raw_access!(with_mysql, MySql, sqlx::MySqlConnection, "MySQL");
    #[cfg(feature = "sqlx-sqlite")]
    raw_access!(with_sqlite, Sqlite, sqlx::SqliteConnection, "SQLite");
}

thread_local! {
    /// The sessions whose raw code this thread is polling, by their addresses, innermost last.
    static POLLED: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// Whether this is called by raw code of the session `core`, which would wait for itself.
pub(super) fn is_polled_for(core: &Arc<Core>) -> bool {
    let session = Arc::as_ptr(core).addr();
    POLLED
        .try_with(|polled| polled.borrow().contains(&session))
        .unwrap_or(false)
}

/// Polls raw code in the name of the session at the address `session`.
async fn polled_for<T>(session: usize, mut code: BoxFuture<'_, T>) -> T {
    poll_fn(move |cx| {
        let _polled = Polled::new(session);
        code.as_mut().poll(cx)
    })
    .await
}

struct Polled;

impl Polled {
    fn new(session: usize) -> Self {
        let _ = POLLED.try_with(|polled| polled.borrow_mut().push(session));
        Self
    }
}

impl Drop for Polled {
    fn drop(&mut self) {
        let _ = POLLED.try_with(|polled| polled.borrow_mut().pop());
    }
}
