//! [`DbTx`]: a session in a transaction of its own, and what can be said about that transaction.

use std::{fmt, future::Future, ops::Deref, sync::Arc};

use http::Extensions;
use sea_orm::{DbBackend, DbErr, Statement, TransactionOptions};

use super::{
    DbSession, DefaultDatabase, Mode, Order,
    core::Core,
    hooks::After,
    savepoint::Handle,
    slot::{Phase, Slot, State, Who},
};
use crate::error::{Error, Kind};

/// A request's session in a transaction. As a handler argument, it makes everything that the request
/// does commit together, before a successful response is sent, or not at all.
///
/// It is a handle like [`DbSession`] (and dereferences to one): you can use it wherever generic code
/// takes a `&DatabaseConnection`, clones are the same session, and dropping it does nothing. A
/// `DbSession` and a `DbTx` of one request share one transaction.
///
/// BEGIN is sent before the first statement, so a request that runs none costs nothing. The response
/// ends the transaction: a status below 400 commits it, anything else rolls it back (see
/// [`commit_when`](crate::DbSessionLayer::commit_when)). [`commit`](DbSession::commit) and
/// [`rollback`](DbSession::rollback) end it early.
pub struct DbTx<Tag = DefaultDatabase>(DbSession<Tag>);

impl DbTx {
    /// Returns a request's transaction from the extensions where the layer put its session; for
    /// handlers without axum.
    ///
    /// # Errors
    ///
    /// [`is_missing_layer`](Error::is_missing_layer) if there is none.
    pub fn from_extensions(extensions: &Extensions) -> Result<Self, Error> {
        Self::tagged(extensions)
    }
}

impl<Tag> DbTx<Tag> {
    /// [`from_extensions`](DbTx::from_extensions) for the sessions of a tag:
    /// `DbTx::<Analytics>::tagged(request.extensions())`.
    ///
    /// # Errors
    ///
    /// [`is_missing_layer`](Error::is_missing_layer) if there is none.
    pub fn tagged(extensions: &Extensions) -> Result<Self, Error>
    where
        Tag: 'static,
    {
        DbSession::tagged(extensions).map(|session| session.tx())
    }

    /// Returns the database's kind; the method has the name that SeaORM's own types use.
    pub fn get_database_backend(&self) -> DbBackend {
        self.backend()
    }

    pub(super) fn handle(&self) -> Handle<'_> {
        self.0.handle()
    }
}

impl<Tag> DbSession<Tag> {
    /// Puts the session into its own transaction from its next statement on, and returns a handle
    /// to it. If the session is already in one, nothing changes.
    ///
    /// ```
    /// # #[cfg(feature = "mock")] {
    /// # use sea_orm::{ConnectionTrait, DbBackend, MockDatabase, MockExecResult};
    /// use tower_sea_orm::DbSession;
    ///
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// # let done = MockExecResult { last_insert_id: 0, rows_affected: 1 };
    /// # let db = MockDatabase::new(DbBackend::Sqlite).append_exec_results([done]).into_connection();
    /// let session = DbSession::from(db); // in a service: a handler's argument
    /// let tx = session.tx();
    /// tx.execute_unprepared("UPDATE item SET hits = hits + 1").await?;
    /// tx.commit().await?; // in a service: left to the response
    /// # Ok::<(), sea_orm::DbErr>(())
    /// # }).unwrap(); }
    /// ```
    pub fn tx(&self) -> DbTx<Tag> {
        let mut state = self.core.lock();
        if state.rules.mode == Mode::Autocommit {
            state.rules.mode = Mode::Transaction(TransactionOptions::default());
        }
        drop(state);
        DbTx(self.clone())
    }

    /// [`tx`](Self::tx) with an isolation level, an access mode, or SQLite's transaction mode. They
    /// replace the options set by a layer.
    ///
    /// # Errors
    ///
    /// If the transaction has begun with other options.
    pub fn tx_with(&self, options: TransactionOptions) -> Result<DbTx<Tag>, DbErr> {
        self.core
            .set_mode(Mode::Transaction(options))
            .map_err(Kind::into_db_err)?;
        Ok(DbTx(self.clone()))
    }

    /// What a layer inside of the session's own says.
    pub(crate) fn order(&self, order: Order) -> Result<(), Error> {
        let Order {
            mode,
            commit_when,
            on_begin,
            on_acquire,
        } = order;
        if mode == Some(Mode::Autocommit) && on_begin.is_some() {
            return Err(Kind::MustBeTransaction.into());
        }
        let mode = mode.or_else(|| on_begin.is_some().then(|| self.tx().core.lock().rules.mode));
        if let Some(mode) = mode {
            self.core.set_mode(mode)?;
        }
        let mut state = self.core.lock();
        if on_begin.is_some() && (state.has_begun() || state.direct.is_some()) {
            return Err(Kind::TransactionBegun.into());
        }
        if on_acquire.is_some() && !state.fresh && !matches!(state.slot, Slot::Empty) {
            return Err(Kind::InUse.into());
        }
        let rules = &mut state.rules;
        add(&mut rules.on_begin, on_begin);
        add(&mut rules.on_acquire, on_acquire);
        let before = match commit_when {
            Some(rule) => rules.commit_when.replace(rule),
            None => None,
        };
        drop(state);
        // The user's own code, which must not be dropped under the lock.
        drop(before);
        Ok(())
    }

    /// Returns whether the session is in its own transaction, or will be with its next statement.
    pub fn is_transactional(&self) -> bool {
        self.core.lock().is_transactional()
    }

    /// Commits the session's transaction now instead of with the response. The next statement
    /// begins another one. If no statement has run in the transaction yet, there is nothing to
    /// commit.
    ///
    /// For changes that must stay whatever the response is, such as the counter of a failed log-in
    /// that answers 401:
    ///
    /// ```
    /// # use axum::http::StatusCode;
    /// # use sea_orm::ConnectionTrait;
    /// # use tower_sea_orm::DbTx;
    /// async fn log_in(tx: DbTx) -> Result<StatusCode, StatusCode> {
    ///     let failed = |_| StatusCode::INTERNAL_SERVER_ERROR;
    ///     // ... the password was wrong:
    ///     tx.execute_unprepared("UPDATE account SET failures = failures + 1").await.map_err(failed)?;
    ///     tx.commit().await.map_err(failed)?;
    ///     Err(StatusCode::UNAUTHORIZED) // rolls back nothing: there is nothing open
    /// }
    /// # #[cfg(all(feature = "axum", feature = "mock"))] {
    /// # use sea_orm::{DbBackend, MockDatabase, MockExecResult};
    /// # use tower::{Service, ServiceExt};
    /// # let done = MockExecResult { last_insert_id: 0, rows_affected: 1 };
    /// # let db = MockDatabase::new(DbBackend::Postgres).append_exec_results([done]).into_connection();
    /// # let app = axum::Router::new().route("/", axum::routing::post(log_in));
    /// # let mut app = app.layer(tower_sea_orm::DbSessionLayer::new(db.clone()));
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// #     let request = http::Request::post("/").body(axum::body::Body::empty()).unwrap();
    /// #     assert_eq!(app.call(request).await.unwrap().status(), 401);
    /// # });
    /// # drop(app);
    /// # let log = format!("{:?}", db.into_transaction_log());
    /// # assert!(log.contains("COMMIT") && !log.contains("ROLLBACK"), "{log}"); }
    /// ```
    ///
    /// # Errors
    ///
    /// The server's error; [`is_aborted`](Error::is_aborted) if the server has aborted the transaction after a failed
    /// statement; [`is_outcome_unknown`](Error::is_outcome_unknown) if the connection was lost meanwhile, or the
    /// server did not answer within the [`commit_timeout`](crate::SessionPoolBuilder::commit_timeout). Unless the
    /// outcome is unknown, the transaction is then rolled back. An unknown outcome stays unknown for the rest of the
    /// request: you cannot recover from it, and the response becomes an error. You can recover from any other failed
    /// COMMIT by a [`rollback`](Self::rollback), which acknowledges the failure, or by another commit that succeeds;
    /// otherwise the response becomes an error as well. If the future was dropped before it returned the failure,
    /// only a `rollback` recovers.
    ///
    /// Also if the session is not in a transaction, is set to [roll back only](Self::set_rollback_only),
    /// or has a nested transaction open.
    ///
    /// # Cancel safety
    ///
    /// Once sent, a COMMIT runs to completion even if this future is dropped.
    pub async fn commit(&self) -> Result<(), DbErr> {
        self.core.commit().await
    }

    /// Rolls the session's transaction back now. The next statement begins another one.
    ///
    /// # Errors
    ///
    /// If the session is not in a transaction, has a nested transaction open, or the server reports an error;
    /// [`is_outcome_unknown`](Error::is_outcome_unknown) if an earlier COMMIT of the request may have taken effect.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped at any point, the transaction is rolled back before anything else
    /// happens.
    pub async fn rollback(&self) -> Result<(), DbErr> {
        self.core.roll_back().await
    }

    /// Marks the session's transaction, and every later one of this request, to be rolled back
    /// whatever the response is: for dry runs, or a handler that answers 200 with a list of errors.
    ///
    /// # Errors
    ///
    /// If the session is not in a transaction, because nothing could be rolled back.
    pub fn set_rollback_only(&self) -> Result<(), DbErr> {
        let mut state = self.core.lock();
        if !state.is_transactional() {
            return Err(Kind::NoTransaction.into_db_err());
        }
        state.rollback_only = true;
        Ok(())
    }

    /// Runs `hook` after the transaction was committed: for mails, messages and caches that must not
    /// see changes that may still be rolled back.
    ///
    /// Hooks run in the order of their registration, in a separate task, once the connection has been
    /// given back (after an early [`commit`](Self::commit): at once). They do not delay the response, and
    /// run even if the client has disconnected. A hook registered while a nested transaction is open
    /// belongs to that transaction and is dropped if that is rolled back. If it stays unknown whether the
    /// COMMIT took effect, no hook runs. Hooks live in memory: they are lost if the process ends.
    ///
    /// In a session without a transaction, earlier statements are already committed, so the hook
    /// runs at once.
    ///
    /// # Errors
    ///
    /// If the request has ended, or on a handle that belongs to none (`DbSession::from(db)`) in a transaction,
    /// which nothing would end.
    pub fn after_commit(
        &self,
        hook: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), DbErr> {
        self.core.hook(Who::Session, After::Commit, hook)
    }

    /// Runs `hook` after the transaction was rolled back, whatever the reason, even if the client
    /// has disconnected: to remove a file that was uploaded meanwhile, for example. Otherwise it
    /// works as [`after_commit`](Self::after_commit); in a session without a transaction it never
    /// runs.
    ///
    /// # Errors
    ///
    /// If the request has ended, or on a handle that belongs to none (`DbSession::from(db)`) in a transaction,
    /// which nothing would end.
    pub fn after_rollback(
        &self,
        hook: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), DbErr> {
        self.core.hook(Who::Session, After::Rollback, hook)
    }
}

impl Core {
    /// Says what the statements of the session itself run in.
    fn set_mode(&self, mode: Mode) -> Result<(), Kind> {
        let mut state = self.lock();
        if state.rules.mode == mode {
            return Ok(());
        }
        if state.has_begun() || state.direct.is_some() {
            return Err(Kind::TransactionBegun);
        }
        if mode == Mode::Autocommit && state.rules.on_begin.is_some() {
            return Err(Kind::MustBeTransaction);
        }
        state.rules.mode = mode;
        Ok(())
    }

    pub(super) fn hook(
        self: &Arc<Self>,
        who: Who,
        after: After,
        hook: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), DbErr> {
        let mut state = self.lock();
        if state.phase != Phase::Open {
            return Err(state.closed().into_db_err());
        }
        // It could hold a handle, and both would wait for each other's end.
        if self.origin.is_plain && state.is_transactional() {
            return Err(Kind::NoEnd.into_db_err());
        }
        let depth = state.depth_of(who).map_err(Kind::into_db_err)?;
        state.hooks.register(depth, after, hook);
        drop(state);
        self.run_hooks();
        Ok(())
    }
}

/// Puts the `next` statements after those that are there.
fn add(statements: &mut Option<Arc<[Statement]>>, next: Option<Vec<Statement>>) {
    if let Some(next) = next {
        let before = statements.take();
        *statements = Some(
            before
                .iter()
                .flat_map(|before| before.iter())
                .cloned()
                .chain(next)
                .collect(),
        );
    }
}

impl State {
    fn depth_of(&self, who: Who) -> Result<usize, Kind> {
        let Who::Level(id) = who else {
            return Ok(self.surrounding());
        };
        let position = self
            .levels
            .iter()
            .position(|open| open.id == id && !open.abandoned);
        position
            .map(|position| position + 1)
            .ok_or(Kind::TransactionOver)
    }
}

impl<Tag> Deref for DbTx<Tag> {
    type Target = DbSession<Tag>;

    fn deref(&self) -> &DbSession<Tag> {
        &self.0
    }
}

impl<Tag> Clone for DbTx<Tag> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<Tag> fmt::Debug for DbTx<Tag> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DbTx")
            .field("closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}
