//! The same on MariaDB, whose positions are global transaction IDs.

use std::sync::Mutex;

use tower_sea_orm::{OutOfUse, Position, TransactionLayer};

use super::{
    fail_over::{replicas_die, writes_get_the_primary},
    lost_reads::{imitated_loss, lost_half_way, runs_again_elsewhere},
    positions::{
        no_round_trip_is_added, others_read_on, own_writes_are_read, plain_writes_have_positions,
    },
    *,
};
use crate::support::{pool::hands_over, wait::eventually_within};

/// What every server of a cluster needs.
const BINARY_LOG: [&str; 4] = [
    "--log-bin=binary",
    "--log-slave-updates=ON",
    "--innodb-log-file-size=8M",
    "--slave-net-timeout=5",
];

/// Makes a replica a primary.
pub(super) const PROMOTE: &str = "STOP SLAVE; RESET SLAVE ALL; SET GLOBAL read_only = OFF";

/// Starts a server that others replicate.
fn primary() -> OwnServer {
    let options = [&BINARY_LOG[..], &["--server-id=1"]].concat();
    OwnServer::mysql_with(&options)
}

/// Starts a replica that has all that there is by now.
pub(super) async fn replica(primary: &OwnServer, number: u32) -> OwnServer {
    let number = format!("--server-id={number}");
    let options = [&BINARY_LOG[..], &["--read-only=ON", &*number]].concat();
    let replica = OwnServer::mysql_with(&options);
    let database = Database::connect(replica.url()).await.unwrap();
    follow(&database, primary).await;
    let source = Database::connect(primary.url()).await.unwrap();
    let there = text_of(&source, "SELECT CAST(@@global.gtid_binlog_pos AS CHAR)").await;
    eventually("the replica has what there is", async || {
        text_of(&database, "SELECT CAST(@@global.gtid_slave_pos AS CHAR)").await == there
    })
    .await;
    replica
}

pub(super) async fn follow(replica: &DatabaseConnection, primary: &OwnServer) {
    let sql = format!(
        "STOP SLAVE; CHANGE MASTER TO master_host = '127.0.0.1', master_port = {}, master_user = 'root', \
         master_use_gtid = slave_pos, master_connect_retry = 1; START SLAVE",
        primary.port()
    );
    replica.execute_unprepared(&sql).await.unwrap();
}

pub(super) async fn text_of(database: &DatabaseConnection, sql: &str) -> String {
    let question = Statement::from_string(DbBackend::MySql, sql);
    let row = database.query_one_raw(question).await.unwrap().unwrap();
    row.try_get_by_index(0).unwrap()
}

pub(super) async fn cluster() -> Cluster {
    Cluster::of(primary()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn g19_mariadb_clients_read_their_own_writes() {
    own_writes_are_read(cluster().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g19_mariadb_positions_cost_no_round_trip() {
    if hands_over() {
        no_round_trip_is_added(cluster().await).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn g19_mariadb_plain_writes_have_positions() {
    plain_writes_have_positions(cluster().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g19_mariadb_writes_get_the_primary() {
    writes_get_the_primary(cluster().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g17_mariadb_replicas_that_die_leave_reads_to_the_primary() {
    replicas_die(cluster().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g19_mariadb_replicas_that_are_behind_serve_others() {
    others_read_on(cluster().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mariadb_positions_that_are_forged_or_foreign_are_harmless() {
    let cluster = cluster().await;
    let replicas = cluster.replicas();
    let app = app(cluster.layer(&replicas));
    all_in_use(&app, &replicas).await;
    send(&app, Request::post("/write/mine"), None).await;
    for forged in [
        "0-1-18446744073709551615",
        "0-1-18446744073709551616",
        "0-9-1",
        "7-1-1",
        "4294967295-4294967295-1",
        "4294967296-1-1",
        "0-1-1') OR SLEEP(600) -- ",
        "0-1-+1",
        "0-1-",
        "0-1",
        "0-1-1,1-1-1",
        "1-0/3000060",
        "primary",
        "",
    ] {
        let cookie = format!("db-position={forged}");
        let read = send(&app, Request::get("/count/mine"), Some(&cookie)).await;
        let seen = (read.status, &*read.text);
        assert_eq!(seen, (StatusCode::OK, "1 primary"), "{forged}");
    }
    let early = send(&app, Request::get("/count/mine"), Some("db-position=0-1-1")).await;
    assert!(early.on_replica(), "{early:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn g19_mariadb_time_outs_of_a_transaction_leave_the_check_alone() {
    let cluster = cluster().await;
    let replicas = cluster.replicas().wait(Duration::from_secs(5));
    let layer = cluster.layer(&replicas);
    // Shorter than the wait.
    let layer = layer.statement_timeout(Duration::from_millis(500));
    let app = app(layer.lock_timeout(Duration::from_secs(3)));
    all_in_use(&app, &replicas).await;
    let beside = [cluster.beside(0).await, cluster.beside(1).await];
    for replica in &beside {
        positions::pause(replica, true).await;
    }
    let written = send(&app, Request::post("/write/timed"), None).await;
    let read = Request::get("/count/timed");
    let read = send(&app, read, written.cookie.as_deref()).await;
    assert_eq!(read.text, "1 primary");
    let status = replicas.status();
    assert!(
        status.iter().all(|one| one.out_of_use.is_none()),
        "{status:?}"
    );
    for replica in &beside {
        positions::pause(replica, false).await;
    }
    eventually("the replicas have it", async || {
        let read = Request::get("/count/timed");
        let read = send(&app, read, written.cookie.as_deref()).await;
        read.text == "1 replica"
    })
    .await;
}

/// The first replica misses the primary's last write, which the other one has, and is promoted. The number of what it
/// writes next is that of the lost write.
#[tokio::test(flavor = "multi_thread")]
async fn g18_mariadb_a_number_that_two_servers_have_used_is_not_taken_for_the_other_one() {
    let mut cluster = cluster().await;
    let replicas = cluster.replicas();
    let app = app(cluster.layer(&replicas));
    all_in_use(&app, &replicas).await;
    let beside = [cluster.beside(0).await, cluster.beside(1).await];
    beside[0]
        .execute_unprepared("STOP SLAVE IO_THREAD")
        .await
        .unwrap();
    let written = send(&app, Request::post("/write/lost"), None).await;
    let lost = written.cookie.expect("a position");
    eventually("the second replica has it", async || {
        count_items(&beside[1], "lost").await == 1
    })
    .await;
    cluster.primary.stop();
    beside[0].execute_unprepared(PROMOTE).await.unwrap();
    cluster.proxy.lead_to(cluster.replicas[0].0.port());
    let found = Mutex::new(None);
    eventually("writes go to the new primary", async || {
        let name = format!("found_{}", crate::support::database::unique_name());
        let written = send(&app, Request::post(format!("/write/{name}")), Some(&lost)).await;
        *found.lock().unwrap() = written.cookie.map(|cookie| (name, cookie));
        written.status == StatusCode::OK
    })
    .await;
    let (name, found) = found.into_inner().unwrap().expect("a position");
    let position = |cookie: &str| -> Position {
        let (_, text) = cookie.split_once('=').unwrap();
        text.parse().unwrap()
    };
    assert!(found.contains("=0-2-"), "{found}");
    assert!(position(&found) >= position(&lost), "{found}, {lost}");
    // The second replica is behind, although it has the number; it does not follow the new primary.
    for _ in 0..10 {
        let read = send(&app, Request::get(format!("/count/{name}")), Some(&found)).await;
        assert_eq!(read.text, "1 primary");
    }
    eventually("the new primary is no replica any more", async || {
        send(&app, Request::get("/count/none"), None).await;
        replicas.status()[0].out_of_use == Some(OutOfUse::Primary)
    })
    .await;
    // The lost write is nobody's: the primary says so, until its client has written again.
    let read = send(&app, Request::get(format!("/count/{name}")), Some(&lost)).await;
    assert!(read.status == StatusCode::OK, "{read:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn g19_mariadb_a_promoted_primary_has_replicas() {
    let mut cluster = cluster().await;
    let replicas = cluster.replicas();
    let app = app(cluster.layer(&replicas));
    all_in_use(&app, &replicas).await;
    let written = send(&app, Request::post("/write/before"), None).await;
    let before = written.cookie.expect("a position");
    let beside = [cluster.beside(0).await, cluster.beside(1).await];
    for replica in &beside {
        eventually("the replica has it", async || {
            count_items(replica, "before").await == 1
        })
        .await;
    }
    cluster.primary.stop();
    beside[0].execute_unprepared(PROMOTE).await.unwrap();
    follow(&beside[1], &cluster.replicas[0].0).await;
    cluster.proxy.lead_to(cluster.replicas[0].0.port());
    eventually_within(
        Duration::from_secs(60),
        "a read of the new primary's write on its replica",
        async || {
            let name = crate::support::database::unique_name();
            let written = send(&app, Request::post(format!("/write/{name}")), Some(&before)).await;
            let Some(cookie) = written.cookie.filter(|_| written.status == StatusCode::OK) else {
                return false;
            };
            let read = send(&app, Request::get(format!("/count/{name}")), Some(&cookie)).await;
            assert!(read.text.starts_with('1'), "{read:?}");
            read.on_replica()
        },
    )
    .await;
    // What the client has of the old primary is there, and cannot be told from what was lost.
    let read = send(&app, Request::get("/count/before"), Some(&before)).await;
    assert_eq!(read.text, "1 primary");
}

/// Behind a COMMIT with its position, sqlx counts a transaction that is not there.
#[tokio::test(flavor = "multi_thread")]
async fn mariadb_stored_code_that_leaves_a_transaction_open_has_failed() {
    let cluster = cluster().await;
    let replicas = cluster.replicas();
    let database = cluster.pool.database();
    let code = "CREATE PROCEDURE leaves_open() BEGIN START TRANSACTION; INSERT INTO item (name) VALUES ('left'); END";
    database.execute_unprepared(code).await.unwrap();
    database
        .execute_unprepared("CREATE PROCEDURE does_nothing() BEGIN END")
        .await
        .unwrap();
    let call = async |db: DbSession, Path(name): Path<String>| {
        let called = db.execute_unprepared(&format!("CALL {name}()")).await;
        called.map(drop).map_err(Failed)
    };
    let plain = Router::new()
        .route("/call/{name}", post(call))
        .route_layer(TransactionLayer::autocommit());
    let app = Router::new()
        .route("/write/{name}", post(write))
        .merge(plain)
        .layer(cluster.layer(&replicas).lazy());
    for round in 0..8 {
        // The second time, on a connection whose COMMIT has carried the question.
        for name in ["first", "second"] {
            let write = Request::post(format!("/write/{name}_{round}"));
            assert_eq!(send(&app, write, None).await.status, StatusCode::OK);
        }
        let called = send(&app, Request::post("/call/leaves_open"), None).await;
        assert!(called.status.is_server_error(), "{called:?}");
        let write = Request::post(format!("/write/third_{round}"));
        assert_eq!(send(&app, write, None).await.status, StatusCode::OK);
        let called = send(&app, Request::post("/call/does_nothing"), None).await;
        assert_eq!(called.status, StatusCode::OK, "{called:?}");
    }
    assert_eq!(count_items(database, "left").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn mariadb_without_a_binary_log_reads_on_its_primary() {
    let (one, two) = (
        OwnServer::mysql(),
        OwnServer::mysql_with(&["--read-only=ON"]),
    );
    let test = TestDb::on(&one).await;
    let pool = pool_at(test.url()).await;
    let replicas = Replicas::of(pool.clone())
        .replica("r", pool_at(&two.url()).await)
        .check_every(CHECK_EVERY);
    let layer = DbSessionLayer::new(pool).transaction_if(unsafe_methods);
    let app = app(layer.replicas(replicas.clone()));
    eventually("the servers were asked", async || {
        send(&app, Request::get("/count/none"), None).await;
        replicas.status()[0].out_of_use != Some(OutOfUse::NotChecked)
    })
    .await;
    assert_eq!(replicas.status()[0].out_of_use, Some(OutOfUse::Lagging));
    let written = send(&app, Request::post("/write/mine"), None).await;
    assert_eq!(written.cookie.as_deref(), Some("db-position=primary"));
}

#[tokio::test(flavor = "multi_thread")]
async fn g19_a_mariadb_read_that_is_lost_half_way_may_be_sent_again() {
    lost_half_way(cluster().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g20_a_mariadb_read_that_is_lost_half_way_runs_again_elsewhere() {
    runs_again_elsewhere(cluster().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_imitated_loss_in_a_read_is_its_handlers_fault() {
    let fails = "SIGNAL SQLSTATE '08S01' SET MYSQL_ERRNO = 1927";
    imitated_loss(cluster().await, fails).await;
}
