//! G13: a schema for each tenant. On PostgreSQL, statements that the driver keeps prepared never find another tenant's tables.

use axum::{Router, body::Body};
use http::{Request, Response, StatusCode, request::Parts};
use sea_orm::{ConnectionTrait, DbBackend, Statement};
use tower::ServiceExt;
use tower_sea_orm::{DbSession, DbSessionLayer, SessionPool};

use crate::support::{
    database::{Kind, unique_name},
    pool::returned,
    requests::{Failed, text},
    world::{World, serve},
};

/// As often as PostgreSQL needs to make a plan that it keeps (<https://www.postgresql.org/docs/current/sql-prepare.html>).
const ROUNDS: usize = 10;

fn tenant(parts: &Parts) -> String {
    parts.headers["x-tenant"].to_str().unwrap().to_owned()
}

/// The two ways to set it.
fn layers(world: &World) -> [DbSessionLayer; 2] {
    let by_hand = |parts: &Parts| {
        let sql = "SELECT set_config('search_path', $1, true)";
        let values = [tenant(parts).into()];
        vec![Statement::from_sql_and_values(
            DbBackend::Postgres,
            sql,
            values,
        )]
    };
    [
        world.layer().search_path(|parts| vec![tenant(parts)]),
        world.layer().on_begin(by_hand),
    ]
}

/// A service that reads the tenant's thing, by a statement that is prepared once for each connection.
fn reading(sql: &'static str) -> Router {
    serve(async move |db: DbSession| {
        let values = [1.into()];
        let statement = Statement::from_sql_and_values(db.backend(), sql, values);
        let row = db.query_one_raw(statement).await.map_err(Failed)?;
        Ok::<_, Failed>(row.unwrap().try_get_by_index::<String>(0).unwrap())
    })
}

async fn ask(app: &Router, tenant: &str) -> Response<Body> {
    let request = Request::get("/").header("x-tenant", tenant);
    let request = request.body(Body::empty()).unwrap();
    app.clone().oneshot(request).await.unwrap()
}

#[tokio::test]
async fn a_prepared_statement_reads_the_schema_of_the_requests_tenant() {
    let world = World::new(Kind::Postgres, 1).await;
    for schema in ["red", "blue"] {
        let sql = format!(
            "CREATE SCHEMA {schema}; CREATE TABLE {schema}.thing AS SELECT 1 AS id, '{schema}' AS name"
        );
        world.view.execute_unprepared(&sql).await.unwrap();
    }
    for layer in layers(&world) {
        let app = reading("SELECT name FROM thing WHERE id = $1").layer(layer);
        for tenant in ["red", "blue", "red"].repeat(ROUNDS) {
            let response = ask(&app, tenant).await;
            assert_eq!(response.status(), StatusCode::OK);
            assert_eq!(text(response).await, tenant);
        }
    }
    world.assert_whole().await;
}

#[tokio::test]
async fn tables_that_differ_cost_a_503_and_never_show_another_tenants_row() {
    let world = World::new(Kind::Postgres, 1).await;
    let sql = "CREATE SCHEMA red; CREATE TABLE red.thing AS SELECT 'red' AS name, 1 AS id; \
               CREATE SCHEMA blue; CREATE TABLE blue.thing AS SELECT 'blue'::varchar(9) AS name, 1 AS id, 2 AS more";
    world.view.execute_unprepared(sql).await.unwrap();
    for layer in layers(&world) {
        let app = reading("SELECT * FROM thing WHERE id = $1").layer(layer);
        let mut served = 0;
        for tenant in ["red", "red", "blue", "blue"].repeat(ROUNDS) {
            let response = ask(&app, tenant).await;
            if response.status() == StatusCode::SERVICE_UNAVAILABLE {
                assert!(response.headers().contains_key("retry-after"));
                continue;
            }
            assert_eq!(response.status(), StatusCode::OK);
            assert_eq!(text(response).await, tenant);
            served += 1;
        }
        // The connection of a 503 is replaced, so that the next try succeeds.
        assert!(served >= 2 * ROUNDS, "{served}");
    }
    world.assert_whole().await;
}

/// Why the guide warns of it: MySQL and MariaDB look a statement's tables up in the database that was in use when it was
/// prepared.
#[tokio::test]
async fn use_in_on_begin_shows_another_tenants_rows() {
    let world = World::new(Kind::MySql, 1).await;
    let prefix = unique_name();
    for tenant in ["red", "blue"] {
        for sql in [
            format!("CREATE DATABASE {prefix}_{tenant}"),
            format!("CREATE TABLE {prefix}_{tenant}.thing AS SELECT 1 AS id, '{tenant}' AS name"),
        ] {
            world.view.execute_unprepared(&sql).await.unwrap();
        }
    }
    let layer = world.layer().on_begin(move |parts| {
        let sql = format!("USE {prefix}_{}", tenant(parts));
        vec![Statement::from_string(DbBackend::MySql, sql)]
    });
    let app = reading("SELECT name FROM thing WHERE id = ?").layer(layer);
    for (tenant, seen) in [("red", "red"), ("blue", "red")] {
        assert_eq!(text(ask(&app, tenant).await).await, seen);
    }
    // The connection is in another database than the pool's, and is closed with it.
    returned(&SessionPool::new(world.db.clone())).await;
}
