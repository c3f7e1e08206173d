//! G17: what the server still says of a connection that the network has lost, and what becomes of its other end.

use std::time::Duration;

use futures_util::future::join_all;
use http::StatusCode;
use sea_orm::{ConnectionTrait, Database};
use tokio::time::sleep as pause;
use tower_sea_orm::DbSession;

use crate::{
    log::Log,
    support::{
        database::{Kind, SERVERS, TestDb},
        network::{
            RUNS, all_idle, all_run, all_used, assert_all_ok, patient_site, patient_site_at,
            select, sleeping, upload, watched,
        },
        pool::pool_with,
        servers::OwnServer,
        site::{SIZE, call, port_of, value},
        statements::{insert, running, sleep},
        wait::{LONG, eventually},
        wire::Proxy,
    },
};

/// The driver's goodbye would wait for a send buffer that nothing empties any more.
#[tokio::test]
async fn an_upload_that_is_lost_half_way_frees_its_place_at_once() {
    let (log, _guard) = Log::start();
    join_all(SERVERS.map(lose_uploads)).await;
    let lines = log.lines();
    let tells = |part: &str| lines.iter().any(|line| line.contains(part));
    assert!(tells("result never arrived"), "{lines:?}");
    assert!(!tells("gave up on a connection attempt"), "{lines:?}");
}

/// Loses a pool's connections while each sends more than the buffers on its way take.
async fn lose_uploads(kind: Kind) {
    let test = TestDb::new(kind).await;
    let proxy = Proxy::narrow(port_of(test.url()));
    let site = patient_site_at(test, &proxy).await;
    let site = site.pooled(|pool| pool.acquire_timeout(LONG));
    all_idle(&site).await;
    proxy.hold_back("upload");
    let uploads = async |db: DbSession| assert!(upload(&db, 180_000).await.is_err());
    let uploading = join_all((0..SIZE).map(|_| site.call(uploads)));
    let (_, next) = tokio::join!(uploading, async {
        all_used(&site).await;
        site.call(select).await
    });
    assert_eq!(next.status(), 200, "{kind:?}");
}

/// The server would notice that its client is gone after hours.
#[tokio::test]
async fn a_lost_transaction_holds_its_locks_no_longer() {
    const UPDATE: &str = "UPDATE item SET hits = hits + 1 WHERE name = 'contended'";
    for kind in SERVERS {
        let (site, proxy) = patient_site(kind).await;
        let site = site.pooled(|pool| watched(pool, true));
        site.run(&insert("contended")).await;
        let locks = async move |db: DbSession| {
            db.tx();
            db.execute_unprepared(UPDATE).await.unwrap();
            sleeping(db, kind, RUNS).await
        };
        let request = tokio::spawn(call(site.app(locks)));
        eventually("it runs", async || {
            running(site.view(), "sleep(").await == 1
        })
        .await;
        proxy.silence();
        assert_eq!(request.await.unwrap().status(), 502, "{kind:?}");
        let updates = async |db: DbSession| {
            db.execute_unprepared(UPDATE).await.unwrap();
        };
        assert_eq!(site.call(updates).await.status(), 200, "{kind:?}");
        let hits: i32 = value(site.view(), "SELECT hits FROM item").await;
        assert_eq!(hits, 1, "{kind:?}");
        site.assert_whole().await;
    }
}

/// Its processes are gone, and nothing on this side of the network says so.
#[tokio::test]
async fn statements_of_a_server_that_was_restarted_unnoticed_end() {
    for mut server in [OwnServer::postgres(), OwnServer::mysql()] {
        let test = TestDb::on(&server).await;
        let (kind, proxy) = (test.kind, Proxy::start(server.port()).await);
        let site = patient_site_at(test, &proxy)
            .await
            .pooled(|pool| watched(pool, true));
        let sleeps = async move |db: DbSession| sleeping(db, kind, 600.0).await;
        let held: Vec<_> = (0..SIZE)
            .map(|_| tokio::spawn(call(site.app(sleeps))))
            .collect();
        all_run(&site).await;
        pause(Duration::from_secs(1)).await;
        proxy.silence();
        server.stop();
        server.start();
        assert_eq!(site.call(select).await.status(), 200, "{kind:?}");
        for request in held {
            assert_eq!(request.await.unwrap().status(), 502, "{kind:?}");
        }
        site.assert_whole().await;
    }
}

/// A database of the same name on another server.
async fn twin_of(test: &TestDb, server: &OwnServer) -> String {
    let name = test.url().rsplit_once('/').unwrap().1;
    let root = Database::connect(server.url()).await.unwrap();
    let sql = format!("CREATE DATABASE {name}");
    root.execute_unprepared(&sql).await.unwrap();
    root.close().await.unwrap();
    let url = server.url();
    format!("{}/{name}", url.rsplit_once('/').unwrap().0)
}

/// It was started after the statements, does nothing, and is all that the name leads to by now. With `cancel_running`,
/// another process of the service has connections there.
#[tokio::test]
async fn statements_on_another_server_of_the_name_are_left_alone() {
    for kind in SERVERS {
        let new = || match kind {
            Kind::Postgres => OwnServer::postgres(),
            _ => OwnServer::mysql(),
        };
        let (old, mut young) = (new(), new());
        for cancels in [false, true] {
            let test = TestDb::on(&old).await;
            let twin = twin_of(&test, &young).await;
            let proxy = Proxy::start(old.port()).await;
            let site = patient_site_at(test, &proxy)
                .await
                .pooled(|pool| watched(pool, cancels));
            let sleeps = async move |db: DbSession| sleeping(db, kind, 14.0).await;
            let slow = join_all((0..SIZE).map(|_| site.call(sleeps)));
            let (slow, next) = tokio::join!(slow, async {
                all_run(&site).await;
                pause(Duration::from_secs(1)).await;
                young.stop();
                young.start();
                proxy.lead_to(young.port());
                let others = Database::connect(site.test.options_at(&twin, SIZE)).await;
                let others = others.unwrap();
                if cancels {
                    let works = (0..SIZE).map(|_| others.execute_raw(sleep(kind, 0.2)));
                    assert!(join_all(works).await.iter().all(Result::is_ok));
                }
                let next = site.call(select).await;
                others.close().await.unwrap();
                next
            });
            assert_all_ok(&slow, &next, &format!("{kind:?}, cancels: {cancels}"));
        }
    }
}

/// The server shows it with another database than its idle neighbours, which belong to another process of the service.
#[tokio::test]
async fn a_statement_in_another_database_is_not_taken_for_lost() {
    let kind = Kind::MySql;
    for cancels in [false, true] {
        let (site, _proxy) = patient_site(kind).await;
        let site = site.pooled(|pool| watched(pool, cancels));
        let others = Database::connect(site.test.options(SIZE)).await.unwrap();
        let works = (0..SIZE).map(|_| others.execute_raw(sleep(kind, 0.2)));
        assert!(join_all(works).await.iter().all(Result::is_ok));
        let sleeps = async move |db: DbSession| {
            db.execute_unprepared("USE information_schema")
                .await
                .unwrap();
            sleeping(db, kind, 8.0).await
        };
        let slow = join_all((0..SIZE).map(|_| site.call(sleeps)));
        let (slow, next) = tokio::join!(slow, async {
            all_used(&site).await;
            site.call(select).await
        });
        assert_all_ok(&slow, &next, &format!("cancels: {cancels}"));
        others.close().await.unwrap();
    }
}

/// The short statements of another process, and the questions of another pool that has lost all its connections as well.
#[tokio::test]
async fn busy_neighbours_do_not_keep_lost_statements_from_their_end() {
    for kind in SERVERS {
        let (site, proxy) = patient_site(kind).await;
        let site = site.pooled(|pool| pool.acquire_timeout(LONG));
        let busy = Database::connect(site.test.options(2)).await.unwrap();
        let neighbours: Vec<_> = (0..2)
            .map(|_| {
                let busy = busy.clone();
                tokio::spawn(async move {
                    loop {
                        busy.execute_raw(sleep(kind, 0.05)).await.unwrap();
                    }
                })
            })
            .collect();
        let own = site.test.options_at(&proxy.url(site.test.url()), SIZE);
        let own = Database::connect(own).await.unwrap();
        let beside = pool_with(&own, |pool| pool.acquire_timeout(LONG));
        let lost: Vec<_> = (0..SIZE)
            .map(|_| {
                let beside = beside.clone();
                tokio::spawn(async move {
                    let session = beside.session().await.unwrap();
                    session.execute_raw(sleep(kind, RUNS)).await.is_err()
                })
            })
            .collect();
        let sleeps = async move |db: DbSession| sleeping(db, kind, RUNS).await;
        let held: Vec<_> = (0..SIZE)
            .map(|_| tokio::spawn(call(site.app(sleeps))))
            .collect();
        eventually("all are in use", async || {
            [site.layer.pool(), &beside].map(|pool| pool.status().used) == [SIZE; 2]
        })
        .await;
        pause(Duration::from_millis(100)).await;
        proxy.silence();
        let (next, other) = tokio::join!(site.call(select), beside.session());
        assert_eq!((next.status().as_u16(), other.is_ok()), (200, true));
        for request in held {
            assert_eq!(request.await.unwrap().status(), 502, "{kind:?}");
        }
        for statement in lost {
            assert!(statement.await.unwrap(), "{kind:?}");
        }
        neighbours.iter().for_each(|neighbour| neighbour.abort());
        site.assert_whole().await;
    }
}

/// Nothing can be asked about a connection whose process is not known yet.
#[tokio::test]
async fn a_connection_that_is_lost_while_it_is_set_up_is_given_up() {
    let (site, proxy) = patient_site(Kind::MySql).await;
    let site = site.pooled(|pool| pool.acquire_timeout(LONG).cancel_running());
    proxy.hold_back("completion_type");
    let selects = async |db: DbSession| match db.execute_unprepared("SELECT 1").await {
        Ok(_) => StatusCode::OK,
        Err(_) => StatusCode::BAD_GATEWAY,
    };
    assert_eq!(site.call(selects).await.status(), 502);
    proxy.let_go();
    assert_eq!(site.call(select).await.status(), 200);
    site.assert_whole().await;
}
