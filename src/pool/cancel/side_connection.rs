//! [`SideConnection`]: the connection that carries the requests to cancel.

use std::fmt;
#[cfg(any(feature = "sqlx-postgres", feature = "sqlx-mysql"))]
use std::{future::Future, time::Duration};

#[cfg(any(feature = "sqlx-postgres", feature = "sqlx-mysql"))]
use tokio::time::timeout;

use super::super::driver_pool::DriverPool;
use crate::connection::{BackendId, Peer};
#[cfg(feature = "sqlx-mysql")]
use crate::connection::{MYSQL_SERVER, PROCESSES};
#[cfg(feature = "_sqlx")]
use crate::error::ends_connection;
#[cfg(feature = "sqlx-mysql")]
use crate::error::is_no_such_process;

#[cfg(feature = "_sqlx")]
use sea_orm::sqlx;
#[cfg(feature = "sqlx-mysql")]
use sea_orm::sqlx::MySqlConnection;
#[cfg(feature = "sqlx-postgres")]
use sea_orm::sqlx::PgConnection;
#[cfg(any(feature = "sqlx-postgres", feature = "sqlx-mysql"))]
use sea_orm::sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, Row};

/// A start-up setting that arrives at the server only if nothing stands between.
#[cfg(feature = "sqlx-postgres")]
const MARK: &str = "tower_sea_orm.direct";

/// How long an answer may take. MariaDB's KILL tries for 2 seconds to get at what its target waits on, and needs
/// them if that ends by itself in the same moment.
#[cfg(any(feature = "sqlx-postgres", feature = "sqlx-mysql"))]
const BOUND: Duration = Duration::from_secs(4);

/// What is to be stopped together, and what is known of it.
pub(super) struct Batch<'a> {
    pub(super) errands: Vec<Errand<'a>>,
}

/// One that is to be stopped.
#[cfg_attr(
    not(any(feature = "sqlx-postgres", feature = "sqlx-mysql")),
    allow(dead_code)
)]
pub(super) struct Errand<'a> {
    pub(super) target: &'a BackendId,
    pub(super) fate: Fate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(
    not(any(feature = "sqlx-postgres", feature = "sqlx-mysql")),
    allow(dead_code)
)]
pub(super) enum Fate {
    /// Nothing was sent that would stop it.
    Untouched,
    /// It may be stopped at any time.
    InDoubt,
    /// The server has answered, and will not act on it from here on.
    Answered,
}

impl<'a> Batch<'a> {
    pub(super) fn new(targets: impl Iterator<Item = &'a BackendId>) -> Self {
        let errands = targets
            .map(|target| Errand {
                target,
                fate: Fate::Untouched,
            })
            .collect();
        Self { errands }
    }

    /// Whether nothing was sent that would stop anybody.
    fn is_untouched(&self) -> bool {
        self.errands
            .iter()
            .all(|errand| errand.fate == Fate::Untouched)
    }

    #[cfg(feature = "sqlx-postgres")]
    fn all(&mut self, fate: Fate) {
        self.errands
            .iter_mut()
            .for_each(|errand| errand.fate = fate);
    }
}

/// A connection beside the driver's pool.
#[cfg_attr(
    not(any(feature = "sqlx-postgres", feature = "sqlx-mysql")),
    allow(dead_code)
)]
pub(super) enum SideConnection {
    #[cfg(feature = "sqlx-postgres")]
    Postgres(PgConnection),
    #[cfg(feature = "sqlx-mysql")]
    MySql {
        connection: MySqlConnection,
        /// The table of the server's processes.
        processes: &'static str,
    },
}

/// Why a request was not carried out.
#[derive(Debug)]
pub(super) enum Fault {
    #[cfg(feature = "_sqlx")]
    Driver(sqlx::Error),
    Silent,
}

impl Fault {
    /// Whether the line is of no use any more.
    pub(super) fn is_fatal(&self) -> bool {
        match self {
            #[cfg(feature = "_sqlx")]
            Self::Driver(sqlx::Error::Database(error)) => ends_connection(&**error),
            _ => true,
        }
    }

    /// Whether nothing can come any more of what was sent in `batch`, so that it may be sent again at once.
    pub(super) fn is_over(&self, batch: &Batch<'_>) -> bool {
        match self {
            // The server has said that it ends the line: it reads nothing from it any more.
            #[cfg(feature = "_sqlx")]
            Self::Driver(sqlx::Error::Database(error)) if ends_connection(&**error) => true,
            // The next one would not answer either.
            Self::Silent => false,
            #[allow(unreachable_patterns)]
            _ => batch.is_untouched(),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            #[cfg(feature = "_sqlx")]
            Self::Driver(error) => error.fmt(f),
            Self::Silent => f.write_str("no answer in time"),
        }
    }
}

#[cfg(feature = "_sqlx")]
impl From<sqlx::Error> for Fault {
    fn from(error: sqlx::Error) -> Self {
        Self::Driver(error)
    }
}

impl SideConnection {
    /// Opens a line, and tells what it runs through.
    pub(super) async fn open(source: &DriverPool) -> Result<(Self, Peer), Fault> {
        match source {
            #[cfg(feature = "sqlx-postgres")]
            DriverPool::Postgres(pool) => {
                let (connection, route) = open_postgres(&pool.connect_options()).await?;
                Ok((Self::Postgres(connection), route))
            }
            #[cfg(feature = "sqlx-mysql")]
            DriverPool::MySql(pool) => {
                let mut connection = pool.connect_options().connect().await?;
                // A proxy answers the first by a number of its own, and passes the second on.
                let told = first_number(&mut connection, "SELECT CONNECTION_ID()").await?;
                let own = first_number(&mut connection, "SELECT CONNECTION_ID() + 0").await?;
                let route = if told.is_some() && told == own {
                    Peer::Server
                } else {
                    Peer::Proxy
                };
                let processes = find_processes(&mut connection).await?;
                Ok((
                    Self::MySql {
                        connection,
                        processes,
                    },
                    route,
                ))
            }
            #[allow(unreachable_patterns)]
            _ => Err(Fault::Silent),
        }
    }

    /// Has the server stop what these run; one that has gone or is idle is left alone.
    pub(super) async fn cancel(&mut self, batch: &mut Batch<'_>) -> Result<(), Fault> {
        if batch.errands.is_empty() {
            return Ok(());
        }
        match self {
            #[cfg(feature = "sqlx-postgres")]
            Self::Postgres(connection) => cancel_postgres(connection, batch).await,
            #[cfg(feature = "sqlx-mysql")]
            Self::MySql {
                connection,
                processes,
            } => kill_mysql(connection, processes, batch).await,
            #[allow(unreachable_patterns)]
            _ => Err(Fault::Silent),
        }
    }

    /// Whether the server is at work for this connection; `None` if this is another server, or it does not say.
    pub(super) async fn is_busy(&mut self, target: &BackendId) -> Result<Option<bool>, Fault> {
        match (self, target) {
            #[cfg(feature = "sqlx-postgres")]
            (
                Self::Postgres(connection),
                BackendId::Postgres {
                    pid,
                    started,
                    server,
                },
            ) => {
                // Where activities are not tracked, all may be busy.
                let sql = format!(
                    "SELECT EXISTS (SELECT FROM pg_catalog.pg_stat_activity WHERE pid = {pid} \
                     AND (extract(epoch FROM backend_start) * 1000000)::int8 = {started} \
                     AND coalesce(state, '') NOT LIKE 'idle%') \
                     WHERE (extract(epoch FROM pg_catalog.pg_postmaster_start_time()) * 1000000)::int8 = {server}"
                );
                let rows =
                    answered(sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(connection)).await?;
                Ok(rows.first().map(|row| row.try_get(0)).transpose()?)
            }
            #[cfg(feature = "sqlx-mysql")]
            (
                Self::MySql {
                    connection,
                    processes,
                },
                BackendId::MySql { id, client, server },
            ) => {
                let sql = format!(
                    "SELECT {MYSQL_SERVER}, (SELECT CAST(HOST AS CHAR) FROM {processes} \
                     WHERE ID = {id} AND COMMAND <> 'Sleep')"
                );
                let rows =
                    answered(sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(connection)).await?;
                let Some(row) = rows
                    .first()
                    .filter(|row| row.try_get(0).is_ok_and(|is: String| is == *server))
                else {
                    return Ok(None);
                };
                let busy: Option<String> = row.try_get(1)?;
                Ok(Some(busy.is_some_and(|busy| busy == *client)))
            }
            #[allow(unreachable_patterns)]
            _ => Ok(None),
        }
    }

    /// Whether the server is at work for any connection of this client's to the same database; `None` if it has fewer
    /// than `count` of them, because the others are another server's then, or it does not say.
    pub(super) async fn is_busy_at_all(&mut self, count: u32) -> Result<Option<bool>, Fault> {
        let found = self
            .count_connections()
            .await?
            .filter(|(connections, _)| *connections >= i64::from(count));
        Ok(found.map(|(_, busy)| busy > 0))
    }

    /// How many connections this client has to the same database, besides this one, and how many are at work.
    async fn count_connections(&mut self) -> Result<Option<(i64, i64)>, Fault> {
        match self {
            #[cfg(feature = "sqlx-postgres")]
            Self::Postgres(connection) => Ok(Some(pair(
                &answered(sqlx::raw_sql(POSTGRES_ALL).fetch_all(connection)).await?,
            )?)),
            #[cfg(feature = "sqlx-mysql")]
            Self::MySql {
                connection,
                processes,
            } => {
                // Without the port.
                let address = |host| {
                    format!(
                        "LEFT({host}, LENGTH({host}) - LENGTH(SUBSTRING_INDEX({host}, ':', -1)))"
                    )
                };
                let sql = format!(
                    "SELECT COUNT(*), CAST(COALESCE(SUM(it.COMMAND <> 'Sleep'), 0) AS SIGNED) \
                     FROM {processes} AS own JOIN {processes} AS it \
                     ON it.USER = own.USER AND it.DB <=> own.DB AND {} = {} AND it.ID <> own.ID \
                     WHERE own.ID = CONNECTION_ID()",
                    address("it.HOST"),
                    address("own.HOST"),
                );
                Ok(Some(pair(
                    &answered(sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(connection)).await?,
                )?))
            }
            #[allow(unreachable_patterns)]
            _ => Ok(None),
        }
    }

    pub(super) async fn close(self) {
        match self {
            #[cfg(feature = "sqlx-postgres")]
            Self::Postgres(connection) => drop(connection.close().await),
            #[cfg(feature = "sqlx-mysql")]
            Self::MySql { connection, .. } => drop(connection.close().await),
        }
    }
}

/// How many connections the same account has from the same address to the same database, besides this one, and how
/// many of them are at work. Where activities are not tracked, all may be.
#[cfg(feature = "sqlx-postgres")]
const POSTGRES_ALL: &str = "SELECT count(*), count(*) FILTER (WHERE coalesce(it.state, '') NOT LIKE 'idle%') \
     FROM pg_catalog.pg_stat_activity AS own JOIN pg_catalog.pg_stat_activity AS it \
     ON it.usesysid = own.usesysid AND it.datid = own.datid AND it.client_addr IS NOT DISTINCT FROM own.client_addr AND it.pid <> own.pid \
     WHERE own.pid = pg_catalog.pg_backend_pid()";

#[cfg(feature = "sqlx-postgres")]
async fn open_postgres(
    options: &sqlx::postgres::PgConnectOptions,
) -> Result<(PgConnection, Peer), Fault> {
    let mark = mark();
    let mut connection = match options.clone().options([(MARK, &mark)]).connect().await {
        Ok(connection) => connection,
        // What refuses start-up settings is no server.
        Err(sqlx::Error::Database(_)) => return Ok((options.connect().await?, Peer::Proxy)),
        Err(error) => return Err(error.into()),
    };
    let sql = format!("SELECT pg_catalog.current_setting('{MARK}', true)");
    let rows = sqlx::raw_sql(AssertSqlSafe(sql))
        .fetch_all(&mut connection)
        .await?;
    let arrived = rows
        .first()
        .and_then(|row| row.try_get::<Option<String>, _>(0).ok())
        .flatten();
    let route = if arrived.as_deref() == Some(&*mark) {
        Peer::Server
    } else {
        Peer::Proxy
    };
    Ok((connection, route))
}

/// What nobody else says.
#[cfg(feature = "sqlx-postgres")]
fn mark() -> String {
    use std::hash::{BuildHasher, RandomState};
    format!("{:016x}", RandomState::new().hash_one(std::process::id()))
}

/// Cancels all in one statement.
#[cfg(feature = "sqlx-postgres")]
async fn cancel_postgres(
    connection: &mut PgConnection,
    batch: &mut Batch<'_>,
) -> Result<(), Fault> {
    batch.all(Fate::InDoubt);
    let mut ended = cancel_backends(connection, &batch.errands).await;
    if ended.as_ref().is_err_and(Fault::is_fatal) {
        return ended;
    }
    if ended.is_err() && batch.errands.len() > 1 {
        // One that it may not cancel spares the others.
        ended = Ok(());
        for errand in &mut batch.errands {
            let one = cancel_backends(connection, std::slice::from_ref(errand)).await;
            if one.as_ref().is_err_and(Fault::is_fatal) {
                return one;
            }
            errand.fate = Fate::Answered;
            ended = ended.and(one);
        }
    }
    batch.all(Fate::Answered);
    ended
}

/// The number alone may be somebody else's by now: the start has to be the same.
#[cfg(feature = "sqlx-postgres")]
async fn cancel_backends(
    connection: &mut PgConnection,
    errands: &[Errand<'_>],
) -> Result<(), Fault> {
    let wanted: Vec<String> = errands
        .iter()
        .filter_map(|errand| match errand.target {
            BackendId::Postgres { pid, started, .. } => Some(format!("({pid}, {started}::int8)")),
            BackendId::MySql { .. } => None,
        })
        .collect();
    let sql = format!(
        "SELECT pg_catalog.pg_cancel_backend(a.pid) FROM pg_catalog.pg_stat_activity AS a \
         JOIN (VALUES {}) AS v (pid, started) \
         ON a.pid = v.pid AND (extract(epoch FROM a.backend_start) * 1000000)::int8 = v.started \
         WHERE coalesce(a.state, '') NOT LIKE 'idle%'",
        wanted.join(", ")
    );
    answered(connection.execute(AssertSqlSafe(sql))).await?;
    Ok(())
}

/// Kills the queries of those that are still the same and at it, one by one: one that takes its time
/// leaves nothing in doubt but itself.
#[cfg(feature = "sqlx-mysql")]
async fn kill_mysql(
    connection: &mut MySqlConnection,
    processes: &'static str,
    batch: &mut Batch<'_>,
) -> Result<(), Fault> {
    let ids = batch
        .errands
        .iter()
        .filter_map(|errand| match errand.target {
            BackendId::MySql { id, .. } => Some(id.to_string()),
            BackendId::Postgres { .. } => None,
        });
    let sql = format!(
        "SELECT CAST(ID AS UNSIGNED), CAST(HOST AS CHAR) FROM {processes} \
         WHERE ID IN ({}) AND COMMAND <> 'Sleep'",
        ids.collect::<Vec<_>>().join(", ")
    );
    let mut busy: Vec<(u64, String)> = Vec::new();
    for row in answered(sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(&mut *connection)).await? {
        busy.push((row.try_get(0)?, row.try_get(1)?));
    }
    let mut ended = Ok(());
    for errand in &mut batch.errands {
        if let BackendId::MySql { id, client, .. } = errand.target
            && busy
                .iter()
                .any(|(number, host)| number == id && host == client)
        {
            errand.fate = Fate::InDoubt;
            match answered(connection.execute(AssertSqlSafe(format!("KILL QUERY {id}")))).await {
                Ok(_) => {}
                // ER_NO_SUCH_THREAD: gone by itself.
                Err(Fault::Driver(sqlx::Error::Database(error))) if is_no_such_process(&*error) => {
                }
                Err(fault) if fault.is_fatal() => return Err(fault),
                Err(fault) => ended = ended.and(Err(fault)),
            }
        }
        errand.fate = Fate::Answered;
    }
    ended
}

/// The two numbers of the only row.
#[cfg(any(feature = "sqlx-postgres", feature = "sqlx-mysql"))]
fn pair<'r, R: Row>(rows: &'r [R]) -> Result<(i64, i64), sqlx::Error>
where
    usize: sqlx::ColumnIndex<R>,
    i64: sqlx::Decode<'r, R::Database> + sqlx::Type<R::Database>,
{
    let row = rows.first().ok_or(sqlx::Error::RowNotFound)?;
    Ok((row.try_get(0)?, row.try_get(1)?))
}

/// The server's answer, if it comes in time.
#[cfg(any(feature = "sqlx-postgres", feature = "sqlx-mysql"))]
async fn answered<T>(answer: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, Fault> {
    timeout(BOUND, answer)
        .await
        .map_err(|_| Fault::Silent)?
        .map_err(Fault::Driver)
}

/// The table of processes that this server has.
#[cfg(feature = "sqlx-mysql")]
async fn find_processes(connection: &mut MySqlConnection) -> Result<&'static str, Fault> {
    let [newer, older] = PROCESSES;
    let sql = format!("SELECT ID FROM {newer} WHERE ID = CONNECTION_ID()");
    match sqlx::raw_sql(AssertSqlSafe(sql))
        .fetch_all(connection)
        .await
    {
        Ok(rows) => Ok(if rows.is_empty() { older } else { newer }),
        Err(sqlx::Error::Database(_)) => Ok(older),
        Err(error) => Err(error.into()),
    }
}

#[cfg(feature = "sqlx-mysql")]
async fn first_number(
    connection: &mut MySqlConnection,
    sql: &'static str,
) -> Result<Option<u64>, Fault> {
    let rows = sqlx::raw_sql(sql).fetch_all(connection).await?;
    let number = rows.first().and_then(|row| {
        row.try_get::<u64, _>(0).ok().or_else(|| {
            row.try_get::<i64, _>(0)
                .ok()
                .and_then(|id| id.try_into().ok())
        })
    });
    Ok(number)
}
