//! G10, G15: `PoolConfig::connect` on real servers: servers that start late, wrong passwords, unresolvable names.

use std::{
    error::Error as _,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use sea_orm::{ConnectionTrait, DbErr, Statement};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket},
    task::spawn_blocking,
    time::timeout,
};
use tower_sea_orm::Error;

use crate::{
    config::from_settings::config,
    log::FullLog,
    support::{
        database::{Kind, TestDb, unique_name},
        pool::assert_whole,
        servers::{OwnServer, mysql_url},
        site::is_mariadb,
        wait::{BOUND, eventually},
    },
};

/// The time after which connecting fails if it waits where it must not.
const TOO_LONG: &str = "600s";

/// Its text, its `Debug`, and those of all its sources.
fn all_of(error: &DbErr) -> String {
    let mut text = format!("{error} {error:?} {error:#?}");
    let mut source = error.source();
    while let Some(error) = source {
        text += &format!(" {error} {error:?}");
        source = error.source();
    }
    text
}

#[tokio::test]
async fn connecting_waits_for_a_server_that_is_being_started() {
    for mut server in [OwnServer::postgres(), OwnServer::mysql()] {
        let test = TestDb::on(&server).await;
        server.stop();
        let (log, guard) = FullLog::start();
        let waiting = config(
            test.url(),
            &[("STARTUP_TIMEOUT", TOO_LONG), ("MIN_CONNECTIONS", "2")],
        );
        let waiting = tokio::spawn(async move { waiting.connect().await });
        eventually("the log says that it is waiting", async || {
            log.count("is not available yet; retrying") == 1
        })
        .await;
        let server = spawn_blocking(move || {
            server.start();
            server
        });
        let server = server.await.unwrap();
        let pool = timeout(BOUND, waiting).await.unwrap().unwrap().unwrap();
        assert_eq!(log.count("the database is available"), 1, "{}", log.text());
        assert_eq!(log.count("is not available yet; retrying"), 1);
        drop(guard);
        pool.session().await.unwrap().ping().await.unwrap();
        assert_whole(&test, pool.database(), 3).await;
        drop(server);
    }
}

#[tokio::test]
async fn an_absent_server_is_an_error_at_once_or_after_the_startup_timeout() {
    // Bound, so that it is nobody else's, and it does not listen.
    let nobody = TcpSocket::new_v4().unwrap();
    nobody.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let port = nobody.local_addr().unwrap().port();
    for scheme in ["postgres", "mysql"] {
        let url = format!("{scheme}://app:hunter2@127.0.0.1:{port}/shop");
        // Without one the driver's pool would try for its `acquire_timeout`, and then say that only.
        let error = timeout(BOUND, config(&url, &[("POOL_TIMEOUT", "1d")]).connect())
            .await
            .unwrap()
            .unwrap_err();
        assert!(error.to_string().contains("refused"), "{error}");
        assert!(!all_of(&error).contains("hunter2"));

        let started = Instant::now();
        let config = config(&url, &[("STARTUP_TIMEOUT", "1.5")]);
        let error = timeout(BOUND, config.connect()).await.unwrap().unwrap_err();
        assert!(
            started.elapsed() >= Duration::from_millis(1500),
            "{:?}",
            started.elapsed()
        );
        assert!(error.to_string().contains("refused"), "{error}");
    }
}

#[tokio::test]
async fn a_name_that_cannot_be_resolved_is_tried_again() {
    let (log, _guard) = FullLog::start();
    let config = config(
        "postgres://app@nowhere.invalid/shop",
        &[("STARTUP_TIMEOUT", "3")],
    );
    timeout(BOUND, config.connect()).await.unwrap().unwrap_err();
    assert_eq!(
        log.count("is not available yet; retrying"),
        1,
        "{}",
        log.text()
    );
}

#[tokio::test]
async fn a_lazy_pool_connects_at_its_first_session() {
    let pool = config(
        "postgres://app@nowhere.invalid/shop",
        &[("CONNECT_LAZY", "true"), ("POOL_TIMEOUT", "0.2")],
    );
    let pool = timeout(BOUND, pool.connect()).await.unwrap().unwrap();
    let error = timeout(BOUND, pool.session()).await.unwrap().unwrap_err();
    assert!(error.is_acquire(), "{error:?}");
}

/// Says these PostgreSQL error codes, one a connection; at an empty one it hangs up.
async fn refusing(codes: &'static [&'static str]) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!(
        "postgres://app:hunter2@{}/shop?sslmode=disable",
        listener.local_addr().unwrap()
    );
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    tokio::spawn(async move {
        loop {
            let (mut connection, _) = listener.accept().await.unwrap();
            let call = counted.fetch_add(1, Ordering::SeqCst);
            let code = codes[call.min(codes.len() - 1)];
            let length = connection.read_u32().await.unwrap();
            let mut startup = vec![0; length as usize - 4];
            connection.read_exact(&mut startup).await.unwrap();
            if !code.is_empty() {
                let fields = format!("SFATAL\0VFATAL\0C{code}\0Mrefused by the test\0\0");
                connection.write_u8(b'E').await.unwrap();
                connection
                    .write_u32(u32::try_from(fields.len()).unwrap() + 4)
                    .await
                    .unwrap();
                connection.write_all(fields.as_bytes()).await.unwrap();
            }
            connection.shutdown().await.ok();
        }
    });
    (url, calls)
}

#[tokio::test]
async fn connecting_is_retried_only_while_the_server_is_not_available_yet() {
    for (codes, attempts, last) in [
        (&["57P03", "57P03", "28P01"] as &[_], 3, "28P01"),
        (&["", "", "28P01"], 3, "28P01"),
        (&["28P01"], 1, "28P01"),
        (&["28000"], 1, "28000"),
        (&["3D000"], 1, "3D000"),
        (&["57P01"], 1, "57P01"),
        (&["XX000"], 1, "XX000"),
    ] {
        let (url, calls) = refusing(codes).await;
        let config = config(&url, &[("STARTUP_TIMEOUT", TOO_LONG)]);
        let error = timeout(BOUND, config.connect()).await.unwrap().unwrap_err();
        assert_eq!(calls.load(Ordering::SeqCst), attempts, "{codes:?}: {error}");
        assert!(format!("{error:?}").contains(last), "{error:?}");
        assert!(!all_of(&error).contains("hunter2"));
    }
    let (url, calls) = refusing(&["57P03"]).await;
    timeout(BOUND, config(&url, &[]).connect())
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(
        calls.load(Ordering::SeqCst),
        1,
        "no startup_timeout, no second attempt"
    );
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_given_up_in_time() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!(
        "postgres://app:hunter2@{}/shop",
        listener.local_addr().unwrap()
    );
    for settings in [
        ("POOL_TIMEOUT", "0.2"),
        ("CONNECT_TIMEOUT", "0.2"),
        ("STARTUP_TIMEOUT", "0.2"),
    ] {
        for scheme in ["postgres", "mysql"] {
            let url = url.replace("postgres", scheme);
            let config = config(&url, &[settings]);
            let error = timeout(BOUND, config.connect()).await.unwrap().unwrap_err();
            assert_silent(&error, &url);
        }
    }
}

/// Whether the error names the server of `url` as one that has not answered, and no password.
fn assert_silent(error: &DbErr, url: &str) {
    let known = Error::of(error);
    assert!(known.is_some_and(|known| known.is_unreachable()), "{error}");
    let (_, address) = url.split_once('@').unwrap();
    let address = address.split('/').next().unwrap();
    let text = error.to_string();
    assert!(
        text.contains(&format!("no answer from {address}")),
        "{text}"
    );
    assert!(!all_of(error).contains("hunter2"), "{text}");
}

/// As long as a session of the pool would wait, by a clock that stands still while there is something to do.
#[tokio::test(start_paused = true)]
async fn g10_a_server_that_does_not_answer_is_given_up_after_five_seconds() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    for scheme in ["postgres", "mysql"] {
        let url = format!("{scheme}://app:hunter2@{address}/shop");
        let started = tokio::time::Instant::now();
        let error = config(&url, &[]).connect().await.unwrap_err();
        assert_eq!(started.elapsed().as_secs(), 5, "{scheme}");
        assert_silent(&error, &url);
    }
}

/// Leads the first connection to the server of `url`, and leaves all others without an answer. From the second one on,
/// the clock stands still while there is something to do.
async fn answering_once(url: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (head, rest) = url.split_once("127.0.0.1:").unwrap();
    let (port, database) = rest.split_once('/').unwrap();
    let url = format!("{head}{}/{database}", listener.local_addr().unwrap());
    let server = format!("127.0.0.1:{port}");
    tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        let mut server = tokio::net::TcpStream::connect(server).await.unwrap();
        let first = tokio::spawn(async move {
            let copied = tokio::io::copy_bidirectional(&mut client, &mut server);
            copied.await.ok();
        });
        let mut silent = vec![listener.accept().await.unwrap()];
        tokio::time::pause();
        first.await.unwrap();
        loop {
            silent.push(listener.accept().await.unwrap());
        }
    });
    url
}

#[tokio::test]
async fn g10_a_server_that_falls_silent_while_connecting_is_given_up_as_well() {
    for kind in [Kind::Postgres, Kind::MySql] {
        let test = TestDb::new(kind).await;
        for (settings, seconds) in [
            (&[] as &[_], 5),
            (&[("POOL_TIMEOUT", "7")], 7),
            // Each has its time.
            (&[("MIN_CONNECTIONS", "2")], 10),
            (&[("MIN_CONNECTIONS", "2"), ("POOL_TIMEOUT", "7")], 14),
        ] {
            let url = answering_once(test.url()).await;
            let started = tokio::time::Instant::now();
            let error = config(&url, settings).connect().await.unwrap_err();
            assert_silent(&error, &url);
            let took = started.elapsed().as_secs();
            assert!((5..=seconds + 1).contains(&took), "{settings:?}: {took}");
            tokio::time::resume();
        }
    }
}

#[tokio::test]
async fn a_missing_sqlite_file_is_an_error_that_says_what_to_write() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/shop.db", dir.path().display());
    let missing = format!("{}/shop.db", dir.path().display());
    for (query, remedy) in [
        ("", "?mode=rwc"),
        ("?mode=rw", "?mode=rwc"),
        ("?mode=ro", "mode=ro"),
    ] {
        let url = format!("{url}{query}");
        let error = config(&url, &[]).connect().await.unwrap_err();
        let text = error.to_string();
        for part in [
            "(code: 14) unable to open database file",
            &missing,
            "does not exist",
            remedy,
        ] {
            assert!(text.contains(part), "no {part} in {text}");
        }
    }
    let nowhere = format!("sqlite://{}/data/shop.db?mode=rwc", dir.path().display());
    let error = config(&nowhere, &[]).connect().await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("(code: 14)"), "{text}");
    assert!(text.contains("there is no directory"), "{text}");
    // It is there, and cannot be opened for another reason.
    let directory = format!("sqlite://{}", dir.path().display());
    let error = config(&directory, &[]).connect().await.unwrap_err();
    assert!(!error.to_string().contains("mode="), "{error}");
    config(&format!("{url}?mode=rwc"), &[])
        .connect()
        .await
        .unwrap();
    config(&url, &[]).connect().await.unwrap();
}

#[tokio::test]
async fn the_log_of_a_lazy_pool_says_how_a_missing_sqlite_file_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/shop.db", dir.path().display());
    let pool = config(&url, &[("CONNECT_LAZY", "true")]).connect().await;
    let (log, _guard) = FullLog::start();
    let pool = pool.unwrap();
    let error = timeout(BOUND, pool.session()).await.unwrap().unwrap_err();
    assert!(error.is_acquire(), "{error:?}");
    let source = error.source().unwrap().to_string();
    for text in [
        source,
        log.text(),
        pool.ping().await.unwrap_err().source().unwrap().to_string(),
    ] {
        assert!(text.contains("(code: 14)"), "{text}");
        assert!(text.contains("?mode=rwc"), "{text}");
    }
}

/// Returns an address on `[::1]` that leads to the server of `url`, or `None` if this machine has no IPv6.
async fn on_ipv6(url: &str) -> Option<String> {
    let listener = TcpListener::bind("[::1]:0").await.ok()?;
    let (head, rest) = url.split_once("127.0.0.1:")?;
    let (port, database) = rest.split_once('/')?;
    let (server, port) = (
        format!("127.0.0.1:{port}"),
        listener.local_addr().unwrap().port(),
    );
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let server = server.clone();
            tokio::spawn(async move {
                let mut server = tokio::net::TcpStream::connect(server).await.unwrap();
                tokio::io::copy_bidirectional(&mut client, &mut server)
                    .await
                    .ok();
            });
        }
    });
    Some(format!("{head}[::1]:{port}/{database}"))
}

#[tokio::test]
async fn a_server_with_an_ipv6_address_is_connected_to() {
    for kind in [Kind::Postgres, Kind::MySql] {
        let test = TestDb::new(kind).await;
        let Some(url) = on_ipv6(test.url()).await else {
            return;
        };
        // With a password as well, which a server that asks for none ignores.
        let (scheme, rest) = url.split_once("://").unwrap();
        let with_password = match kind {
            Kind::Postgres => format!("{scheme}://{}", rest.replacen('@', ":any@", 1)),
            _ => url.clone(),
        };
        for url in [url, with_password] {
            let config = config(
                &url,
                &[("MAX_CONNECTIONS", "2"), ("CANCEL_RUNNING", "true")],
            );
            let pool = timeout(BOUND, config.connect()).await.unwrap().unwrap();
            pool.session().await.unwrap().ping().await.unwrap();
            pool.close(BOUND).await;
            let db = timeout(BOUND, sea_orm::Database::connect(config.connect_options()))
                .await
                .unwrap()
                .unwrap();
            let pool = config.session_pool(db).unwrap();
            pool.session().await.unwrap().ping().await.unwrap();
            assert_whole(&test, pool.database(), 2).await;
        }
    }
}

/// `%` escapes for what has a meaning in a URL.
fn escaped(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

#[tokio::test]
async fn a_wrong_password_fails_at_once_and_no_password_is_logged() {
    const RIGHT: &str = "p@ss/w?rd#100%+ä";
    const WRONG: &str = "hunter2/@?";
    let server = OwnServer::postgres();
    let test = TestDb::on(&server).await;
    let admin = test.connect(1).await;
    admin
        .execute_unprepared(&format!(
            "CREATE ROLE app SUPERUSER LOGIN PASSWORD '{RIGHT}'"
        ))
        .await
        .unwrap();
    // From here on, passwords count.
    let backend = Kind::Postgres.backend();
    let file = admin
        .query_one_raw(Statement::from_string(backend, "SHOW hba_file"))
        .await
        .unwrap()
        .unwrap();
    let file: String = file.try_get("", "hba_file").unwrap();
    let rules = "host all app all scram-sha-256\nhost all all all trust\n";
    std::fs::write(file, rules).unwrap();
    admin
        .execute_unprepared("SELECT pg_reload_conf()")
        .await
        .unwrap();
    let database = test.url().rsplit_once('/').unwrap().1;
    let url = |userinfo: &str, query: &str| {
        format!(
            "postgres://{userinfo}@127.0.0.1:{}/{database}{query}",
            server.port()
        )
    };
    eventually("the server asks for passwords", async || {
        config(&url("app", ""), &[]).connect().await.is_err()
    })
    .await;

    let (log, guard) = FullLog::start();
    for url in [
        url(&format!("app:{}", escaped(RIGHT)), ""),
        url("app:no", &format!("?password={}", escaped(RIGHT))),
    ] {
        let pool = config(&url, &[("MIN_CONNECTIONS", "1")])
            .connect()
            .await
            .unwrap();
        pool.session().await.unwrap().ping().await.unwrap();
        assert_whole(&test, pool.database(), 2).await;
    }
    for (url, code) in [
        (url(&format!("app:{}", escaped(WRONG)), ""), "28P01"),
        (
            url("app", &format!("?password={}", escaped(WRONG))),
            "28P01",
        ),
        (
            url(
                &format!("app:{}", escaped(RIGHT)),
                "?dbname=no_such_database",
            ),
            "3D000",
        ),
    ] {
        let error = timeout(BOUND, config(&url, &[("STARTUP_TIMEOUT", "1d")]).connect())
            .await
            .unwrap()
            .unwrap_err();
        let text = all_of(&error);
        assert!(text.contains(code), "{text}");
        assert_untold(
            &text,
            &[
                RIGHT,
                WRONG,
                &escaped(RIGHT),
                &escaped(WRONG),
                "hunter2",
                "w?rd",
            ],
        );
    }
    drop(guard);
    assert!(
        log.count("127.0.0.1") > 0,
        "the spans that SeaORM makes of options are in the log"
    );
    assert_untold(
        &log.text(),
        &[
            RIGHT,
            WRONG,
            &escaped(RIGHT),
            &escaped(WRONG),
            "hunter2",
            "w?rd",
        ],
    );
    assert_whole(&test, &admin, 1).await;
}

#[tokio::test]
async fn a_wrong_password_fails_at_once_on_mysql_too() {
    const RIGHT: &str = "p@ss/w?rd#100%";
    let test = TestDb::new(Kind::MySql).await;
    let admin = test.connect(1).await;
    let user = unique_name();
    for sql in [
        format!("CREATE USER {user} IDENTIFIED BY '{RIGHT}'"),
        format!("GRANT ALL ON *.* TO {user}"),
    ] {
        admin.execute_unprepared(&sql).await.unwrap();
    }
    let (log, guard) = FullLog::start();
    let (_, address) = mysql_url()
        .split_once('@')
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
        .unwrap();
    let (address, _) = address.split_once('/').unwrap();
    let database = test.url().rsplit_once('/').unwrap().1;
    let right = format!("mysql://{user}:{}@{address}/{database}", escaped(RIGHT));
    let wrong = format!("mysql://{user}:hunter2@{address}/{database}");
    // Without TLS and without sqlx's `mysql-rsa`, a password is never sent to MySQL, and the error says so.
    let (accepted, refusal) = if is_mariadb(&admin).await {
        (true, "Access denied")
    } else {
        (false, "enable feature `mysql-rsa`")
    };
    if accepted {
        let pool = config(&right, &[]).connect().await.unwrap();
        assert_whole(&test, pool.database(), 2).await;
    }
    let error = timeout(
        BOUND,
        config(&wrong, &[("STARTUP_TIMEOUT", "1d")]).connect(),
    )
    .await
    .unwrap()
    .unwrap_err();
    assert!(error.to_string().contains(refusal), "{error}");
    drop(guard);
    for text in [all_of(&error), log.text()] {
        assert_untold(&text, &[RIGHT, &escaped(RIGHT), "hunter2"]);
    }
    assert_whole(&test, &admin, 1).await;
}

fn assert_untold(text: &str, secrets: &[&str]) {
    for secret in secrets {
        let place = text
            .find(secret)
            .map(|at| text[..at].lines().last().unwrap_or_default());
        assert!(place.is_none(), "a password is told after: {place:?}");
    }
}
