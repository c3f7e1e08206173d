//! G17: what the server still says of a connection that the network has lost, and what becomes of its other end.

use futures_util::future::join_all;
use sea_orm::{ConnectionTrait, DbBackend, Statement};
use tower_sea_orm::DbSession;

use crate::{
    log::Log,
    support::{
        database::{Kind, SERVERS, TestDb},
        network::{all_idle, patient_site_at, select},
        site::{SIZE, port_of},
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
