//! A database, a pool and an observer beside it: what the tests of requests have in common.

use std::sync::{Arc, Mutex};

use axum::{Router, body::Body, handler::Handler, response::Response};
use http::{Method, Request};
use sea_orm::{ConnectionTrait, DatabaseConnection, Statement};
use tokio::time::timeout;
use tower::ServiceExt;
use tower_sea_orm::{DbSessionLayer, Outcome, SessionPoolBuilder};

use super::{
    database::{Kind, TestDb, count_items},
    pool::assert_whole,
    wait::{BOUND, eventually},
};
use crate::support::pool::{layer_with, session_layer};

/// One database with a pool for the service, and a second view of it.
#[derive(Debug)]
pub struct World {
    /// The kind of the database.
    pub kind: Kind,
    test: TestDb,
    /// The service's pool.
    pub db: DatabaseConnection,
    /// Another pool; for an in-memory database, which has one connection, the same.
    pub view: DatabaseConnection,
    size: u32,
}

impl World {
    /// A new database with a pool of `size`.
    pub async fn new(kind: Kind, size: u32) -> Self {
        let test = TestDb::new(kind).await;
        let db = test.connect(size).await;
        let view = test.observer().await.unwrap_or_else(|| db.clone());
        Self {
            kind,
            test,
            db,
            view,
            size,
        }
    }

    /// A layer over the service's pool.
    pub fn layer(&self) -> DbSessionLayer {
        session_layer(self.db.clone())
    }

    /// A layer over the service's pool with settings.
    pub fn layer_with(
        &self,
        set: impl FnOnce(SessionPoolBuilder) -> SessionPoolBuilder,
    ) -> DbSessionLayer {
        layer_with(&self.db, set)
    }

    /// Returns how many items of this name others see.
    pub async fn seen(&self, name: &str) -> i64 {
        count_items(&self.view, name).await
    }

    /// Asserts that the service's pool is whole.
    pub async fn assert_whole(&self) {
        assert_whole(&self.test, &self.db, self.size).await;
    }
}

/// A service that answers everything by `handler`.
pub fn serve<H, T>(handler: H) -> Router
where
    H: Handler<T, ()>,
    T: 'static,
{
    Router::new().fallback(handler)
}

/// The answer of `app`.
pub async fn ask(app: &Router, method: Method, uri: &str) -> Response {
    let request = Request::builder()
        .method(method)
        .uri(uri)
        .body(Body::empty())
        .unwrap();
    match app.clone().oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

/// The answer of `app` to a POST of `uri`.
pub async fn post(app: &Router, uri: &str) -> Response {
    ask(app, Method::POST, uri).await
}

/// What the response's extensions say about the transaction with this tag: one thing, or nothing.
pub fn outcome_of<Tag: 'static, B>(response: &http::Response<B>) -> &'static str {
    let Some(outcome) = response.extensions().get::<Outcome<Tag>>() else {
        return "none";
    };
    if outcome.is_autocommit() {
        return "none";
    }
    let failed = outcome.error().is_some() && !outcome.is_unknown();
    let answers = [
        (outcome.is_committed(), "committed"),
        (outcome.is_rolled_back(), "rolled back"),
        (outcome.is_untouched(), "untouched"),
        (outcome.is_pending(), "pending"),
        (outcome.is_unknown(), "unknown"),
        (failed, "failed"),
    ];
    let mut said = answers.into_iter().filter(|(is_so, _)| *is_so);
    let first = said.next().expect("one answer").1;
    assert!(said.next().is_none(), "more than one answer: {outcome:?}");
    first
}

/// What the response's extensions say about the transaction.
pub fn outcome<B>(response: &http::Response<B>) -> &'static str {
    outcome_of::<tower_sea_orm::DefaultDatabase, B>(response)
}

/// A statement that inserts an item.
pub fn inserting(kind: Kind, name: &str) -> Statement {
    Statement::from_string(
        kind.backend(),
        format!("INSERT INTO item (name) VALUES ('{name}')"),
    )
}

/// The events, in order.
#[derive(Clone, Debug, Default)]
pub struct Log(Arc<Mutex<Vec<&'static str>>>);

impl Log {
    /// Notes `what` when it is awaited.
    pub fn note(&self, what: &'static str) -> impl Future<Output = ()> + Send + 'static {
        let log = self.0.clone();
        async move { log.lock().unwrap().push(what) }
    }

    /// Returns the events so far.
    pub fn read(&self) -> Vec<&'static str> {
        self.0.lock().unwrap().clone()
    }

    /// Waits until exactly this has happened.
    pub async fn becomes(&self, expected: &[&str]) {
        let waiting = eventually("everything happened", async || {
            self.read().len() >= expected.len()
        });
        if timeout(BOUND / 2, waiting).await.is_err() {
            panic!("{:?} instead of {expected:?}", self.read());
        }
        assert_eq!(self.read(), expected);
    }
}

impl World {
    /// Makes a table whose [`ORPHAN`]s are found at COMMIT only; MySQL and MariaDB have none such.
    pub async fn with_late_check(kind: Kind, size: u32) -> Self {
        let world = Self::new(kind, size).await;
        let sql =
            "CREATE TABLE part (item integer REFERENCES item (id) DEFERRABLE INITIALLY DEFERRED)";
        world.db.execute_unprepared(sql).await.expect("a table");
        world
    }
}

/// The kinds of databases that can refuse a COMMIT for what is in it.
pub const CHECKS_LATE: [Kind; 3] = [Kind::Postgres, Kind::SqliteFile, Kind::SqliteMemory];

/// Has COMMIT fail.
pub const ORPHAN: &str = "INSERT INTO part VALUES (-1)";
