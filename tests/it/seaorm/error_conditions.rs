//! G10, G15: `Error::of` answers the same questions for every server: a lock that is not available, a statement that
//! takes too long, a server that takes no writes or no connections.

use std::{sync::Arc, time::Duration};

use axum::response::Response;
use http::StatusCode;
use sea_orm::{
    AccessMode, ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DbErr, RuntimeErr,
    Statement, TransactionOptions,
    sqlx::{self, Connection, Executor, MySqlConnection, PgConnection},
};
use tower_sea_orm::{DbSession, DbTx, Error};

use crate::support::{
    database::{Kind, SERVERS, TestDb, insert_item, unique_name},
    servers::OwnServer,
    site::{SIZE, Site, is_mariadb, outcome, retry_after, value},
    wait::eventually,
};

/// A handler's answer to a statement: 500 if it failed, whatever the reason.
fn answer<T>(result: Result<T, DbErr>, told: &std::sync::Mutex<Option<DbErr>>) -> StatusCode {
    let status = if result.is_ok() {
        StatusCode::OK
    } else {
        StatusCode::INTERNAL_SERVER_ERROR
    };
    *told.lock().unwrap() = result.err();
    status
}

/// Runs these statements in a request, the last of which fails; returns the layer's response and the statement's error.
async fn fails(site: &Site, in_transaction: bool, statements: &[&str]) -> (Response, Error) {
    let told = Arc::new(std::sync::Mutex::new(None));
    let statements: Vec<String> = statements.iter().map(|&sql| sql.to_owned()).collect();
    let said = told.clone();
    let response = site
        .call(async move |db: DbSession| {
            if in_transaction {
                db.tx();
            }
            let mut result = Ok(());
            for sql in &statements {
                result = db
                    .query_all_raw(Statement::from_string(db.backend(), sql))
                    .await
                    .map(drop);
            }
            answer(result, &said)
        })
        .await;
    let error = told
        .lock()
        .unwrap()
        .take()
        .expect("the last statement fails");
    (
        response,
        Error::of(&error).unwrap_or_else(|| panic!("another error: {error}")),
    )
}

#[tokio::test]
async fn a_lock_that_is_not_available_is_the_same_error_on_every_server() {
    for kind in [Kind::Postgres, Kind::MySql, Kind::SqliteFile] {
        let test = TestDb::new(kind).await;
        let mut options = test.options(SIZE);
        options.map_sqlx_sqlite_opts(|options| options.busy_timeout(Duration::from_millis(20)));
        let db = Database::connect(options).await.unwrap();
        let site = Site::with(test, db, SIZE).await;
        insert_item(&site.db, "wanted").await;
        let holder = site.layer.pool().session().await.unwrap();
        holder.tx();
        holder
            .execute_unprepared("UPDATE item SET hits = 1 WHERE name = 'wanted'")
            .await
            .unwrap();

        let update = "UPDATE item SET hits = 2 WHERE name = 'wanted'";
        let no_wait = "SELECT id FROM item WHERE name = 'wanted' FOR UPDATE NOWAIT";
        let ways: &[&[&str]] = match kind {
            Kind::Postgres => &[&["SET LOCAL lock_timeout = '20ms'", update], &[no_wait]],
            Kind::MySql => &[&["SET innodb_lock_wait_timeout = 1", update], &[no_wait]],
            _ => &[&[update]],
        };
        for way in ways {
            let (response, error) = fails(&site, true, way).await;
            assert!(
                error.is_lock_not_available() && error.is_conflict(),
                "{kind:?} {way:?}: {error}"
            );
            assert_eq!(
                response.status(),
                StatusCode::SERVICE_UNAVAILABLE,
                "{kind:?} {way:?}"
            );
            assert_eq!(retry_after(&response), Some("1"));
            assert!(!outcome(&response).is_committed());
        }
        // In autocommit, the handler may repeat the statement by itself, and
        // what ran before stands.
        let alone = if kind == Kind::SqliteFile {
            update
        } else {
            no_wait
        };
        let (response, error) = fails(&site, false, &[alone]).await;
        assert!(error.is_conflict(), "{kind:?}: {error}");
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(retry_after(&response), None, "{kind:?}");
        drop(holder);
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn a_statement_timeout_is_a_504() {
    for kind in SERVERS {
        let site = Site::new(kind).await;
        let long: &[&str] = match kind {
            Kind::Postgres => &["SET statement_timeout = '50ms'", "SELECT pg_sleep(60)"],
            _ if is_mariadb(&site.db).await => {
                &["SET max_statement_time = 0.05", "SELECT SLEEP(60)"]
            }
            _ => &[
                "SET max_execution_time = 50",
                "SELECT count(*) FROM information_schema.columns a, information_schema.columns b, \
                 information_schema.columns c, information_schema.columns d",
            ],
        };
        for in_transaction in [false, true] {
            let (response, error) = fails(&site, in_transaction, long).await;
            assert!(
                error.is_statement_timeout() && !error.is_retryable(),
                "{kind:?}: {error}"
            );
            assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT, "{kind:?}");
            assert_eq!(retry_after(&response), None);
        }
        site.assert_whole().await;
    }
}

/// Servers that speak English, and German.
async fn postgres_in_two_languages() -> (OwnServer, [Site; 2]) {
    let german = OwnServer::postgres_with(&["-c", "lc_messages=C.UTF-8"]);
    let test = TestDb::on(&german).await;
    let db = test.connect(SIZE).await;
    let site = Site::with(test, db, SIZE).await;
    let said = site
        .db
        .execute_unprepared("SELECT 1 / 0")
        .await
        .unwrap_err();
    assert!(said.to_string().contains("durch Null"), "{said}");
    (german, [Site::new(Kind::Postgres).await, site])
}

/// Runs `sql`, which waits, and cancels it.
async fn cancelled(db: &DbSession, sql: &str, canceller: DatabaseConnection) -> DbErr {
    let pid: i32 = value(db, "SELECT pg_backend_pid()").await;
    let cancel = async {
        eventually("it is cancelled", async || {
            let sql = format!(
                "SELECT pg_cancel_backend(pid) FROM pg_stat_activity \
                 WHERE pid = {pid} AND query LIKE '%pg_sleep(61)%' AND state = 'active'"
            );
            let row = canceller
                .query_one_raw(Statement::from_string(db.backend(), sql))
                .await
                .unwrap();
            row.is_some()
        })
        .await;
    };
    let (slept, ()) = tokio::join!(db.execute_unprepared(sql), cancel);
    slept.unwrap_err()
}

#[tokio::test]
async fn a_statement_cancelled_on_request_is_no_statement_timeout() {
    let (_german, sites) = postgres_in_two_languages().await;
    for site in sites {
        for in_transaction in [false, true] {
            let canceller = site.view().clone();
            let handler = async move |db: DbSession| {
                if in_transaction {
                    db.tx();
                }
                let error = cancelled(&db, "SELECT pg_sleep(61)", canceller).await;
                assert!(Error::of(&error).is_none(), "{error}");
                StatusCode::INTERNAL_SERVER_ERROR
            };
            assert_eq!(
                site.call(handler).await.status(),
                StatusCode::INTERNAL_SERVER_ERROR
            );
        }
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn a_commit_cancelled_on_request_is_no_statement_timeout() {
    let (_german, sites) = postgres_in_two_languages().await;
    for site in sites {
        site.run(
            "CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS $$ \
             BEGIN PERFORM pg_sleep(61); RETURN NULL; END $$; \
             CREATE CONSTRAINT TRIGGER slowly AFTER INSERT ON item \
             DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION slowly()",
        )
        .await;
        let canceller = site.view().clone();
        let app = site.call(async |tx: DbTx| insert_item(&tx, "late").await);
        let cancel = eventually("COMMIT is cancelled", async || {
            let sql = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity \
                 WHERE datname = current_database() AND query LIKE 'COMMIT%' \
                 AND wait_event = 'PgSleep'";
            let row = canceller
                .query_one_raw(Statement::from_string(site.db.get_database_backend(), sql))
                .await
                .unwrap();
            row.is_some()
        });
        let (response, ()) = tokio::join!(app, cancel);
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert!(outcome(&response).error().unwrap().is_commit_failed());
        site.run("DROP FUNCTION slowly CASCADE").await;
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn a_statement_timeout_is_known_in_german() {
    let (_german, [_, site]) = postgres_in_two_languages().await;
    let long = ["SET statement_timeout = '50ms'", "SELECT pg_sleep(60)"];
    let (response, error) = fails(&site, true, &long).await;
    assert!(error.is_statement_timeout(), "{error}");
    assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT);
    site.assert_whole().await;
}

#[tokio::test]
async fn an_error_that_looks_like_a_statement_timeout_is_none() {
    let (_german, sites) = postgres_in_two_languages().await;
    for site in sites {
        let response = site
            .call(async move |db: DbSession| {
                // The code of a time-out, of stored code's own.
                let own = "DO $$ BEGIN RAISE EXCEPTION 'too slow' USING ERRCODE = '57014'; END $$";
                let error = db.execute_unprepared(own).await.unwrap_err();
                assert!(Error::of(&error).is_none(), "{error}");
                // And that of a COPY that its client gives up.
                let code: sqlx::Result<u64> = db
                    .with_postgres(|c| {
                        Box::pin(async move {
                            let mut copy = c.copy_in_raw("COPY item (name) FROM STDIN").await?;
                            copy.send(&b"one\n"[..]).await?;
                            drop(copy);
                            c.execute("SELECT 1").await.map(|done| done.rows_affected())
                        })
                    })
                    .await
                    .unwrap();
                let error = DbErr::Query(RuntimeErr::SqlxError(Arc::new(code.unwrap_err())));
                assert!(error.to_string().contains("COPY"), "{error}");
                assert!(Error::of(&error).is_none(), "{error}");
            })
            .await;
        assert_eq!(response.status(), StatusCode::OK);
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn a_write_in_a_read_only_transaction_is_the_same_error_everywhere() {
    for kind in Kind::ALL {
        let site = Site::new(kind).await;
        let handler = async |db: DbSession| {
            let access_mode = Some(AccessMode::ReadOnly);
            let tx: DbTx = db
                .tx_with(TransactionOptions {
                    access_mode,
                    ..Default::default()
                })
                .unwrap();
            let error = tx
                .execute_unprepared("INSERT INTO item (name) VALUES ('refused')")
                .await
                .unwrap_err();
            let known = Error::of(&error).unwrap_or_else(|| panic!("another error: {error}"));
            assert!(known.is_read_only(), "{error}");
            StatusCode::CONFLICT
        };
        assert_eq!(
            site.call(handler).await.status(),
            StatusCode::CONFLICT,
            "{kind:?}"
        );
        site.assert_whole().await;
    }
}

/// Returns the error with which a connection is refused.
async fn refusal(kind: Kind, url: &str) -> DbErr {
    let error = match kind {
        Kind::Postgres => PgConnection::connect(url).await.map(drop).unwrap_err(),
        _ => MySqlConnection::connect(url).await.map(drop).unwrap_err(),
    };
    DbErr::Conn(RuntimeErr::SqlxError(error.into()))
}

#[tokio::test]
async fn a_server_at_its_connection_limit_is_full_and_not_down() {
    for kind in SERVERS {
        let test = TestDb::new(kind).await;
        let db = test.connect(1).await;
        let user = format!("u{}", &unique_name()[2..].replace('_', "")[..20]);
        let sqls = match kind {
            Kind::Postgres => vec![format!("CREATE ROLE {user} LOGIN CONNECTION LIMIT 1")],
            _ => vec![
                format!("CREATE USER {user}@'%' WITH MAX_USER_CONNECTIONS 1"),
                format!("GRANT ALL ON *.* TO {user}@'%'"),
            ],
        };
        for sql in sqls {
            db.execute_unprepared(&sql).await.unwrap();
        }
        let (scheme, rest) = test.url().split_once("://").unwrap();
        let url = format!("{scheme}://{user}@{}", rest.split_once('@').unwrap().1);
        let mut options = ConnectOptions::new(&url);
        options.max_connections(1).sqlx_logging(false);
        let only = Database::connect(options).await.unwrap();
        only.execute_unprepared("SELECT 1").await.unwrap();
        let error = refusal(kind, &url).await;
        let known = Error::of(&error).unwrap_or_else(|| panic!("another error: {error}"));
        assert!(
            known.is_exhausted() && known.is_retryable() && !known.is_unreachable(),
            "{kind:?}: {error}"
        );
        assert_eq!(known.status(), StatusCode::SERVICE_UNAVAILABLE);
        drop(only);
        let _ = db.execute_unprepared(&format!("DROP USER {user}")).await;
    }
}

#[tokio::test]
async fn a_connection_that_the_server_ends_is_lost() {
    for kind in SERVERS {
        let site = Site::new(kind).await;
        let killer = site.view().clone();
        let handler = async move |db: DbSession| {
            let (own, kill) = match kind {
                Kind::Postgres => (
                    "SELECT pg_backend_pid()::bigint",
                    "SELECT pg_terminate_backend(",
                ),
                _ => (
                    "SELECT CAST(CONNECTION_ID() AS SIGNED)",
                    "KILL CONNECTION (",
                ),
            };
            let id: i64 = value(&db, own).await;
            let kill = format!("{kill}{id})");
            let sleep = match kind {
                Kind::Postgres => "SELECT pg_sleep(62)",
                _ => "SELECT SLEEP(62)",
            };
            let kills = async {
                let sees = match kind {
                    Kind::Postgres => format!(
                        "SELECT 1 FROM pg_stat_activity WHERE pid = {id} AND query LIKE '%sleep(62)%' AND state = 'active'"
                    ),
                    _ => format!(
                        "SELECT 1 FROM information_schema.PROCESSLIST WHERE ID = {id} AND INFO LIKE '%SLEEP(62)%'"
                    ),
                };
                eventually("the statement runs", async || {
                    killer
                        .query_one_raw(Statement::from_string(kind.backend(), &sees))
                        .await
                        .unwrap()
                        .is_some()
                })
                .await;
                killer.execute_unprepared(&kill).await.unwrap();
            };
            let (slept, ()) = tokio::join!(db.execute_unprepared(sleep), kills);
            // MariaDB may close the connection before it says so.
            let known = Error::of(&slept.unwrap_err());
            assert!(
                known.is_none_or(|known| known.is_connection_lost()),
                "{kind:?}"
            );
            let next = db.execute_unprepared("SELECT 1").await.unwrap_err();
            assert!(
                Error::of(&next).unwrap().is_connection_lost(),
                "{kind:?}: {next}"
            );
        };
        assert_eq!(site.call(handler).await.status(), StatusCode::OK);
        site.assert_whole().await;
    }
}

#[test]
fn errors_answer_questions() {
    let failure = DbErr::ConnectionAcquire(sea_orm::ConnAcquireErr::Timeout);
    let error = Error::of(&failure).unwrap();
    assert!(error.is_exhausted() && error.is_acquire() && error.is_retryable());
    assert!(
        !error.is_unreachable()
            && !error.is_closing()
            && !error.is_conflict()
            && !error.is_session_closed()
    );
    for _ in 0..50 {
        let wait = error.retry_after().unwrap().as_secs();
        assert!((1..=3).contains(&wait), "{wait}");
    }
    let closed = DbErr::ConnectionAcquire(sea_orm::ConnAcquireErr::ConnectionClosed);
    assert!(Error::of(&closed).unwrap().is_closing());
    assert!(Error::of(&DbErr::RecordNotFound(String::new())).is_none());
}
