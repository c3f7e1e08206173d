//! The server fails in every way it can, under load.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sea_orm::{
    ConnectionTrait, Database, DatabaseConnection, Statement,
    sqlx::{Connection, MySqlConnection, PgConnection},
};

use super::{
    is_long,
    load::Load,
    report::{self, Group, Row},
    site::{Plan, Site, ours},
    support::{
        database::TestDb,
        servers::{Engine, OwnServer},
        wait::{BOUND, eventually},
    },
    work::Kind,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outage {
    FastRestart,
    ImmediateRestart,
    /// All of its processes at once.
    Killed,
    /// One of its processes; PostgreSQL ends all sessions and recovers.
    BackendKilled,
    /// By an administrator, again and again.
    SessionsEnded,
    Frozen,
    OutOfConnections,
    /// And the sessions ended: nobody gets in.
    PasswordChanged,
    /// As far as writes tell.
    DiskFull,
    StatementTimeouts,
}

const ALL: [Outage; 10] = [
    Outage::FastRestart,
    Outage::ImmediateRestart,
    Outage::Killed,
    Outage::BackendKilled,
    Outage::SessionsEnded,
    Outage::Frozen,
    Outage::OutOfConnections,
    Outage::PasswordChanged,
    Outage::DiskFull,
    Outage::StatementTimeouts,
];

/// So few that they can be used up.
const CONNECTIONS: &str = "max_connections=24";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_outlives_the_failures_of_postgres() {
    endure_all(OwnServer::postgres_with(&[&format!("-c{CONNECTIONS}")])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_outlives_the_failures_of_mariadb() {
    endure_all(OwnServer::mysql_with(&[&format!(
        "--{}",
        CONNECTIONS.replace('_', "-")
    )]))
    .await;
}

async fn endure_all(mut server: OwnServer) {
    let admin = Database::connect(server.url())
        .await
        .expect("the server answers");
    for sql in make_account(&server) {
        run(&admin, sql).await;
    }
    admin.close().await.expect("the pool closes");
    let mut broken = Vec::new();
    for outage in ALL {
        if outage == Outage::BackendKilled && server.engine() == Engine::MySql {
            continue;
        }
        let row = endure(&mut server, outage).await;
        broken.extend(row.finish());
    }
    report::conclude(&broken);
}

async fn endure(server: &mut OwnServer, outage: Outage) -> Row {
    let mut row = Row::new(
        Group::Server,
        format!("{:?}, {}", server.engine(), outage.name()),
    );
    let plan = Plan {
        size: 4,
        acquire_timeout: Duration::from_secs(3),
        ..Plan::default()
    };
    let site = Arc::new(Site::over(TestDb::on(server).await, plan, as_app, ours).await);
    let load = Load::start(&site, 8, None);
    let before = load.goodput(WINDOW).await;
    outage.happen(server, &site).await;
    row.faults += 1;
    match site.whole().await {
        Some(after) => row.recovered(after),
        None => row.leaked += 1,
    }
    let after = load.goodput(WINDOW).await;
    row.notes.push(format!(
        "{before:.0} good answers per second before, {after:.0} after"
    ));
    row.hung += load.stop().await;
    site.judge(&mut row).await;
    row
}

/// How long goodput is measured.
const WINDOW: Duration = Duration::from_millis(300);

/// How long an outage lasts that could last for any time.
fn length() -> Duration {
    if is_long() {
        Duration::from_secs(10)
    } else {
        Duration::from_millis(500)
    }
}

impl Outage {
    fn name(self) -> &'static str {
        match self {
            Self::FastRestart => "restarted, fast",
            Self::ImmediateRestart => "restarted, at once",
            Self::Killed => "all processes killed",
            Self::BackendKilled => "one process killed",
            Self::SessionsEnded => "sessions ended, ten times",
            Self::Frozen => "frozen, then continued",
            Self::OutOfConnections => "out of connections",
            Self::PasswordChanged => "password changed, sessions ended",
            Self::DiskFull => "writes fail: disk full",
            Self::StatementTimeouts => "statements time out",
        }
    }

    /// Returns when it is over.
    async fn happen(self, server: &mut OwnServer, site: &Site) {
        match self {
            Self::FastRestart => {
                let signal = if server.engine() == Engine::Postgres {
                    Signal::SIGINT
                } else {
                    Signal::SIGTERM
                };
                server.end_by(signal, false);
                server.start();
            }
            Self::ImmediateRestart => {
                server.stop();
                server.start();
            }
            Self::Killed => {
                server.end_by(Signal::SIGKILL, true);
                server.start();
            }
            Self::BackendKilled => {
                eventually("the service has a session", async || {
                    !sessions(site).await.is_empty()
                })
                .await;
                let victim = sessions(site).await.pop().expect("a session");
                kill(Pid::from_raw(victim as i32), Signal::SIGKILL).expect("a backend");
            }
            Self::SessionsEnded => {
                for _ in 0..10 {
                    end_sessions(site).await;
                    tokio::time::sleep(length() / 20).await;
                }
            }
            Self::Frozen => {
                server.freeze();
                // Longer than the site's `release_timeout`.
                tokio::time::sleep(length().max(Duration::from_secs(2))).await;
                server.thaw();
            }
            Self::OutOfConnections => use_up_connections(server, site).await,
            Self::PasswordChanged => {
                set_password(site, "another").await;
                end_sessions(site).await;
                tokio::time::sleep(length()).await;
                set_password(site, "one").await;
            }
            Self::DiskFull => {
                for sql in full_disk(server) {
                    run(&site.view, sql.to_owned()).await;
                }
                tokio::time::sleep(length()).await;
                run(
                    &site.view,
                    "DROP TRIGGER full_disk ON ledger".replace(" ON ledger", on_table(server)),
                )
                .await;
            }
            Self::StatementTimeouts => {
                for _ in 0..10 {
                    join_all((0..4).map(|_| site.ask(Kind::Timeout, 200))).await;
                }
            }
        }
    }
}

/// Runs SQL on a connection that may have to be made anew first.
async fn run(db: &DatabaseConnection, sql: String) {
    eventually(&sql, async || {
        let done = db.execute_unprepared(&sql).await;
        if let Err(error) = &done {
            eprintln!("{sql}: {error}");
        }
        done.is_ok()
    })
    .await;
}

/// The account of the service, which has a password that is asked for.
fn make_account(server: &OwnServer) -> Vec<String> {
    match server.engine() {
        Engine::Postgres => vec![
            // A fast one: what is measured is not the strength of a hash.
            "SET password_encryption = 'md5'; \
             CREATE ROLE app LOGIN PASSWORD 'one' IN ROLE pg_read_all_data, pg_write_all_data"
                .to_owned(),
            "CREATE ROLE hog LOGIN".to_owned(),
            "DO $$ BEGIN EXECUTE format('COPY (SELECT unnest(ARRAY[%L, %L])) TO %L', \
             'host all postgres,hog 127.0.0.1/32 trust', 'host all all 127.0.0.1/32 md5', \
             current_setting('hba_file')); END $$"
                .to_owned(),
            "SELECT pg_reload_conf()".to_owned(),
        ],
        Engine::MySql => vec![
            "CREATE USER app@127.0.0.1 IDENTIFIED BY 'one'".to_owned(),
            "GRANT SELECT, INSERT, UPDATE, DELETE ON *.* TO app@127.0.0.1".to_owned(),
            "CREATE USER hog@127.0.0.1".to_owned(),
            "GRANT SELECT ON *.* TO hog@127.0.0.1".to_owned(),
        ],
    }
}

fn as_app(url: String) -> String {
    url.replace("postgres://postgres@", "postgres://app:one@")
        .replace("mysql://root@", "mysql://app:one@")
}

async fn set_password(site: &Site, password: &str) {
    let sql = match site.view.get_database_backend() {
        sea_orm::DbBackend::Postgres => {
            format!("SET password_encryption = 'md5'; ALTER ROLE app PASSWORD '{password}'")
        }
        _ => format!("ALTER USER app@127.0.0.1 IDENTIFIED BY '{password}'"),
    };
    run(&site.view, sql).await;
}

/// The server's names for the service's sessions.
async fn sessions(site: &Site) -> Vec<i64> {
    let backend = site.view.get_database_backend();
    let sql = match backend {
        sea_orm::DbBackend::Postgres => {
            "SELECT pid::bigint FROM pg_stat_activity WHERE usename = 'app'"
        }
        _ => "SELECT CAST(id AS SIGNED) FROM information_schema.processlist WHERE user = 'app'",
    };
    let rows = site
        .view
        .query_all_raw(Statement::from_string(backend, sql))
        .await
        .expect("the sessions");
    rows.iter()
        .map(|row| row.try_get_by_index(0).expect("a number"))
        .collect()
}

async fn end_sessions(site: &Site) {
    for session in sessions(site).await {
        let sql = match site.view.get_database_backend() {
            sea_orm::DbBackend::Postgres => format!("SELECT pg_terminate_backend({session})"),
            _ => format!("KILL CONNECTION {session}"),
        };
        // It may have gone by itself.
        let _ = site.view.execute_unprepared(&sql).await;
    }
}

/// Takes all connections there are, and ends those of the service.
async fn use_up_connections(server: &OwnServer, site: &Site) {
    let url = site
        .test
        .url()
        .replace("//postgres@", "//hog@")
        .replace("//root@", "//hog@");
    let (mut postgres, mut mysql) = (Vec::new(), Vec::new());
    let mut ended = false;
    let mut until = Instant::now() + 2 * BOUND;
    while Instant::now() < until {
        let taken = match server.engine() {
            Engine::Postgres => PgConnection::connect(&url)
                .await
                .map(|taken| postgres.push(taken))
                .is_ok(),
            Engine::MySql => MySqlConnection::connect(&url)
                .await
                .map(|taken| mysql.push(taken))
                .is_ok(),
        };
        if !taken && !std::mem::replace(&mut ended, true) {
            site.proxy.end_all(false);
            until = Instant::now() + length();
        }
        tokio::time::sleep(Duration::from_millis(if taken { 0 } else { 5 })).await;
    }
    assert!(ended, "the connections were used up");
}

/// Makes writes fail as they do when the disk is full.
fn full_disk(server: &OwnServer) -> Vec<&'static str> {
    match server.engine() {
        Engine::Postgres => vec![
            "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.half = 2 THEN \
             RAISE EXCEPTION 'could not extend file' USING ERRCODE = '53100'; END IF; RETURN NEW; END $$",
            "CREATE TRIGGER full_disk BEFORE INSERT ON ledger FOR EACH ROW EXECUTE FUNCTION fail()",
        ],
        Engine::MySql => vec![
            "CREATE TRIGGER full_disk BEFORE INSERT ON ledger FOR EACH ROW BEGIN IF NEW.half = 2 THEN \
             SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = 1021, MESSAGE_TEXT = 'disk full'; END IF; END",
        ],
    }
}

fn on_table(server: &OwnServer) -> &'static str {
    if server.engine() == Engine::Postgres {
        " ON ledger"
    } else {
        ""
    }
}
