//! Jobs that run again when nothing of them stands.

use std::fmt;

use sea_orm::{TransactionError, TransactionOptions};

use super::{attempt::Tries, policy::RetryPolicy};
use crate::{DbTx, Error, SessionPool, session::Ran};

impl SessionPool {
    /// [`transaction`](Self::transaction) that runs `work` again after a
    /// transient failure (feature `retry`).
    ///
    /// The rules are those of [`RetryLayer`](crate::RetryLayer): a statement or
    /// COMMIT failed with a serialization failure, a deadlock, a lock timeout,
    /// a stale plan or a read-only server; `work` returned an error after that,
    /// unless it was COMMIT that failed; and it is known that nothing was
    /// committed. No other error of `work` is retried, and pool exhaustion is
    /// not either. What `work` does besides the transaction, to its variables
    /// for example, happens again.
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
    /// The last attempt's, as [`transaction`](Self::transaction): the conflict
    /// itself if attempts, time or budget were used up. Nothing is committed
    /// then, unless the outcome is unknown or `work` itself has called
    /// [`commit`](crate::DbSession::commit).
    ///
    /// # Cancel safety
    ///
    /// As [`transaction`](Self::transaction) for the attempt that runs; dropped
    /// between two, nothing is stored, and no other begins.
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

    /// [`retry_transaction`](Self::retry_transaction) with an isolation level,
    /// an access mode, or SQLite's transaction mode (feature `retry`).
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
        // No deadline: a job has no client that stops waiting.
        let mut tries = Tries::new(policy, None);
        loop {
            // In a session of its own: the one before is over.
            let Ran { result, undone_by } = self.run_once(options, &mut work).await;
            // `undone_by` is there only if nothing of the attempt stands (G20).
            // An acquire that failed has waited already, and a second one would
            // add to the load.
            let passing = undone_by.filter(Error::is_passing);
            // A job has no body that could be used up.
            match passing.and_then(|error| tries.next(&error, || true)) {
                Some(wait) => wait.await,
                None => return result,
            }
        }
    }
}
