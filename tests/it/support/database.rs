//! One database for one test, on each kind of server.

use std::{
    process,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use sea_orm::{
    ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DbBackend, DbErr, Statement,
    sqlx::{
        AssertSqlSafe, Connection, Executor, MySqlConnection, PgConnection,
        sqlite::{SqliteJournalMode, SqliteSynchronous},
    },
};
use tempfile::TempDir;

use super::servers::{Engine, OwnServer, mysql_url, postgres_url};

/// How long a pool waits for a connection, and SQLite for a lock.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(30);

/// The kind of a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// PostgreSQL.
    Postgres,
    /// MySQL's protocol, spoken by MariaDB.
    MySql,
    /// SQLite in a file, in WAL mode.
    SqliteFile,
    /// SQLite in memory: there is only one connection to it.
    SqliteMemory,
}

/// The kinds with a server.
pub const SERVERS: [Kind; 2] = [Kind::Postgres, Kind::MySql];

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 4] = [
        Self::Postgres,
        Self::MySql,
        Self::SqliteFile,
        Self::SqliteMemory,
    ];

    /// SeaORM's name for it.
    pub fn backend(self) -> DbBackend {
        match self {
            Self::Postgres => DbBackend::Postgres,
            Self::MySql => DbBackend::MySql,
            Self::SqliteFile | Self::SqliteMemory => DbBackend::Sqlite,
        }
    }

    /// The statements that make the standard table, `item`.
    pub fn schema(self) -> [&'static str; 2] {
        let table = match self {
            Self::Postgres => {
                "CREATE TABLE item (id serial PRIMARY KEY, name varchar(100) NOT NULL, \
                 hits integer NOT NULL DEFAULT 0)"
            }
            Self::MySql => {
                "CREATE TABLE item (id integer PRIMARY KEY AUTO_INCREMENT, \
                 name varchar(100) NOT NULL, hits integer NOT NULL DEFAULT 0) ENGINE=InnoDB"
            }
            Self::SqliteFile | Self::SqliteMemory => {
                "CREATE TABLE item (id integer PRIMARY KEY AUTOINCREMENT, \
                 name varchar(100) NOT NULL, hits integer NOT NULL DEFAULT 0)"
            }
        };
        [table, "CREATE UNIQUE INDEX item_name ON item (name)"]
    }
}

/// A private database for one test, with the table
/// `item(id, name unique, hits default 0)`.
///
/// A file is removed on drop. A database on a server stays until the server,
/// which is a private one, is removed.
#[derive(Debug)]
pub struct TestDb {
    /// The kind of the database.
    pub kind: Kind,
    url: String,
    /// Holds a SQLite file.
    _dir: Option<TempDir>,
    /// The only connection to an in-memory database.
    memory: Option<DatabaseConnection>,
}

impl TestDb {
    /// Makes a new database: on the shared server, in a temporary file, or in
    /// memory.
    pub async fn new(kind: Kind) -> Self {
        match kind {
            Kind::Postgres => Self::on_server(kind, &postgres_url()).await,
            Kind::MySql => Self::on_server(kind, &mysql_url()).await,
            Kind::SqliteFile => {
                let dir = tempfile::tempdir().expect("a temporary directory");
                let file = dir.path().join("test.db");
                let url = format!("sqlite://{}?mode=rwc", file.display());
                Self::with_table(kind, url, Some(dir)).await
            }
            Kind::SqliteMemory => Self::with_table(kind, "sqlite::memory:".to_owned(), None).await,
        }
    }

    /// Makes a new database on `server`.
    pub async fn on(server: &OwnServer) -> Self {
        let kind = match server.engine() {
            Engine::Postgres => Kind::Postgres,
            Engine::MySql => Kind::MySql,
        };
        Self::on_server(kind, &server.url()).await
    }

    /// The URL. That of an in-memory database opens a new, empty one.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Options for a pool of at most `max_connections` on this database.
    ///
    /// For an in-memory database they open a new, empty one, with one
    /// connection that lives as long as the pool.
    pub fn options(&self, max_connections: u32) -> ConnectOptions {
        self.options_at(&self.url, max_connections)
    }

    /// Like [`TestDb::options`], by another URL to this database: that of a
    /// proxy, say.
    pub fn options_at(&self, url: &str, max_connections: u32) -> ConnectOptions {
        let mut options = ConnectOptions::new(url);
        options
            .max_connections(max_connections)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .sqlx_logging(false);
        match self.kind {
            Kind::Postgres | Kind::MySql => {}
            Kind::SqliteFile => {
                options.map_sqlx_sqlite_opts(|options| {
                    options
                        .journal_mode(SqliteJournalMode::Wal)
                        .synchronous(SqliteSynchronous::Off)
                        .busy_timeout(ACQUIRE_TIMEOUT)
                });
            }
            Kind::SqliteMemory => {
                options
                    .max_connections(1)
                    .min_connections(1)
                    .idle_timeout(None)
                    .max_lifetime(None);
            }
        }
        options
    }

    /// Opens a pool of at most `max_connections`.
    ///
    /// For an in-memory database it is always the same pool, of one.
    pub async fn connect(&self, max_connections: u32) -> DatabaseConnection {
        match &self.memory {
            Some(memory) => memory.clone(),
            None => open(self.options(max_connections)).await,
        }
    }

    /// Opens a second, independent pool, to see what others see; `None` for
    /// an in-memory database, which has no second view.
    pub async fn observer(&self) -> Option<DatabaseConnection> {
        match self.kind {
            Kind::SqliteMemory => None,
            _ => Some(open(self.options(2)).await),
        }
    }

    /// Makes a new database on the server at `admin_url`.
    async fn on_server(kind: Kind, admin_url: &str) -> Self {
        let name = unique_name();
        let sql = AssertSqlSafe(match kind {
            // No one is ever connected to template0.
            Kind::Postgres => format!("CREATE DATABASE {name} TEMPLATE template0"),
            _ => format!("CREATE DATABASE {name}"),
        });
        match kind {
            Kind::Postgres => {
                let admin = PgConnection::connect(admin_url).await;
                let mut admin = admin.expect("the PostgreSQL server answers");
                admin.execute(sql).await.expect("a new database");
                let _ = admin.close().await;
            }
            _ => {
                let admin = MySqlConnection::connect(admin_url).await;
                let mut admin = admin.expect("the MySQL server answers");
                admin.execute(sql).await.expect("a new database");
                let _ = admin.close().await;
            }
        }
        let (url, query) = match admin_url.split_once('?') {
            Some((url, query)) => (url, format!("?{query}")),
            None => (admin_url, String::new()),
        };
        let (server, _) = url.rsplit_once('/').expect("a URL with a database");
        Self::with_table(kind, format!("{server}/{name}{query}"), None).await
    }

    /// Makes the standard table in the empty database at `url`.
    async fn with_table(kind: Kind, url: String, dir: Option<TempDir>) -> Self {
        let mut this = Self {
            kind,
            url,
            _dir: dir,
            memory: None,
        };
        let db = open(this.options(1)).await;
        for sql in kind.schema() {
            db.execute_unprepared(sql).await.expect("the table is made");
        }
        if kind == Kind::SqliteMemory {
            this.memory = Some(db);
        } else {
            db.close().await.expect("the pool closes");
        }
        this
    }
}

/// Inserts an item.
pub async fn insert_item<C: ConnectionTrait>(db: &C, name: &str) {
    try_insert_item(db, name).await.expect("the insert works");
}

/// Inserts an item, or says why it cannot.
pub async fn try_insert_item<C: ConnectionTrait>(db: &C, name: &str) -> Result<(), DbErr> {
    let sql = "INSERT INTO item (name) VALUES ";
    let backend = db.get_database_backend();
    let sql = format!("{sql}({})", placeholder(backend));
    let statement = Statement::from_sql_and_values(backend, sql, [name.into()]);
    db.execute_raw(statement).await.map(drop)
}

/// Returns how many items of this name are seen: 0 or 1.
pub async fn count_items<C: ConnectionTrait>(db: &C, name: &str) -> i64 {
    let sql = "SELECT count(*) AS n FROM item WHERE name = ";
    let backend = db.get_database_backend();
    let sql = format!("{sql}{}", placeholder(backend));
    let statement = Statement::from_sql_and_values(backend, sql, [name.into()]);
    let row = db.query_one_raw(statement).await.expect("the count works");
    let row = row.expect("a count");
    row.try_get("", "n").expect("a number")
}

/// A name that nothing else has, on any server.
pub fn unique_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let micros = now.expect("a clock after 1970").as_micros();
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("t_{}_{micros}_{next}", process::id())
}

/// The first placeholder in a statement.
fn placeholder(backend: DbBackend) -> &'static str {
    match backend {
        DbBackend::Postgres => "$1",
        _ => "?",
    }
}

/// Opens a pool.
async fn open(options: ConnectOptions) -> DatabaseConnection {
    let connection = Database::connect(options).await;
    connection.expect("the database can be reached")
}
