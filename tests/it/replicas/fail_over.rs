//! Replicas that are asked to write, fail, stop answering or are promoted.

use std::{sync::Arc, time::Instant};

use tokio::{
    sync::{Barrier, Semaphore},
    time::timeout,
};
use tower_sea_orm::{Error, OutOfUse, TransactionLayer};

use super::*;
use crate::{log::Log, support::wait::BOUND};

#[tokio::test(flavor = "multi_thread")]
async fn g19_a_request_that_writes_gets_the_primary() {
    writes_get_the_primary(Cluster::new().await).await;
}

pub(super) async fn writes_get_the_primary(cluster: Cluster) {
    let replicas = cluster.replicas();
    let eager = cluster.layer(&replicas);
    for (layer, name) in [(eager.clone(), "eager"), (eager.lazy(), "lazy")] {
        let app = app(layer);
        all_in_use(&app, &replicas).await;
        let posted = send(&app, Request::post(format!("/write/{name}")), None).await;
        assert_eq!((posted.status, &*posted.text), (StatusCode::OK, "primary"));
        // A handler of a GET that takes a `DbTx` says that it writes.
        let got = send(&app, Request::get(format!("/write_tx/{name}_tx")), None).await;
        assert_eq!(
            (got.status, &*got.text),
            (StatusCode::OK, "primary"),
            "{got:?}"
        );
        assert!(got.cookie.is_some(), "{got:?}");
        // One that does not say so must not write, wherever it runs.
        let refused = send(&app, Request::get(format!("/write/{name}_get")), None).await;
        assert_eq!(
            refused.status,
            StatusCode::SERVICE_UNAVAILABLE,
            "{refused:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn g17_replicas_that_die_or_do_not_answer_leave_reads_to_the_primary() {
    replicas_die(Cluster::new().await).await;
}

pub(super) async fn replicas_die(mut cluster: Cluster) {
    let replicas = cluster
        .replicas()
        .acquire_timeout(Duration::from_millis(200));
    let app = app(cluster.layer(&replicas));
    all_in_use(&app, &replicas).await;
    // Both are silent: their connections are open, and nothing is answered.
    for (server, ..) in &cluster.replicas {
        server.freeze();
    }
    for _ in 0..10 {
        let read = send(&app, Request::get("/count/none"), None).await;
        assert_eq!(read.status, StatusCode::OK, "{read:?}");
        assert!(!read.on_replica(), "{read:?}");
    }
    for (server, ..) in &cluster.replicas {
        server.thaw();
    }
    all_in_use(&app, &replicas).await;
    // Both are gone.
    for (server, ..) in &mut cluster.replicas {
        server.stop();
    }
    for _ in 0..10 {
        let read = send(&app, Request::get("/count/none"), None).await;
        assert_eq!(read.status, StatusCode::OK, "{read:?}");
    }
    for (server, ..) in &mut cluster.replicas {
        server.start();
    }
    all_in_use(&app, &replicas).await;
    eventually("reads are on a replica again", async || {
        send(&app, Request::get("/count/none"), None)
            .await
            .on_replica()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g18_a_promoted_replica_takes_no_write_of_a_read() {
    let mut cluster = Cluster::new().await;
    let replicas = cluster.replicas();
    let app = app(cluster.layer(&replicas));
    all_in_use(&app, &replicas).await;
    let cookie = send(&app, Request::post("/write/before"), None)
        .await
        .cookie
        .unwrap();
    eventually("the replica has the write", async || {
        let beside = cluster.beside(0).await;
        count_items(&beside, "before").await == 1
    })
    .await;
    cluster.primary.stop();
    let promote = Statement::from_string(DbBackend::Postgres, "SELECT pg_promote(true, 60)");
    cluster
        .beside(0)
        .await
        .query_one_raw(promote)
        .await
        .unwrap();
    // The name of the primary leads to the new one from now on.
    cluster.proxy.lead_to(cluster.replicas[0].0.port());
    let refused = send(&app, Request::get("/write/stray"), None).await;
    assert_eq!(
        refused.status,
        StatusCode::SERVICE_UNAVAILABLE,
        "{refused:?}"
    );
    eventually("writes go to the new primary", async || {
        let written = send(&app, Request::post("/write/after"), Some(&cookie)).await;
        let made = written.cookie.filter(|_| written.status == StatusCode::OK);
        made.is_some_and(|made| made > cookie && made.contains("=2-"))
    })
    .await;
    let status = replicas.status();
    eventually("the new primary is no replica any more", async || {
        send(&app, Request::get("/count/after"), None).await;
        let first = &replicas.status()[0];
        first.out_of_use == Some(OutOfUse::Primary)
    })
    .await;
    drop(status);
    let read = send(&app, Request::get("/count/stray"), None).await;
    assert!(read.text.starts_with('0'), "{read:?}");
}

/// The old primary goes on after a replica was promoted, and its address still leads to it.
#[tokio::test(flavor = "multi_thread")]
async fn g18_of_two_primaries_only_the_later_one_serves() {
    only_the_later_one_serves(
        Cluster::new().await,
        "=2-",
        async |cluster, app, replicas| {
            let promote =
                Statement::from_string(DbBackend::Postgres, "SELECT pg_promote(true, 60)");
            let promoted = cluster.beside(0).await;
            promoted.query_one_raw(promote).await.unwrap();
            eventually("the promotion is noticed", async || {
                send(app, Request::get("/count/none"), None).await;
                replicas.status()[0].out_of_use == Some(OutOfUse::Primary)
            })
            .await;
        },
    )
    .await;
}

/// `promote` makes the first replica a primary, and ends when that is known. The positions of its writes have `mark` in them.
pub(super) async fn only_the_later_one_serves(
    cluster: Cluster,
    mark: &str,
    promote: impl AsyncFnOnce(&Cluster, &Router, &Replicas),
) {
    let replicas = cluster.replicas();
    let apps = [
        app(cluster.layer(&replicas)),
        app(DbSessionLayer::new(cluster.pool.clone()).replicas(replicas.clone())),
    ];
    all_in_use(&apps[0], &replicas).await;
    for (app, name) in apps.iter().zip(["transaction", "autocommit"]) {
        let written = send(app, Request::post(format!("/write/{name}")), None).await;
        assert_eq!(written.status, StatusCode::OK, "{written:?}");
    }
    let go_on = Arc::new(Semaphore::new(0));
    let (begun, mut begins) = tokio::sync::mpsc::unbounded_channel();
    let (may_go, layer) = (go_on.clone(), cluster.layer(&replicas));
    let waits = async move |db: DbSession| {
        try_insert_item(&db, "lost").await?;
        begun.send(()).unwrap();
        may_go.acquire().await.unwrap().forget();
        Ok::<_, Failed>(())
    };
    let waits = Router::new().route("/waits", post(waits)).layer(layer);
    let open =
        tokio::spawn(async move { send(&waits, Request::post("/waits"), None).await.status });
    begins.recv().await.unwrap();
    promote(&cluster, &apps[0], &replicas).await;
    let promoted = cluster.beside(0).await;
    let unknown = Some("db-position=primary");
    for app in &apps {
        for request in [
            Request::post("/write/lost"),
            Request::post("/write_tx/lost"),
            Request::get("/write_tx/lost"),
        ] {
            let refused = send(app, request, unknown).await;
            assert_eq!(refused.status, 503, "{refused:?}");
        }
    }
    // However many are refused, the log has a line a second.
    let (log, guard) = Log::start();
    let began = Instant::now();
    for request in 0..60 {
        let refused = send(&apps[request % 2], Request::post("/write/lost"), unknown).await;
        assert_eq!(refused.status, 503, "{refused:?}");
    }
    let loud = log.loud();
    let most = 2 * (2 + began.elapsed().as_secs());
    assert!(loud.len() as u64 <= most, "{loud:?}");
    drop(guard);
    // What had begun is not committed, and a job's session is no request's.
    go_on.add_permits(1);
    assert_eq!(open.await.unwrap(), StatusCode::SERVICE_UNAVAILABLE);
    let session = cluster.pool.session().await.unwrap();
    let refused = try_insert_item(&session, "lost").await.unwrap_err();
    assert!(Error::of(&refused).unwrap().is_read_only(), "{refused}");
    let former = Database::connect(cluster.test.url()).await.unwrap();
    assert_eq!(count_items(&former, "lost").await, 0);
    // A connection that is found dead is exchanged for one to the same server.
    cluster.proxy.lead_to(cluster.replicas[0].0.port());
    eventually("writes go to the new primary", async || {
        let written = send(&apps[0], Request::post("/write/between"), unknown).await;
        written.status == StatusCode::OK
    })
    .await;
    cluster.proxy.lead_to(cluster.primary.port());
    cluster.proxy.cut();
    // Rested for as long as a connection that may have died.
    tokio::time::sleep(Duration::from_millis(5)).await;
    let refused = send(&apps[0], Request::post("/write/lost"), unknown).await;
    assert_eq!(refused.status, 503, "{refused:?}");
    assert_eq!(count_items(&former, "lost").await, 0);
    // From here on the address leads to the later one. Connections that are open still do not.
    cluster.proxy.lead_to(cluster.replicas[0].0.port());
    for (app, name) in apps.iter().zip(["transaction_2", "autocommit_2"]) {
        eventually("writes go to the new primary", async || {
            let request = Request::post(format!("/write/{name}"));
            let written = send(app, request, unknown).await;
            let made = written.cookie.filter(|_| written.status == StatusCode::OK);
            made.is_some_and(|made| made.contains(mark))
        })
        .await;
        assert_eq!(count_items(&promoted, name).await, 1);
        assert_eq!(count_items(&former, name).await, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn g19_a_route_out_of_the_transaction_reads_on_the_primary() {
    let cluster = Cluster::new().await;
    let replicas = cluster.replicas();
    let app = Router::new()
        .route("/count/{name}", get(count))
        .route("/write/{name}", get(write))
        .route_layer(TransactionLayer::autocommit())
        .layer(cluster.layer(&replicas));
    let inner = super::app(cluster.layer(&replicas));
    all_in_use(&inner, &replicas).await;
    let read = send(&app, Request::get("/count/none"), None).await;
    assert_eq!((read.status, &*read.text), (StatusCode::OK, "0 primary"));
    let written = send(&app, Request::get("/write/plain"), None).await;
    assert_eq!(
        (written.status, &*written.text),
        (StatusCode::OK, "primary")
    );
    assert!(written.cookie.is_some(), "{written:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn g17_a_read_that_is_done_does_not_wait_for_its_replica() {
    let cluster = Arc::new(Cluster::new().await);
    let replicas = cluster.replicas();
    let inner = app(cluster.layer(&replicas));
    all_in_use(&inner, &replicas).await;
    let network = cluster.clone();
    let reads = async move |db: DbSession| {
        count_items(&db, "none").await;
        for (_, proxy, _) in &network.replicas {
            proxy.freeze();
        }
        place(&db)
    };
    let app = Router::new()
        .route("/reads", get(reads))
        .layer(cluster.layer(&replicas));
    let read = timeout(BOUND / 6, send(&app, Request::get("/reads"), None)).await;
    let read = read.expect("the response waits for nothing");
    assert_eq!((read.status, &*read.text), (StatusCode::OK, "replica"));
    for (_, proxy, _) in &cluster.replicas {
        proxy.thaw();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_primary_serves_no_read() {
    let cluster = Cluster::new().await;
    let replicas = cluster.replicas();
    let app = app(cluster.layer(&replicas));
    all_in_use(&app, &replicas).await;
    cluster.pool.close(Duration::from_secs(1)).await;
    let read = send(&app, Request::get("/count/none"), None).await;
    assert_eq!(read.status, StatusCode::SERVICE_UNAVAILABLE, "{read:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hooks_of_a_read_run_as_on_the_primary() {
    let cluster = Cluster::new().await;
    let replicas = cluster.replicas();
    let inner = app(cluster.layer(&replicas));
    all_in_use(&inner, &replicas).await;
    let (sender, mut ran) = tokio::sync::mpsc::unbounded_channel();
    let reads = async move |db: DbSession| {
        count_items(&db, "none").await;
        let (commits, rolls_back) = (sender.clone(), sender.clone());
        db.after_rollback(async move { rolls_back.send("after_rollback").unwrap() })?;
        db.after_commit(async move { commits.send("after_commit").unwrap() })?;
        Ok::<_, Failed>(place(&db))
    };
    let app = Router::new()
        .route("/reads", get(reads))
        .layer(cluster.layer(&replicas));
    for (cookie, place) in [(None, "replica"), (Some("db-position=primary"), "primary")] {
        let read = send(&app, Request::get("/reads"), cookie).await;
        assert_eq!((read.status, &*read.text), (StatusCode::OK, place));
        let hook = timeout(BOUND, ran.recv()).await.expect("a hook runs");
        assert_eq!(hook, Some("after_commit"), "{place}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_without_a_replica_leave_connections_to_writes() {
    let cluster = Cluster::new().await;
    // Two of four connections, by default.
    let replicas = cluster.replicas();
    let inner = app(cluster.layer(&replicas));
    let inside = Arc::new(Semaphore::new(0));
    let go_on = Arc::new(Semaphore::new(0));
    let (is_in, may_go) = (inside.clone(), go_on.clone());
    let reads = async move |db: DbSession| {
        count_items(&db, "none").await;
        is_in.add_permits(1);
        may_go.acquire().await.unwrap().forget();
        place(&db)
    };
    let unknown = Some("db-position=primary");
    for layer in [cluster.layer(&replicas), cluster.layer(&replicas).lazy()] {
        let app = Router::new()
            .route("/reads", get(reads.clone()))
            .layer(layer);
        let reading: Vec<_> = (0..6)
            .map(|_| {
                let app = app.clone();
                tokio::spawn(async move { send(&app, Request::get("/reads"), unknown).await })
            })
            .collect();
        inside.acquire_many(2).await.unwrap().forget();
        for write in 0..3 {
            let write = Request::post(format!("/write/{}_{write}", reading[0].id()));
            let written = send(&inner, write, None).await;
            assert_eq!(written.status, StatusCode::OK, "{written:?}");
        }
        assert_eq!(inside.available_permits(), 0, "no third read");
        go_on.add_permits(6);
        for read in reading {
            let read = read.await.unwrap();
            assert_eq!((read.status, &*read.text), (StatusCode::OK, "primary"));
        }
        inside.acquire_many(4).await.unwrap().forget();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_no_server_may_take_is_refused_at_once() {
    let cluster = Cluster::new().await;
    let replicas = cluster.replicas().max_reads_on_primary(0);
    let unknown = Some("db-position=primary");
    let eager = cluster.layer(&replicas);
    for (layer, name) in [(eager.clone(), "eager"), (eager.lazy(), "lazy")] {
        let app = app(layer);
        let refused = send(&app, Request::get("/write/none"), unknown).await;
        assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
        let written = Request::post(format!("/write/{name}"));
        let written = send(&app, written, unknown).await;
        assert_eq!(written.status, StatusCode::OK, "{written:?}");
    }
}

/// Whatever a request was doing when its client left.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_is_dropped_gives_its_place_on_the_primary_back() {
    let cluster = Cluster::new().await;
    let replicas = cluster.replicas();
    let both = Arc::new(Barrier::new(2));
    let meet = both.clone();
    let reads = async |db: DbSession| {
        count_items(&db, "none").await;
        place(&db)
    };
    let meets = async move |db: DbSession| {
        count_items(&db, "none").await;
        meet.wait().await;
        place(&db)
    };
    let unknown = Some("db-position=primary");
    for layer in [cluster.layer(&replicas), cluster.layer(&replicas).lazy()] {
        let app = Router::new()
            .route("/reads", get(reads))
            .route("/meets", get(meets.clone()))
            .layer(layer);
        let dropped = (0..600).map(|request| {
            let app = app.clone();
            tokio::spawn(async move {
                let patience = Duration::from_micros(request % 60 * 100);
                let read = send(&app, Request::get("/reads"), unknown);
                let read = timeout(patience, read).await;
                read.is_ok_and(|read| read.status == StatusCode::OK)
            })
        });
        let mut served = 0;
        for read in dropped.collect::<Vec<_>>() {
            served += u32::from(read.await.unwrap());
        }
        assert!(served < 600, "no client has left");
        let (one, other) = tokio::join!(
            timeout(BOUND, send(&app, Request::get("/meets"), unknown)),
            timeout(BOUND, send(&app, Request::get("/meets"), unknown)),
        );
        for read in [one, other] {
            let read = read.expect("both places are free");
            assert_eq!((read.status, &*read.text), (StatusCode::OK, "primary"));
        }
    }
}
