//! G10, G15: the example `items` as a process of its own: what it says of a wrong URL or port, its log, its end.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
};

use axum::body::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sea_orm::{ConnectionTrait, DatabaseConnection, TransactionTrait};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    process::{Child, Command},
    time::timeout,
};

use crate::support::{
    database::{Kind, TestDb, unique_name},
    pool::assert_nothing_left,
    servers::OwnServer,
    site::{is_mariadb, value},
    statements::running,
    wait::{BOUND, eventually},
};

/// The example as Cargo has built it, beside this program.
fn program() -> PathBuf {
    let tests = env::current_exe().unwrap();
    let program = tests.ancestors().nth(2).unwrap().join("examples/items");
    assert!(
        program.exists(),
        "{} is missing; run: cargo build --example items",
        program.display()
    );
    program
}

fn command(vars: &[(&str, &str)]) -> Command {
    let mut command = Command::new(program());
    // Neither the settings nor the log level of whoever runs the tests.
    command.env_clear().envs(vars.iter().copied());
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Returns what the example says before it gives up: one ERROR, in the last line.
async fn refusal(vars: &[(&str, &str)]) -> String {
    let output = timeout(BOUND, command(vars).output())
        .await
        .expect("it gives up")
        .unwrap();
    let log = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{vars:?}: {log}");
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "", "{vars:?}");
    assert!(!log.contains('\x1b'), "no colours in a pipe: {log}");
    assert!(
        !log.contains("hunter2"),
        "a password is told for {vars:?}: {log}"
    );
    let (before, error) = log
        .trim_end()
        .rsplit_once(" ERROR items: ")
        .expect("an ERROR");
    assert!(
        !before.contains("ERROR") && !before.contains("WARN"),
        "{log}"
    );
    assert!(!error.contains('\n'), "one line: {log}");
    error.to_owned()
}

#[track_caller]
fn assert_says(url: &str, error: &str, what: &str) {
    assert!(error.contains(what), "{url}: not \"{what}\" but: {error}");
}

/// Bound, so that it is nobody else's, and it does not listen.
fn nobody() -> TcpSocket {
    let nobody = TcpSocket::new_v4().unwrap();
    nobody.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    nobody
}

#[tokio::test]
async fn a_url_that_leads_nowhere_is_named_at_once() {
    let nobody = nobody();
    let silent = nobody.local_addr().unwrap();
    for scheme in ["postgres", "mysql"] {
        for (address, what) in [
            (
                "nowhere.invalid".to_owned(),
                "failed to lookup address information",
            ),
            (silent.to_string(), "Connection refused"),
        ] {
            let url = format!("{scheme}://app:hunter2@{address}/shop");
            let error = refusal(&[("DATABASE_URL", &url)]).await;
            assert_says(
                &url,
                &error,
                &format!("cannot connect to {scheme}://app:***@{address}/shop: "),
            );
            assert_says(&url, &error, what);
        }
    }
    let dir = tempfile::tempdir().unwrap();
    for path in ["nowhere/items.db", "items.db", ""] {
        let url = format!("sqlite://{}", dir.path().join(path).display());
        let error = refusal(&[("DATABASE_URL", &url)]).await;
        assert_says(&url, &error, &format!("cannot connect to {url}: "));
        assert_says(&url, &error, "unable to open database file");
    }
}

#[tokio::test]
async fn a_url_that_is_none_is_refused_with_what_to_write() {
    for (url, what) in [
        (
            "oracle://app:hunter2@localhost/shop",
            "write `postgres://…`, `mysql://…` or `sqlite://…`",
        ),
        ("localhost:5432", "write `postgres://…`"),
        (
            "postgresql+asyncpg://app:hunter2@localhost/shop",
            "names a Python driver",
        ),
        (
            "postgres://app:hunter2%ff@localhost/shop",
            "its password is not UTF-8 once the `%` escapes are decoded",
        ),
        (
            "mysql://app:hunter2%C3@localhost/shop",
            "its password is not UTF-8 once the `%` escapes are decoded",
        ),
        ("", "not set: write `postgres://user@host/database`"),
    ] {
        let error = refusal(&[("DATABASE_URL", url)]).await;
        assert!(error.starts_with("`DATABASE_URL`: "), "{error}");
        assert_says(url, &error, what);
    }
}

#[tokio::test]
async fn a_refusal_by_postgres_is_told_in_its_words() {
    let server = OwnServer::postgres();
    let test = TestDb::on(&server).await;
    let admin = test.connect(1).await;
    for sql in [
        "CREATE ROLE app LOGIN PASSWORD 'right'",
        "CREATE ROLE plain LOGIN",
    ] {
        admin.execute_unprepared(sql).await.unwrap();
    }
    let rules: String = value(&admin, "SHOW hba_file").await;
    fs::write(
        rules,
        "host all app all scram-sha-256\nhost all all all trust\n",
    )
    .unwrap();
    admin
        .execute_unprepared("SELECT pg_reload_conf()")
        .await
        .unwrap();
    let at = format!("127.0.0.1:{}", server.port());
    let wrong = format!("postgres://app:hunter2@{at}/postgres");
    eventually("the server asks for passwords", async || {
        let text = r#"password authentication failed for user "app""#;
        refusal(&[("DATABASE_URL", &wrong)]).await.contains(text)
    })
    .await;
    for (url, what) in [
        (
            format!("postgres://plain@{at}/nowhere"),
            r#"database "nowhere" does not exist"#,
        ),
        (
            format!("postgres://nobody@{at}/postgres"),
            r#"role "nobody" does not exist"#,
        ),
        // It may connect, but not make its table.
        (
            format!("postgres://plain@{at}/postgres"),
            "permission denied for schema public",
        ),
    ] {
        let error = refusal(&[("DATABASE_URL", &url)]).await;
        assert_says(&url, &error, what);
    }
}

#[tokio::test]
async fn a_refusal_by_mariadb_is_told_in_its_words() {
    let test = TestDb::new(Kind::MySql).await;
    let admin = test.connect(1).await;
    let user = unique_name();
    admin
        .execute_unprepared(&format!("CREATE USER {user} IDENTIFIED BY 'right'"))
        .await
        .unwrap();
    let (server, database) = test.url().rsplit_once('/').unwrap();
    let (account, address) = server.split_once('@').unwrap();
    let wrong = format!("mysql://{user}:hunter2@{address}/{database}");
    let error = refusal(&[("DATABASE_URL", &wrong)]).await;
    // Without TLS, sqlx sends MySQL no password.
    let told = match is_mariadb(&admin).await {
        true => "Access denied for user",
        false => "mysql-rsa",
    };
    assert_says(&wrong, &error, told);
    let nowhere = format!("{account}@{address}/nowhere");
    let error = refusal(&[("DATABASE_URL", &nowhere)]).await;
    assert_says(&nowhere, &error, "Unknown database 'nowhere'");
}

#[tokio::test]
async fn a_port_that_cannot_be_used_is_refused_with_what_to_do() {
    for port in ["abc", "65536", "-1", "80 80"] {
        let error = refusal(&[("PORT", port)]).await;
        assert_eq!(
            error,
            format!("PORT is \"{port}\": write a number from 0 to 65535")
        );
    }
    let busy = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = busy.local_addr().unwrap().port().to_string();
    let error = refusal(&[("PORT", &port)]).await;
    let what = format!("cannot listen on 127.0.0.1:{port}: Address already in use");
    assert!(
        error.starts_with(&what) && error.ends_with("; set PORT to a free port"),
        "{error}"
    );
}

/// The example, serving; its log goes into a file.
struct Items {
    child: Child,
    log: PathBuf,
    port: u16,
}

impl Items {
    async fn start(url: &str, dir: &Path) -> Self {
        let log = dir.join("log");
        let vars = [("DATABASE_URL", url), ("PORT", "0")];
        let child = command(&vars)
            .stdout(fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut items = Self {
            child,
            log,
            port: 0,
        };
        items.says("listening on http://127.0.0.1:").await;
        let (_, port) = items
            .log()
            .split_once("listening on http://127.0.0.1:")
            .map(|(before, port)| (before.to_owned(), port.trim().to_owned()))
            .unwrap();
        items.port = port.parse().unwrap();
        items
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Waits until the log has a whole line with this text.
    async fn says(&self, text: &str) {
        eventually(text, async || {
            self.log()
                .split_inclusive('\n')
                .any(|line| line.contains(text) && line.ends_with('\n'))
        })
        .await;
    }

    fn send(&self, signal: Signal) {
        let pid = self.child.id().expect("it runs");
        kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
    }

    async fn ended(&mut self) -> ExitStatus {
        timeout(BOUND, self.child.wait())
            .await
            .expect("it ends")
            .unwrap()
    }
}

/// The response to one request on a separate connection.
async fn ask(port: u16, method: &str, path: &str, body: &'static str) -> (StatusCode, HeaderMap) {
    let stream = TcpStream::connect(("127.0.0.1", port)).await;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream.expect("it answers")))
        .await
        .unwrap();
    let connection = tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from_static(body.as_bytes())))
        .unwrap();
    let response = timeout(BOUND, sender.send_request(request)).await;
    let (head, body) = response.expect("an answer").unwrap().into_parts();
    body.collect().await.unwrap();
    connection.abort();
    (head.status, head.headers)
}

#[tokio::test]
async fn the_log_in_a_file_has_a_line_for_each_session_and_no_colours() {
    for kind in Kind::ALL {
        let test = TestDb::new(kind).await;
        let dir = tempfile::tempdir().unwrap();
        let mut items = Items::start(test.url(), dir.path()).await;
        let (created, _) = ask(items.port, "POST", "/items", r#"{"name":"lamp"}"#).await;
        assert_eq!(created, StatusCode::CREATED, "{kind:?}");
        let (renamed, _) = ask(items.port, "PUT", "/items/1", r#"{"name":"desk lamp"}"#).await;
        assert_eq!(renamed, StatusCode::OK, "{kind:?}");
        items.says(r#"outcome="committed""#).await;
        items.says("/items/1").await;
        items.send(Signal::SIGTERM);
        assert!(items.ended().await.success(), "{}", items.log());
        let log = items.log();
        assert!(!log.contains('\x1b'), "{log}");
        assert!(!log.contains("desk lamp"), "no values: {log}");
    }
}

/// How many connections there are to the observer's database besides its own.
async fn others(observer: &DatabaseConnection, kind: Kind) -> i64 {
    let sql = match kind {
        Kind::Postgres => {
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
             AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
        }
        _ => {
            "SELECT count(*) FROM information_schema.processlist WHERE db = database() \
             AND id <> connection_id()"
        }
    };
    value(observer, sql).await
}

/// A request waits for a row's lock while the example is told to stop.
#[tokio::test]
async fn told_to_stop_the_example_ends_requests_and_closes_its_pool() {
    for kind in [Kind::Postgres, Kind::MySql] {
        for signal in [Signal::SIGINT, Signal::SIGTERM] {
            stop_amid_a_request(kind, signal).await;
        }
    }
}

async fn stop_amid_a_request(kind: Kind, signal: Signal) {
    let test = TestDb::new(kind).await;
    let observer = test.connect(2).await;
    let dir = tempfile::tempdir().unwrap();
    let mut items = Items::start(test.url(), dir.path()).await;
    let port = items.port;
    let (created, _) = ask(port, "POST", "/items", r#"{"name":"lamp"}"#).await;
    assert_eq!(created, StatusCode::CREATED);

    let lock = observer.begin().await.unwrap();
    lock.execute_unprepared("UPDATE item SET hits = 1")
        .await
        .unwrap();
    let renaming = ask(port, "PUT", "/items/1", r#"{"name":"desk lamp"}"#);
    let renaming = tokio::spawn(renaming);
    eventually("the request waits for the lock", async || {
        running(&observer, "UPDATE%item").await == 1
    })
    .await;
    items.send(signal);
    items.says("stopping: new requests are refused").await;
    eventually("new requests are refused", async || {
        let (status, headers) = ask(port, "GET", "/items", "").await;
        status == StatusCode::SERVICE_UNAVAILABLE && headers.contains_key("retry-after")
    })
    .await;
    lock.rollback().await.unwrap();
    let (renamed, _) = timeout(BOUND, renaming).await.unwrap().unwrap();
    assert_eq!(renamed, StatusCode::OK, "{kind:?} {signal}");
    assert!(items.ended().await.success(), "{}", items.log());
    items
        .says("the database connections are closed; 0 requests were cut off")
        .await;

    // Its connections have said goodbye: the server counts those that have not.
    observer.close().await.unwrap();
    let observer = test.connect(1).await;
    eventually("the server has no connection of it", async || {
        others(&observer, kind).await == 0
    })
    .await;
    if kind == Kind::Postgres {
        let of_this = "FROM pg_stat_database WHERE datname = current_database()";
        let lost: i64 = value(&observer, &format!("SELECT sessions_abandoned {of_this}")).await;
        let all: i64 = value(&observer, &format!("SELECT sessions {of_this}")).await;
        assert!(lost == 0 && all > 0, "{lost} of {all} connections were cut");
    }
    observer.close().await.unwrap();
    assert_nothing_left(&test).await;
}
