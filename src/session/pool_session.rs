//! [`PoolSession`], and jobs: sessions outside requests.

use std::{fmt, future::poll_fn, pin::pin};

use sea_orm::{DbBackend, TransactionError, TransactionOptions};

use super::{
    db_session::DbSession,
    guard::SessionGuard,
    lend,
    open::open_eager,
    plan::{OpenedFor, Plan},
    settle::{Decision, Ended},
    statement::Handle,
    tx::DbTx,
};
use crate::{Error, SessionPool};

impl SessionPool {
    /// Opens a session: acquires a connection and keeps it until the returned
    /// handle is dropped; in
    /// [`PoolMode::Transaction`](crate::PoolMode::Transaction), until something
    /// waits for it.
    ///
    /// # Errors
    ///
    /// [`is_exhausted`](Error::is_exhausted),
    /// [`is_unreachable`](Error::is_unreachable) or
    /// [`is_closing`](Error::is_closing).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives up the place in the queue; no connection is
    /// lost. A future that is kept but not polled may be assigned a connection
    /// that it does not take and that no other caller gets: after a `select!`
    /// on `&mut` of the future, drop it.
    pub async fn session(&self) -> Result<PoolSession, Error> {
        let (session, guard) = open_eager(self, Plan::new(OpenedFor::User)).await?;
        // Nothing else notices that it does not use its connection yet.
        lend::offer_unless_polled(&guard.core);
        Ok(PoolSession { session, guard })
    }

    /// [`session`](Self::session) for a test itself, which others of its pool
    /// do not wait for.
    #[cfg(feature = "testing")]
    pub(crate) async fn own_session(&self) -> Result<PoolSession, Error> {
        let session = self.session().await?;
        let holder: std::sync::Weak<super::core::Core> =
            std::sync::Arc::downgrade(&session.guard.core);
        if let Some(test) = self.inner().test() {
            test.note_own(holder);
        }
        Ok(session)
    }

    /// Runs `work` in a transaction: committed if it returns `Ok`, rolled back
    /// otherwise. For background jobs and command-line code; the guarantees are
    /// those of a request's transaction.
    ///
    /// A session that `work` opens on the same pool is attributed to this job.
    /// If every connection is held by a request or a job that waits for a
    /// second one, one of them gets an error at once
    /// ([`is_pool_deadlock`](Error::is_pool_deadlock)). A
    /// [`session`](Self::session) may move to another task, so its holder is
    /// not part of this check.
    ///
    /// Work that an early [`commit`](crate::DbSession::commit) has committed
    /// stays committed. After
    /// [`set_rollback_only`](crate::DbSession::set_rollback_only) nothing is
    /// stored, although `Ok` is returned.
    ///
    /// ```
    /// # #[cfg(feature = "sqlx-sqlite")]
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// use sea_orm::{ConnectionTrait, Database, DbErr};
    /// use tower_sea_orm::SessionPool;
    ///
    /// let pool = SessionPool::new(Database::connect("sqlite::memory:").await?);
    /// # pool.database().execute_unprepared("CREATE TABLE item (id integer)").await?;
    /// let inserted = pool
    ///     .transaction(async |tx| {
    ///         let result = tx.execute_unprepared("INSERT INTO item VALUES (1), (2)").await?;
    ///         Ok::<_, DbErr>(result.rows_affected())
    ///     })
    ///     .await
    ///     .unwrap();
    /// assert_eq!(inserted, 2); // committed
    /// # Ok::<(), DbErr>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// `TransactionError::Transaction` with the error of `work`;
    /// `TransactionError::Connection` if no connection could be acquired or the
    /// transaction could not be committed: with the server's own error if the
    /// server refused, otherwise with one that [`Error::of`] finds. Also
    /// `TransactionError::Connection` if stored or raw code has ended the
    /// transaction, whatever `work` returned: the work done until then may be
    /// committed.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before COMMIT was sent, everything is rolled
    /// back. A COMMIT that was sent runs to completion.
    pub async fn transaction<F, T, E>(&self, work: F) -> Result<T, TransactionError<E>>
    where
        F: for<'c> AsyncFnOnce(&'c DbTx) -> Result<T, E>,
        E: fmt::Display + fmt::Debug,
    {
        self.transaction_with(TransactionOptions::default(), work)
            .await
    }

    /// [`transaction`](Self::transaction) with an isolation level, an access
    /// mode, or SQLite's transaction mode.
    ///
    /// # Errors
    ///
    /// As [`transaction`](Self::transaction).
    ///
    /// # Cancel safety
    ///
    /// As [`transaction`](Self::transaction).
    pub async fn transaction_with<F, T, E>(
        &self,
        options: TransactionOptions,
        work: F,
    ) -> Result<T, TransactionError<E>>
    where
        F: for<'c> AsyncFnOnce(&'c DbTx) -> Result<T, E>,
        E: fmt::Display + fmt::Debug,
    {
        self.run_once(options, work).await.result
    }

    /// [`transaction_with`](Self::transaction_with) that also tells whether it
    /// may be done again.
    pub(crate) async fn run_once<F, T, E>(&self, options: TransactionOptions, work: F) -> Ran<T, E>
    where
        F: for<'c> AsyncFnOnce(&'c DbTx) -> Result<T, E>,
        E: fmt::Display + fmt::Debug,
    {
        let opened = open_eager(self, Plan::transaction(options)).await;
        let (session, guard) = match opened {
            Ok(opened) => opened,
            Err(error) => return Ran::not_opened(error),
        };
        let tx = session.tx();
        // Not spawned: `work` may borrow, and need not be `Send`. Dropped with
        // this future, it takes the guard along.
        let mut working = pin!(work(&tx));
        let outcome = poll_fn(|cx| guard.poll(working.as_mut(), cx)).await;
        let decision = Decision::of(outcome.is_ok());
        // As a response does: a COMMIT that fails turns the job's `Ok` into an
        // error (G7; `a_commit_that_fails_is_an_error_of_the_database`).
        let ended = guard.settle(decision).resolve().await;
        let summary = guard.summary(&ended);
        let undone_by = match (&outcome, &ended) {
            // First: an error that could be tried again is no reason to, where
            // something stands (G20;
            // `g20_a_job_of_which_something_stands_runs_once`).
            _ if !summary.is_undone => None,
            (Ok(_), Ended::Failed(error)) => Some(error.clone()),
            (Ok(_), _) => None,
            (Err(_), _) => summary.failure,
        };
        let result = match (outcome, ended) {
            (Ok(_), Ended::Failed(error)) => Err(TransactionError::Connection(error.into())),
            // Although `work` failed, some of it may be stored: its caller must
            // not take it for rolled back.
            (Err(_), Ended::Failed(error)) if error.may_stand() => {
                Err(TransactionError::Connection(error.into()))
            }
            (outcome, _) => outcome.map_err(TransactionError::Transaction),
        };
        Ran { result, undone_by }
    }
}

/// What became of a job.
pub(crate) struct Ran<T, E> {
    pub(crate) result: Result<T, TransactionError<E>>,
    /// Why nothing of it stands, if that is known.
    #[cfg_attr(not(feature = "retry"), allow(dead_code))]
    pub(crate) undone_by: Option<Error>,
}

impl<T, E: fmt::Display + fmt::Debug> Ran<T, E> {
    fn not_opened(error: Error) -> Self {
        Self {
            result: Err(TransactionError::Connection(error.into())),
            undone_by: None,
        }
    }
}

/// A session taken from a [`SessionPool`] outside a request.
///
/// You can use it wherever generic code takes a `&DatabaseConnection`. It
/// dereferences ([`Deref`](std::ops::Deref)) to a [`DbSession`], and ends when
/// it is dropped: uncommitted work is rolled back and the connection goes back
/// to the pool.
///
/// ```
/// # #[cfg(feature = "sqlx-sqlite")]
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// # use sea_orm::{ConnectionTrait, Database};
/// # use tower_sea_orm::SessionPool;
/// async fn clean_up(db: &impl ConnectionTrait) -> Result<u64, sea_orm::DbErr> {
///     Ok(db.execute_unprepared("DELETE FROM item").await?.rows_affected())
/// }
/// # let pool = SessionPool::new(Database::connect("sqlite::memory:").await?);
/// # pool.database().execute_unprepared("CREATE TABLE item (id integer)").await?;
/// let session = pool.session().await?;
/// assert_eq!(clean_up(&session).await?, 0);
/// # Ok::<(), sea_orm::DbErr>(())
/// # }).unwrap();
/// ```
#[derive(Debug)]
#[must_use = "the session ends when it is dropped"]
pub struct PoolSession {
    session: DbSession,
    /// Ends the session when it is dropped.
    #[cfg_attr(not(feature = "testing"), allow(dead_code))]
    guard: SessionGuard,
}

impl PoolSession {
    /// Returns the database's kind; the method has the name that SeaORM's own
    /// types use.
    pub fn get_database_backend(&self) -> DbBackend {
        self.backend()
    }

    pub(super) fn handle(&self) -> Handle<'_> {
        self.session.handle()
    }
}

impl std::ops::Deref for PoolSession {
    type Target = DbSession;

    fn deref(&self) -> &DbSession {
        &self.session
    }
}
