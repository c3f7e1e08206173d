//! G13: what the pool's options had set on a connection survives its reset.

use axum::{Router, routing::any};
use http::StatusCode;
use sea_orm::{
    ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DbBackend, MockDatabase,
    Statement, TransactionTrait,
    sqlx::{Executor, pool::PoolOptions},
};
use tower_sea_orm::{DbSession, DbSessionLayer, DbTx, Reset, SessionPool, testing::TestPool};

use super::{connection, leaks, look, returned};
use crate::support::{
    database::{Kind, TestDb, count_items, insert_item},
    pool::{assert_whole, layer_with, pool_with},
    world::{World, post, serve},
};

const CONFIGURED: [&str; 7] = [
    "application_name",
    "lock_timeout",
    "work_mem",
    "search_path",
    "role",
    "datestyle",
    "default_transaction_isolation",
];

async fn configured<C: ConnectionTrait>(db: &C) -> Vec<String> {
    let mut values = Vec::new();
    for name in CONFIGURED {
        values.push(look(db, &format!("SELECT current_setting('{name}')")).await);
    }
    values
}

async fn connect(options: ConnectOptions) -> DatabaseConnection {
    Database::connect(options).await.unwrap()
}

/// Options whose connections have extra settings, some with values that are hard to quote.
fn with_settings(test: &TestDb) -> ConnectOptions {
    let mut options = test.options(2);
    options.map_sqlx_postgres_pool_opts(|options: PoolOptions<_>| {
        options.after_connect(|connection, _| {
            Box::pin(async move {
                let sql = "SET application_name = 'it''s \\ \"$$é%s'; SET lock_timeout = '7s'; SET work_mem = '5MB'; \
                           SET search_path = \"it's, \"\"mine\"\"\", public; SET datestyle = 'SQL, DMY'; \
                           SET default_transaction_isolation = 'repeatable read'; SET ROLE pg_write_all_data";
                connection.execute(sql).await.map(drop)
            })
        })
    });
    options
}

#[tokio::test]
async fn settings_of_after_connect_survive_every_reset() {
    let test = TestDb::new(Kind::Postgres).await;
    for reset in [Reset::SessionState, Reset::SessionStateAlways] {
        for transaction in [false, true] {
            for warm in [true, false] {
                let db = connect(with_settings(&test)).await;
                let pool = pool_with(&db, |pool| pool.reset(reset).direct_handoff(warm));
                let session = pool.session().await.unwrap();
                let (first, expected) = (
                    connection(Kind::Postgres, &*session).await,
                    configured(&*session).await,
                );
                assert_eq!(expected[1..3], ["7s", "5MB"]);
                assert_eq!(expected[4], "pg_write_all_data");
                drop(session);
                returned(&pool).await;
                for _ in 0..3 {
                    let session = pool.session().await.unwrap();
                    for name in CONFIGURED.into_iter().filter(|name| *name != "role") {
                        let value = if name == "datestyle" { "German" } else { "99" };
                        let value = if name.ends_with("isolation") {
                            "serializable"
                        } else {
                            value
                        };
                        let sql = format!("SET {name} = '{value}'");
                        if transaction {
                            let tx = session.begin().await.unwrap();
                            tx.execute_unprepared(&sql).await.unwrap();
                            tx.commit().await.unwrap();
                        } else {
                            session.execute_unprepared(&sql).await.unwrap();
                        }
                    }
                    session.execute_unprepared("RESET ROLE").await.unwrap();
                    session
                        .execute_unprepared("SET client_encoding = 'LATIN1'")
                        .await
                        .unwrap();
                    drop(session);
                    returned(&pool).await;
                    let session = pool.session().await.unwrap();
                    assert_eq!(
                        configured(&*session).await,
                        expected,
                        "{reset:?} transaction: {transaction}"
                    );
                    let same = connection(Kind::Postgres, &*session).await == first;
                    assert!(same || !warm, "{reset:?}: it was closed");
                    drop(session);
                    returned(&pool).await;
                }
                db.close().await.unwrap();
            }
        }
    }
}

#[tokio::test]
async fn seaorms_schema_search_path_survives_a_reset() {
    let test = TestDb::new(Kind::Postgres).await;
    let mut options = test.options(2);
    options.set_schema_search_path("mine,public");
    let db = connect(options).await;
    let pool = pool_with(&db, |pool| pool.reset(Reset::SessionState));
    for _ in 0..3 {
        let session = pool.session().await.unwrap();
        assert_eq!(
            look(&*session, "SELECT current_setting('search_path')").await,
            "mine, public"
        );
        session
            .execute_unprepared("SET search_path = pg_catalog")
            .await
            .unwrap();
        drop(session);
        returned(&pool).await;
    }
    assert_whole(&test, &db, 2).await;
}

/// A setting of the transaction looks on the server like one of the session.
#[tokio::test]
async fn settings_of_a_transaction_are_not_the_connections_own() {
    let see = "SELECT current_setting('lock_timeout')";
    for by_layer in [true, false] {
        let world = World::new(Kind::Postgres, 2).await;
        let app = serve(async move |tx: DbTx| {
            if !by_layer {
                tx.execute_unprepared("SET LOCAL lock_timeout = '9s'")
                    .await
                    .unwrap();
            }
            assert_eq!(look(&tx, see).await, "9s");
            // Only now it becomes clear that there is something to put back.
            tx.execute_unprepared("SELECT pg_advisory_lock(7)")
                .await
                .unwrap();
            tx.execute_unprepared("SET statement_timeout = '8s'")
                .await
                .unwrap();
        });
        let layer = world.layer_with(|pool| pool.reset(Reset::SessionState));
        let sql = "SELECT set_config('lock_timeout', $1, true)";
        let layer = match by_layer {
            true => layer.on_begin(move |_| {
                vec![Statement::from_sql_and_values(
                    DbBackend::Postgres,
                    sql,
                    ["9s".into()],
                )]
            }),
            false => layer,
        };
        let pool = layer.pool().clone();
        let app = app.layer(layer);
        for _ in 0..3 {
            assert_eq!(post(&app, "/").await.status(), StatusCode::OK);
            returned(&pool).await;
            for session in [pool.session().await.unwrap(), pool.session().await.unwrap()] {
                assert_eq!(look(&*session, see).await, "0", "by the layer: {by_layer}");
                assert_eq!(
                    look(&*session, "SELECT current_setting('statement_timeout')").await,
                    "0"
                );
            }
        }
        world.assert_whole().await;
    }
}

#[tokio::test]
async fn a_prepared_connection_is_reset_or_closed_after_its_request() {
    for kind in [Kind::Postgres, Kind::MySql, Kind::SqliteFile] {
        let (sql, see) = match kind {
            Kind::Postgres => leaks::POSTGRES[1],
            Kind::MySql => ("SET @mine = 'y'", "SELECT CAST(@mine AS CHAR)"),
            _ => leaks::SQLITE[0],
        };
        let world = World::new(kind, 2).await;
        let before = look(&world.db, see).await;
        let layer = world.layer_with(|pool| pool.reset(Reset::SessionState));
        let pool = layer.pool().clone();
        let layer = layer.on_acquire(move |_| vec![Statement::from_string(kind.backend(), sql)]);
        let handler = async move |db: DbSession| {
            format!("{} {}", look(&db, see).await, connection(kind, &db).await)
        };
        let app = Router::new().route("/", any(handler)).layer(layer);
        let mut connections = std::collections::BTreeSet::new();
        for _ in 0..3 {
            let answer = crate::support::requests::text(post(&app, "/").await).await;
            let (seen, number) = answer.split_once(' ').unwrap();
            assert_ne!(seen, before, "{kind:?}: it is prepared");
            connections.insert(number.to_owned());
            returned(&pool).await;
            for session in [pool.session().await.unwrap(), pool.session().await.unwrap()] {
                assert_eq!(look(&*session, see).await, before, "{kind:?}");
            }
        }
        match kind {
            Kind::Postgres => assert!(connections.len() <= 2, "{connections:?}: none was closed"),
            Kind::MySql => assert_eq!(connections.len(), 3, "each was closed"),
            _ => {}
        }
        world.assert_whole().await;
    }
}

#[tokio::test]
async fn the_transaction_around_a_test_stays() {
    for kind in Kind::ALL {
        for reset in [Reset::SessionState, Reset::SessionStateAlways] {
            let database = TestDb::new(kind).await;
            let db = database.connect(2).await;
            let test = TestPool::begin(SessionPool::builder(db.clone()).reset(reset))
                .await
                .unwrap();
            let sql = match kind {
                Kind::Postgres => leaks::POSTGRES[1].0,
                Kind::MySql => leaks::MYSQL[0].0,
                _ => leaks::SQLITE[1].0,
            };
            let layer = DbSessionLayer::new(test.pool());
            let app = serve(async move |db: DbSession| {
                insert_item(&db, "made").await;
                db.execute_unprepared(sql).await.unwrap();
            });
            assert_eq!(
                post(&app.layer(layer), "/").await.status(),
                StatusCode::OK,
                "{kind:?}"
            );
            let session = test.session().await.unwrap();
            assert_eq!(
                count_items(&*session, "made").await,
                1,
                "{kind:?} {reset:?}"
            );
            drop(session);
            test.rollback().await.unwrap();
            assert_eq!(count_items(&db, "made").await, 0, "{kind:?} {reset:?}");
        }
    }
}

#[tokio::test]
async fn settings_of_an_in_memory_database_stay() {
    let test = TestDb::new(Kind::SqliteMemory).await;
    let db = test.connect(1).await;
    db.execute_unprepared("CREATE TEMP TABLE configured (a); ATTACH ':memory:' AS other")
        .await
        .unwrap();
    let see = "SELECT group_concat(name) FROM (SELECT name FROM sqlite_temp_master UNION ALL \
               SELECT name FROM pragma_database_list WHERE name <> 'temp')";
    let pool = pool_with(&db, |pool| pool.reset(Reset::SessionState));
    for _ in 0..3 {
        let session = pool.session().await.unwrap();
        assert_eq!(look(&*session, see).await, "configured,main,other");
        for (sql, _) in leaks::SQLITE {
            session
                .execute_unprepared(&sql.replace("TABLE mine", "TABLE mine_too"))
                .await
                .unwrap();
        }
        drop(session);
        returned(&pool).await;
    }
    insert_item(&db, "there").await;
    assert_whole(&test, &db, 1).await;
}

#[tokio::test]
async fn a_mock_has_nothing_to_reset() {
    let db = MockDatabase::new(DbBackend::Postgres).into_connection();
    let layer = layer_with(&db, |pool| pool.reset(Reset::SessionState));
    let app = serve(async || ()).layer(layer);
    assert_eq!(post(&app, "/").await.status(), StatusCode::OK);
}
