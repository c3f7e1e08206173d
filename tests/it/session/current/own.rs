//! Outside a request, with `or_own_session`.

use futures_util::StreamExt;
use http::StatusCode;
use sea_orm::{ConnectionTrait, Statement, StreamTrait, TransactionSession, TransactionTrait};
use tower_sea_orm::{CurrentSession, DbTx};

use super::{add, repository};
use crate::support::{
    database::{Kind, unique_name},
    site::{Site, value},
    wait::eventually,
};

async fn sites() -> Vec<(Site, CurrentSession)> {
    let mut sites = Vec::new();
    for kind in Kind::ALL {
        let site = Site::new(kind).await;
        let db = CurrentSession::new(site.layer.pool().clone()).or_own_session();
        sites.push((site, db));
    }
    sites
}

fn used(site: &Site) -> u32 {
    site.layer.pool().status().used
}

#[tokio::test]
async fn a_call_has_a_session_of_its_own_and_gives_it_back() {
    for (site, db) in sites().await {
        let items = repository(&db);
        let name = unique_name();
        let task = tokio::spawn(async move {
            items.add(name.clone()).await.unwrap();
            items.count(name).await
        });
        assert_eq!(task.await.unwrap(), 1);
        eventually("no session is out", async || used(&site) == 0).await;
        // An error of the statement is no other one.
        db.execute_unprepared("nonsense").await.unwrap_err();
        eventually("no session is out", async || used(&site) == 0).await;
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn a_transaction_has_its_session_until_its_end() {
    for (site, db) in sites().await {
        let names = [(); 3].map(|()| unique_name());
        let [kept, undone, dropped] = names.clone();
        let transaction = db.begin().await.unwrap();
        add(&transaction, &kept).await;
        assert_eq!(used(&site), 1);
        transaction.commit().await.unwrap();
        let transaction = db.begin().await.unwrap();
        add(&transaction, &undone).await;
        TransactionSession::rollback(transaction).await.unwrap();
        let transaction = db.begin().await.unwrap();
        add(&transaction, &dropped).await;
        drop(transaction);
        eventually("no session is out", async || used(&site) == 0).await;
        let names = names.each_ref().map(String::as_str);
        assert_eq!(
            site.seen(names).await,
            [true, false, false],
            "{:?}",
            site.kind()
        );
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn a_stream_has_its_session_until_it_is_dropped() {
    for (site, db) in sites().await {
        let select = || Statement::from_string(db.backend(), "SELECT 1 UNION SELECT 2");
        let mut rows = db.stream_raw(select()).await.unwrap();
        assert!(rows.next().await.unwrap().is_ok());
        assert_eq!(used(&site), 1);
        assert!(rows.next().await.unwrap().is_ok());
        assert!(rows.next().await.is_none());
        drop(rows);
        // Half read.
        let mut rows = db.stream_raw(select()).await.unwrap();
        assert!(rows.next().await.unwrap().is_ok());
        drop(rows);
        eventually("no session is out", async || used(&site) == 0).await;
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn in_a_request_the_requests_session_is_used() {
    for (site, db) in sites().await {
        let name = unique_name();
        let items = repository(&db);
        let (added, pool) = (name.clone(), site.layer.pool().clone());
        let response = site
            .call(async move |_: DbTx| {
                items.add(added).await.unwrap();
                assert_eq!(pool.status().used, 1);
                assert_eq!(value::<i64>(&db, "SELECT COUNT(*) FROM item").await, 1);
                StatusCode::CONFLICT
            })
            .await;
        assert_eq!(response.status(), StatusCode::CONFLICT);
        assert_eq!(site.count(&name).await, 0);
        site.assert_whole().await;
    }
}
