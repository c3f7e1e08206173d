//! A read whose connection is lost after its first statement has written nothing: it may be sent again.

use std::sync::{Arc, Mutex};

use axum::response::Response;
use sea_orm::DbErr;
use tower_sea_orm::{Attempt, Error, OutOfUse, Outcome, RetryLayer};

use super::*;

/// The replicas in use, as they are never checked again.
async fn settled(cluster: &Cluster) -> Replicas {
    loop {
        // A check may come too early for replicas that are still to be reached.
        let replicas = cluster.replicas().check_every(Duration::from_secs(3600));
        let app = app(cluster.layer(&replicas));
        eventually("the replicas are checked", async || {
            send(&app, Request::get("/count/none"), None).await;
            let status = replicas.status();
            let unchecked =
                |one: &tower_sea_orm::ReplicaStatus| one.out_of_use == Some(OutOfUse::NotChecked);
            !status.iter().any(unchecked)
        })
        .await;
        if replicas.status().iter().all(|one| one.out_of_use.is_none()) {
            return replicas;
        }
    }
}

async fn read(db: &DbSession) -> Result<(), DbErr> {
    let sql = "SELECT count(*) FROM item";
    let statement = Statement::from_string(db.backend(), sql);
    db.query_one_raw(statement).await.map(drop)
}

/// Which connections are lost.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Loses {
    None,
    /// Those of the server that the session reads on.
    Its,
    All,
}

fn cut(cluster: &Cluster, loses: Loses) {
    let replicas = cluster.replicas.iter();
    let replicas = replicas.map(|(_, proxy, pool)| (proxy, pool));
    for (proxy, pool) in replicas.chain([(&cluster.proxy, &cluster.pool)]) {
        let is_its = pool.status().used > 0;
        if loses == Loses::All || loses == Loses::Its && is_its {
            proxy.cut();
        }
    }
}

/// What handlers make of the error.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Makes {
    ItsStatus,
    A500,
    A200,
}

async fn reads_twice(
    cluster: &Cluster,
    db: &DbSession,
    loses: Loses,
    makes: Makes,
) -> (StatusCode, &'static str) {
    read(db).await.unwrap();
    if loses == Loses::None {
        return (StatusCode::OK, place(db));
    }
    cut(cluster, loses);
    // One may still get through: the proxy cuts in a task of its own.
    let lost = Mutex::new(None);
    eventually("the connection is lost", async || {
        let read = read(db).await;
        let is_lost = read.is_err();
        *lost.lock().unwrap() = read.err();
        is_lost
    })
    .await;
    let error = lost.into_inner().unwrap().unwrap();
    let known = Error::of(&error).unwrap_or_else(|| panic!("it is known: {error}"));
    assert!(
        known.is_connection_lost() && known.is_retryable(),
        "{known}"
    );
    // The same for what comes after it.
    let again = Error::of(&read(db).await.unwrap_err()).unwrap();
    assert!(
        again.is_connection_lost() && again.is_retryable(),
        "{again}"
    );
    match makes {
        Makes::ItsStatus => (known.status(), place(db)),
        Makes::A500 => (StatusCode::INTERNAL_SERVER_ERROR, place(db)),
        Makes::A200 => (StatusCode::OK, place(db)),
    }
}

async fn call(app: Router, cookie: Option<&str>) -> Response {
    let request = Request::get("/reads");
    let request = match cookie {
        Some(cookie) => request.header(header::COOKIE, cookie),
        None => request,
    };
    let request = request.body(Body::empty()).unwrap();
    app.oneshot(request).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn g19_a_read_that_is_lost_half_way_may_be_sent_again() {
    lost_half_way(Cluster::new().await).await;
}

pub(super) async fn lost_half_way(cluster: Cluster) {
    let cluster = Arc::new(cluster);
    for makes in [Makes::ItsStatus, Makes::A500, Makes::A200] {
        // On a replica, and on the primary, which no replica can stand in for.
        for cookie in [None, Some("db-position=primary")] {
            let replicas = settled(&cluster).await;
            let network = cluster.clone();
            let handler =
                async move |db: DbSession| reads_twice(&network, &db, Loses::Its, makes).await;
            let app = Router::new()
                .route("/reads", get(handler))
                .layer(cluster.layer(&replicas));
            let response = call(app, cookie).await;
            let what = format!("{makes:?} {cookie:?}");
            assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE, "{what}");
            assert_eq!(response.headers()[header::RETRY_AFTER], "1", "{what}");
            let outcome: &Outcome = response.extensions().get().unwrap();
            assert!(outcome.is_undone() && !outcome.is_unknown(), "{what}");
            // At once, and not only with the next check.
            let status = replicas.status();
            let out = status.iter().filter(|one| one.out_of_use.is_some());
            assert_eq!(
                out.count(),
                usize::from(cookie.is_none()),
                "{what} {status:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn g20_a_read_that_is_lost_half_way_runs_again_elsewhere() {
    runs_again_elsewhere(Cluster::new().await).await;
}

pub(super) async fn runs_again_elsewhere(cluster: Cluster) {
    let cluster = Arc::new(cluster);
    for makes in [Makes::ItsStatus, Makes::A500, Makes::A200] {
        for (loses, losses) in [(Loses::Its, 1), (Loses::All, 1), (Loses::Its, u32::MAX)] {
            let replicas = settled(&cluster).await;
            let network = cluster.clone();
            let handler = async move |db: DbSession, attempt: Attempt| {
                let is_lost = attempt.number() <= losses;
                let loses = if is_lost { loses } else { Loses::None };
                reads_twice(&network, &db, loses, makes).await
            };
            let app = Router::new()
                .route("/reads", get(handler))
                .layer(cluster.layer(&replicas))
                .layer(
                    RetryLayer::new()
                        .attempts(9)
                        .total_timeout(Duration::from_secs(600)),
                );
            let response = call(app, None).await;
            let what = format!("{makes:?} {loses:?} {losses}");
            // A server that is lost by the request itself is not to be followed by all the others.
            assert_eq!(Attempt::of(response.extensions()).number(), 2, "{what}");
            if losses > 1 {
                assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE, "{what}");
                continue;
            }
            assert_eq!(response.status(), StatusCode::OK, "{what}");
            let place = text(response).await;
            assert!(loses == Loses::All || place == "replica", "{what}: {place}");
        }
    }
}

/// What was committed before stays so, and the same request would do it twice.
#[tokio::test(flavor = "multi_thread")]
async fn g20_a_read_with_an_early_commit_is_not_sent_again() {
    let cluster = Arc::new(Cluster::new().await);
    let replicas = settled(&cluster).await;
    let network = cluster.clone();
    let handler = async move |db: DbSession| {
        read(&db).await.unwrap();
        db.commit().await.unwrap();
        reads_twice(&network, &db, Loses::Its, Makes::A500).await
    };
    let app = Router::new()
        .route("/reads", get(handler))
        .layer(cluster.layer(&replicas))
        .layer(RetryLayer::new());
    let response = call(app, None).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(!response.headers().contains_key(header::RETRY_AFTER));
    assert_eq!(Attempt::of(response.extensions()).number(), 1);
}

/// The server is not to blame for a handler that lets its transaction lie.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_was_idle_for_too_long_is_its_handlers_fault() {
    let cluster = Cluster::new().await;
    let replicas = settled(&cluster).await;
    let handler = async |db: DbSession| {
        let limit = "SET LOCAL idle_in_transaction_session_timeout = 1";
        db.execute_unprepared(limit).await.unwrap();
        eventually("the server ends the connection", async || {
            read(&db).await.is_err()
        })
        .await;
        StatusCode::INTERNAL_SERVER_ERROR
    };
    let app = Router::new()
        .route("/reads", get(handler))
        .layer(cluster.layer(&replicas))
        .layer(RetryLayer::new());
    let response = call(app, None).await;
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(Attempt::of(response.extensions()).number(), 1);
    let status = replicas.status();
    assert!(
        status.iter().all(|one| one.out_of_use.is_none()),
        "{status:?}"
    );
}

/// The replica is sound, and the same request would fail there again.
#[tokio::test(flavor = "multi_thread")]
async fn an_imitated_loss_in_a_read_is_its_handlers_fault() {
    imitated_loss(
        Cluster::new().await,
        "DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '08006'; END $$",
    )
    .await;
}

pub(super) async fn imitated_loss(cluster: Cluster, fails: &'static str) {
    for reads_first in [false, true] {
        let replicas = settled(&cluster).await;
        let handler = async move |db: DbSession| {
            if reads_first {
                read(&db).await.unwrap();
            }
            let error = db.execute_unprepared(fails).await.unwrap_err();
            assert!(Error::of(&error).is_none(), "{error}");
            StatusCode::INTERNAL_SERVER_ERROR
        };
        let app = Router::new()
            .route("/reads", get(handler))
            .layer(cluster.layer(&replicas))
            .layer(RetryLayer::new());
        let response = call(app, None).await;
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert!(!response.headers().contains_key(header::RETRY_AFTER));
        assert_eq!(Attempt::of(response.extensions()).number(), 1);
        let status = replicas.status();
        assert!(
            status.iter().all(|one| one.out_of_use.is_none()),
            "{status:?}"
        );
    }
}
