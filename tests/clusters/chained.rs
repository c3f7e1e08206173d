//! G7: what Galera makes of a COMMIT that has another statement behind it in its text, by the driver alone.

use futures_util::{StreamExt, future::join_all};
use sea_orm::sqlx::{AssertSqlSafe, Connection, Executor, MySqlConnection, query_as};

use super::{
    nodes::{self, steer},
    report::Table,
};

const TABLE: Table = Table {
    name: "chained",
    head: &[
        "12 connections add to one row, by the driver alone",
        "COMMIT acknowledged",
        "acknowledged and lost",
    ],
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_is_alone_in_its_text_is_acknowledged_only_if_it_is_there() {
    steer(&["remove_nodes"]).await;
    steer(&["start_galera"]).await;
    let mut view = connect("n0").await;
    for sql in [
        "CREATE TABLE own (id bigint PRIMARY KEY)",
        "CREATE TABLE shared (id integer PRIMARY KEY, n bigint)",
        "INSERT INTO shared VALUES (1, 0)",
        "SET SESSION wsrep_sync_wait = 1",
    ] {
        view.execute(sql).await.unwrap();
    }
    for commit in [
        "COMMIT",
        "COMMIT AND CHAIN",
        "COMMIT; BEGIN",
        "COMMIT; DO 1",
    ] {
        view.execute("DELETE FROM own").await.unwrap();
        let told = join_all((0..12).map(|client| write(client, commit))).await;
        let rows: Vec<(i64,)> = query_as("SELECT id FROM own")
            .fetch_all(&mut view)
            .await
            .unwrap();
        let told: Vec<(i64,)> = told.into_iter().flatten().map(|id| (id,)).collect();
        let lost = told.iter().filter(|id| !rows.contains(id)).count();
        TABLE.row(&[
            format!("`{commit}`"),
            told.len().to_string(),
            lost.to_string(),
        ]);
        assert!(commit.contains(';') || lost == 0, "{commit}: {lost} lost");
    }
}

async fn connect(node: &str) -> MySqlConnection {
    let connection = MySqlConnection::connect(&nodes::url(node).await).await;
    connection.expect("the node answers")
}

/// Returns the rows whose COMMIT was acknowledged, without an error behind it either.
async fn write(client: i64, commit: &'static str) -> Vec<i64> {
    let mut db = connect(&format!("n{}", client % 3)).await;
    let (mut acknowledged, mut is_open) = (Vec::new(), false);
    for id in (client * 1000..).take(100) {
        if !is_open {
            db.execute("BEGIN").await.unwrap();
        }
        let insert = AssertSqlSafe(format!("INSERT INTO own VALUES ({id})"));
        let add = "UPDATE shared SET n = n + 1 WHERE id = 1";
        let done = db.execute(insert).await.is_ok()
            && db.execute(add).await.is_ok()
            && db
                .fetch_many(commit)
                .all(async |answer| answer.is_ok())
                .await;
        if done {
            acknowledged.push(id);
        } else {
            db.execute("ROLLBACK").await.unwrap();
        }
        is_open = done && commit != "COMMIT" && commit != "COMMIT; DO 1";
    }
    let _ = db.execute("ROLLBACK").await;
    acknowledged
}
