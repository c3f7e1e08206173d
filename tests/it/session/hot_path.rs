//! The allocations that a session costs a request, counted on the request's thread. The numbers are
//! exact, so these are limits and not measurements.

use axum::{Router, body::Body, routing::get};
use http::Request;
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, Statement, TransactionTrait};
use tokio::runtime::{Builder, Runtime};
use tower::{Service, ServiceExt};
use tower_sea_orm::{DbSession, DbSessionLayer};

use crate::support::database::{Kind, TestDb};

const COUNTED: u64 = 200;

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// Allocations per request.
fn per_request(runtime: &Runtime, app: &Router) -> f64 {
    // As `axum::serve` does it once at the start. Without it, axum builds the route anew for each request,
    // and clones the layers for that.
    let mut app = app.clone().with_state::<()>(()).into_service::<Body>();
    let mut serve = |requests| {
        runtime.block_on(async {
            for _ in 0..requests {
                let request = Request::new(Body::empty());
                let response = app.ready().await.unwrap().call(request).await.unwrap();
                assert_eq!(response.status(), 200);
            }
        });
    };
    serve(20);
    let counted = allocation_counter::measure(|| serve(COUNTED));
    counted.count_total as f64 / COUNTED as f64
}

async fn select(db: &impl ConnectionTrait, times: usize) {
    for _ in 0..times {
        let statement = Statement::from_string(DbBackend::Sqlite, "SELECT 1");
        db.query_one_raw(statement).await.unwrap().unwrap();
    }
}

fn connect(runtime: &Runtime) -> (TestDb, DatabaseConnection) {
    runtime.block_on(async {
        let test = TestDb::new(Kind::SqliteFile).await;
        let db = test.connect(4).await;
        (test, db)
    })
}

#[test]
fn a_session_that_is_not_used_costs_a_few_allocations() {
    let runtime = runtime();
    let (_test, db) = connect(&runtime);
    let app = || Router::new().route("/", get(async || ()));
    let bare = per_request(&runtime, &app().layer(tower::layer::util::Identity::new()));
    let lazy = per_request(
        &runtime,
        &app().layer(DbSessionLayer::new(db.clone()).lazy()),
    ) - bare;
    let eager = per_request(&runtime, &app().layer(DbSessionLayer::new(db.clone()))) - bare;
    let transaction = per_request(
        &runtime,
        &app().layer(DbSessionLayer::new(db).transaction()),
    ) - bare;
    // The session, its entry in the request's extensions, and the growth of their table.
    eprintln!("bare {bare}, lazy +{lazy}, eager +{eager}, transaction +{transaction}");
    assert!(lazy <= 3.0, "lazy, untouched: {lazy}");
    assert!(eager <= 3.5, "eager, warm: {eager}");
}

#[test]
fn a_statement_costs_little_more_than_in_seaorms_own_transaction() {
    let runtime = runtime();
    let (_test, db) = connect(&runtime);
    let own = |statements| {
        let db = db.clone();
        let handler = move || async move {
            let tx = db.begin().await.unwrap();
            select(&tx, statements).await;
            tx.commit().await.unwrap();
        };
        Router::new().route("/", get(handler))
    };
    let ours = |statements| {
        let app = Router::new().route(
            "/",
            get(move |db: DbSession| async move { select(&db, statements).await }),
        );
        app.layer(DbSessionLayer::new(db.clone()).transaction())
    };
    let each = |one: Router, eleven: Router| {
        (per_request(&runtime, &eleven) - per_request(&runtime, &one)) / 10.0
    };
    let theirs = each(own(1), own(11));
    let mine = each(ours(1), ours(11));
    eprintln!("a statement: SeaORM's transaction {theirs:.2}, a session {mine:.2}");
    assert!(mine <= theirs + 2.0, "{mine} against {theirs}");
}
