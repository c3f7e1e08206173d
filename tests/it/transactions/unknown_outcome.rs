//! G7: COMMIT was sent and its answer never arrived. The outcome is unknown, and the response says so.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::response::Response;
use futures_util::{FutureExt, pin_mut, select};
use http::StatusCode;
use sea_orm::{ConnectionTrait, TransactionTrait};
use tower_sea_orm::{DbSession, DbTx};

use crate::support::{
    database::{Kind, SERVERS, insert_item},
    site::{BOUND, Site, call, known, outcome, retry_after, value},
    wait::eventually,
};

/// The hooks that ran.
#[derive(Clone, Default)]
struct Hooks(Arc<[AtomicBool; 2]>);

impl Hooks {
    fn register(&self, tx: &DbTx) {
        let (committed, rolled_back) = (self.0.clone(), self.0.clone());
        tx.after_commit(async move { committed[0].store(true, Ordering::SeqCst) })
            .unwrap();
        tx.after_rollback(async move { rolled_back[1].store(true, Ordering::SeqCst) })
            .unwrap();
    }

    fn ran(&self) -> [bool; 2] {
        [
            self.0[0].load(Ordering::SeqCst),
            self.0[1].load(Ordering::SeqCst),
        ]
    }
}

#[track_caller]
fn assert_unknown(response: &Response) {
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(retry_after(response), None);
    assert!(outcome(response).is_unknown() && !outcome(response).is_committed());
    assert!(outcome(response).error().unwrap().is_outcome_unknown());
}

#[tokio::test]
async fn a_commit_that_took_effect_unheard_is_unknown() {
    for kind in SERVERS {
        let (site, proxy) = Site::behind_a_proxy(kind).await;
        let (proxy, hooks) = (Arc::new(proxy), Hooks::default());
        let request = call(site.app({
            let (proxy, hooks) = (proxy.clone(), hooks.clone());
            async move |tx: DbTx| {
                hooks.register(&tx);
                insert_item(&tx, "there").await;
                // From here on, the server is heard too late.
                proxy.delay_replies(Duration::from_secs(10));
            }
        }));
        let cut = async {
            eventually("the COMMIT took effect", async || {
                site.count("there").await == 1
            })
            .await;
            proxy.cut();
        };
        let (response, ()) = tokio::join!(request, cut);
        // Not before the connection is gone: its answer would get through.
        proxy.delay_replies(Duration::ZERO);
        assert_unknown(&response);
        assert_eq!(site.count("there").await, 1, "{kind:?}");
        site.assert_whole().await;
        assert_eq!(
            hooks.ran(),
            [false, false],
            "{kind:?}: nobody knows which ones"
        );
    }
}

#[tokio::test]
async fn a_commit_on_a_frozen_server_is_unknown_within_the_commit_timeout() {
    for kind in SERVERS {
        let (site, proxy) = Site::behind_a_proxy(kind).await;
        let site = site.pooled(|pool| pool.commit_timeout(Duration::from_millis(300)));
        let (proxy, hooks) = (Arc::new(proxy), Hooks::default());
        let response = site
            .call({
                let (proxy, hooks) = (proxy.clone(), hooks.clone());
                async move |tx: DbTx| {
                    hooks.register(&tx);
                    insert_item(&tx, "either").await;
                    proxy.reset_count();
                    proxy.freeze();
                }
            })
            .await;
        assert_unknown(&response);
        eventually("the slot is free", async || {
            site.layer.pool().status().used == 0
        })
        .await;
        proxy.thaw();
        eventually("the connection is closed", async || {
            proxy.connections() <= 1
        })
        .await;
        assert!(
            proxy.requests() <= 1,
            "{kind:?}: the COMMIT was sent {} times",
            proxy.requests()
        );
        site.assert_whole().await;
        assert_eq!(
            hooks.ran(),
            [false, false],
            "{kind:?}: nobody knows which ones"
        );
    }
}

#[tokio::test]
async fn a_backend_ended_in_the_midst_of_commit_is_unknown() {
    for cut in [false, true] {
        let (site, proxy) = Site::behind_a_proxy(Kind::Postgres).await;
        site.run(
            "CREATE FUNCTION pause() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(4); RETURN NULL; END'; \
             CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON item DEFERRABLE INITIALLY DEFERRED \
             FOR EACH ROW WHEN (NEW.name = 'slow') EXECUTE FUNCTION pause()",
        )
        .await;
        let hooks = Hooks::default();
        let request = call(site.app({
            let hooks = hooks.clone();
            async move |tx: DbTx| {
                hooks.register(&tx);
                insert_item(&tx, "slow").await;
            }
        }))
        .fuse();
        pin_mut!(request);
        let running = "SELECT count(*) FROM pg_stat_activity \
                       WHERE datname = current_database() AND state = 'active' AND query = 'COMMIT'";
        let mut committing = Box::pin(
            eventually("the COMMIT runs", async || {
                value::<i64>(site.view(), running).await == 1
            })
            .fuse(),
        );
        select! {
            response = request => panic!("answered before its end: {response:?}"),
            () = committing => {}
        }
        if cut {
            proxy.cut();
        } else {
            let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                       WHERE datname = current_database() AND query = 'COMMIT'";
            site.view().execute_unprepared(end).await.unwrap();
        }
        assert_unknown(&request.await);
        if cut {
            eventually("the server has finished nevertheless", async || {
                site.count("slow").await == 1
            })
            .await;
        } else {
            assert_eq!(site.count("slow").await, 0);
        }
        site.assert_whole().await;
        assert_eq!(hooks.ran(), [false, false]);
    }
}

#[tokio::test]
async fn an_early_commit_lost_in_the_network_ends_the_request_with_an_error() {
    for kind in SERVERS {
        let (site, proxy) = Site::behind_a_proxy(kind).await;
        let (proxy, hooks) = (Arc::new(proxy), Hooks::default());
        let response = site
            .call({
                let (proxy, hooks) = (proxy.clone(), hooks.clone());
                async move |tx: DbTx| {
                    hooks.register(&tx);
                    insert_item(&tx, "either").await;
                    proxy.cut();
                    let error = known(tx.commit().await);
                    assert!(error.is_outcome_unknown());
                    known(
                        tx.execute_unprepared("INSERT INTO item (name) VALUES ('no')")
                            .await,
                    );
                }
            })
            .await;
        assert_unknown(&response);
        assert_eq!(site.count("no").await, 0, "{kind:?}");
        site.assert_whole().await;
        assert_eq!(hooks.ran(), [false, false], "{kind:?}");
    }
}

#[tokio::test]
async fn an_unanswered_early_commit_is_unknown_after_the_commit_timeout() {
    for kind in SERVERS {
        for nested in [false, true] {
            let (site, proxy) = Site::behind_a_proxy(kind).await;
            let site = site.pooled(|pool| pool.commit_timeout(Duration::from_millis(300)));
            let proxy = Arc::new(proxy);
            let response = site
                .call({
                    let proxy = proxy.clone();
                    async move |db: DbSession| {
                        if nested {
                            let tx = db.begin().await.unwrap();
                            insert_item(&tx, "either").await;
                            proxy.freeze();
                            assert!(known(tx.commit().await).is_outcome_unknown());
                            return StatusCode::INTERNAL_SERVER_ERROR;
                        }
                        let tx = db.tx();
                        insert_item(&tx, "either").await;
                        proxy.freeze();
                        assert!(known(tx.commit().await).is_outcome_unknown());
                        // Neither of these tells anything of what was lost.
                        known(tx.rollback().await);
                        known(tx.commit().await);
                        StatusCode::OK
                    }
                })
                .await;
            proxy.thaw();
            assert_eq!(
                response.status(),
                StatusCode::INTERNAL_SERVER_ERROR,
                "{kind:?}, {nested}"
            );
            if !nested {
                assert_unknown(&response);
            }
            site.assert_whole().await;
        }
    }
}

#[tokio::test]
async fn an_unknown_outcome_stays_unknown_if_the_answer_comes_late() {
    for kind in SERVERS {
        for status in [StatusCode::OK, StatusCode::CONFLICT] {
            let (site, proxy) = Site::behind_a_proxy(kind).await;
            let site = site.pooled(|pool| {
                pool.commit_timeout(Duration::from_millis(300))
                    .release_timeout(BOUND)
            });
            let proxy = Arc::new(proxy);
            let response = site
                .call({
                    let proxy = proxy.clone();
                    async move |tx: DbTx| {
                        insert_item(&tx, "there").await;
                        proxy.freeze();
                        assert!(known(tx.commit().await).is_outcome_unknown());
                        proxy.thaw();
                        // This waits for the answer.
                        assert!(known(tx.rollback().await).is_outcome_unknown());
                        insert_item(&tx, "next").await;
                        assert!(known(tx.commit().await).is_outcome_unknown());
                        status
                    }
                })
                .await;
            assert_unknown(&response);
            assert_eq!(
                site.seen(["there", "next"]).await,
                [true, false],
                "{kind:?}, {status}"
            );
            site.assert_whole().await;
        }
    }
}

#[tokio::test]
async fn a_rollback_does_not_hide_a_commit_whose_connection_was_lost() {
    for (kind, status) in SERVERS
        .into_iter()
        .flat_map(|kind| [(kind, StatusCode::OK), (kind, StatusCode::CONFLICT)])
    {
        let (site, proxy) = Site::behind_a_proxy(kind).await;
        let proxy = Arc::new(proxy);
        let request = call(site.app({
            let proxy = proxy.clone();
            async move |tx: DbTx| {
                insert_item(&tx, "there").await;
                proxy.delay_replies(Duration::from_secs(10));
                assert!(known(tx.commit().await).is_outcome_unknown());
                assert!(known(tx.rollback().await).is_outcome_unknown());
                assert!(known(tx.commit().await).is_outcome_unknown());
                status
            }
        }));
        let cut = async {
            eventually("the COMMIT took effect", async || {
                site.count("there").await == 1
            })
            .await;
            proxy.cut();
        };
        let (response, ()) = tokio::join!(request, cut);
        proxy.delay_replies(Duration::ZERO);
        assert_unknown(&response);
        site.assert_whole().await;
    }
}
