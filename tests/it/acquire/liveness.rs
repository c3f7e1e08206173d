//! While the database answers, requests are answered (G17), and every setting takes every `Duration`.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    extract::{Request, State},
    middleware::{Next, from_fn_with_state},
    response::Response,
    routing::any,
};
use futures_util::{FutureExt, StreamExt, future::join_all, stream};
use http::StatusCode;
use sea_orm::{ConnectOptions, ConnectionTrait, Database, DbErr, Statement, TransactionTrait};
use tokio::time::timeout;
use tower_sea_orm::{DbSession, DbSessionLayer, DbTx, Error, SessionPool, testing::TestPool};

use crate::{
    cancel::cancel_running::{running, sleep, slow_insert},
    layer::log::Log,
    support::{
        database::{Kind, TestDb, insert_item},
        pool::{pool_with, session_pool},
        site::{BOUND, SIZE, Site, call, port_of},
        wait::{eventually, in_one_of},
        wire::Proxy,
    },
};

const SERVERS: [Kind; 2] = [Kind::Postgres, Kind::MySql];

/// Opens all connections of the site and waits until they are idle in the driver's pool.
async fn all_idle(site: &Site) {
    let pool = site.layer.pool();
    let sessions = join_all((0..site.size).map(|_| pool.session())).await;
    assert!(sessions.iter().all(Result::is_ok));
    drop(sessions);
    eventually("all are with the driver", async || {
        pool.status().idle == 0 && pool.status().used == 0
    })
    .await;
}

/// A site behind a proxy whose time-outs are far longer than any test.
async fn patient_site(kind: Kind) -> (Site, Proxy) {
    const LONG: Duration = Duration::from_secs(600);
    let test = TestDb::new(kind).await;
    let proxy = Proxy::start(port_of(test.url())).await;
    let mut options = test.options_at(&proxy.url(test.url()), SIZE);
    options.acquire_timeout(LONG);
    let db = Database::connect(options).await.unwrap();
    let layer = DbSessionLayer::new(pool_with(&db, |pool| pool.acquire_timeout(LONG)));
    (Site::with(test, db, SIZE).await.layered(|_| layer), proxy)
}

async fn select(db: DbSession) {
    db.execute_unprepared("SELECT 1").await.unwrap();
}

#[tokio::test]
async fn idle_connections_that_a_firewall_has_forgotten_cost_two_seconds_and_no_request() {
    for kind in SERVERS {
        let (site, proxy) = patient_site(kind).await;
        all_idle(&site).await;
        proxy.silence();
        let answers = timeout(BOUND, join_all((0..2 * SIZE).map(|_| site.call(select)))).await;
        // Without a bound on sqlx's ping each of them takes the driver's whole time-out.
        let answers = answers.expect("answers long before the time-out");
        assert!(
            answers.iter().all(|answer| answer.status() == 200),
            "{kind:?}"
        );
    }
}

/// So long that only a hang would come to it.
const LONG: Duration = Duration::from_secs(600);

/// A connect that the server accepts and does not answer.
async fn silent_connects(
    site: &Site,
    proxy: &Proxy,
    count: u64,
) -> Vec<tokio::task::JoinHandle<u16>> {
    let before = proxy.accepted();
    proxy.mute(true);
    let requests = (0..count)
        .map(|_| tokio::spawn(call(site.app(select)).map(|answer| answer.status().as_u16())));
    let requests = requests.collect();
    eventually("they are being opened", async || {
        proxy.accepted() >= before + count
    })
    .await;
    requests
}

/// With a place for one session only, each silent connection would be found out after the one before.
#[tokio::test]
async fn idle_connections_that_a_firewall_has_forgotten_are_found_out_together() {
    const IDLE: u32 = 8;
    for kind in SERVERS {
        let test = TestDb::new(kind).await;
        let proxy = Proxy::start(port_of(test.url())).await;
        let mut options = test.options_at(&proxy.url(test.url()), IDLE);
        options.acquire_timeout(LONG);
        let site = Site::with(test, Database::connect(options).await.unwrap(), IDLE).await;
        let site = site.pooled(|pool| pool.acquire_timeout(LONG));
        all_idle(&site).await;
        let one = pool_with(&site.db, |pool| {
            pool.acquire_timeout(LONG).reserved_connections(IDLE - 1)
        });
        proxy.silence();
        let app = Router::new()
            .route("/", any(select))
            .layer(DbSessionLayer::new(one));
        assert_eq!(call(app).await.status(), 200, "{kind:?}");
    }
}

#[tokio::test]
async fn connects_that_fall_silent_hold_nobody_up_for_long() {
    for kind in SERVERS {
        let (site, proxy) = patient_site(kind).await;
        let pool = site.layer.pool();
        // The first connection, which is there from the start, is not theirs.
        let held = pool.session().await.unwrap();
        // All the places that are left: they have to be given up.
        for request in silent_connects(&site, &proxy, u64::from(SIZE) - 1).await {
            proxy.mute(false);
            let status = timeout(BOUND, request)
                .await
                .expect("an answer long before the time-out")
                .unwrap();
            assert_eq!(status, 200, "{kind:?}");
        }
        drop(held);
        eventually("no place is kept", async || pool.status().acquiring == 0).await;
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn while_a_connect_is_silent_those_who_wait_get_another_one() {
    for kind in SERVERS {
        in_one_of(
            5,
            "an answer before the silent one was given up",
            async || {
                let (site, proxy) = patient_site(kind).await;
                let held = site.layer.pool().session().await.unwrap();
                let requests = silent_connects(&site, &proxy, 1).await;
                proxy.mute(false);
                for request in requests {
                    assert_eq!(
                        timeout(BOUND, request).await.expect("an answer").unwrap(),
                        200,
                        "{kind:?}"
                    );
                }
                drop(held);
                site.layer.pool().status().acquiring == 1
            },
        )
        .await;
    }
}

#[tokio::test]
async fn closing_gives_connects_up_that_hang_and_closes_the_idle_at_once() {
    for kind in SERVERS {
        let (site, proxy) = patient_site(kind).await;
        let site = site.pooled(|pool| pool.release_timeout(LONG).acquire_timeout(LONG));
        let pool = site.layer.pool().clone();
        let held = join_all((0..SIZE - 1).map(|_| pool.session())).await;
        let requests = silent_connects(&site, &proxy, 1).await;
        drop(held);
        for request in requests {
            assert_eq!(
                request.await.unwrap(),
                200,
                "{kind:?}: by another connection"
            );
        }
        eventually("two are idle", async || {
            pool.status().used + pool.status().idle as u32 == 0
        })
        .await;
        assert_eq!(pool.status().acquiring, 1);
        // What another user holds keeps the driver's pool from closing, and nothing else open.
        let plain = site.db.begin().await.unwrap();
        let closing = tokio::spawn(async move { pool.close(Duration::ZERO).await });
        eventually("all but the one in use are closed", async || {
            proxy.connections() == 1
        })
        .await;
        assert!(!closing.is_finished(), "{kind:?}");
        plain.rollback().await.unwrap();
        timeout(BOUND, closing)
            .await
            .expect("closed, not hung")
            .unwrap();
        eventually("all are closed", async || proxy.connections() == 0).await;
    }
}

/// The server has ended what runs, and the network has lost its answer.
#[tokio::test]
async fn a_statement_whose_answer_is_lost_ends_with_an_error_and_its_connection_is_closed() {
    for kind in SERVERS {
        for (in_transaction, writes) in [(false, false), (false, true), (true, false)] {
            let (site, proxy) = patient_site(kind).await;
            let site = site.pooled(|pool| {
                pool.acquire_timeout(LONG)
                    .hold_slow_threshold(Duration::from_secs(1))
                    .cancel_running()
            });
            let (log, _guard) = Log::start();
            let handler = async move |db: DbSession| {
                if in_transaction {
                    db.tx();
                    insert_item(&db, "lost").await;
                }
                let statement = if writes {
                    slow_insert(kind, "written", 1.0)
                } else {
                    sleep(kind, 1.0)
                };
                let mut statement = pin!(db.execute_raw(statement));
                // As with a heartbeat: that it is polled is no sign that something has come for it.
                let ended = loop {
                    match timeout(Duration::from_millis(100), &mut statement).await {
                        Ok(ended) => break ended,
                        Err(_) => tokio::task::yield_now().await,
                    }
                };
                match ended {
                    Err(DbErr::Conn(_)) => StatusCode::BAD_GATEWAY,
                    _ => StatusCode::OK,
                }
            };
            let request = tokio::spawn(call(site.app(handler)));
            eventually("it runs", async || {
                running(site.view(), "sleep(").await == 1
            })
            .await;
            proxy.silence();
            let answer = request.await.unwrap();
            assert!(
                answer.status().is_server_error(),
                "{kind:?}: {}",
                answer.status()
            );
            let told = |line: &String| {
                line.contains("answer has not arrived") && line.contains("statement=")
            };
            assert!(log.lines().iter().any(told), "{:?}", log.lines());
            assert_eq!(
                site.seen(["lost", "written"]).await,
                [false, writes],
                "{kind:?}"
            );
            eventually("its place is free", async || {
                site.layer.pool().status().used == 0
            })
            .await;
            assert_eq!(site.call(select).await.status(), 200, "{kind:?}");
        }
    }
}

/// With the defaults: reads and writes that commit by themselves, and transactions.
#[tokio::test]
async fn a_pool_whose_connections_a_firewall_has_forgotten_in_use_serves_those_who_wait() {
    for kind in SERVERS {
        for (in_transaction, writes) in [(false, false), (false, true), (true, false), (true, true)]
        {
            let case = format!("{kind:?}, in a transaction: {in_transaction}, writes: {writes}");
            let (site, proxy) = patient_site(kind).await;
            let site = site.pooled(|pool| pool.acquire_timeout(LONG));
            let (log, _guard) = Log::start();
            let handler = async move |db: DbSession| {
                if in_transaction {
                    db.tx();
                    insert_item(&db, "lost").await;
                }
                let statement = if writes {
                    slow_insert(kind, "written", 0.5)
                } else {
                    sleep(kind, 0.5)
                };
                match db.execute_raw(statement).await {
                    Err(DbErr::Conn(_)) => StatusCode::BAD_GATEWAY,
                    _ => StatusCode::OK,
                }
            };
            let held: Vec<_> = (0..SIZE)
                .map(|_| tokio::spawn(call(site.app(handler))))
                .collect();
            eventually("all run", async || {
                running(site.view(), "sleep(").await == SIZE as usize
            })
            .await;
            proxy.silence();
            let next = timeout(BOUND, join_all((0..2 * SIZE).map(|_| site.call(select))))
                .await
                .expect("answers");
            assert!(next.iter().all(|answer| answer.status() == 200), "{case}");
            for request in held {
                let status = request.await.unwrap().status();
                assert!(status.is_server_error(), "{case}: {status}");
            }
            let lines = log.lines();
            let is_told = |line: &String| line.contains("answer has not arrived");
            assert!(lines.iter().any(is_told), "{case}: {lines:?}");
            // The server finished what was written outside a transaction, and rolls the others back.
            eventually(&case, async || {
                site.seen(["lost", "written"]).await == [false, writes && !in_transaction]
            })
            .await;
            site.assert_whole().await;
        }
    }
}

/// As above, but the server is at work for one of them.
#[tokio::test]
async fn a_full_pool_whose_statements_take_long_is_left_alone() {
    for kind in SERVERS {
        let (site, _proxy) = patient_site(kind).await;
        let site = site.pooled(|pool| pool.acquire_timeout(LONG));
        let sleeps =
            async move |db: DbSession| drop(db.query_all_raw(sleep(kind, 8.0)).await.unwrap());
        let rests = async move |db: DbSession| {
            let mut statement = Box::pin(db.query_all_raw(sleep(kind, 0.1)));
            let polled = futures_util::poll!(&mut statement);
            tokio::time::sleep(Duration::from_secs(8)).await;
            if polled.is_pending() {
                statement.await.unwrap();
            }
        };
        let sleeping = join_all((1..SIZE).map(|_| site.call(sleeps)));
        let (slow, resting, next) = tokio::join!(sleeping, site.call(rests), async {
            eventually("all are in use", async || {
                site.layer.pool().status().used == SIZE
            })
            .await;
            site.call(select).await
        });
        let answers = slow.into_iter().chain([resting, next]);
        assert!(
            answers
                .map(|answer| answer.status().as_u16())
                .all(|status| status == 200),
            "{kind:?}"
        );
        site.assert_whole().await;
    }
}

/// The server has sent it all and has nothing more to do, while the network has not brought it all yet.
#[tokio::test]
async fn answers_that_arrive_slowly_are_not_taken_for_lost() {
    const ROWS: &str = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 900) \
                        SELECT REPEAT('x', 2000) FROM n";
    for (kind, cancels) in SERVERS
        .into_iter()
        .flat_map(|kind| [(kind, false), (kind, true)])
    {
        let (site, proxy) = patient_site(kind).await;
        let site = site.pooled(|pool| {
            let pool = pool
                .acquire_timeout(LONG)
                .hold_slow_threshold(Duration::from_millis(500));
            if cancels { pool.cancel_running() } else { pool }
        });
        all_idle(&site).await;
        proxy.delay_replies(Duration::from_millis(300));
        let reads = async move |db: DbSession| {
            let rows = db
                .query_all_raw(Statement::from_string(kind.backend(), ROWS))
                .await
                .unwrap();
            assert_eq!(rows.len(), 900);
        };
        let reading = join_all((0..SIZE).map(|_| site.call(reads)));
        let (answers, next) = tokio::join!(reading, async {
            eventually("all are in use", async || {
                site.layer.pool().status().used == SIZE
            })
            .await;
            site.call(select).await
        });
        proxy.delay_replies(Duration::ZERO);
        let statuses = answers
            .iter()
            .chain([&next])
            .map(|answer| answer.status().as_u16());
        assert!(
            statuses.clone().all(|status| status == 200),
            "{kind:?} {cancels}: {:?}",
            statuses.collect::<Vec<_>>()
        );
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn a_commit_that_is_not_answered_ends_as_unknown() {
    for kind in SERVERS {
        let (site, proxy) = patient_site(kind).await;
        let site = site.pooled(|pool| {
            pool.acquire_timeout(LONG)
                .commit_timeout(LONG)
                .hold_slow_threshold(Duration::from_secs(1))
                .cancel_running()
        });
        proxy.hold_back("COMMIT");
        let handler = async |tx: DbTx| {
            insert_item(&tx, "lost").await;
            let error = tx.commit().await.unwrap_err();
            assert!(
                Error::of(&error).is_some_and(|error| error.is_outcome_unknown()),
                "{error}"
            );
        };
        assert_eq!(site.call(handler).await.status(), 500, "{kind:?}");
        proxy.cut();
        proxy.let_go();
        assert_eq!(site.call(select).await.status(), 200, "{kind:?}");
    }
}

#[tokio::test]
async fn a_statement_that_the_server_works_on_or_whose_future_rests_is_left_alone() {
    for kind in SERVERS {
        let (site, _proxy) = patient_site(kind).await;
        let site = site.pooled(|pool| {
            pool.acquire_timeout(LONG)
                .hold_slow_threshold(Duration::from_millis(500))
                .cancel_running()
        });
        let works =
            async move |db: DbSession| drop(db.query_all_raw(sleep(kind, 10.0)).await.unwrap());
        let rests = async move |db: DbSession| {
            let mut statement = Box::pin(db.query_all_raw(sleep(kind, 0.1)));
            let polled = futures_util::poll!(&mut statement);
            tokio::time::sleep(Duration::from_secs(10)).await;
            if polled.is_pending() {
                statement.await.unwrap();
            }
        };
        let (works, rests) = tokio::join!(site.call(works), site.call(rests));
        assert_eq!(
            (works.status().as_u16(), rests.status().as_u16()),
            (200, 200),
            "{kind:?}"
        );
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn connects_that_fail_refuse_no_request_while_connections_work() {
    for kind in SERVERS {
        let (site, proxy) = Site::behind_a_proxy(kind).await;
        let (log, _guard) = Log::start();
        let held = site.layer.pool().session().await.unwrap();
        held.execute_unprepared("SELECT 1").await.unwrap();
        proxy.refuse(true);
        let answers = async { join_all((0..30).map(|_| site.call(select))).await };
        let (answers, ()) = tokio::join!(answers, async {
            eventually("the log says so", async || {
                log.lines()
                    .iter()
                    .any(|line| line.contains("no further connection can be opened"))
            })
            .await;
            drop(held);
        });
        assert!(
            answers.iter().all(|answer| answer.status() == 200),
            "{kind:?}"
        );
        proxy.refuse(false);
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn with_nothing_in_use_a_failed_connect_is_down_for_all_who_wait() {
    let (site, proxy) = patient_site(Kind::MySql).await;
    site.db.execute_unprepared("SELECT 1").await.unwrap();
    proxy.cut();
    proxy.refuse(true);
    let sessions = join_all((0..9).map(|_| timeout(BOUND, site.layer.pool().session()))).await;
    for session in sessions {
        let error = session.expect("an answer").map(drop).unwrap_err();
        assert!(error.is_unreachable(), "{error}");
    }
}

#[tokio::test]
async fn a_server_with_no_place_left_is_exhausted_and_those_who_wait_get_what_comes_back() {
    let test = TestDb::new(Kind::MySql).await;
    let observer = test.observer().await.unwrap();
    let user = format!("u{}", std::process::id());
    observer
        .execute_unprepared(&format!("CREATE USER {user} WITH MAX_USER_CONNECTIONS 3"))
        .await
        .unwrap();
    observer
        .execute_unprepared(&format!("GRANT ALL ON *.* TO {user}"))
        .await
        .unwrap();
    let mut options = test.options_at(&test.url().replace("root@", &format!("{user}@")), 8);
    options.connect_lazy(true);
    let db = Database::connect(options).await.unwrap();
    let app = Router::new()
        .route("/", any(select))
        .layer(DbSessionLayer::new(session_pool(db.clone())));
    for _ in 0..3 {
        let answers = join_all((0..20).map(|_| call(app.clone()))).await;
        assert!(answers.iter().all(|answer| answer.status() == 200));
    }
    let pool = pool_with(&db, |pool| pool.acquire_timeout(Duration::from_secs(5)));
    let held = join_all((0..3).map(|_| pool.session())).await;
    assert!(held.iter().all(Result::is_ok));
    let refused = timeout(BOUND, pool.session())
        .await
        .expect("an answer")
        .map(drop)
        .unwrap_err();
    assert!(
        refused.is_exhausted() && !refused.is_unreachable(),
        "{refused}"
    );
    drop((held, pool, app));
    let _ = observer
        .execute_unprepared(&format!("DROP USER {user}"))
        .await;
}

/// A session store that uses the pool of the service: it loads a record before the handler and saves it after.
async fn store(State(pool): State<SessionPool>, request: Request, next: Next) -> Response {
    let load = async || {
        let session = pool.session().await.unwrap();
        session.execute_unprepared("SELECT 1").await.unwrap();
    };
    load().await;
    let response = next.run(request).await;
    load().await;
    response
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_store_on_the_same_pool_costs_no_request() {
    for kind in SERVERS {
        let test = TestDb::new(kind).await;
        let db = test.connect(5).await;
        let pool = pool_with(&db, |pool| pool.acquire_timeout(BOUND));
        let handler = async |tx: DbTx| {
            insert_item(&tx, &crate::support::database::unique_name()).await;
            // Where all can hold a connection, all do before the first of them saves its record.
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        for (inside, lazy) in [(true, true), (true, false), (false, false)] {
            let router = Router::new().route("/", any(handler));
            let store = from_fn_with_state(pool.clone(), store);
            let layer = DbSessionLayer::new(pool.clone());
            let layer = if lazy { layer.lazy() } else { layer };
            let app = if inside {
                router.layer(store).layer(layer)
            } else {
                router.layer(layer).layer(store)
            };
            if inside && !lazy {
                // Where all hold a connection before the store is called, the first one has to show that it wants another.
                assert_eq!(call(app.clone()).await.status(), 200);
            }
            let ok = AtomicUsize::new(0);
            stream::iter(0..100)
                .for_each_concurrent(20, async |_| {
                    let status = call(app.clone()).await.status();
                    ok.fetch_add(usize::from(status == 200), Ordering::Relaxed);
                })
                .await;
            assert_eq!(
                ok.into_inner(),
                100,
                "{kind:?}, inside: {inside}, lazy: {lazy}"
            );
        }
    }
}

#[tokio::test]
async fn every_duration_is_fine_for_every_setting_and_for_close() {
    for time in [
        Duration::MAX,
        Duration::MAX - Duration::from_secs(1),
        Duration::ZERO,
    ] {
        for kind in Kind::ALL {
            let test = TestDb::new(kind).await;
            let db = test.connect(2).await;
            let hold = time.max(Duration::from_secs(3600));
            let pool = pool_with(&db, |pool| {
                let pool = pool
                    .release_timeout(time)
                    .commit_timeout(time)
                    .hold_slow_threshold(hold)
                    .hold_timeout(hold);
                if time.is_zero() {
                    pool
                } else {
                    pool.acquire_timeout(time)
                }
            });
            let held = pool.session().await.unwrap();
            held.execute_unprepared("SELECT 1").await.unwrap();
            let closing = tokio::spawn({
                let pool = pool.clone();
                async move { pool.close(Duration::ZERO).await }
            });
            eventually("it is cut off", async || {
                held.execute_unprepared("SELECT 1").await.is_err()
            })
            .await;
            drop(held);
            timeout(BOUND, closing)
                .await
                .expect("it closes")
                .expect("no panic");
            assert_eq!(
                timeout(BOUND, pool.close(time))
                    .await
                    .expect("it is closed"),
                0
            );
        }
    }
}

#[test]
fn outside_of_a_runtime_nothing_panics() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for kind in SERVERS {
        let (test, pool) = runtime.block_on(async {
            let test = TestDb::new(kind).await;
            let pool = session_pool(test.connect(2).await);
            (test, pool)
        });
        let error = pool
            .ping()
            .now_or_never()
            .expect("an answer at once")
            .unwrap_err();
        assert!(error.to_string().contains("runtime"), "{error}");
        assert!(
            pool.session()
                .now_or_never()
                .expect("an answer at once")
                .is_err()
        );
        assert_eq!(pool.close(Duration::from_secs(1)).now_or_never(), Some(0));
        assert!(pool.is_closed());
        runtime.block_on(async { drop(test) });
    }
}

#[tokio::test]
async fn a_transaction_that_begins_on_another_connection_waits_for_no_second_session() {
    let (site, proxy) = Site::behind_a_proxy(Kind::Postgres).await;
    let site = site.pooled(|pool| pool.direct_handoff(true));
    let (log, _guard) = Log::start();
    drop(site.layer.pool().session().await.unwrap());
    proxy.cut();
    let answer = site
        .call(async |tx: DbTx| insert_item(&tx, "there").await)
        .await;
    assert_eq!(
        (answer.status().as_u16(), site.count("there").await),
        (200, 1)
    );
    let lines = log.lines();
    assert!(
        !lines.iter().any(|line| line.contains("second session")),
        "{lines:?}"
    );
}

#[tokio::test]
async fn a_test_that_keeps_its_session_is_told_so() {
    let database = TestDb::new(Kind::SqliteMemory).await;
    let db = database.connect(1).await;
    let builder = SessionPool::builder(db).acquire_timeout(Duration::from_secs(1));
    let test = TestPool::begin(builder).await.unwrap();
    let own = test.session().await.unwrap();
    let error = test.pool().session().await.map(drop).unwrap_err();
    assert!(
        error.is_exhausted() && error.to_string().contains("TestPool"),
        "{error}"
    );
    drop(own);
    assert!(test.pool().session().await.is_ok());
}

/// Nothing but the end of a session of its own could end a test's wait.
#[tokio::test]
async fn a_test_that_keeps_its_own_session_is_told_so_at_once() {
    for kind in Kind::ALL {
        let database = TestDb::new(kind).await;
        let builder = SessionPool::builder(database.connect(2).await).acquire_timeout(LONG);
        let test = TestPool::begin(builder).await.unwrap();
        let own = test.session().await.unwrap();
        own.execute_unprepared("SELECT 1").await.unwrap();
        let told = |error: Error| error.is_exhausted() && error.to_string().contains("TestPool");
        let second = timeout(BOUND, test.pool().session())
            .await
            .expect("at once")
            .map(drop);
        assert!(told(second.unwrap_err()), "{kind:?}");
        let again = timeout(BOUND, test.session())
            .await
            .expect("at once")
            .map(drop);
        assert!(told(again.unwrap_err()), "{kind:?}");
        let pool = test.pool();
        let work = pool.transaction(async |tx| tx.execute_unprepared("SELECT 1").await);
        assert!(
            timeout(BOUND, work).await.expect("at once").is_err(),
            "{kind:?}"
        );
        for lazy in [false, true] {
            let layer = DbSessionLayer::new(test.pool());
            let layer = if lazy { layer.lazy() } else { layer };
            let handler = async |db: DbSession| match db.execute_unprepared("SELECT 1").await {
                Ok(_) => StatusCode::OK,
                Err(_) => StatusCode::INTERNAL_SERVER_ERROR,
            };
            let app = Router::new().route("/", any(handler)).layer(layer);
            assert_eq!(call(app.clone()).await.status(), 503, "{kind:?}");
            // As a server does it.
            assert_eq!(
                tokio::spawn(call(app)).await.unwrap().status(),
                503,
                "{kind:?}"
            );
        }
        // A job of the service may wait until the test is ready.
        let pool = test.pool();
        let job = tokio::spawn(async move { pool.session().await.map(drop) });
        eventually("it waits", async || test.pool().status().pending == 1).await;
        drop(own);
        timeout(BOUND, job)
            .await
            .expect("its turn")
            .unwrap()
            .unwrap();
        assert!(test.session().await.is_ok());
        let _own = test.session().await.unwrap();
        assert!(
            timeout(BOUND, test.rollback())
                .await
                .expect("at once")
                .is_err(),
            "{kind:?}"
        );
    }
}

/// On a clock that stands still unless all wait.
#[tokio::test]
async fn the_reason_of_a_failed_wait_is_told_when_that_is_over_and_not_later() {
    for (wait, is_unreachable) in [(5000, true), (600, false)] {
        let (site, proxy) = patient_site(Kind::Postgres).await;
        let pool = pool_with(&site.db, |pool| {
            pool.acquire_timeout(Duration::from_millis(wait))
        });
        proxy.cut();
        eventually("nothing is open", async || proxy.connections() == 0).await;
        proxy.mute(true);
        tokio::time::pause();
        let started = tokio::time::Instant::now();
        let error = pool.session().await.map(drop).unwrap_err();
        let took = started.elapsed().as_millis() as u64;
        tokio::time::resume();
        assert!((wait..wait + 100).contains(&took), "{took} ms");
        assert_eq!(
            (error.is_unreachable(), error.is_exhausted()),
            (is_unreachable, !is_unreachable),
            "{error}"
        );
        assert!(
            is_unreachable || error.to_string().contains("log-ins"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn idle_connections_are_not_pinged_where_the_driver_is_told_not_to() {
    use sea_orm::sqlx::postgres::PgPoolOptions;
    let test = TestDb::new(Kind::Postgres).await;
    let proxy = Proxy::start(port_of(test.url())).await;
    let options = PgPoolOptions::new()
        .max_connections(3)
        .acquire_timeout(LONG)
        .test_before_acquire(false);
    // A hook that takes its time, as a ping of a connection would that is half-open.
    let options = options.before_acquire(|_, _| {
        async {
            tokio::time::sleep(Duration::from_millis(1500)).await;
            Ok(true)
        }
        .boxed()
    });
    let driver = options.connect(&proxy.url(test.url())).await.unwrap();
    let db = sea_orm::SqlxPostgresConnector::from_sqlx_postgres_pool(driver.clone());
    let all = join_all((0..3).map(|_| driver.acquire())).await;
    drop(all);
    eventually("all are idle", async || driver.num_idle() == 3).await;
    let (requests, accepted) = (proxy.requests(), proxy.accepted());
    let session = pool_with(&db, |pool| pool.acquire_timeout(LONG))
        .session()
        .await
        .unwrap();
    assert_eq!((proxy.requests(), proxy.accepted()), (requests, accepted));
    drop(session);
}

#[tokio::test]
async fn connects_that_the_driver_repeats_keep_nobody_from_what_is_idle() {
    let test = TestDb::new(Kind::Postgres).await;
    let observer = test.observer().await.unwrap();
    let role = crate::support::database::unique_name();
    observer
        .execute_unprepared(&format!("CREATE ROLE {role} LOGIN CONNECTION LIMIT 2"))
        .await
        .unwrap();
    let mut options = test.options_at(&test.url().replace("postgres@", &format!("{role}@")), 5);
    // sqlx goes on trying for so long where the server has no place left.
    options
        .acquire_timeout(Duration::from_secs(600))
        .min_connections(0)
        .connect_lazy(true);
    let db = Database::connect(options).await.unwrap();
    let pool = pool_with(&db, |pool| pool.acquire_timeout(Duration::from_secs(600)));
    let app = Router::new()
        .route("/", any(select))
        .layer(DbSessionLayer::new(pool.clone()));
    let burst = join_all((0..6).map(|_| call(app.clone()))).await;
    assert!(burst.iter().all(|answer| answer.status() == 200));
    // What is warm is over: the connections lie in the driver's pool.
    eventually("nothing is warm", async || {
        pool.status().idle == 0 && db.get_postgres_connection_pool().num_idle() == 2
    })
    .await;
    assert!(
        pool.status().acquiring > 0,
        "some are still being opened: {:?}",
        pool.status()
    );
    for _ in 0..5 {
        assert_eq!(call(app.clone()).await.status(), 200);
    }
    drop((app, pool));
    let _ = timeout(BOUND, db.close()).await;
}

#[tokio::test]
async fn a_server_that_ends_every_connect_is_not_stormed_with_them() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!(
        "postgres://nobody@{}/none?sslmode=disable",
        listener.local_addr().unwrap()
    );
    let connects = Arc::new(AtomicUsize::new(0));
    let counted = connects.clone();
    let server = tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            drop(connection);
        }
    });
    let mut options = ConnectOptions::new(url);
    options
        .max_connections(10)
        .min_connections(0)
        .connect_lazy(true)
        .sqlx_logging(false);
    let pool = session_pool(Database::connect(options).await.unwrap());
    let asked = AtomicUsize::new(0);
    join_all((0..20).map(|_| async {
        for _ in 0..20 {
            asked.fetch_add(1, Ordering::SeqCst);
            assert!(pool.session().await.is_err());
        }
    }))
    .await;
    server.abort();
    let (connects, asked) = (
        connects.load(Ordering::SeqCst),
        asked.load(Ordering::SeqCst),
    );
    assert!(
        connects <= 2 * asked,
        "{connects} connects for {asked} sessions"
    );
}
