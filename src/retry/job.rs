//! Jobs that run again when nothing of them stands.

use std::fmt;

use sea_orm::{TransactionError, TransactionOptions};

use super::{policy::RetryPolicy, tries::Tries};
use crate::{DbTx, Error, SessionPool, session::Ran};

impl SessionPool {
    /// [`transaction`](Self::transaction) that runs `work` again if a concurrent transaction was in the way: after a
    /// serialization failure, a deadlock or a lock that was not there in time, at a statement or at COMMIT.
    ///
    /// The rules are those of [`RetryLayer`](crate::RetryLayer). `work` runs again only if it is known that nothing of it stands, and a
    /// server's error that may come from such a conflict made it return an error, or made its COMMIT fail. What it does besides the
    /// transaction, to its variables for example, it does once more.
    ///
    /// ```
    /// # #[cfg(feature = "sqlx-sqlite")]
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// use sea_orm::{ConnectionTrait, Database, DbErr};
    /// use tower_sea_orm::{RetryPolicy, SessionPool};
    ///
    /// let pool = SessionPool::new(Database::connect("sqlite::memory:").await?);
    /// # pool.database().execute_unprepared("CREATE TABLE item (id integer)").await?;
    /// let policy = RetryPolicy::new().attempts(5);
    /// let inserted = pool
    ///     .retry_transaction(&policy, async |tx| {
    ///         let result = tx.execute_unprepared("INSERT INTO item VALUES (1), (2)").await?;
    ///         Ok::<_, DbErr>(result.rows_affected())
    ///     })
    ///     .await
    ///     .unwrap();
    /// assert_eq!(inserted, 2); // committed, once
    /// # Ok::<(), DbErr>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// The last attempt's, as [`transaction`](Self::transaction).
    ///
    /// # Cancel safety
    ///
    /// As [`transaction`](Self::transaction) for the attempt that runs; dropped between two, nothing is stored, and no
    /// other begins.
    pub async fn retry_transaction<F, T, E>(
        &self,
        policy: &RetryPolicy,
        work: F,
    ) -> Result<T, TransactionError<E>>
    where
        F: for<'c> AsyncFnMut(&'c DbTx) -> Result<T, E>,
        E: fmt::Display + fmt::Debug,
    {
        self.retry_transaction_with(policy, TransactionOptions::default(), work)
            .await
    }

    /// [`retry_transaction`](Self::retry_transaction) with an isolation level, an access mode, or SQLite's
    /// transaction mode.
    ///
    /// # Errors
    ///
    /// As [`retry_transaction`](Self::retry_transaction).
    ///
    /// # Cancel safety
    ///
    /// As [`retry_transaction`](Self::retry_transaction).
    pub async fn retry_transaction_with<F, T, E>(
        &self,
        policy: &RetryPolicy,
        options: TransactionOptions,
        mut work: F,
    ) -> Result<T, TransactionError<E>>
    where
        F: for<'c> AsyncFnMut(&'c DbTx) -> Result<T, E>,
        E: fmt::Display + fmt::Debug,
    {
        let mut tries = Tries::new(policy, None);
        loop {
            let Ran { result, undone_by } = self.run_once(options, &mut work).await;
            let passing = undone_by.filter(Error::is_passing);
            match passing.and_then(|error| tries.next(&error, || true)) {
                Some(wait) => wait.await,
                None => return result,
            }
        }
    }
}
