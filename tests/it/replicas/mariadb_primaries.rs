//! G18 on MariaDB: a former primary that still takes writes serves nothing, and what only looks like one does.

use std::time::Instant;

use super::{
    fail_over::only_the_later_one_serves,
    mariadb::{PROMOTE, cluster, follow, text_of},
    *,
};
use crate::{log::Log, support::database::unique_name};

const FOLLOWED: &str = "SELECT CAST(@@global.gtid_slave_pos AS CHAR)";
const WRITTEN: &str = "SELECT CAST(@@global.gtid_binlog_pos AS CHAR)";

async fn run(database: &DatabaseConnection, sql: &str) {
    database.execute_unprepared(sql).await.unwrap();
}

/// Waits until a replica has all that is in its primary's binary log.
async fn catch_up(replica: &DatabaseConnection, primary: &DatabaseConnection) {
    eventually("the replica has what there is", async || {
        text_of(replica, FOLLOWED).await == text_of(primary, WRITTEN).await
    })
    .await;
}

/// Sends reads, and then writes, until checks that have begun by now have ended; the primary serves all writes.
async fn primary_serves(app: &Router, log: &Log) {
    for method in ["GET", "POST"] {
        let until = Instant::now() + 6 * CHECK_EVERY;
        while Instant::now() < until {
            let name = unique_name();
            let is_read = method == "GET";
            let path = if is_read { "count" } else { "write" };
            let path = format!("/{path}/{name}");
            let answer = send(app, Request::builder().method(method).uri(path), None).await;
            assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
            assert!(is_read || answer.text == "primary", "{answer:?}");
        }
    }
    let loud = log.loud();
    let told = loud.iter().any(|line| line.contains("fail-over"));
    assert!(!told, "{loud:?}");
}

#[tokio::test]
async fn g18_of_two_mariadb_primaries_only_the_later_one_serves() {
    let (log, guard) = Log::start();
    only_the_later_one_serves(cluster().await, "=0-2-", async |cluster, app, _| {
        let beside = [cluster.beside(0).await, cluster.beside(1).await];
        let former = Database::connect(cluster.test.url()).await.unwrap();
        catch_up(&beside[0], &former).await;
        catch_up(&beside[1], &former).await;
        run(&beside[0], PROMOTE).await;
        follow(&beside[1], &cluster.replicas[0].0).await;
        run(&beside[0], "INSERT INTO item (name) VALUES ('first')").await;
        eventually("the promotion is noticed", async || {
            let name = unique_name();
            let written = send(app, Request::post(format!("/write/{name}")), None).await;
            written.status == StatusCode::SERVICE_UNAVAILABLE
        })
        .await;
        // Reads go on.
        eventually("the other replica is in use", async || {
            let read = send(app, Request::get("/count/first"), None).await;
            read.text == "1 replica"
        })
        .await;
    })
    .await;
    let lines = log.loud();
    let told = lines
        .iter()
        .filter(|line| line.contains("server=1 promoted=2"));
    assert_eq!(told.count(), 1, "{lines:?}");
    drop(guard);
}

/// The replica's own transaction is followed by another replica, and has the number of what the primary writes next.
#[tokio::test]
async fn mariadb_replicas_that_were_written_to_are_no_primaries() {
    let cluster = cluster().await;
    let replicas = cluster.replicas();
    let app = app(cluster.layer(&replicas));
    all_in_use(&app, &replicas).await;
    let beside = [cluster.beside(0).await, cluster.beside(1).await];
    let primary = Database::connect(cluster.test.url()).await.unwrap();
    let (log, _guard) = Log::start();
    catch_up(&beside[0], &primary).await;
    // Maintenance, on a server between the primary and another replica.
    follow(&beside[1], &cluster.replicas[0].0).await;
    run(&beside[0], "ANALYZE TABLE item").await;
    eventually("the other replica has that", async || {
        text_of(&beside[1], FOLLOWED).await.contains("0-2-")
    })
    .await;
    primary_serves(&app, &log).await;
    // Somebody has forgotten that it is a replica, and its replication goes on.
    run(&beside[0], "SET GLOBAL read_only = OFF").await;
    catch_up(&beside[0], &primary).await;
    run(&beside[0], "ANALYZE TABLE item").await;
    primary_serves(&app, &log).await;
}

/// What it has written itself is in the way of what the primary writes.
#[tokio::test]
async fn a_mariadb_replica_that_takes_writes_and_has_stopped_is_no_primary() {
    let cluster = cluster().await;
    let replicas = cluster.replicas();
    let app = app(cluster.layer(&replicas));
    all_in_use(&app, &replicas).await;
    let beside = cluster.beside(0).await;
    let primary = Database::connect(cluster.test.url()).await.unwrap();
    let (log, _guard) = Log::start();
    catch_up(&beside, &primary).await;
    run(&beside, "SET GLOBAL gtid_strict_mode = ON").await;
    run(&beside, "SET GLOBAL read_only = OFF").await;
    run(&beside, "ANALYZE TABLE item").await;
    let running = "SELECT CAST(variable_value AS CHAR) FROM information_schema.global_status WHERE variable_name = 'SLAVES_RUNNING'";
    eventually("its replication has stopped", async || {
        let name = unique_name();
        let written = send(&app, Request::post(format!("/write/{name}")), None).await;
        assert_eq!(written.status, StatusCode::OK, "{written:?}");
        text_of(&beside, running).await == "0"
    })
    .await;
    primary_serves(&app, &log).await;
}

/// There and back, as for maintenance.
#[tokio::test]
async fn g18_a_mariadb_primary_that_is_the_primary_again_serves() {
    let cluster = cluster().await;
    let replicas = cluster.replicas();
    let app = app(cluster.layer(&replicas));
    all_in_use(&app, &replicas).await;
    let beside = [cluster.beside(0).await, cluster.beside(1).await];
    let primary = Database::connect(cluster.test.url()).await.unwrap();
    let (log, _guard) = Log::start();
    let switch = async |from: &DatabaseConnection, to: &DatabaseConnection, to_port: u16| {
        run(from, "SET GLOBAL read_only = ON").await;
        for replica in [to, &beside[1]] {
            catch_up(replica, from).await;
        }
        run(to, PROMOTE).await;
        for replica in [from, &beside[1]] {
            follow_from_here(replica, to_port).await;
            run(replica, "STOP SLAVE SQL_THREAD").await;
        }
        cluster.proxy.lead_to(to_port);
        let name = unique_name();
        run(to, &format!("INSERT INTO item (name) VALUES ('{name}')")).await;
        let cookie = format!("db-position={}", text_of(to, WRITTEN).await);
        // The service's user may write where `read_only` is on, so that a write must not come before this.
        eventually("the service has left the old primary", async || {
            let read = Request::get(format!("/count/{name}"));
            send(&app, read, Some(&cookie)).await.text == "1 primary"
        })
        .await;
        for replica in [from, &beside[1]] {
            run(replica, "START SLAVE SQL_THREAD").await;
        }
        catch_up(&beside[1], to).await;
        primary_serves(&app, &log).await;
    };
    switch(&primary, &beside[0], cluster.replicas[0].0.port()).await;
    switch(&beside[0], &primary, cluster.primary.port()).await;
}

/// It was no fail-over that should have been: the former primary stays, and the promoted server is to be set up anew.
#[tokio::test]
async fn g18_a_mariadb_promotion_that_is_reverted_refuses_nothing_while_its_server_is_down() {
    let mut cluster = cluster().await;
    let replicas = cluster.replicas();
    let app = app(cluster.layer(&replicas));
    all_in_use(&app, &replicas).await;
    let beside = [cluster.beside(0).await, cluster.beside(1).await];
    let primary = Database::connect(cluster.test.url()).await.unwrap();
    for replica in &beside {
        catch_up(replica, &primary).await;
    }
    let write = async || {
        let name = unique_name();
        send(&app, Request::post(format!("/write/{name}")), None).await
    };
    run(&beside[0], PROMOTE).await;
    follow(&beside[1], &cluster.replicas[0].0).await;
    run(&beside[0], "INSERT INTO item (name) VALUES ('reverted')").await;
    eventually("the promotion is noticed", async || {
        write().await.status == StatusCode::SERVICE_UNAVAILABLE
    })
    .await;
    catch_up(&beside[1], &beside[0]).await;
    cluster.replicas[0].0.stop();
    // The network may have taken it from here: that it does not answer says nothing.
    let until = Instant::now() + 6 * CHECK_EVERY;
    while Instant::now() < until {
        assert_eq!(write().await.status, StatusCode::SERVICE_UNAVAILABLE);
    }
    let position = text_of(&primary, WRITTEN).await;
    run(&beside[1], "STOP SLAVE").await;
    run(&beside[1], "DELETE FROM item WHERE name = 'reverted'").await;
    run(&beside[1], "RESET MASTER").await;
    run(
        &beside[1],
        &format!("SET GLOBAL gtid_slave_pos = '{position}'"),
    )
    .await;
    follow(&beside[1], &cluster.primary).await;
    eventually("the former primary serves", async || {
        write().await.status == StatusCode::OK
    })
    .await;
    catch_up(&beside[1], &primary).await;
}

/// The old primary is demoted by a setting, which closes no connection to it, and nothing here writes.
#[tokio::test]
async fn g19_a_service_that_only_reads_follows_a_mariadb_switch_over() {
    let cluster = cluster().await;
    let replicas = cluster.replicas();
    let app = app(cluster.layer(&replicas));
    all_in_use(&app, &replicas).await;
    let beside = [cluster.beside(0).await, cluster.beside(1).await];
    let primary = Database::connect(cluster.test.url()).await.unwrap();
    let read = async |cookie: Option<&str>| send(&app, Request::get("/count/after"), cookie).await;
    // A connection to the primary, by a position that no replica has.
    assert_eq!(read(Some("db-position=0-1-999999")).await.text, "0 primary");
    run(&primary, "SET GLOBAL read_only = ON").await;
    for replica in &beside {
        catch_up(replica, &primary).await;
        run(replica, "STOP SLAVE SQL_THREAD").await;
    }
    run(&beside[0], PROMOTE).await;
    cluster.proxy.lead_to(cluster.replicas[0].0.port());
    // By another service.
    run(&beside[0], "INSERT INTO item (name) VALUES ('after')").await;
    let cookie = format!("db-position={}", text_of(&beside[0], WRITTEN).await);
    eventually("its client reads it", async || {
        read(Some(&cookie)).await.text == "1 primary"
    })
    .await;
    for _ in 0..20 {
        assert_eq!(read(Some(&cookie)).await.text, "1 primary");
    }
}

/// The same as [`follow`] for a server that may have been a primary.
async fn follow_from_here(replica: &DatabaseConnection, port: u16) {
    let sql = format!(
        "STOP SLAVE; CHANGE MASTER TO master_host = '127.0.0.1', master_port = {port}, master_user = 'root', \
         master_use_gtid = slave_pos, master_demote_to_slave = 1, master_connect_retry = 1; START SLAVE"
    );
    run(replica, &sql).await;
}
