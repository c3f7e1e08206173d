//! [`Reset`]: what a connection is freed of before the next session gets it.

/// What happens to a connection when a session gives it back, beyond the rollback of the session's
/// transactions, which always happens.
///
/// Session state is what outlives a transaction: settings (`SET`, `set_config(…, false)`), the role,
/// advisory locks, temporary tables, `LISTEN`, cursors `WITH HOLD`. Whatever of it a request leaves
/// behind, the next one on the same connection finds, unless it is put back.
///
/// | | sent when a session ends |
/// |---|---|
/// | [`None`](Self::None) | nothing |
/// | [`RollbackOnly`](Self::RollbackOnly), the default | a ROLLBACK where raw code may have left a transaction open |
/// | [`SessionState`](Self::SessionState) | one more round trip, but only after statements that may have changed session state |
/// | [`SessionStateAlways`](Self::SessionStateAlways) | one round trip for each session that used its connection |
///
/// Resetting is part of giving back: nobody gets the connection before, it is bounded by
/// [`release_timeout`](crate::SessionPoolBuilder::release_timeout), and where it fails the connection is closed.
/// Answers do not wait for it. A session that changed nothing costs nothing with `SessionState`.
///
/// # What is put back
///
/// - **PostgreSQL**: settings, role and session authorization, advisory locks, `LISTEN`, cursors,
///   temporary objects. The memory of sequences (`lastval`) is put back with these, but is no reason for a
///   reset: an INSERT would be one. The driver's prepared statements stay. What
///   `schema_search_path` and `after_connect` had set is read before the first change (one round trip
///   for each connection that comes from the driver's pool, and only if a change is about to come) and
///   set again. PostgreSQL does not list parameters with a dot in their name: give those as start-up
///   options or by `ALTER ROLE … SET`, so that they are defaults, to which a reset goes back. After a
///   `PREPARE`, `DEALLOCATE`, `DISCARD ALL`, `LOAD` or a named `dblink` connection, the connection is closed.
/// - **MySQL and MariaDB**: locks of `GET_LOCK` and `LOCK TABLES`. sqlx cannot reset such a connection,
///   so that after anything else (`SET`, a user variable, `USE`, a temporary table, `PREPARE`, `CALL`) it
///   is closed.
/// - **SQLite**: the connection is closed after a PRAGMA that sets something, `ATTACH` and temporary
///   objects. That of an in-memory database is never closed: temporary objects are dropped and databases
///   detached, and what a PRAGMA has set stays.
/// - **Raw code** (`with_postgres`, …) may have done anything: PostgreSQL's session is reset (what the code
///   prepared by `PREPARE` stays), the others' connections are closed.
///
/// # What is seen
///
/// The text of a statement, also inside of a batch, and the built-in functions it names. A statement that
/// failed or was cancelled counts as well. A function or trigger of your own that changes session state
/// is not seen: `SessionStateAlways` is for those (on PostgreSQL; on MySQL it frees locks). What users of
/// the plain `DatabaseConnection` leave behind is theirs: a session finds it, and a reset goes back to it.
///
/// Behind a proxy that pools per transaction (PgBouncer), session state belongs to the proxy: do not
/// use it at all there.
///
/// ```
/// # #[cfg(feature = "sqlx-sqlite")]
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// use sea_orm::{ConnectionTrait, Database};
/// use tower_sea_orm::{Reset, SessionPool};
///
/// let db = Database::connect("sqlite::memory:").await?;
/// let pool = SessionPool::builder(db).reset(Reset::SessionState).build()?;
/// let session = pool.session().await?;
/// session.execute_unprepared("CREATE TEMPORARY TABLE basket (item integer)").await?;
/// drop(session);
///
/// let next = pool.session().await?;
/// assert!(next.execute_unprepared("SELECT * FROM basket").await.is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reset {
    /// Nothing is sent. A connection on which raw code may have left a transaction open is closed
    /// instead.
    None,
    /// A transaction that raw code may have left open is rolled back.
    #[default]
    RollbackOnly,
    /// Session state is put back after statements that may have changed it.
    SessionState,
    /// Session state is put back after every session that used its connection.
    SessionStateAlways,
}

impl Reset {
    pub(crate) fn is_of_session(self) -> bool {
        matches!(self, Self::SessionState | Self::SessionStateAlways)
    }
}
