//! G13: many requests at once that change what they can, some of them dropped half-way: none sees another's.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use axum::{Router, extract::Path, routing::any};
use futures_util::future::join_all;
use http::StatusCode;
use sea_orm::ConnectionTrait;
use tower_sea_orm::{DbSession, DbTx, Reset};

use super::{Leak, leaks, look, returned};
use crate::support::{
    database::Kind,
    futures::after_polls,
    world::{World, post},
};

const CLIENTS: usize = 6;
const REQUESTS: usize = 40;

async fn none_sees_anothers(kind: Kind, leaks: &'static [Leak], reset: Reset) {
    let world = World::new(kind, 2).await;
    if kind == Kind::MySql {
        world
            .db
            .execute_unprepared("CREATE TABLE other (a int)")
            .await
            .unwrap();
    }
    let mut clean = Vec::new();
    for (_, see) in leaks {
        clean.push(look(&world.db, see).await);
    }
    let clean: Arc<[String]> = clean.into();
    let dirty = Arc::new(AtomicUsize::new(0));
    let counter = dirty.clone();
    let check = async move |db: &DbSession, Path((leak, end)): Path<(usize, u16)>| {
        for ((_, see), clean) in leaks.iter().zip(&*clean) {
            counter.fetch_add(usize::from(look(db, see).await != *clean), Ordering::SeqCst);
        }
        // A lock may be taken by the other connection.
        let _ = db.execute_unprepared(leaks[leak].0).await;
        StatusCode::from_u16(end).unwrap()
    };
    let also = check.clone();
    let layer = world.layer_with(|pool| pool.reset(reset));
    let pool = layer.pool().clone();
    let app = Router::new()
        .route(
            "/plain/{leak}/{end}",
            any(async move |db: DbSession, path| check(&db, path).await),
        )
        .route(
            "/tx/{leak}/{end}",
            any(async move |_: DbTx, db: DbSession, path| also(&db, path).await),
        )
        .layer(layer);
    let clients = (0..CLIENTS).map(async |client| {
        for request in 0..REQUESTS {
            let number = client * REQUESTS + request;
            let leak = (number * 7) % leaks.len();
            let way = if number.is_multiple_of(3) {
                "tx"
            } else {
                "plain"
            };
            let end = if number.is_multiple_of(4) { 404 } else { 200 };
            let polls = if number.is_multiple_of(2) {
                u32::MAX
            } else {
                (number % 60) as u32
            };
            drop(after_polls(polls, post(&app, &format!("/{way}/{leak}/{end}"))).await);
        }
    });
    join_all(clients).await;
    returned(&pool).await;
    assert_eq!(
        dirty.load(Ordering::SeqCst),
        0,
        "{kind:?} {reset:?}: what was seen of others"
    );
    world.assert_whole().await;
}

/// Leaks that neither wait for a lock of another connection nor block the others' work.
static POSTGRES: [Leak; 8] = [
    leaks::POSTGRES[0],
    leaks::POSTGRES[1],
    leaks::POSTGRES[5],
    leaks::POSTGRES[7],
    leaks::POSTGRES[11],
    leaks::POSTGRES[13],
    leaks::POSTGRES[17],
    leaks::POSTGRES[18],
];

static MYSQL: [Leak; 4] = [
    ("SELECT GET_LOCK('mine', 0)", leaks::MYSQL[0].1),
    ("SET @mine = 'y'", "SELECT CAST(@mine AS CHAR)"),
    (
        "SET time_zone = '+09:00'",
        "SELECT CAST(@@time_zone AS CHAR)",
    ),
    (
        "CREATE TEMPORARY TABLE mine (a int)",
        "SELECT CAST(count(*) AS CHAR) FROM mine",
    ),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g13_no_request_sees_anothers_state_on_postgres() {
    none_sees_anothers(Kind::Postgres, &POSTGRES, Reset::SessionState).await;
    none_sees_anothers(Kind::Postgres, &POSTGRES, Reset::SessionStateAlways).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g13_no_request_sees_anothers_state_on_mysql() {
    none_sees_anothers(Kind::MySql, &MYSQL, Reset::SessionState).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g13_no_request_sees_anothers_state_on_sqlite() {
    none_sees_anothers(Kind::SqliteFile, &leaks::SQLITE, Reset::SessionState).await;
    none_sees_anothers(Kind::SqliteMemory, &leaks::SQLITE, Reset::SessionState).await;
}
