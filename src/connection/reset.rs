//! [`Reset`]: what a connection is freed of before the next session gets it.

/// Determines how a connection is cleaned up when a session gives it back, beyond the rollback of
/// the session's transactions, which always happens.
///
/// Session state outlives a transaction: settings (`SET`, `set_config(…, false)`), the role,
/// advisory locks, temporary tables, `LISTEN`, cursors `WITH HOLD`. Unless it is reset, the next
/// request on the same connection finds the state that this one left behind.
///
/// | | sent when a session ends |
/// |---|---|
/// | [`None`](Self::None) | nothing |
/// | [`RollbackOnly`](Self::RollbackOnly), the default | a ROLLBACK where raw code may have left a transaction open |
/// | [`SessionState`](Self::SessionState) | one more round trip, but only after statements that may have changed session state |
/// | [`SessionStateAlways`](Self::SessionStateAlways) | one round trip for each session that used its connection |
///
/// The reset is part of giving the connection back: no session gets the connection before it is done, it is
/// bounded by [`release_timeout`](crate::SessionPoolBuilder::release_timeout), and if it fails the connection is
/// closed. Responses do not wait for it. With `SessionState`, a session that changed nothing costs nothing.
///
/// # What is reset
///
/// - **PostgreSQL**: settings, role and session authorization, advisory locks, `LISTEN`, cursors,
///   temporary objects. The memory of sequences (`lastval`) is reset along with these, but does not
///   trigger a reset, because every INSERT would. The driver's prepared statements stay. Values set by
///   `schema_search_path` and `after_connect` are read before the first change (one round trip for each
///   connection that comes from the driver's pool, and only if a change is about to be made) and
///   restored. PostgreSQL does not list parameters with a dot in their name: set those as start-up
///   options or by `ALTER ROLE … SET`, so that they are defaults, to which a reset returns. After a
///   `PREPARE`, `DEALLOCATE`, `DISCARD ALL`, `LOAD` or a named `dblink` connection, the connection is
///   closed.
/// - **MySQL and MariaDB**: locks of `GET_LOCK` and `LOCK TABLES`. sqlx cannot reset such a
///   connection as a whole, so after any other change (`SET`, a user variable, `USE`, a temporary
///   table, `PREPARE`, `CALL`) it is closed.
/// - **SQLite**: the connection is closed after a PRAGMA that sets something, `ATTACH` and temporary
///   objects. The connection of an in-memory database is never closed: temporary objects are dropped and
///   databases detached, but PRAGMA settings stay.
/// - **Raw code** (`with_postgres`, …) may have done anything: on PostgreSQL the session is reset
///   (statements that the code prepared by `PREPARE` stay); on the others the connection is closed.
///
/// # What is detected
///
/// Changes are detected by the text of statements, also inside a batch, and by the built-in functions they
/// name. A statement that failed or was cancelled counts as well. A function or trigger of your own that
/// changes session state is not detected: use `SessionStateAlways` for those (on PostgreSQL; on MySQL it
/// frees locks). State that users of the plain `DatabaseConnection` leave behind is not reset: a session
/// finds it, and a reset returns to it.
///
/// Behind a proxy that pools per transaction (PgBouncer), session state belongs to the proxy: do not
/// use session state there at all.
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
    /// Session state is reset after statements that may have changed it.
    SessionState,
    /// Session state is reset after every session that used its connection.
    SessionStateAlways,
}

impl Reset {
    pub(crate) fn is_of_session(self) -> bool {
        matches!(self, Self::SessionState | Self::SessionStateAlways)
    }
}
