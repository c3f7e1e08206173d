//! G20: what may stand is never done again.

use std::{sync::Arc, time::Duration};

use axum::{Router, extract::Request, middleware::Next, response::Response, routing::any};
use http::StatusCode;
use sea_orm::ConnectionTrait;
use tower_sea_orm::{DbSession, DbSessionLayer, DbTx, SessionPool};

use super::{MEETING, Runs, app, app_in, attempts, conflict, retrying, site};
use crate::support::{
    database::{Kind, SERVERS, TestDb, insert_item},
    pool::{opened, session_layer, session_pool},
    requests::{Analytics, Failed},
    site::{Site, call, outcome},
    statements::insert,
    wait::eventually,
};

/// Asserts that a request was served once, and that its client is not asked to send it again.
#[track_caller]
fn assert_served_once(response: &Response, runs: &Runs, what: &str) {
    assert!(
        response.status().is_server_error(),
        "{what}: {}",
        response.status()
    );
    assert_eq!((runs.count(), attempts(response)), (1, 1), "{what}");
}

#[tokio::test]
async fn g20_an_early_commit_forbids_a_retry() {
    for kind in MEETING {
        let (site, runs) = (site(kind).await, Runs::default());
        let (other, counted) = (site.view().clone(), runs.clone());
        let app = app(&site, retrying(), async move |tx: DbTx| {
            counted.note();
            insert_item(&tx, "early").await;
            tx.commit().await?;
            conflict(&tx, &other).await
        });
        let response = call(app).await;
        assert_served_once(&response, &runs, &format!("{kind:?}"));
        assert!(!outcome(&response).is_undone());
        assert_eq!(site.count("early").await, 1);
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn g20_a_statement_outside_the_transaction_forbids_a_retry() {
    for kind in MEETING {
        for releases in [false, true] {
            let (site, runs) = (site(kind).await, Runs::default());
            let (other, counted) = (site.view().clone(), runs.clone());
            let app = app(&site, retrying(), async move |db: DbSession| {
                counted.note();
                insert_item(&db, "before").await;
                if releases {
                    db.release().await?;
                }
                conflict(&db.tx(), &other).await
            });
            let response = call(app).await;
            assert_served_once(&response, &runs, &format!("{kind:?} {releases}"));
            assert_eq!(site.count("before").await, 1);
            site.assert_whole().await;
        }
    }
}

#[tokio::test]
async fn g20_an_unknown_outcome_is_never_retried() {
    for kind in SERVERS {
        let (site, proxy) = Site::behind_a_proxy(kind).await;
        let (proxy, runs) = (Arc::new(proxy), Runs::default());
        let request = call(app(&site, retrying(), {
            let (proxy, runs) = (proxy.clone(), runs.clone());
            async move |tx: DbTx| {
                runs.note();
                insert_item(&tx, "there").await;
                // From here on, the server is heard too late.
                proxy.delay_replies(Duration::from_secs(30));
            }
        }));
        let cut = async {
            let took_effect = async || site.count("there").await == 1;
            eventually("the COMMIT took effect", took_effect).await;
            proxy.cut();
        };
        let (response, ()) = tokio::join!(request, cut);
        proxy.delay_replies(Duration::ZERO);
        assert!(outcome(&response).is_unknown() && !outcome(&response).is_undone());
        assert_served_once(&response, &runs, &format!("{kind:?}"));
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn g20_a_lost_connection_before_commit_is_not_retried() {
    // Undone for certain, but not by a conflict: the next attempt may lose its connection as well.
    for kind in SERVERS {
        let (site, proxy) = Site::behind_a_proxy(kind).await;
        let (proxy, runs) = (Arc::new(proxy), Runs::default());
        let (cut, counted) = (proxy.clone(), runs.clone());
        let response = call(app(&site, retrying(), async move |tx: DbTx| {
            counted.note();
            insert_item(&tx, "lost").await;
            cut.cut();
            tx.execute_unprepared("SELECT 1").await.unwrap_err();
            StatusCode::INTERNAL_SERVER_ERROR
        }))
        .await;
        assert_served_once(&response, &runs, &format!("{kind:?}"));
        assert_eq!(site.count("lost").await, 0);
        site.assert_whole().await;
    }
}

/// A second database's layer, in transactions.
async fn second(kind: Kind) -> (TestDb, DbSessionLayer<Analytics>) {
    let test = TestDb::new(kind).await;
    let pool = session_pool(test.connect(2).await);
    (test, DbSessionLayer::tagged(pool).transaction())
}

#[tokio::test]
async fn g20_a_second_database_that_committed_forbids_a_retry() {
    for is_inside in [true, false] {
        for commits in [true, false] {
            let (site, runs) = (site(Kind::Postgres).await, Runs::default());
            let (_other_db, analytics) = second(Kind::SqliteFile).await;
            let (other, counted) = (site.view().clone(), runs.clone());
            let handler = any(async move |tx: DbTx, second: DbSession<Analytics>| {
                counted.note();
                insert_item(&second, &format!("second {}", counted.count())).await;
                if commits {
                    second.commit().await?;
                }
                if counted.count() == 1 {
                    return conflict(&tx, &other).await;
                }
                Ok(())
            });
            // Whichever layer is the inner one: its response is replaced by the outer one's, extensions and all.
            let app = Router::new().fallback(handler);
            let app = if is_inside {
                app.layer(analytics).layer(site.layer.clone())
            } else {
                app.layer(site.layer.clone()).layer(analytics)
            };
            let response = call(app.layer(retrying())).await;
            let what = format!("inside: {is_inside}, commits: {commits}");
            if commits {
                assert_served_once(&response, &runs, &what);
            } else {
                assert_eq!(
                    (response.status(), runs.count()),
                    (StatusCode::OK, 2),
                    "{what}"
                );
            }
            site.assert_whole().await;
        }
    }
}

#[tokio::test]
async fn g20_an_inner_commit_is_not_forgotten_with_its_response() {
    // The second database commits by its response, which a layer between the two turns into a failure.
    let (site, runs) = (site(Kind::Postgres).await, Runs::default());
    let (_other_db, analytics) = second(Kind::SqliteFile).await;
    let (other, counted) = (site.view().clone(), runs.clone());
    let app = Router::new()
        .fallback(any(async move |second: DbSession<Analytics>| {
            counted.note();
            insert_item(&second, "second").await;
        }))
        .layer(analytics)
        .layer(axum::middleware::from_fn(
            move |tx: DbTx, request: Request, next: Next| {
                let other = other.clone();
                async move {
                    assert!(next.run(request).await.status().is_success());
                    conflict(&tx, &other).await
                }
            },
        ))
        .layer(site.layer.clone())
        .layer(retrying());
    assert_served_once(&call(app).await, &runs, "an inner commit");
    site.assert_whole().await;
}

#[tokio::test]
async fn g20_a_session_beside_that_committed_forbids_a_retry() {
    for kind in SERVERS {
        let (site, runs) = (site(kind).await, Runs::default());
        let (other, counted) = (site.view().clone(), runs.clone());
        let app = app(
            &site,
            retrying(),
            async move |tx: DbTx, pool: SessionPool| {
                let run = counted.note();
                let name = format!("beside {run}");
                let beside = pool.transaction(async |tx| {
                    insert_item(tx, &name).await;
                    Ok::<_, sea_orm::DbErr>(())
                });
                beside.await.unwrap();
                conflict(&tx, &other).await
            },
        );
        assert_served_once(&call(app).await, &runs, &format!("{kind:?}"));
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn g20_a_commit_beside_that_was_left_alone_forbids_a_retry() {
    for kind in SERVERS {
        let (site, proxy) = Site::behind_a_proxy(kind).await;
        site.run(&insert("row")).await;
        let (proxy, runs) = (Arc::new(proxy), Runs::default());
        let (other, counted, held) = (site.view().clone(), runs.clone(), proxy.clone());
        let app = app(
            &site,
            retrying(),
            async move |tx: DbTx, pool: SessionPool| {
                counted.note();
                held.hold_back("COMMIT");
                let beside = pool.transaction(async |tx| {
                    insert_item(tx, "beside").await;
                    Ok::<_, sea_orm::DbErr>(())
                });
                tokio::select! {
                    done = beside => panic!("its COMMIT is held back: {done:?}"),
                    () = eventually("COMMIT is on its way", async || held.held() > 0) => {}
                }
                conflict(&tx, &other).await
            },
        );
        let response = call(app).await;
        assert_served_once(&response, &runs, &format!("{kind:?}"));
        assert_eq!(site.count("beside").await, 0);
        proxy.let_go();
        let is_there = async || site.count("beside").await == 1;
        eventually("the COMMIT took effect after the response", is_there).await;
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn g20_a_session_beside_that_is_still_open_forbids_a_retry() {
    let (site, runs) = (site(Kind::Postgres).await, Runs::default());
    let (other, counted) = (site.view().clone(), runs.clone());
    let kept = Arc::new(std::sync::Mutex::new(Vec::new()));
    let keeps = kept.clone();
    let app = app(&site, retrying(), async move |tx: DbTx| {
        counted.note();
        // A task goes on with it, and may commit whenever it likes.
        let beside = opened(tx.pool()).await;
        keeps.lock().unwrap().push(beside);
        conflict(&tx, &other).await
    });
    let response = call(app).await;
    assert_served_once(&response, &runs, "a session in a task");
    drop(kept.lock().unwrap().pop());
    site.assert_whole().await;
}

#[tokio::test]
async fn g20_an_exhausted_pool_is_not_asked_again() {
    let site = site(Kind::SqliteFile).await;
    let site = site.pooled(|pool| pool.acquire_timeout(Duration::from_millis(100)));
    let pool = site.layer.pool();
    let held = [opened(pool).await, opened(pool).await, opened(pool).await];
    let runs = Runs::default();
    for layer in [site.layer.clone(), site.layer.clone().lazy()] {
        let counted = runs.clone();
        let app = app_in(layer, retrying(), async move |tx: DbTx| {
            counted.note();
            let failed = tx.execute_unprepared("SELECT 1").await;
            Err::<(), _>(Failed(failed.unwrap_err()))
        });
        let response = call(app).await;
        assert_eq!((response.status().as_u16(), attempts(&response)), (503, 1));
    }
    assert_eq!(runs.count(), 1, "only the lazy one ran");
    drop(held);
    site.assert_whole().await;
}

#[tokio::test]
async fn g20_a_response_whose_body_decides_is_not_retried() {
    let (site, runs) = (site(Kind::Postgres).await, Runs::default());
    let (other, counted) = (site.view().clone(), runs.clone());
    let app = app(&site, retrying(), async move |tx: DbTx| {
        counted.note();
        assert!(conflict(&tx, &other).await.is_err());
        axum::body::Body::new(tx.hold_until_body_end(axum::body::Body::from("text")))
    });
    let response = call(app).await;
    assert_eq!(
        (response.status(), attempts(&response)),
        (StatusCode::OK, 1)
    );
    let body = axum::body::to_bytes(response.into_body(), usize::MAX).await;
    assert!(
        body.is_err(),
        "the transaction was aborted: the body is not complete"
    );
    assert_eq!(runs.count(), 1);
    site.assert_whole().await;
}

#[tokio::test]
async fn g20_an_answer_that_a_layer_in_between_has_changed_stands() {
    let (site, runs) = (site(Kind::Postgres).await, Runs::default());
    let (other, counted) = (site.view().clone(), runs.clone());
    let app = Router::new()
        .fallback(any(async move |tx: DbTx| {
            counted.note();
            conflict(&tx, &other).await
        }))
        .layer(session_layer(site.db.clone()))
        .layer(axum::middleware::map_response(
            async |_: Response| "from the cache",
        ))
        .layer(retrying());
    let response = call(app).await;
    assert_eq!((response.status(), runs.count()), (StatusCode::OK, 1));
    site.assert_whole().await;
}

#[tokio::test]
async fn g20_an_upgrade_and_connect_are_served_once() {
    let site = site(Kind::Postgres).await;
    for request in [
        http::Request::get("/").header("upgrade", "websocket"),
        http::Request::connect("host:80"),
    ] {
        let runs = Runs::default();
        let (other, counted) = (site.view().clone(), runs.clone());
        let app = app(&site, retrying(), async move |tx: DbTx| {
            counted.note();
            conflict(&tx, &other).await
        });
        let request = request.body(axum::body::Body::empty()).unwrap();
        let response = tower::ServiceExt::oneshot(app, request).await.unwrap();
        assert_served_once(&response, &runs, "an upgrade");
    }
    site.assert_whole().await;
}

#[tokio::test]
async fn g20_two_retry_layers_make_no_more_attempts_than_one() {
    let (site, runs) = (site(Kind::Postgres).await, Runs::default());
    let (other, counted) = (site.view().clone(), runs.clone());
    let app = app(&site, retrying(), async move |tx: DbTx| {
        counted.note();
        conflict(&tx, &other).await
    });
    let response = call(app.layer(retrying().attempts(2))).await;
    assert_eq!((runs.count(), attempts(&response)), (2, 2));
    site.assert_whole().await;
}
