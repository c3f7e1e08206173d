//! G20: only what is known undone is done again.

mod begun;
mod body;
mod conflicts;
mod jobs;
mod limits;
mod never;
mod placement;
mod servers;
mod storm;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use axum::{Router, handler::Handler, response::Response, routing::any};
use http::StatusCode;
use sea_orm::{ConnectionTrait, DatabaseConnection, DbErr, Statement, TransactionTrait};
use tower_sea_orm::{Attempt, DbSessionLayer, Error, RetryLayer};

use crate::support::{database::Kind, requests::Failed, site::Site, statements::insert};

/// The databases on which two connections can meet.
const MEETING: [Kind; 3] = [Kind::Postgres, Kind::MySql, Kind::SqliteFile];

/// A layer that is not in a test's way.
fn retrying() -> RetryLayer {
    RetryLayer::new()
        .backoff(Duration::from_millis(1), Duration::from_millis(20))
        .total_timeout(Duration::from_secs(600))
}

/// A database with the row that [`conflict`] is about.
async fn site(kind: Kind) -> Site {
    let site = Site::new(kind).await;
    site.run(&insert("row")).await;
    site
}

/// A service with a handler in a transaction, and a retry layer outside of that.
fn app<H, T>(site: &Site, retry: RetryLayer, handler: H) -> Router
where
    H: Handler<T, ()>,
    T: 'static,
{
    app_in(site.layer.clone(), retry, handler)
}

fn app_in<H, T>(layer: DbSessionLayer, retry: RetryLayer, handler: H) -> Router
where
    H: Handler<T, ()>,
    T: 'static,
{
    Router::new()
        .fallback(any(handler))
        .layer(layer)
        .layer(retry)
}

/// Meets a conflict with a transaction of `other`, which the server reports at once.
async fn conflict(tx: &impl ConnectionTrait, other: &DatabaseConnection) -> Result<(), Failed> {
    let update = "UPDATE item SET hits = hits + 1 WHERE name = 'row'";
    let read = "SELECT id FROM item WHERE name = 'row'";
    let backend = tx.get_database_backend();
    tx.query_one_raw(Statement::from_string(backend, read))
        .await?;
    let locked = other.begin().await?;
    let sql = match backend {
        sea_orm::DbBackend::Postgres => {
            "DO $$ BEGIN RAISE EXCEPTION 'conflict' USING ERRCODE = '40001'; END $$"
        }
        sea_orm::DbBackend::MySql => {
            locked.execute_unprepared(update).await?;
            "SELECT id FROM item WHERE name = 'row' FOR UPDATE NOWAIT"
        }
        _ => {
            // What was read has changed: SQLite does not wait where that would be in vain.
            locked.execute_unprepared(update).await?;
            locked.commit().await?;
            let failed = tx.execute_unprepared(update).await;
            return Err(Failed(failed.unwrap_err()));
        }
    };
    let failed = tx.execute_unprepared(sql).await;
    locked.rollback().await?;
    Err(Failed(failed.unwrap_err()))
}

/// How often handlers ran.
#[derive(Clone, Default)]
struct Runs(Arc<AtomicU32>);

impl Runs {
    fn note(&self) -> u32 {
        self.0.fetch_add(1, Ordering::SeqCst) + 1
    }

    fn count(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }
}

/// How many attempts a response says were made.
fn attempts<B>(response: &http::Response<B>) -> u32 {
    assert!(response.extensions().get::<Attempt>().is_some());
    Attempt::of(response.extensions()).number()
}

/// Asserts that a response is the session layer's own after a conflict.
#[track_caller]
fn assert_conflict(response: &Response) {
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(response.headers().contains_key("retry-after"));
}

fn is_conflict(error: &DbErr) -> bool {
    Error::of(error).is_some_and(|error| error.is_conflict())
}
