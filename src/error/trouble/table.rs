//! The error codes. A server's own list is at
//! <https://www.postgresql.org/docs/current/errcodes-appendix.html>,
//! <https://dev.mysql.com/doc/mysql-errors/en/server-error-reference.html>,
//! <https://mariadb.com/kb/en/mariadb-error-code-reference/> and <https://sqlite.org/rescode.html>.

use super::Trouble::{self, *};

/// One trouble in the words of each server.
#[allow(dead_code, reason = "each driver has its own codes")]
pub(super) struct Row {
    pub(super) trouble: Trouble,
    /// SQLSTATEs, or how they begin. They are also PgBouncer's.
    pub(super) postgres: Says<&'static str>,
    /// Error numbers of MySQL, MariaDB and Galera.
    pub(super) mysql: Says<u16>,
    /// Result codes: extended ones, or the primary ones of their low byte.
    pub(super) sqlite: Says<i32>,
}

pub(super) enum Says<Code: 'static> {
    These(&'static [(Code, Mark)]),
    /// It does not exist there, and why.
    #[cfg_attr(not(test), allow(dead_code, reason = "for those who read the table"))]
    Nothing(&'static str),
}

/// A mark that an error must have besides its code, where that has more than
/// one meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    Any,
    /// Words of its message that are not translated, or stand in each
    /// translation.
    With(&'static str),
    /// All of its message is one of these, in some language.
    Is(&'static [&'static str]),
    /// PostgreSQL's function that reports it.
    From(&'static str),
    /// PostgreSQL ends the session with it: its severity is not ERROR.
    // Any function may raise any code, and `dblink` and `postgres_fdw` pass on
    // those of another server: as an ERROR, which leaves the connection as it
    // was (`an_imitated_loss_of_the_connection_is_the_statements_own_error`).
    Farewell,
}

use self::{
    Mark::{Any, Farewell, From, Is, With},
    Says::{Nothing, These},
};

const NO_SERVER: &str = "no server that could say so";

/// PostgreSQL's words for a statement's time-out, in the languages of
/// `lc_messages` that have them, and CockroachDB's.
///
/// The same function reports, by the same code, a statement that was cancelled
/// on request (and a COPY that its client gives up has that code as well); it
/// does so from a line of its own, but which line that is differs with each
/// version. In a language that is not here, a time-out is the server's error
/// and no more, and the handler's 500: to take a cancel for one would tell
/// clients that a statement ran for too long which did not.
const TIMED_OUT: &[&str] = &[
    "canceling statement due to statement timeout",
    "query execution canceled due to statement timeout",
    "storniere Anfrage wegen Zeitüberschreitung der Anfrage",
    "cancelando la sentencia debido a que se agotó el tiempo de espera de sentencias",
    "annulation de la requête à cause du délai écoulé pour l'exécution de l'instruction",
    "annullamento dell'istruzione a causa di timeout",
    "ステートメントのタイムアウトのためステートメントをキャンセルしています",
    "명령실행시간 초과로 작업을 취소합니다.",
    "выполнение оператора отменено из-за тайм-аута",
    "avbryter sats på grund av sats-timeout",
    "виконання оператора скасовано через тайм-аут",
    "由于语句执行超时，正在取消查询命令",
];

/// The first row that fits is the one that counts.
pub(super) const TABLE: &[Row] = &[
    Row {
        trouble: Serialization,
        postgres: These(&[("40001", Any)]),
        // ER_CHECKREAD of MariaDB's `innodb_snapshot_isolation`, on from 11.6.
        mysql: These(&[(1020, Any)]),
        // SQLITE_BUSY_SNAPSHOT: what the transaction has read is old, and it
        // cannot write any more.
        sqlite: These(&[(517, Any)]),
    },
    Row {
        trouble: Deadlock,
        postgres: These(&[("40P01", Any)]),
        // Galera's answer, too, to what has collided with another node's
        // transaction, at a statement or at COMMIT (H36).
        mysql: These(&[(1213, Any)]),
        sqlite: Nothing("SQLITE_BUSY is returned before a deadlock"),
    },
    Row {
        trouble: LockNotAvailable,
        postgres: These(&[("55P03", Any)]),
        // ER_LOCK_WAIT_TIMEOUT, which also is a wait of Galera's
        // `WSREP_SYNC_WAIT_UPTO_GTID` and MariaDB's NOWAIT; MySQL's
        // ER_LOCK_NOWAIT.
        mysql: These(&[(1205, Any), (3572, Any)]),
        // SQLITE_BUSY, SQLITE_LOCKED.
        sqlite: These(&[(5, Any), (6, Any)]),
    },
    Row {
        trouble: StatementTimeout,
        postgres: These(&[("57014", Is(TIMED_OUT))]),
        // MariaDB's ER_STATEMENT_TIMEOUT, MySQL's ER_QUERY_TIMEOUT.
        mysql: These(&[(1969, Any), (3024, Any)]),
        sqlite: Nothing("statements have no time-out"),
    },
    Row {
        trouble: ReadOnly,
        postgres: These(&[("25006", Any)]),
        // `read_only` and `super_read_only`, among other options, whose names
        // stand in each translation; READ ONLY transactions; InnoDB's read-only
        // mode.
        mysql: These(&[
            (1290, With("read-only")),
            (1290, With("read_only")),
            (1792, Any),
            (1836, Any),
        ]),
        // SQLITE_READONLY.
        sqlite: These(&[(8, Any)]),
    },
    Row {
        trouble: NoQuorum,
        postgres: Nothing("a standby is read-only"),
        // Galera, which has not run the statement and speaks English only. By
        // itself, 1047 is an unknown command of the protocol.
        mysql: These(&[(1047, With("WSREP"))]),
        sqlite: Nothing(NO_SERVER),
    },
    Row {
        trouble: CommitInterrupted,
        postgres: Nothing("COMMIT is done, refused, or lost with its connection"),
        // ER_ERROR_DURING_COMMIT: a Galera node that has lost the others, which
        // may have what it sent them (H38).
        mysql: These(&[(1180, Any)]),
        sqlite: Nothing(NO_SERVER),
    },
    Row {
        trouble: TooManyConnections,
        // PgBouncer's `max_client_conn` and `query_wait_timeout`; Supavisor.
        // Both speak English only.
        postgres: These(&[
            ("53300", Any),
            ("08004", Farewell),
            // The code of a broken protocol, which PgBouncer gives to most
            // errors of its own.
            ("08P01", With("no more connections allowed")),
            ("08P01", With("query_wait_timeout")),
            ("XX000", With("Max client connections reached")),
        ]),
        // `max_connections`, `max_user_connections`, the account's own limit.
        mysql: These(&[(1040, Any), (1203, Any), (1226, Any)]),
        sqlite: Nothing(NO_SERVER),
    },
    Row {
        trouble: StartingUp,
        postgres: These(&[("57P03", Farewell)]),
        // ER_SERVER_ISNT_AVAILABLE. It usually takes no connections until it is
        // ready.
        mysql: These(&[(3168, Any)]),
        sqlite: Nothing(NO_SERVER),
    },
    Row {
        trouble: LogInRefused,
        // The user, the password, the database.
        postgres: These(&[("28", Any), ("3D000", Any)]),
        // Database, password, unknown database, host, plug-in, expired
        // password, locked account.
        mysql: These(&[
            (1044, Any),
            (1045, Any),
            (1049, Any),
            (1129, Any),
            (1130, Any),
            (1698, Any),
            (1820, Any),
            (1862, Any),
            (3118, Any),
            (4151, Any),
        ]),
        sqlite: Nothing("a file asks for no log-in"),
    },
    Row {
        trouble: IdleEnded,
        // `idle_session_timeout`.
        postgres: These(&[("57P05", Farewell)]),
        // ER_CLIENT_INTERACTION_TIMEOUT of MySQL. MariaDB closes the connection
        // without a word.
        mysql: These(&[(4031, Any)]),
        sqlite: Nothing(NO_SERVER),
    },
    Row {
        trouble: TransactionIdle,
        // `idle_in_transaction_session_timeout`.
        postgres: These(&[("25P03", Farewell)]),
        mysql: Nothing("MariaDB closes the connection without a word"),
        sqlite: Nothing(NO_SERVER),
    },
    Row {
        trouble: TransactionOverdue,
        // `transaction_timeout`, which may end a COMMIT half-way.
        postgres: These(&[("25P04", Farewell)]),
        mysql: Nothing("only a statement has a time-out"),
        sqlite: Nothing(NO_SERVER),
    },
    Row {
        trouble: ConnectionEnded,
        // Shutdown, crash of another backend, database dropped; and the class
        // of connection errors. Behind `TooManyConnections`, which has codes of
        // class 08.
        postgres: These(&[
            ("57P01", Farewell),
            ("57P02", Farewell),
            ("57P04", Farewell),
            ("08", Farewell),
        ]),
        // ER_SERVER_SHUTDOWN, ER_ABORTING_CONNECTION, ER_NET_PACKET_TOO_LARGE,
        // errors of the network as the server saw them,
        // ER_NEW_ABORTING_CONNECTION, MariaDB's ER_CONNECTION_KILLED, MySQL's
        // ER_SESSION_WAS_KILLED.
        mysql: These(&[
            (1053, Any),
            (1152, Any),
            (1153, Any),
            (1158, Any),
            (1159, Any),
            (1160, Any),
            (1161, Any),
            (1184, Any),
            (1927, Any),
            (3169, Any),
        ]),
        sqlite: Nothing(NO_SERVER),
    },
    Row {
        trouble: TransactionAborted,
        postgres: These(&[("25P02", Any)]),
        mysql: Nothing("a statement that fails leaves the transaction open, or ends all of it"),
        sqlite: Nothing("a statement that fails leaves the transaction open, or ends all of it"),
    },
    Row {
        trouble: TransactionEnded,
        postgres: Nothing("a transaction is aborted, and ends with its ROLLBACK"),
        // ER_LOCK_TABLE_FULL.
        mysql: These(&[(1206, Any)]),
        // SQLITE_NOMEM, SQLITE_INTERRUPT, SQLITE_IOERR, SQLITE_FULL.
        // SQLITE_BUSY may leave it open: SQLite is asked then (H8).
        sqlite: These(&[(7, Any), (9, Any), (10, Any), (13, Any)]),
    },
    Row {
        trouble: StatementRefused,
        postgres: Nothing("a statement that fails has aborted its transaction"),
        // NULL where none may be, unknown column, duplicate key, syntax, number
        // of values, unknown table, out of range, wrong value, no default,
        // wrong value, too long, both sides of a foreign key, out of range,
        // MySQL's and MariaDB's CHECK. What is missing here costs a round trip,
        // with which the server is asked.
        mysql: These(&[
            (1048, Any),
            (1054, Any),
            (1062, Any),
            (1064, Any),
            (1136, Any),
            (1146, Any),
            (1264, Any),
            (1292, Any),
            (1364, Any),
            (1366, Any),
            (1406, Any),
            (1451, Any),
            (1452, Any),
            (1690, Any),
            (3819, Any),
            (4025, Any),
        ]),
        sqlite: Nothing("a conflict clause or a trigger may say ROLLBACK"),
    },
    Row {
        trouble: TransactionOpen,
        postgres: Nothing("BEGIN inside a transaction is a warning"),
        // ER_CANT_CHANGE_TX_CHARACTERISTICS.
        mysql: These(&[(1568, Any)]),
        // SQLITE_ERROR is any mistake; SQLite translates none of its messages.
        sqlite: These(&[(1, With("within a transaction"))]),
    },
    Row {
        trouble: NoSuchProcess,
        postgres: Nothing("pg_cancel_backend() says so by a warning"),
        // ER_NO_SUCH_THREAD.
        mysql: These(&[(1094, Any)]),
        sqlite: Nothing(NO_SERVER),
    },
    Row {
        trouble: StalePlan,
        // *cached plan must not change result type*; sqlx's statement was
        // deallocated; a type was made anew.
        postgres: These(&[
            // 0A000 is any feature that PostgreSQL lacks, and `lc_messages`
            // translates the message. The routine's name stays.
            ("0A000", From("RevalidateCachedQuery")),
            // A statement of a user's own PREPARE is gone because its text says
            // so, or was never there.
            ("26000", With("sqlx_s_")),
            // An internal error's message is not translated.
            ("XX000", With("cache lookup failed for type")),
        ]),
        // ER_NEED_REPREPARE; ER_UNKNOWN_STMT_HANDLER, unless of an EXECUTE in
        // SQL: the command's name stands in each translation.
        mysql: These(&[(1615, Any), (1243, With("stmt_execute"))]),
        // SQLITE_SCHEMA, after SQLite has prepared it anew a number of times.
        sqlite: These(&[(17, Any)]),
    },
];
