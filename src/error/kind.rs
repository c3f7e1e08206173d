//! [`Kind`]: every kind of failure, and its text.

use sea_orm::{ConnAcquireErr, DbErr, RuntimeErr};

use crate::sql::TransactionControl;

/// Makes [`Kind`] from a table of texts. The kinds in the first part can stand
/// in a [`DbErr`], as text.
macro_rules! kinds {
    (
        stated { $($stated:ident = $stated_text:literal;)* }
        others { $($other:ident $(($field:ident: $type:ty))? = $other_text:expr;)* }
    ) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[allow(dead_code, reason = "each driver has its own conflicts")]
        pub(crate) enum Kind {
            $($stated,)*
            $($other $(($type))?,)*
        }

        /// Every kind that can stand in a [`DbErr`] as text, but for
        /// [`Kind::Control`].
        pub(super) const STATED: &[Kind] = &[$(Kind::$stated),*];

        impl Kind {
            pub(super) fn text(self) -> &'static str {
                match self {
                    $(Self::$stated => $stated_text,)*
                    $(Self::$other $(($field))? => $other_text,)*
                }
            }
        }
    };
}

kinds! {
    // A kind that a statement may return stands here: `Error::of` does not look
    // for the others. No two have the same text, since the text is all that is
    // left of the kind.
    stated {
        // The connection.
        Down = "the database cannot be reached: see the log for the cause";
        ReplicaBehind = "the replica has not caught up with what this client has written: read it again";
        FormerPrimary = "the server was the primary before a fail-over and is so no longer: new connections go to the one that is";
        ReadLost = "the connection to the server that this request reads on was lost, and nothing was written: send the request again";
        ConnectionLost = "the session's connection was lost: this request cannot continue on it";
        AsksEarlier = "this statement asks about an earlier one of its connection, which `PoolMode::Transaction` may have lent meanwhile: use what the earlier statement returns (RETURNING, `last_insert_id`, `rows_affected`), run both in one transaction, or hold `session.pin()` from before the first to after the second";
        OutOfStep = "raw code left the connection out of step with the server, so it was closed and what was open on it rolled back: end each COPY by `finish()` or `abort()` and await it, and read a `copy_out_raw` to its end";
        WrongDriver = "the session's connection belongs to another driver: check `backend()` first";
        NoRuntime = "there is no tokio runtime here: a session needs one to acquire its connection";
        PoolDeadlock = "every connection of the pool is held by a request or a job that is waiting for a second one, so none of them could continue: use one session per request, `release()` it before you take another, or use the plain DatabaseConnection with `reserved_connections`";

        NoCurrentSession = "there is no current session here: a `CurrentSession` finds the session of the request that polls it, below a `tower_sea_orm::DbSessionLayer` (with the same tag, if it has one); in a spawned task or a hook, run the work in `session.scope(…)` or `pool.transaction(…)`, or build it with `or_own_session()`";

        // The session's end.
        SessionClosed = "session closed: its request has ended; for work that outlives the request, take `session.pool()` and open another session";
        Reclaimed = "the session held its connection for longer than `hold_timeout`, so the connection was taken away and open work rolled back: do less in one request, or `release()` the session while you wait for something else";
        Unread = "the client did not read the response's body within the `body_timeout`, so the session that was kept for it was ended and open work rolled back";

        // Handles and modes.
        NestedOpen = "a nested transaction is open: use its handle, and commit or roll it back before you use the one around it";
        TransactionOver = "this transaction has ended: it, or one around it, was committed, rolled back or dropped";
        TransactionOpen = "a transaction is open: `commit()` or `rollback()` before you `release()`";
        TransactionBegun = "the session's transaction has begun with other options: set them before its first statement";
        NestedOptions = "isolation level and access mode belong to the outermost transaction: a nested one is a savepoint and cannot change them";
        NoTransaction = "this session commits each statement by itself: take a `DbTx`, or put `.transaction()` on the layer";
        MustBeTransaction = "the session layer's `on_begin`, settings or time-outs need a transaction: a route inside it cannot opt out";
        SettingWithNul = "a value of `set_local` or `search_path` has a NUL character in it, which PostgreSQL takes in no text";
        NoTimeouts = "time-outs of a transaction need a connection that is the session's own: a proxy of SeaORM's and a plain DatabaseConnection have none on MySQL, MariaDB and SQLite";
        RollbackOnly = "this session was set to roll back only: it can no longer commit";
        RetryInside = "a `RetryLayer` is inside a `DbSessionLayer`, whose session would stay open over all attempts: put it outside all session layers";
        NoEnd = "this session is not part of a request, so hooks would never run: take the session from a layer, `pool.transaction()` or, in a test, `testing::serve`";
        InUse = "the session has already used its connection, so a layer's `on_acquire` comes too late: put that layer outside everything that runs statements";
        StreamOpen = "a stream of this session is open: read it to its end or drop it before the next statement";
        RawRunning = "a raw closure of this session is using its connection: use the connection passed to the closure; use the session once it has returned";

        // The transaction.
        Aborted = "the server aborted this transaction after a failed statement; nothing was committed: put statements that may fail into a nested transaction";
        EndedElsewhere = "raw or stored code ended this transaction behind the session's back, or was cut off so that it may have; earlier changes may be committed: leave BEGIN, COMMIT and ROLLBACK to the session";
        LeftOpenByCode = "stored code left a transaction open, or autocommit off with work to commit, and was rolled back: make that code commit its own work";
        CommitsImplicitly = "this statement makes MySQL and MariaDB commit the open transaction: run it in a session without one";
        CommitFailed = "the server refused to commit the transaction: none of its changes were saved";
        OutcomeUnknown = "the connection was lost during COMMIT, or the server gave it up or did not answer it in time: the transaction may or may not be committed";
        LeftOpen = "a transaction begun by the handler was still open when it answered, so everything was rolled back: commit or drop it before you answer";
        StillRunning = "a statement of this session was still running when the handler answered, so everything was rolled back: await what you spawn";
        TestEnded = "raw or stored code, or a deadlock, ended the transaction around this `TestPool`; earlier changes may be committed: leave BEGIN, COMMIT and ROLLBACK to the sessions, or test such code on a database that nothing else uses";
    }
    others {
        Control(control: TransactionControl) = control_text(control);

        // The pool.
        Exhausted = "no connection became free within the acquire timeout: raise max_connections, or hold sessions for less time (`.lazy()`, `release()`)";
        Crowded = "too many requests are already waiting for a connection: raise max_connections or max_pending, or hold sessions for less time (`.lazy()`, `release()`)";
        ReadsOnPrimary = "no replica can serve this read, and the primary serves as many reads as it may: see `Replicas::status`, or raise `max_reads_on_primary`";
        ServerFull = "the server accepts no more connections: raise its limit, or lower max_connections (every instance of the service has a pool)";
        NotOpened = "no connection could be opened within the acquire timeout, although the server did not appear to be down: raise acquire_timeout or min_connections, or find out why log-ins take so long";
        TestConnectionHeld = "the only connection of this `TestPool` is held by another session: drop the test's session before you call the service";
        Closing = "the connection pool is closed";

        // The server.
        Serialization = "the transaction could not be serialized with a concurrent one: run it again";
        Deadlock = "the transaction lost a deadlock: run it again";
        LockNotAvailable = "the statement did not get a lock in time: run the transaction again";
        StatementTimeout = "the statement ran for longer than the server allows: make it faster, or raise the server's limit";
        ReadOnly = "the server, or the transaction, is read-only: after a fail-over, new connections go to the writable server";
        StalePlan = "a prepared statement on this connection is gone, or no longer matches its tables: run the transaction again";

        // Layers and settings.
        MissingLayer = "no database session in this request: add `tower_sea_orm::DbSessionLayer` around the route (with the same tag, if the session has one)";
        NoSession = "a `TransactionLayer` found no database session in the request: put a `tower_sea_orm::DbSessionLayer` (with the same tag) around it";
        OtherPool(_tag: &'static str) = "the request already has a session of another pool: give one of the two `DbSessionLayer`s a different tag";
        ReplicasAndBy = "`replicas` and `by` both pick a request's pool: use one of the two";
        NotThePrimary = "the layer's pool is not the primary's: give the layer the pool that `Replicas::of` has got";
        NoReplica = "`replicas` needs a replica, with a pool of its own: add one by `Replicas::replica`";
        HasNoReplicas = "`replicas` needs PostgreSQL or MariaDB on all servers: for another database, pick the pools by `DbSessionLayer::by`";
        UnknownDatabase = "the layer's `by` knows no database for this request";
        OtherBackend = "the pool that the layer's `by` has picked is over another kind of database than the layer's own pool, by which its settings were checked: give the two databases a layer each";
        Disconnected = "the DatabaseConnection is disconnected: connect it before you build a DbSessionLayer or SessionPool";
        DriverNotEnabled(_remedy: &'static str) = "the DatabaseConnection's driver is not built into tower-sea-orm";
        InvalidReserve = "`reserved_connections` leaves no connection for sessions: it must be smaller than max_connections";
        InvalidHold = "`hold_slow_threshold`, `hold_timeout` and `body_timeout` cannot be zero: every session would exceed them immediately (`Duration::MAX` turns them off)";
        CannotClose = "`on_acquire` closes a connection after its request, which an in-memory SQLite database or a mock does not survive: use `on_begin`";
        InvalidSettingName = "`set_local` needs the name of a setting, as `app.tenant`: letters, digits, `_` and `$` between dots, and no digit or `$` first";
        NoLocalSettings = "`set_local`, `search_path` and `application_name` need PostgreSQL: on MySQL, MariaDB and SQLite, no setting ends with its transaction";
        NoStatementTimeout = "SQLite has no `statement_timeout`: end long work by `hold_timeout`, or leave it out for this database";
        NothingToRollBack = "a mock or proxy has no transaction to roll back: a test on one needs no `TestPool`";
        NeverLent = "`Reset::SessionStateAlways` takes every statement for one that leaves session state behind, so that `PoolMode::Transaction` could lend nothing: use one of the two";
        NothingToLend = "`PoolMode::Transaction` lends connections between statements, and a proxy has none: leave `pool_mode` at its default";
        NothingToReset = "`reset` restores connection state, and a proxy has no connection: leave it at its default";
    }
}

impl Kind {
    pub(crate) fn into_db_err(self) -> DbErr {
        match self {
            // SeaORM's own variants where it has them: code that knows those of
            // its pool goes on to work.
            kind if kind.is_exhausted() => DbErr::ConnectionAcquire(ConnAcquireErr::Timeout),
            Self::Closing => DbErr::ConnectionAcquire(ConnAcquireErr::ConnectionClosed),
            // Not `DbErr::Custom`, which is for users' own texts: one that
            // looked alike would be taken for this crate's.
            kind => DbErr::Conn(RuntimeErr::Internal(kind.text().to_owned())),
        }
    }

    /// The same, with what is known beside it.
    #[cfg(feature = "config")]
    pub(crate) fn into_db_err_with(self, detail: &str) -> DbErr {
        DbErr::Conn(RuntimeErr::Internal(format!("{} ({detail})", self.text())))
    }

    /// All connections are in use, or the server takes no more.
    // One question for all: what the client can do about them is the same.
    pub(super) fn is_exhausted(self) -> bool {
        matches!(
            self,
            Self::Exhausted
                | Self::Crowded
                | Self::ReadsOnPrimary
                | Self::ServerFull
                | Self::NotOpened
                | Self::TestConnectionHeld
        )
    }

    /// The kind that stands in a [`DbErr`] as `text`.
    pub(super) fn of_text(text: &str) -> Option<Self> {
        let controls = TransactionControl::ALL.map(Self::Control);
        let mut kinds = STATED.iter().copied().chain(controls);
        // SeaORM's error has room for a text only: it is what says which kind
        // it was. Behind it, a detail may follow.
        kinds.find(|kind| {
            let rest = text.strip_prefix(kind.text());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(" ("))
        })
    }
}

/// The method to use instead.
fn control_text(control: TransactionControl) -> &'static str {
    match control {
        TransactionControl::Begin => {
            "raw BEGIN is refused: use `begin()`, `transaction_async()` or a `DbTx`, so that the session knows about the transaction"
        }
        TransactionControl::Commit => {
            "raw COMMIT is refused: use `commit()` of the session or of its transaction, which says whether it worked"
        }
        TransactionControl::Rollback => {
            "raw ROLLBACK is refused: use `rollback()` of the session or of its transaction"
        }
        TransactionControl::Savepoint => {
            "raw SAVEPOINT, RELEASE and ROLLBACK TO are refused: use `begin()` on the transaction, then `commit()` or `rollback()` of what it returns"
        }
        TransactionControl::SetTransaction => {
            "this setting would change transactions behind the session's back: use `begin_with_options()`, `tx_with()` or the layer's `transaction_with()`"
        }
        TransactionControl::TwoPhase => {
            "two-phase commit in raw SQL is refused: use `with_postgres()` or `with_mysql()` on a session without a transaction"
        }
    }
}
