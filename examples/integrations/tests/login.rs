//! The service with logins: more clients than the pool has connections, hang-ups, and what a failure leaves.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[allow(dead_code, reason = "its `main` is for its users")]
#[path = "../src/bin/login.rs"]
mod example;
mod support;

use axum::Router;
use reqwest::{Client, StatusCode};
use tokio::{net::TcpListener, task::JoinSet};
use tower_sea_orm::PoolMode;

use self::support::{Kind, Site};

const CLIENTS: i32 = 20;

async fn served(site: &Site) -> String {
    example::create_tables(&site.pool).await.unwrap();
    let added = example::add_user(&site.pool, "ann", "correct-horse").await;
    added.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let app: Router = example::app(site.pool.clone());
    tokio::spawn(axum::serve(listener, app).into_future());
    url
}

/// A client that keeps cookies.
fn browser() -> Client {
    Client::builder().cookie_store(true).build().unwrap()
}

async fn post(client: &Client, url: String) -> StatusCode {
    client.post(url).send().await.unwrap().status()
}

async fn log_in(client: &Client, url: &str, password: &str) -> StatusCode {
    let form = format!("name=ann&password={password}");
    let request = client
        .post(format!("{url}/login"))
        .header("content-type", "application/x-www-form-urlencoded");
    request.body(form).send().await.unwrap().status()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn twenty_clients_on_a_pool_of_five_all_succeed() {
    for (kind, mode) in [
        (Kind::Postgres, PoolMode::Session),
        (Kind::Postgres, PoolMode::Transaction),
        (Kind::Sqlite, PoolMode::Session),
    ] {
        let site = Site::with(kind, 5, |pool| pool.pool_mode(mode)).await;
        let url = served(&site).await;
        let mut clients = JoinSet::new();
        for _ in 0..CLIENTS {
            let url = url.clone();
            clients.spawn(async move {
                let client = browser();
                let mut statuses = vec![log_in(&client, &url, "correct-horse").await];
                for path in ["take/1", "take/2", "logout"] {
                    statuses.push(post(&client, format!("{url}/{path}")).await);
                }
                statuses.push(post(&client, format!("{url}/take/1")).await);
                statuses
            });
        }
        let mut taken = [0, 0];
        while let Some(statuses) = clients.join_next().await {
            let statuses = statuses.unwrap();
            // Ten pieces of each, for twenty clients.
            for (taken, status) in taken.iter_mut().zip(&statuses[1..3]) {
                match *status {
                    StatusCode::OK => *taken += 1,
                    status => assert_eq!(status, StatusCode::CONFLICT, "{kind:?} {mode:?}"),
                }
            }
            assert_eq!(statuses[0], StatusCode::OK, "{kind:?} {mode:?}");
            assert_eq!(statuses[3], StatusCode::OK, "{kind:?} {mode:?}");
            assert_eq!(statuses[4], StatusCode::UNAUTHORIZED);
        }
        assert_eq!(taken, [10, 10], "{kind:?} {mode:?}");
        assert_eq!((site.pieces(1).await, site.pieces(2).await), (0, 0));
        site.assert_whole().await;
    }
}

#[tokio::test]
async fn a_stranger_gets_nothing_done() {
    let site = Site::new(Kind::Postgres, 2).await;
    let url = served(&site).await;
    let client = browser();
    let refused = log_in(&client, &url, "wrong").await;
    assert_eq!(refused, StatusCode::UNAUTHORIZED);
    let refused = post(&client, format!("{url}/take/1")).await;
    assert_eq!(refused, StatusCode::UNAUTHORIZED);
    assert_eq!(site.pieces(1).await, 10);
    site.assert_whole().await;
}

#[tokio::test]
async fn a_client_that_hangs_up_stays_logged_in_and_takes_nothing() {
    // The statement ends with its request: by that the test sees that the server has noticed the hang-up.
    let site = Site::with(Kind::Postgres, 2, |pool| pool.cancel_running()).await;
    let url = served(&site).await;
    let client = browser();
    log_in(&client, &url, "correct-horse").await;
    let lock = site.lock(1).await;
    let call = {
        let (client, url) = (client.clone(), format!("{url}/take/1"));
        tokio::spawn(async move { post(&client, url).await })
    };
    site.blocked(1).await;
    call.abort();
    site.returned().await;
    drop(lock);
    assert_eq!(site.pieces(1).await, 10);
    let taken = post(&client, format!("{url}/take/1")).await;
    assert_eq!(taken, StatusCode::OK);
    assert_eq!(site.pieces(1).await, 9);
    site.assert_whole().await;
}
