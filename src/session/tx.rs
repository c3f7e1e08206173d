//! [`DbTx`]: a session in a transaction of its own, and what can be said about that transaction.

use std::{fmt, future::Future, ops::Deref, sync::Arc};

use http::Extensions;
use sea_orm::{DbBackend, DbErr, Statement, TransactionOptions};

use super::{
    DbSession, Main, Mode, Order,
    core::Core,
    hooks::After,
    savepoint::Handle,
    slot::{Phase, Slot, State, Who},
};
use crate::error::{Error, Kind};

/// A request's session in a transaction: as a handler's argument it says that everything the request
/// does is committed together, before a successful answer leaves, or not at all.
///
/// It is a handle like [`DbSession`] (and is one, by `Deref`): it stands wherever a `&DatabaseConnection`
/// stands in generic code, clones are the same session, and dropping it does nothing. A `DbSession` and
/// a `DbTx` of one request share one transaction.
///
/// BEGIN is sent before the first statement, so a request that runs none costs nothing. What ends the
/// transaction is the response: below 400 it is committed, anything else rolls back (see
/// [`commit_when`](crate::DbSessionLayer::commit_when)). [`commit`](DbSession::commit) and
/// [`rollback`](DbSession::rollback) end it early.
pub struct DbTx<Tag = Main>(DbSession<Tag>);

impl DbTx {
    /// The transaction of a request, from the extensions where the layer put its session; for
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

    /// The database's kind, by the name that SeaORM's own types use.
    pub fn get_database_backend(&self) -> DbBackend {
        self.backend()
    }

    pub(super) fn handle(&self) -> Handle<'_> {
        self.0.handle()
    }
}

impl<Tag> DbSession<Tag> {
    /// Puts the session into a transaction of its own from its next statement on, and returns the
    /// handle that says so. In a session that has one already, nothing changes.
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
    /// replace those that a layer said.
    ///
    /// # Errors
    ///
    /// If the transaction has begun with other options.
    pub fn tx_with(&self, options: TransactionOptions) -> Result<DbTx<Tag>, DbErr> {
        self.core.set_mode(Mode::Transaction(options)).map_err(Kind::into_db_err)?;
        Ok(DbTx(self.clone()))
    }

    /// What a layer inside of the session's own says.
    pub(crate) fn order(&self, order: Order) -> Result<(), Error> {
        let Order { mode, commit_when, on_begin, on_acquire } = order;
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

    /// Whether the session is in a transaction of its own, or will be with its next statement.
    pub fn is_transactional(&self) -> bool {
        self.core.lock().is_transactional()
    }

    /// Commits the session's transaction now instead of with the response. The next statement begins
    /// another one. With no statement since the last, there is nothing to do.
    ///
    /// For changes that must stay whatever the answer is, such as the counter of a failed log-in that
    /// answers 401:
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
    /// What the server says; [`is_aborted`](Error::is_aborted) if it has given the transaction up after
    /// a failed statement; [`is_outcome_unknown`](Error::is_outcome_unknown) if the connection was lost
    /// meanwhile, or the answer did not come within the [`commit_timeout`](crate::SessionPoolBuilder::commit_timeout).
    /// Except for that, the transaction is rolled back then. An unknown outcome stays unknown for the rest of the
    /// request: nothing makes it good, and the response is an error. If nothing makes another failed
    /// COMMIT good (a [`rollback`](Self::rollback) that says it was meant, or another commit that succeeds),
    /// the response becomes an error as well. If the future was dropped before it told of the failure,
    /// only a `rollback` does.
    ///
    /// Also if the session is not in a transaction, is set to [roll back only](Self::set_rollback_only),
    /// or has a nested transaction open.
    ///
    /// # Cancel safety
    ///
    /// Once sent, a COMMIT is seen through even if this future is dropped.
    pub async fn commit(&self) -> Result<(), DbErr> {
        self.core.commit().await
    }

    /// Rolls the session's transaction back now. The next statement begins another one.
    ///
    /// # Errors
    ///
    /// If the session is not in a transaction, has a nested transaction open, or the server says so;
    /// [`is_outcome_unknown`](Error::is_outcome_unknown) if an earlier COMMIT of the request may have taken effect.
    ///
    /// # Cancel safety
    ///
    /// Dropped at any point, the transaction is rolled back before anything else happens.
    pub async fn rollback(&self) -> Result<(), DbErr> {
        self.core.roll_back().await
    }

    /// Has the session's transaction rolled back whatever the response says, and every later one of
    /// this request: for dry runs, or a handler that answers 200 with a list of errors.
    ///
    /// # Errors
    ///
    /// If the session is not in a transaction: then nothing could be rolled back.
    pub fn set_rollback_only(&self) -> Result<(), DbErr> {
        let mut state = self.core.lock();
        if !state.is_transactional() {
            return Err(Kind::NoTransaction.into_db_err());
        }
        state.rollback_only = true;
        Ok(())
    }

    /// Runs `hook` after the transaction was committed: for mails, messages and caches that must not
    /// know of what may still be rolled back.
    ///
    /// Hooks run in the order of their registration, in a task of their own once the connection is back
    /// (after an early [`commit`](Self::commit): at once). They do not delay the response, and run even
    /// if the client has gone. Registered while a nested transaction is open, a hook belongs to that
    /// and is dropped when that is rolled back. Where it stays unknown whether the COMMIT took effect, no
    /// hook runs. They live in memory: a process that ends loses them.
    ///
    /// In a session without a transaction, what ran is committed: the hook runs at once.
    ///
    /// # Errors
    ///
    /// If the request has ended, or on a handle that belongs to none (`DbSession::from(db)`) in a transaction,
    /// which nothing would end.
    pub fn after_commit(&self, hook: impl Future<Output = ()> + Send + 'static) -> Result<(), DbErr> {
        self.core.hook(Who::Session, After::Commit, hook)
    }

    /// Runs `hook` after the transaction was rolled back, whatever the reason, also when the client
    /// has gone: to remove a file that was uploaded meanwhile, say. Otherwise as
    /// [`after_commit`](Self::after_commit); in a session without a transaction it never runs.
    ///
    /// # Errors
    ///
    /// If the request has ended, or on a handle that belongs to none (`DbSession::from(db)`) in a transaction,
    /// which nothing would end.
    pub fn after_rollback(&self, hook: impl Future<Output = ()> + Send + 'static) -> Result<(), DbErr> {
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
        *statements = Some(before.iter().flat_map(|before| before.iter()).cloned().chain(next).collect());
    }
}

impl State {
    fn depth_of(&self, who: Who) -> Result<usize, Kind> {
        let Who::Level(id) = who else { return Ok(self.surrounding()) };
        let position = self.levels.iter().position(|open| open.id == id && !open.abandoned);
        position.map(|position| position + 1).ok_or(Kind::TransactionOver)
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
        f.debug_struct("DbTx").field("closed", &self.is_closed()).finish_non_exhaustive()
    }
}
