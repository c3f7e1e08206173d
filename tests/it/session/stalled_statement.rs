//! G17: a statement whose answer is lost ends with an error, and one that is only slow is left alone.

use std::{pin::pin, time::Duration};

use futures_util::future::join_all;
use http::StatusCode;
use sea_orm::{ConnectionTrait, Database, DbErr, Statement};
use tokio::time::timeout;
use tower_sea_orm::{DbSession, DbTx, Error};

use crate::{
    log::Log,
    support::{
        database::{Kind, SERVERS, insert_item},
        network::{
            RUNS, all_idle, all_run, all_used, assert_all_ok, patient_site, select, upload, watched,
        },
        site::{BOUND, SIZE, call},
        statements::{running, sleep, slow_insert},
        wait::{LONG, eventually},
    },
};

/// The server has ended what runs, and the network has lost its answer.
#[tokio::test]
async fn a_statement_whose_answer_is_lost_is_an_error_that_closes() {
    for kind in SERVERS {
        for (in_transaction, writes) in [(false, false), (false, true), (true, false)] {
            let (site, proxy) = patient_site(kind).await;
            let site = site.pooled(|pool| watched(pool, true));
            let (log, _guard) = Log::start();
            let handler = async move |db: DbSession| {
                if in_transaction {
                    db.tx();
                    insert_item(&db, "lost").await;
                }
                let statement = if writes {
                    slow_insert(kind, "written", RUNS)
                } else {
                    sleep(kind, RUNS)
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
                line.contains("result never arrived") && line.contains("statement=")
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
async fn waiters_are_served_if_a_firewall_forgot_the_connections_in_use() {
    for kind in SERVERS {
        for (in_transaction, writes) in [(false, false), (false, true), (true, false), (true, true)]
        {
            let case = format!("{kind:?}, in a transaction: {in_transaction}, writes: {writes}");
            let (site, proxy) = patient_site(kind).await;
            let site = site.pooled(|pool| pool.acquire_timeout(LONG));
            let (log, _guard) = Log::start();
            let handler = move |n: u32, db: DbSession| async move {
                if in_transaction {
                    db.tx();
                    insert_item(&db, &format!("lost {n}")).await;
                }
                let statement = if writes {
                    slow_insert(kind, &format!("written {n}"), RUNS)
                } else {
                    sleep(kind, RUNS)
                };
                match db.execute_raw(statement).await {
                    Err(error)
                        if Error::of(&error).is_some_and(|error| error.is_connection_lost()) =>
                    {
                        StatusCode::BAD_GATEWAY
                    }
                    _ => StatusCode::OK,
                }
            };
            let held: Vec<_> = (0..SIZE)
                .map(|n| tokio::spawn(call(site.app(move |db: DbSession| handler(n, db)))))
                .collect();
            all_run(&site).await;
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
            let is_told = |line: &String| line.contains("result never arrived");
            assert!(lines.iter().any(is_told), "{case}: {lines:?}");
            // The server finished what was written outside a transaction, and rolls the others back.
            for n in 0..SIZE {
                let (lost, written) = (format!("lost {n}"), format!("written {n}"));
                eventually(&case, async || {
                    let stands = [false, writes && !in_transaction];
                    site.seen([&*lost, &*written]).await == stands
                })
                .await;
            }
            // On the server, the transactions stay open until it misses their client.
            eventually("their places are free", async || {
                site.layer.pool().status().used == 0
            })
            .await;
        }
    }
}

#[tokio::test]
async fn turned_away_requests_have_lost_statements_looked_for() {
    for kind in SERVERS {
        let (site, proxy) = patient_site(kind).await;
        let site = site.pooled(|pool| pool.acquire_timeout(LONG).max_pending(0));
        let sleeps = async move |db: DbSession| drop(db.execute_raw(sleep(kind, RUNS)).await);
        let held: Vec<_> = (0..SIZE)
            .map(|_| tokio::spawn(call(site.app(sleeps))))
            .collect();
        all_run(&site).await;
        proxy.silence();
        eventually("one is served", async || {
            site.call(select).await.status() == 200
        })
        .await;
        for request in held {
            request.await.unwrap();
        }
        site.assert_whole().await;
    }
}

/// The server, which has not received it yet, has nothing to do meanwhile.
#[tokio::test]
async fn a_statement_that_is_still_being_sent_is_not_taken_for_lost() {
    for cancels in [false, true] {
        for kind in SERVERS {
            let (site, proxy) = patient_site(kind).await;
            let site = site.pooled(|pool| watched(pool, cancels));
            all_idle(&site).await;
            proxy.hold_back("upload");
            let uploads =
                async |db: DbSession| assert!(upload(&db, 120_000).await.unwrap().is_some());
            let uploading = join_all((0..SIZE).map(|_| site.call(uploads)));
            let (answers, next) = tokio::join!(uploading, async {
                let waiting = async {
                    all_used(&site).await;
                    site.call(select).await
                };
                let arrives = async {
                    tokio::time::sleep(Duration::from_secs(8)).await;
                    proxy.let_go();
                };
                tokio::join!(waiting, arrives).0
            });
            assert_all_ok(&answers, &next, &format!("{kind:?}, cancels: {cancels}"));
            site.assert_whole().await;
        }
    }
}

/// The statements came by one address of a gateway, and all that is idle there belongs to another process.
#[tokio::test]
async fn a_statement_from_another_address_is_not_taken_for_lost() {
    // The tests' PostgreSQL lets in 127.0.0.1 alone.
    let kind = Kind::MySql;
    let (site, proxy) = patient_site(kind).await;
    site.run("CREATE USER IF NOT EXISTS root@'127.0.0.3'").await;
    site.run("GRANT ALL ON *.* TO root@'127.0.0.3'").await;
    let site = site.pooled(|pool| pool.acquire_timeout(LONG));
    let sleeps = async move |db: DbSession| drop(db.query_all_raw(sleep(kind, 8.0)).await.unwrap());
    let sleeping = join_all((0..SIZE).map(|_| site.call(sleeps)));
    let (slow, next) = tokio::join!(sleeping, async {
        all_run(&site).await;
        proxy.connect_from(3);
        let others = site.test.options_at(&proxy.url(site.test.url()), SIZE);
        let others = Database::connect(others).await.unwrap();
        let works = (0..SIZE).map(|_| others.query_all_raw(sleep(kind, 0.2)));
        assert!(join_all(works).await.iter().all(Result::is_ok));
        let next = site.call(select).await;
        others.close().await.unwrap();
        next
    });
    assert_all_ok(&slow, &next, &format!("{kind:?}"));
    site.assert_whole().await;
}

/// Nothing can be asked about a connection whose process is not known.
#[tokio::test]
async fn a_connection_whose_process_id_never_arrives_is_closed() {
    for (kind, asks) in [
        (Kind::Postgres, "backend_start"),
        (Kind::MySql, "CONNECTION_ID()"),
    ] {
        let (site, proxy) = patient_site(kind).await;
        let site = site.pooled(|pool| pool.acquire_timeout(LONG).cancel_running());
        all_idle(&site).await;
        let route = site.layer.pool().session().await.unwrap();
        route.execute_unprepared("SELECT 1").await.unwrap();
        drop(route);
        all_idle(&site).await;
        proxy.hold_back(asks);
        let selects = async |db: DbSession| match db.execute_unprepared("SELECT 1").await {
            Ok(_) => StatusCode::OK,
            Err(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let answer = timeout(BOUND, site.call(selects)).await.expect("an answer");
        assert!(
            answer.status().is_server_error(),
            "{kind:?}: {}",
            answer.status()
        );
        proxy.let_go();
        assert_eq!(site.call(select).await.status(), 200, "{kind:?}");
        site.assert_whole().await;
    }
}

/// A request waits for one of the connections, and the server is at work for all but one.
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
            all_used(&site).await;
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
            all_used(&site).await;
            site.call(select).await
        });
        proxy.delay_replies(Duration::ZERO);
        assert_all_ok(&answers, &next, &format!("{kind:?} {cancels}"));
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn a_commit_that_is_not_answered_ends_as_unknown() {
    for kind in SERVERS {
        let (site, proxy) = patient_site(kind).await;
        let site = site.pooled(|pool| watched(pool, true).commit_timeout(LONG));
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
async fn a_statement_that_is_running_or_unpolled_is_left_alone() {
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
