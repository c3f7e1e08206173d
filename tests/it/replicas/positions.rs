//! A client's position: made by its writes, checked where it reads.

use std::time::Instant;

use tower_sea_orm::{OutOfUse, grpc_timeout};

use super::*;
use crate::{
    log::Log,
    support::{
        pool::hands_over,
        wait::{BOUND, eventually_within, in_one_of},
    },
};

/// Writes and then reads many times, while the replicas' replay is paused and resumed in turn. Returns how many reads
/// were stale, and how many were on a replica.
async fn pairs(cluster: &Cluster, app: &Router, series: &str, keeps: bool) -> (usize, usize) {
    let (mut stale, mut on_replica) = (0, 0);
    let beside = [cluster.beside(0).await, cluster.beside(1).await];
    for round in 0..60 {
        // Never both at once for long: one of them serves while the other is behind.
        if round % 10 == 0 {
            let (paused, resumed) = if round % 20 == 0 { (0, 1) } else { (1, 0) };
            pause(&beside[paused], true).await;
            pause(&beside[resumed], false).await;
        }
        let name = format!("{series}_{keeps}_{round}");
        let written = send(app, Request::post(format!("/write/{name}")), None).await;
        assert_eq!(written.status, StatusCode::OK, "{written:?}");
        let cookie = written.cookie.expect("a write has a position");
        let read = Request::get(format!("/count/{name}"));
        let read = send(app, read, keeps.then_some(&*cookie)).await;
        assert_eq!(read.status, StatusCode::OK, "{read:?}");
        assert_eq!(read.cookie, None, "a read makes no position");
        stale += usize::from(read.text.starts_with('0'));
        on_replica += usize::from(read.on_replica());
    }
    for beside in &beside {
        pause(beside, false).await;
    }
    (stale, on_replica)
}

pub(super) async fn pause(replica: &DatabaseConnection, pauses: bool) {
    let sql = match (replica.get_database_backend(), pauses) {
        (DbBackend::MySql, true) => "STOP SLAVE SQL_THREAD",
        (DbBackend::MySql, false) => "START SLAVE SQL_THREAD",
        (_, true) => "SELECT pg_wal_replay_pause()",
        (_, false) => "SELECT pg_wal_replay_resume()",
    };
    replica.execute_unprepared(sql).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn g19_a_client_reads_its_own_writes_while_replicas_are_paused() {
    own_writes_are_read(Cluster::new().await).await;
}

pub(super) async fn own_writes_are_read(cluster: Cluster) {
    for level in [
        None,
        Some(IsolationLevel::ReadCommitted),
        Some(IsolationLevel::RepeatableRead),
    ] {
        let replicas = cluster.replicas();
        let options = TransactionOptions {
            isolation_level: level,
            ..TransactionOptions::default()
        };
        let layer = DbSessionLayer::new(cluster.pool.clone())
            .transaction_with(options)
            .replicas(replicas.clone());
        let app = app(layer);
        all_in_use(&app, &replicas).await;
        let (stale, on_replica) = pairs(&cluster, &app, &unquoted(level), true).await;
        assert_eq!(stale, 0, "{level:?}");
        assert!(on_replica > 0, "{level:?}: no read was on a replica");
        // Without its position, the client is as good as another one.
        let (stale, _) = pairs(&cluster, &app, &unquoted(level), false).await;
        assert!(stale > 0, "{level:?}: the pauses show nothing");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn g19_positions_cost_no_round_trip() {
    // Without it, each return is a visit to the driver's pool, with its ping.
    if hands_over() {
        no_round_trip_is_added(Cluster::new().await).await;
    }
}

pub(super) async fn no_round_trip_is_added(cluster: Cluster) {
    let replicas = cluster.replicas();
    let app = app(cluster.layer(&replicas).lazy());
    all_in_use(&app, &replicas).await;
    // Warm: connected and prepared on every connection that may serve.
    for _ in 0..8 {
        let cookie = send(&app, Request::post("/write/warm"), None).await.cookie;
        send(&app, Request::get("/count/warm"), cookie.as_deref()).await;
        send(&app, Request::get("/count/warm"), None).await;
    }
    drop((app, replicas));
    let app = unchecked(&cluster).await;
    let requests = || {
        let replicas = cluster.replicas.iter();
        let replicas = replicas.map(|(_, proxy, _)| proxy.requests());
        cluster.proxy.requests() + replicas.sum::<u64>()
    };
    // A connection's visit to the driver's pool may add a ping now and then.
    let mut attempt = 0;
    in_one_of(
        10,
        "three round trips for a write, and two before a read's answer",
        async || {
            attempt += 1;
            let name = format!("counted_{attempt}");
            let before = requests();
            let written = send(&app, Request::post(format!("/write/{name}")), None).await;
            // BEGIN, INSERT, COMMIT with the position.
            let of_write = requests() - before;
            replayed(&cluster, &name).await;
            let before = requests();
            let read = Request::get(format!("/count/{name}"));
            let read = send(&app, read, written.cookie.as_deref()).await;
            assert!(read.text.starts_with('1') && read.on_replica(), "{read:?}");
            // BEGIN with the check, SELECT, and a ROLLBACK that nothing waits for.
            let of_read = requests() - before;
            assert!(of_write >= 3 && of_read >= 2, "{of_write}, {of_read}");
            eprintln!("{of_write} round trips to write, {of_read} to read");
            of_write == 3 && of_read <= 3
        },
    )
    .await;
}

/// A service whose servers were asked once and are not asked again: the proxies count that as well.
async fn unchecked(cluster: &Cluster) -> Router {
    // The first check may find that a replica has not replayed what the primary had just written by itself.
    for attempt in 0..20 {
        let name = format!("attempt_{attempt}");
        try_insert_item(cluster.pool.database(), &name)
            .await
            .unwrap();
        replayed(cluster, &name).await;
        let replicas = cluster.replicas().check_every(Duration::from_secs(3600));
        let app = app(cluster.layer(&replicas).lazy());
        let checked = eventually_within(Duration::from_secs(5), "all are asked", async || {
            send(&app, Request::get("/count/none"), None).await;
            let mut status = replicas.status().into_iter();
            status.all(|one| one.out_of_use != Some(OutOfUse::NotChecked))
        });
        checked.await;
        if replicas.status().iter().all(|one| one.out_of_use.is_none()) {
            return app;
        }
    }
    panic!("the replicas are never up to date");
}

/// Waits until both replicas have an item.
async fn replayed(cluster: &Cluster, name: &str) {
    for replica in 0..2 {
        let beside = cluster.beside(replica).await;
        eventually("the replica has the write", async || {
            count_items(&beside, name).await == 1
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_outside_a_transaction_makes_a_position_as_well() {
    plain_writes_have_positions(Cluster::new().await).await;
}

pub(super) async fn plain_writes_have_positions(cluster: Cluster) {
    let replicas = cluster.replicas();
    let layer = DbSessionLayer::new(cluster.pool.clone()).replicas(replicas.clone());
    let app = app(layer);
    all_in_use(&app, &replicas).await;
    for round in 0..20 {
        let path = if round % 2 == 0 { "write" } else { "write_tx" };
        let name = format!("plain_{round}");
        let written = send(&app, Request::post(format!("/{path}/{name}")), None).await;
        let cookie = written.cookie.expect("a position");
        assert_ne!(cookie, "db-position=primary");
        let read = send(&app, Request::get(format!("/count/{name}")), Some(&cookie)).await;
        assert!(read.text.starts_with('1'), "{read:?}");
    }
    let beside = [cluster.beside(0).await, cluster.beside(1).await];
    for replica in &beside {
        pause(replica, true).await;
    }
    let written = send(&app, Request::post("/write/plain"), None).await;
    let read = Request::get("/count/plain");
    let read = send(&app, read, written.cookie.as_deref()).await;
    assert_eq!(read.text, "1 primary");
    for replica in &beside {
        pause(replica, false).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_that_is_forged_or_damaged_is_harmless() {
    let cluster = Cluster::new().await;
    let replicas = cluster.replicas();
    let app = app(cluster.layer(&replicas));
    all_in_use(&app, &replicas).await;
    let written = send(&app, Request::post("/write/mine"), None)
        .await
        .cookie
        .unwrap();
    let (_, value) = written.split_once('=').unwrap();
    let damaged = &value[..value.len() - 1];
    for forged in [
        "1-FFFFFFFF/FFFFFFFF",
        "4294967295-0/1",
        "4294967296-0/1",
        "0-0/0",
        "1-0/1'; DROP TABLE item; --",
        "primary",
        "",
        "x",
        &"9".repeat(4000),
        "-",
        "1-/",
        "+1-0/1",
    ] {
        let cookie = format!("db-position={forged}");
        let read = send(&app, Request::get("/count/mine"), Some(&cookie)).await;
        assert_eq!(read.status, StatusCode::OK, "{forged}: {read:?}");
        let trusted = ["0-0/0"].contains(&forged);
        assert!(trusted || !read.on_replica(), "{forged}: {read:?}");
    }
    // One that was cut off means an earlier place, or none: no more than a client without one sees.
    let cookie = format!("db-position={damaged}");
    let read = send(&app, Request::get("/count/mine"), Some(&cookie)).await;
    assert_eq!(read.status, StatusCode::OK, "{read:?}");
}

/// The level as part of a path.
fn unquoted(level: Option<IsolationLevel>) -> String {
    level.map_or("default".to_owned(), |level| {
        level.to_string().replace(' ', "_")
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn g19_a_commit_that_does_not_wait_for_the_disk_has_its_position() {
    let cluster = Cluster::new().await;
    let replicas = cluster.replicas();
    let layer = cluster.layer(&replicas);
    let app = app(layer.set_local("synchronous_commit", |_| "off".to_owned()));
    all_in_use(&app, &replicas).await;
    for round in 0..40 {
        let name = format!("async_{round}");
        let written = send(&app, Request::post(format!("/write/{name}")), None).await;
        let read = Request::get(format!("/count/{name}"));
        let read = send(&app, read, written.cookie.as_deref()).await;
        assert!(read.text.starts_with('1'), "{read:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn g19_a_function_that_writes_makes_a_position() {
    let cluster = Cluster::new().await;
    let replicas = cluster.replicas();
    let function = "CREATE FUNCTION note(n text) RETURNS int LANGUAGE sql AS 'INSERT INTO item (name) VALUES (n) RETURNING 1'";
    let database = cluster.pool.database();
    database.execute_unprepared(function).await.unwrap();
    let call = async |db: DbSession| {
        let call = Statement::from_string(DbBackend::Postgres, "SELECT note('called')");
        db.query_one_raw(call).await.map(drop).map_err(Failed)
    };
    // Statements commit one by one.
    let layer = DbSessionLayer::new(cluster.pool.clone()).replicas(replicas.clone());
    let app = Router::new().route("/call", post(call)).layer(layer);
    let called = send(&app, Request::post("/call"), None).await;
    assert!(called.cookie.is_some_and(|cookie| cookie.contains('/')));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_waits_for_its_write_leaves_the_replicas_to_others() {
    others_read_on(Cluster::new().await).await;
}

pub(super) async fn others_read_on(cluster: Cluster) {
    let replicas = cluster.replicas();
    let app = app(cluster.layer(&replicas));
    all_in_use(&app, &replicas).await;
    let beside = [cluster.beside(0).await, cluster.beside(1).await];
    for replica in &beside {
        pause(replica, true).await;
    }
    let written = send(&app, Request::post("/write/waits"), None).await;
    for _ in 0..5 {
        let own = Request::get("/count/waits");
        let own = send(&app, own, written.cookie.as_deref()).await;
        assert_eq!(own.text, "1 primary");
        let others = send(&app, Request::get("/count/waits"), None).await;
        assert_eq!(others.text, "0 replica");
    }
    for replica in &beside {
        pause(replica, false).await;
    }
}

/// It has the replica's connection until it has the primary's.
#[tokio::test]
async fn a_read_that_goes_on_to_a_busy_primary_takes_no_second_session() {
    let (log, _guard) = Log::start();
    let cluster = Cluster::new().await;
    let replicas = cluster.replicas();
    let app = app(cluster.layer(&replicas));
    all_in_use(&app, &replicas).await;
    let beside = [cluster.beside(0).await, cluster.beside(1).await];
    for replica in &beside {
        pause(replica, true).await;
    }
    let written = send(&app, Request::post("/write/waits"), None).await;
    let mut busy = Vec::new();
    for _ in 0..4 {
        let session = cluster.pool.session().await.unwrap();
        let pin = session.pin();
        // A session that lends has its connection from its first statement on.
        session.execute_unprepared("SELECT 1").await.unwrap();
        busy.push((pin, session));
    }
    let read = async {
        let read = Request::get("/count/waits");
        send(&app, read, written.cookie.as_deref()).await
    };
    let freed = async {
        eventually("it waits for the primary", async || {
            cluster.pool.status().pending == 1
        })
        .await;
        drop(busy);
    };
    let (read, ()) = tokio::join!(read, freed);
    assert_eq!(read.text, "1 primary");
    assert_eq!(log.count("second session"), 0, "{:?}", log.loud());
    for replica in &beside {
        pause(replica, false).await;
    }
}

/// Its replicas are behind, and the primary has no connection for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_waits_for_the_primary_no_longer_than_its_deadline() {
    let mut cluster = Cluster::new().await;
    cluster.pool = pool_with(cluster.pool.database(), |pool| pool.acquire_timeout(BOUND));
    let replicas = cluster.replicas();
    let read = async |db: DbSession| {
        let done = db.execute_unprepared("SELECT 1").await;
        done.map(drop).map_err(|_| StatusCode::BAD_GATEWAY)
    };
    let layer = cluster.layer(&replicas).deadline(grpc_timeout);
    let reads = Router::new().route("/", get(read)).layer(layer.clone());
    let app = app(layer);
    all_in_use(&app, &replicas).await;
    for replica in 0..2 {
        pause(&cluster.beside(replica).await, true).await;
    }
    let written = send(&app, Request::post("/write/late"), None).await;
    let mut busy = Vec::new();
    for _ in 0..4 {
        let session = cluster.pool.session().await.unwrap();
        let pin = session.pin();
        // A session that lends has its connection from its first statement on.
        session.execute_unprepared("SELECT 1").await.unwrap();
        busy.push((pin, session));
    }
    let began = Instant::now();
    let read = Request::get("/").header("grpc-timeout", "200m");
    let read = send(&reads, read, written.cookie.as_deref()).await;
    assert_ne!(read.status, StatusCode::OK, "{read:?}");
    // The driver's own time-out is half of it.
    assert!(began.elapsed() < BOUND / 3, "{read:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_latest_of_two_cookies_counts_and_a_write_replaces_them() {
    let cluster = Cluster::new().await;
    let replicas = cluster.replicas();
    let app = app(cluster.layer(&replicas));
    all_in_use(&app, &replicas).await;
    let both = "db-position=1-0/1; theme=dark; db-position=1-FFFF/0";
    let read = send(&app, Request::get("/count/none"), Some(both)).await;
    assert!(!read.on_replica(), "{read:?}");
    for before in ["db-position=primary", "db-position=9-FFFF/0", both] {
        let write = Request::post(format!("/write/{}", before.len()));
        let made = send(&app, write, Some(before)).await.cookie.unwrap();
        assert!(made.starts_with("db-position=1-0/"), "{before}: {made}");
    }
}

/// Of a record that ends with its page, the server says that it ends behind the next page's header, which no replica
/// reaches before the next record.
#[tokio::test(flavor = "multi_thread")]
async fn g19_a_commit_that_fills_its_page_is_not_waited_for_in_vain() {
    const PAGE: i64 = 8192;
    let cluster = Cluster::new().await;
    let replicas = cluster.replicas();
    let layer = cluster.layer(&replicas);
    let pads = async |db: DbSession, Path((name, size)): Path<(String, i64)>| {
        try_insert_item(&db, &name).await?;
        let pad = format!("SELECT pg_logical_emit_message(true, '', repeat('x', {size}))");
        db.execute_unprepared(&pad).await?;
        Ok::<_, Failed>(())
    };
    let app = Router::new()
        .route("/pads/{name}/{size}", post(pads))
        .layer(layer);
    let primary = Database::connect(cluster.test.url()).await.unwrap();
    let at = async |db: &DatabaseConnection, function: &str| {
        let sql = format!("SELECT ({function}() - '0/0'::pg_lsn)::bigint");
        let row = db
            .query_one_raw(Statement::from_string(DbBackend::Postgres, sql))
            .await;
        row.unwrap().unwrap().try_get_by_index::<i64>(0).unwrap()
    };
    // All that a request writes but its padding.
    let (mut rest, mut size) = (0, 0);
    for attempt in 0..500 {
        let before = at(&primary, "pg_current_wal_insert_lsn").await;
        if rest != 0 {
            size = (PAGE - before % PAGE - rest).rem_euclid(PAGE - 24) / 8 * 8;
        }
        let request = Request::post(format!("/pads/fills_{attempt}/{size}"));
        let written = send(&app, request, None).await;
        let after = at(&primary, "pg_current_wal_insert_lsn").await;
        if after % PAGE != 24 {
            rest = after - before - size;
            continue;
        }
        let cookie = written.cookie.unwrap();
        assert!(cookie.ends_with("000"), "{cookie}: the beginning of a page");
        return;
    }
    panic!("no commit has filled its page");
}
