//! G17: a transaction, or a first statement, that finds its idle connection dead runs on another one.
//! Nothing has happened yet that could happen twice.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body, http::StatusCode, routing::any};
use futures_util::future::join_all;
use http::Request;
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, DbErr, Statement, TransactionTrait};
use tokio::time::timeout;
use tower::ServiceExt;
use tower_sea_orm::{DbSession, DbSessionLayer, DbTx, SessionPool};

use crate::support::{
    database::{Kind, TestDb, count_items, insert_item},
    pool::assert_whole,
    requests::status,
    servers::OwnServer,
    site::{BOUND, Site, call, is_mariadb, known, outcome, retry_after, value},
    statements::{WAYS, Way, insert, lock, read, running, unlock},
    wait::eventually,
};

const KINDS: [Kind; 2] = [Kind::Postgres, Kind::MySql];

fn own(kind: Kind) -> OwnServer {
    if kind == Kind::Postgres {
        OwnServer::postgres()
    } else {
        OwnServer::mysql()
    }
}

/// Ends the server's side of all of the pool's connections.
async fn end_all(site: &Site) {
    let db = site.observer.as_ref().unwrap();
    if site.kind() == Kind::Postgres {
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                   WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name = ''";
        db.execute_unprepared(sql).await.unwrap();
        return;
    }
    let sql = "SELECT CAST(id AS SIGNED) FROM information_schema.processlist \
               WHERE db = database() AND id <> connection_id() AND command = 'Sleep'";
    for row in db
        .query_all_raw(Statement::from_string(DbBackend::MySql, sql))
        .await
        .unwrap()
    {
        let id: i64 = row.try_get_by_index(0).unwrap();
        // One that has ended by itself is no failure.
        let _ = db.execute_unprepared(&format!("KILL {id}")).await;
    }
}

/// Ends the server's side of the connections whose reads wait.
async fn end_waiting(site: &Site) {
    let db = site.view();
    let (find, ends) = match site.kind() {
        Kind::Postgres => (
            "SELECT pid::bigint FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()",
            "SELECT pg_terminate_backend",
        ),
        _ => (
            "SELECT CAST(id AS SIGNED) FROM information_schema.processlist \
             WHERE db = database() AND info LIKE 'SELECT count(*)%'",
            "KILL ",
        ),
    };
    let id: i64 = value(db, find).await;
    db.execute_unprepared(&format!("{ends}({id})"))
        .await
        .unwrap();
}

/// Two warm connections that the server has ended.
async fn two_dead(site: &Site) {
    let pool = site.layer.pool();
    let two = join_all((0..2).map(|_| async {
        loop {
            let session = pool.session().await.unwrap();
            // One that an earlier case has ended may still be on its way to the driver's pool.
            if session.ping().await.is_ok() {
                return session;
            }
        }
    }));
    drop(two.await);
    assert_eq!(pool.status().idle, 2);
    end_all(site).await;
    // One that was in use less than a millisecond ago does not count as rested, and a fast machine gets here in less.
    tokio::time::sleep(Duration::from_millis(2)).await;
}

#[tokio::test]
async fn a_transaction_begins_on_another_connection_if_its_own_has_died() {
    for kind in KINDS {
        let site = Site::new(kind)
            .await
            .pooled(|pool| pool.direct_handoff(true));
        for (name, layer) in [
            ("own", site.layer.clone().transaction()),
            ("lazy", site.layer.clone().lazy().transaction()),
            (
                "with settings",
                site.layer.clone().lock_timeout(Duration::from_secs(9)),
            ),
        ] {
            two_dead(&site).await;
            let handler = move |db: DbSession| async move { insert_item(&db, name).await };
            let app = Router::new().route("/", any(handler)).layer(layer);
            assert_eq!(call(app).await.status(), 200, "{kind:?}, {name}");
            assert_eq!(site.count(name).await, 1, "{kind:?}, {name}");
        }
        // One that the handler begins, as the first thing of all.
        two_dead(&site).await;
        let begun = site
            .call(async |db: DbSession| {
                let tx = db.begin().await.unwrap();
                insert_item(&tx, "begun").await;
                tx.commit().await.unwrap();
            })
            .await;
        assert_eq!(begun.status(), 200, "{kind:?}");
        assert_eq!(site.count("begun").await, 1, "{kind:?}");
        site.assert_whole().await;
    }
}

/// Each finds its own connection dead, at the same time as the other.
#[tokio::test]
async fn reads_run_on_other_connections_if_their_own_have_died() {
    for kind in KINDS {
        let site = Site::new(kind).await.pooled(|pool| {
            pool.direct_handoff(true)
                .test_before_acquire_if_idle_for(BOUND)
        });
        for way in WAYS.into_iter().filter(|way| *way != Way::Stream) {
            let handler = async move |db: DbSession| {
                let sql = "SELECT count(*), max(lower(name)) FROM item WHERE id IN (1, 2)";
                status(read(&db, way, sql).await)
            };
            let app = site.app(handler);
            let mut tries = 0;
            loop {
                two_dead(&site).await;
                let answers = join_all((0..2).map(|_| call(app.clone()))).await;
                // On a busy machine, the news of the death may come so late that the read itself might have caused it.
                if answers.iter().all(|answer| answer.status() == 200) {
                    break;
                }
                tries += 1;
                assert!(tries < 5, "{kind:?}, {way:?}");
            }
        }
        let site = site.pooled(|pool| pool);
        site.assert_whole().await;
    }
}

/// A statement that is not run again: it has failed and done nothing, or a ping has gone before it, because the machine was
/// so busy that its connection had rested for a second.
#[tokio::test]
async fn a_statement_that_might_happen_twice_happens_once_at_most() {
    for kind in KINDS {
        let site = Site::new(kind).await.pooled(|pool| {
            pool.direct_handoff(true)
                .test_before_acquire_if_idle_for(BOUND)
        });
        let mut statements = vec![insert("once")];
        if kind == Kind::Postgres {
            site.run("CREATE FUNCTION noted() RETURNS int LANGUAGE sql AS $$ INSERT INTO item (name) VALUES ('once') RETURNING 1 $$").await;
            statements.push("SELECT noted() FROM item LIMIT 1".to_owned());
        }
        let mut happened = 0;
        insert_item(site.view(), "other").await;
        for sql in statements {
            for way in WAYS {
                two_dead(&site).await;
                let sql = sql.clone();
                let handler = async move |db: DbSession| status(read(&db, way, &sql).await);
                let answer = site.call(handler).await.status();
                happened += i64::from(answer == StatusCode::OK);
                assert_eq!(site.count("once").await, happened, "{kind:?}, {way:?}");
            }
        }
        let site = site.pooled(|pool| pool);
        site.assert_whole().await;
    }
}

/// As by an operator, who would see it come back.
#[tokio::test]
async fn a_read_that_the_server_ends_while_it_runs_is_not_run_again() {
    for kind in KINDS {
        let site = Site::new(kind).await.pooled(|pool| {
            pool.direct_handoff(true)
                .test_before_acquire_if_idle_for(BOUND)
        });
        drop(site.layer.pool().session().await.unwrap());
        let other = site.test.connect(2).await;
        let locked = lock(kind, &other).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
        let handler =
            async |db: DbSession| status(read(&db, Way::All, "SELECT count(*) FROM item").await);
        let request = tokio::spawn(call(site.app(handler)));
        eventually("it waits", async || {
            running(&other, "count(*) FROM item").await == 1
        })
        .await;
        // A connection that was dead from the beginning would have said so by now.
        tokio::time::sleep(Duration::from_secs(1)).await;
        end_waiting(&site).await;
        assert!(
            request.await.unwrap().status().is_server_error(),
            "{kind:?}"
        );
        assert_eq!(running(&other, "count(*) FROM item").await, 0, "{kind:?}");
        unlock(kind, locked).await;
        let site = site.pooled(|pool| pool);
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn a_statement_that_may_have_run_is_not_run_again() {
    for kind in KINDS {
        let site = Site::new(kind)
            .await
            .pooled(|pool| pool.direct_handoff(true));
        // A transaction that had begun stays lost.
        let layer = site.layer.clone().transaction();
        let view = site.observer.clone().unwrap();
        let handler = move |db: DbSession| {
            let view = view.clone();
            async move {
                insert_item(&db, "lost").await;
                let own = match db.backend() {
                    DbBackend::Postgres => "SELECT pg_backend_pid()",
                    _ => "SELECT CAST(connection_id() AS SIGNED)",
                };
                let row = db
                    .query_one_raw(Statement::from_string(db.backend(), own))
                    .await
                    .unwrap()
                    .unwrap();
                let end = match db.backend() {
                    DbBackend::Postgres => {
                        format!(
                            "SELECT pg_terminate_backend({})",
                            row.try_get_by_index::<i32>(0).unwrap()
                        )
                    }
                    _ => format!("KILL {}", row.try_get_by_index::<i64>(0).unwrap()),
                };
                view.execute_unprepared(&end).await.unwrap();
                db.execute_unprepared("SELECT 1").await.unwrap_err();
            }
        };
        let app = Router::new().route("/", any(handler)).layer(layer);
        assert_eq!(call(app).await.status(), 500, "{kind:?}");
        assert_eq!(site.count("lost").await, 0, "{kind:?}");
        site.assert_whole().await;
    }
}

/// G10, G20: nothing of the request has run, so that its client may send it again.
#[tokio::test]
async fn a_503_of_a_database_gone_before_the_first_statement_has_retry_after() {
    const READ: &str = "SELECT count(*) FROM item";
    for kind in KINDS {
        let (site, proxy) = Site::behind_a_proxy(kind).await;
        let site = site.pooled(|pool| {
            pool.direct_handoff(true)
                .acquire_timeout(Duration::from_secs(2))
                .test_before_acquire_if_idle_for(BOUND)
        });
        let write = insert("written");
        // A write is preceded by a ping where its connection has rested for a second.
        for (sql, rest) in [(READ, 2), (READ, 1100), (write.as_str(), 1100)] {
            for is_lazy in [false, true] {
                let case = format!("{kind:?}, {sql}, {rest} ms, lazy: {is_lazy}");
                let sql = sql.to_owned();
                let handler = async move |db: DbSession| status(read(&db, Way::All, &sql).await);
                let layer = site.layer.clone().eager_if(move |_| !is_lazy);
                let app = Router::new().route("/", any(handler)).layer(layer);
                drop(site.layer.pool().session().await.unwrap());
                tokio::time::sleep(Duration::from_millis(rest)).await;
                proxy.refuse(true);
                proxy.cut();
                let answer = call(app).await;
                proxy.refuse(false);
                assert_eq!(answer.status(), 503, "{case}");
                assert!(retry_after(&answer).is_some(), "{case}");
                assert!(outcome(&answer).is_undone(), "{case}");
            }
        }
        assert_eq!(site.count("written").await, 0, "{kind:?}");
        let site = site.pooled(|pool| pool);
        site.assert_whole().await;
    }
}

/// G20: what it wrote would be written twice.
#[tokio::test]
async fn a_503_of_a_database_gone_after_a_write_has_no_retry_after() {
    for kind in KINDS {
        let (site, proxy) = Site::behind_a_proxy(kind).await;
        let site = site.pooled(|pool| {
            pool.direct_handoff(true)
                .acquire_timeout(Duration::from_secs(2))
                .test_before_acquire_if_idle_for(BOUND)
        });
        let proxy = Arc::new(proxy);
        let cut = proxy.clone();
        let handler = move |db: DbSession| {
            let cut = cut.clone();
            async move {
                insert_item(&db, "written").await;
                db.release().await.unwrap();
                tokio::time::sleep(Duration::from_millis(2)).await;
                cut.refuse(true);
                cut.cut();
                status(read(&db, Way::All, "SELECT count(*) FROM item").await)
            }
        };
        let answer = site.call(handler).await;
        proxy.refuse(false);
        assert_eq!(answer.status(), 503, "{kind:?}");
        assert_eq!(retry_after(&answer), None, "{kind:?}");
        assert!(!outcome(&answer).is_undone(), "{kind:?}");
        assert_eq!(site.count("written").await, 1, "{kind:?}");
        let site = site.pooled(|pool| pool);
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn a_set_up_that_fails_is_tried_on_no_other_connection() {
    for kind in KINDS {
        let (site, proxy) = Site::behind_a_proxy(kind).await;
        let site = site.pooled(|pool| pool.direct_handoff(true));
        let layer = site.layer.clone().transaction();
        let layer = layer
            .on_acquire(move |_| vec![Statement::from_string(kind.backend(), "SELECT nonsense")]);
        let handler = async |db: DbSession| {
            db.execute_unprepared("SELECT 1")
                .await
                .unwrap_err()
                .to_string()
        };
        drop(site.layer.pool().session().await.unwrap());
        let before = proxy.accepted();
        let answer = call(Router::new().route("/", any(handler)).layer(layer)).await;
        // The answer promises nothing that did not happen, since nothing was written.
        assert!(
            answer.status() == 200 || answer.status() == 500,
            "{kind:?}: {}",
            answer.status()
        );
        assert_eq!(proxy.accepted(), before, "{kind:?}: new connections");
        site.assert_whole().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_under_load_fails_little_more_than_what_was_running() {
    const CLIENTS: usize = 12;
    const SIZE: u32 = 4;
    for kind in KINDS {
        let mut server = own(kind);
        let test = TestDb::on(&server).await;
        let db = sea_orm::Database::connect(test.options(SIZE))
            .await
            .unwrap();
        let pool = SessionPool::builder(db.clone())
            .acquire_timeout(BOUND)
            .build()
            .unwrap();
        let layer = DbSessionLayer::new(pool).transaction();
        let handler = async |db: DbSession| {
            let update = db
                .execute_unprepared("UPDATE item SET hits = hits + 1")
                .await?;
            db.execute_unprepared("SELECT 1").await?;
            Ok::<_, Refused>(update.rows_affected().to_string())
        };
        let app = Router::new().route("/", any(handler)).layer(layer);
        let (stop, served, failed) = (AtomicBool::new(false), AtomicU32::new(0), AtomicU32::new(0));
        let client = async || {
            while !stop.load(Ordering::Relaxed) {
                let request = Request::new(Body::empty());
                let answer = timeout(BOUND * 2, app.clone().oneshot(request))
                    .await
                    .expect("an answer")
                    .unwrap();
                let counter = if answer.status() == StatusCode::OK {
                    &served
                } else {
                    &failed
                };
                counter.fetch_add(1, Ordering::Relaxed);
            }
        };
        let mut restart = async || {
            eventually("requests are served", async || {
                served.load(Ordering::Relaxed) > 200
            })
            .await;
            tokio::task::block_in_place(|| {
                server.stop();
                server.start();
            });
            let before = served.load(Ordering::Relaxed);
            eventually("they are served again", async || {
                served.load(Ordering::Relaxed) > before + 200
            })
            .await;
            stop.store(true, Ordering::Relaxed);
        };
        tokio::join!(join_all((0..CLIENTS).map(|_| client())), restart());
        let failed = failed.into_inner();
        assert!(failed <= 2 * SIZE, "{kind:?}: {failed} requests failed");
        assert_whole(&test, &db, SIZE).await;
        insert_item(&db, "after").await;
        assert_eq!(count_items(&db, "after").await, 1);
    }
}

/// A handler's error that says what the crate would.
struct Refused(Arc<DbErr>);

impl From<DbErr> for Refused {
    fn from(error: DbErr) -> Self {
        Self(Arc::new(error))
    }
}

impl axum::response::IntoResponse for Refused {
    fn into_response(self) -> axum::response::Response {
        let status = tower_sea_orm::Error::of(&self.0)
            .map_or(StatusCode::INTERNAL_SERVER_ERROR, |known| known.status());
        status.into_response()
    }
}

#[tokio::test]
async fn a_connection_lost_after_such_a_begin_is_an_error() {
    let site = Site::new(Kind::Postgres)
        .await
        .pooled(|pool| pool.direct_handoff(true));
    two_dead(&site).await;
    let response = site
        .call(async |tx: DbTx| {
            let sql = "SELECT pg_terminate_backend(pg_backend_pid())";
            let _ = tx
                .query_one_raw(Statement::from_string(DbBackend::Postgres, sql))
                .await;
        })
        .await;
    assert_eq!(response.status(), 500);
    let told = outcome(&response);
    // There was no code that could have ended it behind the session's back.
    assert!(told.error().unwrap().is_connection_lost(), "{told:?}");
    site.assert_whole().await;
}

/// Waits until the server has closed the connection of this number.
async fn closed(view: &DatabaseConnection, id: i64) {
    let backend = view.get_database_backend();
    let sql = match backend {
        DbBackend::Postgres => format!("SELECT 1 FROM pg_stat_activity WHERE pid = {id}"),
        _ => format!("SELECT 1 FROM information_schema.PROCESSLIST WHERE ID = {id}"),
    };
    let sees = async || {
        view.query_one_raw(Statement::from_string(backend, &sql))
            .await
            .unwrap()
            .is_some()
    };
    eventually("the server closes the idle connection", async || {
        !sees().await
    })
    .await;
}

/// A pool of one connection that its server closes as soon as it is idle for a while, and which that is.
async fn soon_closed(kind: Kind) -> (Site, i64) {
    let test = TestDb::new(kind).await;
    let db = test.connect(1).await;
    let site = Site::with(test, db, 1).await;
    let session = site.layer.pool().session().await.unwrap();
    let (set, own) = match kind {
        Kind::Postgres => (
            "SET idle_session_timeout = '300ms'",
            "SELECT pg_backend_pid()::bigint",
        ),
        _ => (
            "SET SESSION wait_timeout = 1",
            "SELECT CAST(CONNECTION_ID() AS SIGNED)",
        ),
    };
    session.execute_unprepared(set).await.unwrap();
    let id = value(&*session, own).await;
    drop(session);
    (site, id)
}

#[tokio::test]
async fn a_first_statement_on_a_connection_closed_as_idle_runs_on_another() {
    for kind in [Kind::Postgres, Kind::MySql] {
        for way in WAYS {
            let (site, id) = soon_closed(kind).await;
            if kind == Kind::MySql && is_mariadb(site.view()).await {
                // It closes the connection without a word, as a crash does.
                continue;
            }
            let view = site.view().clone();
            let handler = async move |db: DbSession| {
                closed(&view, id).await;
                status(read(&db, way, &insert("once")).await)
            };
            assert_eq!(
                site.call(handler).await.status(),
                StatusCode::OK,
                "{kind:?} {way:?}"
            );
            assert_eq!(site.count("once").await, 1, "{kind:?} {way:?}");
            site.assert_whole().await;
        }
    }
}

#[tokio::test]
async fn a_later_statement_on_a_connection_closed_as_idle_is_an_error() {
    for kind in [Kind::Postgres, Kind::MySql] {
        let (site, id) = soon_closed(kind).await;
        let view = site.view().clone();
        let handler = async move |db: DbSession| {
            // What came before may have made the session's state.
            db.execute_unprepared("SELECT 1").await.unwrap();
            closed(&view, id).await;
            let error = db.execute_unprepared(&insert("never")).await.unwrap_err();
            let first = known(Err::<(), _>(error));
            assert!(first.is_connection_lost(), "{first}");
            let again = known(db.execute_unprepared(&insert("never")).await);
            assert!(again.is_connection_lost(), "{again}");
        };
        assert_eq!(
            site.call(handler).await.status(),
            StatusCode::OK,
            "{kind:?}"
        );
        assert_eq!(site.count("never").await, 0, "{kind:?}");
        site.assert_whole().await;
    }
}
