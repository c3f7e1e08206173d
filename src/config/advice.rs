//! What to write instead of parameters that other drivers know and sqlx does not.

use sea_orm::DbBackend;

/// Names, in small letters without `-` and `_`, and what to do about them.
type Advice = (&'static str, &'static str);

const POSTGRES: &[Advice] = &[
    (
        "ssl usessl tls usetls requiressl sslaccept sslfactory encrypt secure ssldisabled",
        "write `sslmode=verify-full`, or `require` (TLS without a look at the certificate), or `disable`",
    ),
    (
        "schema schemas currentschema searchpath",
        "write `options[search_path]=…`, or the setting `schema_search_path`",
    ),
    (
        "targetsessionattrs targetservertype loadbalancehosts hostrecheckseconds",
        "sqlx does not support it: it connects to one host and does not ask for its role. Leave it out, and name the \
         primary",
    ),
    (
        "channelbinding",
        "sqlx has no channel binding: leave it out, and write `sslmode=verify-full`",
    ),
    (
        "sslcrl sslcrldir sslcompression sslnegotiation sslminprotocolversion sslmaxprotocolversion gssencmode \
         gssdelegation gsslib krbsrvname requireauth requirepeer replication",
        "sqlx does not support it: leave it out",
    ),
    ("sslsni", "sqlx always sends the host's name: leave it out"),
    (
        "service servicefile passfile",
        "sqlx reads no service file, and takes a password file from `PGPASSFILE` only: leave it out",
    ),
    (
        "keepalives keepalivesidle keepalivesinterval keepalivescount tcpkeepalive tcpusertimeout",
        "sqlx does not set the socket's options: leave it out",
    ),
    (
        "commandtimeout querytimeout",
        "write the setting `statement_timeout`",
    ),
    (
        "pgbouncer preparethreshold",
        "for a PgBouncer before 1.21 write `statement-cache-capacity=0`; for a newer one leave it out",
    ),
    (
        "clientencoding charset encoding",
        "sqlx always speaks UTF-8: leave it out",
    ),
    ("username", "write it before the host, or as `user=…`"),
    (
        "database db",
        "write it as the URL's path, or as `dbname=…`",
    ),
    (
        "appname fallbackapplicationname",
        "write `application_name=…`",
    ),
    ("role serversettings", "write `options[NAME]=…`"),
];

const MYSQL: &[Advice] = &[
    (
        "ssl usessl tls usetls requiressl requiretls sslaccept ssldisabled encrypt secure rejectunauthorized \
         verifyservercertificate sslverifycert sslverifyidentity sslverifyservercert",
        "write `ssl-mode=VERIFY_IDENTITY`, or `REQUIRED` (TLS without a look at the certificate), or `DISABLED`",
    ),
    (
        "sslrootcert servercertificate",
        "write `ssl-ca=…`, with `ssl-mode=VERIFY_CA` or `VERIFY_IDENTITY`",
    ),
    (
        "autocommit completiontype",
        "sessions set it themselves: leave it out, and take a `DbTx` where a transaction is needed",
    ),
    (
        "servertimezone connectiontimezone sessiontimezone tz loc parsetime",
        "sqlx sets each connection's time zone to UTC, as its types expect: leave it out",
    ),
    (
        "characterencoding useunicode encoding",
        "write `charset=…`, or leave it out for utf8mb4",
    ),
    ("connectioncollation", "write `collation=…`"),
    ("unixsocket localsocket", "write `socket=…`"),
    (
        "readtimeout writetimeout querytimeout",
        "sqlx has no such time-out: leave it out",
    ),
    (
        "allowpublickeyretrieval getserverpublickey serverpublickeypath serverrsapublickeyfile",
        "leave it out, and connect with TLS or turn on sqlx's feature `mysql-rsa`",
    ),
    (
        "sqlmode initcommand initconnect sessionvariables transactionisolation isolationlevel",
        "leave it out, and run a `SET` in `after_connect` of SeaORM's options (`PoolConfig::connect_options`)",
    ),
    (
        "multistatements allowmultiqueries useserverprepstmts cacheprepstmts",
        "sqlx does this by itself: leave it out",
    ),
    (
        "localinfile allowloadlocalinfile compress usecompression usecursorfetch rewritebatchedstatements",
        "sqlx does not support it: leave it out",
    ),
    (
        "user username host hostaddr port",
        "sqlx does not read it here: write it before the path",
    ),
    ("database db dbname schema", "write it as the URL's path"),
];

const SQLITE: &[Advice] = &[
    (
        "timeout busytimeout journalmode journal foreignkeys fk synchronous sync cachesize autovacuum lockingmode \
         pagesize pragma securedelete statementcachecapacity key",
        "leave it out, and set it by `map_sqlx_sqlite_opts` of SeaORM's options (`PoolConfig::connect_options`)",
    ),
    ("create createifmissing", "write `mode=rwc`"),
    ("readonly ro", "write `mode=ro`"),
    ("memory inmemory", "write `mode=memory`"),
    (
        "checksamethread isolationlevel uri detecttypes cachedstatements",
        "it is Python's: leave it out",
    ),
    (
        "nolock psow modeof",
        "sqlx does not hand it on to SQLite: leave it out",
    ),
];

/// What is a setting of the pool, or is called the same by all.
const ANY: &[Advice] = &[
    (
        "connectiontimeout logintimeout sockettimeout timeout",
        "write the setting `acquire_timeout`",
    ),
    (
        "connectionlimit maxpoolsize maximumpoolsize maxconns poolmaxconns maxconnections",
        "write the setting `max_connections`",
    ),
    (
        "minpoolsize minimumidle minconns poolminconns",
        "write the setting `min_connections`",
    ),
    (
        "maxidletime poolmaxconnidletime",
        "write the setting `idle_timeout`",
    ),
    (
        "maxconnlifetime poolmaxconnlifetime",
        "write the setting `max_lifetime`",
    ),
    (
        "statementcachesize preparedstatementcachesize preparedstatementcachequeries prepstmtcachesize",
        "write `statement-cache-capacity=…`",
    ),
];

/// PostgreSQL's own settings that URLs of other drivers name.
const SERVER_SETTINGS: &str = "statement_timeout lock_timeout transaction_timeout idle_in_transaction_session_timeout \
     idle_session_timeout timezone datestyle intervalstyle default_transaction_isolation default_transaction_read_only \
     synchronous_commit work_mem jit plan_cache_mode client_min_messages tcp_keepalives_idle";

/// What to do about the parameter `name`, `plain` without signs and capitals.
pub(super) fn advice(backend: DbBackend, name: &str, plain: &str) -> Option<String> {
    let of_backend = match backend {
        DbBackend::Postgres => POSTGRES,
        DbBackend::MySql => MYSQL,
        _ => SQLITE,
    };
    let setting = name.to_ascii_lowercase();
    if backend == DbBackend::Postgres && SERVER_SETTINGS.split(' ').any(|known| known == setting) {
        return Some(format!("write `options[{setting}]=…`"));
    }
    let named = |(names, _): &&Advice| names.split(' ').any(|name| name == plain);
    of_backend
        .iter()
        .chain(ANY)
        .find(named)
        .map(|(_, advice)| (*advice).to_owned())
}
