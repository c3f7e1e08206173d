//! G17: what the server still says of a connection that the network has lost, and what becomes of its other end.

use std::time::Duration;

use futures_util::future::join_all;
use http::StatusCode;
use sea_orm::{ConnectionTrait, DbBackend, Statement};
use tower_sea_orm::{DbSession, Error};

use crate::{
    log::Log,
    support::{
        database::{Kind, SERVERS, TestDb},
        network::{all_idle, patient_site, patient_site_at, select},
        site::{SIZE, call, port_of, value},
        statements::{insert, running, sleep},
        wait::{LONG, eventually},
        wire::Proxy,
    },
};

/// A statement that takes so long, and its answer: 502 if it was lost.
async fn sleeping(db: DbSession, kind: Kind, seconds: f64) -> StatusCode {
    match db.execute_raw(sleep(kind, seconds)).await {
        Ok(_) => StatusCode::OK,
        Err(error) if Error::of(&error).is_some_and(|error| error.is_connection_lost()) => {
            StatusCode::BAD_GATEWAY
        }
        Err(error) => panic!("{error}"),
    }
}

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
    let uploads = async move |db: DbSession| {
        let sql = match kind.backend() {
            DbBackend::Postgres => "SELECT length($1)",
            _ => "SELECT length(?)",
        };
        let text = "upload".repeat(30_000);
        let statement = Statement::from_sql_and_values(kind.backend(), sql, [text.into()]);
        assert!(db.query_one_raw(statement).await.is_err());
    };
    let uploading = join_all((0..SIZE).map(|_| site.call(uploads)));
    let (_, next) = tokio::join!(uploading, async {
        eventually("all are in use", async || {
            site.layer.pool().status().used == SIZE
        })
        .await;
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
        let site = site.pooled(|pool| {
            pool.acquire_timeout(LONG)
                .hold_slow_threshold(Duration::from_secs(1))
                .cancel_running()
        });
        site.run(&insert("contended")).await;
        let locks = async move |db: DbSession| {
            db.tx();
            db.execute_unprepared(UPDATE).await.unwrap();
            sleeping(db, kind, 1.0).await
        };
        let request = tokio::spawn(call(site.app(locks)));
        eventually("it runs", async || {
            running(site.view(), "sleep(").await == 1
        })
        .await;
        proxy.silence();
        assert_eq!(request.await.unwrap().status(), 502, "{kind:?}");
        let updates = async |db: DbSession| drop(db.execute_unprepared(UPDATE).await.unwrap());
        assert_eq!(site.call(updates).await.status(), 200, "{kind:?}");
        let hits: i32 = value(site.view(), "SELECT hits FROM item").await;
        assert_eq!(hits, 1, "{kind:?}");
        site.assert_whole().await;
    }
}
