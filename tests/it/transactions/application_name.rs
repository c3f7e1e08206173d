//! G13: a request's transactions are named in `pg_stat_activity`, and nothing else is.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use axum::{Router, body::Body, routing::any};
use http::{Request, StatusCode};
use sea_orm::{ConnectionTrait, DatabaseConnection, Statement, TransactionTrait};
use tokio::sync::Notify;
use tower::ServiceExt;
use tower_sea_orm::{DbSession, DbSessionLayer, DbTx, TransactionLayer, trace_id};

use crate::support::{
    database::{Kind, unique_name},
    site::value,
    wait::eventually,
    world::{World, outcome, post, serve},
};

const SHOWN: &str = "SELECT current_setting('application_name')";

/// What an operator sees of the connection with this name.
async fn state(view: &DatabaseConnection, name: &str) -> Option<String> {
    let sql = "SELECT state || coalesce(' ' || wait_event_type, '') FROM pg_stat_activity WHERE application_name = $1";
    let statement = Statement::from_sql_and_values(view.get_database_backend(), sql, [name.into()]);
    let row = view.query_one_raw(statement).await.unwrap();
    row.map(|row| row.try_get_by_index(0).unwrap())
}

#[tokio::test]
async fn an_operator_sees_which_route_and_trace_a_transaction_belongs_to() {
    let world = World::new(Kind::Postgres, 2).await;
    let layer = world
        .layer()
        .application_name(|parts| format!("{} {}", trace_id(parts).unwrap_or("-"), parts.uri));
    let (go, lock) = (Arc::new(Notify::new()), 77);
    let gone = go.clone();
    let app = Router::new().route(
        "/items",
        any(async move |tx: DbTx| {
            let sql = format!("SELECT pg_advisory_xact_lock({lock})");
            tx.execute_unprepared(&sql).await.unwrap();
            gone.notified().await;
            value::<i32>(&tx, "SELECT pg_backend_pid()")
                .await
                .to_string()
        }),
    );
    let request = Request::get("/items")
        .header(
            "traceparent",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        )
        .body(Body::empty())
        .unwrap();
    let name = "0af7651916cd43dd8448eb211c80319c /items";
    let holder = world.view.begin().await.unwrap();
    let lock = format!("SELECT pg_advisory_xact_lock({lock})");
    holder.execute_unprepared(&lock).await.unwrap();
    let served = tokio::spawn(app.layer(layer).oneshot(request));
    let sees = async |expected: Option<&str>| {
        eventually("the operator sees it", async || {
            state(&world.db, name).await.as_deref() == expected
        })
        .await;
    };
    // While a statement waits for a lock, then between two statements, and no longer.
    sees(Some("active Lock")).await;
    holder.rollback().await.unwrap();
    sees(Some("idle in transaction Client")).await;
    go.notify_one();
    let response = served.await.unwrap().unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    sees(None).await;
    world.assert_whole().await;
}

#[tokio::test]
async fn statements_that_commit_by_themselves_keep_the_connections_name() {
    let world = World::new(Kind::Postgres, 1).await;
    let own: String = value(&world.db, SHOWN).await;
    let layer = world.layer().application_name(|_| "mine".to_owned());
    let (before, other) = (own.clone(), own.clone());
    let app = serve(async move |db: DbSession| {
        assert!(!db.is_transactional());
        assert_eq!(value::<String>(&db, SHOWN).await, before);
        let tx = db.tx();
        assert_eq!(value::<String>(&tx, SHOWN).await, "mine");
        tx.commit().await.unwrap();
        assert_eq!(value::<String>(&tx, SHOWN).await, "mine", "each of them");
    });
    let response = post(&app.layer(layer.clone()), "/").await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(value::<String>(&world.db, SHOWN).await, own);
    // It asks for no transaction, so that a route may opt out of one.
    let app = serve(async move |db: DbSession| {
        assert_eq!(value::<String>(&db, SHOWN).await, other);
    });
    let app = app.layer(TransactionLayer::autocommit());
    let response = post(&app.layer(layer.transaction()), "/").await;
    assert_eq!(
        (response.status(), outcome(&response)),
        (StatusCode::OK, "none")
    );
    world.assert_whole().await;
}

#[tokio::test]
async fn a_layer_further_in_has_the_last_word_and_other_settings_stay() {
    let world = World::new(Kind::Postgres, 1).await;
    let outer = world
        .layer()
        .set_local("app.tenant", |_| "blue".to_owned())
        .application_name(|_| "outer".to_owned());
    let inner = world.layer().application_name(|_| "inner".to_owned());
    let app = serve(async |db: DbSession| {
        let sql = "SELECT current_setting('application_name') || current_setting('app.tenant')";
        value::<String>(&db, sql).await
    });
    let response = post(&app.layer(inner).layer(outer), "/").await;
    assert_eq!(crate::support::requests::text(response).await, "innerblue");
    // Asked for by its own name, it is a setting like another.
    let layer = world
        .layer()
        .set_local("application_name", |_| "set".to_owned())
        .application_name(|_| "named".to_owned());
    let app = serve(async |db: DbSession| value::<String>(&db, SHOWN).await);
    let response = post(&app.layer(layer), "/").await;
    assert_eq!(crate::support::requests::text(response).await, "set");
}

#[tokio::test]
async fn any_text_is_a_name() {
    let world = World::new(Kind::Postgres, 1).await;
    let long = format!("{}{}", unique_name(), "x".repeat(99));
    for (name, shown) in [
        (String::new(), String::new()),
        (
            "o'hara\\'; DROP TABLE item; --".to_owned(),
            "o'hara\\'; DROP TABLE item; --".to_owned(),
        ),
        ("/käse\n\0/{id}".to_owned(), "/k?se??/{id}".to_owned()),
        (long.clone(), long[..63].to_owned()),
        ("é".repeat(99), "?".repeat(63)),
    ] {
        let layer = world
            .layer()
            .transaction()
            .application_name(move |_| name.clone());
        let app = serve(async |db: DbSession| {
            let sql = "SELECT application_name FROM pg_stat_activity WHERE pid = pg_backend_pid()";
            value::<String>(&db, sql).await
        });
        let response = post(&app.layer(layer), "/").await;
        assert_eq!(crate::support::requests::text(response).await, shown);
    }
    world.assert_whole().await;
}

#[tokio::test]
async fn a_name_for_each_request_prepares_no_statement_anew() {
    let world = World::new(Kind::Postgres, 1).await;
    let layer = world
        .layer()
        .transaction()
        .application_name(|_| unique_name());
    let app = serve(async |db: DbSession| {
        let sql = "SELECT COUNT(*) FROM pg_prepared_statements";
        value::<i64>(&db, sql).await.to_string()
    })
    .layer(layer);
    let mut counts = Vec::new();
    for _ in 0..4 {
        let response = post(&app, "/").await;
        counts.push(crate::support::requests::text(response).await);
    }
    assert_eq!(
        counts[1..],
        [(); 3].map(|()| counts[1].clone()),
        "{counts:?}"
    );
}

#[tokio::test]
async fn a_database_that_shows_no_names_is_refused_when_the_layer_is_built() {
    for kind in [Kind::MySql, Kind::SqliteMemory] {
        let world = World::new(kind, 1).await;
        let layer = DbSessionLayer::new(world.db.clone());
        let build = || layer.application_name(|_| String::new());
        let panic = catch_unwind(AssertUnwindSafe(build)).unwrap_err();
        let text = panic.downcast_ref::<String>().unwrap();
        assert!(text.contains("`application_name`"), "{text}");
    }
}
